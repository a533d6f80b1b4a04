//! Programs that write rows themselves, one table for each level of acknowledgement.

use super::stage::Stage;
use super::{Work, clerk};
use crate::reader::rows;
use serde_json::json;
use std::collections::VecDeque;
use std::time::Duration;
use tidemill_client::{Acks, Delivery, WriteError, Writer, WriterOptions};
use tokio::time::sleep;

/// Rows that a writer has on their way at a time.
const AHEAD: usize = 8;
/// How long a row is tried.
const PATIENCE: Duration = Duration::from_secs(20);

const LEVELS: [(&str, Acks); 3] = [("all", Acks::All), ("leader", Acks::Leader), ("none", Acks::None)];
/// Writers of each level.
const WRITERS: u64 = 2;

fn table(level: &str) -> String {
    format!("written_{level}")
}

/// The tables.
pub async fn prepare(stage: &Stage) -> anyhow::Result<()> {
    for (level, acks) in LEVELS {
        let wal = if acks == Acks::Leader { ", wal = 'local'" } else { "" };
        let columns = "writer BIGINT NOT NULL, n BIGINT NOT NULL";
        let settings = format!("shards = 2, flush_age = '1s'{wal}");
        let table = table(level);
        stage
            .run(&format!("CREATE TABLE {table} ({columns}) WITH ({settings})"))
            .await?;
    }
    Ok(())
}

/// The writers.
pub async fn write(stage: &Stage) -> anyhow::Result<Vec<Work>> {
    let mut work: Vec<Work> = Vec::new();
    for (level, acks) in LEVELS {
        for number in 0..WRITERS {
            let options = WriterOptions {
                acks,
                delivery_timeout: PATIENCE,
                ..WriterOptions::default()
            };
            let writer = stage.client(number as usize)?.writer(&table(level), options).await?;
            work.push(Box::pin(one(stage.clone(), writer, level, number)));
        }
    }
    Ok(work)
}

/// Writes rows, some at a time. Each place among those on their way is a process of its own, since each does one thing at a time.
async fn one(stage: Stage, writer: Writer, level: &'static str, number: u64) -> anyhow::Result<()> {
    let mut processes: VecDeque<_> = (0..AHEAD).map(|_| stage.history.process()).collect();
    let mut n = 0;
    while !stage.is_over() {
        let batch = processes.iter_mut().map(|process| {
            n += 1;
            let row = json!({ "writer": number, "n": n });
            let asked = json!({ "table": table(level), "writer": number, "acks": level, "rows": [n] });
            (process, row.to_string(), asked)
        });
        let mut waiting = Vec::new();
        for (process, row, asked) in batch {
            let invoked = process.invoke("write", asked.clone(), None);
            waiting.push((invoked, asked, writer.write_json(row).await));
        }
        for (invoked, asked, delivery) in waiting {
            match told(delivery).await {
                Ok(()) => invoked.ok(asked),
                Err(WriteError::Unknown(why)) => invoked.info(why),
                Err(error) => invoked.fail(error.to_string()),
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
    // What went wrong was told row by row.
    drop(writer.close().await);
    Ok(())
}

async fn told(delivery: Result<Delivery, WriteError>) -> Result<(), WriteError> {
    delivery?.await.map(drop)
}

/// The rows of each writer.
pub async fn collect(stage: &Stage) -> anyhow::Result<()> {
    for (level, _) in LEVELS {
        let table = table(level);
        for number in 0..WRITERS {
            let sql = format!("SELECT n FROM {table} WHERE writer = {number} ORDER BY n");
            let mut found = Vec::new();
            for batch in rows(&stage.client(0)?, &sql).await? {
                for row in 0..batch.num_rows() {
                    found.push(clerk::whole(&batch, 0, row)?);
                }
            }
            let line = json!({ "table": table, "writer": number, "acks": level, "rows": found });
            stage.history.note("monitor", "rows", line);
        }
    }
    Ok(())
}
