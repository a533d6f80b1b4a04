//! What only the present leader of a shard may say, beside commits.

use crate::world::*;
use tidemill_core::catalog::*;
use tidemill_core::command::*;
use tidemill_core::stop::StopReason;
use tidemill_core::view::CatalogRead;
use tidemill_core::*;

/// The shard gets another leader; gives the epoch before.
fn depose(world: &mut World) -> Epoch {
    let shard = world.shard(0).unwrap();
    let other = if shard.leader == Some(NodeId(1)) { 2 } else { 1 };
    world.apply(assign(shard.id, shard.epoch, Some(NodeId(other)))).unwrap();
    shard.epoch
}

/// Found by simulation (seed 5603): a leader was paused, its shard got another, the log of the source was cut and grew again, and
/// the new leader committed what had grown. Then the old one woke up and stopped the partition as truncated where its own reading
/// differed, below what was committed by then, and the repair read all of that a second time.
#[test]
fn a_leader_that_was_deposed_stops_nothing() {
    let mut world = World::new();
    world.apply(set_state(PipeState::Running)).unwrap();
    let old = depose(&mut world);
    let stop = |world: &World, epoch| {
        Command::StopPartition(StopPartition {
            key: world.partition(0).unwrap().key(),
            epoch,
            reason: StopReason::Truncated {
                diverged: Some(Offset(0)),
                epoch: None,
            },
        })
    };
    let late = stop(&world, Some(old));
    let current = old.next();
    let given = old;
    let shard = world.shard(0).unwrap().id;
    let stale = Refusal::StaleEpoch { shard, current, given };
    assert_eq!(world.apply(late), Err(stale));
    assert_eq!(world.partition(0).unwrap().stop, None);
    let present = stop(&world, Some(current));
    world.apply(present).unwrap();
    assert!(world.partition(0).unwrap().stop.is_some());
}

/// Found by reading, after that: only the leader that holds a partition knows that nothing of it is there.
#[test]
fn a_leader_that_was_deposed_passes_over_no_gap() {
    let mut world = World::replicating();
    let Ok(Response::Writer(id)) = world.apply(open_writer("t", 1)) else {
        panic!("no writer");
    };
    let old = depose(&mut world);
    let pass = |epoch| {
        Command::PassGap(PassGap {
            writer: id,
            shard: 0,
            epoch,
            from: Offset(0),
            to: Offset(5),
        })
    };
    let outcome = world.apply(pass(Some(old)));
    assert!(matches!(outcome, Err(Refusal::StaleEpoch { .. })), "{outcome:?}");
    world.apply(pass(Some(old.next()))).unwrap();
    let writer = world.state.get::<Writer>(&id).unwrap().unwrap();
    assert_eq!(world.partitions_of_writer(&writer)[0].offset, Offset(5));
}
