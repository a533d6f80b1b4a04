//! The rules of Tidemill, and nothing else: ids, source spans, the catalog's commands and how they
//! are applied, placement, membership, and the invariants that everything else is tested against.
//!
//! This crate knows no file, socket, clock, thread or random number. Time arrives in commands as
//! a value; state is read through a [`view::CatalogView`] and changed through a [`view::WriteSet`].
//! So the same log gives the same catalog on every node, in a unit test and in a simulation.

pub mod apply;
pub mod catalog;
pub mod command;
pub mod format;
pub mod freshness;
pub mod ids;
pub mod invariants;
pub mod ledger;
pub mod membership;
pub mod placement;
mod refusal;
pub mod replication;
pub mod schema;
pub mod span;
pub mod stop;
pub mod tail;
pub mod value;
pub mod view;
pub mod wait;

pub use apply::apply;
pub use command::{Command, Outcome, Proposal, Refusal, Response};
pub use ids::*;
pub use ledger::{Counts, Ledger};
pub use span::{Span, SpanKey};
