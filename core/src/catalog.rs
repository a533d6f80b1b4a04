//! The records of the catalog and how each is found. What may change them is in [`crate::apply()`].

use crate::format::JsonFormat;
use crate::ids::*;
use crate::schema::{Column, PartitionBy};
use crate::view::{CatalogRead, Key, Kind, Record, ViewError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where a node is reached, each as `host:port`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Raft and heartbeats.
    pub raft: String,
    /// gRPC for clients and for queries between nodes.
    pub api: String,
    /// Health, metrics.
    pub http: String,
}

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    /// Known, not yet heard of.
    Joining,
    /// Able to lead shards.
    Ready,
    /// Leaving: keeps nothing that another node can take.
    Draining,
    /// Silent for too long.
    Down,
}

impl std::fmt::Display for NodeState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            NodeState::Joining => "Joining",
            NodeState::Ready => "Ready",
            NodeState::Draining => "Draining",
            NodeState::Down => "Down",
        })
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Its data folder.
    pub instance: InstanceId,
    /// The run of its process that was last heard of; `None` before the first.
    pub boot: Option<BootId>,
    /// Its set of nodes.
    pub warehouse: String,
    /// Where it is reached.
    pub addresses: Addresses,
    /// Where it is in its life.
    pub state: NodeState,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its id.
    pub id: TableId,
    /// Its name.
    pub name: String,
    /// Its declared columns; the metadata columns follow them.
    pub columns: Vec<Column>,
    /// The version of these columns.
    pub schema_version: SchemaVersion,
    /// The oldest version whose parts may still be committed.
    pub min_schema: SchemaVersion,
    /// The columns by which the rows of a part are sorted; may be empty.
    pub order_by: Vec<String>,
    /// How rows are split into parts, if they are.
    pub partition_by: Option<PartitionBy>,
    /// How many shards it has, fixed at creation.
    pub shards: u32,
    /// When its memtable is written out.
    pub flush: FlushPolicy,
    /// When it was created, milliseconds since 1970.
    pub created_at_ms: i64,
}

/// When the memtable of a shard is cut and written as parts: at whichever bound is reached first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlushPolicy {
    /// Rows.
    pub rows: u64,
    /// Bytes in memory.
    pub bytes: u64,
    /// Age of its oldest row in milliseconds.
    pub age_ms: u64,
}

impl Default for FlushPolicy {
    fn default() -> Self {
        Self {
            rows: 1_000_000,
            bytes: 128 << 20,
            age_ms: 10_000,
        }
    }
}

/// What a pipe reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KafkaSource {
    /// Bootstrap servers, `host:port` separated by commas.
    pub brokers: String,
    /// The topic.
    pub topic: String,
    /// Further settings for the client library, by its own names.
    pub client: BTreeMap<String, String>,
}

/// A pipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipe {
    /// Its id.
    pub id: PipeId,
    /// Its name.
    pub name: String,
    /// The table that it fills.
    pub table: TableId,
    /// What it reads.
    pub source: KafkaSource,
    /// How its records become rows.
    #[serde(default)]
    pub format: JsonFormat,
    /// Whether it was paused.
    pub paused: bool,
    /// When it was created, milliseconds since 1970.
    pub created_at_ms: i64,
}

/// A shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Its id.
    pub id: ShardId,
    /// Its term of office.
    pub epoch: Epoch,
    /// Who leads it in this term, if anybody.
    pub leader: Option<NodeId>,
    /// Its last commit.
    pub last_commit: Option<LastCommit>,
}

/// The last commit of a shard, kept so that its repetition is recognised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastCommit {
    /// Its id.
    pub id: CommitId,
    /// Hash of its content, as hexadecimal digits.
    pub digest: String,
    /// The version at which it was applied.
    pub version: Version,
}

/// What the catalog knows of one source partition of a pipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourcePartition {
    /// The pipe.
    pub pipe: PipeId,
    /// The partition.
    pub partition: PartitionId,
    /// The shard that its rows belong to.
    pub shard: ShardId,
    /// Its life.
    pub incarnation: Incarnation,
    /// The offset at which the pipe began.
    pub start: Offset,
    /// The next offset to commit: everything below it is accounted for.
    pub offset: Offset,
    /// Leader epoch of the source at the last committed record, if known.
    pub source_epoch: Option<i32>,
    /// Records that became rows, since `start`.
    pub stored: u64,
    /// Records in reject parts, since `start`.
    pub rejected: u64,
    /// When it last moved, milliseconds since 1970.
    pub committed_at_ms: i64,
}

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
    /// The version at which it became visible.
    pub version: Version,
    /// When it was proposed, milliseconds since 1970.
    pub committed_at_ms: i64,
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

