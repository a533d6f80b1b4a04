//! The Raft log of a node, as `raft/src/log_store.rs` and `raft/src/log_writer.rs` have it: what changes is seen at once, goes
//! to the writer through one queue, is written in that order, and is acknowledged in that order after it was synced. What
//! waits in the queue shares one fsync. Entries are purged only after the catalog that they made is synced.

use crate::disk::{Change, LogState};
use crate::mutant::Mutant;
use crate::runtime::{Signal, lock, spawn_free, true_sleep};
use crate::types::{Entry, LogId, TypeConfig, Vote};
use crate::world::{Machine, Risk, World};
use futures::channel::oneshot;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState as Ends, OptionalSend, RaftLogReader};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The most entries that one message carries; the product bounds bytes.
const MESSAGE_ENTRIES: u64 = 64;

/// Who waits for an operation to be on disk.
enum Waiter {
    None,
    Raft(IOFlushed<TypeConfig>),
    Caller(oneshot::Sender<()>),
}

impl Waiter {
    fn done(self) {
        match self {
            Waiter::None => {}
            Waiter::Raft(flushed) => flushed.io_completed(Ok(())),
            // A caller who no longer waits is owed nothing.
            Waiter::Caller(caller) => drop(caller.send(())),
        }
    }
}

/// The log as Raft sees it, ahead of the disk.
struct Tail {
    seen: LogState,
    queue: Vec<(Change, Waiter)>,
}

struct Shared {
    world: Arc<World>,
    machine: Arc<Machine>,
    tail: Mutex<Tail>,
    queued: Signal,
}

/// See the module.
pub(crate) struct LogStore(Arc<Shared>);

/// Read access to it.
pub(crate) struct LogReader(Arc<Shared>);

impl LogStore {
    /// Opens the log on the disk of `machine`.
    ///
    /// # Errors
    /// When what is found cannot be a log.
    pub fn open(world: &Arc<World>, machine: &Arc<Machine>) -> Result<Self, String> {
        let seen = lock(&machine.disk).log.found();
        seen.check()?;
        Ok(Self(Arc::new(Shared {
            world: world.clone(),
            machine: machine.clone(),
            tail: Mutex::new(Tail { seen, queue: vec![] }),
            queued: Signal::default(),
        })))
    }

    /// What writes it; a task of the node's process.
    pub fn writer(&self) -> impl Future<Output = ()> + Send + 'static {
        let shared = self.0.clone();
        async move {
            loop {
                let taken = || {
                    let mut tail = lock(&shared.tail);
                    (!tail.queue.is_empty()).then(|| std::mem::take(&mut tail.queue))
                };
                let group = shared.queued.until(taken).await;
                shared.write(group).await;
            }
        }
    }

    /// Whether there never was an entry.
    pub fn is_blank(&self) -> bool {
        lock(&self.0.tail).seen.last().is_none()
    }

    /// Whether it ends before `applied`.
    pub fn is_behind(&self, applied: Option<LogId>) -> bool {
        lock(&self.0.tail).seen.last() < applied
    }

    fn submit(&self, change: Change, waiter: Waiter) {
        let shared = &self.0;
        let mut tail = lock(&shared.tail);
        tail.seen.make(&change);
        let (change, waiter) = match (shared.world.mutant, change) {
            (Some(Mutant::VoteIsNotPersisted), Change::Vote(_)) => return waiter.done(),
            (Some(Mutant::TruncatedLogResurrects), Change::Truncate(_)) => return waiter.done(),
            (Some(Mutant::EntriesOvertakeTheVote), Change::Vote(vote)) => {
                waiter.done();
                return shared.write_late(Change::Vote(vote));
            }
            (Some(Mutant::AcknowledgesBeforeFsync), change @ Change::Append(_)) => {
                waiter.done();
                (change, Waiter::None)
            }
            (_, change) => (change, waiter),
        };
        tail.queue.push((change, waiter));
        drop(tail);
        shared.queued.notify();
    }

    /// Submits, and waits until it is on disk.
    async fn submit_and_wait(&self, change: Change) -> io::Result<()> {
        let (done, on_disk) = oneshot::channel();
        self.submit(change, Waiter::Caller(done));
        on_disk.await.map_err(|_| io::Error::other("the writer has ended"))
    }
}

