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

/// So many readers of `table`, by turns `fresh` and `committed`.
pub fn of(stage: &Stage, table: &'static str, count: usize) -> anyhow::Result<Vec<Work>> {
    let reader = |number: usize| -> anyhow::Result<Work> {
        let client = stage.client(number)?;
        let consistency = ["fresh", "committed"][number % 2];
        client.set("tidemill.consistency", Some(consistency.to_owned()));
        Ok(Box::pin(read(stage.clone(), client, table, number, consistency)))
    };
    (0..count).map(reader).collect()
}

async fn read(
    stage: Stage,
    client: Client,
    table: &'static str,
    number: usize,
    consistency: &'static str,
) -> anyhow::Result<()> {
    let mut process = stage.history.process();
    let node = stage.nodes[number % stage.nodes.len()].clone();
    while !stage.is_over() {
        let asked = json!({ "table": table, "reader": number, "consistency": consistency });
        read_once(&mut process, &client, table, asked, Some(&node)).await;
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Asks once for what is committed of a table and then for what is there, and writes both down beside what was `asked`; gives how many
/// rows are committed, if there was an answer.
pub async fn read_once(
    process: &mut Process,
    client: &Client,
    table: &str,
    asked: Value,
    node: Option<&str>,
) -> Option<u64> {
    let invoked = process.invoke("read", asked.clone(), node);
    match look(client, table).await {
        Ok((floor, partitions)) => {
            let mut answer = asked;
            answer["floor"] = json!(floor);
            answer["partitions"] = partitions;
            answer["version"] = Value::Null;
            invoked.ok(answer);
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
async fn look(client: &Client, table: &str) -> anyhow::Result<(BTreeMap<String, u64>, Value)> {
    let floor = format!("SELECT \"partition\", stored FROM system.partitions WHERE pipe = '{table}'");
    let floor = pairs(&rows(client, &floor).await?)?;
    let floor = floor.into_iter().map(|(p, n)| (p.to_string(), n as u64)).collect();
    Ok((floor, partitions(client, table).await?))
}

/// Rows, distinct offsets and the greatest offset of each partition of a table.
async fn partitions(client: &Client, table: &str) -> anyhow::Result<Value> {
    let sql =
        format!("SELECT _partition, count(*), count(DISTINCT _offset), max(_offset) FROM {table} GROUP BY _partition");
    let mut partitions = Map::new();
    for batch in rows(client, &sql).await? {
        let number = |column: usize, row: usize| whole(&batch, column, row);
        for row in 0..batch.num_rows() {
            let seen = json!({ "rows": number(1, row)?, "distinct": number(2, row)?, "max_offset": number(3, row)? });
            partitions.insert(whole(&batch, 0, row)?.to_string(), seen);
        }
    }
    Ok(partitions.into())
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
