//! Pieces: the immutable units that a memtable is made of, and how small neighbours become one.
//!
//! A source poll may give a handful of records, so a memtable that kept every chunk as it came would
//! hand thousands of tiny batches to each query. Pieces are merged as in a log-structured merge
//! tree with fan-in [`FAN_IN`]: a piece has a *class*, the logarithm of its weight to that base, and
//! neighbours are merged when enough of one class stand side by side.
//!
//! Cost. [`merge_from`] only ever takes a run whose rows all end in a piece of a higher class than
//! the one they came from, except for the newest piece. There are [`TOP_CLASS`] classes below the
//! top, so a row is copied at most `TOP_CLASS + 1` times (six times for single records, once or
//! twice for chunks of a few thousand, never for those of the top class), and always by a kernel
//! that copies ranges. Classes never grow from one piece to the next, and fewer than `FAN_IN` of a
//! class below the top stand side by side, so a partition has at most
//! `TOP_CLASS * (FAN_IN - 1)` small pieces however it was filled; all others are of the top class,
//! 8 MiB or 32,768 records each.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::Int64Type;
use arrow::error::ArrowError;
use std::sync::Arc;
use std::time::Instant;
use tidemill_core::schema::OFFSET;
use tidemill_core::{Offset, Span};

/// How many neighbours of one class become one piece.
const FAN_IN: usize = 8;
/// Pieces of this class are left alone.
const TOP_CLASS: u32 = 5;
/// A record of this many bytes weighs 1; a longer one more.
const BYTES_PER_WEIGHT: usize = 256;

/// Some neighbouring offsets of one partition, with their rows.
#[derive(Debug)]
pub(super) struct Piece {
    pub span: Span,
    pub rows: Option<RecordBatch>,
    pub rejects: Option<RecordBatch>,
    /// What it holds in memory.
    pub memory: usize,
    /// When its oldest offset was appended.
    pub since: Instant,
    weight: u64,
}

impl Piece {
    pub fn new(span: Span, rows: Option<RecordBatch>, rejects: Option<RecordBatch>, since: Instant) -> Self {
        let batches = || rows.iter().chain(&rejects);
        let memory = batches().map(RecordBatch::get_array_memory_size).sum();
        // Not the memory: a decoder's buffers may be mostly empty, and then merging is what helps.
        let filled: usize = batches()
            .flat_map(RecordBatch::columns)
            .map(|column| filled_bytes(column.as_ref()))
            .sum();
        let weight = (span.counts.rows + span.counts.rejected)
            .max((filled / BYTES_PER_WEIGHT) as u64)
            .max(1);
        Self {
            span,
            rows,
            rejects,
            memory,
            since,
            weight,
        }
    }

    /// `pieces` as one. Each must begin where the one before ends.
    ///
    /// # Errors
    /// When the batches cannot be concatenated: different schemas, or more text than a column can hold.
    pub fn merge(pieces: &[Arc<Piece>]) -> Result<Piece, ArrowError> {
        let spans = pieces.iter().map(|piece| piece.span);
        let span = spans
            .reduce(|all, next| all.join(&next).unwrap_or(all))
            .ok_or_else(|| ArrowError::InvalidArgumentError("no piece to merge".to_owned()))?;
        let rows = concat(pieces.iter().filter_map(|piece| piece.rows.as_ref()))?;
        let rejects = concat(pieces.iter().filter_map(|piece| piece.rejects.as_ref()))?;
        let since = pieces
            .iter()
            .map(|piece| piece.since)
            .min()
            .unwrap_or_else(Instant::now);
        let weight = pieces.iter().map(|piece| piece.weight).sum();
        Ok(Piece {
            weight,
            ..Piece::new(span, rows, rejects, since)
        })
    }

    /// What of it is at or above `offset`, which must lie inside it. Nothing is copied.
    ///
    /// Rows and rejected records have offsets and are counted by them; of the rest see [`tidemill_core::Counts::of_end`].
    pub fn starting_at(&self, offset: Offset) -> Option<Piece> {
        let rows = above(self.rows.as_ref(), OFFSET, offset)?;
        let rejects = above(self.rejects.as_ref(), "offset", offset)?;
        let mut span = Span {
            start: offset,
            ..self.span
        };
        let (stored, rejected) = (
            different(rows.as_ref(), OFFSET)?,
            different(rejects.as_ref(), "offset")?,
        );
        let row_count = rows.as_ref().map_or(0, RecordBatch::num_rows) as u64;
        span.counts = self.span.counts.of_end(span.width(), stored, rejected, row_count)?;
        Some(Piece::new(span, rows, rejects, self.since))
    }
}

/// From which of `pieces` on they should become one now, if any: the answer is an index such that
/// `pieces[index..]` has at least two members.
pub(super) fn merge_from(pieces: &[Arc<Piece>]) -> Option<usize> {
    let last = pieces.last()?;
    let mut from = pieces.len() - 1;
    let mut weight = last.weight;
    if class(weight) >= TOP_CLASS {
        return None;
    }
    loop {
        let own = class(weight);
        let smaller = run_before(&pieces[..from], |c| c < own);
        if smaller > 0 {
            weight += weight_of(&pieces[from - smaller..from]);
            from -= smaller;
            continue;
        }
        let equal = run_before(&pieces[..from], |c| c == own);
        if own < TOP_CLASS && equal + 1 >= FAN_IN {
            weight += weight_of(&pieces[from - equal..from]);
            from -= equal;
            continue;
        }
        return (from + 1 < pieces.len()).then_some(from);
    }
}

