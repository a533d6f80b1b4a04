//! The records of the catalog and how each is found. What may change them is in [`crate::apply()`].

mod part;
mod pipe;
mod replica;
mod settings;
mod writer;

pub use part::*;
pub use pipe::*;
pub use replica::*;
pub use settings::*;
pub use writer::*;

use crate::ids::*;
use crate::ledger::ClosedLedger;
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
    /// Gone for good: neither its id nor its data folder ever takes part again.
    Removed,
}

impl NodeState {
    /// Whether the node is heard of and works.
    pub fn is_up(self) -> bool {
        matches!(self, NodeState::Ready | NodeState::Draining)
    }
}

impl std::fmt::Display for NodeState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            NodeState::Joining => "Joining",
            NodeState::Ready => "Ready",
            NodeState::Draining => "Draining",
            NodeState::Down => "Down",
            NodeState::Removed => "Removed",
        })
    }
}

/// What the operators want of a node. The state follows it, as far as the node can be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeIntent {
    /// It works.
    #[default]
    Serve,
    /// It gives up its shards and stays a member.
    Drain,
    /// It gives up its shards, leaves the voters, and is removed.
    Leave,
}

impl NodeIntent {
    /// The state of a node of which this is wanted, while it is heard of.
    pub fn state_when_up(self) -> NodeState {
        match self {
            NodeIntent::Serve => NodeState::Ready,
            NodeIntent::Drain | NodeIntent::Leave => NodeState::Draining,
        }
    }
}

impl std::fmt::Display for NodeIntent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            NodeIntent::Serve => "serve",
            NodeIntent::Drain => "drain",
            NodeIntent::Leave => "leave",
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
    /// What the operators want of it.
    #[serde(default)]
    pub intent: NodeIntent,
    /// Its disk for part files; `None` before it is heard of, and where the part store is shared.
    #[serde(default)]
    pub disk: Option<DiskId>,
    /// The version in which its intent became what it is. What was found out about the node before that says nothing of what
    /// it has done since.
    #[serde(default)]
    pub intent_since: Version,
}

impl Node {
    /// Whether it is a member, and shall remain one.
    pub fn stays(&self) -> bool {
        self.state != NodeState::Removed && self.intent != NodeIntent::Leave
    }

    /// Its present disk as a holder of files, if it has one.
    pub fn holder(&self) -> Option<Holder> {
        self.disk.map(|disk| Holder { node: self.id, disk })
    }
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
    /// What may be changed later.
    #[serde(flatten)]
    pub settings: TableSettings,
    /// Rows that are in its parts and count no more, in the order of versions.
    #[serde(default)]
    pub deleted: Vec<DeletedRows>,
    /// Sources of pipes that were dropped.
    #[serde(default)]
    pub former: Vec<FormerSource>,
    /// When it was created, milliseconds since 1970.
    pub created_at_ms: i64,
}

impl Table {
    /// The same table, whose rows are not split by its partition expression.
    pub fn undivided(&self) -> Self {
        Self {
            partition_by: None,
            ..self.clone()
        }
    }
}

/// Rows, and rejected records, that a reset deleted because their offsets are read once more: those of some source
/// partitions, each from an offset on, in parts that became visible before. The parts stay as they are; whoever reads
/// them leaves these rows out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedRows {
    /// The topic, as the rows name it.
    pub topic: String,
    /// The partitions, each with the first offset.
    pub from: BTreeMap<PartitionId, Offset>,
    /// The version that deleted them: parts that became visible later are not concerned.
    pub version: Version,
    /// When, milliseconds since 1970.
    pub at_ms: i64,
}

/// Where rows of a table came from that no pipe answers for any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerSource {
    /// The pipe, by the name that it had.
    pub pipe: String,
    /// The topic that it read, as the rows name it.
    pub topic: String,
    /// The topic's id, where the source said.
    pub id: Option<TopicId>,
    /// Where it was.
    pub brokers: String,
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
    /// Who led it last, which may be who leads it now: what that node logged is still to be committed.
    #[serde(default)]
    pub last_leader: Option<NodeId>,
    /// Why it has this leader, or none.
    #[serde(default)]
    pub assigned: Option<Assigned>,
    /// Its last commit.
    pub last_commit: Option<LastCommit>,
    /// Who keeps its part files; nobody in particular where the part store is shared.
    #[serde(default)]
    pub replicas: Vec<Replica>,
    /// Who reads beside the leader and is to take over from it; never the leader itself.
    #[serde(default)]
    pub standby: Option<NodeId>,
}

impl Shard {
    /// The replica on `node`, if there is one.
    pub fn replica(&self, node: NodeId) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.node == node)
    }

    /// The nodes that are complete replicas.
    pub fn ready_replicas(&self) -> impl Iterator<Item = NodeId> {
        let ready = self.replicas.iter().filter(|r| r.state == ReplicaState::Ready);
        ready.map(|replica| replica.node)
    }

    /// Those of `nodes` that may lead it: they have its files, if these are replicated, and are of the warehouse of its
    /// `table`, as soon as any that has them is.
    pub fn may_be_led_by<'n>(
        &self,
        table: Option<&Table>,
        nodes: impl Iterator<Item = &'n Node>,
        replicates: bool,
    ) -> Vec<&'n Node> {
        let has_files = |node: &&Node| !replicates || self.ready_replicas().any(|ready| ready == node.id);
        let may: Vec<&Node> = nodes.filter(has_files).collect();
        let is_home = |node: &&&Node| table.is_none_or(|table| table.is_home(node));
        let home: Vec<&Node> = may.iter().filter(is_home).copied().collect();
        if home.is_empty() { may } else { home }
    }
}

