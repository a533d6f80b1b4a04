//! Rules that have names: each told as the case that it is there for.

use crate::world::*;
use tidemill_core::catalog::*;
use tidemill_core::command::*;
use tidemill_core::view::{CatalogRead, MemView, Overlay};
use tidemill_core::*;

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
    rest.parts[0].rows = rest.spans[0].counts.rows;
    rest.reject_parts[0].1.rows = rest.spans[0].counts.rejected;
    world.apply(Command::CommitPart(rest)).unwrap();
    assert_eq!(world.partition(0).unwrap().offset, Offset(10));
    assert_eq!(world.partition(2).unwrap().offset, Offset(20));
}

#[test]
fn a_file_without_rows_cannot_come_back_from_the_dead() {
    let mut world = World::new();
    // No offset moves, so that only the id of the commit would tell that it was applied before.
    let mut empty = world.good_commit(0, 1, 0).unwrap();
    empty.spans.clear();
    empty.reject_parts.push((PipeId(1), file(0, 3)));
    let other = world.good_commit(0, 2, 10).unwrap();
    assert!(matches!(
        world.apply(Command::CommitPart(empty.clone())),
        Err(Refusal::Definition(_))
    ));
    world.apply(Command::CommitPart(other)).unwrap();
    world.apply(drop_pipe("p")).unwrap();
    assert!(world.apply(Command::CommitPart(empty)).is_err());
}

#[test]
fn a_pause_between_reading_and_committing_wins() {
    let mut world = World::new();
    let commit = world.good_commit(0, 7, 10).unwrap();
    world.apply(set_state(PipeState::Paused)).unwrap();
    world.apply(set_state(PipeState::Running)).unwrap();
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
        disk: None,
        warehouse: None,
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
    assert!(matches!(world.apply(drop_table("t")), Err(Refusal::TableInUse { .. })));
    world.apply(drop_pipe("p")).unwrap();
    world.apply(drop_table("t")).unwrap();
    assert_eq!(world.state.list::<Tombstone>(&[]).unwrap().len(), 2);
    assert_eq!(world.state.list::<Part>(&[]).unwrap().len(), 0);
    // Its id is not given out again.
    assert_eq!(world.apply(create_table("t")), Ok(Response::Table(TableId(2))));
}

pub fn refused(outcome: Outcome, text: &str) {
    let refusal = outcome.unwrap_err().to_string();
    assert!(refusal.contains(text), "{refusal}");
}

fn intent(node: u64, intent: NodeIntent) -> Command {
    let node = NodeId(node);
    Command::SetNodeIntent(SetNodeIntent { node, intent })
}

pub fn reset(world: &World, partition: u32, to: u64, old_rows: Option<OldRows>) -> Command {
    reset_one(
        "p",
        target(world.partition(partition).unwrap().key(), to, None, old_rows),
    )
}

fn target(life: SpanKey, to: u64, topic: Option<TopicId>, old_rows: Option<OldRows>) -> ResetTarget {
    ResetTarget {
        partition: life.partition,
        incarnation: life.incarnation,
        to: Some(Offset(to)),
        topic,
        old_rows,
        source_epoch: None,
    }
}

#[test]
fn going_back_says_what_becomes_of_the_rows_that_are_there() {
    let mut world = World::new();
    let commit = world.good_commit(0, 7, 40).unwrap();
    world.apply(Command::CommitPart(commit)).unwrap();
    refused(
        world.apply(reset(&world, 0, 30, None)),
        "say DELETE ROWS if the new rows shall replace",
    );
    world.apply(reset(&world, 0, 30, Some(OldRows::Delete))).unwrap();
    let deleted = |world: &World| -> Vec<(u32, u64, u64)> {
        let all = world.deleted().into_iter();
        let each = |d: DeletedRows| d.from.into_iter().map(move |(p, from)| (p.0, from.0, d.version.0));
        all.flat_map(each).collect()
    };
    assert_eq!(deleted(&world), [(0, 30, world.index)]);
    world.apply(reset(&world, 2, 25, Some(OldRows::Keep))).unwrap();
    // What goes further back takes the place of the other; what does not, stands beside it.
    world.apply(reset(&world, 0, 20, Some(OldRows::Delete))).unwrap();
    let first = world.index;
    world.apply(reset(&world, 0, 50, Some(OldRows::Delete))).unwrap();
    assert_eq!(deleted(&world), [(0, 20, first), (0, 50, world.index)]);
}

