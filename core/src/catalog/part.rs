//! The records of files: parts, reject parts, what is known of their content, and what waits to be deleted.

use crate::ids::*;
use serde::{Deserialize, Serialize};

/// A value that a statistic can hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Scalar {
    /// Whole numbers, dates (days) and timestamps (microseconds).
    Int(i64),
    /// Unsigned whole numbers.
    UInt(u64),
    /// Floating point.
    Float(f64),
    /// Text, complete (longer bounds are left out rather than cut).
    Text(String),
    /// Truth values.
    Bool(bool),
}

/// The range of one column within a part. Without bounds, nothing is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ColumnRange {
    /// The column.
    pub column: String,
    /// No value is less.
    pub min: Option<Scalar>,
    /// No value is greater.
    pub max: Option<Scalar>,
    /// How many rows have none.
    pub nulls: u64,
}

/// What is known of a part's file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartFile {
    /// The part.
    pub id: PartId,
    /// Where it lies in the part store.
    pub path: String,
    /// Its rows.
    pub rows: u64,
    /// Its length.
    pub bytes: u64,
    /// XXH3 (64 bits) of its bytes.
    pub checksum: u64,
    /// The value of the partition expression that all its rows share, as text.
    pub partition_value: Option<String>,
    /// Ranges of the columns worth pruning by.
    pub ranges: Vec<ColumnRange>,
}

/// A committed part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The shard whose rows it holds.
    pub shard: ShardId,
    /// Its file.
    pub file: PartFile,
    /// The columns that it was written with.
    pub schema_version: SchemaVersion,
    /// The version at which it became visible.
    pub version: Version,
    /// When it was proposed, milliseconds since 1970.
    pub committed_at_ms: i64,
}

/// A committed part of records that could not be decoded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RejectPart {
    /// The pipe that read them.
    pub pipe: PipeId,
    /// The shard that they would have gone to.
    pub shard: ShardId,
    /// Its file.
    pub file: PartFile,
    /// How many records of each partition it holds.
    pub of: Vec<RejectedOf>,
    /// The version at which its records became visible; a replay that leaves some of them over does not change it.
    pub version: Version,
    /// When that was proposed, milliseconds since 1970.
    pub committed_at_ms: i64,
}

/// The records of one partition in a reject part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedOf {
    /// The partition.
    pub partition: PartitionId,
    /// The life that counts them.
    pub incarnation: Incarnation,
    /// How many.
    pub records: u64,
}

/// A file that nothing refers to any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The part.
    pub part: PartId,
    /// Where it lies in the part store.
    pub path: String,
    /// The version that dropped it: a reader at an older one may still open it.
    pub version: Version,
}
