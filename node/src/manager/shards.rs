//! Who leads which shard: what the manager knows is put before [`place`], and what that says is done.

use super::replace::keep_away;
use super::{Manager, Term, standbys};
use crate::adapters::propose;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tidemill_core::catalog::{Acks, CatalogQuestions, Node, NodeState, Shard, Table, WalMode, Writer};
use tidemill_core::command::{AssignLeader, ReplicaOf};
use tidemill_core::placement::weight::{PARTS, Weights};
use tidemill_core::placement::{Move, MoveReason, Problem, ShardLoad, place};
use tidemill_core::view::{CatalogRead, CatalogSnapshot, ViewError};
use tidemill_core::{Command, NodeId, ShardId, TableId};
use tracing::{debug, info};

/// How often shards may move for the sake of evenness alone.
const REBALANCE: Duration = Duration::from_secs(5);

impl Manager {
    /// Gives shards the leaders that they shall have.
    pub(super) async fn place_shards(
        &self,
        term: &mut Term,
        state: &dyn CatalogSnapshot,
        leaving: &[ReplicaOf],
    ) -> Result<(), ViewError> {
        let nodes = state.list::<Node>(&[])?;
        let mut problem = placement_problem(state, &nodes, leaving, term)?;
        self.replace_stuck(term, state, &problem).await?;
        keep_away(&term.stuck, &mut problem);
        standbys::pass_over_unheard(&self.reports, &nodes, &mut problem);
        problem.evens &= term.balanced.elapsed() >= REBALANCE;
        let mut assignments = Vec::new();
        for m in place(&problem) {
            if m.reason == MoveReason::Balance {
                term.balanced = Instant::now();
            }
            let Some(shard) = state.get::<Shard>(&m.shard)? else {
                continue;
            };
            let command = AssignLeader {
                shard: m.shard,
                replaces: shard.epoch,
                leader: m.to,
                because: because(&m, &shard, &nodes, &problem),
            };
            // All at once: a node that led many shards must not hold up the last of them.
            assignments.push(async move {
                let command = Command::AssignLeader(command);
                (m, propose(&self.catalog, command, Duration::from_secs(2)).await)
            });
        }
        for (m, outcome) in futures::future::join_all(assignments).await {
            match outcome {
                Ok((_, Ok(_))) => info!(shard = %m.shard, to = ?m.to, reason = ?m.reason, "the shard gets a leader"),
                // The state has moved on; the next look sees how.
                other => debug!(shard = %m.shard, ?other, "the assignment was not taken"),
            }
        }
        Ok(())
    }
}

/// Who may lead what, and does, and how heavy it is.
pub(super) fn placement_problem(
    state: &dyn CatalogSnapshot,
    nodes: &[Node],
    leaving: &[ReplicaOf],
    term: &Term,
) -> Result<Problem, ViewError> {
    let now = Instant::now();
    let replicates = state.replication()?.is_some();
    let hot: BTreeSet<ShardId> = state
        .hot_partitions()?
        .iter()
        .map(|partition| partition.shard)
        .collect();
    let tables: BTreeMap<TableId, Table> = (state.list::<Table>(&[])?.into_iter())
        .map(|table| (table.id, table))
        .collect();
    let ready = nodes.iter().filter(|n| n.state == NodeState::Ready);
    let candidates: Vec<NodeId> = ready.map(|n| n.id).collect();
    // A node that has just come is not given shards that others serve well.
    let evens = term.rates.are_known(now) && candidates.iter().all(|node| term.is_settled(*node, REBALANCE));
    let early = if evens {
        tables_with_early_rows(state)?
    } else {
        BTreeSet::new()
    };
    let weights = Weights::new(&term.rates.of_shards(now), candidates.len());
    let able = |shard: &Shard, table: Option<&Table>| {
        let leaves = |node: NodeId| leaving.contains(&ReplicaOf { shard: shard.id, node });
        let stay = || nodes.iter().filter(|node| !replicates || !leaves(node.id));
        let may = shard.may_be_led_by(table, stay(), replicates);
        let mut able: Vec<NodeId> = may.iter().map(|node| node.id).collect();
        if !able.iter().any(|node| candidates.contains(node)) {
            // Nobody gets it who is of another warehouse, but who has it may keep it until one of this is there.
            let keeps =
                |node: &Node| Some(node.id) == shard.leader && (!replicates || shard.replica(node.id).is_some());
            able.extend(stay().filter(|node| keeps(node)).map(|node| node.id));
        }
        able
    };
    let load = |s: &Shard| {
        let table = tables.get(&s.id.table);
        let has_log = table.is_some_and(|table| table.settings.wal == WalMode::Local);
        ShardLoad {
            shard: s.id,
            able: Some(able(s, table)),
            leader: s.leader,
            last_leader: s.last_leader.filter(|_| has_log),
            hot: hot.contains(&s.id),
            standby: s.standby,
            stays: early.contains(&s.id.table),
            weight: weights.of(s.id),
        }
    };
    Ok(Problem {
        shards: state.list::<Shard>(&[])?.iter().map(load).collect(),
        candidates,
        evens,
        slack: weights.slack,
        full: BTreeSet::new(),
    })
}

