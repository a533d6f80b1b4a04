//! The write-ahead log of a node: what of its memtables survives its process.
//!
//! A model of `storage/src/wal` with its rules in their order: which entries continue a history (`replay.rs`), what is
//! trimmed (`index.rs`), and that of the entries which were not synced a crash spares the first, if any.

use crate::source::RecordId;
use crate::task::Piece;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use tidemill_core::{Epoch, Offset, PartitionId, PipeId, ShardId, SpanKey};

/// A partition of which a log has entries.
pub type Place = (ShardId, PipeId, PartitionId);

/// A chunk in the log.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The order in which they were written.
    pub sequence: u64,
    /// Who led when it was written.
    pub epoch: Epoch,
    /// What was read.
    pub piece: Piece,
    /// Whether a loss of power spares it.
    pub synced: bool,
}

/// See the module's page.
#[derive(Clone, Debug, Default)]
pub struct Wal {
    lanes: BTreeMap<Place, Vec<Entry>>,
    next: u64,
}

impl Wal {
    /// Writes `piece`, which is not there for good before it is synced. Gives its number.
    pub fn append(&mut self, shard: ShardId, epoch: Epoch, piece: Piece) -> u64 {
        let key = piece.span.key;
        self.next += 1;
        let entry = Entry {
            sequence: self.next,
            epoch,
            piece,
            synced: false,
        };
        self.lanes
            .entry((shard, key.pipe, key.partition))
            .or_default()
            .push(entry);
        self.next
    }

    /// Everything that was written up to now is there for good.
    pub fn sync(&mut self) {
        let entries = self.lanes.values_mut().flatten();
        entries.for_each(|entry| entry.synced = true);
    }

    /// The number of the last entry that is there for good, and of the last that was written.
    pub fn ends(&self) -> (u64, u64) {
        let synced = self.lanes.values().flatten().filter(|entry| entry.synced);
        (synced.map(|entry| entry.sequence).max().unwrap_or(0), self.next)
    }

    /// What was not synced is gone, but for what was written up to `torn`: that had got to the disk.
    pub fn crash(&mut self, torn: u64) {
        for lane in self.lanes.values_mut() {
            lane.retain(|entry| entry.synced || entry.sequence <= torn);
            lane.iter_mut().for_each(|entry| entry.synced = true);
        }
        self.lanes.retain(|_, lane| !lane.is_empty());
    }

    /// Of which partitions there is anything.
    pub fn places(&self) -> Vec<Place> {
        self.lanes.keys().copied().collect()
    }

    /// What continues the history `key` from `committed` on, in order, and the numbers of what of this life, or one before, does
    /// not.
    pub fn recover(&self, shard: ShardId, key: SpanKey, committed: Offset) -> (Vec<Piece>, BTreeSet<u64>) {
        let place = (shard, key.pipe, key.partition);
        let entries = self.lanes.get(&place).map_or(&[][..], Vec::as_slice);
        let continues = |entry: &&Entry| entry.piece.span.key == key && entry.piece.span.end > committed;
        let mut ahead: Vec<&Entry> = entries.iter().filter(continues).collect();
        ahead.sort_by_key(|entry| std::cmp::Reverse((entry.piece.span.start, entry.epoch, entry.sequence)));
        let (mut next, mut adopted, mut sequences) = (committed, Vec::new(), BTreeSet::new());
        // Entries that begin at or before `next`, the newest on top.
        let mut begun = BinaryHeap::new();
        loop {
            while let Some(entry) = ahead.pop_if(|entry| entry.piece.span.start <= next) {
                begun.push((entry.epoch, entry.sequence));
            }
            let Some((_, sequence)) = begun.pop() else {
                break;
            };
            let Some(entry) = entries.iter().find(|entry| entry.sequence == sequence) else {
                continue;
            };
            let counts = entry.piece.span.counts;
            let dense = counts.absent == 0 && counts.filtered == 0;
            if entry.piece.span.end > next && (entry.piece.span.start == next || dense) {
                let Some(piece) = entry.piece.starting_at(next.0) else {
                    break;
                };
                next = piece.span.end;
                sequences.insert(sequence);
                adopted.push(piece);
            }
        }
        let unused = entries.iter().filter(|entry| {
            // A later life is no business of this one.
            entry.piece.span.key.incarnation <= key.incarnation && !sequences.contains(&entry.sequence)
        });
        let unused = unused.map(|entry| entry.sequence).collect();
        (adopted, unused)
    }

