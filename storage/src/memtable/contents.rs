//! What goes into a memtable and what comes out of it: chunks, cuts, pins, numbers. Plain values; all
//! of them hold references to the same immutable batches, so they are cheap to clone.

use arrow::array::{Array, ArrayRef, RecordBatch};
use std::collections::BTreeSet;
use std::time::Duration;
use tidemill_core::schema::OFFSET;
use tidemill_core::{Epoch, Offset, PipeId, ShardId, Span, SpanKey};

/// What a task gives: a span of one partition, with what was found in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// The offsets, and how many records became what.
    pub span: Span,
    /// `span.counts.rows` rows in offset order, with the schema of [`crate::arrow_schema`]; `None` is none.
    pub rows: Option<RecordBatch>,
    /// `span.counts.rejected` records in offset order, with the schema of [`crate::reject_schema`]; `None` is none.
    pub rejects: Option<RecordBatch>,
}

/// From when on the rows of a partition are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// As soon as they are in the memtable.
    AtOnce,
    /// When they are in a committed part: never from here.
    WhenCommitted,
}

/// What a cut takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Every partition.
    All,
    /// Partitions that are shown when they are committed, whose writers wait for it.
    Awaited,
}

/// Why a chunk was not taken. Nothing of it is visible then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The partition was never opened, or closed since.
    #[error("the partition is not open")]
    NotOpen,
    /// There would be a gap or an overlap.
    #[error("the next offset is {expected}, the span begins at {given}")]
    NotNext {
        /// Where the history ends.
        expected: Offset,
        /// Where the chunk begins.
        given: Offset,
    },
    /// The partition is open in another life.
    #[error("the partition is open in another incarnation")]
    OtherIncarnation,
    /// The memtable is closed: this node no longer leads the shard.
    #[error("the memtable is closed")]
    Closed,
    /// The chunk contradicts itself: a mistake of the caller.
    #[error("unsound chunk: {0}")]
    Unsound(&'static str),
}

/// What is to be flushed together: everything that was there when it was cut.
#[derive(Clone, Debug, Default)]
pub struct Cut {
    /// One span per partition, by pipe and partition.
    pub spans: Vec<Span>,
    /// Its rows: partitions in the order of `spans`, offsets ascending within each.
    pub rows: Vec<RecordBatch>,
    /// Its rejected records, in the same order; a pipe may have several batches.
    pub rejects: Vec<(PipeId, RecordBatch)>,
    /// What all these hold in memory, in bytes.
    pub memory: u64,
}

/// What a query reads: one moment of a shard's memtable. It holds its own references.
#[derive(Clone, Debug)]
pub struct PinnedShard {
    /// The shard.
    pub shard: ShardId,
    /// The term in which this node leads it.
    pub epoch: Epoch,
    /// Which offsets of which histories are covered, by pipe and partition.
    pub partitions: Vec<PinnedPartition>,
    /// Their rows: partitions in the same order, offsets ascending within each; no batch is empty.
    pub batches: Vec<PinnedBatch>,
}

impl PinnedShard {
    /// The same rows with those of their columns that are in `names`, and their offsets.
    pub fn with_columns(mut self, names: &BTreeSet<String>) -> Self {
        for batch in &mut self.batches {
            let fields = batch.rows.schema_ref().fields().iter().enumerate();
            let wanted = fields.filter(|(_, field)| field.name() == OFFSET || names.contains(field.name()));
            let wanted: Vec<usize> = wanted.map(|(at, _)| at).collect();
            // It cannot fail, as these columns are there; if it did, all of them would be kept.
            if let Ok(rows) = batch.rows.project(&wanted) {
                batch.rows = rows;
            }
        }
        self
    }

    /// Bytes that its rows take, without what their buffers hold in reserve or for others.
    pub fn memory(&self) -> usize {
        let columns = self.batches.iter().flat_map(|batch| batch.rows.columns());
        // Only a column of more values than a machine can hold has no size.
        let size = |column: &ArrayRef| column.to_data().get_slice_memory_size().unwrap_or_default();
        columns.map(size).sum()
    }
}

/// The open history of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    /// Which one it is.
    pub key: SpanKey,
    /// First offset that is here.
    pub from: Offset,
    /// One past the last offset.
    pub to: Offset,
    /// Leader epoch of the source at the record before `to`, if it is known.
    pub source_epoch: Option<i32>,
}

/// The offsets of one partition that a pin covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinnedPartition {
    /// The history.
    pub key: SpanKey,
    /// First offset.
    pub from: Offset,
    /// One past the last offset.
    pub to: Offset,
}

/// Some rows of one partition.
#[derive(Clone, Debug)]
pub struct PinnedBatch {
    /// The history.
    pub key: SpanKey,
    /// The rows, with the schema that their chunk had, or some columns of it.
    pub rows: RecordBatch,
}

/// What a memtable holds. Rejected records count in bytes, not in rows.
#[derive(Clone, Debug, Default)]
pub struct MemtableStats {
    /// All rows.
    pub rows: u64,
    /// All memory, including what its buffers hold in reserve.
    pub bytes: u64,
    /// Rows that are not in the outstanding cut.
    pub uncut_rows: u64,
    /// Memory that is not in the outstanding cut.
    pub uncut_bytes: u64,
    /// How long the oldest chunk outside the outstanding cut has been here; `None` without one.
    pub oldest_age: Option<Duration>,
    /// The same of partitions that are shown when they are committed.
    pub awaited_age: Option<Duration>,
}
