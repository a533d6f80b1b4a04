//! What the world knows of a command, and the catalog does not: which disks have which files, what was promised to whom.

use crate::client::REPAIR;
use crate::node::index_of;
use crate::oracle::{Early, Promise, committed_ids};
use crate::seeds::Violation;
use crate::source::{Loss, RecordId, Slot};
use crate::time::{MS, SECOND};
use crate::world::World;
use tidemill_core::catalog::{Acks, CatalogQuestions, Copies, Node, NodeState, Shard, SourcePartition, Table, Writer};
use tidemill_core::command::PassGap;
use tidemill_core::view::{CatalogRead, Key, MemView};
use tidemill_core::{Command, NodeId, PartId, ShardId};

impl World {
    /// What the world knows of a command, and the catalog does not.
    pub fn check_command(&mut self, command: &Command, before: &MemView, after: &MemView) -> Result<(), Violation> {
        match command {
            Command::CommitPart(commit) => {
                for file in commit.files() {
                    self.check_held(commit.shard, file.id, after)?;
                }
                self.oracle.check_commit(commit, before, &self.files, &self.topic)?;
            }
            Command::AddReplica(of) | Command::CompleteReplica(of) => {
                let ready = after.find::<Shard>(&of.shard)?;
                if ready.is_some_and(|shard| shard.ready_replicas().any(|node| node == of.node)) {
                    for copies in after.all::<Copies>(&of.shard.bytes())? {
                        self.check_held(of.shard, copies.part, after)?;
                    }
                }
            }
            Command::SetHoldings(holdings) => {
                for (shard, part) in &holdings.holds {
                    self.check_held(*shard, *part, after)?;
                }
            }
            Command::PassGap(pass) => self.check_gap(pass, before)?,
            Command::RemoveNode(gone) => self.check_removed(gone.node, before)?,
            Command::DropPipe(dropped) => self.pipe_is_dropped(&dropped.name, before)?,
            Command::CreatePipe(_) => self.left.clear(),
            Command::ResetOffsets(reset) => {
                let Some(pipe) = before.pipe_named(&reset.name)? else {
                    return Ok(());
                };
                // Whoever asks at the moment may see what was before.
                self.queries.clear();
                self.oracle.forget_seen();
                for target in &reset.targets {
                    let place = (pipe.id, target.partition);
                    let Some(old) = before.find::<SourcePartition>(&place)? else {
                        continue;
                    };
                    let partition = target.partition.0 as usize;
                    let log = self.topic.logs.get(partition);
                    let (from, to) = (old.offset.0, target.to.map_or(0, |to| to.0));
                    for slot in (from..to).filter_map(|offset| log.and_then(|log| log.slot(offset))) {
                        if let Slot::Record { id, .. } = slot {
                            self.oracle.given_up.insert(id);
                        }
                    }
                    if reset.because == REPAIR {
                        continue;
                    }
                    // An operator who says where to go on takes the log as it is: that it was cut before, and what has grown
                    // there below, nobody is asked; nor what grows there when it was cut since he looked. A repair has to know.
                    let end = log.map_or(0, |log| log.high());
                    let diverged = match self.topic.read(partition, from, old.source_epoch, None, 0) {
                        Err(Loss::Truncated { diverged, .. }) => diverged,
                        _ => end,
                    };
                    self.topic.blind.push((partition, diverged..to));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// DUR-1: who leads has nothing of what is passed over, nor of what is behind: it would be forgotten, and has been shown.
    fn check_passed_is_missing(&self, pass: &PassGap, writer: &Writer, before: &MemView) -> Result<(), Violation> {
        let id = ShardId {
            table: writer.table,
            index: pass.shard,
        };
        let (Some(shard), Some(table)) = (before.find::<Shard>(&id)?, before.find::<Table>(&writer.table)?) else {
            return Ok(());
        };
        let leads = |node: &&crate::node::Node| shard.leader == Some(node.id);
        let task = self.nodes.iter().find(leads).and_then(|node| node.tasks.get(&id));
        let task = task.filter(|task| task.epoch == Some(shard.epoch));
        let place = writer
            .partition(&table, pass.shard)
            .map(|partition| (writer.pipe, partition));
        match task.zip(place).and_then(|(task, place)| task.has_rows_of(place)) {
            Some((from, to)) => {
                let what = format!("{pass:?} passes over what the leader of {id} has: {from}..{to}");
                Err(Violation::new("DUR-1", what))
            }
            None => Ok(()),
        }
    }

    /// DUR-1: what is passed over of what a log had is gone with the disk of that log, or was away with its node.
    fn check_gap(&mut self, pass: &PassGap, before: &MemView) -> Result<(), Violation> {
        let writer = before.find::<Writer>(&pass.writer)?;
        let Some(writer) = writer else {
            return Ok(());
        };
        let (now, calm) = (self.now, self.healed && self.now > self.healed_at() + 8 * SECOND);
        if writer.acks == Acks::Leader {
            self.check_passed_is_missing(pass, &writer, before)?;
        }
        let Some(client) = self.clients.iter().find(|client| client.token == writer.token) else {
            return Ok(());
        };
        *self.tally.acts.entry("rows passed over").or_default() += pass.to.0 - pass.from.0;
        for number in pass.from.0..pass.to.0 {
            let Some(id) = client.row(number) else {
                let what = format!(
                    "row {number} of writer {} was never acknowledged, and is counted as lost",
                    writer.id
                );
                return Err(Violation::new("DUR-1", what));
            };
            let Some(early) = self.oracle.early.get_mut(&id) else {
                continue;
            };
            early.passed = true;
            let node = &self.nodes[early.node];
            let lost = node.wipes > early.wipes;
            let has = node.wal.has_row(id);
            // A node that is removed while it is not heard takes along what only it has; see `check_removed` for others.
            let removed = before
                .find::<Node>(&node.id)?
                .is_none_or(|node| node.state == NodeState::Removed);
            if removed {
                continue;
            }
            if early.logged && !lost && (!has || calm) {
                let what = format!(
                    "row {id} was acknowledged from the log of node {}, which was not lost and has it: {has}, and is passed over \
                     at {now}",
                    node.id
                );
                return Err(Violation::new("DUR-1", what));
            }
        }
        Ok(())
    }

    /// DUR-1: a node that is heard is not removed with acknowledged rows in its log that nobody else has.
    fn check_removed(&mut self, id: NodeId, before: &MemView) -> Result<(), Violation> {
        let index = index_of(id);
        let manager = self.group.leader.and_then(|leader| self.nodes[leader].manager.as_ref());
        let heard = manager.map_or(0, |manager| manager.heard_for(index, self.now));
        // Whoever is heard again after a pause may have been told to go in that pause.
        if heard < 2 * SECOND {
            return Ok(());
        }
        let committed = committed_ids(before, &self.files)?;
        let node = &self.nodes[index];
        let only_there = |(row, early): &(&RecordId, &Early)| {
            let kept = early.node == index && early.logged && !early.passed && node.wal.has_row(**row);
            kept && committed.binary_search(row).is_err()
        };
        match self.oracle.early.iter().find(only_there) {
            None => Ok(()),
            Some((row, early)) => {
                let what = format!("node {id} is removed, and only its log has row {row}: {early:?}");
                Err(Violation::new("DUR-1", what))
            }
        }
    }

    /// What a program was told is remembered; if it is early, it must be in the log.
    pub fn acknowledged(&mut self, promise: Promise) -> Result<(), Violation> {
        if promise.acks == Acks::All {
            self.oracle.acknowledge(promise.rows.iter().copied());
            return Ok(());
        }
        let tip = self.group.tip();
        let node = &self.nodes[promise.node];
        let just_lost = self.now < node.wiped_at + 5 * MS;
        let logged = promise.acks == Acks::Leader && !just_lost;
        let mut committed = None;
        for (number, id) in (promise.first..).zip(&promise.rows) {
            if logged && !node.wal.has_row(*id) {
                let committed = match &mut committed {
                    Some(committed) => committed,
                    None => committed.insert(committed_ids(&tip, &self.files)?),
                };
                if committed.binary_search(id).is_err() {
                    let what = format!(
                        "row {id} ({number}) is acknowledged and neither logged by node {} nor committed",
                        node.id
                    );
                    return Err(Violation::new("DUR-1", what));
                }
            }
            let early = Early {
                node: promise.node,
                epoch: promise.epoch,
                shard: promise.shard,
                at: self.now,
                wipes: promise.wipes,
                logged,
                passed: false,
            };
            self.oracle.early.insert(*id, early);
        }
        Ok(())
    }

    /// CAT-1: a disk that the catalog names for a file has it, whole and synced, unless we have broken it ourselves.
    fn check_held(&self, shard: ShardId, part: PartId, state: &MemView) -> Result<(), Violation> {
        let Some(copies) = state.find::<Copies>(&(shard, part))? else {
            return Ok(());
        };
        for holder in &copies.holders {
            let node = &self.nodes[index_of(holder.node)];
            if node.disk != holder.disk || node.gone {
                continue;
            }
            let kept = node.stored.get(&part);
            if kept.is_none_or(|kept| !kept.durable && !kept.broken) && !node.broken.contains(&part) {
                let what = format!("node {} is said to hold {part}, and has {kept:?}", holder.node);
                return Err(Violation::new("CAT-1", what));
            }
        }
        Ok(())
    }
}
