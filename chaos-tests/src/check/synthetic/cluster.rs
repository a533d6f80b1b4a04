//! The model of the cluster, of its topic and of what stands in its tables.

use super::super::decode::DIRECT;
use super::script::Script;
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub const NODES: [&str; 3] = ["n1", "n2", "n3"];
pub const PARTITIONS: usize = 3;
pub const TOPIC: &str = "events";
/// Rows and records in one note.
const CHUNK: usize = 50;

/// The id of a shard of the only table.
fn shard_id(at: usize) -> String {
    format!("1/{at}")
}

/// What is at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// A record.
    Record(u64),
    /// A record that cannot be decoded.
    Bad(u64),
    /// A record of an aborted transaction, or the mark that ends one.
    Nothing,
}

/// The ledger of one life.
#[derive(Clone, Copy, Debug, Default)]
struct Life {
    passed: u64,
    delivered: u64,
    absent: u64,
    lost: u64,
    stored: u64,
    rejected: u64,
}

/// A partition, at its source and in the table.
#[derive(Default)]
pub struct Partition {
    pub log: Vec<Slot>,
    low: u64,
    /// Up to where it was read.
    position: u64,
    /// Up to where it was committed.
    pub committed: u64,
    rows: Vec<(u64, u64)>,
    rejects: Vec<u64>,
    lives: Vec<Life>,
}

/// A row of a program that writes itself.
#[derive(Clone, Debug)]
pub struct Written {
    pub row: u64,
    /// The node that has it alone, if it is on one disk or in one memory only.
    only_at: Option<String>,
}

/// See the module's page.
pub struct Cluster {
    pub partitions: Vec<Partition>,
    pub registers: BTreeMap<String, Value>,
    /// By writer.
    pub written: BTreeMap<String, Vec<Written>>,
    /// Rows of programs that were acknowledged, and that nobody has any more.
    pub lost_rows: u64,
    pub leaders: Vec<(String, u64)>,
    pub version: u64,
    committed_since: u64,
}

impl Cluster {
    pub fn new() -> Self {
        Self {
            partitions: (0..PARTITIONS)
                .map(|_| Partition {
                    lives: vec![Life::default()],
                    ..Partition::default()
                })
                .collect(),
            registers: BTreeMap::new(),
            written: BTreeMap::new(),
            lost_rows: 0,
            leaders: (0..PARTITIONS)
                .map(|p| (NODES[p % NODES.len()].to_owned(), 1))
                .collect(),
            version: 5,
            committed_since: 0,
        }
    }

    /// Every partition reads a little and commits now and then.
    pub fn ingest(&mut self, chance: &mut StdRng) {
        for at in 0..PARTITIONS {
            let partition = &mut self.partitions[at];
            let end = partition.log.len() as u64;
            partition.position = chance.random_range(partition.position..=end);
            if chance.random_bool(0.4) {
                self.commit(at);
            }
        }
    }

    pub fn catch_up(&mut self) {
        for at in 0..PARTITIONS {
            self.partitions[at].position = self.partitions[at].log.len() as u64;
            self.commit(at);
        }
    }

    fn commit(&mut self, at: usize) {
        let partition = &mut self.partitions[at];
        let Some(life) = partition.lives.last_mut() else { return };
        for offset in partition.committed..partition.position {
            life.passed += 1;
            match partition.log[offset as usize] {
                Slot::Record(id) => {
                    life.stored += 1;
                    life.delivered += 1;
                    partition.rows.push((offset, id));
                }
                Slot::Bad(_) => {
                    life.rejected += 1;
                    life.delivered += 1;
                    partition.rejects.push(offset);
                }
                Slot::Nothing => life.absent += 1,
            }
        }
        self.committed_since += partition.position - partition.committed;
        partition.committed = partition.position;
        self.version += 1;
        // A commit flushes what leaders have alone, too.
        self.written
            .values_mut()
            .flatten()
            .for_each(|written| written.only_at = None);
    }

