//! What a task does for programs that write rows themselves. See [`crate::direct`].

use super::{Command, ShardTask};
use crate::direct::{Door, Incoming, WriteError};
use crate::kafka::Start;
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use tidemill_core::catalog::{Acks, Pipe, SourcePartition, Writer};
use tidemill_core::{Offset, PartitionId, PipeId, SpanKey};
use tidemill_storage::memtable::Show;

/// See [`ShardTask::hold`].
pub struct Held {
    task: Arc<ShardTask>,
    place: (PipeId, PartitionId),
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.task.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(&self.place);
        self.task.context.attention.notify_one();
    }
}

impl ShardTask {
    /// Opens the histories of `writers` that are not open.
    pub(super) fn admit(
        &self,
        pipe: &Pipe,
        partitions: &[SourcePartition],
        writers: &[Writer],
        open: &BTreeSet<SpanKey>,
    ) {
        self.direct.get_or_init(|| pipe.id);
        let shards = self.table.borrow().shards;
        // Held while they are opened: whoever holds one back has closed it before.
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = |p: &&SourcePartition| !open.contains(&p.key()) && !held.contains(&(p.pipe, p.partition));
        for p in partitions.iter().filter(closed) {
            let number = Writer::number_of(p.partition, shards);
            let writer = writers.iter().find(|writer| writer.number == number);
            let show = match writer.map(|writer| writer.acks) {
                Some(Acks::None | Acks::Leader) => Show::AtOnce,
                Some(Acks::All) | None => Show::WhenCommitted,
            };
            let mut start = Start {
                offset: p.offset,
                source_epoch: None,
            };
            // What cannot be opened is not served, and tried again.
            self.open(p.key(), show, &mut start, false);
        }
    }

    fn door(&self) -> Result<Door, WriteError> {
        // A standby has nothing of them: it could neither tell what is there nor take more.
        if self.epoch().is_none() || self.has_ended() || *self.command.borrow() != Command::Run {
            return Err(WriteError::Retry(format!(
                "shard {} is changing its leader",
                self.shard
            )));
        }
        Ok(Door {
            shard: self.shard,
            table: self.table.subscribe(),
            memtable: self.memtable.clone(),
            account: self.account.clone(),
            log: self.log.clone(),
            wake: self.wake.clone(),
            barrier: self.barrier.clone(),
            settled: self.settled.subscribe(),
        })
    }

    /// Takes rows that a program writes itself, those that are not there yet; gives the number behind the last of them.
    /// They are in memory then, and in the log before if the table has one and `acks` is not all.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing was taken.
    pub async fn write(&self, writer: &Writer, incoming: Incoming) -> Result<Offset, WriteError> {
        self.door()?.take(writer, incoming).await
    }

    /// Returns when everything of `writer` below `end` is committed; with `hurry` soon, whatever the flush policy.
    ///
    /// # Errors
    /// [`WriteError::Retry`] when this task ends before; [`WriteError::Gap`] when rows below `end` are not here any more.
    pub async fn committed(&self, writer: &Writer, end: Offset, hurry: bool) -> Result<(), WriteError> {
        let door = self.door()?;
        if hurry {
            door.hurry();
        }
        door.committed(writer, end).await
    }

    /// Keeps the partition of `writer` closed until the answer is dropped, if it is empty and ends at `end`: nothing is taken
    /// for it meanwhile, from whomever. Then it is opened as the catalog says by that time.
    pub fn hold(self: &Arc<Self>, writer: &Writer, end: Offset) -> Option<Held> {
        let place = (writer.pipe, writer.partition(&self.table.borrow(), self.shard.index)?);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = self.memtable.close_if_empty_at(place.0, place.1, end) && held.insert(place);
        closed.then(|| Held {
            task: self.clone(),
            place,
        })
    }
}
