//! From records to columns: a run of records of one source partition becomes a chunk.
//!
//! Every record of a run ends in exactly one of two places: a row, or a reject with the reason. None is
//! skipped and none stops the run.

mod json;
mod rejects;

pub use json::{Decoded, JsonDecoder};

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