    /// Forgets these.
    pub fn forget(&mut self, sequences: &BTreeSet<u64>) {
        let lanes = self.lanes.values_mut();
        lanes.for_each(|lane| lane.retain(|entry| !sequences.contains(&entry.sequence)));
        self.lanes.retain(|_, lane| !lane.is_empty());
    }

    /// Forgets everything of a partition.
    pub fn drop_lane(&mut self, place: Place) {
        self.lanes.remove(&place);
    }

    /// Forgets what is committed below `offset`, and lives before.
    pub fn trim(&mut self, place: Place, key: SpanKey, offset: Offset) {
        let Some(lane) = self.lanes.get_mut(&place) else {
            return;
        };
        let is_over = |entry: &Entry| {
            let span = entry.piece.span;
            let (life, present) = (span.key.incarnation, key.incarnation);
            life < present || (life == present && span.end <= offset)
        };
        let over = lane.iter().take_while(|entry| is_over(entry)).count();
        lane.drain(..over);
        if lane.is_empty() {
            self.lanes.remove(&place);
        }
    }

    /// Whether it has a row for good.
    pub fn has_row(&self, id: RecordId) -> bool {
        let mut entries = self.lanes.values().flatten().filter(|entry| entry.synced);
        entries.any(|entry| entry.piece.rows.iter().any(|row| row.id == id))
    }

    /// All that is in it is gone, and with it the disk.
    pub fn wipe(&mut self) {
        self.lanes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Row;
    use tidemill_core::{Counts, Incarnation, Span, TableId};

    const SHARD: ShardId = ShardId {
        table: TableId(1),
        index: 0,
    };

    fn key(life: u64) -> SpanKey {
        SpanKey {
            pipe: PipeId(1),
            partition: PartitionId(0),
            incarnation: Incarnation(life),
        }
    }

    fn piece(life: u64, start: u64, end: u64) -> Piece {
        let row = |offset: u64| Row {
            pipe: PipeId(1),
            partition: PartitionId(0),
            offset,
            id: offset,
            rejected: false,
        };
        let span = Span {
            key: key(life),
            start: Offset(start),
            end: Offset(end),
            counts: Counts::stored(end - start),
            topic: None,
            source_epoch: None,
        };
        Piece {
            span,
            rows: (start..end).map(row).collect(),
            at: 0,
        }
    }

    fn recovered(wal: &Wal, life: u64, committed: u64) -> Vec<(u64, u64)> {
        let (pieces, _) = wal.recover(SHARD, key(life), Offset(committed));
        pieces.iter().map(|p| (p.span.start.0, p.span.end.0)).collect()
    }

    #[test]
    fn a_log_continues_a_history_up_to_the_first_hole() {
        let mut wal = Wal::default();
        for (start, end) in [(0, 5), (5, 9), (12, 20)] {
            wal.append(SHARD, Epoch(1), piece(1, start, end));
        }
        wal.sync();
        assert_eq!(recovered(&wal, 1, 0), [(0, 5), (5, 9)]);
        assert_eq!(recovered(&wal, 1, 3), [(3, 5), (5, 9)]);
        assert_eq!(recovered(&wal, 1, 12), [(12, 20)]);
        assert_eq!(recovered(&wal, 2, 0), [], "another life is another history");
        let (_, unused) = wal.recover(SHARD, key(1), Offset(0));
        assert_eq!(unused.len(), 1, "what is behind the hole");
    }

    #[test]
    fn what_was_not_synced_goes_with_the_process_and_what_is_committed_is_trimmed() {
        let mut wal = Wal::default();
        wal.append(SHARD, Epoch(1), piece(1, 0, 5));
        wal.sync();
        wal.append(SHARD, Epoch(1), piece(1, 5, 9));
        assert!(wal.has_row(4) && !wal.has_row(5));
        wal.append(SHARD, Epoch(1), piece(1, 9, 12));
        assert_eq!(wal.ends(), (1, 3));
        let mut torn = wal.clone();
        torn.crash(2);
        assert_eq!(
            recovered(&torn, 1, 0),
            [(0, 5), (5, 9)],
            "the first of it had got there"
        );
        assert!(torn.has_row(8));
        wal.crash(1);
        assert_eq!(recovered(&wal, 1, 0), [(0, 5)]);
        let place = (SHARD, PipeId(1), PartitionId(0));
        wal.trim(place, key(1), Offset(4));
        assert_eq!(recovered(&wal, 1, 4), [(4, 5)]);
        wal.trim(place, key(2), Offset(0));
        assert!(wal.places().is_empty(), "its life is over");
    }
}
