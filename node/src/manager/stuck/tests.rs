use super::*;
use tidemill_core::{Incarnation, PartitionId, PipeId, TableId};

const SHARD: ShardId = ShardId {
    table: TableId(1),
    index: 0,
};
const KEY: SpanKey = SpanKey {
    pipe: PipeId(1),
    partition: PartitionId(0),
    incarnation: Incarnation(1),
};

/// A cluster of three nodes with one shard and one partition, and a manager that does what it is told.
struct World {
    stuck: Stuck,
    now: Instant,
    epoch: u64,
    leader: u64,
    partition: Partition,
    moves: Vec<(u64, u64)>,
    given_up: usize,
}

impl World {
    /// Something to be read, nothing that is waited for.
    fn new() -> Self {
        Self {
            stuck: Stuck::default(),
            now: Instant::now(),
            epoch: 1,
            leader: 1,
            partition: Partition {
                key: KEY,
                said: Some(Said {
                    position: Offset(10),
                    end: Some(Offset(100)),
                    wait: None,
                }),
                committed: Offset(10),
                flush_age: Duration::from_secs(10),
                answers_others: false,
            },
            moves: Vec::new(),
            given_up: 0,
        }
    }

    fn said(&mut self) -> &mut Said {
        self.partition.said.as_mut().unwrap()
    }

    /// Lets so many seconds pass, with a look at each.
    fn pass(&mut self, seconds: u64) -> &mut Self {
        for second in 0..seconds {
            self.now += Duration::from_secs(1);
            let led = Led {
                shard: SHARD,
                epoch: Epoch(self.epoch),
                leader: NodeId(self.leader),
                others: (1..=3).filter(|node| *node != self.leader).map(NodeId).collect(),
                partitions: vec![self.partition.clone()],
            };
            for verdict in self.stuck.look(self.now, &[led]) {
                let Verdict {
                    shard,
                    epoch,
                    from,
                    key,
                    ..
                } = verdict;
                assert_eq!((shard, epoch, key), (SHARD, Epoch(self.epoch), KEY));
                assert_eq!(from, NodeId(self.leader));
                let Some(to) = verdict.to.first() else {
                    self.given_up += 1;
                    continue;
                };
                self.stuck.replaced(self.now, SHARD, from, KEY);
                self.leader = to.0;
                self.epoch += 1;
                self.moves.push((second + 1, self.leader));
            }
        }
        self
    }
}

#[test]
fn a_task_that_stands_still_is_replaced_ever_later_and_left_alone_when_all_have_tried() {
    let mut world = World::new();
    world.pass(300);
    // 15 s, then 30 s for the second; that it stands still on the third is known after another 60 s.
    assert_eq!(world.moves, [(16, 2), (47, 3)]);
    assert_eq!((world.given_up, world.stuck.given_up()), (1, 1));
    world.pass(3_000);
    assert_eq!((world.moves.len(), world.given_up), (2, 1), "it churns");
    // Somebody mended it.
    world.said().position = Offset(11);
    world.pass(1);
    assert_eq!(world.stuck.given_up(), 0);
    world.moves.clear();
    world.pass(16);
    assert_eq!(world.moves.len(), 1, "progress did not begin anew");
}

#[test]
fn whoever_gets_on_or_has_nothing_to_read_is_let_alone() {
    let mut slow = World::new();
    for offset in 11..40 {
        slow.said().position = Offset(offset);
        slow.partition.committed = Offset(offset);
        slow.pass(14);
    }
    assert_eq!(slow.moves, []);
    let mut idle = World::new();
    idle.said().end = Some(Offset(10));
    assert_eq!(idle.pass(600).moves, []);
    // It has time from when there is something.
    idle.said().end = Some(Offset(11));
    assert_eq!(idle.pass(14).moves, []);
    assert_eq!(idle.pass(2).moves.len(), 1);
}

#[test]
fn what_would_be_the_same_anywhere_is_waited_for() {
    use WaitKind as K;
    for wait in [K::Transaction, K::Memory, K::Turn, K::PartStore, K::Operator, K::Done] {
        let mut world = World::new();
        world.said().wait = Some(wait);
        assert_eq!(world.pass(600).moves, [], "{wait:?}");
        world.said().wait = None;
        assert_eq!(world.pass(14).moves, [], "{wait:?}: the wait was counted");
    }
    for wait in [K::Client, K::Assignment] {
        let mut world = World::new();
        world.said().wait = Some(wait);
        assert_eq!(world.pass(16).moves.len(), 1, "{wait:?}");
    }
}

#[test]
fn a_broker_that_answers_others_is_a_reason_to_move_and_one_that_answers_nobody_is_not() {
    let mut world = World::new();
    world.said().wait = Some(WaitKind::Broker);
    // What this node knows of the end is from before.
    world.said().end = Some(Offset(10));
    assert_eq!(world.pass(600).moves, []);
    world.partition.answers_others = true;
    assert_eq!(world.pass(29).moves, []);
    assert_eq!(world.pass(1).moves, [(1, 2)]);
}

#[test]
fn a_leader_that_does_not_run_the_task_is_replaced() {
    let mut world = World::new();
    world.partition.said = None;
    assert_eq!(world.pass(16).moves, [(16, 2)]);
}

#[test]
fn a_task_that_reads_and_does_not_commit_is_replaced() {
    let mut world = World::new();
    for _ in 0..69 {
        world.said().position.0 += 1;
        world.said().end = Some(Offset(1_000));
        world.pass(1);
    }
    assert_eq!(world.moves, []);
    let (epoch, position) = (world.epoch, world.said().position);
    world.said().position = Offset(position.0 + 1);
    world.pass(2);
    assert_eq!((world.moves.len(), world.epoch), (1, epoch + 1));
    // Without a place to put parts, nobody else would commit either.
    let mut full = World::new();
    full.said().position = Offset(50);
    full.said().wait = Some(WaitKind::PartStore);
    assert_eq!(full.pass(600).moves, []);
}

#[test]
fn a_shard_is_kept_from_where_it_stood_still_for_a_while() {
    let mut world = World::new();
    world.pass(16);
    assert_eq!(world.leader, 2);
    let avoids = |world: &World, node| world.stuck.avoids(world.now, SHARD, NodeId(node));
    assert!(avoids(&world, 1) && !avoids(&world, 2) && world.stuck.avoids_any(world.now, NodeId(1)));
    world.said().position = Offset(100);
    world.partition.committed = Offset(100);
    world.pass(300);
    assert!(!avoids(&world, 1));
}
