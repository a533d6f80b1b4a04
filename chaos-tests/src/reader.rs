//! A reader that asks all the time, and believes nothing.
//!
//! In one statement it counts rows, distinct (partition, offset) pairs and sums; before each it notes
//! what is committed. A row seen twice, or a count below what was committed before the question was
//! asked, is a violation. Nodes that are down are no excuse for a wrong answer, only for a late one.

use crate::events::Acknowledged;
use anyhow::Context;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, UInt64Type};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tidemill_client::{Answer, Client};
use tokio::task::JoinHandle;

/// What a count found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Rows.
    pub rows: i64,
    /// Distinct (partition, offset) pairs.
    pub distinct: i64,
    /// Sum of `amount`.
    pub sum_amount: i64,
    /// Sum of `event_id`.
    pub sum_event_id: i64,
}

impl Counted {
    /// What a table must hold that has every event of `produced`, once.
    pub fn expected(produced: &Acknowledged) -> Self {
        Self {
            rows: produced.count as i64,
            distinct: produced.count as i64,
            sum_amount: produced.sum_amount,
            sum_event_id: produced.sum_event_id,
        }
    }
}

/// What the reader saw over its life.
#[derive(Debug, Default)]
pub struct Findings {
    /// Questions answered.
    pub answered: u64,
    /// Questions that ended in an error, with the last one.
    pub failed: (u64, String),
    /// The longest time between two answers.
    pub longest_gap: Duration,
    /// What must never happen.
    pub violations: Vec<String>,
}

/// Runs a query and gives its batches.
pub async fn rows(client: &Client, sql: &str) -> anyhow::Result<Vec<RecordBatch>> {
    match client.query(sql).await? {
        Answer::Rows(rows) => Ok(rows.collect().await?),
        Answer::Message(message) => anyhow::bail!("rows expected, got: {message}"),
    }
}

/// Column `index` of the only row of `batches`, as a number; null is zero.
pub fn number(batches: &[RecordBatch], index: usize) -> anyhow::Result<i64> {
    let batch = batches.iter().find(|b| b.num_rows() > 0).context("no row came back")?;
    let column = batch.column(index);
    if column.is_null(0) {
        return Ok(0);
    }
    if let Some(values) = column.as_primitive_opt::<Int64Type>() {
        return Ok(values.value(0));
    }
    let values = column.as_primitive_opt::<UInt64Type>().context("not a whole number")?;
    Ok(values.value(0) as i64)
}

/// The first column of the only row of `batches`, as text.
pub fn text(batches: &[RecordBatch]) -> anyhow::Result<String> {
    let batch = batches.iter().find(|b| b.num_rows() > 0).context("no row came back")?;
    Ok(arrow::util::display::array_value_to_string(batch.column(0), 0)?)
}

/// The name of the node that leads most shards.
pub async fn busiest_node(client: &Client) -> anyhow::Result<String> {
    let busiest =
        "SELECT leader FROM system.shards WHERE leader IS NOT NULL GROUP BY leader ORDER BY count(*) DESC LIMIT 1";
    text(&rows(client, busiest).await?).context("nobody leads")
}

/// Counts `table` in one statement.
pub async fn count(client: &Client, table: &str) -> anyhow::Result<Counted> {
    // The pair as one number: offsets stay below 2^40 here, and DISTINCT over numbers is cheap.
    let sql = format!(
        "SELECT count(*), count(DISTINCT _partition * 1099511627776 + _offset), sum(amount), sum(event_id) FROM {table}"
    );
    let found = rows(client, &sql).await?;
    Ok(Counted {
        rows: number(&found, 0)?,
        distinct: number(&found, 1)?,
        sum_amount: number(&found, 2)?,
        sum_event_id: number(&found, 3)?,
    })
}

/// Rows that are committed in `table`, by the catalog's own count.
pub async fn committed(client: &Client, table: &str) -> anyhow::Result<i64> {
    let sql = format!("SELECT coalesce(sum(stored), 0) FROM system.partitions WHERE \"table\" = '{table}'");
    number(&rows(client, &sql).await?, 0)
}

/// A reader in the background.
pub struct Reader {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Findings>,
}

impl Reader {
    /// Starts asking for `table`.
    pub fn start(client: Client, table: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(read(client, table, stop.clone()));
        Self { stop, task }
    }

    /// Stops, and tells.
    pub async fn finish(self) -> anyhow::Result<Findings> {
        self.stop.store(true, Ordering::Release);
        Ok(self.task.await?)
    }
}

async fn read(client: Client, table: String, stop: Arc<AtomicBool>) -> Findings {
    let mut findings = Findings::default();
    let mut last_answer = Instant::now();
    while !stop.load(Ordering::Acquire) {
        let floor = committed(&client, &table).await;
        match (floor, count(&client, &table).await) {
            (Ok(floor), Ok(now)) => {
                if now.rows != now.distinct {
                    findings.violations.push(format!("a row was seen twice: {now:?}"));
                }
                if now.rows < floor {
                    findings
                        .violations
                        .push(format!("{} rows seen, {floor} were committed before", now.rows));
                }
                findings.answered += 1;
                findings.longest_gap = findings.longest_gap.max(last_answer.elapsed());
                last_answer = Instant::now();
            }
            (Err(error), _) | (_, Err(error)) => findings.failed = (findings.failed.0 + 1, format!("{error:#}")),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    findings
}
