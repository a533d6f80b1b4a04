//! What the leader of the group does besides: judges nodes, places replicas and leaders. The decisions are core's.
//!
//! A model of `node/src/manager.rs`, with its waiting times.

use crate::event::Beat;
use crate::node::{Purpose, id_of, index_of};
use crate::seeds::Violation;
use crate::time::{SECOND, Time};
use crate::world::World;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tidemill_core::catalog::*;
use tidemill_core::command::{AddPartitions, AssignLeader, AssignStandby, NodeUp, ReplicaOf, SetNodeState};
use tidemill_core::membership::Heard;
use tidemill_core::placement::{Problem, ShardLoad, place, standby};
use tidemill_core::replication::{self, Change};
use tidemill_core::view::{CatalogRead, MemView};
use tidemill_core::{Command, NodeId, Offset, PartitionId, ShardId, TableId};

/// How long a node may be silent before it is down; and for how long a new manager listens first.
const SILENT: Time = 3 * SECOND / 2;
/// How long a node must have been ready before shards move to it for the sake of evenness.
const SETTLED: Time = 5 * SECOND;

/// What was last heard of a node.
#[derive(Debug)]
struct Report {
    at: Time,
    /// Since when it has been heard without a pause.
    since: Time,
    beat: Beat,
}

/// A term of management.
#[derive(Debug)]
pub(crate) struct Manager {
    since: Time,
    reports: BTreeMap<usize, Report>,
    ready_since: BTreeMap<NodeId, Time>,
    balanced: Time,
    grown: Time,
    /// When it last looked who votes.
    pub stepped: Time,
    /// How many proposals are not answered.
    asked: usize,
}

impl Manager {
    pub fn new(now: Time) -> Self {
        Self {
            since: now,
            reports: BTreeMap::new(),
            ready_since: BTreeMap::new(),
            balanced: now,
            grown: now,
            stepped: now,
            asked: 0,
        }
    }

    pub fn hear(&mut self, from: usize, at: Time, beat: Beat) {
        let since = self.heard(from, at).map_or(at, |report| report.since);
        self.reports.insert(from, Report { at, since, beat });
    }

    /// What a node last said, if it is not silent.
    fn heard(&self, index: usize, now: Time) -> Option<&Report> {
        self.reports.get(&index).filter(|report| now < report.at + SILENT)
    }

    /// Whether a node is heard in the run of its process, and with the disk, that the catalog knows.
    fn hears_as_known(&self, node: &Node, now: Time) -> bool {
        self.heard(index_of(node.id), now)
            .is_some_and(|report| node.boot == Some(report.beat.boot) && node.disk == Some(report.beat.disk))
    }

    /// For how long a node has been heard without a pause.
    pub fn heard_for(&self, index: usize, now: Time) -> Time {
        self.heard(index, now).map_or(0, |report| now - report.since)
    }

    /// What is heard of all nodes.
    pub fn heard_of_all(&self, now: Time) -> Heard {
        let mut all = Heard::default();
        for index in self.reports.keys() {
            let Some(report) = self.heard(*index, now) else {
                continue;
            };
            let node = id_of(*index);
            all.alive.insert(node);
            all.handed_over.extend(report.beat.handed_over.map(|by| (node, by)));
        }
        all
    }

    pub fn answered(&mut self) {
        self.asked = self.asked.saturating_sub(1);
    }
}

impl World {
    pub fn look_after_all(&mut self, index: usize) -> Result<(), Violation> {
        let node = &self.nodes[index];
        let Some(manager) = &node.manager else {
            return Ok(());
        };
        if manager.asked > 0 {
            return Ok(());
        }
        let state = node.state.clone();
        let mut commands = Vec::new();
        self.judge(index, &state, &mut commands)?;
        if commands.is_empty() {
            let leaving = self.place_replicas(index, &state, &mut commands)?;
            self.place_leaders(index, &state, &leaving, &mut commands)?;
            self.grow(index, &state, &mut commands)?;
            commands.extend(self.step_members(index, &state)?);
        }
        if let Some(manager) = &mut self.nodes[index].manager {
            manager.asked = commands.len();
        }
        for command in commands {
            self.propose(index, Purpose::Manage, command);
        }
        Ok(())
    }

