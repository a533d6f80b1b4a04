//! Placement: which node leads which shard, as a pure function from a problem to moves.
//!
//! Sticky: a shard stays where it is while its leader may lead. Shards without a leader go to their standby, else
//! back to the node that has their rows in its log, else to the one with the least load; then, as long as moving
//! one shard makes the fullest and the emptiest node more even, one is moved. So nodes that come and go
//! move only what must move (MOV-1).
//! What a shard weighs says [`weight`].
//! A shard that has lost its leader stays at its standby: that is about time, and evenness can wait.
//! Which node that is says [`standby`].

pub mod standby;
pub mod weight;

use crate::ids::{NodeId, ShardId};
use std::collections::{BTreeMap, BTreeSet};

/// What has to be placed where.
#[derive(Clone, Debug, Default)]
pub struct Problem {
    /// Nodes that may lead.
    pub candidates: Vec<NodeId>,
    /// The shards.
    pub shards: Vec<ShardLoad>,
    /// Whether shards, and standbys, may move for the sake of evenness alone.
    pub evens: bool,
    /// By how much weight a node may be fuller than it must be before one does.
    pub slack: u64,
    /// Nodes that get none for the sake of evenness.
    pub full: BTreeSet<NodeId>,
}

impl Problem {
    /// The weight of the shards that `node` leads now.
    pub fn load(&self, node: NodeId) -> u64 {
        let led = self.shards.iter().filter(|shard| shard.leader == Some(node));
        led.map(|shard| shard.weight).sum()
    }

    /// How many shards `node` leads now.
    pub fn leads(&self, node: NodeId) -> usize {
        self.shards.iter().filter(|shard| shard.leader == Some(node)).count()
    }
}

/// One shard to place.
#[derive(Clone, Debug)]
pub struct ShardLoad {
    /// The shard.
    pub shard: ShardId,
    /// Those of the candidates that may lead it; `None` when all may.
    pub able: Option<Vec<NodeId>>,
    /// Who leads it now.
    pub leader: Option<NodeId>,
    /// Who led it last and has rows of it in its log, if that counts for anything.
    pub last_leader: Option<NodeId>,
    /// Whether it shall have a standby.
    pub hot: bool,
    /// Its standby now.
    pub standby: Option<NodeId>,
    /// Whether it does not move for the sake of evenness.
    pub stays: bool,
    /// How much work it is, in any unit common to all.
    pub weight: u64,
}

impl ShardLoad {
    fn may_be_at(&self, node: NodeId) -> bool {
        self.able.as_ref().is_none_or(|able| able.contains(&node))
    }
}

/// A shard that gets another leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The shard.
    pub shard: ShardId,
    /// The new leader; `None` when there is no candidate.
    pub to: Option<NodeId>,
    /// Why.
    pub reason: MoveReason,
}

/// Why a shard moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveReason {
    /// It had no leader.
    Unled,
    /// Its leader may not lead any more.
    LeaderLost,
    /// It makes the load more even.
    Balance,
}

/// The moves that solve `problem`, in a fixed order; none if it is solved.
pub fn place(problem: &Problem) -> Vec<Move> {
    let mut load: BTreeMap<NodeId, u64> = problem.candidates.iter().map(|node| (*node, 0)).collect();
    let mut at: BTreeMap<ShardId, (NodeId, &ShardLoad)> = BTreeMap::new();
    let mut moves = Vec::new();
    let mut homeless = Vec::new();
    for s in &problem.shards {
        match s.leader.filter(|node| load.contains_key(node) && s.may_be_at(*node)) {
            Some(node) => {
                at.insert(s.shard, (node, s));
                *load.entry(node).or_default() += s.weight;
            }
            None => homeless.push(s),
        }
    }
    homeless.sort_by_key(|s| (std::cmp::Reverse(s.weight), s.shard));
    for s in homeless {
        let able = load.iter().filter(|(node, _)| s.may_be_at(**node));
        let least = able.min_by_key(|(node, load)| (**load, **node)).map(|(node, _)| *node);
        let free = |node: &NodeId| load.contains_key(node) && s.may_be_at(*node);
        let standby = s.standby.filter(free);
        // A standby shows the rows at once; a log, when it is replayed.
        let to = standby.or(s.last_leader.filter(free)).or(least);
        let reason = if s.leader.is_some() {
            MoveReason::LeaderLost
        } else {
            MoveReason::Unled
        };
        if to.is_some() || s.leader.is_some() {
            moves.push(Move {
                shard: s.shard,
                to,
                reason,
            });
        }
        if let Some(node) = to {
            // One that goes to its standby or to its log is moved no further in the same step.
            if standby.is_none() && s.last_leader != Some(node) {
                at.insert(s.shard, (node, s));
            }
            *load.entry(node).or_default() += s.weight;
        }
    }
    for (shard, to) in even(problem, &mut load, &mut at, |s, to| !s.stays && s.may_be_at(to)) {
        match moves.iter_mut().find(|m| m.shard == shard) {
            Some(earlier) => earlier.to = Some(to),
            None => moves.push(Move {
                shard,
                to: Some(to),
                reason: MoveReason::Balance,
            }),
        }
    }
    moves
}

