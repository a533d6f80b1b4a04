//! Rows of a source that has lost them since: they come out of a write-ahead log, this node's or another's.
//!
//! A leader that dies takes nothing along that Kafka does not have, so whoever follows reads it again. Unless Kafka has
//! deleted it by then: the partition stops as expired, and the log of the node that led before holds the only copy. As
//! long as the partition stands there, nobody reads it, so nothing but that log can continue its history. An operator ends that
//! with `REPAIR`, which begins another life of the partition: from then on such rows are refused, and counted as lost.

use super::{Command, ShardTask};
use crate::kafka::Start;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use thiserror::Error;
use tidemill_core::catalog::SourcePartition;
use tidemill_core::{Offset, SpanKey};
use tidemill_storage::memtable::{AppendError, Chunk, Show};
use tidemill_storage::wal::{WalError, replay};

/// Why a chunk is not adopted. It may be offered again.
#[derive(Debug, Error)]
pub enum AdoptError {
    /// The partition is not waiting for it here.
    #[error("the partition is not stopped as expired, or this node does not lead its shard")]
    NotWaiting,
    /// It leaves a hole, or cannot be divided where the history ends.
    #[error("the history goes on at offset {next}, and the chunk does not continue it there")]
    NotNext {
        /// Where the history ends.
        next: Offset,
    },
    /// The source's log was cut between the two readings: what is here is of another, or may be, and the source can be asked.
    #[error(
        "the chunk and what it would continue were read in different leader epochs: the source's log was cut in between"
    )]
    OtherLog,
    /// No memory at the moment.
    #[error("there is no memory for more rows at the moment")]
    Memory,
    /// The log takes nothing.
    #[error(transparent)]
    Log(#[from] WalError),
    /// The memtable takes nothing.
    #[error(transparent)]
    Memtable(#[from] AppendError),
}

impl ShardTask {
    /// Opens those of `partitions` that have expired, with what this node's own log has of them; `open` are the histories
    /// that go on. Returns whether something of them is still to be committed.
    pub(super) fn keep_expired(&self, partitions: &[SourcePartition], open: &BTreeSet<SpanKey>) -> bool {
        let mut uncommitted = false;
        for (p, earliest) in partitions
            .iter()
            .filter_map(|p| p.expired_until().map(|earliest| (p, earliest)))
        {
            let mut start = Start {
                offset: p.offset,
                source_epoch: p.source_epoch,
            };
            if !open.contains(&p.key()) && !self.open(p.key(), Show::AtOnce, &mut start, false) {
                continue;
            }
            self.expired().insert(p.key(), earliest);
            let history = self.memtable.history(p.pipe, p.partition);
            uncommitted |= history.is_some_and(|history| history.from < history.to);
        }
        uncommitted
    }

    /// Takes `chunk` out of another node's log, if its partition has expired and it continues what is here; of a chunk that is
    /// here already, nothing. It is committed soon. Blocks for an fsync.
    ///
    /// # Errors
    /// See [`AdoptError`]; nothing was taken then.
    pub fn adopt(&self, chunk: Chunk) -> Result<(), AdoptError> {
        let key = chunk.span.key;
        // Of two that offer the same, the second sees what the first has given. Nobody else waits for this lock: it is held
        // while the log is written.
        let _turn = self.adopting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(earliest) = self.expired().get(&key).copied() else {
            return Err(AdoptError::NotWaiting);
        };
        if self.has_ended() || *self.command.borrow() != Command::Run {
            return Err(AdoptError::NotWaiting);
        }
        let history = self.memtable.history(key.pipe, key.partition);
        let Some(history) = history.filter(|history| history.key == key) else {
            return Err(AdoptError::NotWaiting);
        };
        let next = history.to;
        if chunk.span.end <= next {
            return Ok(());
        }
        if chunk.span.start > next {
            return Err(AdoptError::NotNext { next });
        }
        // Compared with what it continues, committed or not: what two nodes have read may be of two logs.
        if chunk.span.is_of_another_log(history.source_epoch, next >= earliest) {
            return Err(AdoptError::OtherLog);
        }
        let chunk = replay::from_offset(chunk, next).ok_or(AdoptError::NotNext { next })?;
        if self.account.is_spent() {
            return Err(AdoptError::Memory);
        }
        // In the log first, as whatever is shown.
        self.log.append(std::slice::from_ref(&chunk))?;
        self.memtable.append(chunk)?;
        self.account.observe(&self.memtable);
        // So that a repair counts as lost what is lost, and not this.
        self.hurry.store(true, Ordering::Release);
        self.wake.notify_one();
        Ok(())
    }

    pub(super) fn expired(&self) -> MutexGuard<'_, BTreeMap<SpanKey, Offset>> {
        // A map of keys is whole after any panic.
        self.expired.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
