//! What a world is asked, and what is waited for.

use super::World;
use crate::reader::{number, rows};
use anyhow::{Context, bail, ensure};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use tidemill_client::Answer;

impl World {
    /// Waits until every node of the cluster works. Asks by SQL: a node that has just started tells the status of the
    /// cluster as it last knew it.
    pub async fn all_ready(&self) -> anyhow::Result<()> {
        let sql = "SELECT CAST(count(*) > 0 AND bool_and(state = 'Ready') AS BIGINT) FROM system.nodes WHERE state <> 'Removed'";
        self.wait_for("every node to be ready", Duration::from_secs(60), async |world| {
            Ok(world.ask(sql).await? == 1)
        })
        .await
    }

    /// Waits until every node that is there works and leads a shard.
    pub async fn all_lead(&self, patience: Duration) -> anyhow::Result<()> {
        self.wait_for("every node to lead a shard", patience, async |world| {
            let nodes = world.client()?.cluster_status().await?.nodes;
            let mut there = nodes.iter().filter(|node| node.state != "Removed");
            Ok(there.all(|node| node.state == "Ready" && node.shards > 0))
        })
        .await
    }

    /// The sum of the metric `name` of node `i`, over its labels.
    pub fn metric(&self, i: usize, name: &str) -> anyhow::Result<f64> {
        let text = metrics(self.http(i), Duration::from_secs(5))?;
        let is = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let values: Vec<f64> = text
            .lines()
            .filter(is)
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        ensure!(!values.is_empty(), "there is no metric {name}");
        Ok(values.iter().sum())
    }

    /// Runs a statement and drops its answer.
    pub async fn run(&self, sql: &str) -> anyhow::Result<()> {
        match self.client()?.query(sql).await.with_context(|| sql.to_owned())? {
            Answer::Message(_) => {}
            Answer::Rows(rows) => drop(rows.collect().await?),
        }
        Ok(())
    }

    /// The number that a question gives: the first column of the only row.
    pub async fn ask(&self, sql: &str) -> anyhow::Result<i64> {
        let found = rows(&self.client()?, sql).await;
        found
            .and_then(|found| number(&found, 0))
            .with_context(|| sql.to_owned())
    }

    /// Waits until `holds` says yes.
    pub async fn wait_for(
        &self,
        what: &str,
        patience: Duration,
        holds: impl AsyncFn(&World) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let until = Instant::now() + patience;
        let mut last = String::from("it is not so");
        while Instant::now() < until {
            match holds(self).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => last = format!("{error:#}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("waited {patience:?} for {what}: {last}")
    }
}

/// What the node that serves its metrics at `node` says, if it answers within `patience`.
pub fn metrics(node: SocketAddr, patience: Duration) -> std::io::Result<String> {
    page(node, "/metrics", patience)
}

/// A page of the node that serves its pages at `node`, with its headers.
pub fn page(node: SocketAddr, path: &str, patience: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&node, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
