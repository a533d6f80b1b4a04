//! Every fault does what it says, so that one that does nothing fails.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod brokers;
mod clock;
mod cluster;
mod disk;
mod network;
