//! Copies of parts: what may be committed, led, given up and removed, each rule with somebody who tries to break it.

use crate::world::*;
use tidemill_core::catalog::*;
use tidemill_core::command::*;
use tidemill_core::*;

fn refused(outcome: Outcome, text: &str) {
    let refusal = outcome.unwrap_err().to_string();
    assert!(refusal.contains(text), "{refusal}");
}

fn holder(node: u64) -> Holder {
    Holder {
        node: NodeId(node),
        disk: DiskId(node.into()),
    }
}

/// Commits a part and a reject part that these nodes hold.
fn commit(world: &mut World, id: u128, holders: &[Holder]) -> Outcome {
    let commit = CommitPart {
        holders: holders.to_vec(),
        ..world.good_commit(0, id, 10).unwrap()
    };
    world.apply(Command::CommitPart(commit))
}

/// What a node says of all files of the first shard.
fn holds(world: &World, disk: Holder) -> Command {
    let shard = replica_of(0, 1).shard;
    Command::SetHoldings(SetHoldings {
        disk,
        seen: Version(world.index),
        holds: world.copies(0).iter().map(|copies| (shard, copies.part)).collect(),
        lost: vec![],
    })
}

fn loses(world: &World, disk: Holder) -> Command {
    match holds(world, disk) {
        Command::SetHoldings(all) => Command::SetHoldings(SetHoldings {
            lost: all.holds.iter().map(|(s, p)| (*s, *p, "damaged".to_owned())).collect(),
            holds: vec![],
            ..all
        }),
        other => other,
    }
}

fn leave(node: u64) -> Command {
    Command::SetNodeIntent(SetNodeIntent {
        node: NodeId(node),
        intent: NodeIntent::Leave,
    })
}

fn fourth_node(world: &mut World) {
    world.apply(add_node(4, 40, 4)).unwrap();
    let up = NodeUp {
        node: NodeId(4),
        instance: InstanceId(40),
        boot: BootId(1),
        addresses: Addresses::default(),
        disk: Some(DiskId(4)),
        warehouse: None,
    };
    world.apply(Command::NodeUp(up)).unwrap();
}

#[test]
fn a_commit_needs_enough_holders_that_count() {
    let mut world = World::replicating();
    refused(commit(&mut world, 1, &[]), "on 0 of 2 disks");
    refused(commit(&mut world, 2, &[holder(1)]), "on 1 of 2 disks");
    refused(commit(&mut world, 3, &[holder(1), holder(1)]), "on 1 of 2 disks");
    refused(
        commit(&mut world, 4, &[holder(1), holder(9)]),
        "node '9' is no replica of shard 1/0",
    );
    let old_disk = Holder {
        disk: DiskId(77),
        ..holder(2)
    };
    refused(
        commit(&mut world, 5, &[holder(1), old_disk]),
        "is not the present one of node 'n2'",
    );
    commit(&mut world, 6, &[holder(3), holder(1), old_disk]).unwrap();
    assert_eq!(world.copies(0)[0].holders, [holder(1), holder(3)]);
}

#[test]
fn a_commit_without_files_needs_no_holders() {
    let mut world = World::replicating();
    let mut commit = world.good_commit(0, 1, 10).unwrap();
    for span in &mut commit.spans {
        span.counts = Counts {
            delivered: 10,
            filtered: 10,
            ..Counts::default()
        };
    }
    (commit.parts, commit.reject_parts, commit.holders) = (vec![], vec![], vec![]);
    world.apply(Command::CommitPart(commit)).unwrap();
    assert_eq!(world.copies(0), []);
}

#[test]
fn what_is_on_no_disk_any_more_does_not_stop_the_shard_for_ever() {
    let mut world = World::replicating();
    commit(&mut world, 1, &[holder(2), holder(3)]).unwrap();
    for node in 2..=3 {
        world
            .apply(node_with(node, 2, Some(DiskId(100 + u128::from(node)))))
            .unwrap();
    }
    // Nobody has it: not even what was wiped counts. New files can be written, and nodes can go.
    world.apply(Command::CompleteReplica(replica_of(0, 2))).unwrap();
    let events: Vec<Event> = view::CatalogRead::list(&world.state, &[]).unwrap();
    let said = events.last().unwrap();
    assert!(
        said.kind == "files lost" && said.text.starts_with("2 files of shard 1/0"),
        "{said:?}"
    );
    world.apply(Command::DropReplica(replica_of(0, 3))).unwrap();
}

