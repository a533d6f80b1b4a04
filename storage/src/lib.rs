//! Rows on their way from a source to a committed part: the memtable, the write-ahead log, the parts, and the stores
//! that keep them.
//!
//! * [`schema`] says which Arrow columns a table has.
//! * [`memtable`] owns the rows of one shard that are not yet in a committed part.
//! * [`wal`] keeps them on disk meanwhile, for tables that ask for it.
//! * [`part`] turns rows into sorted Parquet files with statistics and checksum, and back.
//! * [`store`] keeps those files: whole, durable, never changed.
//!
//! What this crate promises: a pin of a memtable shows every offset of its ranges exactly once, at
//! one moment; a cut holds the same rows until it is committed or dropped; a part holds exactly
//! the rows it was given; a file that a store acknowledged survives a power cut.
//!
//! What it does not do: it knows no catalog and no source, so it decides neither when to flush nor
//! whether a commit is allowed. It starts no task and reads no configuration.

pub mod memtable;
pub mod part;
pub mod schema;
pub mod store;
pub mod wal;

pub use memtable::{AppendError, Chunk, Cut, Memtable, MemtableStats, PinnedBatch, PinnedPartition, PinnedShard};
pub use part::{PartError, WrittenPart, read_part, write_parts, write_rejects};
pub use schema::{arrow_schema, declared_schema, reject_schema};
pub use store::{PartStore, StoreError, StoredFile};
pub use wal::{Wal, WalError, WalOptions, WalStats};
