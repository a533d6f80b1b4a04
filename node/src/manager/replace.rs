//! Replacing tasks that stand still: what the manager knows is put before [`Stuck`], and what that says is done.

use super::stuck::{Led, Partition, Said, Stuck, Verdict};
use super::{Manager, Term};
use crate::adapters::propose;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tidemill_core::catalog::{CatalogQuestions, Node, NodeState, Pipe, PipeState, Shard, Table};
use tidemill_core::command::{AssignLeader, RecordEvent};
use tidemill_core::placement::Problem;
use tidemill_core::view::{CatalogRead, CatalogSnapshot, ViewError};
use tidemill_core::wait::WaitKind;
use tidemill_core::{Command, Epoch, Incarnation, NodeId, Offset, PartitionId, PipeId, ShardId, SpanKey};
use tidemill_proto::api::{NodeReport, PartitionProgress};
use tracing::{debug, warn};

/// How often progress is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How recent an answer of a broker to this node must be to count. Less than the patience with a broker that does not answer:
/// one that has just gone away for everybody has answered not long ago.
const ANSWER: Duration = Duration::from_secs(20);
/// The kind of its events.
const KIND: &str = "stuck";

impl Manager {
    /// Gives shards whose tasks stand still other leaders; `problem` says who may lead them.
    pub(super) async fn replace_stuck(
        &self,
        term: &mut Term,
        state: &dyn CatalogSnapshot,
        problem: &Problem,
    ) -> Result<(), ViewError> {
        if term.progress_seen.elapsed() < LOOK {
            return Ok(());
        }
        term.progress_seen = Instant::now();
        let led = self.led(state, problem)?;
        let now = Instant::now();
        // As it will be: one node must not get all that another loses.
        let mut problem = problem.clone();
        for verdict in term.stuck.look(now, &led) {
            let Verdict { shard, from, key, .. } = verdict;
            let why = self.explain(state, from, key, verdict.still)?;
            let Some(to) = next_leader(&problem, shard, &verdict.to) else {
                let text = format!("{why}, and so it was on every node that may lead the shard: it stays where it is");
                warn!(%shard, "{text}");
                self.record(state, shard, key.partition, text).await?;
                continue;
            };
            warn!(%shard, %to, "{why}: the shard gets another leader");
            for load in problem.shards.iter_mut().filter(|load| load.shard == shard) {
                load.leader = Some(to);
            }
            let command = AssignLeader {
                shard,
                replaces: verdict.epoch,
                leader: Some(to),
                because: why.clone(),
            };
            match propose(&self.catalog, Command::AssignLeader(command), Duration::from_secs(2)).await {
                Ok((_, Ok(_))) => {
                    term.stuck.replaced(now, shard, from, key);
                    let text = format!("{why}; the shard moved to another node");
                    self.record(state, shard, key.partition, text).await?;
                }
                // The state has moved on; the next look sees how.
                other => debug!(%shard, ?other, "the replacement was not taken"),
            }
        }
        self.reports.know_stuck(term.stuck.given_up());
        Ok(())
    }

    /// Every shard that has a leader which is heard, with what it has to read.
    fn led(&self, state: &dyn CatalogSnapshot, problem: &Problem) -> Result<Vec<Led>, ViewError> {
        let reports = self.reports.all();
        let heard = |node: NodeId| {
            reports
                .iter()
                .any(|r| r.node == node.0 && r.silent_ms < super::SILENT.as_millis() as u64)
        };
        let ready = |node: &Node| node.state == NodeState::Ready && heard(node.id);
        let ready: BTreeSet<NodeId> = state
            .list::<Node>(&[])?
            .iter()
            .filter(|n| ready(n))
            .map(|n| n.id)
            .collect();
        let running = state.list::<Pipe>(&[])?.into_iter();
        let running: Vec<Pipe> = running
            .filter(|pipe| pipe.state == PipeState::Running && pipe.source.kafka().is_some())
            .collect();
        let said = said(&reports);
        let answering = answering(&reports, &running);
        let mut partitions: BTreeMap<ShardId, Vec<(Partition, String)>> = BTreeMap::new();
        for pipe in &running {
            let Some(table) = state.get::<Table>(&pipe.table)? else {
                continue;
            };
            for p in state.partitions_of(pipe.id)? {
                if p.stop.is_some() || p.is_complete() {
                    continue;
                }
                let partition = Partition {
                    key: p.key(),
                    said: None,
                    committed: p.offset,
                    flush_age: Duration::from_millis(table.settings.flush.age_ms),
                    answers_others: false,
                };
                let of_shard = partitions.entry(p.shard).or_default();
                of_shard.push((partition, pipe.source.brokers().to_owned()));
            }
        }
        let mut led = Vec::new();
        for shard in state.list::<Shard>(&[])? {
            let Some(leader) = shard.leader.filter(|leader| ready.contains(leader)) else {
                continue;
            };
            let able = problem
                .shards
                .iter()
                .find(|s| s.shard == shard.id)
                .and_then(|s| s.able.clone());
            let may_lead = |node: &NodeId| able.as_ref().is_none_or(|able| able.contains(node));
            let others = ready
                .iter()
                .filter(|node| **node != leader && may_lead(node))
                .copied()
                .collect();
            let of_shard = partitions.remove(&shard.id).unwrap_or_default().into_iter();
            let of_shard = of_shard.map(|(mut partition, brokers)| {
                partition.said = said.get(&(leader, shard.id, shard.epoch, partition.key)).copied();
                let other = answering
                    .get(&brokers)
                    .is_some_and(|nodes| nodes.iter().any(|node| *node != leader));
                partition.answers_others = other || self.reports.has_answered(&brokers, ANSWER);
                partition
            });
            led.push(Led {
                shard: shard.id,
                epoch: shard.epoch,
                leader,
                others,
                partitions: of_shard.collect(),
            });
        }
        Ok(led)
    }

