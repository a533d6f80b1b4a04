//! Which entries of a log continue a history: pure, from their spans and the committed offset.
//!
//! What is below the committed offset is in parts, whoever committed it. What lies above counts if it is of the present
//! life of its partition and leaves no hole: behind the first one, nothing can be committed any more. The committed
//! offset may lie inside an entry, since another leader may have cut its own chunks there in between. Such an entry
//! is divided where that is exact, that is, where each of its offsets is a row or a reject; of one with absent or
//! filtered offsets nobody knows which side they are on, and the history is continued from the source instead.
//!
//! Two entries may hold the same offset when a partition was given anew while its last chunk was being appended. In
//! one life, an offset holds the same record whoever read it; of two, the newer one is taken, because the entries
//! behind it were cut to follow it.

use super::WalEntry;
use crate::memtable::Chunk;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use std::collections::{BTreeSet, BinaryHeap};
use tidemill_core::schema::OFFSET;
use tidemill_core::{Counts, Epoch, Offset, Span, SpanKey};

/// How a history goes on.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What continues it, in order, each from this offset on to its end.
    pub adopted: Vec<(WalEntry, Offset)>,
    /// What of this life, or one before, does not.
    pub unused: Vec<WalEntry>,
}

/// How `entries`, all of one partition, continue the history `key` from `committed` on.
pub fn plan(entries: &[WalEntry], key: SpanKey, committed: Offset) -> Plan {
    let continues = |entry: &&WalEntry| entry.history == key && entry.end > committed;
    let mut ahead: Vec<&WalEntry> = entries.iter().filter(continues).collect();
    ahead.sort_by_key(|entry| std::cmp::Reverse((entry.start, entry.epoch, entry.sequence)));
    let mut adopted: Vec<(WalEntry, Offset)> = Vec::new();
    let mut next = committed;
    // Entries that begin at or before `next`, the newest on top.
    let mut begun: BinaryHeap<(Epoch, u64, usize)> = BinaryHeap::new();
    let mut pool: Vec<&WalEntry> = Vec::new();
    loop {
        while let Some(entry) = ahead.pop_if(|entry| entry.start <= next) {
            begun.push((entry.epoch, entry.sequence, pool.len()));
            pool.push(entry);
        }
        let Some((.., at)) = begun.pop() else {
            break;
        };
        let entry = pool[at];
        if entry.end > next && (entry.start == next || entry.dense) {
            adopted.push((*entry, next));
            next = entry.end;
        }
    }
    let sequences: BTreeSet<u64> = adopted.iter().map(|(entry, _)| entry.sequence).collect();
    let is_unused = |entry: &&WalEntry| {
        // A later life is no business of this one.
        entry.history.incarnation <= key.incarnation && !sequences.contains(&entry.sequence)
    };
    let unused = entries.iter().filter(is_unused).copied().collect();
    Plan { adopted, unused }
}

/// What `chunk` holds from `from` on; `None` if it cannot be divided there, or is not what its span says.
pub fn from_offset(chunk: Chunk, from: Offset) -> Option<Chunk> {
    if from == chunk.span.start {
        return Some(chunk);
    }
    let Chunk { span, rows, rejects } = chunk;
    let (rows, stored) = behind(rows, OFFSET, from)?;
    let (rejects, rejected) = behind(rejects, "offset", from)?;
    let counts = Counts {
        delivered: stored + rejected,
        stored,
        rejected,
        rows: rows.as_ref().map_or(0, |rows| rows.num_rows() as u64),
        ..Counts::default()
    };
    let span = Span {
        start: from,
        counts,
        ..span
    };
    // Not if an offset of it was absent or filtered.
    span.is_sound().then_some(Chunk { span, rows, rejects })
}

/// The rows of `batch` whose `column` is at or above `from`, and how many different offsets they have.
fn behind(batch: Option<RecordBatch>, column: &str, from: Offset) -> Option<(Option<RecordBatch>, u64)> {
    let Some(batch) = batch else {
        return Some((None, 0));
    };
    let offsets = batch.column_by_name(column)?.as_primitive_opt::<Int64Type>()?;
    if offsets.null_count() > 0 {
        return None;
    }
    let offsets = offsets.values();
    let first = offsets.partition_point(|offset| u64::try_from(*offset).is_ok_and(|offset| offset < from.0));
    let kept = &offsets[first..];
    let different = kept.first().map_or(0, |_| {
        1 + kept.windows(2).filter(|pair| pair[0] != pair[1]).count() as u64
    });
    let rest = (!kept.is_empty()).then(|| batch.slice(first, kept.len()));
    Some((rest, different))
}
