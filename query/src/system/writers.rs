//! `system.writers`: the programs that write rows themselves.

use super::cluster::table_names;
use super::columns::Columns;
use crate::error::QueryError;
use arrow::array::RecordBatch;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use tidemill_core::PipeId;
use tidemill_core::catalog::{CatalogQuestions, SourcePartition, Table, Writer};
use tidemill_core::view::{CatalogRead, CatalogSnapshot};

/// The writers, and how many rows of each are committed.
pub(super) fn writers(snapshot: &dyn CatalogSnapshot) -> Result<RecordBatch, QueryError> {
    let writers: Vec<Writer> = snapshot.list(&[])?;
    let tables = table_names(snapshot)?;
    let mut partitions: BTreeMap<PipeId, Vec<SourcePartition>> = BTreeMap::new();
    let mut lines = Vec::with_capacity(writers.len());
    for writer in &writers {
        let shards = snapshot.get::<Table>(&writer.table)?.map_or(1, |table| table.shards);
        let of_pipe = match partitions.entry(writer.pipe) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(snapshot.partitions_of(writer.pipe)?),
        };
        let own = of_pipe
            .iter()
            .filter(|p| Writer::number_of(p.partition, shards) == writer.number);
        let (mut rows, mut last) = (0, writer.opened_at_ms);
        for partition in own {
            rows += partition.offset.0;
            last = last.max(partition.committed_at_ms);
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
