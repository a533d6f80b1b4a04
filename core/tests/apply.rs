//! Random and hostile command sequences against `apply`: after every step all invariants hold, a
//! refusal changes nothing, and the digest is the one that a full count gives.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use proptest::prelude::*;
use tidemill_core::catalog::*;
use tidemill_core::command::*;
use tidemill_core::invariants::{check_state, check_step};
use tidemill_core::schema::{Column, ColumnType};
use tidemill_core::view::{CatalogRead, MemView, Overlay};
use tidemill_core::*;

struct World {
    state: MemView,
    index: u64,
    /// Commits that were accepted, for replays.
    accepted: Vec<CommitPart>,
}

impl World {
    fn new() -> Self {
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
            }))
            .unwrap();
        for i in 1..=3 {
            world.apply(node_up(i, 1)).unwrap();
        }
        world.apply(create_table("t")).unwrap();
        world.apply(create_pipe("p", "t")).unwrap();
        for index in 0..2 {
            let shard = ShardId {
                table: TableId(1),
                index,
            };
            world
                .apply(assign(shard, Epoch(0), Some(NodeId(1 + index as u64))))
                .unwrap();
        }
        world
    }

    /// Applies and checks everything that must hold whatever the command is.
    fn apply(&mut self, command: Command) -> Outcome {
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

    fn partition(&self, p: u32) -> Option<SourcePartition> {
        self.state.get(&(PipeId(1), PartitionId(p))).unwrap()
    }

    fn shard(&self, index: u32) -> Option<Shard> {
        self.state
            .get(&ShardId {
                table: TableId(1),
                index,
            })
            .unwrap()
    }

    /// A commit that would be accepted now.
    fn good_commit(&self, shard: u32, id: u128, width: u64) -> Option<CommitPart> {
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
                stored: width / 2,
                rejected: width / 3,
                source_epoch: None,
            })
            .collect();
        let sum = |f: fn(&Span) -> u64| spans.iter().map(f).sum::<u64>();
        let file = |rows, id| PartFile {
            id: PartId(id),
            path: format!("{id}"),
            rows,
            bytes: 1,
            checksum: 0,
            partition_value: None,
            ranges: vec![],
        };
        Some(CommitPart {
            commit: CommitId(id),
            shard: ShardId {
                table: TableId(1),
                index: shard,
            },
            epoch,
            schema_version: SchemaVersion(1),
            parts: vec![file(sum(|s| s.stored), id * 2)],
            reject_parts: vec![(PipeId(1), file(sum(|s| s.rejected), id * 2 + 1))],
            spans,
        })
    }
}

fn node_up(i: u64, boot: u128) -> Command {
    let instance = InstanceId(i as u128);
    Command::NodeUp(NodeUp {
        node: NodeId(i),
        instance,
        boot: BootId(boot),
        addresses: Addresses::default(),
    })
}

fn create_table(name: &str) -> Command {
    Command::CreateTable(CreateTable {
        name: name.into(),
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
        flush: FlushPolicy::default(),
    })
}

fn create_pipe(name: &str, table: &str) -> Command {
    let source = KafkaSource {
        brokers: "b:1".into(),
        topic: "topic".into(),
        client: Default::default(),
    };
    Command::CreatePipe(CreatePipe {
        name: name.into(),
        if_not_exists: false,
        table: table.into(),
        source,
        format: Default::default(),
        partitions: (0..4).map(|p| (PartitionId(p), Offset(10 * p as u64))).collect(),
    })
}

fn assign(shard: ShardId, replaces: Epoch, leader: Option<NodeId>) -> Command {
    Command::AssignLeader(AssignLeader {
        shard,
        replaces,
        leader,
    })
}

