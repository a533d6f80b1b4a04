//! The commands of the catalog, their answers and their refusals: what travels through the log.

mod nodes;

pub use nodes::*;

use crate::catalog::{Acks, Holder, KafkaSource, PartFile, Pipe, PipeSettings, PipeState, Replication, TableSettings};
use crate::format::JsonFormat;
use crate::ids::*;
pub use crate::refusal::{Refusal, SpanRefusal};
use crate::schema::{Column, PartitionBy};
use crate::span::{Span, SpanKey};
use crate::stop::StopReason;
use serde::{Deserialize, Serialize};

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
    DropTable(ByName<TableId>),
    /// Creates a pipe and its partitions.
    CreatePipe(CreatePipe),
    /// Drops a pipe; its rows stay.
    DropPipe(ByName<PipeId>),
    /// Pauses or resumes a pipe.
    SetPipeState(SetPipeState),
    /// Takes up partitions that were added to a pipe's topic.
    AddPartitions(AddPartitions),
    /// Gives a shard a new leader, or none, and a new epoch.
    AssignLeader(AssignLeader),
    /// Gives a shard a standby, or none.
    AssignStandby(AssignStandby),
    /// Makes parts visible and moves offsets, at once.
    CommitPart(CommitPart),
    /// Forgets files that the collector has deleted.
    ForgetTombstones(Vec<PartId>),
    /// Stops a partition until an operator says how it goes on.
    StopPartition(StopPartition),
    /// Lets partitions go on elsewhere.
    ResetOffsets(ResetOffsets),
    /// Reads what was skipped, once.
    Backfill(Backfill),
    /// Changes settings of a pipe.
    AlterPipe(AlterPipe),
    /// Changes settings of a table.
    AlterTable(AlterTable),
    /// Turns rejected records into rows.
    ReplayRejects(ReplayRejects),
    /// Writes down what happened.
    RecordEvent(RecordEvent),
    /// Admits a node to the cluster and gives it its id.
    AddNode(AddNode),
    /// Says what the operators want of a node.
    SetNodeIntent(SetNodeIntent),
    /// Ends the life of a node that has left the voters.
    RemoveNode(RemoveNode),
    /// Changes how many copies of part files there are.
    SetReplication(SetReplication),
    /// Lets a node keep the files of a shard.
    AddReplica(ReplicaOf),
    /// Says that a replica that was copying is complete.
    CompleteReplica(ReplicaOf),
    /// Lets a node keep the files of a shard no more.
    DropReplica(ReplicaOf),
    /// Says which files a disk holds, or holds no more.
    SetHoldings(SetHoldings),
    /// Admits a program that writes rows itself.
    OpenWriter(OpenWriter),
    /// Ends a writer.
    CloseWriter(CloseWriter),
    /// Goes on behind rows of a writer that are lost.
    PassGap(PassGap),
}

/// See [`Command::CreateTable`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateTable {
    /// Its name.
    pub name: String,
    /// The id that it gets, which was the next one when this was worked out: said again later, when that has been given away, it
    /// creates nothing. Only what was written before there was this field has none.
    #[serde(default)]
    pub id: Option<TableId>,
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
    /// What may be changed later.
    #[serde(flatten)]
    pub settings: TableSettings,
}

/// See [`Command::DropTable`] and [`Command::DropPipe`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ByName<Id> {
    /// The name.
    pub name: String,
    /// Whether a missing one is fine.
    pub if_exists: bool,
    /// The id that it has, as in [`ResetOffsets`].
    #[serde(default, bound(deserialize = "Id: Deserialize<'de>"))]
    pub id: Option<Id>,
}

/// See [`Command::CreatePipe`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreatePipe {
    /// Its name.
    pub name: String,
    /// The id that it gets, as in [`CreateTable`].
    #[serde(default)]
    pub id: Option<PipeId>,
    /// Whether an existing pipe of that name is fine.
    pub if_not_exists: bool,
    /// The name of the table.
    pub table: String,
    /// Its id, as in [`ResetOffsets`].
    #[serde(default)]
    pub table_id: Option<TableId>,
    /// What it reads.
    pub source: KafkaSource,
    /// What may be changed later.
    pub settings: PipeSettings,
    /// The topic that was asked, where the broker says.
    pub topic: Option<TopicId>,
    /// How its records become rows.
    #[serde(default)]
    pub format: JsonFormat,
    /// The partitions of the source and where each begins; resolved to exact offsets by the
    /// proposer, so that no client default ever decides.
    pub partitions: Vec<(PartitionId, Offset)>,
}