    /// A node is gone: another one leads, and reads again what was not committed.
    pub fn depose(&mut self, node: &str) {
        for (at, (leader, epoch)) in self.leaders.iter_mut().enumerate() {
            if leader == node {
                let next = NODES
                    .iter()
                    .position(|n| *n == node)
                    .map_or(0, |n| (n + 1 + at % 2) % NODES.len());
                *leader = NODES[next].to_owned();
                *epoch += 1;
                self.partitions[at].position = self.partitions[at].committed;
                self.version += 1;
            }
        }
    }

    /// What programs wrote is committed.
    pub fn flush(&mut self) {
        self.written.values_mut().flatten().for_each(|w| w.only_at = None);
    }

    /// A node loses the rows of programs that it has alone.
    pub fn lose_unflushed(&mut self, node: &str) {
        for written in self.written.values_mut() {
            let before = written.len();
            written.retain(|w| w.only_at.as_deref() != Some(node));
            self.lost_rows += (before - written.len()) as u64;
        }
    }

    /// A program's row arrives; at level `leader` one node has it alone for a while.
    pub fn store(&mut self, writer: &str, row: u64, acks: &str, node: &str) {
        let only_at = (acks != "all").then(|| node.to_owned());
        self.written
            .entry(writer.to_owned())
            .or_default()
            .push(Written { row, only_at });
    }

    /// Offsets below `up_to` expire; gives the span that is gone.
    pub fn expire(&mut self, at: usize, up_to: u64) -> Option<(u64, u64)> {
        let partition = &mut self.partitions[at];
        if up_to <= partition.low {
            return None;
        }
        let from = std::mem::replace(&mut partition.low, up_to);
        if up_to > partition.committed {
            let lost = up_to - partition.committed;
            // Repaired at once: a new life, which counts them.
            partition.lives.push(Life {
                passed: lost,
                lost,
                ..Life::default()
            });
            partition.committed = up_to;
            partition.position = partition.position.max(up_to);
            self.version += 1;
        }
        Some((from, up_to))
    }

    /// An operator goes back to the beginning of a partition, and keeps its rows or deletes them.
    pub fn reset(&mut self, at: usize, keep: bool) {
        let partition = &mut self.partitions[at];
        if !keep {
            partition.rows.clear();
            partition.rejects.clear();
        }
        partition.committed = partition.low;
        partition.position = partition.low;
        partition.lives.push(Life::default());
        self.version += 1;
    }

    /// What a query counts: rows, distinct ones and the greatest offset, by partition; fresh ones with what was only read.
    pub fn count(&self, fresh: bool) -> Value {
        let mut counts = serde_json::Map::new();
        for (at, partition) in self.partitions.iter().enumerate() {
            let mut rows: Vec<u64> = partition.rows.iter().map(|(offset, _)| *offset).collect();
            if fresh {
                let only_read = partition.committed..partition.position.max(partition.committed);
                rows.extend(only_read.filter(|o| matches!(partition.log[*o as usize], Slot::Record(_))));
            }
            let count = rows.len();
            rows.sort_unstable();
            rows.dedup();
            let seen = json!({ "rows": count, "distinct": rows.len(), "max_offset": rows.last() });
            counts.insert(at.to_string(), seen);
        }
        Value::Object(counts)
    }

    /// Rows that are committed, by partition.
    pub fn floor(&self) -> Value {
        let of = |(at, p): (usize, &Partition)| (at.to_string(), json!(p.rows.len()));
        Value::Object(self.partitions.iter().enumerate().map(of).collect())
    }

    /// Offsets that were committed since this was asked last.
    pub fn take_rate(&mut self) -> u64 {
        std::mem::take(&mut self.committed_since)
    }

