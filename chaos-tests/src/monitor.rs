//! Looks at a cluster twice a second and writes down what it sees: who leads, by the catalog and by the nodes' own word, how far behind
//! it is, which state each node has applied.

use crate::reader::{number, rows};
use crate::workload::stage::Stage;
use crate::world::page;
use serde_json::{Map, Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tidemill_client::Client;

const PERIOD: Duration = Duration::from_millis(500);
/// How long a look may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(3);

/// Looks until the stage is over. What cannot be seen is left out of the sample.
pub async fn watch(stage: Stage) -> anyhow::Result<()> {
    let client = stage.client(0)?;
    let mut last: Option<(Instant, i64)> = None;
    while !stage.is_over() {
        let began = Instant::now();
        let mut sample = Map::new();
        if let Ok(Ok((stored, lag))) = tokio::time::timeout(PATIENCE, progress(&client)).await {
            sample.insert("lag".into(), lag.into());
            if let Some((at, before)) = last {
                let rate = (stored - before).max(0) as f64 / at.elapsed().as_secs_f64();
                sample.insert("rows_per_s".into(), json!(rate.round()));
            }
            last = Some((Instant::now(), stored));
        }
        if let Ok(Ok(Some(freshness))) = tokio::time::timeout(PATIENCE, freshness(&client)).await {
            sample.insert("freshness_ms".into(), freshness.into());
        }
        if let Ok(Ok(leaders)) = tokio::time::timeout(PATIENCE, leaders(&client)).await {
            sample.extend(leaders);
        }
        stage.history.note("monitor", "sample", sample.into());
        digests(&stage).await;
        claims(&stage).await;
        tokio::time::sleep(PERIOD.saturating_sub(began.elapsed())).await;
    }
    Ok(())
}

async fn progress(client: &Client) -> anyhow::Result<(i64, i64)> {
    let sql = "SELECT coalesce(sum(stored), 0), coalesce(sum(lag), 0) FROM system.partitions";
    let found = rows(client, sql).await?;
    Ok((number(&found, 0)?, number(&found, 1)?))
}

async fn freshness(client: &Client) -> anyhow::Result<Option<i64>> {
    let sql = "SELECT CAST(max(p99_ms) AS BIGINT) FROM system.freshness";
    Ok(Some(number(&rows(client, sql).await?, 0)?))
}

async fn leaders(client: &Client) -> anyhow::Result<Map<String, Value>> {
    let shards = "SELECT id, \"table\" || '/' || CAST(shard AS VARCHAR), epoch, leader FROM system.shards";
    let mut led = Vec::new();
    for batch in rows(client, shards).await? {
        for row in 0..batch.num_rows() {
            let text = |column: usize| arrow::util::display::array_value_to_string(batch.column(column), row);
            let epoch: u64 = text(2)?.parse()?;
            let leader = Some(text(3)?).filter(|leader| !leader.is_empty());
            led.push(json!({ "id": text(0)?, "shard": text(1)?, "epoch": epoch, "leader": leader }));
        }
    }
    let mut sample = Map::new();
    sample.insert("shards".into(), led.into());
    let status = client.cluster_status().await?;
    let nodes = status
        .nodes
        .iter()
        .map(|node| (node.name.clone(), node.state.clone().into()));
    sample.insert("nodes".into(), Value::Object(nodes.collect()));
    let leader = status.nodes.iter().find(|node| node.role == "leader");
    sample.insert("raft_leader".into(), leader.map(|node| node.name.clone()).into());
    Ok(sample)
}

/// Which state each node has applied, and its digest.
pub async fn digests(stage: &Stage) {
    for (node, mut state) in said(stage, "/catalog").await {
        state["node"] = node.into();
        stage.history.note("monitor", "digest", state);
    }
}

/// What each node says that it leads.
async fn claims(stage: &Stage) {
    for (node, leading) in said(stage, "/leading").await {
        let claim = json!({ "node": node, "leading": leading });
        stage.history.note("monitor", "claim", claim);
    }
}

/// What the nodes say on a page of theirs, by name. Those that do not answer at once are left out.
async fn said(stage: &Stage, path: &'static str) -> Vec<(String, Value)> {
    let ask = |(name, address): (String, SocketAddr)| {
        let asked = tokio::task::spawn_blocking(move || page(address, path, Duration::from_millis(300)));
        (name, asked)
    };
    // All at once: who is silent must not hold up the others, or the next look.
    let asked: Vec<_> = stage.pages_of_nodes().into_iter().map(ask).collect();
    let mut said = Vec::new();
    for (name, asked) in asked {
        let Ok(Ok(answer)) = asked.await else {
            continue;
        };
        let body = answer.rsplit("\r\n").next().unwrap_or_default();
        said.extend(serde_json::from_str(body).ok().map(|value| (name, value)));
    }
    said
}
