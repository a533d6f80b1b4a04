//! SQL over committed parts and fresh rows.
//!
//! [`Engine`] takes one statement as text and answers it. Queries run in DataFusion over one version
//! of the catalog: the Parquet parts that it names and, unless asked otherwise, the rows that the
//! shard leaders hold in memory beyond it. Every row is seen exactly once (QRY-1; the argument is in
//! `fresh.rs`). Statements that define things become commands for the catalog.
//!
//! This crate knows no network and no Raft: what it needs of its surroundings are the traits in
//! [`ports`]. It writes no files except what DataFusion spills.

mod administer;
mod control;
mod diagnosis;
mod engine;
mod error;
mod fresh;
mod held;
mod nearest;
pub mod ports;
mod replay;
mod session;
mod settings;
mod show;
mod statement;
mod system;
mod table;
#[cfg(test)]
mod tests;

pub use engine::{Answer, Engine, EngineConfig};
pub use error::{ErrorKind, Place, QueryError};
pub use ports::{
    Catalog, CatalogError, FreshRows, NodeProgress, PartitionProgress, PinError, Progress, Replayed, Replayer,
    SoftState, SourceError, SourceOffsets, Sources, StartPosition,
};
pub use settings::{Consistency, Settings};