#[test]
fn a_replay_does_not_bring_back_what_was_deleted_meanwhile() {
    let mut world = World::new();
    let commit = world.good_commit(0, 7, 40).unwrap();
    world.apply(Command::CommitPart(commit)).unwrap();
    let replay = world.replay(8, 5).unwrap();
    world.apply(reset(&world, 0, 0, Some(OldRows::Delete))).unwrap();
    let late = world.apply(Command::ReplayRejects(replay));
    assert_eq!(late, Err(Refusal::RowsDeleted("t".into())));
}

#[test]
fn what_a_replay_leaves_over_stays_deleted() {
    let mut world = World::new();
    let commit = world.good_commit(0, 7, 40).unwrap();
    world.apply(Command::CommitPart(commit)).unwrap();
    world.apply(reset(&world, 0, 0, Some(OldRows::Delete))).unwrap();
    // Of partition 2 alone: the records of partition 0 go over into the next reject part as they are.
    let mut replay = world.replay(8, 5).unwrap();
    let left_out = replay.used[0].recovered.remove(0);
    replay.parts[0].rows -= left_out.rows;
    replay.used[0].rest.as_mut().unwrap().rows += left_out.stored + left_out.filtered;
    world.apply(Command::ReplayRejects(replay)).unwrap();
    let parts: Vec<RejectPart> = world.state.list(&[]).unwrap();
    let [part] = &parts[..] else { panic!("{parts:?}") };
    assert!(part.of.iter().any(|of| of.partition.0 == 0 && of.records > 0));
    assert!(part.version < world.deleted()[0].version, "deleted records are back");
}

#[test]
fn rows_are_deleted_only_where_their_pipe_alone_can_have_brought_them() {
    let mut world = World::new();
    let commit = world.good_commit(0, 7, 40).unwrap();
    world.apply(Command::CommitPart(commit)).unwrap();
    world.apply(create_pipe("q", "t")).unwrap();
    refused(
        world.apply(reset(&world, 0, 0, Some(OldRows::Delete))),
        "pipe 'q' fills the same table",
    );
    // Dropped, it leaves its rows behind: those of another topic of that name nobody would read again.
    let pipe_q = world.state.get::<Pipe>(&PipeId(2)).unwrap().unwrap();
    let other_source = KafkaSource {
        brokers: "elsewhere:1".into(),
        ..pipe_q.source.kafka().unwrap().clone()
    };
    world
        .apply(Command::AlterPipe(AlterPipe {
            name: "q".into(),
            pipe: Some(pipe_q.id),
            settings: pipe_q.settings,
            format: pipe_q.format,
            source: other_source,
            from: None,
        }))
        .unwrap();
    world.apply(drop_pipe("q")).unwrap();
    refused(
        world.apply(reset(&world, 0, 0, Some(OldRows::Delete))),
        "which pipe 'q' read until it was dropped",
    );
}

#[test]
fn what_was_skipped_is_read_once_by_whoever_it_is() {
    let mut world = World::new();
    let commit = world.good_commit(0, 7, 40).unwrap();
    world.apply(Command::CommitPart(commit)).unwrap();
    // A pipe of the same source that was dropped is no obstacle: its rows are read again too.
    world.apply(create_pipe("q", "t")).unwrap();
    world.apply(drop_pipe("q")).unwrap();
    // Offsets 40 to 90 are skipped, and then a pipe of their own reads them.
    world.apply(reset(&world, 0, 90, None)).unwrap();
    let backfill = Backfill {
        name: "p".into(),
        pipe: None,
        partitions: vec![],
    };
    world.apply(Command::Backfill(backfill)).unwrap();
    refused(
        world.apply(reset(&world, 0, 0, Some(OldRows::Delete))),
        "wait until it has caught up",
    );
    world.apply(reset(&world, 2, 0, Some(OldRows::Delete))).unwrap();
    // A pipe with an end does not come past it, and what is behind that would be gone.
    let of_backfill = world.backfill_commit(99, 5).unwrap().spans[0].key;
    let target = target(of_backfill, 40, None, Some(OldRows::Delete));
    let name = world.state.get::<Pipe>(&of_backfill.pipe).unwrap().unwrap().name;
    refused(world.apply(reset_one(&name, target)), "up to offset 90 only");
    while let Some(commit) = world.backfill_commit(100 + u128::from(world.index), 50) {
        if commit.spans[0].width() == 0 {
            break;
        }
        world.apply(Command::CommitPart(commit)).unwrap();
    }
    world.apply(reset(&world, 0, 60, Some(OldRows::Delete))).unwrap();
    let skips = world.state.skips_of(PipeId(1)).unwrap();
    assert_eq!(
        skips.iter().map(|s| (s.start.0, s.end.0)).collect::<Vec<_>>(),
        [(40, 60)]
    );
    world.apply(reset(&world, 0, 10, Some(OldRows::Delete))).unwrap();
    assert_eq!(world.state.skips_of(PipeId(1)).unwrap(), []);
}

