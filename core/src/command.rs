//! The commands of the catalog, their answers and their refusals: what travels through the log.

use crate::catalog::{Addresses, FlushPolicy, KafkaSource, NodeState, PartFile};
use crate::format::JsonFormat;
use crate::ids::*;
use crate::schema::{Column, PartitionBy};
use crate::span::{Span, SpanKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The format of the commands that this version writes.
pub const COMMAND_FORMAT: u16 = 1;

/// The most bytes that one encoded command may have: rows never travel through the log.
pub const MAX_COMMAND_BYTES: usize = 256 << 10;

/// A command on its way to the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// Format of the command.
    pub format: u16,
    /// When it was proposed by the proposer's clock, milliseconds since 1970. For people, never for safety.
    pub at_ms: i64,
    /// The command.
    pub command: Command,
}

impl Proposal {
    /// A command proposed at `at_ms`.
    pub fn new(at_ms: i64, command: Command) -> Self {
        Self {
            format: COMMAND_FORMAT,
            at_ms,
            command,
        }
    }
}

/// A change to the catalog.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Founds the cluster; the first command of every log.
    FoundCluster(FoundCluster),
    /// A node's process says that it runs.
    NodeUp(NodeUp),
    /// Changes the state of a node.
    SetNodeState(SetNodeState),
    /// Creates a table and its shards.
    CreateTable(CreateTable),
    /// Drops a table, its shards and parts.
    DropTable(ByName),
    /// Creates a pipe and its partitions.
    CreatePipe(CreatePipe),
    /// Drops a pipe; its rows stay.
    DropPipe(ByName),
    /// Pauses or resumes a pipe.
    SetPipePaused(SetPipePaused),
    /// Takes up partitions that were added to a pipe's topic.
    AddPartitions(AddPartitions),
    /// Gives a shard a new leader, or none, and a new epoch.
    AssignLeader(AssignLeader),
    /// Makes parts visible and moves offsets, at once.
    CommitPart(CommitPart),
    /// Forgets files that the collector has deleted.
    ForgetTombstones(Vec<PartId>),
}

/// See [`Command::FoundCluster`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoundCluster {
    /// Its id, chosen at random by the founder.
    pub cluster: ClusterId,
    /// Its name.
    pub name: String,
    /// The first nodes.
    pub members: Vec<FoundingMember>,
}

/// One of the first nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoundingMember {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Its data folder.
    pub instance: InstanceId,
    /// Its warehouse.
    pub warehouse: String,
    /// Where it is reached.
    pub addresses: Addresses,
}

/// See [`Command::NodeUp`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeUp {
    /// The node.
    pub node: NodeId,
    /// Its data folder.
    pub instance: InstanceId,
    /// This run of its process.
    pub boot: BootId,
    /// Where it is reached from now on.
    pub addresses: Addresses,
}

/// See [`Command::SetNodeState`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetNodeState {
    /// The node.
    pub node: NodeId,
    /// The run of its process that was judged: a later one is not touched by an old judgement.
    pub boot: Option<BootId>,
    /// The state it gets.
    pub state: NodeState,
}

/// See [`Command::CreateTable`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateTable {
    /// Its name.
    pub name: String,
    /// Whether an existing table of that name is fine.
    pub if_not_exists: bool,
    /// Its columns.
    pub columns: Vec<Column>,
    /// Sort key.
    pub order_by: Vec<String>,
    /// Partition expression.
    pub partition_by: Option<PartitionBy>,
    /// Number of shards.
    pub shards: u32,
    /// When memtables are written out.
    pub flush: FlushPolicy,
}

/// See [`Command::DropTable`] and [`Command::DropPipe`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ByName {
    /// The name.
    pub name: String,
    /// Whether a missing one is fine.
    pub if_exists: bool,
}

/// See [`Command::CreatePipe`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreatePipe {
    /// Its name.
    pub name: String,
    /// Whether an existing pipe of that name is fine.
    pub if_not_exists: bool,
    /// The name of the table.
    pub table: String,
    /// What it reads.
    pub source: KafkaSource,
    /// How its records become rows.
    #[serde(default)]
    pub format: JsonFormat,
    /// The partitions of the source and where each begins; resolved to exact offsets by the
    /// proposer, so that no client default ever decides.
    pub partitions: Vec<(PartitionId, Offset)>,
}

/// See [`Command::SetPipePaused`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetPipePaused {
    /// The pipe.
    pub name: String,
    /// Whether it shall be paused.
    pub paused: bool,
}

/// See [`Command::AddPartitions`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AddPartitions {
    /// The pipe.
    pub pipe: PipeId,
    /// The new partitions and where each begins.
    pub partitions: Vec<(PartitionId, Offset)>,
}

