//! The memtable: the rows of one shard, in one epoch, that are not yet in a committed part.
//!
//! It owns, per open partition, a gapless history of offsets `[from, to)` with the rows found there.
//! A *cut* freezes what is there now for a flush; its rows stay visible until the flush is committed,
//! and meanwhile new chunks pile up behind it. At most one cut is outstanding, as at most one commit
//! of a shard is in flight.
//!
//! A partition is either shown at once or *when it is committed* ([`Show`]): rows of a writer who is not told that they
//! are there before they are safe must not be seen before, either.
//!
//! Promises: a pin is one moment of all partitions, and shows each offset of `[from, to)` once; an accepted chunk of a
//! partition that is shown at once is visible in the next pin; the spans of successive committed cuts tile a history. The
//! one mutex is held for moving pointers only: batches are measured, concatenated and listed outside it.
//!
//! The memtable of a standby has no epoch yet: it takes chunks, and shows and cuts nothing. See `standby.rs`.
//!
//! It does not decide when to cut, knows no catalog, and limits no memory: [`Memtable::stats`] tells
//! those who do.

mod contents;
mod piece;
mod standby;
#[cfg(test)]
mod tests;

pub use contents::{
    AppendError, Chunk, Cut, Extent, History, MemtableStats, PinnedBatch, PinnedPartition, PinnedShard, Show,
};
pub use standby::Committed;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use piece::{Piece, count_different, merge_from};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tidemill_core::schema::OFFSET;
use tidemill_core::{Epoch, Offset, PartitionId, PipeId, ShardId, Span, SpanKey};

/// See the module's page.
#[derive(Debug)]
pub struct Memtable {
    shard: ShardId,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    /// The term in which this node leads the shard; `None` while it stands by.
    epoch: Option<Epoch>,
    cut_outstanding: bool,
    lanes: BTreeMap<(PipeId, PartitionId), Lane>,
}

/// One open partition. Invariant: the spans of `frozen`, then of `fresh`, tile `[from, to)`.
#[derive(Debug)]
struct Lane {
    key: SpanKey,
    show: Show,
    from: Offset,
    to: Offset,
    /// Leader epoch of the source at the record before `from`, if it is known.
    before: Option<i32>,
    /// In the outstanding cut.
    frozen: Vec<Arc<Piece>>,
    /// Not in a cut yet.
    fresh: Vec<Arc<Piece>>,
}

impl Lane {
    fn opened(key: SpanKey, show: Show, offset: Offset, before: Option<i32>) -> Self {
        Self {
            key,
            show,
            from: offset,
            to: offset,
            before,
            frozen: Vec::new(),
            fresh: Vec::new(),
        }
    }
}

/// The leader epoch of the source behind `pieces`, which follow on a record of the epoch `before`.
fn epoch_after(before: Option<i32>, pieces: &[Arc<Piece>]) -> Option<i32> {
    let newest = pieces.iter().rev().find_map(|piece| piece.span.source_epoch);
    newest.or(before)
}

impl Memtable {
    /// An empty memtable without open partitions.
    pub fn new(shard: ShardId, epoch: Epoch) -> Self {
        let state = State {
            epoch: Some(epoch),
            ..State::default()
        };
        Self {
            shard,
            state: Mutex::new(state),
        }
    }

    /// From here on the history of this partition begins at `offset`.
    ///
    /// Opening the history that is open, at the offset where it ends, changes nothing. Otherwise
    /// everything held of this partition is forgotten, also what is being flushed. The flush of
    /// another incarnation will be refused; if that of the same one succeeds, the rows read again
    /// are below the committed offset, where no query counts them and no commit accepts them.
    pub fn open_partition(&self, key: SpanKey, offset: Offset) {
        self.open(key, Show::AtOnce, offset, None);
    }

