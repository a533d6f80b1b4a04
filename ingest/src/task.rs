//! What the leader of a shard runs: one consumer thread for each pipe, one memtable, one writer.
//!
//! A task lives for one epoch, and before it perhaps as a standby, without a writer (`standby.rs`). It is told what the
//! catalog says ([`ShardTask::reconcile`]) and makes the difference; it ends when it is fenced, told to stop, or drained.
//! After its end the memtable refuses rows and scans, so nobody reads or commits from a task that no longer leads.

mod adopt;
mod direct;
mod standby;

pub use adopt::AdoptError;
pub use direct::Held;
pub use standby::Takeovers;

use crate::backoff::Backoff;
use crate::budget::{Account, Budget};
use crate::freshness::Freshness;
use crate::kafka::{Assigned, Assignment, Consumer, ConsumerOptions, PartitionStatus, Start};
use crate::log::ShardLog;
use crate::priority::Priority;
use crate::writer::{Committer, Flushed, ShardWriter, TopicChecks, Trouble};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tidemill_core::catalog::{Pipe, PipeState, SourcePartition, Table, Writer};
use tidemill_core::command::{Refusal, StopPartition};
use tidemill_core::stop::StopReason;
use tidemill_core::wait::Wait;
use tidemill_core::{Epoch, Offset, PartitionId, PipeId, ShardId, SpanKey};
use tidemill_storage::memtable::{Extent, Memtable, Show};
use tidemill_storage::store::PartStore;
use tidemill_storage::wal::Wal;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

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
    /// Where rows are kept until then, for tables that ask for it.
    pub wal: Arc<Wal>,
    /// The memory of all tasks.
    pub budget: Arc<Budget>,
    /// Who reads first.
    pub priority: Arc<Priority>,
    /// Notified when a task needs to be reconciled again, or has ended.
    pub attention: Arc<Notify>,
    /// Counts what standbys took over.
    pub takeovers: Arc<Takeovers>,
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
    /// Whether it is being read; if not, what was read is only waiting to be committed.
    pub reading: bool,
    /// Bytes of a record on average.
    pub record_bytes: Option<f64>,
    /// The time of the newest record that was read, milliseconds since 1970.
    pub read_to_ms: Option<i64>,
    /// What keeps it from going on.
    pub wait: Option<Wait>,
}

/// What the catalog says of a pipe that fills the table.
pub struct WantedPipe {
    /// The pipe.
    pub pipe: Pipe,
    /// Its partitions of this shard.
    pub partitions: Vec<SourcePartition>,
    /// The programs that write to it, if it is theirs.
    pub writers: Vec<Writer>,
}

/// A pipe's consumer thread and what it was given.
struct Reading {
    consumer: Consumer,
    pipe: Pipe,
    /// What it reads, and where that ends if it does.
    keys: BTreeMap<SpanKey, Option<Offset>>,
}

type Consumers = BTreeMap<PipeId, Reading>;