#[test]
fn offsets_of_a_topic_that_is_no_more_are_not_backfilled() {
    let mut world = World::new();
    let go = |world: &mut World, to: u64, topic: u128, old_rows| {
        let life = world.partition(0).unwrap().key();
        let target = target(life, to, Some(TopicId(topic)), old_rows);
        world.apply(reset_one("p", target)).unwrap()
    };
    go(&mut world, 0, 1, None);
    go(&mut world, 90, 1, None);
    go(&mut world, 0, 2, Some(OldRows::Delete));
    let backfill = Backfill {
        name: "p".into(),
        pipe: None,
        partitions: vec![],
    };
    // It was skipped, and that stays known; but these offsets are other records now, which the pipe reads itself.
    assert_eq!(world.state.skips_of(PipeId(1)).unwrap().len(), 1);
    assert_eq!(world.apply(Command::Backfill(backfill)), Ok(Response::Unchanged));
}

#[test]
fn a_node_is_admitted_once_however_often_it_asks() {
    let mut world = World::new();
    assert_eq!(world.apply(add_node(4, 44, 1)), Ok(Response::Node(NodeId(4))));
    assert_eq!(world.apply(add_node(4, 44, 1)), Ok(Response::Node(NodeId(4))));
    // Until it has been heard of, it may still change where it is.
    assert_eq!(world.apply(add_node(4, 44, 2)), Ok(Response::Node(NodeId(4))));
    assert_eq!(world.node(4).addresses.raft, "h:2");
    assert_eq!(world.node(4).state, NodeState::Joining);
    refused(world.apply(add_node(5, 44, 2)), "belongs to node 'n4', not 'n5'");
    refused(world.apply(add_node(4, 45, 3)), "already a node called 'n4'");
    refused(
        world.apply(add_node(5, 55, 2)),
        "h:2 is already an address of node 'n4'",
    );
    let unnamed = AddNode {
        name: "a b".into(),
        instance: InstanceId(66),
        warehouse: "default".into(),
        addresses: Addresses::default(),
    };
    refused(world.apply(Command::AddNode(unnamed)), "'a b' cannot be the name");
    assert_eq!(world.apply(add_node(5, 55, 3)), Ok(Response::Node(NodeId(5))));
}

#[test]
fn a_removed_node_never_comes_back_and_its_id_is_not_used_again() {
    let mut world = World::new();
    world.apply(add_node(4, 44, 1)).unwrap();
    world.apply(node_of(4, 44, 1)).unwrap();
    let shard = world.shard(0).unwrap();
    world.apply(assign(shard.id, shard.epoch, Some(NodeId(4)))).unwrap();
    refused(world.remove(4), "shall serve, not leave");
    world.apply(intent(4, NodeIntent::Leave)).unwrap();
    assert_eq!(world.node(4).state, NodeState::Draining);
    assert_eq!(world.apply(intent(4, NodeIntent::Leave)), Ok(Response::Unchanged));
    // Whatever it had not given up by then, it has lost now.
    let commit = world.good_commit(0, 9, 10).unwrap();
    world.remove(4).unwrap();
    assert_eq!(world.shard(0).unwrap().leader, None);
    assert!(matches!(
        world.apply(Command::CommitPart(commit)),
        Err(Refusal::StaleEpoch { .. })
    ));
    for again in [world.removal(4), intent(4, NodeIntent::Leave)] {
        assert_eq!(world.apply(again), Ok(Response::Unchanged));
    }
    let shard = world.shard(0).unwrap();
    refused(
        world.apply(assign(shard.id, shard.epoch, Some(NodeId(4)))),
        "it cannot lead",
    );
    refused(world.apply(node_of(4, 44, 2)), "was removed from the cluster");
    refused(
        world.apply(intent(4, NodeIntent::Serve)),
        "was removed from the cluster",
    );
    refused(world.apply(add_node(4, 44, 1)), "can never come back");
    // Its name and its addresses are free for another folder, which is another node.
    assert_eq!(world.apply(add_node(4, 45, 1)), Ok(Response::Node(NodeId(5))));
    assert_eq!(world.apply(intent(4, NodeIntent::Leave)), Ok(Response::Unchanged));
    assert_eq!(world.node(5).intent, NodeIntent::Serve);
}

