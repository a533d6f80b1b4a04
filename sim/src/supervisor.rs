//! Which tasks a node runs, by what the catalog says, and what tasks want done.
//!
//! A model of `node/src/supervisor.rs` and `node/src/wal.rs`.

use crate::event::Body;
use crate::mutant::Mutant;
use crate::node::{Purpose, index_of};
use crate::seeds::Violation;
use crate::task::{Task, Wanted, Wish};
use crate::time::{SECOND, Time};
use crate::wal::Wal;
use crate::world::{World, tell};
use std::collections::BTreeMap;
use tidemill_core::catalog::*;
use tidemill_core::view::{CatalogRead, Key, MemView};
use tidemill_core::{Command, Epoch, ShardId, Version};

/// How long a node may hear of no manager before it stops all tasks.
const ALONE: Time = 5 * SECOND;

impl World {
    /// Starts and ends tasks by what the catalog says.
    pub fn supervise(&mut self, index: usize) -> Result<(), Violation> {
        let node = &mut self.nodes[index];
        if self.now >= node.contact + ALONE {
            // What they have under way may be decided when this node leads again: that is another run, as the catalog sees it.
            node.silences += u64::from(!node.tasks.is_empty());
            node.tasks.clear();
            (node.supervised, node.follows) = (None, None);
            return Ok(());
        }
        let mut tasks = node.tasks.values();
        let looks = tasks.any(|task| task.ended || task.wants_more() || task.epoch.is_none());
        if node.supervised == Some(node.applied) && !looks {
            return Ok(());
        }
        node.supervised = Some(node.applied);
        let state = node.state.clone();
        if self.end_if_removed(index, &state)? {
            return Ok(());
        }
        let node = &mut self.nodes[index];
        let known = state.find::<tidemill_core::catalog::Node>(&node.id)?;
        if known.is_none_or(|known| known.boot != Some(node.boot_id())) {
            (node.tasks, node.follows) = (BTreeMap::new(), None);
            return Ok(());
        }
        node.follows = Some(Version(node.applied as u64));
        trim(&mut node.wal, &state)?;
        let mut wanted = BTreeMap::new();
        for shard in state.all::<Shard>(&[])? {
            if shard.leader == Some(node.id) {
                wanted.insert(shard.id, Some(shard.epoch));
            } else if shard.standby == Some(node.id) {
                wanted.insert(shard.id, None);
            }
        }
        let serves = self.mutant == Some(Mutant::OldLeaderServes);
        node.tasks.retain(|shard, task| {
            // Whoever stands by may lead next; whoever led in another epoch, or leads no more, ends.
            let fits = |wanted: &Option<Epoch>| task.epoch.is_none() || task.epoch == *wanted;
            (wanted.get(shard).is_some_and(fits) || serves) && !task.ended
        });
        for (shard, epoch) in wanted {
            self.run_task(index, &state, shard, epoch)?;
        }
        Ok(())
    }

    /// Has a task lead `shard` in `epoch`, or stand by without one.
    fn run_task(
        &mut self,
        index: usize,
        state: &MemView,
        shard: ShardId,
        epoch: Option<Epoch>,
    ) -> Result<(), Violation> {
        let flush_age = self.flush_age;
        let Some(table) = state.find::<Table>(&shard.table)? else {
            return Ok(());
        };
        let mut of_shard = Vec::new();
        for pipe in state.all::<Pipe>(&[])? {
            if pipe.table != shard.table || pipe.state == PipeState::Paused {
                continue;
            }
            let mut partitions = state.all::<SourcePartition>(&pipe.id.bytes())?;
            partitions.retain(|p| p.shard == shard);
            let mut writers = state.all::<Writer>(&[])?;
            writers.retain(|writer| writer.pipe == pipe.id);
            of_shard.push(Wanted {
                pipe,
                partitions,
                writers,
            });
        }
        let kept = self.with_hands(index, |node, hands| {
            let task = node.tasks.entry(shard);
            let task = task.or_insert_with(|| Task::new(shard, epoch, flush_age));
            let takes_over = epoch.filter(|_| task.epoch.is_none());
            let kept = takes_over.map(|epoch| task.take_over(epoch, &of_shard, hands));
            task.reconcile(&table, of_shard, hands);
            (kept, std::mem::take(&mut task.replayed))
        });
        let (kept, replayed) = kept;
        if replayed > 0 {
            *self.tally.acts.entry("log replayed").or_default() += replayed;
        }
        if let Some(kept) = kept {
            tell!(self, "n{} takes over {shard} with {kept} histories", index + 1);
            *self.tally.acts.entry("standby takes over").or_default() += u64::from(kept > 0);
        }
        Ok(())
    }

    /// Does what a task wants done.
    pub fn grant(&mut self, index: usize, shard: ShardId, wishes: Vec<Wish>) {
        let Some(epoch) = self.nodes[index].tasks.get(&shard).and_then(|task| task.epoch) else {
            return;
        };
        for wish in wishes {
            match wish {
                Wish::Put(part) => {
                    let state = self.nodes[index].state.clone();
                    let replicas = state
                        .find::<Shard>(&shard)
                        .ok()
                        .flatten()
                        .map_or(vec![], |shard| shard.replicas.clone());
                    for replica in replicas {
                        let to = index_of(replica.node);
                        self.send(index, to, Body::Put(part));
                        if self.mutant == Some(Mutant::CommitsBeforePut) {
                            let holder = self.nodes[to].holder();
                            let task = self.nodes[index].tasks.get_mut(&shard);
                            task.into_iter().for_each(|task| task.is_put(part, holder));
                        }
                    }
                }
                Wish::Commit(commit) => {
                    let purpose = Purpose::Commit(shard, epoch, commit.commit);
                    self.propose(index, purpose, Command::CommitPart(commit));
                }
                Wish::Stop(stop) => {
                    let purpose = Purpose::Stop(shard, epoch, stop.key);
                    self.propose(index, purpose, Command::StopPartition(stop));
                }
                Wish::Answer(from, answer) => self.reply(index, from, answer),
            }
        }
    }
}

/// Forgets what of a log is committed, and what can never be.
fn trim(wal: &mut Wal, state: &MemView) -> Result<(), Violation> {
    for (shard, pipe, partition) in wal.places() {
        match state.find::<SourcePartition>(&(pipe, partition))? {
            Some(p) if p.shard == shard => wal.trim((shard, pipe, partition), p.key(), p.offset),
            _ => wal.drop_lane((shard, pipe, partition)),
        }
    }
    Ok(())
}
