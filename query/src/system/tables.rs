//! `system.tables` and `system.parts`. Both read the records of all parts.

use super::cluster::table_names;
use super::columns::Columns;
use crate::error::QueryError;
use arrow::array::RecordBatch;
use std::collections::BTreeMap;
use tidemill_core::TableId;
use tidemill_core::catalog::{CatalogQuestions, Part, Table};
use tidemill_core::view::{CatalogRead, CatalogSnapshot};

/// The tables, with what is committed in each.
pub(super) fn tables(snapshot: &dyn CatalogSnapshot) -> Result<RecordBatch, QueryError> {
    let mut tables: Vec<Table> = snapshot.list(&[])?;
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    // Parts, rows, bytes; one table at a time, so that the parts of all are never held at once.
    let mut sums: BTreeMap<TableId, (u64, u64, u64)> = BTreeMap::new();
    let mut pipes = BTreeMap::new();
    for table in &tables {
        let sum = snapshot
            .parts_of(table.id)?
            .iter()
            .fold((0, 0, 0), |(parts, rows, bytes), part| {
                (parts + 1, rows + part.file.rows, bytes + part.file.bytes)
            });
        sums.insert(table.id, sum);
        let names: Vec<_> = snapshot
            .pipes_into(table.id)?
            .into_iter()
            .map(|pipe| pipe.name)
            .collect();
        pipes.insert(table.id, names.join(", "));
    }
    let sum = |table: &Table| sums.get(&table.id).copied().unwrap_or_default();
    Columns::default()
        .text("name", tables.iter().map(|table| Some(table.name.clone())))
        .number("columns", tables.iter().map(|table| Some(table.columns.len() as u64)))
        .number("shards", tables.iter().map(|table| Some(table.shards.into())))
        .text("order_by", tables.iter().map(|table| Some(table.order_by.join(", "))))
        .text(
            "partition_by",
            tables
                .iter()
                .map(|table| table.partition_by.as_ref().map(ToString::to_string)),
        )
        .text("pipes", tables.iter().map(|table| pipes.get(&table.id).cloned()))
        .number("parts", tables.iter().map(|table| Some(sum(table).0)))
        .number("rows", tables.iter().map(|table| Some(sum(table).1)))
        .number("bytes", tables.iter().map(|table| Some(sum(table).2)))
        .time("created_at", tables.iter().map(|table| table.created_at_ms))
        .finish()
}

/// The committed parts.
pub(super) fn parts(snapshot: &dyn CatalogSnapshot) -> Result<RecordBatch, QueryError> {
    let parts: Vec<Part> = snapshot.list(&[])?;
    let tables = table_names(snapshot)?;
    Columns::default()
        .text("table", parts.iter().map(|part| tables.get(&part.shard.table).cloned()))
        .number("shard", parts.iter().map(|part| Some(part.shard.index.into())))
        .text("part", parts.iter().map(|part| Some(part.file.id.to_string())))
        .text("path", parts.iter().map(|part| Some(part.file.path.clone())))
        .number("rows", parts.iter().map(|part| Some(part.file.rows)))
        .number("bytes", parts.iter().map(|part| Some(part.file.bytes)))
        .text(
            "partition_value",
            parts.iter().map(|part| part.file.partition_value.clone()),
        )
        .number("version", parts.iter().map(|part| Some(part.version.0)))
        .time("committed_at", parts.iter().map(|part| part.committed_at_ms))
        .finish()
}