    fn judge(&mut self, index: usize, state: &MemView, commands: &mut Vec<Command>) -> Result<(), Violation> {
        let now = self.now;
        let Some(manager) = &mut self.nodes[index].manager else {
            return Ok(());
        };
        for node in state.all::<Node>(&[])? {
            if node.state == NodeState::Removed {
                continue;
            }
            let alive = manager.heard(index_of(node.id), now);
            let judged = match alive {
                Some(report) => {
                    let known = node.boot == Some(report.beat.boot) && node.disk == Some(report.beat.disk);
                    (!known || node.state != node.intent.state_when_up()).then(|| {
                        Command::NodeUp(NodeUp {
                            node: node.id,
                            instance: report.beat.instance,
                            boot: report.beat.boot,
                            addresses: Addresses::default(),
                            disk: Some(report.beat.disk),
                            warehouse: None,
                        })
                    })
                }
                None => (node.state.is_up() && now >= manager.since + SILENT).then_some({
                    Command::SetNodeState(SetNodeState {
                        node: node.id,
                        boot: node.boot,
                        state: NodeState::Down,
                    })
                }),
            };
            match alive.is_some() && judged.is_none() && node.state == NodeState::Ready {
                true => _ = manager.ready_since.entry(node.id).or_insert(now),
                false => _ = manager.ready_since.remove(&node.id),
            }
            commands.extend(judged);
        }
        Ok(())
    }

    fn place_leaders(
        &mut self,
        index: usize,
        state: &MemView,
        leaving: &[ReplicaOf],
        commands: &mut Vec<Command>,
    ) -> Result<(), Violation> {
        let now = self.now;
        let nodes = state.list::<Node>(&[])?;
        let Some(manager) = &mut self.nodes[index].manager else {
            return Ok(());
        };
        let ready = nodes.iter().filter(|node| node.state == NodeState::Ready);
        let candidates: Vec<NodeId> = ready.map(|node| node.id).collect();
        let settled = |node: &NodeId| {
            manager
                .ready_since
                .get(node)
                .is_some_and(|since| now >= since + SETTLED)
        };
        let tables = state.all::<Table>(&[])?;
        let hot: BTreeSet<ShardId> = state.hot_partitions()?.iter().map(|p| p.shard).collect();
        let writers = state.all::<Writer>(&[])?;
        let early = |table: TableId| writers.iter().any(|w| w.table == table && w.acks != Acks::All);
        let load = |shard: &Arc<Shard>| {
            let leaves = |node: NodeId| leaving.contains(&ReplicaOf { shard: shard.id, node });
            let table = tables.iter().find(|table| table.id == shard.id.table);
            let stay = nodes.iter().filter(|node| !leaves(node.id));
            let may = shard.may_be_led_by(table.map(|table| &**table), stay, true);
            let has_log = table.is_some_and(|table| table.settings.wal == WalMode::Local);
            ShardLoad {
                shard: shard.id,
                able: Some(may.iter().map(|node| node.id).collect()),
                leader: shard.leader,
                last_leader: shard.last_leader.filter(|_| has_log),
                hot: hot.contains(&shard.id),
                standby: shard.standby,
                stays: early(shard.id.table),
                weight: 1,
            }
        };
        let mut problem = Problem {
            shards: state.all::<Shard>(&[])?.iter().map(load).collect(),
            evens: candidates.iter().all(settled),
            candidates,
            slack: 0,
            full: BTreeSet::new(),
        };
        self.place_standbys(index, state, &problem, commands)?;
        let Some(manager) = &mut self.nodes[index].manager else {
            return Ok(());
        };
        problem.evens &= now >= manager.balanced + SETTLED;
        for shard in &mut problem.shards {
            // After a loss of power everywhere a standby has nothing, and who led last has its log.
            let heard = |id: &NodeId| {
                let mut known = nodes.iter().filter(|node| node.id == *id);
                known.any(|node| manager.hears_as_known(node, now))
            };
            if shard.last_leader.is_some_and(|last| problem.candidates.contains(&last)) {
                shard.standby = shard.standby.filter(heard);
            }
        }
        for m in place(&problem) {
            if m.reason == tidemill_core::placement::MoveReason::Balance {
                manager.balanced = now;
            }
            let Some(shard) = state.find::<Shard>(&m.shard)? else {
                continue;
            };
            commands.push(Command::AssignLeader(AssignLeader {
                shard: m.shard,
                replaces: shard.epoch,
                leader: m.to,
                because: format!("{:?}", m.reason),
            }));
        }
        Ok(())
    }