/// What the adversary does next.
#[derive(Clone, Debug)]
enum Act {
    Commit {
        shard: u32,
        width: u64,
    },
    CommitSpoiled {
        shard: u32,
        width: u64,
        how: Spoil,
    },
    Replay {
        which: usize,
    },
    ReuseId {
        shard: u32,
        which: usize,
    },
    Assign {
        shard: u32,
        behind: u64,
        leader: Option<u64>,
    },
    NodeUp {
        node: u64,
        boot: u128,
    },
    NodeState {
        node: u64,
        boot: u128,
        state: NodeState,
    },
    Pause(bool),
    AddPartition(u32),
    DropPipe,
    DropTable,
    Create,
}

#[derive(Clone, Copy, Debug)]
enum Spoil {
    OldEpoch,
    NewEpoch,
    Later,
    Earlier,
    Backwards,
    OtherLife,
    ForeignPartition,
    UnknownPipe,
    Twice,
    TooManyRows,
    MorePartRows,
}

fn act() -> impl Strategy<Value = Act> {
    let spoil = prop_oneof![
        Just(Spoil::OldEpoch),
        Just(Spoil::NewEpoch),
        Just(Spoil::Later),
        Just(Spoil::Earlier),
        Just(Spoil::Backwards),
        Just(Spoil::OtherLife),
        Just(Spoil::ForeignPartition),
        Just(Spoil::UnknownPipe),
        Just(Spoil::Twice),
        Just(Spoil::TooManyRows),
        Just(Spoil::MorePartRows),
    ];
    let state = prop_oneof![Just(NodeState::Ready), Just(NodeState::Draining), Just(NodeState::Down)];
    prop_oneof![
        8 => (0u32..2, 0u64..50).prop_map(|(shard, width)| Act::Commit { shard, width }),
        8 => (0u32..2, 1u64..50, spoil).prop_map(|(shard, width, how)| Act::CommitSpoiled { shard, width, how }),
        3 => (0usize..100).prop_map(|which| Act::Replay { which }),
        2 => (0u32..2, 0usize..100).prop_map(|(shard, which)| Act::ReuseId { shard, which }),
        4 => (0u32..3, 0u64..2, proptest::option::of(1u64..5))
            .prop_map(|(shard, behind, leader)| Act::Assign { shard, behind, leader }),
        2 => (1u64..5, 1u128..3).prop_map(|(node, boot)| Act::NodeUp { node, boot }),
        2 => (1u64..5, 1u128..3, state).prop_map(|(node, boot, state)| Act::NodeState { node, boot, state }),
        2 => any::<bool>().prop_map(Act::Pause),
        1 => (0u32..8).prop_map(Act::AddPartition),
        1 => Just(Act::DropPipe),
        1 => Just(Act::DropTable),
        1 => Just(Act::Create),
    ]
}

/// Makes a good commit bad in one way; `None` when there is nothing to spoil.
fn spoil(mut c: CommitPart, how: Spoil) -> Option<CommitPart> {
    let span = c.spans.first_mut()?;
    match how {
        Spoil::OldEpoch => c.epoch = Epoch(c.epoch.0.checked_sub(1)?),
        Spoil::NewEpoch => c.epoch = c.epoch.next(),
        Spoil::Later => {
            span.start = span.start.next();
            span.end = span.end.next();
        }
        Spoil::Earlier => span.start = Offset(span.start.0.checked_sub(1)?),
        Spoil::Backwards => {
            span.start = Offset(span.end.0 + 1);
        }
        Spoil::OtherLife => span.key.incarnation = span.key.incarnation.next(),
        Spoil::ForeignPartition => span.key.partition = PartitionId(span.key.partition.0 ^ 1),
        Spoil::UnknownPipe => span.key.pipe = PipeId(99),
        Spoil::Twice => {
            let again = *span;
            c.spans.push(again);
        }
        Spoil::TooManyRows => span.stored = span.width() + 1,
        Spoil::MorePartRows => c.parts.first_mut()?.rows += 1,
    }
    Some(c)
}

