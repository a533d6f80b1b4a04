//! Whole groups in one process, over real connections.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod founding;
mod group;
mod identity;
mod membership;
mod proposals;
mod restarts;
