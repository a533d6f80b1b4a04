//! Rejected records read back from a reject part, to be decoded once more.

use super::{Decoded, SourceRecord};
use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use arrow::error::ArrowError;
use tidemill_storage::schema::reject_schema;

/// The records of a reject part, each with its partition, in the order of the part.
///
/// # Errors
/// When the batch is not of [`reject_schema`].
pub fn rejected_records(rejects: &RecordBatch) -> Result<Vec<(i32, SourceRecord<'_>)>, ArrowError> {
    if rejects.schema_ref().fields() != reject_schema().fields() {
        return Err(ArrowError::SchemaError(
            "these are not the columns of a reject part".to_owned(),
        ));
    }
    let column = |i: usize| rejects.column(i);
    let partitions = column(1).as_primitive::<Int32Type>();
    let offsets = column(2).as_primitive::<Int64Type>();
    let times = column(3).as_primitive::<TimestampMicrosecondType>();
    let (keys, payloads) = (column(4).as_binary::<i32>(), column(6).as_binary::<i32>());
    let headers = column(5).as_string::<i32>();
    let record = |row: usize| {
        let record = SourceRecord {
            offset: offsets.value(row),
            timestamp_ms: times.is_valid(row).then(|| times.value(row).div_euclid(1000)),
            key: keys.is_valid(row).then(|| keys.value(row)),
            payload: payloads.is_valid(row).then(|| payloads.value(row)),
            headers: headers.is_valid(row).then(|| headers.value(row)),
        };
        (partitions.value(row), record)
    };
    Ok((0..rejects.num_rows()).map(record).collect())
}

/// `rejects` without the rows of these numbers.
///
/// # Errors
/// When the batch cannot be filtered, which is a bug.
pub fn without(rejects: &RecordBatch, rows: &[usize]) -> Result<RecordBatch, ArrowError> {
    let mut keep = vec![true; rejects.num_rows()];
    for row in rows {
        keep[*row] = false;
    }
    filter_record_batch(rejects, &BooleanArray::from(keep))
}

/// The offset of the first record that was rejected, and why.
pub fn first_rejected(decoded: &Decoded) -> Option<(i64, String)> {
    let rejects = decoded.rejects.as_ref().filter(|rejects| rejects.num_rows() > 0)?;
    let offset = rejects
        .column_by_name("offset")?
        .as_primitive_opt::<Int64Type>()?
        .value(0);
    let error = rejects.column_by_name("error")?.as_string_opt::<i32>()?.value(0);
    Some((offset, error.to_owned()))
}

/// The offsets of what was rejected, ascending.
pub fn rejected_offsets(decoded: &Decoded) -> Vec<i64> {
    let column = decoded
        .rejects
        .as_ref()
        .and_then(|rejects| rejects.column_by_name("offset"));
    let offsets = column.and_then(|column| column.as_primitive_opt::<Int64Type>());
    offsets.map_or_else(Vec::new, |offsets| offsets.values().to_vec())
}