impl Shared {
    /// Writes a group, syncs it, and says so.
    async fn write(&self, group: Vec<(Change, Waiter)>) {
        let (changes, waiters): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let sync = changes.iter().any(|change| !matches!(change, Change::Committed(_)));
        true_sleep(self.world.write_time(&self.machine)).await;
        lock(&self.machine.disk).log.write(changes);
        if sync {
            true_sleep(self.world.sync_time(&self.machine)).await;
            lock(&self.machine.disk).log.sync();
        }
        waiters.into_iter().for_each(Waiter::done);
    }

    /// Writes past the queue, some time later, whatever has become of the process.
    fn write_late(&self, change: Change) {
        let (machine, run) = (self.machine.clone(), self.machine.run());
        spawn_free(async move {
            true_sleep(Duration::from_millis(300)).await;
            if machine.run() == run {
                let mut disk = lock(&machine.disk);
                disk.log.write(vec![change]);
                disk.log.sync();
            }
        });
    }

    fn read(&self, range: impl RangeBounds<u64>, limit: u64) -> io::Result<Vec<Entry>> {
        let tail = lock(&self.tail);
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(from) => from + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(to) => to + 1,
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        if from >= to {
            return Ok(vec![]);
        }
        let found: Vec<Entry> = tail
            .seen
            .entries
            .range(from..to)
            .take(limit as usize)
            .map(|(_, e)| e.clone())
            .collect();
        check_consecutive(&found)?;
        Ok(found)
    }
}

fn check_consecutive(entries: &[Entry]) -> io::Result<()> {
    for pair in entries.windows(2) {
        let (a, b) = (pair[0].log_id.index, pair[1].log_id.index);
        if a + 1 != b {
            return Err(io::Error::other(format!("entry {b} follows entry {a}")));
        }
    }
    Ok(())
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<Entry>> {
        self.0.read(range, u64::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.0.read(start..end, MESSAGE_ENTRIES)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(lock(&self.0.tail).seen.vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> io::Result<Ends<TypeConfig>> {
        let tail = lock(&self.0.tail);
        Ok(Ends {
            last_purged_log_id: tail.seen.purged,
            last_log_id: tail.seen.last(),
        })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader(self.0.clone())
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.submit_and_wait(Change::Vote(*vote)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.submit(Change::Committed(committed), Waiter::None);
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(lock(&self.0.tail).seen.committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        check_consecutive(&entries)?;
        let Some(first) = entries.first() else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        let (before, vote) = {
            let tail = lock(&self.0.tail);
            (tail.seen.last(), tail.seen.vote)
        };
        if let Some(last) = before
            && last.index + 1 != first.log_id.index
        {
            return Err(io::Error::other(format!(
                "entry {} cannot follow entry {last}",
                first.log_id
            )));
        }
        let office = vote.map(|vote| vote.leader_id);
        self.0.world.appended(&self.0.machine, office, before, &entries);
        self.submit(Change::Append(entries), Waiter::Raft(callback));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.map_or(0, |last| last.index + 1);
        if lock(&self.0.tail).seen.last().is_none_or(|last| last.index < from) {
            return Ok(());
        }
        self.0.world.count("truncations");
        self.submit_and_wait(Change::Truncate(from)).await?;
        self.0.world.risk(Risk::Truncation, Some(&self.0.machine));
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let shared = &self.0;
        if shared.world.mutant != Some(Mutant::PurgesWhatIsNotSynced) {
            // The catalog is made up to date from this log after a crash, so the log may lose only what the catalog on disk holds.
            true_sleep(shared.world.sync_time(&shared.machine)).await;
            let mut disk = lock(&shared.machine.disk);
            disk.catalog.sync();
            let applied = disk.catalog.current.applied;
            if applied.is_none_or(|applied| applied.index < upto.index) {
                let message = format!("the catalog stands at {applied:?}, the log cannot be purged up to {upto}");
                return Err(io::Error::other(message));
            }
        }
        shared.world.count("purges");
        self.submit(Change::Purge(upto), Waiter::None);
        Ok(())
    }
}
