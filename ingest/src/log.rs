//! The write-ahead log as a task sees it: that of one shard, in the epoch in which it leads.
//!
//! The order is law: a chunk is in the log before it is in the memtable, where queries see it; and a history is replayed
//! before anything is appended to it. What the log gives back is in the memtable as if it had just been read, so
//! the source is read from behind it on.
//!
//! A standby writes none and replays none: its rows are a copy of what the source has. What is logged of a history that it
//! takes over is forgotten then ([`ShardLog::begin_anew`]), so the log of a history is always of one reader.

use crate::kafka::Start;
use std::sync::{Arc, OnceLock};
use tidemill_core::catalog::{Table, WalMode};
use tidemill_core::{Epoch, ShardId, SpanKey};
use tidemill_storage::memtable::{Chunk, Memtable};
use tidemill_storage::wal::{Recovered, Wal, WalError};
use tokio::sync::watch;
use tracing::{error, info};

/// See the module's page.
#[derive(Clone, Debug)]
pub struct ShardLog {
    wal: Arc<Wal>,
    shard: ShardId,
    /// None while it stands by.
    epoch: Arc<OnceLock<Epoch>>,
    table: watch::Receiver<Arc<Table>>,
}

impl ShardLog {
    /// The log of `shard`, led in `epoch` as soon as there is one; `table` is what the catalog says of its table.
    pub fn new(wal: Arc<Wal>, shard: ShardId, epoch: Arc<OnceLock<Epoch>>, table: watch::Receiver<Arc<Table>>) -> Self {
        Self {
            wal,
            shard,
            epoch,
            table,
        }
    }

    /// Makes `chunks` durable, with one fsync, if the table asks for it and this node leads. Blocks.
    ///
    /// # Errors
    /// See [`Wal::append`]; nothing of them may be shown then.
    pub fn append(&self, chunks: &[Chunk]) -> Result<(), WalError> {
        let mode = self.table.borrow().settings.wal;
        match (mode, self.epoch.get()) {
            (WalMode::Off, _) | (_, None) => Ok(()),
            (WalMode::Local, Some(epoch)) => self.wal.append(self.shard, *epoch, chunks),
        }
    }

    /// Puts what is logged of `key` from `start` on into `memtable`, where that history must be open there, and says where
    /// it goes on. Also where the table does not ask for a log any more: what is there is as good as read. Blocks.
    ///
    /// What was read from another log of the source than what is committed before it is forgotten
    /// ([`is_of_another_log`](tidemill_core::Span::is_of_another_log)): the source's log may have been cut in between, and another
    /// leader may have committed what lay there before the cut. `again` says whether the source can be read from `start` on.
    ///
    /// # Errors
    /// [`WalError::Damaged`] when something of it cannot be read as it was written: that is not passed over.
    pub fn replay(&self, memtable: &Memtable, key: SpanKey, start: Start, again: bool) -> Result<Start, WalError> {
        if self.epoch.get().is_none() {
            return Ok(start);
        }
        let Recovered { chunks, unused } = self.wal.recover(self.shard, key, start.offset)?;
        let first = chunks.first().map(|chunk| chunk.span);
        if let Some(read) = first.filter(|span| span.is_of_another_log(start.source_epoch, again)) {
            info!(shard = %self.shard, ?key, read = ?read.source_epoch, committed = ?start.source_epoch,
                "the write-ahead log is of another leader epoch: it is forgotten");
            self.begin_anew(key)?;
            return Ok(start);
        }
        let mut next = start;
        for chunk in chunks {
            let span = chunk.span;
            if let Err(refused) = memtable.append(chunk) {
                error!(shard = %self.shard, ?key, %refused, "a chunk of the write-ahead log is not taken: read it again");
                break;
            }
            next = Start {
                offset: span.end,
                source_epoch: span.source_epoch.or(next.source_epoch),
            };
        }
        // Before new offsets are appended, so that what is left over never fills a hole among them.
        self.wal.forget(&unused)?;
        if next.offset > start.offset {
            let (from, to) = (start.offset, next.offset);
            info!(shard = %self.shard, pipe = %key.pipe, partition = %key.partition, %from, %to, "replayed from the write-ahead log");
        }
        Ok(next)
    }