fn step(world: &mut World, i: usize, act: Act) {
    let id = 1000 + i as u128;
    match act {
        Act::Commit { shard, width } => {
            let Some(commit) = world.good_commit(shard, id, width) else {
                return;
            };
            let led = world.shard(shard).is_some_and(|s| s.leader.is_some());
            let outcome = world.apply(Command::CommitPart(commit));
            assert_eq!(outcome.is_ok(), led, "{outcome:?}");
        }
        Act::CommitSpoiled { shard, width, how } => {
            let commit = world.good_commit(shard, id, width).and_then(|c| spoil(c, how));
            if let Some(commit) = commit {
                assert!(
                    world.apply(Command::CommitPart(commit)).is_err(),
                    "{how:?} was accepted"
                );
            }
        }
        Act::Replay { which } => {
            let Some(commit) = world.accepted.get(which % world.accepted.len().max(1)).cloned() else {
                return;
            };
            let moves = commit.spans.iter().any(|s| s.width() > 0);
            let last = world
                .state
                .get::<Shard>(&commit.shard)
                .unwrap()
                .and_then(|s| s.last_commit);
            let outcome = world.apply(Command::CommitPart(commit.clone()));
            if last.is_some_and(|last| last.id == commit.commit) {
                assert!(matches!(outcome, Err(Refusal::AlreadyCommitted(_))), "{outcome:?}");
            } else if moves {
                assert!(outcome.is_err(), "a replay was accepted twice");
            }
        }
        Act::ReuseId { shard, which } => {
            let Some(used) = world.accepted.get(which % world.accepted.len().max(1)).cloned() else {
                return;
            };
            let last = world.shard(shard).and_then(|s| s.last_commit).map(|l| l.id);
            let Some(mut commit) = world.good_commit(shard, id, 5) else {
                return;
            };
            commit.commit = used.commit;
            if last == Some(used.commit) {
                let outcome = world.apply(Command::CommitPart(commit));
                assert!(matches!(outcome, Err(Refusal::IdReused(_))), "{outcome:?}");
            }
        }
        Act::Assign { shard, behind, leader } => {
            let current = world.shard(shard).map_or(Epoch(0), |s| s.epoch);
            let replaces = Epoch(current.0.saturating_sub(behind));
            let outcome = world.apply(assign(
                ShardId {
                    table: TableId(1),
                    index: shard,
                },
                replaces,
                leader.map(NodeId),
            ));
            if replaces != current {
                assert!(outcome.is_err(), "an assignment by an old epoch was accepted");
            }
        }
        Act::NodeUp { node, boot } => _ = world.apply(node_up(node, boot)),
        Act::NodeState { node, boot, state } => {
            let command = SetNodeState {
                node: NodeId(node),
                boot: Some(BootId(boot)),
                state,
            };
            _ = world.apply(Command::SetNodeState(command));
        }
        Act::Pause(paused) => {
            _ = world.apply(Command::SetPipePaused(SetPipePaused {
                name: "p".into(),
                paused,
            }))
        }
        Act::AddPartition(p) => {
            let partitions = vec![(PartitionId(p), Offset(0))];
            _ = world.apply(Command::AddPartitions(AddPartitions {
                pipe: PipeId(1),
                partitions,
            }));
        }
        Act::DropPipe => {
            _ = world.apply(Command::DropPipe(ByName {
                name: "p".into(),
                if_exists: false,
            }))
        }
        Act::DropTable => {
            _ = world.apply(Command::DropTable(ByName {
                name: "t".into(),
                if_exists: false,
            }))
        }
        Act::Create => {
            _ = world.apply(create_table("t"));
            _ = world.apply(create_pipe("p", "t"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn invariants_hold_under_hostile_commands(acts in proptest::collection::vec(act(), 1..60)) {
        let mut world = World::new();
        for (i, act) in acts.into_iter().enumerate() {
            step(&mut world, i, act);
        }
    }

    #[test]
    fn the_same_log_gives_the_same_state(acts in proptest::collection::vec(act(), 1..40)) {
        let run = || {
            let mut world = World::new();
            for (i, act) in acts.iter().cloned().enumerate() {
                step(&mut world, i, act);
            }
            world.state
        };
        prop_assert_eq!(run(), run());
    }
}

#[test]
fn a_refusal_names_the_spans_and_the_rest_can_be_committed() {
    let mut world = World::new();
    let mut commit = world.good_commit(0, 7, 10).unwrap();
    assert_eq!(commit.spans.len(), 2);
    commit.spans[1].start = Offset(commit.spans[1].start.0 + 3);
    let Err(Refusal::Spans(refused)) = world.apply(Command::CommitPart(commit.clone())) else {
        panic!()
    };
    assert_eq!(refused, [(commit.spans[1].key, SpanRefusal::NotNext(Offset(20)))]);
    let mut rest = world.good_commit(0, 8, 10).unwrap();
    rest.spans.truncate(1);
    rest.parts[0].rows = rest.spans[0].stored;
    rest.reject_parts[0].1.rows = rest.spans[0].rejected;
    world.apply(Command::CommitPart(rest)).unwrap();
    assert_eq!(world.partition(0).unwrap().offset, Offset(10));
    assert_eq!(world.partition(2).unwrap().offset, Offset(20));
}

#[test]
fn a_pause_between_reading_and_committing_wins() {
    let mut world = World::new();
    let commit = world.good_commit(0, 7, 10).unwrap();
    let pause = |paused| {
        Command::SetPipePaused(SetPipePaused {
            name: "p".into(),
            paused,
        })
    };
    world.apply(pause(true)).unwrap();
    world.apply(pause(false)).unwrap();
    let Err(Refusal::Spans(refused)) = world.apply(Command::CommitPart(commit)) else {
        panic!()
    };
    assert_eq!(refused[0].1, SpanRefusal::StaleIncarnation(Incarnation(3)));
}

#[test]
fn a_restarted_process_does_not_inherit_its_terms_of_office() {
    let mut world = World::new();
    let commit = world.good_commit(0, 7, 10).unwrap();
    world.apply(node_up(1, 2)).unwrap();
    assert_eq!(world.shard(0).unwrap().leader, None);
    let outcome = world.apply(Command::CommitPart(commit));
    assert!(matches!(outcome, Err(Refusal::StaleEpoch { .. })), "{outcome:?}");
}

#[test]
fn a_copied_or_wiped_folder_cannot_take_a_nodes_place() {
    let mut world = World::new();
    let up = NodeUp {
        node: NodeId(1),
        instance: InstanceId(77),
        boot: BootId(9),
        addresses: Addresses::default(),
    };
    assert!(matches!(world.apply(Command::NodeUp(up)), Err(Refusal::Node(_))));
}

#[test]
fn a_command_of_a_later_format_is_refused() {
    let mut overlay_base = MemView::default();
    let mut overlay = Overlay::new(&overlay_base);
    let proposal = Proposal {
        format: COMMAND_FORMAT + 1,
        at_ms: 0,
        command: create_table("t"),
    };
    let outcome = apply(&mut overlay, Version(1), &proposal).unwrap();
    assert_eq!(outcome, Err(Refusal::UnknownFormat(COMMAND_FORMAT + 1)));
    overlay_base.write(overlay.into_writes());
    assert_eq!(overlay_base, MemView::default());
}

#[test]
fn dropping_a_table_buries_its_files_and_needs_its_pipes_gone() {
    let mut world = World::new();
    let commit = world.good_commit(0, 7, 10).unwrap();
    world.apply(Command::CommitPart(commit)).unwrap();
    let drop_table = || {
        Command::DropTable(ByName {
            name: "t".into(),
            if_exists: false,
        })
    };
    assert!(matches!(world.apply(drop_table()), Err(Refusal::TableInUse { .. })));
    world
        .apply(Command::DropPipe(ByName {
            name: "p".into(),
            if_exists: false,
        }))
        .unwrap();
    world.apply(drop_table()).unwrap();
    assert_eq!(world.state.list::<Tombstone>(&[]).unwrap().len(), 2);
    assert_eq!(world.state.list::<Part>(&[]).unwrap().len(), 0);
    // Its id is not given out again.
    assert_eq!(world.apply(create_table("t")), Ok(Response::Table(TableId(2))));
}
