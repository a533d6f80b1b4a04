//! A catalog with a table, a pipe and three nodes, whose every step is checked against all invariants.

use tidemill_core::catalog::*;
use tidemill_core::command::*;
use tidemill_core::invariants::{check_state, check_step};
use tidemill_core::schema::{Column, ColumnType};
use tidemill_core::view::{CatalogRead, MemView, Overlay};
use tidemill_core::*;

pub struct World {
    pub state: MemView,
    pub index: u64,
    /// Commits that were accepted, for replays.
    pub accepted: Vec<CommitPart>,
}

impl World {
    /// All nodes share one part store.
    pub fn new() -> Self {
        Self::with(None)
    }

    /// Three copies of each file, two before a commit; all three nodes are replicas.
    pub fn replicating() -> Self {
        Self::with(Some(Replication::of_founders(3)))
    }

    fn with(replication: Option<Replication>) -> Self {
        let mut world = Self {
            state: MemView::default(),
            index: 0,
            accepted: vec![],
        };
        let member = |i: u64| FoundingMember {
            node: NodeId(i),
            name: format!("n{i}"),
            instance: InstanceId(i as u128),
            warehouse: "default".into(),
            addresses: Addresses::default(),
        };
        let members = (1..=3).map(member).collect();
        world
            .apply(Command::FoundCluster(FoundCluster {
                cluster: ClusterId(1),
                name: "c".into(),
                members,
                replication,
            }))
            .unwrap();
        for i in 1..=3 {
            let disk = replication.map(|_| DiskId(i.into()));
            world.apply(node_with(i, 1, disk)).unwrap();
        }
        world.apply(create_table("t")).unwrap();
        world.apply(create_pipe("p", "t")).unwrap();
        for index in 0..2 {
            let shard = ShardId {
                table: TableId(1),
                index,
            };
            for node in (1..=3).filter(|_| replication.is_some()) {
                world.apply(Command::AddReplica(replica_of(index, node))).unwrap();
            }
            world
                .apply(assign(shard, Epoch(0), Some(NodeId(1 + index as u64))))
                .unwrap();
        }
        world
    }

    /// Applies and checks everything that must hold whatever the command is.
    pub fn apply(&mut self, command: Command) -> Outcome {
        self.index += 1;
        let before = self.state.clone();
        let mut overlay = Overlay::new(&before);
        let outcome = apply(
            &mut overlay,
            Version(self.index),
            &Proposal::new(self.index as i64, command.clone()),
        )
        .unwrap();
        self.state.write(overlay.into_writes());
        if outcome.is_err() {
            assert_eq!(before, self.state, "a refusal changed the state: {command:?}");
        }
        assert_eq!(check_state(&self.state).unwrap(), vec![], "after {command:?}");
        assert_eq!(check_step(&before, &self.state).unwrap(), vec![], "by {command:?}");
        assert_eq!(
            self.state.digest().unwrap(),
            self.state.recomputed_digest(),
            "after {command:?}"
        );
        if let (Command::CommitPart(commit), Ok(_)) = (command, &outcome) {
            self.accepted.push(commit);
        }
        outcome
    }

    pub fn partition(&self, p: u32) -> Option<SourcePartition> {
        self.state.get(&(PipeId(1), PartitionId(p))).unwrap()
    }

    /// What was deleted of the table.
    pub fn deleted(&self) -> Vec<DeletedRows> {
        let table: Option<Table> = self.state.get(&TableId(1)).unwrap();
        table.map(|table| table.deleted).unwrap_or_default()
    }

    pub fn shard(&self, index: u32) -> Option<Shard> {
        self.state
            .get(&ShardId {
                table: TableId(1),
                index,
            })
            .unwrap()
    }

    /// A commit that would be accepted now.
    pub fn good_commit(&self, shard: u32, id: u128, width: u64) -> Option<CommitPart> {
        let epoch = self.shard(shard)?.epoch;
        let spans: Vec<Span> = (0..4)
            .filter_map(|p| self.partition(p))
            .filter(|p| p.shard.index == shard)
            .map(|p| Span {
                key: SpanKey {
                    pipe: p.pipe,
                    partition: p.partition,
                    incarnation: p.incarnation,
                },
                start: p.offset,
                end: Offset(p.offset.0 + width),
                counts: counts(width),
                topic: None,
                source_epoch: None,
            })
            .collect();
        let sum = |f: fn(&Span) -> u64| spans.iter().map(f).sum::<u64>();
        Some(CommitPart {
            commit: CommitId(id),
            shard: ShardId {
                table: TableId(1),
                index: shard,
            },
            epoch,
            schema_version: SchemaVersion(1),
            parts: some_file(sum(|s| s.counts.rows), id * 2),
            reject_parts: some_file(sum(|s| s.counts.rejected), id * 2 + 1)
                .into_iter()
                .map(|file| (PipeId(1), file))
                .collect(),
            spans,
            holders: self.holders(shard),
        })
    }