    /// What happened, for people.
    fn explain(
        &self,
        state: &dyn CatalogSnapshot,
        from: NodeId,
        key: SpanKey,
        still: Duration,
    ) -> Result<String, ViewError> {
        let node = state.get::<Node>(&from)?.map_or_else(String::new, |node| node.name);
        let pipe = state.get::<Pipe>(&key.pipe)?.map_or_else(String::new, |pipe| pipe.name);
        let reports = self.reports.all();
        let tasks = reports.iter().filter(|r| NodeId(r.node) == from);
        let mut of = tasks
            .flat_map(|r| &r.progress)
            .flat_map(|p| &p.tasks)
            .flat_map(|t| &t.partitions);
        let waits = of.find(|p| key_of(p) == key).filter(|p| !p.waiting_for.is_empty());
        let waits = waits.map_or_else(String::new, |p| format!(" (it waits for {})", p.waiting_for));
        Ok(format!(
            "partition {} of pipe '{pipe}' did not go on at node '{node}' for {} s{waits}",
            key.partition,
            still.as_secs()
        ))
    }

    async fn record(
        &self,
        state: &dyn CatalogSnapshot,
        shard: ShardId,
        partition: PartitionId,
        text: String,
    ) -> Result<(), ViewError> {
        let table = state.get::<Table>(&shard.table)?;
        let command = RecordEvent {
            kind: KIND.to_owned(),
            subject: table.map_or_else(|| shard.table.to_string(), |table| table.name),
            partition: Some(partition),
            text,
        };
        let recorded = propose(&self.catalog, Command::RecordEvent(command), Duration::from_secs(2)).await;
        if !matches!(recorded, Ok((_, Ok(_)))) {
            debug!(%shard, ?recorded, "the event may be missing");
        }
        Ok(())
    }
}

fn key_of(p: &PartitionProgress) -> SpanKey {
    SpanKey {
        pipe: PipeId(p.pipe),
        partition: PartitionId(p.partition),
        incarnation: Incarnation(p.incarnation),
    }
}

/// Of `may`, the standby of the shard, else the node with the least to do.
fn next_leader(problem: &Problem, shard: ShardId, may: &BTreeSet<NodeId>) -> Option<NodeId> {
    let standby = problem.shards.iter().find(|s| s.shard == shard).and_then(|s| s.standby);
    let least = may.iter().min_by_key(|node| (problem.load(**node), **node)).copied();
    standby.filter(|node| may.contains(node)).or(least)
}

/// What every node says of the partitions that it reads.
fn said(reports: &[NodeReport]) -> BTreeMap<(NodeId, ShardId, Epoch, SpanKey), Said> {
    let mut said = BTreeMap::new();
    for report in reports {
        for task in report.progress.iter().flat_map(|progress| &progress.tasks) {
            let shard = ShardId {
                table: tidemill_core::TableId(task.table),
                index: task.shard,
            };
            for p in &task.partitions {
                let of = Said {
                    position: Offset(p.position),
                    end: p.end.map(Offset),
                    wait: p.wait().into(),
                };
                said.insert((NodeId(report.node), shard, Epoch(task.epoch), key_of(p)), of);
            }
        }
    }
    said
}

/// Which brokers answer which nodes, by what their tasks say.
fn answering(reports: &[NodeReport], pipes: &[Pipe]) -> BTreeMap<String, BTreeSet<NodeId>> {
    let mut answering: BTreeMap<String, BTreeSet<NodeId>> = BTreeMap::new();
    for report in reports {
        let tasks = report.progress.iter().flat_map(|progress| &progress.tasks);
        for p in tasks.flat_map(|task| &task.partitions) {
            let wait: Option<WaitKind> = p.wait().into();
            let hears = p.reading && p.end.is_some() && wait.is_none();
            if let Some(pipe) = pipes.iter().find(|pipe| hears && pipe.id.0 == p.pipe) {
                let nodes = answering.entry(pipe.source.brokers().to_owned()).or_default();
                nodes.insert(NodeId(report.node));
            }
        }
    }
    answering
}

/// Takes those nodes from who may lead each shard where it stood still not long ago, but never all, and never who leads it.
pub(super) fn keep_away(stuck: &Stuck, problem: &mut Problem) {
    let now = Instant::now();
    for shard in &mut problem.shards {
        let may = shard.able.clone().unwrap_or_else(|| problem.candidates.clone());
        let away = |node: &NodeId| stuck.avoids(now, shard.shard, *node) && shard.leader != Some(*node);
        let left: Vec<NodeId> = may.iter().filter(|node| !away(node)).copied().collect();
        if left.len() < may.len() && !left.is_empty() {
            shard.able = Some(left);
        }
    }
    let stood_still = |node: &NodeId| stuck.avoids_any(now, *node);
    problem.full = problem.candidates.iter().copied().filter(stood_still).collect();
}
