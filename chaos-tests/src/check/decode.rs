//! The values of entries, by operation and by note. What has another form is not guessed at: the history is not readable then.

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::collections::BTreeMap;

/// A name, or a number that serves as one.
fn label<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(name(&Value::deserialize(from)?))
}

fn label_if_any<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let value = Value::deserialize(from)?;
    Ok((!value.is_null()).then(|| name(&value)))
}

fn name(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[derive(Debug, Deserialize)]
pub struct Produce {
    pub topic: String,
    pub partition: u32,
    #[serde(default, deserialize_with = "label_if_any")]
    pub key: Option<String>,
    pub id: u64,
    pub seq: Option<u64>,
    pub offset: Option<u64>,
    /// Whether it cannot be decoded, where that is said.
    pub bad: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub struct Transaction {
    pub topic: Option<String>,
    /// `[partition, id]`, or `[partition, offset, id]` once it has ended.
    pub records: Vec<Vec<Option<u64>>>,
    pub commit: bool,
}

#[derive(Debug, Deserialize)]
pub struct Write {
    pub table: String,
    #[serde(default, deserialize_with = "label")]
    pub writer: String,
    pub acks: Option<String>,
    pub rows: Vec<u64>,
    /// The shard that took them, once they are written.
    pub shard: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub struct Read {
    pub table: String,
    pub consistency: String,
    pub version: Option<u64>,
    #[serde(default)]
    pub floor: BTreeMap<String, u64>,
    pub partitions: BTreeMap<String, PartitionRead>,
    #[serde(default, deserialize_with = "label_if_any")]
    pub reader: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct PartitionRead {
    pub rows: u64,
    pub distinct: u64,
    pub max_offset: Option<i64>,
}

/// What is asked of a register, or comes of it.
#[derive(Debug, Deserialize)]
pub struct Register {
    #[serde(deserialize_with = "label")]
    pub key: String,
    #[serde(default)]
    pub value: Value,
    #[serde(default)]
    pub from: Value,
    #[serde(default)]
    pub to: Value,
}

#[derive(Debug, Deserialize)]
pub struct Log {
    pub topic: String,
    #[serde(default, deserialize_with = "label_if_any")]
    pub topic_id: Option<String>,
    pub partition: u32,
    pub low: u64,
    pub high: u64,
    pub records: Vec<(u64, Option<u64>)>,
    /// The topic is compacted: records may go by themselves.
    #[serde(default)]
    pub compacted: bool,
}

#[derive(Debug, Deserialize)]
pub struct LogLost {
    pub topic: String,
    pub partition: u32,
    pub from: u64,
    /// The first offset that is not affected.
    pub to: u64,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Rows {
    OfTopic {
        table: String,
        topic: String,
        rows: Vec<(u32, u64, Option<u64>)>,
    },
    Direct {
        table: String,
        #[serde(deserialize_with = "label")]
        writer: String,
        rows: Vec<u64>,
    },
}

#[derive(Debug, Deserialize)]
pub struct Rejects {
    pub table: String,
    pub topic: Option<String>,
    pub rows: Vec<(u32, u64)>,
}

/// Where the ledger tells of rows that programs wrote themselves, what stands in place of a topic.
pub const DIRECT: &str = "(direct)";

#[derive(Debug, Deserialize)]
pub struct Ledger {
    pub pipe: String,
    pub partition: u32,
    #[serde(default, deserialize_with = "label_if_any")]
    pub incarnation: Option<String>,
    pub passed: u64,
    pub delivered: u64,
    pub absent: u64,
    pub lost: u64,
    pub stored: u64,
    pub rejected: u64,
    pub filtered: u64,
    pub balanced: bool,
    pub table: Option<String>,
    pub topic: Option<String>,
}

/// What `tidemill check` said in the end.
#[derive(Debug, Deserialize)]
pub struct Checked {
    pub ok: bool,
    #[serde(default)]
    pub said: String,
}

/// How often a fault of a disk has struck whoever used the disk.
#[derive(Debug, Deserialize)]
pub struct Struck {
    pub fault: String,
    pub times: u64,
}

/// What the monitor saw at one time.
#[derive(Debug, Deserialize)]
pub struct Sample {
    /// Rows read since the last sample, per second.
    pub rows_per_s: Option<f64>,
    /// Records that are not committed.
    pub lag: Option<f64>,
    /// Age of the youngest row that a query sees.
    pub freshness_ms: Option<f64>,
    /// Who leads.
    #[serde(default)]
    pub shards: Vec<ShardSample>,
    /// The nodes' states.
    #[serde(default)]
    pub nodes: BTreeMap<String, Value>,
    /// The leader of the group.
    #[serde(default, deserialize_with = "label_if_any")]
    pub raft_leader: Option<String>,
}

/// Who leads a shard.
#[derive(Debug, Deserialize)]
pub struct ShardSample {
    /// The shard.
    #[serde(deserialize_with = "label")]
    pub shard: String,
    /// Its id, which no other shard ever has.
    pub id: Option<String>,
    /// The table of which it is one, where its name does not say that.
    pub table: Option<String>,
    /// Its leader, if it has one.
    #[serde(default, deserialize_with = "label_if_any")]
    pub leader: Option<String>,
    /// Its epoch.
    pub epoch: Option<u64>,
}

impl ShardSample {
    /// Its id, where that is said, else its name.
    pub fn key(&self) -> String {
        self.id.clone().unwrap_or_else(|| self.name())
    }

    /// Its name, which a shard of a later table may have again.
    pub fn name(&self) -> String {
        match &self.table {
            Some(table) => format!("{table}/{}", self.shard),
            None => self.shard.clone(),
        }
    }
}

#[derive(Debug, Deserialize)]
pub struct Digest {
    #[serde(deserialize_with = "label")]
    pub node: String,
    pub version: u64,
    #[serde(deserialize_with = "label")]
    pub digest: String,
}

/// What a node says that it leads.
#[derive(Debug, Deserialize)]
pub struct Claim {
    #[serde(deserialize_with = "label")]
    pub node: String,
    pub leading: Vec<Led>,
}

/// A shard, by its id, and the epoch in which it is led.
#[derive(Debug, Deserialize)]
pub struct Led {
    pub id: String,
    pub epoch: u64,
}