/// A running task.
pub struct ShardTask {
    context: Arc<TaskContext>,
    table: watch::Sender<Arc<Table>>,
    shard: ShardId,
    /// The epoch in which it leads; none while it stands by.
    epoch: Arc<OnceLock<Epoch>>,
    memtable: Arc<Memtable>,
    log: ShardLog,
    account: Account,
    wake: Arc<Notify>,
    freshness: Arc<Freshness>,
    topics: TopicChecks,
    hurry: Arc<AtomicBool>,
    barrier: Arc<AtomicBool>,
    settled: watch::Sender<()>,
    /// Partitions of writers that stay closed for the moment.
    held: Mutex<BTreeSet<(PipeId, PartitionId)>>,
    /// Histories that only a write-ahead log can continue, with the oldest offset that the source still had.
    expired: Mutex<BTreeMap<SpanKey, Offset>>,
    /// Held by whoever adopts a chunk.
    adopting: Mutex<()>,
    /// The pipe of direct rows, once there is one.
    direct: OnceLock<PipeId>,
    trouble: Trouble,
    stops: UnboundedSender<(SpanKey, StopReason)>,
    /// Where those arrive, until there is a writer that listens.
    stopped: Mutex<Option<UnboundedReceiver<(SpanKey, StopReason)>>>,
    /// Whether consumers read for a standby.
    standby: Arc<AtomicBool>,
    remembers: Mutex<standby::Memory>,
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
        let task = Self::new(context, table, Memtable::new(shard, epoch), shard, false);
        task.begin_writing(epoch);
        task
    }

    fn new(context: Arc<TaskContext>, table: Table, memtable: Memtable, shard: ShardId, standby: bool) -> Self {
        let (stops, stopped) = unbounded_channel();
        let (table, epoch) = (watch::channel(Arc::new(table)).0, Arc::default());
        let log = ShardLog::new(context.wal.clone(), shard, Arc::clone(&epoch), table.subscribe());
        let account = context.budget.open();
        account.set_yields(standby);
        Self {
            writer: Mutex::default(),
            context,
            table,
            shard,
            epoch,
            memtable: Arc::new(memtable),
            log,
            account,
            wake: Arc::default(),
            freshness: Arc::default(),
            topics: TopicChecks::default(),
            hurry: Arc::default(),
            barrier: Arc::default(),
            settled: watch::Sender::new(()),
            held: Mutex::default(),
            expired: Mutex::default(),
            adopting: Mutex::default(),
            direct: OnceLock::new(),
            trouble: Trouble::default(),
            stops,
            stopped: Mutex::new(Some(stopped)),
            standby: Arc::new(AtomicBool::new(standby)),
            remembers: Mutex::default(),
            consumers: Mutex::default(),
            command: watch::channel(Command::Run).0,
            ended: Arc::default(),
        }
    }

    /// Begins to commit what is read, in `epoch`; once.
    fn begin_writing(&self, epoch: Epoch) {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(stopped) = stopped.filter(|_| self.epoch.set(epoch).is_ok()) else {
            return;
        };
        let writer = ShardWriter {
            table: self.table.subscribe(),
            shard: self.shard,
            epoch,
            memtable: self.memtable.clone(),
            store: self.context.store.clone(),
            committer: self.context.committer.clone(),
            account: self.account.clone(),
            topics: self.topics.clone(),
            hurry: self.hurry.clone(),
            barrier: self.barrier.clone(),
            settled: self.settled.clone(),
            trouble: self.trouble.clone(),
        };
        let told = Told {
            commands: self.command.subscribe(),
            stopped,
        };
        let (ended, attention) = (self.ended.clone(), self.context.attention.clone());
        info!(shard = %self.shard, %epoch, table = %self.table.borrow().name, "the task starts");
        let run = write_until_told(writer, self.wake.clone(), told, ended, attention);
        *self.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(tokio::spawn(run));
    }

    /// The epoch that it leads in; `None` while it stands by.
    pub fn epoch(&self) -> Option<Epoch> {
        self.epoch.get().copied()
    }

    /// Its memtable, for scans.
    pub fn memtable(&self) -> &Arc<Memtable> {
        &self.memtable
    }

    /// Whether it has ended by itself: fenced, or the table is gone.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Makes the task read exactly `wanted`: the pipes that are not paused, each with its partitions of this shard.
    /// Partitions whose life goes on are not touched. `table` is what the catalog says of the table now.
    pub fn reconcile(&self, table: &Table, wanted: Vec<WantedPipe>) {
        if self.has_ended() || *self.command.borrow() != Command::Run {
            return;
        }
        self.table.send_if_modified(|known| {
            let changed = **known != *table;
            if changed {
                *known = Arc::new(table.clone());
            }
            changed
        });
        let mut consumers = self.consumers.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = match self.epoch() {
            Some(_) => wanted,
            None => self.worth_tailing(&consumers, wanted),
        };
        let positions = self.memtable.positions();
        let open: BTreeSet<SpanKey> = positions.iter().map(|(key, _)| *key).collect();
        // A partition whose source is another begins another life, and what was read in the one before is dropped.
        let stays = |p: &&SourcePartition| p.stop.as_ref().is_none_or(|stop| !stop.reason.drops_what_was_read());
        let kept = wanted.iter().flat_map(|w| w.partitions.iter().filter(stays));
        let kept: BTreeSet<_> = kept.map(|p| (p.pipe, p.partition)).collect();
        for key in open.iter().filter(|key| !kept.contains(&(key.pipe, key.partition))) {
            self.memtable.close_partition(key.pipe, key.partition);
        }
        consumers.retain(|pipe, _| wanted.iter().any(|w| w.pipe.id == *pipe && !w.partitions.is_empty()));
        self.topics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|pipe, _| consumers.contains_key(pipe));
        let mut hurry = false;
        self.expired().clear();
        for WantedPipe {
            pipe,
            partitions,
            writers,
        } in wanted
        {
            if pipe.source.kafka().is_none() {
                self.admit(&pipe, &partitions, &writers, &open);
                continue;
            }
            if self.epoch().is_some() {
                hurry |= self.keep_expired(&partitions, &open);
            }
            if pipe.state != PipeState::Running {
                // What was read is still to be committed.
                hurry |= open.iter().any(|key| key.pipe == pipe.id);
                if let Some(reading) = consumers.get(&pipe.id) {
                    reading.consumer.set_quiet(true);
                }
                continue;
            }
            self.read(&mut consumers, pipe, &partitions, &open);
        }
        self.hurry.store(hurry, Ordering::Release);
        if hurry {
            self.wake.notify_one();
        }
        if self.epoch().is_some() {
            // Last: consumers that read for a leader have the places that it gave them.
            self.standby.store(false, Ordering::Release);
        }
    }

    /// Has `pipe` read those of `partitions` that may be read; `open` are the histories that go on.
    fn read(&self, consumers: &mut Consumers, pipe: Pipe, partitions: &[SourcePartition], open: &BTreeSet<SpanKey>) {
        let goes_on = |p: &&SourcePartition| p.stop.is_none() && !p.is_complete();
        let assigned = |p: &SourcePartition| Assigned {
            key: p.key(),
            start: (!open.contains(&p.key())).then_some(Start {
                offset: p.offset,
                source_epoch: p.source_epoch,
            }),
            until: p.until,
            topic: p.topic,
        };
        let mut assignment: Assignment = partitions.iter().filter(goes_on).map(assigned).collect();
        let keys: BTreeMap<SpanKey, Option<Offset>> = assignment.iter().map(|a| (a.key, a.until)).collect();
        let begins = assignment.iter().any(|a| a.start.is_some());
        let known = consumers.get(&pipe.id);
        if let Some(known) = known {
            // It may have been on its way to a pause that was called off.
            known.consumer.set_quiet(false);
            for p in partitions.iter().filter(|_| self.epoch().is_some()) {
                known.consumer.show_committed(p.partition, p.offset);
            }
        }
        if !begins && known.is_some_and(|known| known.keys == keys && known.pipe == pipe) {
            return;
        }
        if assignment.is_empty() && known.is_none() {
            return;
        }
        // Open first, replay then, assign last: the thread's first chunk must find its history begun.
        assignment.retain_mut(|a| {
            a.start
                .as_mut()
                .is_none_or(|start| self.open(a.key, Show::AtOnce, start, true))
        });
        self.account.observe(&self.memtable);
        let (id, reads) = (pipe.id, !assignment.is_empty());
        match self.consumer(consumers, pipe.clone(), keys) {
            Ok(consumer) => {
                consumer.assign(pipe, assignment);
                let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
                // One that reads nothing asks nobody which topic it is, and commits would wait for that in vain.
                match reads {
                    true => _ = topics.insert(id, consumer.topic().clone()),
                    false => _ = topics.remove(&id),
                }
            }
            Err(error) => {
                warn!(shard = %self.shard, %error, "a consumer thread cannot be started");
                self.context.attention.notify_one();
            }
        }
    }

    /// Begins a history in the memtable, with what the log has of it; `start` is where the source is to be read from then.
    /// Returns whether that succeeded; if not, it is tried again at the next reconciliation.
    /// `again` says whether its source can be read again.
    fn open(&self, key: SpanKey, show: Show, start: &mut Start, again: bool) -> bool {
        self.memtable.open(key, show, start.offset, start.source_epoch);
        match self.log.replay(&self.memtable, key, *start, again) {
            Ok(next) => *start = next,
            Err(error) => {
                error!(shard = %self.shard, ?key, "the partition is not opened: {error}");
                self.memtable.close_partition(key.pipe, key.partition);
                return false;
            }
        }
        true
    }

    fn consumer<'c>(
        &self,
        consumers: &'c mut Consumers,
        pipe: Pipe,
        keys: BTreeMap<SpanKey, Option<Offset>>,
    ) -> std::io::Result<&'c Consumer> {
        use std::collections::btree_map::Entry;
        let entry = match consumers.entry(pipe.id) {
            Entry::Occupied(mut entry) => {
                (entry.get_mut().keys, entry.get_mut().pipe) = (keys, pipe);
                entry.into_mut()
            }
            Entry::Vacant(entry) => {
                let consumer = Consumer::start(ConsumerOptions {
                    cluster: self.context.cluster.clone(),
                    table: self.table.borrow().clone(),
                    pipe: pipe.clone(),
                    memtable: self.memtable.clone(),
                    log: self.log.clone(),
                    account: self.account.clone(),
                    priority: self.context.priority.clone(),
                    wake: self.wake.clone(),
                    freshness: self.freshness.clone(),
                    stops: self.stops.clone(),
                    standby: self.standby.clone(),
                })?;
                entry.insert(Reading { consumer, pipe, keys })
            }
        };
        Ok(&entry.consumer)
    }

    /// How far each partition is.
    pub fn progress(&self) -> Vec<PartitionProgress> {
        let positions: BTreeMap<SpanKey, Offset> = self.memtable.positions().into_iter().collect();
        let consumers = self.consumers.lock().unwrap_or_else(PoisonError::into_inner);
        let status = consumers.values().flat_map(|reading| reading.consumer.status());
        let status: BTreeMap<SpanKey, PartitionStatus> = status.map(|status| (status.key, status)).collect();
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let progress = |(key, position): (SpanKey, Offset)| {
            let status = status.get(&key);
            let end = status.and_then(|s| s.end);
            let until = (consumers.get(&key.pipe)).and_then(|reading| reading.keys.get(&key).copied().flatten());
            let end = end.map(|end| until.map_or(end, |until| end.min(until)));
            PartitionProgress {
                key,
                position,
                // The broker's word is a little old; what was read is the better bound then.
                end: end.map(|end| end.max(position)),
                reading: status.is_some_and(|s| s.reading),
                record_bytes: status.and_then(|s| s.record_bytes),
                read_to_ms: status.and_then(|s| s.read_to_ms),
                wait: trouble.clone().or_else(|| status.and_then(|s| s.wait.clone())),
            }
        };
        // Those of writers have no end to catch up with, and there may be many.
        let direct = |key: &SpanKey| self.direct.get() == Some(&key.pipe);
        let read = positions.into_iter().filter(|(key, _)| !direct(key));
        read.map(progress).collect()
    }

    /// How old records were when they could be queried, counted since the task began.
    pub fn freshness(&self) -> Vec<u64> {
        self.freshness.counts()
    }

    /// Stops reading, commits what was read, and ends; `false` when that did not succeed within `patience`.
    pub async fn drain(&self, patience: Duration) -> bool {
        for reading in self.consumers.lock().unwrap_or_else(PoisonError::into_inner).values() {
            reading.consumer.set_quiet(true);
        }
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
        self.settled.send_replace(());
        self.consumers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        if let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take() {
            writer.abort();
        }
        self.account.report(0, 0);
    }
}

