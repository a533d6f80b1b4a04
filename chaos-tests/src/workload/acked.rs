//! A producer that says of each record what became of it: `scripts/events history produce`, a client that is not ours.

use crate::world::checkout;
use anyhow::Context;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;

/// What became of a record, or of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// It is there; of a record, its partition and offset.
    Ok(Option<(u32, u64)>),
    /// It is not there, and never will be.
    Fail(String),
    /// Nobody knows.
    Info(String),
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Said>>>>;

/// A running producer; clones share it.
#[derive(Clone)]
pub struct Acked(Arc<Inner>);

struct Inner {
    stdin: tokio::sync::Mutex<(ChildStdin, u64)>,
    waiting: Waiting,
    /// Ended with this.
    _child: Child,
}

impl Acked {
    /// A producer for `topic`, in transactions under an id if there is one.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(brokers: &str, topic: &str, transactional_id: &str) -> anyhow::Result<Self> {
        let mut command = Command::new(checkout().join("scripts/events"));
        command.args(["history", "produce", "--brokers", brokers, "--topic", topic]);
        command.args(["--transactional-id", transactional_id]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("the producer cannot be started")?;
        let stdin = child.stdin.take().context("the producer has no input")?;
        let stdout = child.stdout.take().context("the producer has no output")?;
        let waiting = Waiting::default();
        tokio::spawn(listen(stdout, waiting.clone()));
        Ok(Self(Arc::new(Inner {
            stdin: tokio::sync::Mutex::new((stdin, 0)),
            waiting,
            _child: child,
        })))
    }

    /// Sends a record, and waits until it is known what became of it.
    pub async fn send(&self, partition: u32, key: Option<&str>, value: Option<&str>) -> Said {
        self.ask(json!({ "send": [partition, key, value] })).await
    }

    /// Begins a transaction (`begin`), or ends it (`commit`, `abort`).
    pub async fn transact(&self, what: &str) -> Said {
        self.ask(json!({ what: 1 })).await
    }

    async fn ask(&self, mut order: Value) -> Said {
        let (told, answer) = oneshot::channel();
        {
            let mut stdin = self.0.stdin.lock().await;
            stdin.1 += 1;
            let number = stdin.1;
            order["n"] = number.into();
            let waiting = &self.0.waiting;
            waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(number, told);
            let line = format!("{order}\n");
            if let Err(error) = stdin.0.write_all(line.as_bytes()).await {
                return Said::Info(format!("the producer takes nothing: {error}"));
            }
        }
        answer
            .await
            .unwrap_or_else(|_| Said::Info("the producer has ended".to_owned()))
    }
}

async fn listen(stdout: ChildStdout, waiting: Waiting) {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Some((number, said)) = understand(&line) else {
            eprintln!("the producer said {line:?}");
            continue;
        };
        let told = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        if let Some(told) = told {
            // Whoever asked may not wait any more.
            drop(told.send(said));
        }
    }
    // Whoever waits still hears that there is nobody any more.
    waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

fn understand(line: &str) -> Option<(u64, Said)> {
    let answer: Value = serde_json::from_str(line).ok()?;
    let why = |name: &str| Some(answer.get(name)?.as_str()?.to_owned());
    let said = match (answer.get("ok"), why("fail"), why("info")) {
        (Some(place), ..) => {
            let number = |i: usize| place.get(i).and_then(Value::as_u64);
            Said::Ok(
                number(0)
                    .zip(number(1))
                    .map(|(partition, offset)| (partition as u32, offset)),
            )
        }
        (_, Some(why), _) => Said::Fail(why),
        (_, _, Some(why)) => Said::Info(why),
        _ => return None,
    };
    Some((answer.get("n")?.as_u64()?, said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_understood() {
        let said = |line| understand(line).unwrap();
        assert_eq!(said(r#"{"n": 3, "ok": [2, 17]}"#), (3, Said::Ok(Some((2, 17)))));
        assert_eq!(said(r#"{"n": 4, "ok": []}"#), (4, Said::Ok(None)));
        assert_eq!(said(r#"{"n": 5, "fail": "no"}"#), (5, Said::Fail("no".into())));
        assert_eq!(said(r#"{"n": 6, "info": "?"}"#), (6, Said::Info("?".into())));
        assert_eq!(understand("Traceback"), None);
    }
}