    /// Forgets what is logged of a history of a source that can be read again: a standby takes it over with rows that it has
    /// read itself. To be called before this log has its epoch.
    ///
    /// What this node logged when it led before, beyond the committed offset, would be the same records if the source never
    /// changed; but its log may have been cut and written anew since then, and only the standby's rows were
    /// compared with what the leaders committed. Left there, such entries could meet those that are logged from now on without
    /// a hole between them. So they go. The rows that are taken over are not logged: until they are committed, the log has a
    /// hole there, at which a later replay stops and reads from the source. A crash may bring back what was
    /// forgotten, but only if nothing was logged after it, since that is synced: then it is what a leader finds that starts here,
    /// and continues with the epoch of the source compared.
    ///
    /// # Errors
    /// See [`Wal::drop_lane`]; the history must not go on then.
    pub fn begin_anew(&self, key: SpanKey) -> Result<(), WalError> {
        self.wal.drop_lane(self.shard, key.pipe, key.partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use arrow::array::{ArrayRef, Int64Array, RecordBatch};
    use tempfile::TempDir;
    use tidemill_core::schema::OFFSET;
    use tidemill_core::{Counts, Incarnation, Offset, PartitionId, PipeId, Span, TableId};
    use tidemill_storage::wal::WalOptions;

    const KEY: SpanKey = SpanKey {
        pipe: PipeId(1),
        partition: PartitionId(0),
        incarnation: Incarnation(1),
    };

    fn chunk(start: u64, end: u64) -> Chunk {
        let offsets: ArrayRef = Arc::new(Int64Array::from_iter_values((start..end).map(|o| o as i64)));
        let span = Span {
            key: KEY,
            start: Offset(start),
            end: Offset(end),
            counts: Counts::stored(end - start),
            topic: None,
            source_epoch: Some(end as i32),
        };
        Chunk {
            span,
            rows: Some(RecordBatch::try_from_iter([(OFFSET, offsets)]).unwrap()),
            rejects: None,
        }
    }

    fn table(wal: WalMode) -> Arc<Table> {
        let mut table = testing::table(vec![]);
        table.settings.wal = wal;
        Arc::new(table)
    }

    struct World {
        _folder: TempDir,
        table: watch::Sender<Arc<Table>>,
        log: ShardLog,
    }

    fn world() -> World {
        let folder = TempDir::new().unwrap();
        let wal = Arc::new(Wal::open(folder.path(), WalOptions::default()).unwrap());
        let (table, known) = watch::channel(table(WalMode::Local));
        let shard = ShardId {
            table: TableId(1),
            index: 0,
        };
        World {
            _folder: folder,
            table,
            log: ShardLog::new(wal, shard, Arc::new(OnceLock::from(Epoch(1))), known),
        }
    }

    /// A task begins at `committed`: where it goes on, in which epoch of the source, and what can be queried then.
    fn begun(world: &World, committed: u64) -> (u64, Option<i32>, Vec<i64>) {
        let memtable = Memtable::new(world.log.shard, Epoch(2));
        memtable.open_partition(KEY, Offset(committed));
        let start = Start {
            offset: Offset(committed),
            source_epoch: None,
        };
        let next = world.log.replay(&memtable, KEY, start, true).unwrap();
        let pinned = memtable.pin().unwrap();
        assert_eq!(pinned.partitions[0].to, next.offset);
        let offsets = pinned.batches.iter().flat_map(|batch| {
            let column: &Int64Array = batch.rows.column(0).as_any().downcast_ref().unwrap();
            column.values().to_vec()
        });
        (next.offset.0, next.source_epoch, offsets.collect())
    }

    #[test]
    fn a_task_begins_with_what_was_logged_behind_the_committed_offset() {
        let world = world();
        world.log.append(&[chunk(0, 5), chunk(5, 9)]).unwrap();
        assert_eq!(begun(&world, 0), (9, Some(9), (0..9).collect()));
        assert_eq!(begun(&world, 3), (9, Some(9), (3..9).collect()));
        assert_eq!(begun(&world, 9), (9, None, vec![]));
    }

    #[test]
    fn what_does_not_continue_the_history_never_fills_a_hole_in_it() {
        let world = world();
        world.log.append(&[chunk(0, 5), chunk(8, 20)]).unwrap();
        assert_eq!(begun(&world, 0).0, 5);
        // Read again from there on; the rest of the first reading is forgotten.
        world.log.append(&[chunk(5, 8)]).unwrap();
        assert_eq!(begun(&world, 0), (8, Some(8), (0..8).collect()));
    }

    /// Found by a simulated history: the source's log was cut, a standby that had read before committed old records, and the log of
    /// the next leader, who had read after, went on behind them: what had grown below was never read.
    #[test]
    fn what_was_read_in_another_leader_epoch_is_read_again() {
        let from = |world: &World, committed: u64, epoch: i32, again: bool| {
            let memtable = Memtable::new(world.log.shard, Epoch(2));
            memtable.open_partition(KEY, Offset(committed));
            let start = Start {
                offset: Offset(committed),
                source_epoch: Some(epoch),
            };
            world.log.replay(&memtable, KEY, start, again).unwrap().offset.0
        };
        let world = world();
        world.log.append(&[chunk(5, 9), chunk(9, 12)]).unwrap();
        assert_eq!(from(&world, 5, 9, true), 12, "it is of the same epoch");
        assert_eq!(from(&world, 5, 8, false), 12, "the source does not have it any more");
        assert_eq!(from(&world, 5, 8, true), 5);
        assert_eq!(from(&world, 5, 9, true), 5, "it is forgotten");
        // Found by a simulated history, too: behind records of a newer epoch, it cannot be of the same log.
        world.log.append(&[chunk(5, 9)]).unwrap();
        assert_eq!(from(&world, 5, 10, false), 5);
    }

    #[test]
    fn only_tables_that_ask_for_it_are_logged() {
        let world = world();
        world.log.append(&[chunk(0, 5)]).unwrap();
        world.table.send_replace(table(WalMode::Off));
        world.log.append(&[chunk(5, 9)]).unwrap();
        // What was logged before is as good as read.
        assert_eq!(begun(&world, 0).0, 5);
        // And logged again, it is behind a hole, until what is before it is committed.
        world.table.send_replace(table(WalMode::Local));
        world.log.append(&[chunk(9, 12)]).unwrap();
        assert_eq!(begun(&world, 9).0, 12);
    }

    #[test]
    fn a_standby_logs_nothing_and_what_was_logged_before_it_led_never_meets_its_own() {
        let world = world();
        world.log.append(&[chunk(0, 5), chunk(5, 9)]).unwrap();
        let log = ShardLog {
            epoch: Arc::default(),
            ..world.log.clone()
        };
        let memtable = Memtable::standby(log.shard);
        memtable.open_partition(KEY, Offset(0));
        let start = Start {
            offset: Offset(0),
            source_epoch: None,
        };
        assert_eq!(log.replay(&memtable, KEY, start, true).unwrap(), start);
        for chunk in [chunk(0, 4), chunk(4, 9)] {
            log.append(std::slice::from_ref(&chunk)).unwrap();
            memtable.append(chunk).unwrap();
        }
        // It takes over what it has, committed up to 2, and goes on.
        log.begin_anew(KEY).unwrap();
        log.epoch.set(Epoch(2)).unwrap();
        log.append(&[chunk(9, 12)]).unwrap();
        assert_eq!(begun(&world, 9), (12, Some(12), (9..12).collect()));
        assert_eq!(
            begun(&world, 2),
            (2, None, vec![]),
            "the rows from 2 to 9 are read again"
        );
        assert_eq!(begun(&world, 9).0, 9, "and what was behind them is, too");
    }
}
