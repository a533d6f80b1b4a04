//! What the leader of a shard runs: one consumer thread for each pipe, one memtable, one writer.
//!
//! A task lives for one epoch. It is told what the catalog says ([`ShardTask::reconcile`]) and makes the
//! difference; it ends when it is fenced, told to stop, or drained. After its end the memtable
//! refuses rows and scans, so nobody reads or commits from a task that no longer leads.

use crate::budget::{Account, Budget};
use crate::decode::JsonDecoder;
use crate::kafka::{Assignment, Consumer, ConsumerOptions, PartitionStatus};
use crate::writer::{Committer, Flushed, ShardWriter};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tidemill_core::catalog::{Pipe, SourcePartition, Table};
use tidemill_core::{Epoch, Offset, PipeId, ShardId, SpanKey};
use tidemill_storage::memtable::Memtable;
use tidemill_storage::store::PartStore;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

/// How often a task looks whether its memtable is due.
const TICK: Duration = Duration::from_millis(50);

/// What all tasks of a node share.
pub struct TaskContext {
    /// The cluster's name.
    pub cluster: String,
    /// Where commits go.
    pub committer: Arc<dyn Committer>,
    /// Where parts go.
    pub store: Arc<dyn PartStore>,
    /// The memory of all memtables.
    pub budget: Arc<Budget>,
    /// Notified when a task needs to be reconciled again, or has ended.
    pub attention: Arc<Notify>,
}

/// How far a partition of a task is.
#[derive(Clone, Debug)]
pub struct PartitionProgress {
    /// The partition and its life.
    pub key: SpanKey,
    /// The next offset to be read: everything below it is queryable.
    pub position: Offset,
    /// One past the newest record in the source, if known.
    pub end: Option<Offset>,
    /// What keeps it from going on; empty if nothing does.
    pub waiting_for: String,
}

/// The consumer thread of each pipe, with the partitions that it was given.
type Consumers = BTreeMap<PipeId, (Consumer, BTreeSet<SpanKey>)>;

/// A running task.
pub struct ShardTask {
    context: Arc<TaskContext>,
    table: Arc<Table>,
    shard: ShardId,
    epoch: Epoch,
    memtable: Arc<Memtable>,
    account: Account,
    wake: Arc<Notify>,
    consumers: Mutex<Consumers>,
    command: watch::Sender<Command>,
    ended: Arc<AtomicBool>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Run,
    Drain,
}

impl ShardTask {
    /// Starts the task for `shard` of `table` in `epoch`, on the current runtime, without any partition.
    pub fn start(context: Arc<TaskContext>, table: Table, shard: ShardId, epoch: Epoch) -> Self {
        let table = Arc::new(table);
        let memtable = Arc::new(Memtable::new(shard, epoch));
        let wake = Arc::new(Notify::new());
        let ended = Arc::new(AtomicBool::new(false));
        let (command, commands) = watch::channel(Command::Run);
        let account = context.budget.open();
        let writer = ShardWriter {
            table: table.clone(),
            shard,
            epoch,
            memtable: memtable.clone(),
            store: context.store.clone(),
            committer: context.committer.clone(),
            account: account.clone(),
        };
        let attention = context.attention.clone();
        let run = write_until_told(writer, wake.clone(), commands, ended.clone(), attention);
        info!(%shard, %epoch, table = %table.name, "the task starts");
        Self {
            writer: Mutex::new(Some(tokio::spawn(run))),
            context,
            table,
            shard,
            epoch,
            memtable,
            account,
            wake,
            consumers: Mutex::default(),
            command,
            ended,
        }
    }

    /// The epoch that it lives for.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Its memtable, for scans.
    pub fn memtable(&self) -> &Arc<Memtable> {
        &self.memtable
    }

