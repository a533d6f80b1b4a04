//! Which node stands by for which shard: tails its partitions beside the leader and is to take over from it.
//!
//! Sticky, as placement is: a standby that may stand by is left alone, since another would have to read first. One that
//! is missing goes to the node with the least work, where standing by is as much work as leading; then, as long as
//! moving one makes two nodes more even, one is moved. So a node that comes gets standbys first, and leaders where it
//! stands by already.

use super::{Problem, ShardLoad, even};
use crate::ids::{NodeId, ShardId};
use std::collections::BTreeMap;

/// A shard that gets another standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The shard.
    pub shard: ShardId,
    /// The new standby; `None` when there shall be none, or nobody can be.
    pub to: Option<NodeId>,
}

/// The changes that `problem` calls for, in the order of shards; none if all is as it should be.
pub fn choose(problem: &Problem) -> Vec<Change> {
    let mut load: BTreeMap<NodeId, u64> = problem.candidates.iter().map(|node| (*node, 0)).collect();
    for s in &problem.shards {
        if let Some(load) = s.leader.and_then(|leader| load.get_mut(&leader)) {
            *load += s.weight;
        }
    }
    let may = |s: &ShardLoad, node: NodeId| s.may_be_at(node) && s.leader != Some(node);
    let mut at: BTreeMap<ShardId, (NodeId, &ShardLoad)> = BTreeMap::new();
    let mut missing = Vec::new();
    for s in problem.shards.iter().filter(|s| s.hot) {
        match s.standby.filter(|node| load.contains_key(node) && may(s, *node)) {
            Some(node) => {
                at.insert(s.shard, (node, s));
                *load.entry(node).or_default() += s.weight;
            }
            // Whoever is chosen before there is a leader might be the next one.
            None if s.leader.is_some() => missing.push(s),
            None => {}
        }
    }
    for s in missing {
        let able = load.iter().filter(|(node, _)| may(s, **node));
        let Some(node) = able.min_by_key(|(node, load)| (**load, **node)).map(|(node, _)| *node) else {
            continue;
        };
        at.insert(s.shard, (node, s));
        *load.entry(node).or_default() += s.weight;
    }
    even(problem, &mut load, &mut at, may);
    let change = |s: &ShardLoad| {
        let to = at.get(&s.shard).map(|(node, _)| *node);
        (to != s.standby).then_some(Change { shard: s.shard, to })
    };
    problem.shards.iter().filter_map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TableId;

    fn problem(nodes: &[u64], shards: &[(Option<u64>, bool, Option<u64>)]) -> Problem {
        let load = |(i, (leader, hot, standby)): (usize, &(Option<u64>, bool, Option<u64>))| ShardLoad {
            shard: ShardId {
                table: TableId(1),
                index: i as u32,
            },
            able: None,
            leader: leader.map(NodeId),
            last_leader: None,
            hot: *hot,
            standby: standby.map(NodeId),
            stays: false,
            weight: 1,
        };
        Problem {
            candidates: nodes.iter().copied().map(NodeId).collect(),
            shards: shards.iter().enumerate().map(load).collect(),
            evens: true,
            ..Problem::default()
        }
    }

    fn solved(problem: &Problem) -> Problem {
        let mut after = problem.clone();
        for change in choose(problem) {
            for s in after.shards.iter_mut().filter(|s| s.shard == change.shard) {
                s.standby = change.to;
            }
        }
        after
    }

    fn standbys(problem: &Problem) -> Vec<Option<u64>> {
        problem.shards.iter().map(|s| s.standby.map(|node| node.0)).collect()
    }

    #[test]
    fn standbys_are_spread_over_the_others() {
        let after = solved(&problem(
            &[1, 2, 3],
            &[(Some(1), true, None), (Some(2), true, None), (Some(3), true, None)],
        ));
        let mut nodes = standbys(&after);
        nodes.sort();
        assert_eq!(nodes, [Some(1), Some(2), Some(3)]);
    }

    #[test]
    fn only_a_shard_of_a_hot_pipe_has_one() {
        let after = solved(&problem(&[1, 2], &[(Some(1), false, Some(2)), (Some(1), true, None)]));
        assert_eq!(standbys(&after), [None, Some(2)]);
    }

    #[test]
    fn one_that_may_stay_is_left_alone() {
        let shards = [
            (Some(1), true, Some(3)),
            (Some(2), true, Some(3)),
            (None, true, Some(2)),
        ];
        assert_eq!(choose(&problem(&[1, 2, 3], &shards)), []);
    }

    #[test]
    fn a_lost_standby_is_replaced_and_nobody_else_moves() {
        let shards = [
            (Some(1), true, Some(3)),
            (Some(2), true, Some(1)),
            (Some(1), true, Some(2)),
        ];
        let after = solved(&problem(&[1, 2], &shards));
        assert_eq!(standbys(&after), [Some(2), Some(1), Some(2)]);
    }

    #[test]
    fn without_another_node_there_is_none() {
        let mut p = problem(&[1, 2], &[(Some(1), true, Some(2)), (Some(1), true, None)]);
        p.shards[0].able = Some(vec![NodeId(1)]);
        p.candidates.retain(|node| *node == NodeId(1));
        assert_eq!(standbys(&solved(&p)), [None, None]);
    }

    proptest::proptest! {
        #[test]
        fn the_choice_settles_in_one_step(
            nodes in proptest::collection::btree_set(1u64..6, 0..6),
            shards in proptest::collection::vec(
                (proptest::option::of(1u64..6), proptest::bool::ANY, proptest::option::of(1u64..6)), 0..24),
        ) {
            let nodes: Vec<u64> = nodes.into_iter().collect();
            let after = solved(&problem(&nodes, &shards));
            proptest::prop_assert_eq!(choose(&after), vec![]);
            for s in &after.shards {
                proptest::prop_assert!(s.standby.is_none() || s.standby != s.leader);
                proptest::prop_assert!(s.standby.is_none_or(|standby| nodes.contains(&standby.0)));
                let possible = s.hot && s.leader.is_some_and(|leader| nodes.iter().any(|node| *node != leader.0));
                proptest::prop_assert!(!possible || s.standby.is_some());
            }
        }
    }
}
