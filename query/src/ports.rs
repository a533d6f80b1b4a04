//! What a query needs of its surroundings: the catalog, the rows in memory, progress, and sources.
//!
//! `node` implements these over Raft, gRPC and Kafka; tests implement them in memory. The errors
//! keep *no*, *not now* and *don't know* apart, since only the second may be tried again blindly.

use arrow::array::{BooleanArray, RecordBatch};
use async_trait::async_trait;
use std::collections::BTreeSet;
use std::sync::Arc;
use thiserror::Error;
use tidemill_core::catalog::{Holder, KafkaSource, Node, PartFile, Pipe, RejectPart, Table};
use tidemill_core::command::UsedRejects;
use tidemill_core::view::CatalogSnapshot;
use tidemill_core::wait::WaitKind;
use tidemill_core::{
    Command, Epoch, NodeId, Offset, Outcome, PartitionId, PipeId, ShardId, SpanKey, TableId, TopicId, Version,
};
use tidemill_storage::memtable::PinnedShard;

/// What a query needs of the catalog.
#[async_trait]
pub trait Catalog: Send + Sync {
    /// A state of the catalog that contains everything acknowledged before this call (read index,
    /// then the local state).
    async fn linearizable(&self) -> Result<Arc<dyn CatalogSnapshot>, CatalogError>;

    /// The state of the catalog that this node has applied; may be behind, never goes back.
    fn local(&self) -> Result<Arc<dyn CatalogSnapshot>, CatalogError>;

    /// Proposes a command and waits until it is applied. Gives the version at which it was, and its
    /// outcome; the outcome may be a refusal.
    async fn propose(&self, command: Command) -> Result<(Version, Outcome), CatalogError>;
}

/// Why the catalog gave no answer.
#[derive(Clone, Debug, Error)]
pub enum CatalogError {
    /// Nothing has happened; try again.
    #[error("{0}")]
    Unavailable(String),
    /// The command may or may not have been applied.
    #[error("{0}")]
    Unknown(String),
    /// The catalog cannot be read; this node has to stop.
    #[error("{0}")]
    Fatal(String),
}

/// Fresh rows of a shard, wherever its leader is.
#[async_trait]
pub trait FreshRows: Send + Sync {
    /// Pins the rows that `leader` holds of `shard`, if it leads it in `epoch`: `columns` of them and `_offset`, or all
    /// columns. Nothing else of the rows needs to be kept, or sent.
    async fn pin(
        &self,
        leader: NodeId,
        shard: ShardId,
        epoch: Epoch,
        columns: Option<&BTreeSet<String>>,
    ) -> Result<PinnedShard, PinError>;
}

/// Why rows could not be pinned. Both pass by themselves.
#[derive(Clone, Debug, Error)]
pub enum PinError {
    /// The node does not lead the shard in that epoch, no longer or not yet.
    #[error("its leader has changed or is not ready yet")]
    NotLeading,
    /// The node gives no answer.
    #[error("its leader cannot be reached: {0}")]
    Unreachable(String),
}

/// Where soft state comes from.
#[async_trait]
pub trait Progress: Send + Sync {
    /// What the manager knows; `None` when no manager is known at the moment.
    async fn progress(&self) -> Option<SoftState>;

    /// The part that each of `nodes` has in the Raft group, in one word; empty where that is not known.
    fn roles(&self, nodes: &[Node]) -> Vec<&'static str> {
        vec![""; nodes.len()]
    }
}

/// What the manager knows without the catalog.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SoftState {
    /// What every node last said in its heartbeats.
    pub nodes: Vec<NodeProgress>,
    /// For each partition with unread records, how long until the oldest of them expires at the source, in seconds.
    pub headroom: Vec<(PipeId, PartitionId, i64)>,
    /// For each partition, how many bytes arrive at the source per second.
    pub arriving: Vec<(PipeId, PartitionId, f64)>,
}

/// What a node last said of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeProgress {
    /// The node.
    pub node: NodeId,
    /// How long it has been silent, in milliseconds.
    pub silent_ms: u64,
    /// Bytes in its memtables.
    pub memtable_bytes: u64,
    /// Rows that it takes in per second.
    pub rows_per_second: f64,
    /// The partitions that it consumes.
    pub partitions: Vec<PartitionProgress>,
    /// The partitions that it reads for shards which another node leads.
    pub standing_by: Vec<PartitionProgress>,
    /// By table, how old records were when they could be queried (buckets of [`tidemill_core::freshness`]).
    pub freshness: Vec<(TableId, Vec<u64>)>,
}

/// How far a source partition is read, committed or not.
#[derive(Clone, Debug, PartialEq)]
pub struct PartitionProgress {
    /// The partition.
    pub key: SpanKey,
    /// The shard that its rows go to.
    pub shard: ShardId,
    /// The next offset to read.
    pub position: Offset,
    /// One past the last offset of the source, where known.
    pub end: Option<Offset>,
    /// Whether it is being read; if not, what was read only waits to be committed.
    pub reading: bool,
    /// Bytes of a record on average.
    pub record_bytes: Option<f64>,
    /// The time of the newest record that was read, milliseconds since 1970.
    pub read_to_ms: Option<i64>,
    /// The kind of what the task waits for.
    pub wait: Option<WaitKind>,
    /// What the task waits for; empty when it waits for nothing.
    pub waiting_for: String,
}

/// Asks a source what it has, for `CREATE PIPE`.
#[async_trait]
pub trait Sources: Send + Sync {
    /// The partitions of a Kafka topic and the exact offset at which each begins, given `start`.
    async fn kafka_start(&self, source: &KafkaSource, start: &StartPosition) -> Result<SourceOffsets, SourceError>;
}

/// Exact offsets of a topic's partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceOffsets {
    /// The topic's id, where the broker gives one.
    pub topic: Option<TopicId>,
    /// Every partition with its offset.
    pub partitions: Vec<(PartitionId, Offset)>,
}

/// Decodes rejected records once more, for `REPLAY REJECTED`.
#[async_trait]
pub trait Replayer: Send + Sync {
    /// Decodes those of `rejects` (the content of `part`) that are `chosen`, by the pipe's and the table's present
    /// definition, and makes durable what they become and what is left, under `epoch`. Nothing refers to that yet.
    async fn replay(
        &self,
        pipe: &Pipe,
        table: &Table,
        part: &RejectPart,
        epoch: Epoch,
        rejects: &RecordBatch,
        chosen: &BooleanArray,
    ) -> Result<Replayed, String>;
}

/// What a replay made durable.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// Parts of rows.
    pub parts: Vec<PartFile>,
    /// What it leaves of the reject part.
    pub used: UsedRejects,
    /// The disks that hold all new files; nobody in a store that all nodes share.
    pub holders: Vec<Holder>,
}

/// Where a new pipe begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartPosition {
    /// At the oldest record that the source still has.
    Earliest,
    /// Behind the newest record.
    Latest,
    /// At the first record of that time or later, milliseconds since 1970.
    TimestampMs(i64),
}

/// What was wrong with a source, as a clear text.
#[derive(Clone, Debug, Error)]
#[error("{0}")]
pub struct SourceError(pub String);
