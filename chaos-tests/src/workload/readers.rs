//! Readers that ask all the time: each a session, on a node of its own, with one level of consistency.

use super::Work;
use super::clerk::whole;
use super::stage::Stage;
use crate::history::Process;
use crate::reader::rows;
use arrow::array::{Array, RecordBatch};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tidemill_client::Client;
use tokio::time::sleep;

/// What a reader can say of how many rows there have to be at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Floor {
    /// What the ledger had as stored before.
    Stored,
    /// Nothing: operators delete rows, and the ledger counts them still.
    Unknown,
}

/// So many readers of `table`, by turns `fresh` and `committed`.
pub fn of(stage: &Stage, table: &'static str, count: usize, floor: Floor) -> anyhow::Result<Vec<Work>> {
    let reader = |number: usize| -> anyhow::Result<Work> {
        let client = stage.client(number)?;
        let consistency = ["fresh", "committed"][number % 2];
        client.set("tidemill.consistency", Some(consistency.to_owned()));
        Ok(Box::pin(read(
            stage.clone(),
            client,
            (table, floor),
            number,
            consistency,
        )))
    };
    (0..count).map(reader).collect()
}

async fn read(
    stage: Stage,
    client: Client,
    (table, floor): (&'static str, Floor),
    number: usize,
    consistency: &'static str,
) -> anyhow::Result<()> {
    let mut process = stage.history.process();
    while !stage.is_over() {
        let asked = json!({ "table": table, "reader": number, "consistency": consistency });
        read_once(&stage, &mut process, &client, (table, floor), asked).await;
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Asks once for what is committed of a table and then for what is there, and writes both down beside what was `asked`; gives how many
/// rows are committed, if there was an answer.
pub async fn read_once(
    stage: &Stage,
    process: &mut Process,
    client: &Client,
    (table, floor): (&str, Floor),
    asked: Value,
) -> Option<u64> {
    let invoked = process.invoke("read", asked.clone(), stage.node_of(client));
    match look(client, table, floor).await {
        Ok((floor, seen)) => {
            invoked.by(stage.node_of(client)).ok(answer(asked, &floor, seen));
            Some(floor.values().sum())
        }
        // A question changes nothing: without an answer it has not happened.
        Err(error) => {
            invoked.fail(format!("{error:#}"));
            None
        }
    }
}

/// What was committed before the question, by partition, and the answer.
async fn look(client: &Client, table: &str, floor: Floor) -> anyhow::Result<(BTreeMap<String, u64>, Seen)> {
    let stored = format!("SELECT \"partition\", stored FROM system.partitions WHERE pipe = '{table}'");
    let stored = match floor {
        Floor::Stored => pairs(&rows(client, &stored).await?)?,
        Floor::Unknown => BTreeMap::new(),
    };
    let floor = stored.into_iter().map(|(p, n)| (p.to_string(), n as u64)).collect();
    Ok((floor, count(client, table, "_partition", "_offset").await?))
}

/// What was there, and in which version of the catalog.
pub struct Seen {
    partitions: Map<String, Value>,
    version: Option<i64>,
}

/// Rows, distinct numbers and the greatest number of each partition of a table, whatever says which partition a row is of and
/// which number it has there.
pub async fn count(client: &Client, table: &str, partition: &str, number: &str) -> anyhow::Result<Seen> {
    let grouped = format!(
        "SELECT {partition} AS p, count(*) AS n, count(DISTINCT {number}) AS d, max({number}) AS m FROM {table} GROUP BY {partition}"
    );
    let sql = format!(
        "SELECT CAST(c.version AS BIGINT), g.p, g.n, g.d, g.m FROM system.cluster c LEFT JOIN ({grouped}) g ON true"
    );
    let mut seen = Seen {
        partitions: Map::new(),
        version: None,
    };
    for batch in rows(client, &sql).await? {
        let number = |column: usize, row: usize| whole(&batch, column, row);
        for row in 0..batch.num_rows() {
            seen.version = Some(number(0, row)?);
            if !batch.column(1).is_null(row) {
                let counted =
                    json!({ "rows": number(2, row)?, "distinct": number(3, row)?, "max_offset": number(4, row)? });
                seen.partitions.insert(number(1, row)?.to_string(), counted);
            }
        }
    }
    Ok(seen)
}

/// What was asked, with the answer: how many rows of each partition there had to be at least, and what was there.
pub fn answer(mut asked: Value, floor: &BTreeMap<String, u64>, seen: Seen) -> Value {
    asked["floor"] = json!(floor);
    asked["partitions"] = seen.partitions.into();
    asked["version"] = json!(seen.version);
    asked
}

/// Two columns of whole numbers.
fn pairs(batches: &[RecordBatch]) -> anyhow::Result<BTreeMap<i64, i64>> {
    let mut pairs = BTreeMap::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            if !batch.column(1).is_null(row) {
                pairs.insert(whole(batch, 0, row)?, whole(batch, 1, row)?);
            }
        }
    }
    Ok(pairs)
}