impl Drop for ShardTask {
    fn drop(&mut self) {
        self.stop();
        info!(shard = %self.shard, epoch = ?self.epoch(), "the task has ended");
    }
}

/// What the loop of a task listens to.
struct Told {
    commands: watch::Receiver<Command>,
    stopped: UnboundedReceiver<(SpanKey, StopReason)>,
}

/// Writes a stop into the catalog, where it outlives this task.
async fn write_down(writer: &ShardWriter, key: SpanKey, reason: StopReason) {
    let stop = StopPartition {
        key,
        epoch: Some(writer.epoch),
        reason,
    };
    let mut backoff = Backoff::new(TICK);
    loop {
        match writer.committer.stop(stop.clone()).await {
            Ok(Ok(_)) => return,
            // The partition has begun another life, or has another leader, or is gone: there the reason is found again, if it still
            // holds.
            Ok(Err(refusal)) => return debug!(?key, %refusal, "the stop is not needed any more"),
            Err(unknown) => debug!(
                ?key,
                "the outcome of a stop is not known, proposing it again: {unknown}"
            ),
        }
        backoff.wait().await;
    }
}

fn end_fenced(writer: &ShardWriter, refusal: &Refusal, ended: &AtomicBool, attention: &Notify) {
    warn!(shard = %writer.shard, epoch = %writer.epoch, %refusal, "the task is fenced and ends");
    writer.memtable.close();
    ended.store(true, Ordering::Release);
    attention.notify_one();
}

