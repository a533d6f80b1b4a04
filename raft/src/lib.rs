//! The replicated catalog: openraft over RocksDB and tonic, behind one handle.
//!
//! [`Catalog::start`] opens the stores of a node and starts its Raft; the handle proposes commands,
//! places linearizable reads and gives out states of the catalog. Nothing outside of this crate
//! knows openraft. What the commands mean is decided in `tidemill_core`, not here.

mod bootstrap;
mod catalog_db;
mod catalog_store;
mod config;
mod database;
mod error;
mod folder;
mod handle;
mod identity;
mod log_store;
mod log_writer;
mod membership;
mod network;
mod node;
mod peers;
mod retire;
mod service;
mod snapshot;
mod status;
#[cfg(test)]
mod tests;
mod timing;
mod types;

pub use config::{DEFAULT_MEMORY, MemberConfig, Origin, RaftConfig};
pub use error::{ProposeError, ReadError, StartError};
pub use handle::Catalog;
pub use identity::{Claim, Identity};
pub use log_store::LogOpenError;
pub use log_writer::{FailureHook, abort_process};
pub use membership::MembershipError;
pub use node::Leadership;
pub use peers::peer_endpoint;
pub use service::RaftService;
pub use status::{FollowerStatus, RaftStatus};
pub use types::Member;
