//! From records to columns: a run of records of one source partition becomes a chunk.
//!
//! Every record of a run ends in exactly one of three places: it becomes rows, it is filtered because the pipe
//! says so, or it is rejected with the reason. None is skipped and none stops the run.

mod json;
mod rejects;
mod stored;

pub use json::JsonDecoder;
pub use stored::{first_rejected, rejected_offsets, rejected_records, without};

use arrow::array::RecordBatch;

/// One record as the source gave it.
#[derive(Clone, Copy, Debug)]
pub struct SourceRecord<'r> {
    /// Its offset.
    pub offset: i64,
    /// Its time, milliseconds since 1970, if it has one.
    pub timestamp_ms: Option<i64>,
    /// Its key.
    pub key: Option<&'r [u8]>,
    /// Its payload; `None` is a tombstone.
    pub payload: Option<&'r [u8]>,
    /// Its headers as a JSON object in text, if it has any and may need them.
    pub headers: Option<&'r str>,
}

/// What a run of records became: rows and rejects, each in offset order.
#[derive(Debug, Default)]
pub struct Decoded {
    /// Columns of the table with the metadata columns; `None` when there is no row. A record that became
    /// several rows has its offset in each of them.
    pub rows: Option<RecordBatch>,
    /// Columns of a reject part; `None` when there is no reject.
    pub rejects: Option<RecordBatch>,
    /// Records that became rows.
    pub stored: u64,
    /// Records that hold nothing to store, as the pipe's options have it.
    pub filtered: u64,
}

impl Decoded {
    /// How many records became rows.
    pub fn stored(&self) -> u64 {
        self.stored
    }

    /// How many records were rejected.
    pub fn rejected(&self) -> u64 {
        self.rejects.as_ref().map_or(0, |b| b.num_rows() as u64)
    }

    /// How many records were filtered.
    pub fn filtered(&self) -> u64 {
        self.filtered
    }

    /// How many rows there are; more than [`Decoded::stored`] when records hold several objects.
    pub fn rows_count(&self) -> u64 {
        self.rows.as_ref().map_or(0, |b| b.num_rows() as u64)
    }
}