async fn write_until_told(
    writer: ShardWriter,
    wake: Arc<Notify>,
    mut told: Told,
    ended: Arc<AtomicBool>,
    attention: Arc<Notify>,
) {
    loop {
        while let Ok((key, reason)) = told.stopped.try_recv() {
            // The stop ends this life of the partition: what was read in it is committed before, if it is good.
            if reason.is_source_loss()
                && !reason.drops_what_was_read()
                && let Flushed::Fenced(refusal) = writer.flush(Extent::All).await
            {
                return end_fenced(&writer, &refusal, &ended, &attention);
            }
            write_down(&writer, key, reason).await;
        }
        let draining = *told.commands.borrow_and_update() == Command::Drain;
        let due = if draining { Some(Extent::All) } else { writer.due() };
        if let Some(extent) = due {
            match writer.flush(extent).await {
                Flushed::Committed(lost) if !lost.is_empty() => attention.notify_one(),
                Flushed::Committed(_) => {}
                Flushed::Nothing if draining => return,
                Flushed::Nothing => {}
                Flushed::Fenced(refusal) => return end_fenced(&writer, &refusal, &ended, &attention),
            }
            continue;
        }
        tokio::select! {
            _ = tokio::time::sleep(writer.due_in().unwrap_or(TICK).min(TICK)) => {}
            _ = async { wake.notified().await; tokio::time::sleep(TICK / 10).await } => {}
            changed = told.commands.changed() => if changed.is_err() { return },
        }
    }
}