#[test]
fn a_node_that_is_no_replica_any_more_does_not_count() {
    let mut world = World::replicating();
    fourth_node(&mut world);
    refused(
        commit(&mut world, 1, &[holder(1), holder(4)]),
        "node 'n4' is no replica",
    );
    world.apply(Command::AddReplica(replica_of(0, 4))).unwrap();
    commit(&mut world, 2, &[holder(1), holder(4)]).unwrap();
    // A third copy, so that the others suffice.
    let third = holds(&world, holder(2));
    world.apply(third).unwrap();
    world.apply(Command::DropReplica(replica_of(0, 4))).unwrap();
    assert_eq!(world.copies(0)[0].holders, [holder(1), holder(2)]);
    // What it says of its files counts no more, and when it comes back it begins with nothing.
    let again = holds(&world, holder(4));
    assert_eq!(world.apply(again).unwrap(), Response::Unchanged);
    world.apply(Command::AddReplica(replica_of(0, 4))).unwrap();
    assert_eq!(
        world.shard(0).unwrap().replica(NodeId(4)).unwrap().state,
        ReplicaState::Copying
    );
}

#[test]
fn a_replica_that_copies_may_hold_but_not_lead() {
    let mut world = World::replicating();
    fourth_node(&mut world);
    commit(&mut world, 1, &[holder(1), holder(2)]).unwrap();
    world.apply(Command::AddReplica(replica_of(0, 4))).unwrap();
    let epoch = world.shard(0).unwrap().epoch;
    let lead = |world: &World| assign(replica_of(0, 4).shard, world.shard(0).unwrap().epoch, Some(NodeId(4)));
    refused(world.apply(lead(&world)), "it still copies its files");
    refused(
        world.apply(Command::CompleteReplica(replica_of(0, 4))),
        "lacks 2 of 2 files",
    );
    // It counts for what is put there meanwhile.
    commit(&mut world, 2, &[holder(1), holder(4)]).unwrap();
    refused(
        world.apply(Command::CompleteReplica(replica_of(0, 4))),
        "lacks 2 of 4 files",
    );
    let copied = holds(&world, holder(4));
    world.apply(copied).unwrap();
    world.apply(Command::CompleteReplica(replica_of(0, 4))).unwrap();
    world.apply(lead(&world)).unwrap();
    assert_eq!(world.shard(0).unwrap().epoch, epoch.next());
    refused(
        world.apply(assign(replica_of(1, 4).shard, Epoch(1), Some(NodeId(4)))),
        "it is no replica of it",
    );
}

#[test]
fn a_replica_is_kept_while_its_files_are_needed() {
    let mut world = World::replicating();
    commit(&mut world, 1, &[holder(2), holder(3)]).unwrap();
    refused(
        world.apply(Command::DropReplica(replica_of(0, 1))),
        "node 1 leads shard 1/0",
    );
    refused(
        world.apply(Command::DropReplica(replica_of(0, 2))),
        "would be on 1 disks, min_replicas is 2",
    );
    let copied = holds(&world, holder(1));
    world.apply(copied).unwrap();
    world.apply(Command::DropReplica(replica_of(0, 2))).unwrap();
    refused(
        world.apply(Command::DropReplica(replica_of(0, 3))),
        "would have 1 replicas",
    );
    // An empty shard needs its replicas for what comes.
    world.apply(Command::DropReplica(replica_of(1, 1))).unwrap();
    refused(
        world.apply(Command::DropReplica(replica_of(1, 3))),
        "would have 1 replicas",
    );
}

#[test]
fn a_node_is_removed_only_when_it_keeps_nothing() {
    let mut world = World::replicating();
    commit(&mut world, 1, &[holder(2), holder(3)]).unwrap();
    world.apply(leave(3)).unwrap();
    refused(world.remove(3), "still a replica of 2 shards");
    refused(
        world.apply(Command::DropReplica(replica_of(0, 3))),
        "would be on 1 disks",
    );
    refused(
        world.apply(leave(2)),
        "there would be 1 nodes, and every file must be on 2",
    );
    let copied = holds(&world, holder(1));
    world.apply(copied).unwrap();
    for shard in 0..2 {
        world.apply(Command::DropReplica(replica_of(shard, 3))).unwrap();
    }
    world.remove(3).unwrap();
    // Nothing can be put there again.
    refused(world.apply(Command::AddReplica(replica_of(0, 3))), "cannot keep parts");
}