/// The cluster itself and its counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its id.
    pub id: ClusterId,
    /// Its name.
    pub name: String,
    /// The next node id.
    pub next_node: NodeId,
    /// The next table id.
    pub next_table: TableId,
    /// The next pipe id.
    pub next_pipe: PipeId,
}

/// The one key of the [`Cluster`] record.
#[derive(Clone, Copy, Debug)]
pub struct ClusterKey;

impl Key for ClusterKey {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"cluster");
    }
}

/// A name, as a key.
#[derive(Clone, Debug)]
pub struct Name(pub String);

impl Key for Name {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.0.as_bytes());
    }
}

/// The table of a name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TableName(pub TableId);

/// The pipe of a name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PipeName(pub PipeId);

macro_rules! keys {
    ($($type:ty: |$key:ident, $out:ident| $body:expr;)*) => {
        $(impl Key for $type {
            fn encode(&self, $out: &mut Vec<u8>) {
                let $key = self;
                $body
            }
        })*
    };
}

keys! {
    NodeId: |k, out| out.extend_from_slice(&k.0.to_be_bytes());
    TableId: |k, out| out.extend_from_slice(&k.0.to_be_bytes());
    PipeId: |k, out| out.extend_from_slice(&k.0.to_be_bytes());
    PartId: |k, out| out.extend_from_slice(&k.0.to_be_bytes());
    ShardId: |k, out| { k.table.encode(out); out.extend_from_slice(&k.index.to_be_bytes()) };
    (PipeId, PartitionId): |k, out| { k.0.encode(out); out.extend_from_slice(&k.1.0.to_be_bytes()) };
    (ShardId, PartId): |k, out| { k.0.encode(out); k.1.encode(out) };
    (PipeId, PartId): |k, out| { k.0.encode(out); k.1.encode(out) };
}

macro_rules! records {
    ($($type:ty: $kind:ident by $key:ty;)*) => {
        $(impl Record for $type {
            const KIND: Kind = Kind::$kind;
            type Key = $key;
        })*
    };
}

records! {
    Cluster: Meta by ClusterKey;
    Node: Node by NodeId;
    Table: Table by TableId;
    TableName: TableName by Name;
    Pipe: Pipe by PipeId;
    PipeName: PipeName by Name;
    Shard: Shard by ShardId;
    SourcePartition: Partition by (PipeId, PartitionId);
    Part: Part by (ShardId, PartId);
    RejectPart: RejectPart by (PipeId, PartId);
    Tombstone: Tombstone by PartId;
}

/// The questions that are asked of a catalog everywhere.
pub trait CatalogQuestions: CatalogRead {
    /// The table called `name`.
    fn table_named(&self, name: &str) -> Result<Option<Table>, ViewError> {
        match self.get::<TableName>(&Name(name.to_owned()))? {
            Some(TableName(id)) => self.get(&id),
            None => Ok(None),
        }
    }

    /// The pipe called `name`.
    fn pipe_named(&self, name: &str) -> Result<Option<Pipe>, ViewError> {
        match self.get::<PipeName>(&Name(name.to_owned()))? {
            Some(PipeName(id)) => self.get(&id),
            None => Ok(None),
        }
    }

    /// The pipes that fill `table`, by id.
    fn pipes_into(&self, table: TableId) -> Result<Vec<Pipe>, ViewError> {
        Ok(self
            .list::<Pipe>(&[])?
            .into_iter()
            .filter(|pipe| pipe.table == table)
            .collect())
    }

    /// The shards of `table`, by index.
    fn shards_of(&self, table: TableId) -> Result<Vec<Shard>, ViewError> {
        self.list(&table.bytes())
    }

    /// The partitions of `pipe`, by number.
    fn partitions_of(&self, pipe: PipeId) -> Result<Vec<SourcePartition>, ViewError> {
        self.list(&pipe.bytes())
    }

    /// The parts of `table`, by shard.
    fn parts_of(&self, table: TableId) -> Result<Vec<Part>, ViewError> {
        self.list(&table.bytes())
    }
}

impl<V: CatalogRead + ?Sized> CatalogQuestions for V {}
