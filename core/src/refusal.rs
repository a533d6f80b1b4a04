//! Why commands are refused, in words that say what was wrong and what to do.

use crate::command::COMMAND_FORMAT;
use crate::ids::*;
use crate::span::SpanKey;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a command was refused. A refusal is final for the command as it stands and changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Refusal {
    /// A newer version wrote it.
    #[error(
        "the command has format {0}, this version knows {COMMAND_FORMAT}: upgrade all nodes before using new features"
    )]
    UnknownFormat(u16),
    /// There is no cluster yet, or there is one already.
    #[error("{0}")]
    Founding(String),
    /// There is no such node, or it is another data folder.
    #[error("{0}")]
    Node(String),
    /// No such table.
    #[error("there is no table called '{0}'; SHOW TABLES lists them")]
    NoTable(String),
    /// No such pipe.
    #[error("there is no pipe called '{0}'; SHOW PIPES lists them")]
    NoPipe(String),
    /// The name is taken.
    #[error("there is already a {what} called '{name}'")]
    NameTaken {
        /// A table or a pipe.
        what: String,
        /// The name.
        name: String,
    },
    /// No such writer, or none any more.
    #[error("there is no writer {0}: it was closed, or has written nothing for too long")]
    NoWriter(WriterId),
    /// The table has as many writers as it may have.
    #[error(
        "table '{table}' has {count} writers, which is the limit; close those that are not needed, or wait until idle ones \
         are closed"
    )]
    TooManyWriters {
        /// The table.
        table: String,
        /// How many it has.
        count: usize,
    },
    /// The definition is not possible.
    #[error("{0}")]
    Definition(String),
    /// Another has taken the name since the command was worked out.
    #[error("{what} '{name}' was dropped and created again meanwhile; look at it, and say it again")]
    CreatedAgain {
        /// A table or a pipe.
        what: String,
        /// The name.
        name: String,
    },
    /// What the command was worked out from is not so any more.
    #[error("{0} by somebody else meanwhile; nothing was changed by this statement, say it again")]
    Outdated(String),
    /// The partition has begun another life since the command was worked out.
    #[error("partition {partition} of pipe '{pipe}' has changed meanwhile; say it again")]
    PartitionChanged {
        /// The pipe.
        pipe: String,
        /// The partition.
        partition: PartitionId,
    },
    /// The rejected records were replayed, or dropped, before.
    #[error("rejected records were replayed or dropped meanwhile; nothing was changed by this statement, say it again")]
    RejectsGone(PartId),
    /// Rows of the table were deleted since the command was worked out.
    #[error("rows of table '{0}' were deleted meanwhile; nothing was changed by this statement, say it again")]
    RowsDeleted(String),
    /// Pipes still fill the table.
    #[error("table '{table}' is filled by {pipes}; drop those first")]
    TableInUse {
        /// The table.
        table: String,
        /// Names of the pipes.
        pipes: String,
    },
    /// No such shard.
    #[error("there is no shard {0}")]
    NoShard(ShardId),
    /// The shard has moved on.
    #[error("shard {shard} is at epoch {current}, not {given}")]
    StaleEpoch {
        /// The shard.
        shard: ShardId,
        /// Its epoch.
        current: Epoch,
        /// The epoch in the command.
        given: Epoch,
    },
    /// The commit was applied before; whoever repeats it has won.
    #[error("this commit was applied at version {0}")]
    AlreadyCommitted(Version),
    /// Another content under the id of the last commit.
    #[error("commit id {0} was used before with other content")]
    IdReused(CommitId),
    /// The files are not safe enough yet. Put them onto more disks and say it again.
    #[error("the files are on {counted} of {needed} disks that count: {}", .ignored.join("; "))]
    TooFewHolders {
        /// How many holders count.
        counted: u32,
        /// How many there must be.
        needed: u32,
        /// The holders that were named and do not count, each with the reason.
        ignored: Vec<String>,
    },
    /// What is asked of replicas cannot be.
    #[error("{0}")]
    Replication(String),
    /// The table's columns have changed too much since.
    #[error("the parts have schema version {given}, the table takes {oldest} or later")]
    SchemaTooOld {
        /// The version in the command.
        given: SchemaVersion,
        /// The oldest that may be committed.
        oldest: SchemaVersion,
    },
    /// Some spans cannot be committed, now or ever; the others may be, in a new commit.
    #[error("{} of the spans cannot be committed: {}", .0.len(), .0.iter().map(|(key, why)| format!("pipe {} partition {}: {why}", key.pipe, key.partition)).collect::<Vec<_>>().join("; "))]
    Spans(Vec<(SpanKey, SpanRefusal)>),
}

/// Why one span was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum SpanRefusal {
    /// The pipe is gone or has no such partition.
    #[error("there is no such pipe or partition")]
    Unknown,
    /// The partition's rows go to another shard.
    #[error("it belongs to shard {0}")]
    NotOwner(ShardId),
    /// The partition has begun another life.
    #[error("it is at incarnation {0}")]
    StaleIncarnation(Incarnation),
    /// It was read from another topic of the same name.
    #[error("it was read from another topic of the same name")]
    OtherTopic,
    /// It reads further than it should.
    #[error("it ends behind offset {0}, where its pipe ends")]
    BehindEnd(Offset),
    /// It does not begin where the committed offsets end.
    #[error("the next offset is {0}")]
    NotNext(Offset),
    /// Its own numbers are impossible.
    #[error("it runs backwards, is named twice, or does not account for every offset once")]
    Unsound,
}