    /// As [`Memtable::open_partition`], of a partition whose rows are shown as `show` says, and whose record before `offset`
    /// is known to be of this epoch of its source (KIP-320).
    pub fn open(&self, key: SpanKey, show: Show, offset: Offset, before: Option<i32>) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        let place = (key.pipe, key.partition);
        if state
            .lanes
            .get(&place)
            .is_some_and(|lane| lane.key == key && lane.to == offset)
        {
            return;
        }
        let forgotten = state.lanes.insert(place, Lane::opened(key, show, offset, before));
        drop(state);
        // Freeing many batches takes a while; pins need not wait for it.
        drop(forgotten);
    }

    /// Forgets a partition and its chunks, also those being flushed.
    pub fn close_partition(&self, pipe: PipeId, partition: PartitionId) {
        let forgotten = self.lock().lanes.remove(&(pipe, partition));
        drop(forgotten);
    }

    /// Takes a chunk at the end of its history.
    ///
    /// # Errors
    /// See [`AppendError`]; the memtable is unchanged then. A sound chunk over no offset at all is
    /// accepted, and nothing is kept of it.
    pub fn append(&self, chunk: Chunk) -> Result<(), AppendError> {
        check(&chunk)?;
        let Chunk { span, rows, rejects } = chunk;
        let rows = rows.filter(|rows| rows.num_rows() > 0);
        let rejects = rejects.filter(|rejects| rejects.num_rows() > 0);
        let piece = Arc::new(Piece::new(span, rows, rejects, Instant::now()));
        let merge = {
            let mut state = self.lock();
            if state.closed {
                return Err(AppendError::Closed);
            }
            let lane = state
                .lanes
                .get_mut(&(span.key.pipe, span.key.partition))
                .ok_or(AppendError::NotOpen)?;
            if lane.key != span.key {
                return Err(AppendError::OtherIncarnation);
            }
            if lane.to != span.start {
                return Err(AppendError::NotNext {
                    expected: lane.to,
                    given: span.start,
                });
            }
            if span.start == span.end {
                return Ok(());
            }
            lane.to = span.end;
            lane.fresh.push(piece);
            merge_from(&lane.fresh).map(|from| lane.fresh[from..].to_vec())
        };
        if let Some(small) = merge {
            self.merge(span.key, &small);
        }
        Ok(())
    }

    /// Puts one piece in the place of `small`, unless they were cut or forgotten meanwhile.
    fn merge(&self, key: SpanKey, small: &[Arc<Piece>]) {
        let merged = match Piece::merge(small) {
            Ok(merged) => Arc::new(merged),
            Err(error) => {
                // The chunks stay as they are: correct, only slower to read.
                tracing::debug!(shard = %self.shard, ?key, %error, "small chunks were not merged");
                return;
            }
        };
        let mut state = self.lock();
        let Some(lane) = state.lanes.get_mut(&(key.pipe, key.partition)) else {
            return;
        };
        let Some(at) = lane.fresh.iter().position(|piece| Arc::ptr_eq(piece, &small[0])) else {
            return;
        };
        let still = lane.fresh[at..]
            .iter()
            .zip(small)
            .filter(|(a, b)| Arc::ptr_eq(a, b))
            .count();
        if still == small.len() {
            lane.fresh.splice(at..at + small.len(), [merged]);
        }
    }

    /// Everything that is not yet in a cut becomes one. `None` when one is outstanding already, or
    /// when there is nothing, or after [`Memtable::close`].
    pub fn cut(&self) -> Option<Cut> {
        self.cut_of(Extent::All)
    }

    /// As [`Memtable::cut`], of those partitions only.
    pub fn cut_of(&self, extent: Extent) -> Option<Cut> {
        let pieces = {
            let mut state = self.lock();
            if state.cut_outstanding || state.epoch.is_none() {
                return None;
            }
            for lane in state.lanes.values_mut() {
                if extent == Extent::All || lane.show == Show::WhenCommitted {
                    lane.frozen = std::mem::take(&mut lane.fresh);
                }
            }
            state.frozen()
        };
        list_cut(pieces)
    }

    /// The outstanding cut without the histories in `drop`: their chunks, and everything later of
    /// them, are forgotten, and the partitions are closed.
    ///
    /// `None` when nothing is left of it, or when none is outstanding; then none is.
    pub fn recut(&self, drop: &[SpanKey]) -> Option<Cut> {
        let mut forgotten = Vec::new();
        let pieces = {
            let mut state = self.lock();
            for key in drop {
                let place = (key.pipe, key.partition);
                if state.lanes.get(&place).is_some_and(|lane| lane.key == *key) {
                    forgotten.extend(state.lanes.remove(&place));
                }
            }
            state.frozen()
        };
        std::mem::drop(forgotten);
        list_cut(pieces)
    }

    /// The outstanding cut is in a committed part: its chunks go, and `from` of its partitions moves
    /// to where it ended. Without an outstanding cut nothing happens.
    pub fn commit_cut(&self) {
        let mut gone = Vec::new();
        let mut state = self.lock();
        for lane in state.lanes.values_mut() {
            if let Some(last) = lane.frozen.last() {
                lane.from = last.span.end;
                lane.before = epoch_after(lane.before, &lane.frozen);
                gone.push(std::mem::take(&mut lane.frozen));
            }
        }
        state.cut_outstanding = false;
        drop(state);
        drop(gone);
    }

    /// One moment of all open partitions; `None` after [`Memtable::close`], and while this is a standby's.
    ///
    /// The lock is held for one pointer per piece; the batches are listed after.
    pub fn pin(&self) -> Option<PinnedShard> {
        let (epoch, lanes) = {
            let state = self.lock();
            // A closed one has none either.
            let epoch = state.epoch?;
            let pinned = |lane: &Lane| {
                let (to, pieces) = match lane.show {
                    Show::AtOnce => (lane.to, lane.frozen.iter().chain(&lane.fresh).cloned().collect()),
                    // A pin that ends where it begins says that there is nothing beyond what is committed.
                    Show::WhenCommitted => (lane.from, Vec::new()),
                };
                (
                    PinnedPartition {
                        key: lane.key,
                        from: lane.from,
                        to,
                    },
                    pieces,
                )
            };
            let lanes: Vec<(PinnedPartition, Vec<Arc<Piece>>)> = state.lanes.values().map(pinned).collect();
            (epoch, lanes)
        };
        let mut batches = Vec::new();
        for (partition, pieces) in &lanes {
            let rows = pieces.iter().filter_map(|piece| piece.rows.clone());
            batches.extend(rows.map(|rows| PinnedBatch {
                key: partition.key,
                rows,
            }));
        }
        let partitions = lanes.into_iter().map(|(partition, _)| partition).collect();
        Some(PinnedShard {
            shard: self.shard,
            epoch,
            partitions,
            batches,
        })
    }

    /// The open history of a partition, if it is open; `None` while this is a standby's, which answers for nothing.
    pub fn history(&self, pipe: PipeId, partition: PartitionId) -> Option<History> {
        let state = self.lock();
        state.epoch?;
        state.lanes.get(&(pipe, partition)).map(|lane| History {
            key: lane.key,
            from: lane.from,
            to: lane.to,
            source_epoch: epoch_after(epoch_after(lane.before, &lane.frozen), &lane.fresh),
        })
    }

    /// Closes a partition of which nothing is here, if it ends at `end`; returns whether it did.
    pub fn close_if_empty_at(&self, pipe: PipeId, partition: PartitionId, end: Offset) -> bool {
        let mut state = self.lock();
        let place = (pipe, partition);
        let is_there = |lane: &Lane| lane.from == end && lane.to == end;
        let closes = state.lanes.get(&place).is_some_and(is_there);
        if closes {
            state.lanes.remove(&place);
        }
        closes
    }

    /// Ends serving: everything is forgotten, and from now on nothing is taken and nothing is shown.
    pub fn close(&self) {
        let forgotten = {
            let mut state = self.lock();
            std::mem::replace(
                &mut *state,
                State {
                    closed: true,
                    ..State::default()
                },
            )
        };
        drop(forgotten);
    }

    /// The next offset of each open history.
    pub fn positions(&self) -> Vec<(SpanKey, Offset)> {
        let state = self.lock();
        state.lanes.values().map(|lane| (lane.key, lane.to)).collect()
    }

    /// What it holds now. Costs one pass over its pieces, of which there are few.
    pub fn stats(&self) -> MemtableStats {
        let now = Instant::now();
        let mut stats = MemtableStats::default();
        let (mut oldest, mut awaited): (Option<Instant>, Option<Instant>) = (None, None);
        let state = self.lock();
        for lane in state.lanes.values() {
            for piece in &lane.frozen {
                stats.rows += piece.span.counts.rows;
                stats.bytes += piece.memory as u64;
            }
            for piece in &lane.fresh {
                stats.uncut_rows += piece.span.counts.rows;
                stats.uncut_bytes += piece.memory as u64;
            }
            if let Some(first) = lane.fresh.first() {
                oldest = Some(oldest.map_or(first.since, |oldest| oldest.min(first.since)));
                if lane.show == Show::WhenCommitted {
                    awaited = Some(awaited.map_or(first.since, |oldest| oldest.min(first.since)));
                }
            }
        }
        stats.rows += stats.uncut_rows;
        stats.bytes += stats.uncut_bytes;
        stats.oldest_age = oldest.map(|oldest| now.saturating_duration_since(oldest));
        stats.awaited_age = awaited.map(|oldest| now.saturating_duration_since(oldest));
        stats
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that runs under the lock can leave the state half changed by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The pieces of the cut, by partition; notes whether there is one.
    fn frozen(&mut self) -> Vec<Vec<Arc<Piece>>> {
        let frozen = self.lanes.values().filter(|lane| !lane.frozen.is_empty());
        let pieces: Vec<_> = frozen.map(|lane| lane.frozen.clone()).collect();
        self.cut_outstanding = !pieces.is_empty();
        pieces
    }
}

