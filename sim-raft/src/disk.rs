//! The disk of a machine: what of the log and of the catalog survives which end of a process.
//!
//! What was written survives a killed process. A loss of power takes what was not synced: all of it, or a tail, for
//! what is written is found in the order in which it was written, up to some point. A batch is there whole or not at all,
//! as a record of RocksDB's log is.

use crate::catalog::SnapshotFiles;
use crate::types::{Entry, LogId, Membership, SnapshotMeta, Vote};
use std::collections::BTreeMap;
use tidemill_core::view::{MemView, WriteSet};
use tidemill_sim::dice::Dice;

/// One change to the log.
#[derive(Clone)]
pub(crate) enum Change {
    /// Puts entries under their indexes.
    Append(Vec<Entry>),
    /// Replaces the vote.
    Vote(Vote),
    /// Replaces the committed position; worth no fsync of its own.
    Committed(Option<LogId>),
    /// Deletes the entries from this index on.
    Truncate(u64),
    /// Deletes the entries up to here, and notes the position.
    Purge(LogId),
}

/// A log: what is on disk of it, or what is known of it in memory.
#[derive(Clone, Default)]
pub(crate) struct LogState {
    pub entries: BTreeMap<u64, Entry>,
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
}

impl LogState {
    pub fn make(&mut self, change: &Change) {
        match change {
            Change::Append(entries) => {
                let entries = entries.iter().map(|entry| (entry.log_id.index, entry.clone()));
                self.entries.extend(entries);
            }
            Change::Vote(vote) => self.vote = Some(*vote),
            Change::Committed(committed) => self.committed = *committed,
            Change::Truncate(from) => drop(self.entries.split_off(from)),
            Change::Purge(upto) => {
                self.entries = self.entries.split_off(&(upto.index + 1));
                self.purged = Some(*upto);
            }
        }
    }

    /// The position of the last entry, or up to where there were some.
    pub fn last(&self) -> Option<LogId> {
        let last = self.entries.values().next_back().map(|entry| entry.log_id);
        last.max(self.purged)
    }

    /// What `load_tail` of the product checks when it opens a log.
    pub fn check(&self) -> Result<(), String> {
        let mut previous = self.purged.map(|purged| purged.index);
        for index in self.entries.keys() {
            if previous.is_some_and(|previous| *index != previous + 1) {
                return Err(format!("entry {index} follows entry {previous:?}"));
            }
            previous = Some(*index);
        }
        let Some(last) = self.last() else {
            return Ok(());
        };
        let voted = self.vote.map(|vote| vote.leader_id);
        if last.leader_id.term > 0 && voted.is_none_or(|voted| voted < last.leader_id) {
            return Err(format!("the last entry {last} is newer than the vote"));
        }
        Ok(())
    }
}

/// The log on disk.
#[derive(Default)]
pub(crate) struct LogDisk {
    synced: LogState,
    /// Batches that were written and not synced, in their order.
    unsynced: Vec<Vec<Change>>,
}

impl LogDisk {
    pub fn write(&mut self, batch: Vec<Change>) {
        self.unsynced.push(batch);
    }

    pub fn sync(&mut self) {
        self.keep(usize::MAX);
    }

    fn keep(&mut self, batches: usize) {
        for batch in self.unsynced.drain(..).take(batches) {
            batch.iter().for_each(|change| self.synced.make(change));
        }
    }

    /// What a process finds that opens it now.
    pub fn found(&self) -> LogState {
        let mut found = self.synced.clone();
        self.unsynced.iter().flatten().for_each(|change| found.make(change));
        found
    }
}

/// A state of the catalog with its position.
#[derive(Clone, Default)]
pub(crate) struct CatalogState {
    pub view: MemView,
    pub applied: Option<LogId>,
    pub membership: Membership,
}

/// Changes and the position that they bring the catalog to.
pub(crate) struct Batch {
    pub writes: WriteSet,
    pub applied: LogId,
    pub membership: Option<Membership>,
}

impl CatalogState {
    fn make(&mut self, batch: Batch) {
        self.view.write(batch.writes);
        self.applied = Some(batch.applied);
        self.membership = batch.membership.unwrap_or_else(|| std::mem::take(&mut self.membership));
    }
}

/// The catalog on disk. What was written is what readers see.
#[derive(Default)]
pub(crate) struct CatalogDisk {
    pub current: CatalogState,
    synced: CatalogState,
    unsynced: Vec<Batch>,
    snapshot: Option<(SnapshotMeta, SnapshotFiles)>,
    synced_snapshot: Option<(SnapshotMeta, SnapshotFiles)>,
}

impl CatalogDisk {
    pub fn write(&mut self, batch: Batch) {
        self.current.make(Batch {
            writes: batch.writes.clone(),
            applied: batch.applied,
            membership: batch.membership.clone(),
        });
        self.unsynced.push(batch);
    }

    pub fn sync(&mut self) {
        self.keep(usize::MAX);
    }

    fn keep(&mut self, batches: usize) {
        for batch in self.unsynced.drain(..).take(batches) {
            self.synced.make(batch);
        }
    }

    /// The last complete snapshot.
    pub fn snapshot(&self) -> Option<(SnapshotMeta, SnapshotFiles)> {
        self.snapshot.clone()
    }

    /// A snapshot takes the place of the last one, older or newer, durably or, if somebody forgot, not.
    pub fn adopt(&mut self, meta: SnapshotMeta, snapshot: SnapshotFiles, durable: bool) {
        self.snapshot = Some((meta, snapshot));
        if durable {
            self.synced_snapshot = self.snapshot.clone();
        }
    }

    /// Another catalog takes its place, durably or, if somebody forgot, not.
    pub fn replace(&mut self, state: CatalogState, durable: bool) {
        self.current = state.clone();
        if durable {
            self.synced = state;
            self.unsynced.clear();
        }
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Disk {
    pub log: LogDisk,
    pub catalog: CatalogDisk,
}

impl Disk {
    /// What is there after the power was gone.
    pub fn lose_unsynced(&mut self, dice: &mut Dice) {
        // Mostly all of it: that is what hurts.
        let mut kept = |there: usize| match dice.one_in(3) {
            true => dice.below(there + 1),
            false => 0,
        };
        self.log.keep(kept(self.log.unsynced.len()));
        let kept = kept(self.catalog.unsynced.len());
        self.catalog.keep(kept);
        self.catalog.current = self.catalog.synced.clone();
        self.catalog.snapshot = self.catalog.synced_snapshot.clone();
    }
}
