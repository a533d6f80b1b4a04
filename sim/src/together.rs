//! Faults that bring about something only together: logs that are cut while their readers stand still, shards that move, nodes that
//! leave and stay after all.

use crate::event::Event;
use crate::nemesis::Fault;
use crate::node::{Purpose, index_of};
use crate::oracle::Early;
use crate::seeds::Violation;
use crate::source::RecordId;
use crate::time::MS;
use crate::world::World;
use std::sync::Arc;
use tidemill_core::catalog::{CatalogQuestions, NodeIntent, NodeState, Shard, SourcePartition};
use tidemill_core::command::{AssignLeader, SetNodeIntent};
use tidemill_core::stop::StopReason;
use tidemill_core::view::CatalogRead;
use tidemill_core::{Command, NodeId, ShardId};

impl World {
    /// A broker that lacks the newest records leads.
    pub fn cut_some_log(&mut self) -> Result<(), Violation> {
        let partition = self.dice.below(self.topic.logs.len());
        let high = self.topic.logs[partition].high();
        // One that has been cut, and waits for its repair, is cut deeper rather often, and has grown beyond when it is repaired.
        let again = self.stopped_partition()?.filter(|_| self.dice.one_in(2));
        let (partition, from, grows) = match again {
            Some((partition, diverged)) => {
                let from = diverged.saturating_sub(self.dice.between(1, 12));
                (partition, from, true)
            }
            None => {
                let from = high.saturating_sub(self.dice.between(1, 25));
                (partition, from, self.dice.one_in(2))
            }
        };
        self.cut_log(partition, from)?;
        if grows {
            (0..self.dice.between(15, 60)).for_each(|_| self.topic.append(partition, false));
        }
        Ok(())
    }

    fn cut_log(&mut self, partition: usize, from: u64) -> Result<(), Violation> {
        let left = self.left.iter();
        let mut left = left.filter(|p| p.partition.0 as usize == partition && p.offset.0 > from);
        if let Some(p) = left.next() {
            // Nobody reads: whoever does next is told where to begin.
            self.topic.blind.push((partition, from..p.offset.0));
        }
        // Who was told where to begin, and has committed nothing since, has no epoch to compare.
        let tip = self.group.tip();
        for pipe in tip.all::<tidemill_core::catalog::Pipe>(&[])? {
            let places = tip.partitions_of(pipe.id)?;
            let mut places = places.into_iter().filter(|p| p.partition.0 as usize == partition);
            let place = places.next().filter(|_| pipe.source.kafka().is_some());
            if let Some(p) = place.filter(|p| p.source_epoch.is_none() && p.offset.0 > from) {
                self.topic.blind.push((partition, from..p.offset.0));
            }
        }
        self.topic.truncate(partition, from);
        Ok(())
    }

    /// A manager takes a leader for one that stands still, that of `which` if it is said. The shard goes to a node that may lead.
    pub fn move_some_shard(&mut self, which: Option<ShardId>, may: impl Fn(NodeId) -> bool) -> Result<bool, Violation> {
        let tip = self.group.tip();
        let shards = tip.all::<Shard>(&[])?;
        let wanted = |shard: &&Arc<Shard>| shard.leader.is_some() && which.is_none_or(|id| id == shard.id);
        let shards: Vec<_> = shards.iter().filter(wanted).collect();
        let (Some(shard), Some(manager)) = (self.dice.pick(&shards).copied(), self.group.leader) else {
            return Ok(false);
        };
        let mut able = Vec::new();
        for node in shard.ready_replicas() {
            let known = tip.find::<tidemill_core::catalog::Node>(&node)?;
            let ready = known.is_some_and(|known| known.state == NodeState::Ready);
            if ready && shard.leader != Some(node) && may(node) {
                able.push(node);
            }
        }
        let Some(to) = self.dice.pick(&able).copied() else {
            return Ok(false);
        };
        let command = Command::AssignLeader(AssignLeader {
            shard: shard.id,
            replaces: shard.epoch,
            leader: Some(to),
            because: "it stands still".into(),
        });
        self.propose(manager, Purpose::Operate, command);
        Ok(true)
    }

