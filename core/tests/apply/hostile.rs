//! Random and hostile command sequences against `apply`: after every step all invariants hold, a
//! refusal changes nothing, and the digest is the one that a full count gives.

mod acts;

use crate::world::*;
use acts::{Act, Spoil, act};
use proptest::prelude::*;
use tidemill_core::catalog::*;
use tidemill_core::command::*;
use tidemill_core::view::CatalogRead;
use tidemill_core::*;

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
        Spoil::TooManyRows => span.counts.stored += 1,
        Spoil::HiddenGap => span.counts.delivered = span.counts.delivered.checked_sub(1)?,
        Spoil::UncountedReject => span.counts.rejected += 1,
        Spoil::MorePartRows => c.parts.first_mut()?.rows += 1,
        Spoil::EmptyPart => c.parts.push(file(0, 7)),
        Spoil::EmptyRejectPart => c.reject_parts.push((PipeId(2), file(0, 7))),
        Spoil::TwoRejectParts => {
            let (pipe, first) = c.reject_parts.first()?;
            c.reject_parts.push((*pipe, file(first.rows, 7)));
        }
        Spoil::OneHolder => _ = c.holders.drain(1.min(c.holders.len())..),
        Spoil::OtherDisk => c.holders.iter_mut().skip(1).for_each(|holder| holder.disk = DiskId(99)),
        Spoil::NoReplica => c.holders.iter_mut().skip(1).for_each(|holder| holder.node = NodeId(9)),
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
            let files = commit.parts.len() + commit.reject_parts.len();
            let enough = files == 0 || commit.holders.len() >= world.min_replicas();
            let outcome = world.apply(Command::CommitPart(commit));
            assert_eq!(outcome.is_ok(), led && enough, "{outcome:?}");
        }
        Act::CommitSpoiled { shard, width, how } => {
            let commit = world.good_commit(shard, id, width).and_then(|c| spoil(c, how));
            let about_holders = matches!(how, Spoil::OneHolder | Spoil::OtherDisk | Spoil::NoReplica);
            let matters =
                |c: &CommitPart| world.min_replicas() > 1 && !(c.parts.is_empty() && c.reject_parts.is_empty());
            if let Some(commit) = commit.filter(|c| !about_holders || matters(c)) {
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
            // Without partitions both are empty, and the same said again.
            if last == Some(used.commit) && commit != used {
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
        Act::Standby { shard, behind, node } => {
            let known = world.shard(shard);
            let epoch = known.as_ref().map_or(Epoch(0), |s| s.epoch);
            let outcome = world.apply(assign_standby(shard, Epoch(epoch.0.saturating_sub(behind)), node));
            let leads = known.is_some_and(|s| node.is_some() && s.leader == node.map(NodeId));
            assert!(
                (!leads && behind == 0) || outcome.is_err() || epoch.0 == 0,
                "{outcome:?}"
            );
        }
        Act::NodeUp { node, boot, disk } => {
            let disk = (world.min_replicas() > 0).then_some(DiskId(disk));
            _ = world.apply(node_with(node, boot, disk));
        }
        Act::Replica { shard, node, what } => {
            let of = replica_of(shard, node);
            let before = world.shard(shard);
            let outcome = match what {
                0 => world.apply(Command::AddReplica(of)),
                1 => world.apply(Command::CompleteReplica(of)),
                _ => world.apply(Command::DropReplica(of)),
            };
            let led = before.is_some_and(|shard| shard.leader == Some(NodeId(node)));
            assert!(!led || what < 2 || outcome.is_err(), "a leader was made no replica");
        }
        Act::Holdings {
            node,
            disk,
            holds,
            lost,
        } => {
            let files =
                || (0..2).flat_map(|shard| world.copies(shard).into_iter().map(move |copies| (shard, copies.part)));
            let of = |(shard, part)| (replica_of(shard, 1).shard, part);
            let disk = Holder {
                node: NodeId(node),
                disk: DiskId(disk),
            };
            let command = SetHoldings {
                disk,
                seen: Version(world.index),
                holds: files().map(of).take(holds).collect(),
                lost: files()
                    .map(of)
                    .skip(holds)
                    .take(lost)
                    .map(|(s, p)| (s, p, "damaged".into()))
                    .collect(),
            };
            let known: Option<Node> = world.state.get(&NodeId(node)).unwrap();
            let present = known.is_some_and(|node| node.disk == Some(disk.disk));
            let outcome = world.apply(Command::SetHoldings(command));
            assert_eq!(outcome.is_ok(), present && world.min_replicas() > 0, "{outcome:?}");
        }
        Act::Replication { replicas, min_replicas } => {
            let rule = Replication { replicas, min_replicas };
            let outcome = world.apply(Command::SetReplication(SetReplication {
                wanted: rule,
                from: None,
            }));
            assert!(outcome.is_err() || rule.check().is_ok());
        }
        Act::OpenWriter(token) => {
            let table = world.state.table_named("t").unwrap();
            let outcome = world.apply(open_writer("t", token));
            assert_eq!(outcome.is_ok(), table.is_some(), "{outcome:?}");
        }
        Act::WriteDirectly { width, ahead } => {
            let writers: Vec<Writer> = world.state.list(&[]).unwrap();
            let Some(writer) = writers.first() else { return };
            let Some(partition) = world.partitions_of_writer(writer).into_iter().next() else {
                return;
            };
            let outcome = world.write_directly(&partition, ahead, width, id);
            assert!(outcome.is_err() || ahead == 0, "rows were passed over: {outcome:?}");
        }
        Act::PassGap { which, behind, width } => {
            let Some(writer) = world.state.get::<Writer>(&WriterId(which)).unwrap() else {
                return;
            };
            let from = world.partitions_of_writer(&writer)[0].offset.0 + behind;
            let outcome = world.apply(Command::PassGap(PassGap {
                writer: writer.id,
                shard: 0,
                epoch: None,
                from: Offset(from),
                to: Offset(from + width),
            }));
            assert_eq!(outcome.is_ok(), behind == 0 && width > 0, "{outcome:?}");
        }
        Act::CloseWriter { which, acknowledged } => {
            let close = CloseWriter {
                writer: WriterId(which),
                acknowledged: vec![(0, Offset(acknowledged)), (9, Offset(1))],
                if_idle_since_ms: None,
            };
            world.apply(Command::CloseWriter(close)).unwrap();
            assert_eq!(world.state.get::<Writer>(&WriterId(which)).unwrap(), None);
        }
        Act::NodeState { node, boot, state } => {
            let command = SetNodeState {
                node: NodeId(node),
                boot: Some(BootId(boot)),
                state,
            };
            _ = world.apply(Command::SetNodeState(command));
        }
        Act::SetState(state) => _ = world.apply(set_state(state)),
        Act::Stop {
            partition,
            behind,
            reason,
        } => {
            let Some(mut key) = world.partition(partition).map(|p| p.key()) else {
                return;
            };
            key.incarnation = Incarnation(key.incarnation.0.saturating_sub(behind));
            let outcome = world.apply(Command::StopPartition(StopPartition {
                key,
                epoch: None,
                reason,
            }));
            assert_eq!(outcome.is_ok(), behind == 0, "{outcome:?}");
        }
        Act::Reset {
            partition,
            behind,
            to,
            topic,
            old_rows,
        } => {
            let Some(known) = world.partition(partition) else {
                return;
            };
            let target = ResetTarget {
                partition: PartitionId(partition),
                incarnation: Incarnation(known.incarnation.0.saturating_sub(behind)),
                to: to.map(Offset),
                topic: topic.map(TopicId),
                old_rows,
                source_epoch: None,
            };
            let outcome = world.apply(reset_one("p", target));
            assert!(behind == 0 || outcome.is_err(), "a reset for another life was accepted");
        }
        Act::Backfill => {
            let command = Backfill {
                name: "p".into(),
                pipe: None,
                partitions: vec![],
            };
            _ = world.apply(Command::Backfill(command));
        }
        Act::CommitBackfill { width } => {
            let Some(commit) = world.backfill_commit(id, width) else {
                return;
            };
            _ = world.apply(Command::CommitPart(commit));
        }
        Act::ReplayRejects { spoil, take } => {
            let Some(replay) = world.replay(id, take) else { return };
            let spoiled = match spoil {
                // Chosen before rows were deleted.
                6 if !world.deleted().is_empty() => Some(ReplayRejects {
                    chosen_at: Version(0),
                    ..replay.clone()
                }),
                how => spoil_replay(replay.clone(), how),
            };
            let good = spoiled.as_ref().is_none_or(|spoiled| *spoiled == replay);
            let outcome = world.apply(Command::ReplayRejects(spoiled.unwrap_or(replay.clone())));
            let rests = replay.used.iter().filter(|used| used.rest.is_some()).count();
            let files = replay.parts.len() + rests;
            let enough = files == 0 || replay.holders.len() >= world.min_replicas();
            assert_eq!(outcome.is_ok(), good && enough, "{outcome:?}");
            if outcome.is_ok() {
                let again = world.apply(Command::ReplayRejects(replay));
                assert!(
                    matches!(again, Err(Refusal::RejectsGone(_))),
                    "replayed twice: {again:?}"
                );
            }
        }
        Act::AddPartition(p) => {
            let partitions = vec![(PartitionId(p), Offset(0))];
            _ = world.apply(Command::AddPartitions(AddPartitions {
                pipe: PipeId(1),
                partitions,
            }));
        }
        Act::DropPipe => _ = world.apply(drop_pipe("p")),
        Act::DropTable => _ = world.apply(drop_table("t")),
        Act::AddNode { name, instance, port } => {
            let before: Vec<Node> = world.state.list(&[]).unwrap();
            let known = before.iter().find(|node| node.instance == InstanceId(instance));
            let taken = |node: &&Node| node.state != NodeState::Removed && node.name == format!("n{name}");
            match world.apply(add_node(name, instance, port)) {
                Ok(Response::Node(id)) => match known {
                    Some(known) => assert!(known.id == id && known.state != NodeState::Removed),
                    None => assert!(before.iter().all(|node| node.id < id) && before.iter().find(taken).is_none()),
                },
                Err(Refusal::Node(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        Act::Intent { node, intent } => {
            let node = NodeId(node);
            _ = world.apply(Command::SetNodeIntent(SetNodeIntent { node, intent }));
        }
        Act::RemoveNode(node) => {
            let before: Option<Node> = world.state.get(&NodeId(node)).unwrap();
            let outcome = world.remove(node);
            let left = before.is_some_and(|node| node.intent == NodeIntent::Leave);
            assert!(outcome.is_err() || left, "a node was removed that did not leave");
        }
        Act::Create => {
            _ = world.apply(create_table("t"));
            _ = world.apply(create_pipe("p", "t"));
        }
    }
}

/// Makes a replay of rejects wrong in one way, if it can be.
fn spoil_replay(mut c: ReplayRejects, how: u8) -> Option<ReplayRejects> {
    match how {
        0 => c.epoch = c.epoch.next(),
        1 => c.used[0].part = PartId(5),
        2 => c.used[0].recovered.first_mut()?.stored += 1,
        3 => c.used[0].recovered.first_mut()?.rows += 1,
        4 => {
            let again = *c.used[0].recovered.first()?;
            c.used[0].recovered.push(again);
        }
        5 => c.used[0].rest.as_mut()?.rows += 1,
        _ => {}
    }
    Some(c)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn invariants_hold_under_hostile_commands(
        replicating: bool,
        acts in proptest::collection::vec(act(), 1..60),
    ) {
        let mut world = if replicating { World::replicating() } else { World::new() };
        for (i, act) in acts.into_iter().enumerate() {
            step(&mut world, i, act);
        }
    }

    #[test]
    fn the_same_log_gives_the_same_state(acts in proptest::collection::vec(act(), 1..40)) {
        let run = || {
            let mut world = World::replicating();
            for (i, act) in acts.iter().cloned().enumerate() {
                step(&mut world, i, act);
            }
            world.state
        };
        prop_assert_eq!(run(), run());
    }
}