fn list_cut(pieces: Vec<Vec<Arc<Piece>>>) -> Option<Cut> {
    if pieces.is_empty() {
        return None;
    }
    let mut cut = Cut::default();
    for lane in pieces {
        // Joins always: a lane's pieces tile its history.
        cut.spans.extend(
            lane.iter()
                .map(|piece| piece.span)
                .reduce(|all, next| all.join(&next).unwrap_or(all)),
        );
        cut.rows.extend(lane.iter().filter_map(|piece| piece.rows.clone()));
        let rejects = lane
            .iter()
            .filter_map(|piece| Some((piece.span.key.pipe, piece.rejects.clone()?)));
        cut.rejects.extend(rejects);
        cut.memory += lane.iter().map(|piece| piece.memory as u64).sum::<u64>();
    }
    Some(cut)
}

/// Whether the batches are what the span says.
fn check(chunk: &Chunk) -> Result<(), AppendError> {
    let count = |batch: &Option<RecordBatch>| batch.as_ref().map_or(0, RecordBatch::num_rows) as u64;
    let counts = &chunk.span.counts;
    if !chunk.span.is_sound() {
        return Err(AppendError::Unsound(
            "the span is backwards, or does not account for every offset once",
        ));
    }
    if count(&chunk.rows) != counts.rows {
        return Err(AppendError::Unsound("the span counts other than its rows"));
    }
    if count(&chunk.rejects) != counts.rejected {
        return Err(AppendError::Unsound("the span counts other than its rejected records"));
    }
    // The records of the rows, counted by their offsets: a record that holds several values has several rows.
    if check_offsets(chunk.rows.as_ref(), OFFSET, &chunk.span)? != counts.stored {
        return Err(AppendError::Unsound("the rows are of other than the stored records"));
    }
    if check_offsets(chunk.rejects.as_ref(), "offset", &chunk.span)? != counts.rejected {
        return Err(AppendError::Unsound("a record is rejected twice"));
    }
    Ok(())
}

/// How many different offsets `column` holds, which must ascend within `span`.
fn check_offsets(batch: Option<&RecordBatch>, column: &str, span: &Span) -> Result<u64, AppendError> {
    let Some(batch) = batch.filter(|batch| batch.num_rows() > 0) else {
        return Ok(0);
    };
    let offsets = batch
        .column_by_name(column)
        .and_then(|column| column.as_primitive_opt::<Int64Type>());
    let Some(offsets) = offsets.filter(|offsets| offsets.null_count() == 0) else {
        return Err(AppendError::Unsound("there is no offset column"));
    };
    let offsets = offsets.values();
    let within = |offset: i64| u64::try_from(offset).is_ok_and(|o| span.start.0 <= o && o < span.end.0);
    if !offsets.is_sorted() || !within(offsets[0]) || !within(offsets[offsets.len() - 1]) {
        return Err(AppendError::Unsound("offsets are out of order or outside the span"));
    }
    Ok(count_different(offsets))
}