    /// A standby does not reach the brokers; the log is cut below what it has read, and grows; a leader that has not read that
    /// leads, commits and is lost.
    pub fn make_stale(&mut self, index: usize) -> Result<bool, Violation> {
        let (tip, me) = (self.group.tip(), self.nodes[index].id);
        let shards = tip.all::<Shard>(&[])?;
        let Some(shard) = shards.iter().find(|shard| shard.standby == Some(me)) else {
            return Ok(false);
        };
        let all = tip.all::<SourcePartition>(&[])?;
        let mine = |p: &&Arc<SourcePartition>| p.shard == shard.id && p.topic.is_some() && p.stop.is_none();
        let mine: Vec<_> = all.iter().filter(mine).collect();
        let Some(p) = self.dice.pick(&mine).copied() else {
            return Ok(false);
        };
        let n = p.partition.0 as usize;
        let Some(high) = self
            .topic
            .logs
            .get(n)
            .map(|log| log.high())
            .filter(|high| *high > p.offset.0 + 2)
        else {
            return Ok(false);
        };
        self.nodes[index].reads_nothing = true;
        let from = self.dice.between(p.offset.0, high);
        self.cut_log(n, from)?;
        (0..self.dice.between(15, 40)).for_each(|_| self.topic.append(n, false));
        self.move_some_shard(Some(shard.id), |to| to != me)?;
        let time = self.flush_age + self.dice.between(200, 1_500) * MS;
        self.after(time, Event::LoseLeader(shard.id));
        Ok(true)
    }

    /// A leader is killed whose write-ahead log has rows that are not committed. The source's log is cut below them, and has not
    /// grown beyond them when the next leader reads and commits; that one is lost, and the first leads again.
    pub fn make_log_stale(&mut self, index: usize) -> Result<bool, Violation> {
        let (tip, me) = (self.group.tip(), self.nodes[index].id);
        if !self.nodes[index].up {
            return Ok(false);
        }
        let mut logged = Vec::new();
        for p in tip.all::<SourcePartition>(&[])? {
            let leads = tip
                .find::<Shard>(&p.shard)?
                .is_some_and(|shard| shard.leader == Some(me));
            let is_read = p.topic == Some(self.topic.id) && p.stop.is_none();
            let (pieces, _) = self.nodes[index].wal.recover(p.shard, p.key(), p.offset);
            let end = pieces.last().map_or(0, |piece| piece.span.end.0);
            if leads && is_read && end > p.offset.0 + 2 {
                logged.push((p, end));
            }
        }
        let Some((p, end)) = self.dice.pick(&logged).cloned() else {
            return Ok(false);
        };
        self.kill(index);
        let n = p.partition.0 as usize;
        let from = self.dice.between(p.offset.0, end - 1);
        self.cut_log(n, from)?;
        (from..self.dice.between(from, end)).for_each(|_| self.topic.append(n, false));
        self.quiet = Some(n);
        self.move_some_shard(Some(p.shard), |to| to != me)?;
        let time = self.flush_age + self.dice.between(300, 2_000) * MS;
        self.after(time, Event::ShowStaleLog(index, p.shard));
        Ok(true)
    }

    /// See [`Self::make_log_stale`].
    pub fn show_stale_log(&mut self, index: usize, shard: ShardId) -> Result<(), Violation> {
        if let Some(n) = self.quiet.take() {
            (0..self.dice.between(15, 60)).for_each(|_| self.topic.append(n, false));
        }
        self.lose_leader(shard)?;
        self.start(index)?;
        let time = self.dice.between(50, 800) * MS;
        self.after(time, Event::Lead(shard, self.nodes[index].id));
        Ok(())
    }

    /// Who leads a shard is killed.
    pub fn lose_leader(&mut self, shard: ShardId) -> Result<(), Violation> {
        let tip = self.group.tip();
        let leader = tip.find::<Shard>(&shard)?.and_then(|shard| shard.leader);
        match leader.filter(|_| !self.healed) {
            Some(leader) => self.begin_for_a_while(Fault::Kill(index_of(leader))),
            None => Ok(()),
        }
    }

