//! What a standby does with its memtable: it forgets what the leader has committed, and one day it leads.
//!
//! # Why taking over keeps every promise
//!
//! The catalog has made this node leader in epoch E. Let C be the committed offset of a partition in a state of the catalog that
//! has E. No commit of an earlier epoch is accepted any more, whenever it comes, so C is where the next commit must start,
//! and nobody but this node makes it. A history that goes on is cut to begin at C, in the same moment in which the memtable
//! gets its epoch; all others are forgotten, and opened at C as any new leader would.
//!
//! - OFF-1, OFF-2: the first span of every partition starts at C, and what follows was appended without gap or overlap.
//! - QRY-1: no pin was given before. From now on, a pin says `[C, to)` of the present incarnation, as that of any leader
//!   does. What was forgotten below C is in parts of every version that a query can take after its pin.
//! - LED-1: a piece that lies across C is split only if its counts can be, exactly ([`Piece::starting_at`]).
//! - The rows are those of the log that the leader read. Within one incarnation it is one topic, and the same offset of the same
//!   leader epoch is the same record (KIP-101, KIP-320). A new leader that reads from C has the broker compare the
//!   epoch of the record before C. Here the standby's own record before C must be of that epoch: if it is of another, or
//!   that is not known, the history does not go on.

use super::piece::Piece;
use super::{Lane, Memtable, State, epoch_after};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use tidemill_core::{Epoch, Offset, ShardId, SpanKey};

/// What the catalog says of a partition, to whoever takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The partition and its life.
    pub key: SpanKey,
    /// The next offset to commit.
    pub offset: Offset,
    /// Leader epoch of the source at the last committed record, if known.
    pub source_epoch: Option<i32>,
}

impl Memtable {
    /// An empty memtable of a standby: it shows nothing and is never cut until it leads.
    pub fn standby(shard: ShardId) -> Self {
        Self {
            shard,
            state: Mutex::new(State::default()),
        }
    }

    /// Forgets the pieces of a standby that lie below the committed `offset`. One that lies across stays until the next
    /// commit has passed it. The memtable of a leader is not changed: its own commits say what goes.
    pub fn release_below(&self, key: SpanKey, offset: Offset) {
        let mut state = self.lock();
        if state.epoch.is_some() {
            return;
        }
        let lane = state.lanes.get_mut(&(key.pipe, key.partition));
        let Some(lane) = lane.filter(|lane| lane.key == key) else {
            return;
        };
        let below = lane.fresh.partition_point(|piece| piece.span.end <= offset);
        let gone: Vec<Arc<Piece>> = lane.fresh.drain(..below).collect();
        if let Some(last) = gone.last() {
            lane.from = last.span.end;
            lane.before = epoch_after(lane.before, &gone);
        }
        drop(state);
        drop(gone);
    }

    /// This node leads the shard in `epoch` now, and `committed` is what the catalog says of its partitions in a state that
    /// says so. Gives the histories that go on; the others are forgotten, and must be opened.
    ///
    /// Does nothing after [`Memtable::close`], or if it leads already.
    pub fn lead(&self, epoch: Epoch, committed: &[Committed]) -> BTreeSet<SpanKey> {
        let mut state = self.lock();
        if state.closed || state.epoch.is_some() {
            return BTreeSet::new();
        }
        state.epoch = Some(epoch);
        let before = std::mem::take(&mut state.lanes);
        for (place, lane) in &before {
            let known = committed.iter().find(|committed| committed.key == lane.key);
            if let Some(lane) = known.and_then(|committed| lane.going_on(committed)) {
                state.lanes.insert(*place, lane);
            }
        }
        let go_on = state.lanes.values().map(|lane| lane.key).collect();
        drop(state);
        // Freeing many batches takes a while.
        drop(before);
        go_on
    }
}

impl Lane {
    /// The history from the committed offset on, if that is in it and it is the same history.
    fn going_on(&self, committed: &Committed) -> Option<Lane> {
        if !(self.from..=self.to).contains(&committed.offset) {
            return None;
        }
        let below = self.fresh.partition_point(|piece| piece.span.end <= committed.offset);
        let before = epoch_after(self.before, &self.fresh[..below]);
        let mut fresh = self.fresh[below..].to_vec();
        if let Some(across) = fresh.first_mut().filter(|piece| piece.span.start < committed.offset) {
            // Epochs never fall: the same on both sides, it is the same at C. Else it may have changed below or above.
            let same = across.span.source_epoch.is_none_or(|epoch| before == Some(epoch));
            if committed.source_epoch.is_some() && !same {
                return None;
            }
            *across = Arc::new(across.starting_at(committed.offset)?);
        }
        if committed.source_epoch.is_some() && committed.source_epoch != before {
            return None;
        }
        Some(Lane {
            key: self.key,
            show: self.show,
            from: committed.offset,
            to: self.to,
            before,
            frozen: Vec::new(),
            fresh,
        })
    }
}
