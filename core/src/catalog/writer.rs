//! Programs that write rows into a table themselves.
//!
//! A writer numbers its rows, for each shard from 0 on, and so is a source like any other: one partition for each shard,
//! whose offsets are these numbers. What is committed of it is known exactly, and a row that is sent again is known by its
//! number.

use super::Table;
use crate::ids::*;
use serde::{Deserialize, Serialize};

/// When a writer is told that its rows are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Acks {
    /// As soon as the leader of the shard has them in memory: they are lost with it.
    None,
    /// When they are in the write-ahead log of the leader of the shard: they survive its process and a power cut, not its disk.
    Leader,
    /// When they are in a committed part, which `min_insync_replicas` disks hold.
    #[default]
    All,
}

impl Acks {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Acks::None => "none",
            Acks::Leader => "leader",
            Acks::All => "all",
        }
    }
}

/// A program that writes rows into a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// Its id.
    pub id: WriterId,
    /// The table that it writes into.
    pub table: TableId,
    /// The pipe of that table's writers.
    pub pipe: PipeId,
    /// Its number among them.
    pub number: u32,
    /// When it is told that its rows are there.
    pub acks: Acks,
    /// By what it was asked for.
    pub token: WriterToken,
    /// When it was opened, milliseconds since 1970.
    pub opened_at_ms: i64,
}

impl Writer {
    /// The source partition of its rows in a shard of `table`; `None` if numbers do not reach so far.
    pub fn partition(&self, table: &Table, shard: u32) -> Option<PartitionId> {
        // Shard `p mod shards`, as for every source; the column of partitions takes numbers below 2^31.
        let partition = u64::from(self.number) * u64::from(table.shards) + u64::from(shard);
        let fits = i32::try_from(partition).is_ok() && shard < table.shards;
        fits.then_some(PartitionId(partition as u32))
    }

    /// The number of the writer that partition `partition` of a table with `shards` shards belongs to.
    pub fn number_of(partition: PartitionId, shards: u32) -> u32 {
        partition.0 / shards.max(1)
    }
}