/// Moves what is `at` a node to where it `may` be until the loads are even, if the problem asks for that. Gives the moves, in
/// their order; a shard may be among them more than once.
fn even(
    problem: &Problem,
    load: &mut BTreeMap<NodeId, u64>,
    at: &mut BTreeMap<ShardId, (NodeId, &ShardLoad)>,
    may: impl Fn(&ShardLoad, NodeId) -> bool,
) -> Vec<(ShardId, NodeId)> {
    let mut moves = Vec::new();
    // Each step lowers the sum of the squares of the loads, so this ends; the bound is only a belt.
    let steps = if problem.evens { problem.shards.len() } else { 0 };
    for _ in 0..steps {
        let Some((shard, to)) = best_move(problem, load, at, &may) else {
            break;
        };
        if let Some((node, s)) = at.get_mut(&shard) {
            load.entry(*node).and_modify(|l| *l -= s.weight);
            load.entry(to).and_modify(|l| *l += s.weight);
            *node = to;
        }
        moves.push((shard, to));
    }
    moves
}

/// The one move to where a shard `may` be that makes two nodes most even: of the greatest difference, the heaviest
/// shard, and rather to its standby.
fn best_move(
    problem: &Problem,
    load: &BTreeMap<NodeId, u64>,
    at: &BTreeMap<ShardId, (NodeId, &ShardLoad)>,
    may: impl Fn(&ShardLoad, NodeId) -> bool,
) -> Option<(ShardId, NodeId)> {
    let mut best: Option<((u64, u64, bool), ShardId, NodeId)> = None;
    for (shard, (from, s)) in at.iter().filter(|(_, (_, s))| s.weight > 0) {
        let high = load.get(from).copied().unwrap_or_default();
        let takes = |to: NodeId| !problem.full.contains(&to) && may(s, to);
        for (to, low) in load.iter().filter(|(to, _)| takes(**to)) {
            // A move pays only if the emptier does not become what the fuller was.
            if low + s.weight + problem.slack >= high {
                continue;
            }
            let worth = (high - low, s.weight, s.standby == Some(*to));
            if best.is_none_or(|(known, ..)| worth > known) {
                best = Some((worth, *shard, *to));
            }
        }
    }
    best.map(|(_, shard, to)| (shard, to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TableId;

    fn shard(index: u32) -> ShardId {
        ShardId {
            table: TableId(1),
            index,
        }
    }

    fn problem(nodes: &[u64], leaders: &[Option<u64>]) -> Problem {
        Problem {
            candidates: nodes.iter().map(|n| NodeId(*n)).collect(),
            shards: leaders
                .iter()
                .enumerate()
                .map(|(i, l)| ShardLoad {
                    shard: shard(i as u32),
                    able: None,
                    leader: l.map(NodeId),
                    last_leader: None,
                    hot: false,
                    standby: None,
                    stays: false,
                    weight: 1,
                })
                .collect(),
            evens: true,
            ..Problem::default()
        }
    }

    fn solved(problem: &Problem) -> Problem {
        let mut after = problem.clone();
        for m in place(problem) {
            for s in after.shards.iter_mut().filter(|s| s.shard == m.shard) {
                s.leader = m.to;
            }
        }
        after
    }

    #[test]
    fn unled_shards_are_spread_evenly() {
        let after = solved(&problem(&[1, 2, 3], &[None; 7]));
        let count = |n| after.shards.iter().filter(|s| s.leader == Some(NodeId(n))).count();
        let mut counts = [count(1), count(2), count(3)];
        counts.sort();
        assert_eq!(counts, [2, 2, 3]);
    }

    #[test]
    fn a_lost_node_moves_only_its_own_shards() {
        let moves = place(&problem(&[1, 3], &[Some(1), Some(2), Some(3), Some(2)]));
        let moved: Vec<_> = moves.iter().map(|m| m.shard).collect();
        assert_eq!(moved, [shard(1), shard(3)]);
        assert!(moves.iter().all(|m| m.reason == MoveReason::LeaderLost));
    }

    #[test]
    fn a_new_node_takes_no_more_than_its_share() {
        let moves = place(&problem(
            &[1, 2, 3],
            &[Some(1), Some(1), Some(1), Some(2), Some(2), Some(2)],
        ));
        assert_eq!(moves.len(), 2);
        assert!(
            moves
                .iter()
                .all(|m| m.to == Some(NodeId(3)) && m.reason == MoveReason::Balance)
        );
    }

    #[test]
    fn heavy_shards_are_parted_and_a_little_unevenness_is_left_alone() {
        let mut p = problem(&[1, 2], &[Some(1), Some(1), Some(2), Some(2)]);
        (p.shards[0].weight, p.shards[1].weight) = (11, 9);
        let moves = place(&p);
        assert_eq!((moves[0].shard, moves[0].to), (shard(0), Some(NodeId(2))), "{moves:?}");
        let mut after = solved(&p);
        assert_eq!(place(&after), []);
        // Rates are never the same twice.
        after.slack = 3;
        (after.shards[0].weight, after.shards[1].weight) = (10, 10);
        assert_eq!(place(&after), []);
    }

    #[test]
    fn what_stays_is_not_planned_with_and_who_is_full_gets_none() {
        // Were the heavy one to move, a light one would come back for it.
        let mut p = problem(&[1, 2], &[Some(1), Some(1), Some(2)]);
        (p.shards[0].weight, p.shards[1].weight, p.shards[2].weight) = (10, 6, 2);
        p.shards[0].stays = true;
        let moves = place(&p);
        let moved: Vec<_> = moves.iter().map(|m| (m.shard, m.to)).collect();
        assert_eq!(moved, [(shard(1), Some(NodeId(2)))]);
        p.full.insert(NodeId(2));
        assert_eq!(place(&p), []);
        p.full.clear();
        p.evens = false;
        assert_eq!(place(&p), []);
    }

    #[test]
    fn a_shard_that_goes_back_to_its_log_goes_no_further() {
        let mut p = problem(&[1, 2], &[Some(1), None, None, None, None, None]);
        for s in &mut p.shards[1..] {
            s.last_leader = Some(NodeId(2));
        }
        assert!(place(&p).iter().all(|m| m.to == Some(NodeId(2))), "{:?}", place(&p));
    }

    #[test]
    fn an_even_cluster_is_left_alone() {
        assert_eq!(place(&problem(&[1, 2, 3], &[Some(1), Some(2), Some(3), Some(1)])), []);
    }

    #[test]
    fn a_shard_is_led_only_where_it_may_be() {
        let mut p = problem(&[1, 2, 3], &[None, None, Some(1), None]);
        p.shards[0].able = Some(vec![NodeId(3)]);
        p.shards[1].able = Some(vec![NodeId(3), NodeId(9)]);
        p.shards[2].able = Some(vec![NodeId(2)]);
        p.shards[3].able = Some(vec![]);
        let after = solved(&p);
        let leaders: Vec<_> = after.shards.iter().map(|s| s.leader.map(|node| node.0)).collect();
        assert_eq!(leaders, [Some(3), Some(3), Some(2), None]);
        assert_eq!(place(&after), []);
    }

    #[test]
    fn a_shard_goes_back_to_who_has_its_rows_in_a_log() {
        let mut p = problem(&[1, 2, 3], &[None, None, None, Some(1)]);
        p.shards[0].last_leader = Some(NodeId(3));
        p.shards[1].last_leader = Some(NodeId(1));
        p.shards[2].last_leader = Some(NodeId(9));
        let after = solved(&p);
        let leaders: Vec<_> = after.shards.iter().map(|s| s.leader.map(|node| node.0)).collect();
        assert_eq!(leaders, [Some(3), Some(1), Some(2), Some(1)]);
        // Who leads now stays, whoever was before.
        let mut led = problem(&[1, 2], &[Some(1), Some(2)]);
        led.shards[0].last_leader = Some(NodeId(2));
        assert_eq!(place(&led), []);
    }

    #[test]
    fn who_stands_by_is_before_who_has_a_log() {
        let mut p = problem(&[1, 2, 3], &[None]);
        (p.shards[0].standby, p.shards[0].last_leader) = (Some(NodeId(2)), Some(NodeId(3)));
        assert_eq!(place(&p)[0].to, Some(NodeId(2)));
        p.candidates.retain(|node| *node != NodeId(2));
        assert_eq!(place(&p)[0].to, Some(NodeId(3)));
    }

    #[test]
    fn a_shard_goes_to_its_standby_whoever_leads_fewest() {
        let mut p = problem(&[2, 3], &[Some(1), None, Some(2), Some(2)]);
        (p.shards[0].standby, p.shards[1].standby) = (Some(NodeId(2)), Some(NodeId(2)));
        let to_standby = |shard, reason| Move {
            shard,
            to: Some(NodeId(2)),
            reason,
        };
        let moves = place(&p);
        let urgent: Vec<Move> = moves
            .iter()
            .filter(|m| m.reason != MoveReason::Balance)
            .copied()
            .collect();
        assert!(
            urgent.contains(&to_standby(shard(0), MoveReason::LeaderLost)),
            "{moves:?}"
        );
        assert!(urgent.contains(&to_standby(shard(1), MoveReason::Unled)), "{moves:?}");
        assert_eq!(urgent.len(), 2);
        // A standby that cannot lead is no better than any other.
        p.shards[0].able = Some(vec![NodeId(3)]);
        p.candidates.retain(|node| *node == NodeId(3));
        assert!(place(&p).iter().all(|m| m.to == Some(NodeId(3))), "{:?}", place(&p));
    }

    #[test]
    fn a_move_for_balance_goes_rather_to_a_standby() {
        let mut p = problem(&[1, 2, 3], &[Some(1), Some(1), Some(1)]);
        p.shards[2].standby = Some(NodeId(3));
        let moves = place(&p);
        assert_eq!((moves[0].shard, moves[0].to), (shard(2), Some(NodeId(3))));
    }

    #[test]
    fn without_candidates_a_lost_leader_is_taken_away() {
        let moves = place(&problem(&[], &[Some(1), None]));
        assert_eq!(
            moves,
            [Move {
                shard: shard(0),
                to: None,
                reason: MoveReason::LeaderLost
            }]
        );
    }

    proptest::proptest! {
        #[test]
        fn nodes_that_come_and_go_move_only_what_must_move(
            nodes in proptest::collection::btree_set(1u64..9, 2..8),
            count in 0usize..40,
            which in 0usize..8,
        ) {
            let all: Vec<u64> = nodes.iter().copied().collect();
            let changed = all[which % all.len()];
            let others: Vec<u64> = all.iter().copied().filter(|node| *node != changed).collect();
            // It drains, is down or was removed: nobody else's shard moves.
            let with = solved(&problem(&all, &vec![None; count]));
            let mut without = with.clone();
            without.candidates.retain(|node| *node != NodeId(changed));
            for m in place(&without) {
                let leader = with.shards.iter().find(|s| s.shard == m.shard).unwrap().leader;
                proptest::prop_assert_eq!((leader, m.reason), (Some(NodeId(changed)), MoveReason::LeaderLost));
            }
            // It comes: it gets its share, and nobody else gets anything.
            let mut new = solved(&problem(&others, &vec![None; count]));
            new.candidates.push(NodeId(changed));
            let moves = place(&new);
            proptest::prop_assert_eq!(moves.len(), count / all.len());
            proptest::prop_assert!(moves.iter().all(|m| m.to == Some(NodeId(changed))));
        }

        #[test]
        fn placement_settles_in_one_step(
            nodes in proptest::collection::btree_set(1u64..9, 0..8),
            shards in proptest::collection::vec((proptest::option::of(1u64..9), 0u64..5), 0..40),
            slack in 0u64..6,
        ) {
            let problem = Problem {
                candidates: nodes.iter().map(|n| NodeId(*n)).collect(),
                shards: shards.iter().enumerate().map(|(i, (leader, weight))| ShardLoad {
                    shard: shard(i as u32), able: None, leader: leader.map(NodeId), last_leader: None, hot: false, standby: None,
                    stays: false,
                    weight: *weight,
                }).collect(),
                evens: true,
                slack,
                ..Problem::default()
            };
            let after = solved(&problem);
            // MOV-1: nothing moves when nothing has changed.
            proptest::prop_assert_eq!(place(&after), vec![]);
            for s in &after.shards {
                proptest::prop_assert_eq!(s.leader.is_some(), !nodes.is_empty());
            }
        }
    }
}
