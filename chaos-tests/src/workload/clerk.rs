//! Who writes down what is there in the end.

use super::stage::Stage;
use super::topics::COMPACTED;
use crate::reader::rows;
use crate::world::checkout;
use anyhow::{Context, ensure};
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type};
use serde_json::{Value, json};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// Rows on one line of the history.
const CHUNK: usize = 5_000;

/// Waits, but not for longer than until all is over.
pub async fn pause(stage: &Stage, time: Duration) {
    let until = Instant::now() + time;
    while !stage.is_over() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(50).min(time)).await;
    }
}

/// The log of a topic, its table's rows, its rejects and its ledger.
pub async fn pipe(stage: &Stage, name: &str) -> anyhow::Result<()> {
    log(stage, name).await?;
    let found = rows_of(stage, name, name).await?;
    write_rows(stage, name, name, &found);
    let rejects = format!("SELECT \"partition\", \"offset\" FROM system.rejected WHERE pipe = '{name}'");
    let mut places = Vec::new();
    for batch in rows(&stage.client(0)?, &rejects).await? {
        for row in 0..batch.num_rows() {
            places.push([whole(&batch, 0, row)?, whole(&batch, 1, row)?]);
        }
    }
    for chunk in chunks(&places) {
        stage.history.note(
            "monitor",
            "rejects",
            json!({ "table": name, "topic": name, "rows": chunk }),
        );
    }
    ledger(stage, name, name, name).await
}

/// What an independent client reads in a topic.
async fn log(stage: &Stage, topic: &str) -> anyhow::Result<()> {
    let mut command = Command::new(checkout().join("scripts/events"));
    command.args(["history", "dump", "--brokers", &stage.brokers, "--topic", topic]);
    command.stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().context("the topic cannot be read")?;
    let stdout = child.stdout.take().context("the reader has no output")?;
    let mut lines = BufReader::new(stdout).lines();
    let mut whole = false;
    while let Some(line) = lines.next_line().await? {
        let mut said: Value = serde_json::from_str(&line).with_context(|| format!("the reader said {line:?}"))?;
        match said.get("topic_partitions").is_some() {
            true => whole = true,
            false => {
                said["topic"] = topic.into();
                said["compacted"] = (topic == COMPACTED.name).into();
                stage.history.note("monitor", "log", said);
            }
        }
    }
    let ended = child.wait().await?;
    ensure!(
        whole && ended.success(),
        "{topic} could not be read to its end: {ended}"
    );
    Ok(())
}

/// Partition, offset and id of every row.
async fn rows_of(stage: &Stage, table: &str, topic: &str) -> anyhow::Result<Vec<[i64; 3]>> {
    let sql = format!("SELECT _partition, _offset, id FROM {table} WHERE _topic = '{topic}'");
    let mut all = Vec::new();
    for batch in rows(&stage.client(0)?, &sql).await? {
        for row in 0..batch.num_rows() {
            all.push([whole(&batch, 0, row)?, whole(&batch, 1, row)?, whole(&batch, 2, row)?]);
        }
    }
    all.sort_unstable();
    Ok(all)
}

/// A whole number of 32 or 64 bits.
pub fn whole(batch: &RecordBatch, column: usize, row: usize) -> anyhow::Result<i64> {
    let column = batch.column(column);
    if let Some(values) = column.as_primitive_opt::<Int32Type>() {
        return Ok(values.value(row).into());
    }
    let values = column.as_primitive_opt::<Int64Type>();
    Ok(values.context("not a whole number")?.value(row))
}

/// Writes rows down.
fn write_rows(stage: &Stage, table: &str, topic: &str, rows: &[[i64; 3]]) {
    for chunk in chunks(rows) {
        stage.history.note(
            "monitor",
            "rows",
            json!({ "table": table, "topic": topic, "rows": chunk }),
        );
    }
}

/// Pieces that fit on a line; one that is empty if there is nothing.
fn chunks<T>(all: &[T]) -> impl Iterator<Item = &[T]> {
    let none = all.is_empty().then_some(all);
    all.chunks(CHUNK).chain(none)
}

/// What the ledger says of a pipe, which fills `table` from `topic`.
pub async fn ledger(stage: &Stage, pipe: &str, table: &str, topic: &str) -> anyhow::Result<()> {
    const TERMS: [&str; 9] = [
        "partition",
        "incarnation",
        "passed",
        "delivered",
        "absent",
        "lost",
        "stored",
        "rejected",
        "filtered",
    ];
    let terms = TERMS.map(|term| format!("CAST(\"{term}\" AS BIGINT)")).join(", ");
    let sql = format!("SELECT {terms}, CAST(balanced AS INT) FROM system.ledger WHERE pipe = '{pipe}'");
    let found = rows(&stage.client(0)?, &sql).await?;
    let lines: usize = found.iter().map(RecordBatch::num_rows).sum();
    ensure!(lines > 0, "the ledger has no line of {pipe}");
    for batch in found {
        for row in 0..batch.num_rows() {
            let mut line = json!({ "pipe": pipe, "table": table, "topic": topic, "balanced": whole(&batch, TERMS.len(), row)? == 1 });
            for (column, term) in TERMS.iter().enumerate() {
                line[*term] = whole(&batch, column, row)?.into();
            }
            stage.history.note("monitor", "ledger", line);
        }
    }
    Ok(())
}