    /// Whether it has ended by itself: fenced, or the table is gone.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Makes the task read exactly `wanted`: the pipes that run, each with its partitions of this shard.
    /// Partitions whose life goes on are not touched.
    pub fn reconcile(&self, wanted: Vec<(Pipe, Vec<SourcePartition>)>) {
        if self.has_ended() || *self.command.borrow() != Command::Run {
            return;
        }
        let mut consumers = self.consumers.lock().unwrap_or_else(PoisonError::into_inner);
        let open: BTreeSet<SpanKey> = self
            .memtable
            .stats()
            .positions
            .into_iter()
            .map(|(key, _)| key)
            .collect();
        let key_of = |p: &SourcePartition| SpanKey {
            pipe: p.pipe,
            partition: p.partition,
            incarnation: p.incarnation,
        };
        let wanted_keys: BTreeSet<SpanKey> = wanted.iter().flat_map(|(_, ps)| ps.iter().map(key_of)).collect();
        for key in &open {
            let same = |k: &&SpanKey| (k.pipe, k.partition) == (key.pipe, key.partition);
            if !wanted_keys.iter().any(|k| same(&k)) {
                self.memtable.close_partition(key.pipe, key.partition);
            }
        }
        consumers.retain(|pipe, _| {
            wanted
                .iter()
                .any(|(p, partitions)| p.id == *pipe && !partitions.is_empty())
        });
        for (pipe, partitions) in wanted {
            if partitions.is_empty() {
                continue;
            }
            let keys: BTreeSet<SpanKey> = partitions.iter().map(key_of).collect();
            let assignment: Assignment = partitions
                .iter()
                .map(|p| {
                    let key = key_of(p);
                    (key, (!open.contains(&key)).then_some(p.offset))
                })
                .collect();
            let begins = assignment.iter().any(|(_, start)| start.is_some());
            let known = consumers.get(&pipe.id).map(|(_, keys)| keys);
            if !begins && known == Some(&keys) {
                continue;
            }
            // Open first, assign then: the thread's first chunk must find its history begun.
            for (key, start) in &assignment {
                if let Some(start) = start {
                    self.memtable.open_partition(*key, *start);
                }
            }
            match self.consumer(&mut consumers, pipe, keys) {
                Ok(consumer) => consumer.assign(assignment),
                Err(error) => {
                    warn!(shard = %self.shard, %error, "a consumer thread cannot be started");
                    self.context.attention.notify_one();
                }
            }
        }
    }

    fn consumer<'c>(
        &self,
        consumers: &'c mut Consumers,
        pipe: Pipe,
        keys: BTreeSet<SpanKey>,
    ) -> std::io::Result<&'c Consumer> {
        use std::collections::btree_map::Entry;
        let entry = match consumers.entry(pipe.id) {
            Entry::Occupied(mut entry) => {
                entry.get_mut().1 = keys;
                entry.into_mut()
            }
            Entry::Vacant(entry) => {
                let consumer = Consumer::start(ConsumerOptions {
                    cluster: self.context.cluster.clone(),
                    decoder: JsonDecoder::new(&self.table, &pipe.format, &pipe.source.topic),
                    pipe,
                    memtable: self.memtable.clone(),
                    account: self.account.clone(),
                    wake: self.wake.clone(),
                })?;
                entry.insert((consumer, keys))
            }
        };
        Ok(&entry.0)
    }

    /// How far each partition is.
    pub fn progress(&self) -> Vec<PartitionProgress> {
        let positions: BTreeMap<SpanKey, Offset> = self.memtable.stats().positions.into_iter().collect();
        let consumers = self.consumers.lock().unwrap_or_else(PoisonError::into_inner);
        let status = consumers.values().flat_map(|(consumer, _)| consumer.status());
        status
            .filter_map(|PartitionStatus { key, end, waiting_for }| {
                let position = *positions.get(&key)?;
                // The broker's word is a little old; what was read is the better bound then.
                Some(PartitionProgress {
                    key,
                    position,
                    end: end.map(|end| end.max(position)),
                    waiting_for,
                })
            })
            .collect()
    }

    /// Stops reading, commits what was read, and ends; `false` when that did not succeed within `patience`.
    pub async fn drain(&self, patience: Duration) -> bool {
        self.consumers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.command.send_replace(Command::Drain);
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let done = match writer {
            Some(writer) => tokio::time::timeout(patience, writer).await.is_ok(),
            None => true,
        };
        self.stop();
        done
    }

    /// Ends at once; what was not committed is forgotten here and read again by the next leader.
    pub fn stop(&self) {
        self.ended.store(true, Ordering::Release);
        self.memtable.close();
        self.consumers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        if let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take() {
            writer.abort();
        }
        self.account.report(0);
    }
}

impl Drop for ShardTask {
    fn drop(&mut self) {
        self.stop();
        info!(shard = %self.shard, epoch = %self.epoch, "the task has ended");
    }
}

async fn write_until_told(
    writer: ShardWriter,
    wake: Arc<Notify>,
    mut commands: watch::Receiver<Command>,
    ended: Arc<AtomicBool>,
    attention: Arc<Notify>,
) {
    loop {
        let draining = *commands.borrow_and_update() == Command::Drain;
        if draining || writer.is_due() {
            match writer.flush().await {
                Flushed::Committed(lost) if !lost.is_empty() => attention.notify_one(),
                Flushed::Committed(_) => {}
                Flushed::Nothing if draining => return,
                Flushed::Nothing => {}
                Flushed::Fenced(refusal) => {
                    warn!(shard = %writer.shard, epoch = %writer.epoch, %refusal, "the task is fenced and ends");
                    writer.memtable.close();
                    ended.store(true, Ordering::Release);
                    attention.notify_one();
                    return;
                }
            }
            continue;
        }
        tokio::select! {
            _ = tokio::time::sleep(TICK) => {}
            _ = async { wake.notified().await; tokio::time::sleep(TICK / 10).await } => {}
            changed = commands.changed() => if changed.is_err() { return },
        }
    }
}