/// Tables with rows that may have been acknowledged before they are committed. These stay behind when a shard moves: it does
/// not move for evenness.
fn tables_with_early_rows(state: &dyn CatalogSnapshot) -> Result<BTreeSet<TableId>, ViewError> {
    let writers = state.list::<Writer>(&[])?.into_iter();
    let early = writers.filter(|writer| writer.acks != Acks::All);
    Ok(early.map(|writer| writer.table).collect())
}

/// Why a shard moves, for people.
fn because(m: &Move, shard: &Shard, nodes: &[Node], problem: &Problem) -> String {
    let node = |id: Option<NodeId>| nodes.iter().find(|node| Some(node.id) == id);
    let name = |id: Option<NodeId>| node(id).map_or_else(|| "nobody".to_owned(), |node| format!("'{}'", node.name));
    let led = |id: Option<NodeId>| id.map_or(0, |id| problem.leads(id));
    let stood_by = m.to.is_some() && m.to == shard.standby;
    let last = (problem.shards.iter().find(|s| s.shard == m.shard)).and_then(|s| s.last_leader);
    let has_log = m.to.is_some() && m.to == last;
    let why = match m.reason {
        MoveReason::Unled if stood_by => format!("it had no leader{}", before(shard)),
        MoveReason::Unled if has_log => format!(
            "it had no leader{}; {} led it last and has rows of it in its log",
            before(shard),
            name(m.to)
        ),
        MoveReason::Unled => format!(
            "it had no leader{}; of those that may lead it, {} had least to do, with {} shards",
            before(shard),
            name(m.to),
            led(m.to)
        ),
        MoveReason::LeaderLost => match node(shard.leader) {
            Some(leader) if leader.state != NodeState::Ready => format!("node '{}' is {}", leader.name, leader.state),
            _ => format!("node {} shall not lead it any more", name(shard.leader)),
        },
        MoveReason::Balance => {
            let load = |id: Option<NodeId>| {
                let (led, weight) = id.map_or((0, 0), |id| (problem.leads(id), problem.load(id)));
                // What they weigh beyond their being there.
                match (weight / PARTS).saturating_sub(led as u64) {
                    0 => format!("led {led} shards"),
                    units => format!("led {led} shards that get {units} MiB/s"),
                }
            };
            let (from, to) = (name(shard.leader), name(m.to));
            format!("node {from} {}, node {to} {}", load(shard.leader), load(m.to))
        }
    };
    match m.to {
        Some(_) if stood_by => format!("{why}; node {} stood by", name(m.to)),
        Some(_) => why,
        None => format!("{why}, and no other node may lead it now"),
    }
}

/// What was said when it lost the leader before.
fn before(shard: &Shard) -> String {
    let assigned = shard.assigned.as_ref();
    assigned.map_or_else(String::new, |assigned| format!(" ({})", assigned.because))
}