#[test]
fn a_node_that_has_come_back_since_it_was_given_up_is_not_removed() {
    let mut world = World::new();
    world.apply(intent(3, NodeIntent::Leave)).unwrap();
    let down = |boot| {
        Command::SetNodeState(SetNodeState {
            node: NodeId(3),
            boot: Some(BootId(boot)),
            state: NodeState::Down,
        })
    };
    world.apply(node_up(3, 1)).unwrap();
    world.apply(down(1)).unwrap();
    let given_up = world.removal(3);
    // The same run, which was cut off; then another, which is down as well.
    world.apply(node_up(3, 1)).unwrap();
    refused(
        world.apply(given_up.clone()),
        "its log may have rows that nobody else has",
    );
    world.apply(node_up(3, 2)).unwrap();
    world.apply(down(2)).unwrap();
    refused(world.apply(given_up), "since it was found that it may go");
    world.remove(3).unwrap();
    assert_eq!(world.node(3).state, NodeState::Removed);
}

#[test]
fn a_node_that_was_to_stay_since_it_was_given_up_is_not_removed() {
    let mut world = World::new();
    world.apply(node_up(3, 1)).unwrap();
    world.apply(intent(3, NodeIntent::Leave)).unwrap();
    let given_up = world.removal(3);
    // The same run of its process, and where it was in its life; but it has served, and may have led.
    world.apply(intent(3, NodeIntent::Serve)).unwrap();
    world.apply(node_up(3, 1)).unwrap();
    world.apply(intent(3, NodeIntent::Leave)).unwrap();
    assert_eq!(world.node(3).state, NodeState::Draining);
    refused(world.apply(given_up), "its log may have rows that nobody else has");
    // Said again, nothing has changed.
    let given_up = world.removal(3);
    assert_eq!(world.apply(intent(3, NodeIntent::Leave)), Ok(Response::Unchanged));
    world.apply(given_up).unwrap();
    assert_eq!(world.node(3).state, NodeState::Removed);
}

#[test]
fn a_node_that_gives_up_its_shards_gets_none_until_it_serves_again() {
    let mut world = World::new();
    world.apply(intent(1, NodeIntent::Drain)).unwrap();
    assert_eq!(world.node(1).state, NodeState::Draining);
    // Its shard is its own until it is given away.
    assert_eq!(world.shard(0).unwrap().leader, Some(NodeId(1)));
    let shard = world.shard(0).unwrap();
    refused(
        world.apply(assign(shard.id, shard.epoch, Some(NodeId(1)))),
        "cannot lead",
    );
    // Neither a restart nor a judgement makes it ready.
    world.apply(node_up(1, 2)).unwrap();
    assert_eq!(world.node(1).state, NodeState::Draining);
    let ready = SetNodeState {
        node: NodeId(1),
        boot: Some(BootId(2)),
        state: NodeState::Ready,
    };
    refused(world.apply(Command::SetNodeState(ready)), "shall drain");
    world.apply(intent(1, NodeIntent::Serve)).unwrap();
    world.apply(node_up(1, 2)).unwrap();
    assert_eq!(world.node(1).state, NodeState::Ready);
}

#[test]
fn the_last_node_stays() {
    let mut world = World::new();
    for node in [1, 2] {
        world.apply(intent(node, NodeIntent::Leave)).unwrap();
    }
    refused(world.apply(intent(3, NodeIntent::Leave)), "'n3' is the last one");
    for node in [1, 2] {
        world.remove(node).unwrap();
    }
    // A removal that was called off is off.
    world.apply(add_node(4, 44, 1)).unwrap();
    world.apply(intent(3, NodeIntent::Leave)).unwrap();
    world.apply(intent(3, NodeIntent::Serve)).unwrap();
    refused(world.remove(3), "not leave");
}

