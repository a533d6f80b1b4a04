//! Copies of part files: which nodes keep those of a shard, and which disks hold one of a file.
//!
//! A *replica* is a node that shall keep every part file of a shard. A *holder* is a disk on which one file lies,
//! durable and verified. The first says what is wanted, the second what is there; durability is counted in holders.

use super::PartFile;
use crate::ids::{DiskId, NodeId, PartId, Version};
use serde::{Deserialize, Serialize};

/// How many copies of a part file there are. A cluster whose part store is shared by all nodes has no such rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replication {
    /// How many nodes keep the files of a shard, if there are as many.
    pub replicas: u32,
    /// How many of them must hold a file before it may be committed. Never lowered but by an operator.
    pub min_replicas: u32,
}

impl Replication {
    /// The most replicas that a shard may have.
    pub const MOST: u32 = 7;

    /// What a cluster of so many founding members begins with: three copies, two of them before a commit.
    pub fn of_founders(members: usize) -> Self {
        Self {
            replicas: 3,
            min_replicas: if members > 1 { 2 } else { 1 },
        }
    }

    /// What is wrong with it, if anything is.
    ///
    /// # Errors
    /// Says which number cannot be.
    pub fn check(self) -> Result<(), String> {
        let Self { replicas, min_replicas } = self;
        if !(1..=Self::MOST).contains(&replicas) {
            return Err(format!("replicas = {replicas} is not between 1 and {}", Self::MOST));
        }
        if !(1..=replicas).contains(&min_replicas) {
            return Err(format!(
                "min_replicas = {min_replicas} is not between 1 and replicas = {replicas}"
            ));
        }
        Ok(())
    }
}

/// A node that keeps the part files of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// The version of the catalog in which it became one. What its disk held before may have been deleted since.
    #[serde(default)]
    pub since: Version,
    /// The node.
    pub node: NodeId,
    /// How far it is.
    pub state: ReplicaState,
}

/// How far a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaState {
    /// It gets every new file, and copies those from before it was there. It never leads (REP-1).
    Copying,
    /// It has held everything at one moment since it became a replica on its present disk, and may lead.
    Ready,
}

impl std::fmt::Display for ReplicaState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            ReplicaState::Copying => "Copying",
            ReplicaState::Ready => "Ready",
        })
    }
}

/// A disk on which a file is durable and was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Holder {
    /// The node whose disk it is.
    pub node: NodeId,
    /// The disk: one that was replaced holds nothing any more.
    pub disk: DiskId,
}

/// A live file and who holds it. There is one for each part and reject part of a cluster that replicates, and it
/// goes when they go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copies {
    /// The part or reject part.
    pub part: PartId,
    /// Where each copy lies on its disk.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// XXH3 (64 bits) of its bytes.
    pub checksum: u64,
    /// At most one disk of each node. Only replicas of the shard count, with their present disk.
    pub holders: Vec<Holder>,
}

impl Copies {
    /// The copies of `file`.
    pub fn of(file: &PartFile, holders: Vec<Holder>) -> Self {
        Self {
            part: file.id,
            path: file.path.clone(),
            bytes: file.bytes,
            checksum: file.checksum,
            holders,
        }
    }

    /// Whether these are copies of `file`.
    pub fn are_of(&self, file: &PartFile) -> bool {
        (self.part, self.bytes, self.checksum) == (file.id, file.bytes, file.checksum) && self.path == file.path
    }

    /// Whether `disk` is among the holders.
    pub fn on(&self, disk: Holder) -> bool {
        self.holders.contains(&disk)
    }
}