    /// A node with acknowledged rows that only its log has is killed, and what others say of them will be late.
    pub fn hide_log(&mut self, index: usize) -> bool {
        if !self.nodes[index].up || self.hidden_shard(index).is_none() {
            return false;
        }
        self.late_gaps = true;
        self.kill(index);
        true
    }

    /// It is back, offers its rows, and may lead their shard soon.
    pub fn show_log(&mut self, index: usize) -> Result<(), Violation> {
        self.late_gaps = false;
        if let Some(shard) = self.hidden_shard(index).filter(|_| self.dice.one_in(2)) {
            let time = self.dice.between(500, 3_000) * MS;
            self.after(time, Event::Lead(shard, self.nodes[index].id));
        }
        self.start(index)
    }

    /// A shard of which a node has acknowledged rows in its log that are not given up.
    fn hidden_shard(&self, index: usize) -> Option<ShardId> {
        let node = &self.nodes[index];
        let kept = |(id, early): &(&RecordId, &Early)| {
            early.node == index && early.logged && !early.passed && node.wal.has_row(**id)
        };
        self.oracle.early.iter().rev().find(kept).map(|(_, early)| early.shard)
    }

    pub fn tell_to_leave_and_stay(&mut self, index: usize) -> bool {
        let Some(at) = self.some_node() else {
            return false;
        };
        if self.nodes[index].gone || self.nodes[index].joining || !self.may_shrink() {
            return false;
        }
        let node = self.nodes[index].id;
        self.intend(at, node, NodeIntent::Leave);
        let time = self.dice.between(300, 1_500) * MS;
        self.after(time, Event::Stay(node));
        true
    }

    /// See [`Fault::LateBeats`].
    pub fn repeat_beats(&mut self, index: usize) -> Result<bool, Violation> {
        let node = &self.nodes[index];
        let me = node.id;
        if node.handed_over.is_none() || !node.up || self.late_beats.is_some() || !self.may_shrink() {
            return Ok(false);
        }
        if !self.move_some_shard(None, |to| to == me)? {
            return Ok(false);
        }
        self.late_beats = Some(index);
        let time = self.dice.between(300, 2_000) * MS;
        self.after(time, Event::LeaveAndDie(index));
        Ok(true)
    }

    /// See [`Self::repeat_beats`].
    pub fn leave_and_die(&mut self, index: usize) -> Result<(), Violation> {
        let Some(at) = self.some_node().filter(|_| !self.healed) else {
            return Ok(());
        };
        self.intend(at, self.nodes[index].id, NodeIntent::Leave);
        self.begin_for_a_while(Fault::Kill(index))
    }

    /// An operator thinks better of it.
    pub fn stay(&mut self, node: NodeId) {
        if let Some(at) = self.some_node() {
            self.intend(at, node, NodeIntent::Serve);
        }
    }

    /// An operator asks node `at` for it.
    fn intend(&mut self, at: usize, node: NodeId, intent: NodeIntent) {
        let command = Command::SetNodeIntent(SetNodeIntent { node, intent });
        self.propose(at, Purpose::Operate, command);
    }

    /// A partition that has stopped because its log was cut, and where that differs.
    fn stopped_partition(&mut self) -> Result<Option<(usize, u64)>, Violation> {
        let all = self.group.tip().all::<SourcePartition>(&[])?;
        let cut = |p: &Arc<SourcePartition>| match p.stop.as_ref().map(|stop| &stop.reason) {
            Some(StopReason::Truncated { diverged, .. }) => Some((p.partition.0 as usize, (*diverged)?.0)),
            _ => None,
        };
        let cut = all.iter().filter_map(cut);
        let cut: Vec<(usize, u64)> = cut.filter(|(n, _)| *n < self.topic.logs.len()).collect();
        Ok(self.dice.pick(&cut).copied())
    }
}
