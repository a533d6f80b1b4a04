//! Programs that write rows themselves, one table for each level of acknowledgement.

use super::stage::Stage;
use super::{Work, clerk, readers};
use crate::reader::rows;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tidemill_client::{Acks, Client, Delivery, WriteError, Writer, WriterOptions};
use tokio::time::sleep;

/// Rows that a writer has on their way at a time.
const AHEAD: usize = 8;
/// How long a row is tried.
const PATIENCE: Duration = Duration::from_secs(20);

/// Levels, and how their tables are read meanwhile.
const LEVELS: [(&str, Acks, &[&str]); 3] = [
    ("all", Acks::All, &["fresh", "committed"]),
    ("leader", Acks::Leader, &["fresh"]),
    ("none", Acks::None, &["committed"]),
];
/// Writers of each level.
const WRITERS: u64 = 2;

fn table(level: &str) -> String {
    format!("written_{level}")
}

/// The tables.
pub async fn prepare(stage: &Stage) -> anyhow::Result<()> {
    for (level, acks, _) in LEVELS {
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

/// How many rows of each writer of a table are committed for all that it was told.
type Committed = Arc<[AtomicU64; WRITERS as usize]>;

/// The writers, and readers of their tables.
pub async fn write(stage: &Stage) -> anyhow::Result<Vec<Work>> {
    let mut work: Vec<Work> = Vec::new();
    for (level, acks, consistencies) in LEVELS {
        let committed = Committed::default();
        for consistency in consistencies {
            let number = work.len();
            let client = stage.client(number)?;
            client.set("tidemill.consistency", Some((*consistency).to_owned()));
            let asked = json!({ "table": table(level), "reader": number, "consistency": consistency });
            work.push(Box::pin(read(stage.clone(), client, asked, committed.clone())));
        }
        for number in 0..WRITERS {
            let options = WriterOptions {
                acks,
                delivery_timeout: PATIENCE,
                ..WriterOptions::default()
            };
            let writer = stage.client(number as usize)?.writer(&table(level), options).await?;
            let committed = committed.clone();
            work.push(Box::pin(one(stage.clone(), writer, level, number, committed)));
        }
    }
    Ok(work)
}

/// Writes rows, some at a time. Each place among those on their way is a process of its own, since each does one thing at a time.
async fn one(
    stage: Stage,
    writer: Writer,
    level: &'static str,
    number: u64,
    committed: Committed,
) -> anyhow::Result<()> {
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
                Ok(shard) => {
                    let mut answer = asked;
                    answer["shard"] = shard.into();
                    invoked.ok(answer);
                    if level == "all" {
                        committed[number as usize].fetch_add(1, Ordering::Relaxed);
                    }
                }
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

/// Counts the rows of each writer again and again, which stand where the partitions of a topic do elsewhere.
async fn read(stage: Stage, client: Client, asked: Value, committed: Committed) -> anyhow::Result<()> {
    let mut process = stage.history.process();
    let table = asked["table"].as_str().unwrap_or_default().to_owned();
    while !stage.is_over() {
        let invoked = process.invoke("read", asked.clone(), stage.node_of(&client));
        let told = committed.iter().zip(0..);
        let floor: BTreeMap<String, u64> = told
            .map(|(count, writer)| (u64::to_string(&writer), count.load(Ordering::Relaxed)))
            .collect();
        match readers::count(&client, &table, "writer", "n").await {
            Ok(seen) => invoked
                .by(stage.node_of(&client))
                .ok(readers::answer(asked.clone(), &floor, seen)),
            // A question changes nothing: without an answer it has not happened.
            Err(error) => invoked.fail(format!("{error:#}")),
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// The shard that took the row.
async fn told(delivery: Result<Delivery, WriteError>) -> Result<u32, WriteError> {
    Ok(delivery?.await?.shard)
}

/// The rows of each writer, and what the ledger says of them.
pub async fn collect(stage: &Stage) -> anyhow::Result<()> {
    for (level, ..) in LEVELS {
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
        clerk::ledger(stage, &format!("(direct) {table}"), &table, "(direct)").await?;
    }
    Ok(())
}
