//! `system.writers`: the programs that write rows themselves.

use super::cluster::table_names;
use super::columns::Columns;
use crate::error::QueryError;
use arrow::array::RecordBatch;
use tidemill_core::catalog::{SourcePartition, Table, Writer};
use tidemill_core::view::{CatalogRead, CatalogSnapshot};

/// The writers, and how many rows of each are committed.
pub(super) fn writers(snapshot: &dyn CatalogSnapshot) -> Result<RecordBatch, QueryError> {
    let writers: Vec<Writer> = snapshot.list(&[])?;
    let tables = table_names(snapshot)?;
    let mut lines = Vec::with_capacity(writers.len());
    for writer in &writers {
        let table = snapshot.get::<Table>(&writer.table)?;
        let (mut rows, mut last) = (0, writer.opened_at_ms);
        for shard in 0..table.as_ref().map_or(0, |table| table.shards) {
            let number = table.as_ref().and_then(|table| writer.partition(table, shard));
            let Some(number) = number else { continue };
            if let Some(partition) = snapshot.get::<SourcePartition>(&(writer.pipe, number))? {
                rows += partition.offset.0;
                last = last.max(partition.committed_at_ms);
            }
        }
        lines.push((rows, last));
    }
    Columns::default()
        .number("writer", writers.iter().map(|w| Some(w.id.0)))
        .text("table", writers.iter().map(|w| tables.get(&w.table).cloned()))
        .text("acks", writers.iter().map(|w| Some(w.acks.name().to_owned())))
        .number("rows", lines.iter().map(|(rows, _)| Some(*rows)))
        .time("opened_at", writers.iter().map(|w| w.opened_at_ms))
        .time("committed_at", lines.iter().map(|(_, last)| *last))
        .finish()
}