    /// Gives shards the standbys that they shall have, and takes away those that they shall not.
    fn place_standbys(
        &self,
        index: usize,
        state: &MemView,
        problem: &Problem,
        commands: &mut Vec<Command>,
    ) -> Result<(), Violation> {
        let Some(manager) = &self.nodes[index].manager else {
            return Ok(());
        };
        for change in standby::choose(problem) {
            let Some(shard) = state.find::<Shard>(&change.shard)? else {
                continue;
            };
            let report = shard
                .leader
                .and_then(|leader| manager.heard(index_of(leader), self.now));
            let is_led = report.is_some_and(|report| report.beat.led.contains(&(shard.id, shard.epoch)));
            // A leader that has not been started again yet may be the one whose log has the rows.
            if change.to.is_some() && !is_led {
                continue;
            }
            commands.push(Command::AssignStandby(AssignStandby {
                shard: shard.id,
                epoch: shard.epoch,
                node: change.to,
            }));
        }
        Ok(())
    }

    /// Takes up partitions that the topic has and the pipe has not.
    fn grow(&mut self, index: usize, state: &MemView, commands: &mut Vec<Command>) -> Result<(), Violation> {
        let now = self.now;
        let Some(manager) = self.nodes[index]
            .manager
            .as_mut()
            .filter(|m| now >= m.grown + 2 * SECOND)
        else {
            return Ok(());
        };
        manager.grown = now;
        for pipe in state.all::<Pipe>(&[])? {
            let reads = pipe.source.kafka().is_some() && pipe.state == PipeState::Running;
            if !reads || pipe.topic.is_some_and(|topic| topic != self.topic.id) {
                continue;
            }
            let known = state.partitions_of(pipe.id)?.len();
            let new = known..self.topic.logs.len();
            let partitions: Vec<_> = new.map(|n| (PartitionId(n as u32), Offset(0))).collect();
            if !partitions.is_empty() {
                let pipe = pipe.id;
                commands.push(Command::AddPartitions(AddPartitions { pipe, partitions }));
            }
        }
        Ok(())
    }

    /// Lets nodes keep the files of shards, or not any more. Gives those that lead what they shall not keep.
    fn place_replicas(
        &self,
        index: usize,
        state: &MemView,
        commands: &mut Vec<Command>,
    ) -> Result<Vec<ReplicaOf>, Violation> {
        let nodes = state.list::<Node>(&[])?;
        let manager = self.nodes[index].manager.as_ref();
        let heard = |node: &Node| manager.is_some_and(|manager| manager.hears_as_known(node, self.now));
        let Some(problem) = replication::Problem::of(state, &nodes, heard, true)? else {
            return Ok(Vec::new());
        };
        let mut leaving = Vec::new();
        for change in replication::changes(&problem).into_iter().take(8) {
            match change {
                Change::Add(of) => commands.push(Command::AddReplica(of)),
                Change::Drop(of) => {
                    let shard = problem.shards.iter().find(|shard| shard.id == of.shard);
                    let leads = shard.is_some_and(|shard| shard.leader == Some(of.node));
                    let ready = |node: &NodeId| nodes.iter().any(|n| n.id == *node && n.state == NodeState::Ready);
                    let mut others = shard.into_iter().flat_map(Shard::ready_replicas);
                    match leads {
                        true if others.any(|node| node != of.node && ready(&node)) => leaving.push(of),
                        true => {}
                        false => commands.push(Command::DropReplica(of)),
                    }
                }
            }
        }
        Ok(leaving)
    }
}
