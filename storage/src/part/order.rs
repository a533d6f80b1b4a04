//! In which order rows go into a part.
//!
//! Sort keys are compared as bytes (Arrow's row format, which orders like the values), by a stable
//! merge sort that takes advantage of runs: a memtable is a few runs per partition, often sorted by
//! time already. If the rows come in (`_partition`, `_offset`) order, as from a memtable, stability
//! alone breaks ties; otherwise these two columns join the key.

use super::PartError;
use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::compute::SortOptions;
use arrow::datatypes::{Int32Type, Int64Type, Schema};
use arrow::row::{RowConverter, Rows, SortField};
use std::cmp::Ordering;
use tidemill_core::schema::{OFFSET, PARTITION};

/// Nulls come last, whatever the column.
const NULLS_LAST: SortOptions = SortOptions {
    descending: false,
    nulls_first: false,
};

/// By which columns a part is sorted: the table's, then `_partition` and `_offset`.
pub(super) struct SortKey {
    columns: Vec<usize>,
    declared: usize,
    partition: usize,
    offset: usize,
}

impl SortKey {
    /// # Errors
    /// When a column is not in `schema`.
    pub fn new(schema: &Schema, order_by: &[String]) -> Result<Self, PartError> {
        let find = |name: &str| schema.index_of(name).map_err(|e| PartError::Definition(e.to_string()));
        let mut columns: Vec<usize> = Vec::new();
        for name in order_by {
            let column = find(name)?;
            if !columns.contains(&column) {
                columns.push(column);
            }
        }
        let (declared, partition, offset) = (columns.len(), find(PARTITION)?, find(OFFSET)?);
        for tie_break in [partition, offset] {
            if !columns.contains(&tie_break) {
                columns.push(tie_break);
            }
        }
        Ok(Self {
            columns,
            declared,
            partition,
            offset,
        })
    }

    /// All of them, as positions in the schema.
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }
}

/// Some rows of a list of batches, in order. Rows are numbered through all batches.
pub(super) enum Selection {
    /// All of them, as they are.
    AsGiven,
    /// These.
    Rows(Vec<u32>),
}

/// `chosen` rows (ascending; `None` is all) in the order of `key`.
pub(super) fn sorted(
    batches: &[&RecordBatch],
    chosen: Option<Vec<u32>>,
    key: &SortKey,
) -> Result<Selection, PartError> {
    let as_read = is_by_offset(batches, key);
    let columns = &key.columns[..if as_read { key.declared } else { key.columns.len() }];
    if columns.is_empty() {
        return Ok(chosen.map_or(Selection::AsGiven, Selection::Rows));
    }
    let keys = key_bytes(batches, columns)?;
    let ordered = |a: u32, b: u32| keys.row(a as usize).data() <= keys.row(b as usize).data();
    match chosen {
        None => {
            let rows = row_number(keys.num_rows())?;
            if (1..rows).all(|row| ordered(row - 1, row)) {
                return Ok(Selection::AsGiven);
            }
            Ok(Selection::Rows(sort(&keys, 0..rows)))
        }
        Some(chosen) if chosen.windows(2).all(|pair| ordered(pair[0], pair[1])) => Ok(Selection::Rows(chosen)),
        Some(chosen) => Ok(Selection::Rows(sort(&keys, chosen.into_iter()))),
    }
}

/// A row's number, which must fit 32 bits.
pub(super) fn row_number(row: usize) -> Result<u32, PartError> {
    u32::try_from(row).map_err(|_| PartError::Schema(format!("{row} rows are too many for one part")))
}

fn is_by_offset(batches: &[&RecordBatch], key: &SortKey) -> bool {
    let mut last = (i32::MIN, i64::MIN);
    for batch in batches {
        let partitions = batch.column(key.partition).as_primitive::<Int32Type>().values();
        let offsets = batch.column(key.offset).as_primitive::<Int64Type>().values();
        for position in partitions.iter().copied().zip(offsets.iter().copied()) {
            if position < last {
                return false;
            }
            last = position;
        }
    }
    true
}

fn key_bytes(batches: &[&RecordBatch], columns: &[usize]) -> Result<Rows, PartError> {
    let schema = batches[0].schema_ref();
    let field = |&c: &usize| SortField::new_with_options(schema.field(c).data_type().clone(), NULLS_LAST);
    let converter = RowConverter::new(columns.iter().map(field).collect())?;
    let mut keys = converter.empty_rows(batches.iter().map(|batch| batch.num_rows()).sum(), 0);
    for batch in batches {
        let columns: Vec<ArrayRef> = columns.iter().map(|&c| batch.column(c).clone()).collect();
        converter.append(&mut keys, &columns)?;
    }
    Ok(keys)
}

/// A row with the beginning of its key beside it, so that most comparisons stay in the cache.
#[derive(Clone, Copy)]
struct Entry {
    head: [u64; 2],
    row: u32,
}

const HEAD: usize = 16;

fn sort(keys: &Rows, rows: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut entries: Vec<Entry> = rows
        .map(|row| Entry {
            head: head(keys.row(row as usize).data()),
            row,
        })
        .collect();
    entries.sort_by(|a, b| match a.head.cmp(&b.head) {
        Ordering::Equal => tail(keys, a.row).cmp(tail(keys, b.row)),
        unequal => unequal,
    });
    entries.into_iter().map(|entry| entry.row).collect()
}

/// The first bytes of a key as numbers that order alike. Keys are never prefixes of each other, so
/// the zeros behind a short one decide nothing.
fn head(key: &[u8]) -> [u64; 2] {
    let mut bytes = [0; HEAD];
    let known = key.len().min(HEAD);
    bytes[..known].copy_from_slice(&key[..known]);
    let number = u128::from_be_bytes(bytes);
    [(number >> 64) as u64, number as u64]
}

fn tail(keys: &Rows, row: u32) -> &[u8] {
    keys.row(row as usize).data().get(HEAD..).unwrap_or_default()
}
