//! What a node does for the files that it keeps: it takes them, copies what it lacks, says what it has, and deletes what
//! nobody needs.

use crate::event::{Body, Duty, Event};
use crate::mutant::Mutant;
use crate::node::{KEEP, Kept, Purpose, index_of};
use crate::seeds::Violation;
use crate::world::World;
use tidemill_core::catalog::*;
use tidemill_core::command::{ReplicaOf, SetHoldings};
use tidemill_core::view::{CatalogRead, Key, MemView};
use tidemill_core::{Command, PartId, Version};

impl World {
    /// A file comes to a disk.
    pub fn put(&mut self, index: usize, part: PartId, asked: Option<usize>) {
        let mutant = self.mutant;
        let node = &mut self.nodes[index];
        if node.full {
            return;
        }
        let (boot, holder) = (node.boot, node.holder());
        match node.stored.get_mut(&part) {
            Some(kept) if kept.broken => *kept = Kept::default(),
            _ => _ = node.stored.entry(part).or_default(),
        }
        let time = node.sync_time(&mut self.dice);
        if mutant == Some(Mutant::AcknowledgesBeforeFsync)
            && let Some(to) = asked
        {
            self.send(index, to, Body::HasPut { part, holder });
        }
        self.after(time, Event::Duty(index, boot, Duty::Synced(part, asked)));
    }

    /// Copies what is missing, says what is there, and deletes what nobody needs.
    pub fn keep(&mut self, index: usize) -> Result<(), Violation> {
        let (state, me) = (self.nodes[index].state.clone(), self.nodes[index].holder());
        let known = state.find::<tidemill_core::catalog::Node>(&me.node)?;
        if known.is_none_or(|known| known.disk != Some(me.disk)) {
            return Ok(());
        }
        let (mut holds, mut lost) = (Vec::new(), Vec::new());
        for shard in state.all::<Shard>(&[])? {
            let Some(replica) = shard.replica(me.node).copied() else {
                continue;
            };
            let mut missing = 0;
            for copies in state.all::<Copies>(&shard.id.bytes())? {
                let kept = self.nodes[index].stored.get(&copies.part).copied();
                let is_there = kept.is_some_and(|kept| kept.is_sound());
                if copies.on(me) {
                    if kept.is_none_or(|kept| kept.broken) {
                        lost.push((shard.id, copies.part, "it is damaged".to_owned()));
                    }
                    continue;
                }
                missing += 1;
                if is_there {
                    holds.push((shard.id, copies.part));
                } else if let Some(source) = self.dice.pick(&copies.holders).copied() {
                    let from = index_of(source.node);
                    self.send(index, from, Body::Fetch(copies.part));
                }
            }
            if missing == 0 && replica.state == ReplicaState::Copying {
                let of = ReplicaOf {
                    shard: shard.id,
                    node: me.node,
                };
                self.propose(index, Purpose::Keep, Command::CompleteReplica(of));
            }
        }
        if !holds.is_empty() || !lost.is_empty() {
            let seen = Version(self.nodes[index].applied as u64);
            let holdings = SetHoldings {
                disk: me,
                seen,
                holds,
                lost,
            };
            self.propose(index, Purpose::Keep, Command::SetHoldings(holdings));
        }
        if self.now >= self.nodes[index].swept + KEEP {
            self.nodes[index].swept = self.now;
            self.sweep(index)?;
        }
        Ok(())
    }

    /// Deletes files that no commit can name any more, by a linearizable state.
    fn sweep(&mut self, index: usize) -> Result<(), Violation> {
        if self.read_index(index).is_none() {
            return Ok(());
        }
        let state = self.group.tip();
        self.sweep_by(index, &state)
    }

    fn sweep_by(&mut self, index: usize, state: &MemView) -> Result<(), Violation> {
        let me = self.nodes[index].id;
        let there: Vec<PartId> = self.nodes[index].stored.keys().copied().collect();
        for part in there {
            let Some((of, epoch)) = self.files.get(&part).map(|contents| contents.of) else {
                continue;
            };
            let shard = state.find::<Shard>(&of)?;
            let keeps = shard.as_ref().is_some_and(|shard| shard.replica(me).is_some());
            let young = self.mutant == Some(Mutant::YoungFilesAreDeleted);
            let gone = match state.find::<Copies>(&(of, part))? {
                Some(_) => !keeps,
                None => young || shard.is_none_or(|shard| shard.epoch > epoch),
            };
            if gone {
                self.nodes[index].stored.remove(&part);
            }
        }
        Ok(())
    }
}
