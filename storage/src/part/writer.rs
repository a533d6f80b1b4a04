//! From rows to part files: check, split by the partition expression, sort, encode.
//!
//! Every row of every table passes here, so rows are copied once at most: sort keys are compared as
//! bytes, a permutation is found, and the columns are gathered from the batches as they came, one
//! piece of a row group at a time. Rows that are in order already are encoded where they lie.

use super::encode::{FileOf, encode};
use super::order::{SortKey, sorted};
use super::split::split;
use super::{PartError, WrittenPart};
use crate::schema::{arrow_schema, reject_schema};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use tidemill_core::catalog::Table;
use tidemill_core::schema::{METADATA_COLUMNS, OFFSET, PARTITION, TIMESTAMP};
use tidemill_core::{Epoch, PartId, PipeId, ShardId};

/// The catalog keeps ranges of at most so many columns per part.
const MAX_RANGES: usize = 32;

/// Writes `rows`, of the schema [`arrow_schema`]`(table)`, as one part per value of the table's
/// partition expression; as one part, if it has none; as no part, if there is no row.
///
/// Each part is sorted by `table.order_by`, then `_partition`, `_offset`; ascending, nulls last.
/// `new_id` is asked once per part. Parts come in the order of their partition values.
///
/// # Errors
/// When the batches have another schema, the definition names columns that are missing or cannot be
/// truncated, or encoding fails; nothing is kept then.
pub fn write_parts(
    table: &Table,
    shard: ShardId,
    epoch: Epoch,
    rows: &[RecordBatch],
    new_id: &mut dyn FnMut() -> PartId,
) -> Result<Vec<WrittenPart>, PartError> {
    let schema = arrow_schema(table);
    let rows = checked(&schema, rows)?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let key = SortKey::new(&schema, &table.order_by)?;
    let ranged = ranged_columns(table);
    let mut parts = Vec::new();
    for group in split(&rows, table.partition_by.as_ref())? {
        let selection = sorted(&rows, group.rows, &key)?;
        let of = FileOf {
            shard,
            epoch,
            id: new_id(),
            suffix: "parquet",
            schema: &schema,
            schema_version: Some(table.schema_version),
            sorted_by: key.columns(),
            partition_value: group.value,
            ranged: &ranged,
        };
        parts.push(encode(of, &rows, &selection)?);
    }
    Ok(parts)
}

/// Writes `batches`, of the schema [`reject_schema`], as one reject part, in the order given.
///
/// # Errors
/// When the batches have another schema, or encoding fails.
pub fn write_rejects(
    pipe: PipeId,
    shard: ShardId,
    epoch: Epoch,
    batches: &[RecordBatch],
    new_id: &mut dyn FnMut() -> PartId,
) -> Result<WrittenPart, PartError> {
    let schema = reject_schema();
    let batches = checked(&schema, batches)?;
    let of = FileOf {
        shard,
        epoch,
        id: new_id(),
        suffix: "rejects.parquet",
        schema: &schema,
        schema_version: None,
        sorted_by: &[],
        partition_value: None,
        ranged: &["partition", "offset", "timestamp"].map(str::to_owned),
    };
    tracing::trace!(%pipe, %shard, "writing a reject part");
    encode(of, &batches, &super::order::Selection::AsGiven)
}

/// The batches that have rows, all of `schema`.
fn checked<'a>(schema: &SchemaRef, batches: &'a [RecordBatch]) -> Result<Vec<&'a RecordBatch>, PartError> {
    for batch in batches {
        let given = batch.schema_ref();
        if given.fields() != schema.fields() {
            return Err(PartError::Schema(format!("given {given}, expected {schema}")));
        }
    }
    Ok(batches.iter().filter(|batch| batch.num_rows() > 0).collect())
}

/// The columns whose ranges the catalog keeps, the most useful first.
fn ranged_columns(table: &Table) -> Vec<String> {
    use tidemill_core::schema::ColumnType as T;
    let ordered = table.order_by.iter().map(String::as_str);
    let partition = table.partition_by.iter().map(|by| by.column());
    let numbers = table
        .columns
        .iter()
        .filter(|c| !matches!(c.data_type, T::Text | T::Boolean | T::Decimal { .. }) && !c.data_type.is_nested());
    let mut columns: Vec<String> = Vec::new();
    for name in ordered
        .chain(partition)
        .chain([PARTITION, OFFSET, TIMESTAMP])
        .chain(numbers.map(|column| column.name.as_str()))
    {
        debug_assert!(METADATA_COLUMNS.contains(&name) || table.columns.iter().any(|c| c.name == name));
        if columns.len() < MAX_RANGES && !columns.iter().any(|c| c == name) {
            columns.push(name.to_owned());
        }
    }
    columns
}