/// See [`Command::SetPipeState`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetPipeState {
    /// The pipe.
    pub name: String,
    /// Its id, as in [`ResetOffsets`].
    #[serde(default)]
    pub pipe: Option<PipeId>,
    /// The only state from which it shall be that, if it matters: in another one it is left as it is.
    #[serde(default)]
    pub from: Option<PipeState>,
    /// What it shall be.
    pub state: PipeState,
}

/// See [`Command::StopPartition`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StopPartition {
    /// The partition and the life in which the reason was found.
    pub key: SpanKey,
    /// The epoch in which whoever found it leads the shard: what a deposed leader finds is measured by what it had read itself.
    /// `None` in commands of versions that did not say.
    #[serde(default)]
    pub epoch: Option<Epoch>,
    /// The reason.
    pub reason: StopReason,
}

/// See [`Command::ResetOffsets`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResetOffsets {
    /// The pipe.
    pub name: String,
    /// The id that it had when this was worked out: another pipe of that name is not touched. Only what was written before there was
    /// this field has none.
    #[serde(default)]
    pub pipe: Option<PipeId>,
    /// Where each partition goes on; partitions that are not named are not touched.
    pub targets: Vec<ResetTarget>,
    /// What ended the lives before, in a word or two, for the ledger.
    pub because: String,
}

/// Where a partition goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResetTarget {
    /// The partition.
    pub partition: PartitionId,
    /// The life that this ends: a target that was worked out for another is refused.
    pub incarnation: Incarnation,
    /// The next offset, or `None` to forget the partition because the topic has it no more.
    pub to: Option<Offset>,
    /// The topic that `to` belongs to, where the source says.
    pub topic: Option<TopicId>,
    /// What becomes of rows that are there from `to` on; going back needs to say it.
    pub old_rows: Option<OldRows>,
    /// The leader epoch of the source at the record before `to`, if it is known.
    #[serde(default)]
    pub source_epoch: Option<i32>,
}

/// What becomes of rows whose offsets are read once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OldRows {
    /// They stay beside the new ones.
    Keep,
    /// They are deleted, in the same step.
    Delete,
}

/// See [`Command::Backfill`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backfill {
    /// The pipe that skipped something.
    pub name: String,
    /// Its id, as in [`ResetOffsets`].
    #[serde(default)]
    pub pipe: Option<PipeId>,
    /// The partitions to do it for; all when empty.
    pub partitions: Vec<PartitionId>,
}

/// See [`Command::AlterPipe`]. All that may be changed, as it shall be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlterPipe {
    /// The pipe.
    pub name: String,
    /// Its id, as in [`ResetOffsets`].
    #[serde(default)]
    pub pipe: Option<PipeId>,
    /// Its settings.
    pub settings: PipeSettings,
    /// How its records become rows from now on.
    pub format: JsonFormat,
    /// Its brokers and client settings; the topic stays.
    pub source: KafkaSource,
    /// What this was worked out from. If it is not so any more, it would undo what somebody else has changed, and is refused.
    #[serde(default)]
    pub from: Option<PipeOptions>,
}

/// What [`AlterPipe`] changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PipeOptions {
    /// Settings.
    pub settings: PipeSettings,
    /// How records become rows.
    pub format: JsonFormat,
    /// Brokers, topic and client settings.
    pub source: KafkaSource,
}

impl PipeOptions {
    /// Those of `pipe`; none if it reads no topic.
    pub fn of(pipe: &Pipe) -> Option<Self> {
        Some(Self {
            settings: pipe.settings.clone(),
            format: pipe.format.clone(),
            source: pipe.source.kafka()?.clone(),
        })
    }
}

/// See [`Command::AlterTable`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlterTable {
    /// The table.
    pub name: String,
    /// Its id, as in [`ResetOffsets`].
    #[serde(default)]
    pub table: Option<TableId>,
    /// The settings that this was worked out from, as in [`AlterPipe`].
    #[serde(default)]
    pub from: Option<TableSettings>,
    /// Its settings from now on.
    #[serde(flatten)]
    pub settings: TableSettings,
}

/// See [`Command::SetReplication`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetReplication {
    /// How it shall be.
    #[serde(flatten)]
    pub wanted: Replication,
    /// What that was worked out from, as in [`AlterPipe`].
    #[serde(default)]
    pub from: Option<Replication>,
}

