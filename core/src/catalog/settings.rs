//! What of a table may be changed later.

use super::Replication;
use serde::{Deserialize, Serialize};

/// What of a table may be changed later. In records and commands these fields stand beside the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TableSettings {
    /// When memtables are written out.
    pub flush: FlushPolicy,
    /// How many disks must hold each file before it is committed; `None` is as many as the cluster asks for.
    pub min_insync_replicas: Option<u32>,
    /// Whether memtables survive the end of the process.
    pub wal: WalMode,
    /// The warehouse whose nodes lead its shards; `None` is any.
    pub warehouse: Option<String>,
}

impl TableSettings {
    /// How many disks must hold a file before it is committed. A table may ask for more than the cluster, never for less.
    pub fn disks_needed(&self, rule: Replication) -> u32 {
        rule.min_replicas.max(self.min_insync_replicas.unwrap_or_default())
    }
}

/// When the memtable of a shard is cut and written as parts: at whichever bound is reached first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlushPolicy {
    /// Rows.
    pub rows: u64,
    /// Bytes in memory.
    pub bytes: u64,
    /// Age of its oldest row in milliseconds.
    pub age_ms: u64,
    /// Age of its oldest row whose writer waits for the commit (`acks = all`), in milliseconds: for so long such rows gather
    /// to be committed together.
    pub acks_ms: u64,
}

impl Default for FlushPolicy {
    fn default() -> Self {
        Self {
            rows: 1_000_000,
            bytes: 128 << 20,
            age_ms: 10_000,
            acks_ms: 5,
        }
    }
}

/// Whether rows go to a write-ahead log before they go into the memtable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WalMode {
    /// They do not: the source is read again from the committed offset.
    #[default]
    Off,
    /// To the log of the node that leads the shard, on its own disk.
    Local,
}

impl WalMode {
    /// All of them.
    pub const ALL: [WalMode; 2] = [WalMode::Off, WalMode::Local];
}

impl std::fmt::Display for WalMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            WalMode::Off => "off",
            WalMode::Local => "local",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::AlterTable;

    #[derive(Serialize)]
    struct Before {
        name: String,
        flush: FlushPolicy,
    }

    #[test]
    fn settings_stand_beside_the_other_fields_and_may_be_missing() {
        let flush = FlushPolicy {
            rows: 7,
            ..FlushPolicy::default()
        };
        let before = Before {
            name: "t".into(),
            flush,
        };
        let bytes = rmp_serde::to_vec_named(&before).unwrap();
        let read: AlterTable = rmp_serde::from_slice(&bytes).unwrap();
        let settings = TableSettings {
            flush,
            ..TableSettings::default()
        };
        let whole = AlterTable {
            name: "t".into(),
            table: None,
            settings,
            from: None,
        };
        assert_eq!(read, whole);
        let bytes = rmp_serde::to_vec_named(&whole).unwrap();
        assert_eq!(rmp_serde::from_slice::<AlterTable>(&bytes).unwrap(), whole);
    }
}