impl Table {
    /// Whether `node` is of the warehouse whose nodes lead the shards.
    pub fn is_home(&self, node: &Node) -> bool {
        let warehouse = self.settings.warehouse.as_ref();
        warehouse.is_none_or(|warehouse| *warehouse == node.warehouse)
    }
}

/// When and why a shard got its leader, or lost it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// Why, for people.
    pub because: String,
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

/// Something that happened and that people should be able to look up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number, counted from 1.
    pub number: u64,
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// What kind, in a word or two.
    pub kind: String,
    /// What it is about, by name: a pipe, a table, a node.
    pub subject: String,
    /// The partition of a pipe's source.
    pub partition: Option<PartitionId>,
    /// What happened.
    pub text: String,
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
    /// The next writer id.
    #[serde(default)]
    pub next_writer: WriterId,
    /// The number of the next event.
    pub next_event: u64,
    /// How part files are replicated; `None` where all nodes share one part store.
    #[serde(default)]
    pub replication: Option<Replication>,
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
    WriterId: |k, out| out.extend_from_slice(&k.0.to_be_bytes());
    PartId: |k, out| out.extend_from_slice(&k.0.to_be_bytes());
    ShardId: |k, out| { k.table.encode(out); out.extend_from_slice(&k.index.to_be_bytes()) };
    (PipeId, PartitionId): |k, out| { k.0.encode(out); out.extend_from_slice(&k.1.0.to_be_bytes()) };
    (PipeId, PartitionId, Incarnation): |k, out| { (k.0, k.1).encode(out); out.extend_from_slice(&k.2.0.to_be_bytes()) };
    (PipeId, PartitionId, Offset): |k, out| { (k.0, k.1).encode(out); out.extend_from_slice(&k.2.0.to_be_bytes()) };
    u64: |k, out| out.extend_from_slice(&k.to_be_bytes());
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
    Copies: Copies by (ShardId, PartId);
    Tombstone: Tombstone by PartId;
    ClosedLedger: Ledger by (PipeId, PartitionId, Incarnation);
    Skip: Skip by (PipeId, PartitionId, Offset);
    Event: Event by u64;
    Writer: Writer by WriterId;
}

/// The questions that are asked of a catalog everywhere.
pub trait CatalogQuestions: CatalogRead {
    /// How part files are replicated; `None` where all nodes share one part store, or nothing is founded yet.
    fn replication(&self) -> Result<Option<Replication>, ViewError> {
        Ok(self
            .get::<Cluster>(&ClusterKey)?
            .and_then(|cluster| cluster.replication))
    }

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

    /// The pipe of the writers of `table`, once it had one.
    fn direct_pipe(&self, table: TableId) -> Result<Option<Pipe>, ViewError> {
        let direct = |pipe: &Pipe| matches!(pipe.source, Source::Writers { .. });
        Ok(self.pipes_into(table)?.into_iter().find(direct))
    }

    /// The writers of `table`, by id.
    fn writers_of(&self, table: TableId) -> Result<Vec<Writer>, ViewError> {
        let writers = self.list::<Writer>(&[])?.into_iter();
        Ok(writers.filter(|writer| writer.table == table).collect())
    }

    /// The shards of `table`, by index.
    fn shards_of(&self, table: TableId) -> Result<Vec<Shard>, ViewError> {
        self.list(&table.bytes())
    }

    /// The partitions of `pipe`, by number.
    fn partitions_of(&self, pipe: PipeId) -> Result<Vec<SourcePartition>, ViewError> {
        self.list(&pipe.bytes())
    }

    /// The partitions that shall have a hot standby: their pipes ask for it, and are not paused.
    fn hot_partitions(&self) -> Result<Vec<SourcePartition>, ViewError> {
        let mut found = Vec::new();
        for pipe in self.list::<Pipe>(&[])? {
            if pipe.settings.standby == Standby::Hot && pipe.state != PipeState::Paused {
                found.extend(self.partitions_of(pipe.id)?);
            }
        }
        Ok(found)
    }

    /// The lives of the partitions of `pipe` that are over, by partition and life.
    fn closed_ledgers_of(&self, pipe: PipeId) -> Result<Vec<ClosedLedger>, ViewError> {
        self.list(&pipe.bytes())
    }

    /// What was skipped of `pipe`, by partition and offset.
    fn skips_of(&self, pipe: PipeId) -> Result<Vec<Skip>, ViewError> {
        self.list(&pipe.bytes())
    }

    /// The live files of `shard` with their holders; none where the part store is shared.
    fn copies_of(&self, shard: ShardId) -> Result<Vec<Copies>, ViewError> {
        self.list(&shard.bytes())
    }

    /// The parts of `table`, by shard.
    fn parts_of(&self, table: TableId) -> Result<Vec<Part>, ViewError> {
        self.list(&table.bytes())
    }
}

impl<V: CatalogRead + ?Sized> CatalogQuestions for V {}