/// See [`Command::ReplayRejects`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplayRejects {
    /// The pipe that rejected them.
    pub pipe: PipeId,
    /// The shard whose rows they are.
    pub shard: ShardId,
    /// The epoch in which the parts were written; the collector goes by it.
    pub epoch: Epoch,
    /// The columns that the parts were written with.
    pub schema_version: SchemaVersion,
    /// The version of the catalog by which the records were chosen: rows deleted since would come back.
    pub chosen_at: Version,
    /// Parts of the rows that the records became; durable before this is proposed.
    pub parts: Vec<PartFile>,
    /// The reject parts that are used up, each with what is left of it.
    pub used: Vec<UsedRejects>,
    /// The disks on which all new files are durable; empty where the part store is shared.
    pub holders: Vec<Holder>,
}

/// A reject part that a replay uses up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UsedRejects {
    /// The part. It must be live: whoever replays the same rejects second is refused.
    pub part: PartId,
    /// The records of it that are still rejected, as a new part.
    pub rest: Option<PartFile>,
    /// What became of its records, by partition.
    pub recovered: Vec<Recovered>,
}

/// What became of the rejected records of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovered {
    /// The partition.
    pub partition: PartitionId,
    /// Records that became rows.
    pub stored: u64,
    /// The rows that they became.
    pub rows: u64,
    /// Records that are left out on purpose.
    pub filtered: u64,
}

/// See [`Command::RecordEvent`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordEvent {
    /// What kind, in a word or two.
    pub kind: String,
    /// What it is about, by name.
    pub subject: String,
    /// The partition of a pipe's source.
    pub partition: Option<PartitionId>,
    /// What happened.
    pub text: String,
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
    /// Why, for people.
    pub because: String,
}

/// See [`Command::AssignStandby`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignStandby {
    /// The shard.
    pub shard: ShardId,
    /// The epoch in which the standby was chosen: another leader may be the one that was chosen.
    pub epoch: Epoch,
    /// The standby, or none.
    pub node: Option<NodeId>,
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
    /// The disks on which all these files are durable; empty where the part store is shared.
    pub holders: Vec<Holder>,
}

/// See [`Command::AddReplica`], [`Command::CompleteReplica`] and [`Command::DropReplica`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaOf {
    /// The shard.
    pub shard: ShardId,
    /// The node.
    pub node: NodeId,
}

/// See [`Command::SetHoldings`]. Files that are not live any more are passed over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetHoldings {
    /// The disk, which must be the present one of its node.
    pub disk: Holder,
    /// The version of the catalog by which it was looked at.
    #[serde(default)]
    pub seen: Version,
    /// Files that lie on it, durable and verified.
    pub holds: Vec<(ShardId, PartId)>,
    /// Files that turned out to be missing or damaged on it, each with what was found.
    pub lost: Vec<(ShardId, PartId, String)>,
}

/// See [`Command::OpenWriter`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenWriter {
    /// The name of the table that it writes into.
    pub table: String,
    /// When it is told that its rows are there.
    pub acks: Acks,
    /// This wish; a repetition carries the same.
    pub token: WriterToken,
}

/// See [`Command::CloseWriter`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CloseWriter {
    /// The writer.
    pub writer: WriterId,
    /// How many rows it was told are there, by shard. What is not committed of them is lost, and written down as that.
    pub acknowledged: Vec<(u32, Offset)>,
    /// Closes it only if nothing of it was committed since then, milliseconds since 1970.
    pub if_idle_since_ms: Option<i64>,
}

/// See [`Command::PassGap`]. The rows were acknowledged before they were committed, and went with a leader.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PassGap {
    /// The writer.
    pub writer: WriterId,
    /// The shard.
    pub shard: u32,
    /// The epoch of the leader that holds the partition until this is decided: another may have taken rows behind the gap, or
    /// have those in it. `None` in commands of versions that did not say.
    #[serde(default)]
    pub epoch: Option<Epoch>,
    /// The first of them, which is the next to be committed.
    pub from: Offset,
    /// One past the last.
    pub to: Offset,
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
    /// The node has this id.
    Node(NodeId),
    /// The writer has this id.
    Writer(WriterId),
}

/// What a command came to: an answer, or a *no* that left everything as it was.
pub type Outcome = Result<Response, Refusal>;

impl CommitPart {
    /// All its files, of rows and of rejects.
    pub fn files(&self) -> impl Iterator<Item = &PartFile> {
        self.parts.iter().chain(self.reject_parts.iter().map(|(_, file)| file))
    }

    /// Hash of the content, as hexadecimal digits: equal for an exact repetition only.
    pub fn digest(&self) -> String {
        // The encoding of plain data into memory has no way to fail; an empty digest would only
        // make a repetition look like another content, which is refused.
        let bytes = rmp_serde::to_vec_named(self).unwrap_or_default();
        format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&bytes))
    }
}