#[test]
fn a_standby_is_a_ready_node_that_does_not_lead_and_ends_with_what_made_it_one() {
    let mut world = World::replicating();
    let epoch = world.shard(0).unwrap().epoch;
    let mut refused = |command: Command, why: &str| {
        let refusal = world.apply(command).unwrap_err().to_string();
        assert!(refusal.contains(why), "{refusal}");
    };
    refused(assign_standby(0, epoch, Some(1)), "leads shard 1/0");
    refused(assign_standby(0, epoch, Some(9)), "there is no node 9");
    refused(assign_standby(0, Epoch(epoch.0 - 1), Some(2)), "is at epoch");
    world.apply(Command::DropReplica(replica_of(0, 3))).unwrap();
    let refusal = world.apply(assign_standby(0, epoch, Some(3))).unwrap_err().to_string();
    assert!(refusal.contains("is no replica of it"), "{refusal}");
    let standby = |world: &World| world.shard(0).unwrap().standby;
    world.apply(assign_standby(0, epoch, Some(2))).unwrap();
    assert_eq!(standby(&world), Some(NodeId(2)));
    assert_eq!(
        world.shard(0).unwrap().epoch,
        epoch,
        "who stands by is nobody's term of office"
    );
    // The leader's end is what it is there for; that it leads then, ends it.
    world.apply(node_with(1, 2, Some(DiskId(1)))).unwrap();
    let shard = world.shard(0).unwrap();
    assert_eq!((shard.leader, shard.standby), (None, Some(NodeId(2))));
    world.apply(assign(shard.id, shard.epoch, Some(NodeId(2)))).unwrap();
    assert_eq!(standby(&world), None);
    // Started anew, it has nothing in memory; without its files, it may not lead.
    let again = |world: &mut World| {
        let epoch = world.shard(0).unwrap().epoch;
        world.apply(assign_standby(0, epoch, Some(1))).unwrap();
    };
    again(&mut world);
    world.apply(node_with(1, 3, Some(DiskId(1)))).unwrap();
    assert_eq!(standby(&world), None);
    again(&mut world);
    world.apply(node_with(1, 3, Some(DiskId(7)))).unwrap();
    assert_eq!(standby(&world), None);
}

#[test]
fn a_table_is_led_by_nodes_of_a_warehouse_that_there_is() {
    let mut world = World::new();
    let alter = |warehouse: &str| {
        let settings = TableSettings {
            warehouse: Some(warehouse.into()),
            ..TableSettings::default()
        };
        Command::AlterTable(AlterTable {
            name: "t".into(),
            table: None,
            settings,
            from: None,
        })
    };
    refused(
        world.apply(alter("etl")),
        "no node is of warehouse 'etl': those of the nodes are 'default'",
    );
    let Command::AddNode(mut node) = add_node(4, 44, 1) else {
        panic!("another command");
    };
    node.warehouse = "etl".into();
    world.apply(Command::AddNode(node)).unwrap();
    world.apply(node_of(4, 44, 1)).unwrap();
    world.apply(alter("etl")).unwrap();
    assert_eq!(world.apply(alter("etl")), Ok(Response::Unchanged));
    refused(
        world.apply(intent(4, NodeIntent::Leave)),
        "node 'n4' is the last one of warehouse 'etl', whose nodes lead table 't'",
    );
    world.apply(intent(4, NodeIntent::Drain)).unwrap();
    world.apply(alter("default")).unwrap();
    world.apply(intent(4, NodeIntent::Leave)).unwrap();
    refused(world.apply(alter("etl")), "those of the nodes are 'default'");
    world.remove(4).unwrap();
    refused(world.apply(alter("etl")), "no node is of warehouse 'etl'");
}

#[test]
fn a_node_is_of_the_warehouse_that_it_was_started_with() {
    let mut world = World::new();
    let Command::NodeUp(up) = node_up(1, 1) else {
        panic!("another command");
    };
    let of = |warehouse: Option<&str>| {
        Command::NodeUp(NodeUp {
            warehouse: warehouse.map(str::to_owned),
            ..up.clone()
        })
    };
    world.apply(of(None)).unwrap();
    assert_eq!(world.node(1).warehouse, "default");
    assert_eq!(world.apply(of(Some("etl"))), Ok(Response::Done));
    assert_eq!(world.node(1).warehouse, "etl");
    assert_eq!(world.apply(of(Some("etl"))), Ok(Response::Unchanged));
    assert_eq!(world.apply(of(None)), Ok(Response::Unchanged));
}
