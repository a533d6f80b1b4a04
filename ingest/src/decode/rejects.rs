//! Records that could not be decoded, as rows of a reject part: everything the source gave, and why.

use super::SourceRecord;
use arrow::array::{
    ArrayRef, BinaryBuilder, Int32Array, Int64Array, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray,
};
use arrow::error::ArrowError;
use std::sync::Arc;
use tidemill_storage::schema::reject_schema;

/// Headers of more bytes of text are not kept: a column of texts cannot hold several of them.
const LONGEST_HEADERS: usize = 64 << 20;

/// The batch of `rejects`, each a record and the reason.
pub fn reject_batch(
    topic: &str,
    partition: i32,
    rejects: &[(SourceRecord<'_>, String)],
) -> Result<RecordBatch, ArrowError> {
    let mut keys = BinaryBuilder::new();
    let mut headers = StringBuilder::new();
    let mut payloads = BinaryBuilder::new();
    for (record, _) in rejects {
        keys.append_option(record.key);
        headers.append_option(record.headers.filter(|text| text.len() <= LONGEST_HEADERS));
        payloads.append_option(record.payload);
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rejects.iter().map(|_| topic))),
        Arc::new(Int32Array::from_iter_values(rejects.iter().map(|_| partition))),
        Arc::new(Int64Array::from_iter_values(rejects.iter().map(|(r, _)| r.offset))),
        Arc::new(TimestampMicrosecondArray::from_iter(
            rejects
                .iter()
                .map(|(r, _)| r.timestamp_ms.map(|ms| ms.saturating_mul(1000))),
        )),
        Arc::new(keys.finish()),
        Arc::new(headers.finish()),
        Arc::new(payloads.finish()),
        Arc::new(StringArray::from_iter_values(rejects.iter().map(|(_, why)| why))),
    ];
    RecordBatch::try_new(reject_schema(), columns)
}