    /// The source partitions of a writer.
    pub fn partitions_of_writer(&self, writer: &Writer) -> Vec<SourcePartition> {
        let table: Option<Table> = self.state.get(&writer.table).unwrap();
        let shards = table.map_or(1, |table| table.shards);
        let all = self.state.partitions_of(writer.pipe).unwrap();
        let own = |p: &SourcePartition| Writer::number_of(p.partition, shards) == writer.number;
        all.into_iter().filter(own).collect()
    }

    /// Commits rows of a writer, `ahead` rows behind those that are there.
    pub fn write_directly(&mut self, partition: &SourcePartition, ahead: u64, rows: u64, id: u128) -> Outcome {
        let shard: Shard = self.state.get(&partition.shard).unwrap().unwrap();
        let start = partition.offset.0 + ahead;
        self.apply(Command::CommitPart(CommitPart {
            commit: CommitId(id),
            shard: shard.id,
            epoch: shard.epoch,
            schema_version: SchemaVersion(1),
            parts: some_file(rows, id * 2),
            reject_parts: vec![],
            spans: vec![Span {
                key: partition.key(),
                start: Offset(start),
                end: Offset(start + rows),
                counts: Counts::stored(rows),
                topic: None,
                source_epoch: None,
            }],
            holders: self.holders(shard.id.index),
        }))
    }

    /// The present disks of the replicas of a shard.
    pub fn holders(&self, shard: u32) -> Vec<Holder> {
        let replicas = self.shard(shard).map(|shard| shard.replicas).unwrap_or_default();
        let holder = |replica: &Replica| {
            let node: Node = self.state.get(&replica.node).unwrap()?;
            Some(Holder {
                node: node.id,
                disk: node.disk?,
            })
        };
        replicas.iter().filter_map(holder).collect()
    }

    /// How many holders a commit needs; none where the part store is shared.
    pub fn min_replicas(&self) -> usize {
        let cluster: Option<Cluster> = self.state.get(&ClusterKey).unwrap();
        let rule = cluster.and_then(|cluster| cluster.replication);
        rule.map_or(0, |rule| rule.min_replicas as usize)
    }

    pub fn node(&self, id: u64) -> Node {
        self.state.get(&NodeId(id)).unwrap().unwrap()
    }

    /// The end of a node's life, as it is now.
    pub fn removal(&self, id: u64) -> Command {
        let known: Option<Node> = self.state.get(&NodeId(id)).unwrap();
        Command::RemoveNode(RemoveNode {
            node: NodeId(id),
            boot: known.as_ref().and_then(|node| node.boot),
            state: known.as_ref().map_or(NodeState::Down, |node| node.state),
            intent_since: known.map_or(Version(0), |node| node.intent_since),
        })
    }

    pub fn remove(&mut self, id: u64) -> Outcome {
        self.apply(self.removal(id))
    }

    pub fn copies(&self, shard: u32) -> Vec<Copies> {
        self.state
            .copies_of(ShardId {
                table: TableId(1),
                index: shard,
            })
            .unwrap()
    }
}

impl World {
    /// The next commit of the first pipe that reads what was skipped.
    pub fn backfill_commit(&self, id: u128, width: u64) -> Option<CommitPart> {
        let pipes: Vec<Pipe> = self.state.list(&[]).unwrap();
        let pipe = pipes.into_iter().find(|pipe| pipe.backfills.is_some())?;
        let p: SourcePartition = self
            .state
            .list(&view::Key::bytes(&pipe.id))
            .unwrap()
            .into_iter()
            .next()?;
        let width = width.min(p.until?.0 - p.offset.0);
        let span = Span {
            key: p.key(),
            start: p.offset,
            end: Offset(p.offset.0 + width),
            counts: Counts::stored(width),
            topic: None,
            source_epoch: None,
        };
        Some(CommitPart {
            commit: CommitId(id),
            shard: p.shard,
            epoch: self.shard(p.shard.index)?.epoch,
            schema_version: SchemaVersion(1),
            parts: some_file(width, id * 2),
            reject_parts: vec![],
            spans: vec![span],
            holders: self.holders(p.shard.index),
        })
    }

    /// A replay of up to `take` records of each partition of the first reject part.
    pub fn replay(&self, id: u128, take: u64) -> Option<ReplayRejects> {
        let part: RejectPart = self
            .state
            .list(&[])
            .unwrap()
            .into_iter()
            .find(|p: &RejectPart| p.file.rows > 0)?;
        let (mut recovered, mut rows, mut left) = (vec![], 0, part.file.rows);
        for of in &part.of {
            let records = of.records.min(take);
            let filtered = records / 2;
            let stored = records - filtered;
            recovered.push(Recovered {
                partition: of.partition,
                stored,
                rows: stored * 2,
                filtered,
            });
            rows += stored * 2;
            left -= records;
        }
        Some(ReplayRejects {
            pipe: part.pipe,
            shard: part.shard,
            epoch: self.shard(part.shard.index)?.epoch,
            schema_version: SchemaVersion(1),
            chosen_at: Version(self.index),
            parts: some_file(rows, id * 2),
            used: vec![UsedRejects {
                part: part.file.id,
                rest: (left > 0).then(|| file(left, id * 2 + 1)),
                recovered,
            }],
            holders: self.holders(part.shard.index),
        })
    }
}

