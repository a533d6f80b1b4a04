//! The producer: `scripts/events`, a client that is not ours, as a process.

use crate::world::checkout;
use anyhow::{Context, bail};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What Kafka has acknowledged.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Acknowledged {
    /// Events.
    pub count: u64,
    /// Sum of their `amount`.
    pub sum_amount: i64,
    /// Sum of their `event_id`.
    pub sum_event_id: i64,
    /// Undecodable records beside them.
    pub bad: u64,
    /// Records that Kafka refused.
    pub failed: u64,
    /// Whether this is the last word.
    pub done: bool,
    /// From the first record to the last acknowledgement.
    pub seconds: f64,
    /// Megabytes of payload.
    pub mb: f64,
}

/// A running producer.
pub struct Events {
    child: Child,
    summary: PathBuf,
}

/// What to produce.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The topic, created when absent.
    pub topic: String,
    /// Its partitions.
    pub partitions: u32,
    /// Events.
    pub count: u64,
    /// Undecodable records.
    pub bad: u64,
    /// Events per second; `None` for as fast as possible.
    pub rate: Option<u64>,
    /// What the rows are made from.
    pub seed: u64,
}

impl Events {
    /// Creates the topic without writing anything.
    pub fn create_topic(brokers: &str, plan: &Plan) -> anyhow::Result<()> {
        let mut command = Command::new(checkout().join("scripts/events"));
        command.args(["create-topic", "--brokers", brokers, "--topic", &plan.topic]);
        crate::world::output(command.args(["--partitions", &plan.partitions.to_string()]))?;
        Ok(())
    }

    /// Starts producing.
    pub fn start(folder: &Path, brokers: &str, plan: &Plan) -> anyhow::Result<Self> {
        Self::start_with(folder, brokers, plan, &[])
    }

    /// The same, with further options of `scripts/events produce`.
    pub fn start_with(folder: &Path, brokers: &str, plan: &Plan, options: &[&str]) -> anyhow::Result<Self> {
        let summary = folder.join("produced.json");
        let mut command = Command::new(checkout().join("scripts/events"));
        command.args(["produce", "--brokers", brokers, "--topic", &plan.topic]);
        command.args([
            "--partitions",
            &plan.partitions.to_string(),
            "--count",
            &plan.count.to_string(),
        ]);
        command
            .args(["--seed", &plan.seed.to_string()])
            .arg("--summary")
            .arg(&summary);
        if plan.bad > 0 {
            command.args(["--bad", &plan.bad.to_string()]);
        }
        if let Some(rate) = plan.rate {
            command.args(["--rate", &rate.to_string()]);
        }
        let child = command
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()?;
        Ok(Self { child, summary })
    }

    /// What was acknowledged so far.
    pub fn so_far(&self) -> Option<Acknowledged> {
        serde_json::from_slice(&std::fs::read(&self.summary).ok()?).ok()
    }

    /// Whether the producer has ended.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Has it end now, as soon as all is acknowledged; gives the last word.
    pub async fn stop(self) -> anyhow::Result<Acknowledged> {
        crate::world::output(Command::new("kill").arg("-TERM").arg(self.child.id().to_string()))?;
        self.finish().await
    }

    /// Waits for the end; gives the last word.
    pub async fn finish(mut self) -> anyhow::Result<Acknowledged> {
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        };
        let word = self.so_far().context("the producer left no summary")?;
        if !status.success() || !word.done || word.failed > 0 {
            bail!("the producer ended with {status}: {word:?}");
        }
        Ok(word)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