fn class(weight: u64) -> u32 {
    weight.max(1).ilog(FAN_IN as u64).min(TOP_CLASS)
}

fn run_before(pieces: &[Arc<Piece>], wanted: impl Fn(u32) -> bool) -> usize {
    pieces
        .iter()
        .rev()
        .take_while(|piece| wanted(class(piece.weight)))
        .count()
}

fn weight_of(pieces: &[Arc<Piece>]) -> u64 {
    pieces.iter().map(|piece| piece.weight).sum()
}

/// The offsets of `batch`, which ascend; `None` without such a column, which is none of ours.
fn offsets_of<'b>(batch: &'b RecordBatch, column: &str) -> Option<&'b [i64]> {
    let column = batch.column_by_name(column)?.as_primitive_opt::<Int64Type>()?;
    Some(column.values())
}

/// The rows of `batch` at or above `offset`, if there are any.
fn above(batch: Option<&RecordBatch>, column: &str, offset: Offset) -> Option<Option<RecordBatch>> {
    let Some(batch) = batch else { return Some(None) };
    let first = offsets_of(batch, column)?.partition_point(|o| (*o as u64) < offset.0);
    let left = batch.num_rows() - first;
    Some((left > 0).then(|| batch.slice(first, left)))
}

/// How many different offsets there are.
fn different(batch: Option<&RecordBatch>, column: &str) -> Option<u64> {
    let Some(batch) = batch else { return Some(0) };
    offsets_of(batch, column).map(count_different)
}

/// How many of `offsets`, which ascend, are different.
pub(super) fn count_different(offsets: &[i64]) -> u64 {
    let steps = offsets.windows(2).filter(|pair| pair[0] < pair[1]).count() as u64;
    steps + u64::from(!offsets.is_empty())
}

/// How many bytes of values `column` refers to, whatever its buffers could hold.
fn filled_bytes(column: &dyn Array) -> usize {
    // An error means a type whose slices cannot be measured; none of ours.
    column
        .to_data()
        .get_slice_memory_size()
        .unwrap_or_else(|_| column.get_array_memory_size())
}

fn concat<'a>(batches: impl Iterator<Item = &'a RecordBatch> + Clone) -> Result<Option<RecordBatch>, ArrowError> {
    let mut rest = batches.clone();
    match (rest.next(), rest.next()) {
        (None, _) => Ok(None),
        (Some(only), None) => Ok(Some(only.clone())),
        (Some(first), Some(_)) => concat_batches(&first.schema(), batches).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_core::{Counts, Incarnation, PartitionId, PipeId, SpanKey};

    fn marker(start: u64, width: u64) -> Arc<Piece> {
        let key = SpanKey {
            pipe: PipeId(1),
            partition: PartitionId(0),
            incarnation: Incarnation(1),
        };
        let span = Span {
            key,
            start: Offset(start),
            end: Offset(start + width),
            counts: Counts {
                absent: width,
                ..Counts::default()
            },
            topic: None,
            source_epoch: None,
        };
        let mut piece = Piece::new(span, None, None, Instant::now());
        piece.weight = width;
        Arc::new(piece)
    }

    /// Appends pieces of the given weights and returns (largest number of pieces, weight copied, weight appended).
    fn fill(weights: impl Iterator<Item = u64>) -> (usize, u64, u64) {
        let (mut pieces, mut most, mut copied, mut end) = (Vec::new(), 0, 0, 0);
        for weight in weights {
            pieces.push(marker(end, weight));
            end += weight;
            if let Some(from) = merge_from(&pieces) {
                copied += weight_of(&pieces[from..]);
                let merged = Piece::merge(&pieces[from..]).unwrap();
                pieces.truncate(from);
                pieces.push(Arc::new(merged));
            }
            most = most.max(pieces.iter().filter(|p| class(p.weight) < TOP_CLASS).count());
        }
        assert_eq!(
            pieces.iter().map(|p| p.span.width()).sum::<u64>(),
            end,
            "nothing is lost"
        );
        (most, copied, end)
    }

    #[test]
    fn pieces_stay_few_and_copies_stay_bounded() {
        let bound = TOP_CLASS as usize * (FAN_IN - 1);
        let mut state = 7_u64;
        let mut random = move || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            state >> 33
        };
        let cases: Vec<Vec<u64>> = vec![
            vec![1; 200_000],
            (0..50_000).map(|i| if i % 2 == 0 { 1 } else { 8 }).collect(),
            (0..50_000).map(|i| if i % 2 == 0 { 1 } else { 500 }).collect(),
            (0..20_000).map(|_| 1 + random() % 5_000).collect(),
            (0..1_000).rev().map(|i| 1 + i * 7).collect(),
        ];
        for weights in cases {
            let (most, copied, appended) = fill(weights.iter().copied());
            assert!(most <= bound, "{most} small pieces");
            assert!(
                copied <= appended * u64::from(TOP_CLASS + 1),
                "{copied} copied of {appended}"
            );
        }
    }
}
