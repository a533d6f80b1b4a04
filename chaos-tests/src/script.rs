//! A producer that does what it is told, record by record and transaction by transaction: `scripts/events script`.

use crate::world::checkout;
use anyhow::{Context, ensure};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A running producer.
pub struct Script {
    child: Child,
    stdin: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Script {
    /// A producer without transactions.
    pub fn plain(brokers: &str, topic: &str) -> anyhow::Result<Self> {
        Self::start(brokers, topic, "")
    }

    /// A producer that writes in transactions under `id`.
    pub fn transactional(brokers: &str, topic: &str, id: &str) -> anyhow::Result<Self> {
        Self::start(brokers, topic, id)
    }

    fn start(brokers: &str, topic: &str, id: &str) -> anyhow::Result<Self> {
        let mut command = Command::new(checkout().join("scripts/events"));
        command.args([
            "script",
            "--brokers",
            brokers,
            "--topic",
            topic,
            "--transactional-id",
            id,
        ]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().context("the producer has no input")?;
        let answers = child.stdout.take().context("the producer has no output")?;
        Ok(Self {
            child,
            stdin,
            answers: BufReader::new(answers),
        })
    }

    fn say(&mut self, order: &Value) -> anyhow::Result<()> {
        writeln!(self.stdin, "{order}")?;
        Ok(self.stdin.flush()?)
    }

    /// Says it, and waits until it is done; gives how many records were acknowledged so far.
    fn done(&mut self, order: &Value) -> anyhow::Result<u64> {
        self.say(order)?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line).with_context(|| format!("the producer said {line:?}"))?;
        ensure!(answer["error"].is_null(), "the producer failed: {answer}");
        answer["sent"].as_u64().context("the producer said no number")
    }

    /// Sends a record; it is acknowledged at the latest when a flush or the end of the transaction is.
    pub fn send(&mut self, partition: u32, key: Option<&str>, value: Option<&str>) -> anyhow::Result<()> {
        self.say(&json!({ "send": [partition, key, value] }))
    }

    /// Sends `{"id": n, "note": …}` for each of `ids`.
    pub fn send_ids(&mut self, partition: u32, ids: impl IntoIterator<Item = u64>) -> anyhow::Result<()> {
        for id in ids {
            self.send(partition, Some(&id.to_string()), Some(&format!(r#"{{"id": {id}}}"#)))?;
        }
        Ok(())
    }

    /// Sends the same, and waits until everything is acknowledged.
    pub fn write_ids(&mut self, partition: u32, ids: impl IntoIterator<Item = u64>) -> anyhow::Result<()> {
        self.send_ids(partition, ids)?;
        self.flush().map(drop)
    }

    /// Waits until everything is acknowledged; gives how many records.
    pub fn flush(&mut self) -> anyhow::Result<u64> {
        self.done(&json!({ "flush": 1 }))
    }

    /// Begins a transaction.
    pub fn begin(&mut self) -> anyhow::Result<()> {
        self.done(&json!({ "begin": 1 })).map(drop)
    }

    /// Commits it.
    pub fn commit(&mut self) -> anyhow::Result<()> {
        self.done(&json!({ "commit": 1 })).map(drop)
    }

    /// Aborts it.
    pub fn abort(&mut self) -> anyhow::Result<()> {
        self.done(&json!({ "abort": 1 })).map(drop)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