/// See [`Command::AssignLeader`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AssignLeader {
    /// The shard.
    pub shard: ShardId,
    /// The epoch that this replaces.
    pub replaces: Epoch,
    /// The new leader, or none.
    pub leader: Option<NodeId>,
}

/// See [`Command::CommitPart`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommitPart {
    /// This attempt; a repetition carries the same.
    pub commit: CommitId,
    /// The shard.
    pub shard: ShardId,
    /// The epoch in which the writer was made leader.
    pub epoch: Epoch,
    /// The columns that the parts were written with.
    pub schema_version: SchemaVersion,
    /// Parts of rows; durable in the part store before this is proposed.
    pub parts: Vec<PartFile>,
    /// Parts of rejected records, by pipe; durable likewise.
    pub reject_parts: Vec<(PipeId, PartFile)>,
    /// What this passes over, at most one span for each partition.
    pub spans: Vec<Span>,
}

/// What a command gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// It is done.
    Done,
    /// There was nothing to do.
    Unchanged,
    /// The table was created.
    Table(TableId),
    /// The pipe was created.
    Pipe(PipeId),
    /// The shard has this epoch now.
    Epoch(Epoch),
}

/// What a command came to: an answer, or a *no* that left everything as it was.
pub type Outcome = Result<Response, Refusal>;

/// Why a command was refused. A refusal is final for the command as it stands and changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Refusal {
    /// A newer version wrote it.
    #[error(
        "the command has format {0}, this version knows {COMMAND_FORMAT}: upgrade all nodes before using new features"
    )]
    UnknownFormat(u16),
    /// There is no cluster yet, or there is one already.
    #[error("{0}")]
    Founding(String),
    /// There is no such node, or it is another data folder.
    #[error("{0}")]
    Node(String),
    /// No such table.
    #[error("there is no table called '{0}'; SHOW TABLES lists them")]
    NoTable(String),
    /// No such pipe.
    #[error("there is no pipe called '{0}'; SHOW PIPES lists them")]
    NoPipe(String),
    /// The name is taken.
    #[error("there is already a {what} called '{name}'")]
    NameTaken {
        /// A table or a pipe.
        what: String,
        /// The name.
        name: String,
    },
    /// The definition is not possible.
    #[error("{0}")]
    Definition(String),
    /// Pipes still fill the table.
    #[error("table '{table}' is filled by {pipes}; drop those first")]
    TableInUse {
        /// The table.
        table: String,
        /// Names of the pipes.
        pipes: String,
    },
    /// No such shard.
    #[error("there is no shard {0}")]
    NoShard(ShardId),
    /// The shard has moved on.
    #[error("shard {shard} is at epoch {current}, not {given}")]
    StaleEpoch {
        /// The shard.
        shard: ShardId,
        /// Its epoch.
        current: Epoch,
        /// The epoch in the command.
        given: Epoch,
    },
    /// The commit was applied before; whoever repeats it has won.
    #[error("this commit was applied at version {0}")]
    AlreadyCommitted(Version),
    /// Another content under the id of the last commit.
    #[error("commit id {0} was used before with other content")]
    IdReused(CommitId),
    /// The table's columns have changed too much since.
    #[error("the parts have schema version {given}, the table takes {oldest} or later")]
    SchemaTooOld {
        /// The version in the command.
        given: SchemaVersion,
        /// The oldest that may be committed.
        oldest: SchemaVersion,
    },
    /// Some spans cannot be committed, now or ever; the others may be, in a new commit.
    #[error("{} of the spans cannot be committed: {}", .0.len(), .0.iter().map(|(key, why)| format!("pipe {} partition {}: {why}", key.pipe, key.partition)).collect::<Vec<_>>().join("; "))]
    Spans(Vec<(SpanKey, SpanRefusal)>),
}

/// Why one span was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum SpanRefusal {
    /// The pipe is gone or has no such partition.
    #[error("there is no such pipe or partition")]
    Unknown,
    /// The partition's rows go to another shard.
    #[error("it belongs to shard {0}")]
    NotOwner(ShardId),
    /// The partition has begun another life.
    #[error("it is at incarnation {0}")]
    StaleIncarnation(Incarnation),
    /// It does not begin where the committed offsets end.
    #[error("the next offset is {0}")]
    NotNext(Offset),
    /// Its own numbers are impossible.
    #[error("it runs backwards, is named twice, or has more records than offsets")]
    Unsound,
}

impl CommitPart {
    /// Hash of the content, as hexadecimal digits: equal for an exact repetition only.
    pub fn digest(&self) -> String {
        // The encoding of plain data into memory has no way to fail; an empty digest would only
        // make a repetition look like another content, which is refused.
        let bytes = rmp_serde::to_vec_named(self).unwrap_or_default();
        format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&bytes))
    }
}
