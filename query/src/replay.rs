//! `REPLAY REJECTED`: rejected records are decoded once more, and what can be read now becomes rows.
//!
//! One command for each reject part, with the part as its precondition: whatever is said twice, or at the same time on
//! two nodes, succeeds once (see `rejects` in core's apply). After *don't know* the state says who won: the reject
//! part is gone if, and only if, a replay of it was applied.

use crate::administer::Failed;
use crate::engine::Engine;
use crate::error::QueryError;
use crate::show;
use crate::statement::Named;
use crate::table::Deleted;
use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::concat_batches;
use datafusion::datasource::MemTable;
use std::sync::Arc;
use tidemill_core::catalog::{Pipe, RejectPart, Shard, Table};
use tidemill_core::command::ReplayRejects;
use tidemill_core::view::{CatalogRead, Key};
use tidemill_core::{Command, Refusal};
use tidemill_storage::part::read_part;
use tidemill_storage::schema::reject_schema;

/// How often a reject part is tried when its shard changes its leader meanwhile.
const ATTEMPTS: usize = 5;

/// Replays the rejects of `pipe` that fulfil `condition`.
pub(crate) async fn run(engine: &Engine, named: Named, condition: Option<String>) -> Result<String, QueryError> {
    let snapshot = engine.reader.snapshot(engine.deadline()).await?;
    let pipe = show::pipe(&*snapshot, &named)?;
    let parts: Vec<RejectPart> = snapshot.list(&pipe.id.bytes())?;
    let (mut chosen, mut stored, mut rows, mut filtered) = (0, 0, 0, 0);
    for part in parts {
        let Some(of_part) = replay_part(engine, &pipe, part, condition.as_deref()).await? else {
            continue;
        };
        chosen += of_part.chosen;
        stored += of_part.stored;
        rows += of_part.rows;
        filtered += of_part.filtered;
    }
    let left_out = match filtered {
        0 => String::new(),
        n => format!(", {n} are left out on purpose"),
    };
    Ok(format!(
        "pipe '{}': of {chosen} rejected records, {stored} became {rows} rows{left_out}, {} are still rejected",
        pipe.name,
        chosen - stored - filtered
    ))
}

#[derive(Default)]
struct Sum {
    chosen: u64,
    stored: u64,
    rows: u64,
    filtered: u64,
}

/// Replays one part; `None` when somebody else did.
async fn replay_part(
    engine: &Engine,
    pipe: &Pipe,
    part: RejectPart,
    condition: Option<&str>,
) -> Result<Option<Sum>, QueryError> {
    let rejects = read(engine, &part).await?;
    let wanted = choose(engine, &rejects, condition).await?;
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let snapshot = engine.reader.snapshot(engine.deadline()).await?;
        if snapshot.get::<RejectPart>(&(pipe.id, part.file.id))?.is_none() {
            return Ok(None);
        }
        let (Some(table), Some(shard)) = (snapshot.get::<Table>(&pipe.table)?, snapshot.get::<Shard>(&part.shard)?)
        else {
            return Ok(None);
        };
        // What a reset deleted is read by the pipe once more.
        let left = Deleted::since(&table.deleted, part.version).leaves_rejects(&rejects)?;
        let chosen = BooleanArray::new(wanted.values() & left.values(), None);
        if chosen.true_count() == 0 {
            return Ok(Some(Sum::default()));
        }
        let replayed = engine
            .replayer
            .replay(pipe, &table, &part, shard.epoch, &rejects, &chosen)
            .await
            .map_err(QueryError::unavailable)?;
        let sum = Sum {
            chosen: chosen.true_count() as u64,
            stored: replayed.used.recovered.iter().map(|r| r.stored).sum(),
            rows: replayed.used.recovered.iter().map(|r| r.rows).sum(),
            filtered: replayed.used.recovered.iter().map(|r| r.filtered).sum(),
        };
        if sum.stored + sum.filtered == 0 {
            return Ok(Some(sum));
        }
        let command = ReplayRejects {
            pipe: pipe.id,
            shard: part.shard,
            epoch: shard.epoch,
            schema_version: table.schema_version,
            chosen_at: snapshot.version(),
            parts: replayed.parts,
            used: vec![replayed.used],
            holders: replayed.holders,
        };
        match crate::administer::propose(engine, Command::ReplayRejects(command)).await {
            Ok(_) => return Ok(Some(sum)),
            Err(Failed::No(Refusal::RejectsGone(_))) => return Ok(None),
            Err(Failed::No(
                refusal @ (Refusal::StaleEpoch { .. } | Refusal::SchemaTooOld { .. } | Refusal::RowsDeleted(_)),
            )) => {
                last = Some(QueryError::from(refusal));
            }
            Err(other) => return Err(other.into()),
        }
    }
    Err(last.unwrap_or_else(|| QueryError::internal("a replay was not tried")))
}

async fn read(engine: &Engine, part: &RejectPart) -> Result<RecordBatch, QueryError> {
    let failed = |e: &dyn std::fmt::Display| QueryError::unavailable(format!("a reject part cannot be read: {e}"));
    let bytes = engine.store.get(&part.file.path).await.map_err(|e| failed(&e))?;
    let batches = read_part(bytes, &part.file).map_err(|e| failed(&e))?;
    concat_batches(&reject_schema(), &batches).map_err(|e| failed(&e))
}

/// Which of `rejects` fulfil the condition.
async fn choose(engine: &Engine, rejects: &RecordBatch, condition: Option<&str>) -> Result<BooleanArray, QueryError> {
    let Some(condition) = condition else {
        return Ok(BooleanArray::from(vec![true; rejects.num_rows()]));
    };
    let table = MemTable::try_new(rejects.schema(), vec![vec![rejects.clone()]])?;
    let sql = format!("SELECT coalesce(({condition}), false) FROM rejected");
    let batches = engine.over(&sql, "rejected", Arc::new(table)).await?;
    let mut chosen = Vec::with_capacity(rejects.num_rows());
    for batch in &batches {
        let Some(values) = batch.column(0).as_boolean_opt() else {
            return Err(QueryError::invalid(
                "what follows WHERE must be true or false for each record",
            ));
        };
        chosen.extend(values.iter().map(|value| value.unwrap_or(false)));
    }
    match chosen.len() == rejects.num_rows() {
        true => Ok(BooleanArray::from(chosen)),
        false => Err(QueryError::invalid(
            "what follows WHERE must be a condition over single records, not over all of them",
        )),
    }
}
