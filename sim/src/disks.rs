//! What happens to disks, as far as replication is there to stand it.

use crate::node::{Kept, Node, Purpose, index_of};
use crate::seeds::Violation;
use crate::time::SECOND;
use crate::world::{World, tell};
use tidemill_core::catalog::{Copies, Holder, Replica, ReplicaState, Shard};
use tidemill_core::command::ReplicaOf;
use tidemill_core::view::{CatalogRead, Key, MemView};
use tidemill_core::{Command, DiskId, PartId};

impl World {
    /// Whether everything on the disk of a node is elsewhere too.
    pub fn may_lose_disk(&self, index: usize) -> Result<bool, Violation> {
        let state = self.group.tip();
        for shard in state.all::<Shard>(&[])? {
            for copies in state.all::<Copies>(&shard.id.bytes())? {
                if self.sound_elsewhere(&shard, &copies, index) < 1 {
                    return Ok(false);
                }
            }
        }
        for part in self.nodes[index].stored.keys() {
            if self.is_on_its_way_alone(*part, index, &state)? {
                return Ok(false);
            }
        }
        // One disk at a time, and the others must be there: what is on its way to them may be nowhere else.
        let whole = |node: &Node| node.gone || (node.up && node.broken.is_empty());
        Ok(self.now >= 6 * SECOND && !self.nodes[index].gone && self.nodes.iter().all(whole))
    }

    /// A node loses its disk for part files. Its process ends, and comes back.
    pub fn wipe(&mut self, index: usize) -> Result<bool, Violation> {
        if !self.may_lose_disk(index)? {
            return Ok(false);
        }
        self.kill(index);
        let disk = DiskId(self.dice.id());
        let node = &mut self.nodes[index];
        node.stored.clear();
        node.broken.clear();
        node.disk = disk;
        tell!(self, "n{} has another disk", index + 1);
        if self.dice.one_in(2) {
            let node = &mut self.nodes[index];
            node.wal.wipe();
            (node.wipes, node.wiped_at) = (node.wipes + 1, self.now);
            *self.tally.acts.entry("log lost with a disk").or_default() += 1;
        }
        Ok(true)
    }

    /// A manager has a node give up the replicas that are not complete yet; it will have it begin anew.
    pub fn give_up_copies(&mut self, index: usize) -> Result<(), Violation> {
        self.late_claims = false;
        let (tip, node) = (self.group.tip(), self.nodes[index].id);
        for shard in tip.all::<Shard>(&[])? {
            let copies = |replica: &Replica| replica.state == ReplicaState::Copying;
            if let Some(manager) = self.group.leader.filter(|_| shard.replica(node).is_some_and(copies)) {
                let of = ReplicaOf { shard: shard.id, node };
                self.propose(manager, Purpose::Operate, Command::DropReplica(of));
            }
        }
        Ok(())
    }

    /// Whether a commit may be on its way of a file that only this disk has: until the catalog hears of another disk, it
    /// counts this one.
    fn is_on_its_way_alone(&self, part: PartId, index: usize, state: &MemView) -> Result<bool, Violation> {
        let Some((of, epoch)) = self.files.get(&part).map(|contents| contents.of) else {
            return Ok(false);
        };
        let Some(shard) = state.find::<Shard>(&of)?.filter(|shard| shard.epoch == epoch) else {
            return Ok(false);
        };
        let has = |node: &Node| node.index != index && keeps(node, &shard, part);
        let is_committed = state.find::<Copies>(&(of, part))?.is_some();
        Ok(!is_committed && !self.nodes.iter().any(has))
    }

    /// How many disks but that of `index` have the file, by the catalog and in truth.
    fn sound_elsewhere(&self, shard: &Shard, copies: &Copies, index: usize) -> usize {
        let sound = |other: &&Holder| {
            let node = &self.nodes[index_of(other.node)];
            node.index != index && node.disk == other.disk && keeps(node, shard, copies.part)
        };
        copies.holders.iter().filter(sound).count()
    }

    /// Bytes change in a file that another disk has too.
    pub fn corrupt(&mut self) -> Result<bool, Violation> {
        let state = self.group.tip();
        let mut all = Vec::new();
        for shard in state.all::<Shard>(&[])? {
            let copies = state.all::<Copies>(&shard.id.bytes())?;
            all.extend(copies.into_iter().map(|copies| (shard.clone(), copies)));
        }
        let Some((shard, copies)) = self.dice.pick(&all).cloned() else {
            return Ok(false);
        };
        let Some(holder) = self.dice.pick(&copies.holders).copied() else {
            return Ok(false);
        };
        let index = index_of(holder.node);
        if self.sound_elsewhere(&shard, &copies, index) < 2 || self.nodes[index].disk != holder.disk {
            return Ok(false);
        }
        let node = &mut self.nodes[index];
        if let Some(kept) = node.stored.get_mut(&copies.part) {
            kept.broken = true;
            node.broken.insert(copies.part);
            return Ok(true);
        }
        Ok(false)
    }
}

/// Whether a node has a file of a shard as it was written. Who copies may be told to stop, and then has nothing.
fn keeps(node: &Node, shard: &Shard, part: PartId) -> bool {
    let stays = |replica: &Replica| replica.state == ReplicaState::Ready;
    shard.replica(node.id).is_some_and(stays) && node.stored.get(&part).is_some_and(Kept::is_sound)
}
