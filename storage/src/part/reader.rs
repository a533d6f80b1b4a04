//! Reading a part back whole, with every check there is. Queries do not come through here: they read
//! the columns they need through [`crate::PartStore::reader`].

use super::PartError;
use arrow::array::RecordBatch;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tidemill_core::catalog::PartFile;
use xxhash_rust::xxh3::xxh3_64;

/// The rows of a part, in their order.
///
/// # Errors
/// [`PartError::Damaged`] when `bytes` are not of the length, checksum or number of rows that
/// `expected` says; others when they cannot be decoded all the same.
pub fn read_part(bytes: Bytes, expected: &PartFile) -> Result<Vec<RecordBatch>, PartError> {
    let check = |what, expected_value: u64, found: u64| match expected_value == found {
        true => Ok(()),
        false => Err(PartError::Damaged {
            path: expected.path.clone(),
            what,
            expected: expected_value,
            found,
        }),
    };
    check("length", expected.bytes, bytes.len() as u64)?;
    check("checksum", expected.checksum, xxh3_64(&bytes))?;
    let batches: Vec<RecordBatch> = ParquetRecordBatchReaderBuilder::try_new(bytes)?
        .with_batch_size(8192)
        .build()?
        .collect::<Result<_, _>>()?;
    check(
        "rows",
        expected.rows,
        batches.iter().map(|batch| batch.num_rows() as u64).sum(),
    )?;
    Ok(batches)
}
