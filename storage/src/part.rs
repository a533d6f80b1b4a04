//! Parts: immutable Parquet files with what the catalog must know of them.
//!
//! This module owns the file format: how rows are sorted and split ([`write_parts`]), how they are
//! encoded, which statistics go into the catalog, and how a file is checked when it is read back
//! ([`read_part`]). It works on bytes in memory; where they are kept is for [`crate::store`].

mod encode;
mod order;
mod ranges;
mod reader;
mod sources;
mod split;
#[cfg(test)]
pub(crate) mod tests;
mod writer;

pub use reader::read_part;
pub use sources::{SourceRows, read_sources};
pub use writer::{write_parts, write_rejects};

use arrow::error::ArrowError;
use bytes::Bytes;
use parquet::errors::ParquetError;
use tidemill_core::catalog::PartFile;
use tidemill_core::{Epoch, PartId, ShardId, TableId};

/// A part that is not stored yet.
#[derive(Clone, Debug)]
pub struct WrittenPart {
    /// What the catalog is to know of it.
    pub file: PartFile,
    /// Its content.
    pub bytes: Bytes,
    /// How many of its rows come from where; its footer says the same.
    pub sources: Vec<SourceRows>,
}

/// Why rows did not become a part, or a part not rows.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// The rows are not of the table's schema.
    #[error("the rows are not of the schema expected: {0}")]
    Schema(String),
    /// The sort key or the partition expression does not fit the table's columns.
    #[error("the table's definition cannot be used: {0}")]
    Definition(String),
    /// The file is not the one that the catalog describes.
    #[error("part {path} is damaged: {what} is {found}, expected {expected}")]
    Damaged {
        /// The file.
        path: String,
        /// What differs: length, checksum, rows.
        what: &'static str,
        /// What it should be.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// Arrow could not do it.
    #[error("arrow: {0}")]
    Arrow(#[from] ArrowError),
    /// The Parquet library could not do it.
    #[error("parquet: {0}")]
    Parquet(#[from] ParquetError),
}

/// The shard, the epoch and the part that the file at `path` was written for, if it is the path of a part.
pub fn place_of(path: &str) -> Option<(ShardId, Epoch, PartId)> {
    let mut pieces = path.split('/');
    let table = TableId(pieces.next()?.parse().ok()?);
    let index = pieces.next()?.parse().ok()?;
    let epoch = Epoch(pieces.next()?.parse().ok()?);
    let (id, suffix) = pieces.next()?.split_once('.')?;
    let ours = matches!(suffix, "parquet" | "rejects.parquet") && pieces.next().is_none();
    ours.then_some((ShardId { table, index }, epoch, id.parse().ok()?))
}

/// Where a part lies in its store. `suffix` is `parquet` or `rejects.parquet`.
fn path_of(shard: ShardId, epoch: Epoch, id: PartId, suffix: &str) -> String {
    format!("{}/{}/{}/{}.{}", shard.table, shard.index, epoch, id, suffix)
}