    pub fn sample(&self, rows_per_s: f64, down: &[String]) -> Value {
        let lag: u64 = self.partitions.iter().map(|p| p.log.len() as u64 - p.committed).sum();
        let state = |node: &&str| {
            if down.iter().any(|d| d == *node) {
                "Down"
            } else {
                "Ready"
            }
        };
        let nodes: serde_json::Map<String, Value> = NODES.iter().map(|n| ((*n).to_owned(), json!(state(n)))).collect();
        let shard = |(at, (leader, epoch)): (usize, &(String, u64))| json!({ "id": shard_id(at), "shard": format!("{TOPIC}/{at}"), "leader": leader, "epoch": epoch });
        let shards: Vec<Value> = self.leaders.iter().enumerate().map(shard).collect();
        let raft_leader = NODES.iter().find(|n| state(n) == "Ready");
        json!({
            "rows_per_s": rows_per_s.round(), "lag": lag, "freshness_ms": 20 + lag * 9, "shards": shards, "nodes": nodes,
            "raft_leader": raft_leader,
        })
    }

    /// What the nodes that are not down say that they lead.
    pub fn claims(&self, down: &[String]) -> Vec<Value> {
        let claim = |node: &&str| {
            let own = self
                .leaders
                .iter()
                .enumerate()
                .filter(|(_, (leader, _))| leader == node);
            let led: Vec<Value> = own
                .map(|(at, (_, epoch))| json!({ "id": shard_id(at), "epoch": epoch }))
                .collect();
            json!({ "node": node, "leading": led })
        };
        NODES
            .iter()
            .filter(|node| !down.iter().any(|d| d == *node))
            .map(claim)
            .collect()
    }

    /// Everything that is there in the end.
    pub fn tell(&self, script: &mut Script) {
        for (at, partition) in self.partitions.iter().enumerate() {
            self.tell_log(script, at, partition);
            for rows in partition.rows.chunks(CHUNK) {
                let rows: Vec<Value> = rows.iter().map(|(offset, id)| json!([at, offset, id])).collect();
                script.note(
                    "monitor",
                    "rows",
                    json!({ "table": TOPIC, "topic": TOPIC, "rows": rows }),
                );
            }
            let rejects: Vec<Value> = partition.rejects.iter().map(|offset| json!([at, offset])).collect();
            script.note("monitor", "rejects", json!({ "table": TOPIC, "rows": rejects }));
            for (number, life) in partition.lives.iter().enumerate() {
                let ledger = json!({
                    "pipe": TOPIC, "partition": at, "incarnation": number + 1, "passed": life.passed, "delivered": life.delivered,
                    "absent": life.absent, "lost": life.lost, "stored": life.stored, "rejected": life.rejected, "filtered": 0,
                    "balanced": true,
                });
                script.note("monitor", "ledger", ledger);
            }
        }
        // A table without rows says so, too.
        script.note("monitor", "rows", json!({ "table": TOPIC, "topic": TOPIC, "rows": [] }));
        for (writer, written) in &self.written {
            let rows: Vec<u64> = written.iter().map(|w| w.row).collect();
            for rows in rows.chunks(CHUNK).chain([&[][..]]) {
                script.note(
                    "monitor",
                    "rows",
                    json!({ "table": "direct", "writer": writer, "rows": rows }),
                );
            }
        }
        let stored: usize = self.written.values().map(Vec::len).sum();
        let ledger = json!({
            "pipe": "(direct) direct", "table": "direct", "topic": DIRECT, "partition": 100, "incarnation": 1,
            "passed": stored as u64 + self.lost_rows, "delivered": stored, "absent": 0, "lost": self.lost_rows, "stored": stored,
            "rejected": 0, "filtered": 0, "balanced": true,
        });
        script.note("monitor", "ledger", ledger);
    }

    fn tell_log(&self, script: &mut Script, at: usize, partition: &Partition) {
        let records: Vec<Value> = (partition.low..partition.log.len() as u64)
            .filter_map(|offset| match partition.log[offset as usize] {
                Slot::Record(id) | Slot::Bad(id) => Some(json!([offset, id])),
                Slot::Nothing => None,
            })
            .collect();
        for records in records.chunks(CHUNK).chain([&[][..]]) {
            let log = json!({
                "topic": TOPIC, "topic_id": "t1", "partition": at, "low": partition.low, "high": partition.log.len(),
                "records": records,
            });
            script.note("monitor", "log", log);
        }
    }
}