pub fn replica_of(index: u32, node: u64) -> ReplicaOf {
    ReplicaOf {
        shard: ShardId {
            table: TableId(1),
            index,
        },
        node: NodeId(node),
    }
}

/// A node of [`World::new`] with a disk.
pub fn node_with(i: u64, boot: u128, disk: Option<DiskId>) -> Command {
    match node_up(i, boot) {
        Command::NodeUp(up) => Command::NodeUp(NodeUp { disk, ..up }),
        other => other,
    }
}

pub fn node_up(i: u64, boot: u128) -> Command {
    node_of(i, i as u128, boot)
}

pub fn node_of(i: u64, instance: u128, boot: u128) -> Command {
    let instance = InstanceId(instance);
    Command::NodeUp(NodeUp {
        node: NodeId(i),
        instance,
        boot: BootId(boot),
        addresses: Addresses::default(),
        disk: None,
        warehouse: None,
    })
}

pub fn add_node(name: u64, instance: u128, port: u64) -> Command {
    Command::AddNode(AddNode {
        name: format!("n{name}"),
        instance: InstanceId(instance),
        warehouse: "default".into(),
        addresses: Addresses {
            raft: format!("h:{port}"),
            ..Addresses::default()
        },
    })
}

pub fn create_table(name: &str) -> Command {
    Command::CreateTable(CreateTable {
        name: name.into(),
        id: None,
        if_not_exists: false,
        columns: vec![Column {
            name: "x".into(),
            data_type: ColumnType::Int64,
            nullable: true,
            default: None,
        }],
        order_by: vec!["x".into()],
        partition_by: None,
        shards: 2,
        settings: TableSettings::default(),
    })
}

pub fn create_pipe(name: &str, table: &str) -> Command {
    let source = KafkaSource {
        brokers: "b:1".into(),
        topic: "topic".into(),
        client: Default::default(),
    };
    Command::CreatePipe(CreatePipe {
        name: name.into(),
        id: None,
        if_not_exists: false,
        table: table.into(),
        table_id: None,
        source,
        settings: PipeSettings::default(),
        format: Default::default(),
        topic: None,
        partitions: (0..4).map(|p| (PartitionId(p), Offset(10 * p as u64))).collect(),
    })
}

pub fn assign(shard: ShardId, replaces: Epoch, leader: Option<NodeId>) -> Command {
    Command::AssignLeader(AssignLeader {
        shard,
        replaces,
        leader,
        because: String::new(),
    })
}

pub fn assign_standby(index: u32, epoch: Epoch, node: Option<u64>) -> Command {
    Command::AssignStandby(AssignStandby {
        shard: replica_of(index, 1).shard,
        epoch,
        node: node.map(NodeId),
    })
}

/// Some of everything, for a span of `width` offsets; two rows in one of the records.
pub fn counts(width: u64) -> Counts {
    let (stored, rejected, filtered) = (width / 2, width / 3, width / 12);
    let delivered = stored + rejected + filtered;
    Counts {
        delivered,
        absent: width - delivered,
        stored,
        rejected,
        filtered,
        rows: stored + u64::from(stored > 0),
    }
}

pub fn file(rows: u64, id: u128) -> PartFile {
    PartFile {
        id: PartId(id),
        path: format!("{id}"),
        rows,
        bytes: 1,
        checksum: 0,
        partition_value: None,
        ranges: vec![],
    }
}

/// A file for `rows`, if there are any.
pub fn some_file(rows: u64, id: u128) -> Vec<PartFile> {
    (rows > 0).then(|| file(rows, id)).into_iter().collect()
}

pub fn set_state(state: PipeState) -> Command {
    Command::SetPipeState(SetPipeState {
        name: "p".into(),
        pipe: None,
        from: None,
        state,
    })
}

/// Lets one partition of `pipe` go on elsewhere.
pub fn reset_one(pipe: &str, target: ResetTarget) -> Command {
    Command::ResetOffsets(ResetOffsets {
        name: pipe.into(),
        pipe: None,
        targets: vec![target],
        because: "test".into(),
    })
}

pub fn drop_pipe(name: &str) -> Command {
    Command::DropPipe(ByName {
        name: name.into(),
        if_exists: false,
        id: None,
    })
}

pub fn drop_table(name: &str) -> Command {
    Command::DropTable(ByName {
        name: name.into(),
        if_exists: false,
        id: None,
    })
}

pub fn open_writer(table: &str, token: u128) -> Command {
    Command::OpenWriter(OpenWriter {
        table: table.into(),
        acks: Acks::All,
        token: WriterToken(token),
    })
}