#[test]
fn a_wiped_disk_holds_nothing_and_its_node_copies_before_it_leads() {
    let mut world = World::replicating();
    commit(&mut world, 1, &[holder(1), holder(2)]).unwrap();
    world.apply(node_with(1, 2, Some(DiskId(77)))).unwrap();
    let shard = world.shard(0).unwrap();
    assert_eq!(
        (shard.leader, shard.replica(NodeId(1)).unwrap().state),
        (None, ReplicaState::Copying)
    );
    refused(
        world.apply(assign(shard.id, shard.epoch, Some(NodeId(1)))),
        "it still copies its files",
    );
    refused(world.apply(Command::CompleteReplica(replica_of(0, 1))), "lacks 2 of 2");
    // The old disk cannot speak any more.
    let old = holds(&world, holder(1));
    refused(world.apply(old), "is not the present one of node 'n1'");
    let new = holds(
        &world,
        Holder {
            disk: DiskId(77),
            ..holder(1)
        },
    );
    world.apply(new).unwrap();
    world.apply(Command::CompleteReplica(replica_of(0, 1))).unwrap();
}

/// Found by a simulated history: while the claim was on its way, the node was no replica for a moment, and deleted the file.
#[test]
fn a_late_claim_does_not_count_for_a_replica_that_came_back() {
    let mut world = World::replicating();
    commit(&mut world, 7, &[holder(1), holder(2), holder(3)]).unwrap();
    let late = holds(&world, holder(3));
    let on_third = |world: &World| world.copies(0).iter().all(|copies| copies.on(holder(3)));
    assert!(on_third(&world));

    world.apply(Command::DropReplica(replica_of(0, 3))).unwrap();
    assert_eq!(world.apply(late.clone()), Ok(Response::Unchanged), "it is no replica");
    world.apply(Command::AddReplica(replica_of(0, 3))).unwrap();
    assert_eq!(world.apply(late), Ok(Response::Unchanged), "it was said before");
    assert!(!on_third(&world));
    refused(world.apply(Command::CompleteReplica(replica_of(0, 3))), "lacks");

    let now = holds(&world, holder(3));
    assert_eq!(world.apply(now), Ok(Response::Done));
    assert!(on_third(&world));
}

#[test]
fn a_damaged_file_is_noted_and_counts_no_more() {
    let mut world = World::replicating();
    commit(&mut world, 1, &[holder(2), holder(3)]).unwrap();
    let lost = loses(&world, holder(3));
    world.apply(lost).unwrap();
    assert_eq!(world.copies(0)[0].holders, [holder(2)]);
    let events: Vec<Event> = view::CatalogRead::list(&world.state, &[]).unwrap();
    let said = events.last().unwrap();
    assert!(said.kind == "copy lost" && said.subject == "n3", "{said:?}");
    assert!(said.text.contains("damaged; 1 other disks hold it"), "{said:?}");
    // Who has the last one must not go; who has none makes nothing worse.
    refused(
        world.apply(Command::DropReplica(replica_of(0, 2))),
        "would be on 0 disks",
    );
    let again = loses(&world, holder(3));
    assert_eq!(world.apply(again).unwrap(), Response::Unchanged);
}

#[test]
fn the_number_of_copies_is_changed_by_operators_alone_and_not_beyond_what_is_there() {
    let mut world = World::replicating();
    commit(&mut world, 1, &[holder(1), holder(2)]).unwrap();
    let rule = |replicas, min_replicas| {
        Command::SetReplication(SetReplication {
            wanted: Replication { replicas, min_replicas },
            from: None,
        })
    };
    refused(world.apply(rule(3, 3)), "would be on 2 disks, min_replicas is 3");
    refused(world.apply(rule(2, 3)), "is not between 1 and replicas = 2");
    refused(world.apply(rule(8, 1)), "is not between 1 and 7");
    world.apply(rule(3, 1)).unwrap();
    commit(&mut world, 2, &[holder(1)]).unwrap();
    refused(world.apply(rule(3, 2)), "would be on 1 disks");
    let mut shared = World::new();
    refused(shared.apply(rule(3, 2)), "share one part store");
}

#[test]
fn what_is_dropped_has_no_copies() {
    let mut world = World::replicating();
    commit(&mut world, 1, &[holder(1), holder(2)]).unwrap();
    world.apply(drop_pipe("p")).unwrap();
    world.apply(drop_table("t")).unwrap();
    assert_eq!(world.copies(0), []);
    let late = holds(&world, holder(3));
    assert_eq!(world.apply(late).unwrap(), Response::Unchanged);
}
