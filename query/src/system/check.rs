//! `system.check`: the ledgers held against the files. Every live part is opened and its footer counted; what the
//! ledgers of a table's pipes say must come to the same, partition by partition.

use super::columns::Columns;
use super::ledger::lives;
use crate::error::QueryError;
use arrow::array::RecordBatch;
use futures::stream::{StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use tidemill_core::catalog::{CatalogQuestions, PartFile, Pipe, RejectPart, Table};
use tidemill_core::view::{CatalogRead, CatalogSnapshot};
use tidemill_core::{PipeId, TableId};
use tidemill_storage::part::read_sources;
use tidemill_storage::store::PartStore;

/// How many files are read side by side.
const AT_ONCE: usize = 8;

#[derive(Default)]
struct Line {
    ledger_rows: u64,
    file_rows: u64,
    ledger_rejected: u64,
    file_rejected: u64,
    imbalance: Option<String>,
}

/// A source partition of a table.
type Place = (TableId, String, u32);

/// Counts everything anew. Reads every live file once.
pub(crate) async fn check(snapshot: &dyn CatalogSnapshot, store: &dyn PartStore) -> Result<RecordBatch, QueryError> {
    let tables: BTreeMap<TableId, String> = snapshot
        .list::<Table>(&[])?
        .into_iter()
        .map(|table| (table.id, table.name))
        .collect();
    let pipes: BTreeMap<PipeId, Pipe> = snapshot.list::<Pipe>(&[])?.into_iter().map(|p| (p.id, p)).collect();
    let mut lines: BTreeMap<Place, Line> = BTreeMap::new();
    for life in lives(snapshot)? {
        let Some(pipe) = pipes.get(&life.pipe) else { continue };
        let place = (pipe.table, pipe.source.topic().to_owned(), life.partition);
        let line = lines.entry(place).or_default();
        line.ledger_rows += life.ledger.counts.rows;
        line.ledger_rejected += life.ledger.counts.rejected;
        if let Some(wrong) = life.ledger.imbalance(life.end) {
            line.imbalance = Some(wrong);
        }
    }
    for table in tables.keys() {
        let files = snapshot.parts_of(*table)?.into_iter().map(|part| part.file).collect();
        for (topic, partition, rows) in count(store, files).await? {
            lines.entry((*table, topic, partition)).or_default().file_rows += rows;
        }
    }
    for pipe in pipes.values() {
        let parts: Vec<RejectPart> = snapshot.list(&tidemill_core::view::Key::bytes(&pipe.id))?;
        let files = parts.into_iter().map(|part| part.file).collect();
        for (topic, partition, rows) in count(store, files).await? {
            lines.entry((pipe.table, topic, partition)).or_default().file_rejected += rows;
        }
    }
    // A pipe that was dropped took its ledger with it; its rows stay and nobody counts them any more.
    let known = |(table, topic, _): &Place| pipes.values().any(|p| p.table == *table && p.source.topic() == topic);
    let dropped = |place: &Place| !known(place);
    let detail = |(place, line): (&Place, &Line)| match &line.imbalance {
        Some(wrong) => Some(format!("the ledger does not balance: {wrong}")),
        None if dropped(place) => Some("rows of a pipe that was dropped with its ledger".to_owned()),
        None if line.ledger_rows != line.file_rows => {
            Some("the files hold other than the ledger counts as rows".into())
        }
        None if line.ledger_rejected != line.file_rejected => {
            Some("the reject parts hold other than the ledger counts as rejected".into())
        }
        None => None,
    };
    let good = |(place, line): (&Place, &Line)| detail((place, line)).is_none() || dropped(place);
    let all = || lines.iter();
    let number = |of: fn(&Line) -> u64| all().map(move |(_, line)| Some(of(line)));
    Columns::default()
        .text("table", all().map(|((table, _, _), _)| tables.get(table).cloned()))
        .text("topic", all().map(|((_, topic, _), _)| Some(topic.clone())))
        .number(
            "partition",
            all().map(|((_, _, partition), _)| Some((*partition).into())),
        )
        .number("rows_in_ledger", number(|l| l.ledger_rows))
        .number("rows_in_files", number(|l| l.file_rows))
        .number("rejected_in_ledger", number(|l| l.ledger_rejected))
        .number("rejected_in_files", number(|l| l.file_rejected))
        .boolean("ok", all().map(|entry| Some(good(entry))))
        .text("detail", all().map(detail))
        .finish()
}

/// What the footers of `files` say.
async fn count(store: &dyn PartStore, files: Vec<PartFile>) -> Result<Vec<(String, u32, u64)>, QueryError> {
    let one = |file: PartFile| async move {
        let failed =
            |e: &dyn std::fmt::Display| QueryError::unavailable(format!("part {} cannot be read: {e}", file.path));
        let bytes = store.get(&file.path).await.map_err(|e| failed(&e))?;
        let (rows, sources) = read_sources(&bytes).map_err(|e| failed(&e))?;
        if rows != file.rows {
            return Err(failed(&format!("it has {rows} rows, the catalog says {}", file.rows)));
        }
        Ok(sources
            .into_iter()
            .map(|s| (s.topic, s.partition, s.rows))
            .collect::<Vec<_>>())
    };
    let counted: Vec<Vec<_>> = futures::stream::iter(files)
        .map(one)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    Ok(counted.into_iter().flatten().collect())
}
