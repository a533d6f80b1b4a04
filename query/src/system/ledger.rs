//! `system.ledger`, `system.skipped`, `system.deleted_rows` and `system.events`: what became of every offset, and what
//! happened.

use super::cluster::table_names;
use super::columns::Columns;
use crate::error::QueryError;
use arrow::array::RecordBatch;
use std::collections::BTreeMap;
use tidemill_core::catalog::{CatalogQuestions, Event, Pipe, Skip, Table};
use tidemill_core::ledger::ClosedLedger;
use tidemill_core::view::{CatalogRead, CatalogSnapshot};
use tidemill_core::{Ledger, Offset, PipeId};

/// One life of one partition.
pub(super) struct Life {
    pub pipe: PipeId,
    pub partition: u32,
    pub incarnation: u64,
    pub end: Offset,
    pub ledger: Ledger,
    /// What ended it; `None` for the present one.
    pub ended_by: Option<String>,
}

/// Every life of every partition, by pipe, partition and life.
pub(super) fn lives(snapshot: &dyn CatalogSnapshot) -> Result<Vec<Life>, QueryError> {
    let mut lives = Vec::new();
    for pipe in snapshot.list::<Pipe>(&[])? {
        let closed: Vec<ClosedLedger> = snapshot.closed_ledgers_of(pipe.id)?;
        lives.extend(closed.into_iter().map(|c| Life {
            pipe: pipe.id,
            partition: c.partition.0,
            incarnation: c.incarnation.0,
            end: c.end,
            ledger: c.ledger,
            ended_by: Some(c.ended_by),
        }));
        lives.extend(snapshot.partitions_of(pipe.id)?.into_iter().map(|p| Life {
            pipe: pipe.id,
            partition: p.partition.0,
            incarnation: p.incarnation.0,
            end: p.offset,
            ledger: p.ledger,
            ended_by: None,
        }));
    }
    lives.sort_by_key(|life| (life.pipe, life.partition, life.incarnation));
    Ok(lives)
}

/// The names of the pipes.
pub(super) fn pipe_names(snapshot: &dyn CatalogSnapshot) -> Result<BTreeMap<PipeId, String>, QueryError> {
    let pipes: Vec<Pipe> = snapshot.list(&[])?;
    Ok(pipes.into_iter().map(|pipe| (pipe.id, pipe.name)).collect())
}

/// The ledger.
pub(super) fn ledger(snapshot: &dyn CatalogSnapshot) -> Result<RecordBatch, QueryError> {
    let lives = lives(snapshot)?;
    let pipes: BTreeMap<PipeId, Pipe> = snapshot.list::<Pipe>(&[])?.into_iter().map(|p| (p.id, p)).collect();
    let tables = table_names(snapshot)?;
    let all = || lives.iter();
    let table = |life: &Life| pipes.get(&life.pipe).and_then(|pipe| tables.get(&pipe.table)).cloned();
    let number = |of: fn(&Life) -> u64| all().map(move |life| Some(of(life)));
    Columns::default()
        .text(
            "pipe",
            all().map(|life| pipes.get(&life.pipe).map(|pipe| pipe.name.clone())),
        )
        .text("table", all().map(table))
        .number("partition", number(|l| l.partition.into()))
        .number("incarnation", number(|l| l.incarnation))
        .number("start", number(|l| l.ledger.start.0))
        .number("end", number(|l| l.end.0))
        .number("passed", number(|l| l.end.0.saturating_sub(l.ledger.start.0)))
        .number("delivered", number(|l| l.ledger.counts.delivered))
        .number("absent", number(|l| l.ledger.counts.absent))
        .number("lost", number(|l| l.ledger.lost))
        .number("stored", number(|l| l.ledger.counts.stored))
        .number("rejected", number(|l| l.ledger.counts.rejected))
        .number("filtered", number(|l| l.ledger.counts.filtered))
        .number("rows", number(|l| l.ledger.counts.rows))
        .boolean("balanced", all().map(|l| Some(l.ledger.imbalance(l.end).is_none())))
        .text("ended_by", all().map(|l| l.ended_by.clone()))
        .finish()
}

/// What was skipped.
pub(super) fn skipped(snapshot: &dyn CatalogSnapshot) -> Result<RecordBatch, QueryError> {
    let skips: Vec<Skip> = snapshot.list(&[])?;
    let pipes = pipe_names(snapshot)?;
    let all = || skips.iter();
    Columns::default()
        .text("pipe", all().map(|s| pipes.get(&s.pipe).cloned()))
        .number("partition", all().map(|s| Some(s.partition.0.into())))
        .number("start", all().map(|s| Some(s.start.0)))
        .number("end", all().map(|s| Some(s.end.0)))
        .text(
            "backfill",
            all().map(|s| {
                s.backfill
                    .map(|id| pipes.get(&id).cloned().unwrap_or_else(|| "dropped".into()))
            }),
        )
        .time("skipped_at", all().map(|s| s.at_ms))
        .finish()
}

/// What resets deleted.
pub(super) fn deleted_rows(snapshot: &dyn CatalogSnapshot) -> Result<RecordBatch, QueryError> {
    let tables: Vec<Table> = snapshot.list(&[])?;
    let deletions = || tables.iter().flat_map(|t| t.deleted.iter().map(move |d| (t, d)));
    let all = || deletions().flat_map(|(t, d)| d.from.iter().map(move |(p, from)| (t, d, p.0, from.0)));
    Columns::default()
        .text("table", all().map(|(t, _, _, _)| Some(t.name.clone())))
        .text("topic", all().map(|(_, d, _, _)| Some(d.topic.clone())))
        .number("partition", all().map(|(_, _, partition, _)| Some(partition.into())))
        .number("from_offset", all().map(|(_, _, _, from)| Some(from)))
        .number("before_version", all().map(|(_, d, _, _)| Some(d.version.0)))
        .time("deleted_at", all().map(|(_, d, _, _)| d.at_ms))
        .finish()
}

/// What happened, the latest first.
pub(super) fn events(snapshot: &dyn CatalogSnapshot) -> Result<RecordBatch, QueryError> {
    let mut events: Vec<Event> = snapshot.list(&[])?;
    events.reverse();
    let all = || events.iter();
    Columns::default()
        .number("number", all().map(|e| Some(e.number)))
        .time("at", all().map(|e| e.at_ms))
        .text("kind", all().map(|e| Some(e.kind.clone())))
        .text("subject", all().map(|e| Some(e.subject.clone())))
        .number("partition", all().map(|e| e.partition.map(|p| p.0.into())))
        .text("text", all().map(|e| Some(e.text.clone())))
        .finish()
}
