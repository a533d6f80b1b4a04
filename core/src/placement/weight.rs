//! What leading a shard weighs: something for being there, and what arrives for it at its source.
//!
//! What arrives, and not what is read: a shard that has just moved reads what was left behind as fast as it can, and must not
//! look heavy for that. Rates waver, and are met by slack, so that shards stay where they are meanwhile. They are taken in small
//! parts: rounded to whole units, a rate near half a unit would waver by all of it.

use crate::ids::ShardId;
use std::collections::BTreeMap;

/// Bytes per second that weigh as much as a shard for which nothing arrives.
pub const UNIT: f64 = 1_048_576.0;
/// What such a shard weighs.
pub const PARTS: u64 = 16;
/// The part of its share of all rates by which a node may be fuller before a shard moves: one in so many.
const SLACK: u64 = 5;

/// The weight of each shard, and the slack that goes with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weights {
    of: BTreeMap<ShardId, u64>,
    /// See [`super::Problem::slack`]. Less than what a shard weighs for being there, unless much arrives.
    pub slack: u64,
}

impl Weights {
    /// From bytes per second, where they are known, for a cluster of so many nodes.
    pub fn new(rates: &BTreeMap<ShardId, f64>, nodes: usize) -> Self {
        // A rate that is not a number, or less than nothing, is none.
        let parts = |rate: &f64| (rate.max(0.0) / UNIT * PARTS as f64).round() as u64;
        let of: BTreeMap<ShardId, u64> = rates.iter().map(|(shard, rate)| (*shard, parts(rate))).collect();
        let share = of.values().sum::<u64>() / (nodes.max(1) as u64);
        Self {
            of,
            slack: PARTS - 1 + share / SLACK,
        }
    }

    /// What `shard` weighs; at least [`PARTS`].
    pub fn of(&self, shard: ShardId) -> u64 {
        PARTS + self.of.get(&shard).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{MoveReason, Problem, ShardLoad, place};
    use super::*;
    use crate::ids::{NodeId, TableId};

    fn shard(index: u32) -> ShardId {
        ShardId {
            table: TableId(1),
            index,
        }
    }

    fn problem(nodes: u64, leaders: &BTreeMap<ShardId, NodeId>, mib: &[f64]) -> Problem {
        let rates = mib.iter().enumerate().map(|(i, mib)| (shard(i as u32), mib * UNIT));
        let weights = Weights::new(&rates.collect(), nodes as usize);
        let load = |(shard, leader): (&ShardId, &NodeId)| ShardLoad {
            shard: *shard,
            able: None,
            leader: Some(*leader),
            last_leader: None,
            hot: false,
            standby: None,
            stays: false,
            weight: weights.of(*shard),
        };
        Problem {
            candidates: (1..=nodes).map(NodeId).collect(),
            shards: leaders.iter().map(load).collect(),
            evens: true,
            slack: weights.slack,
            ..Problem::default()
        }
    }

    /// Moves shards until none moves; gives how many did.
    fn settle(nodes: u64, leaders: &mut BTreeMap<ShardId, NodeId>, mib: &[f64]) -> usize {
        let moves = place(&problem(nodes, leaders, mib));
        for m in &moves {
            assert_eq!(m.reason, MoveReason::Balance);
            leaders.insert(m.shard, m.to.unwrap());
        }
        assert_eq!(place(&problem(nodes, leaders, mib)), []);
        moves.len()
    }

    fn spread(nodes: u64, shards: u32) -> BTreeMap<ShardId, NodeId> {
        let node = |i: u32| NodeId(u64::from(i) % nodes + 1);
        (0..shards).map(|i| (shard(i), node(i))).collect()
    }

    #[test]
    fn without_rates_every_shard_weighs_the_same() {
        let weights = Weights::new(&BTreeMap::new(), 3);
        assert_eq!((weights.of(shard(0)), weights.slack), (PARTS, PARTS - 1));
        let odd = BTreeMap::from([(shard(0), f64::NAN), (shard(1), -1.0), (shard(2), UNIT / 40.0)]);
        assert_eq!(Weights::new(&odd, 3).slack, PARTS - 1);
        assert!((0..3).all(|i| Weights::new(&odd, 3).of(shard(i)) == PARTS));
        // The slack is no reason for one node to lead two more than another.
        let mut leaders = BTreeMap::from([(shard(0), NodeId(1)), (shard(1), NodeId(1))]);
        assert_eq!(settle(2, &mut leaders, &[0.0, 0.0]), 1);
    }

    /// Rounded to whole units, the shards of this case weighed one or two.
    #[test]
    fn rates_near_half_a_unit_move_nothing() {
        let mut leaders = spread(5, 11);
        settle(5, &mut leaders, &[0.503; 11]);
        let wavering: Vec<f64> = (0..11).map(|i| 0.503 * if i % 5 == 0 { 0.93 } else { 1.07 }).collect();
        assert_eq!(settle(5, &mut leaders, &wavering), 0);
    }

    #[test]
    fn two_hot_shards_of_one_node_are_parted() {
        let mut leaders = spread(3, 6);
        // Both of the first node.
        let mib = [20.0, 0.1, 0.0, 18.0, 0.2, 0.0];
        // One of them, and those that weigh next to nothing give way to it.
        assert!(settle(3, &mut leaders, &mib) <= 3);
        assert_ne!(leaders[&shard(0)], leaders[&shard(3)]);
        assert_eq!(leaders[&shard(3)], NodeId(1));
    }

    proptest::proptest! {
        #[test]
        fn rates_that_waver_move_nothing(
            nodes in 1u64..6, shards in 1u32..30, mib in 0.0f64..50.0,
            noise in proptest::collection::vec(-0.08f64..0.08, 60),
        ) {
            let wavering = |from: usize| (0..shards as usize).map(|i| mib * (1.0 + noise[from + i])).collect::<Vec<f64>>();
            let mut leaders = spread(nodes, shards);
            settle(nodes, &mut leaders, &wavering(0));
            let moves = settle(nodes, &mut leaders, &wavering(30));
            proptest::prop_assert_eq!(moves, 0);
        }
    }
}
