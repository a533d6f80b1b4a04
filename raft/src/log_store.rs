//! The Raft log: entries, vote, committed and purged position, in a RocksDB of its own.
//!
//! It promises openraft's storage contract: an appended entry can be read as soon as `append`
//! returns, and is acknowledged (like a vote) after it is on disk, in the order of submission. The
//! state in memory ([`Tail`]) runs ahead of the disk; the [`LogWriter`] brings the disk after it.
//! Opening refuses a log with damage in its middle instead of dropping what follows the damage.
//! Entries are purged only after the catalog, which they made, is itself on disk.

use crate::{
    config::DEFAULT_MEMORY,
    database::{Closing, Open, family},
    log_writer::{
        self, COMMITTED, Change, ENTRIES, FailureHook, LogWriter, META, Operation, PURGED, VOTE, Waiter, WriteFault,
        WriterThread,
    },
    types::{Entry, LogId, TypeConfig, Vote, decode, encode},
};
use futures::{Stream, StreamExt, TryStreamExt};
use openraft::{
    LogState, OptionalSend, RaftLogReader,
    entry::RaftEntry,
    storage::{IOFlushed, RaftLogStorage},
};
use rocksdb::{ColumnFamilyDescriptor, DB, DBRecoveryMode, Direction, IteratorMode, Options};
use serde::de::DeserializeOwned;
use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use thiserror::Error;

/// The most bytes of entries that one replication message carries; one entry may go over it.
pub(crate) const MESSAGE_BYTES: usize = 2 << 20;

/// Asked with an index before the log up to it is purged; runs on a thread that may block.
pub(crate) type PurgeGate = Arc<dyn Fn(u64) -> io::Result<()> + Send + Sync>;

/// The log cannot be opened.
#[derive(Clone, Debug, Error)]
pub enum LogOpenError {
    /// Another process has it open, or the disk failed.
    #[error("the Raft log in {folder} cannot be opened: {reason}")]
    Store {
        /// Where it is.
        folder: PathBuf,
        /// What RocksDB said.
        reason: String,
    },
    /// Something in it is not what was written.
    #[error(
        "the Raft log in {folder} is damaged: {reason}. What follows the damage may have been acknowledged, so it is \
         not cut off. Do not repair it: move the whole data folder away for inspection and let this machine join as a \
         new node with an empty folder; the other nodes have the data"
    )]
    Damaged {
        /// Where it is.
        folder: PathBuf,
        /// What was found.
        reason: String,
    },
}

/// How a log is opened.
#[derive(Clone)]
pub struct LogOptions {
    /// Called when the log cannot be written.
    pub on_failure: FailureHook,
    /// Lets tests fail a write.
    pub fault: Option<WriteFault>,
    /// Bytes of memory for the databases of a node, this one among them.
    pub memory: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            on_failure: log_writer::abort_process(),
            fault: None,
            memory: DEFAULT_MEMORY,
        }
    }
}

/// The log as Raft sees it, ahead of the disk: what the writer has not written yet, and the ends.
#[derive(Default)]
pub(crate) struct Tail {
    /// Number of the last operation submitted.
    submitted: u64,
    /// Entries by index, each with the operation that appends it.
    pending: BTreeMap<u64, (u64, Entry)>,
    /// Entries on disk from this index on are truncated, by this operation.
    cut: Option<(u64, u64)>,
    purged: Option<LogId>,
    last: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
}

impl Tail {
    /// Everything up to operation `number` can be read from the database now.
    pub(crate) fn written(&mut self, number: u64) {
        self.pending.retain(|_, (operation, _)| *operation > number);
        if self.cut.is_some_and(|(operation, _)| operation <= number) {
            self.cut = None;
        }
    }

    fn next_index(&self) -> Option<u64> {
        self.last.as_ref().map(|last| last.index + 1)
    }
}

/// What the readers, the one who changes the log and the thread that writes it have in common.
pub(crate) struct Shared {
    pub(crate) db: DB,
    tail: Mutex<Tail>,
    // Dropped, and so told, after the database is closed.
    open: Open,
}

impl Shared {
    pub(crate) fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log, for the one task that changes it.
pub struct LogStore {
    pub(crate) shared: Arc<Shared>,
    writer: WriterThread,
    purge_gate: Option<PurgeGate>,
}

/// Read access to the log.
pub struct LogReader {
    shared: Arc<Shared>,
}

impl LogStore {
    /// Opens the log in `folder`, creating it if there is none, and starts its writer. Blocks.
    pub fn open(folder: &Path, options: LogOptions) -> Result<Self, LogOpenError> {
        let db = open_database(folder, options.memory)?;
        let tail = load_tail(&db).map_err(|e| LogOpenError::Damaged {
            folder: folder.into(),
            reason: e.to_string(),
        })?;
        let shared = Arc::new(Shared {
            db,
            tail: Mutex::new(tail),
            open: Open::default(),
        });
        let writer = LogWriter {
            log: shared.clone(),
            on_failure: options.on_failure,
            fault: options.fault,
        };
        let writer = writer.start().map_err(|e| LogOpenError::Store {
            folder: folder.into(),
            reason: e.to_string(),
        })?;
        Ok(Self {
            shared,
            writer,
            purge_gate: None,
        })
    }

    /// Asks `gate` before purging.
    pub(crate) fn with_purge_gate(mut self, gate: PurgeGate) -> Self {
        self.purge_gate = Some(gate);
        self
    }

    /// Tells when the database is closed.
    pub(crate) fn closing(&self) -> Closing {
        self.shared.open.closing()
    }

    /// Whether there is nothing at all, not even a vote.
    pub(crate) fn is_empty(&self) -> bool {
        self.is_blank() && self.shared.tail().vote.is_none()
    }

    /// Whether there never was an entry: this node has nothing that a quorum could count on. A
    /// vote may be there; it was given for a founding that came to nothing.
    pub fn is_blank(&self) -> bool {
        self.shared.tail().last.is_none()
    }

    /// Whether it ends before `applied`.
    pub(crate) fn is_behind(&self, applied: Option<&LogId>) -> bool {
        self.shared.tail().last.as_ref() < applied
    }

    /// Submits a change; `update` brings the state in memory to what it will be.
    fn submit(&self, change: Change, waiter: Waiter, update: impl FnOnce(&mut Tail, u64)) -> io::Result<()> {
        // Numbered and queued under one lock, so that the numbers are in the order of the queue.
        let mut tail = self.shared.tail();
        tail.submitted += 1;
        let number = tail.submitted;
        update(&mut tail, number);
        self.writer.submit(Operation { number, change, waiter })
    }
}

fn database_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // An unfinished record at the end was never acknowledged; damage anywhere else refuses to open.
    // RocksDB's default would drop acknowledged entries behind the damage without a word.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    // Needed for that: in a recycled file, old records look like a torn end.
    options.set_recycle_log_file_num(0);
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_paranoid_checks(true);
    options.set_max_total_wal_size(64 << 20);
    options.set_keep_log_file_num(4);
    options.set_max_background_jobs(2);
    options
}

/// Of `memory`, three sixteenths for entries on their way into files, and one for those that followers read.
fn family_options(memory: u64, cache: &rocksdb::Cache) -> Options {
    let mut table = rocksdb::BlockBasedOptions::default();
    table.set_block_cache(cache);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size((memory / 16) as usize);
    options.set_max_write_buffer_number(3);
    options.set_compression_type(rocksdb::DBCompressionType::Lz4);
    options
}

fn open_database(folder: &Path, memory: u64) -> Result<DB, LogOpenError> {
    let cache = rocksdb::Cache::new_lru_cache((memory / 16) as usize);
    let families = [ENTRIES, META].map(|name| ColumnFamilyDescriptor::new(name, family_options(memory, &cache)));
    DB::open_cf_descriptors(&database_options(), folder, families).map_err(|e| {
        let (folder, reason) = (folder.to_owned(), e.to_string());
        match e.kind() {
            rocksdb::ErrorKind::Corruption => LogOpenError::Damaged { folder, reason },
            _ => LogOpenError::Store { folder, reason },
        }
    })
}

/// Reads the ends of the log, and checks what can be checked cheaply: the indexes are consecutive
/// and the vote is not older than the last entry. Either means that records were lost.
fn load_tail(db: &DB) -> io::Result<Tail> {
    let mut tail = Tail {
        vote: meta(db, VOTE)?,
        purged: meta(db, PURGED)?,
        ..Tail::default()
    };
    tail.committed = meta::<Option<LogId>>(db, COMMITTED)?.flatten();
    let mut previous: Option<u64> = tail.purged.as_ref().map(|purged| purged.index);
    let mut last = None;
    for item in db.iterator_cf(family(db, ENTRIES)?, IteratorMode::Start) {
        let (key, value) = item.map_err(io::Error::other)?;
        let index = index_of(&key)?;
        if let Some(previous) = previous
            && index != previous + 1
        {
            return Err(io::Error::other(format!("entry {index} follows entry {previous}")));
        }
        (previous, last) = (Some(index), Some(value));
    }
    tail.last = match last {
        Some(bytes) => Some(decode::<Entry>(&bytes)?.log_id()),
        None => tail.purged,
    };
    if let Some(last) = &tail.last {
        let voted = tail.vote.as_ref().map(|vote| vote.leader_id);
        // The founding entry, of term 0, is older than any vote.
        if last.leader_id.term > 0 && voted.is_none_or(|voted| voted < last.leader_id) {
            return Err(io::Error::other(format!(
                "the last entry {last} is newer than the vote"
            )));
        }
    }
    Ok(tail)
}

fn meta<T: DeserializeOwned>(db: &DB, key: &[u8]) -> io::Result<Option<T>> {
    let bytes = db.get_cf(family(db, META)?, key).map_err(io::Error::other)?;
    bytes.map(|bytes| decode(&bytes)).transpose()
}

fn index_of(key: &[u8]) -> io::Result<u64> {
    let bytes = key
        .try_into()
        .map_err(|_| io::Error::other("a key of the log is not an index"))?;
    Ok(u64::from_be_bytes(bytes))
}

impl LogReader {
    /// The entries in `from..to`, cut off behind `limit` bytes.
    fn read(&self, from: u64, to: Option<u64>, limit: usize) -> io::Result<Vec<Entry>> {
        let db = &self.shared.db;
        // A snapshot taken under the lock holds everything that is not pending: the writer takes
        // entries out of `pending` under the same lock, after it has written them.
        let (snapshot, pending, visible_to, from) = {
            let tail = self.shared.tail();
            let from = tail.purged.as_ref().map_or(from, |purged| from.max(purged.index + 1));
            let bound = to.map_or(Bound::Unbounded, Bound::Excluded);
            let pending: BTreeMap<u64, Entry> = if to.is_some_and(|to| to <= from) {
                BTreeMap::new()
            } else {
                tail.pending
                    .range((Bound::Included(from), bound))
                    .map(|(index, (_, entry))| (*index, entry.clone()))
                    .collect()
            };
            let cut = tail.cut.map_or(u64::MAX, |(_, cut)| cut);
            (db.snapshot(), pending, cut.min(to.unwrap_or(u64::MAX)), from)
        };
        let disk_to = pending.keys().next().copied().unwrap_or(u64::MAX).min(visible_to);
        let mut found = Vec::new();
        let mut bytes = 0;
        let start = from.to_be_bytes();
        for item in snapshot.iterator_cf(family(db, ENTRIES)?, IteratorMode::From(&start, Direction::Forward)) {
            let (key, value) = item.map_err(io::Error::other)?;
            if index_of(&key)? >= disk_to || bytes >= limit {
                break;
            }
            bytes += value.len();
            found.push(decode::<Entry>(&value)?);
        }
        if bytes < limit {
            for entry in pending.into_values() {
                if bytes >= limit {
                    break;
                }
                bytes += approximate_bytes(&entry);
                found.push(entry);
            }
        }
        check_consecutive(&found)?;
        Ok(found)
    }
}

/// Pending entries are not encoded again to learn their size; only large ones matter.
fn approximate_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        openraft::EntryPayload::Normal(logged) => match &logged.0.command {
            tidemill_core::Command::CommitPart(commit) => 1024 * (1 + commit.parts.len() + commit.spans.len() / 8),
            _ => 1024,
        },
        _ => 256,
    }
}

fn check_consecutive(entries: &[Entry]) -> io::Result<()> {
    for pair in entries.windows(2) {
        let (a, b) = (pair[0].index(), pair[1].index());
        if a + 1 != b {
            return Err(io::Error::other(format!(
                "the Raft log has a hole: entry {b} follows entry {a}"
            )));
        }
    }
    Ok(())
}

/// The first index of a range, and the first behind it.
fn ends(range: &impl RangeBounds<u64>) -> (u64, Option<u64>) {
    let from = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index + 1,
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(index) => Some(index + 1),
        Bound::Excluded(index) => Some(*index),
        Bound::Unbounded => None,
    };
    (from, to)
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<Entry>> {
        let (from, to) = ends(&range);
        self.read(from, to, usize::MAX)
    }

    /// Reads piece by piece: what waits to be applied may be more than memory holds.
    async fn entries_stream<R>(&mut self, range: R) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = ends(&range);
        let reader = &*self;
        let pieces = futures::stream::try_unfold(from, move |from| async move {
            if to.is_some_and(|to| from >= to) {
                return Ok(None);
            }
            let piece = reader.read(from, to, MESSAGE_BYTES)?;
            let next = piece.last().map(|last| last.index() + 1);
            Ok::<_, io::Error>(next.map(|next| (futures::stream::iter(piece.into_iter().map(Ok)), next)))
        });
        pieces.try_flatten().boxed()
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, Some(end), MESSAGE_BYTES)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared.tail().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let tail = self.shared.tail();
        Ok(LogState {
            last_purged_log_id: tail.purged,
            last_log_id: tail.last,
        })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader {
            shared: self.shared.clone(),
        }
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (done, on_disk) = tokio::sync::oneshot::channel();
        self.submit(Change::Meta(VOTE, encode(vote)?), Waiter::Caller(done), |tail, _| {
            tail.vote = Some(*vote)
        })?;
        on_disk
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the thread that writes the Raft log has ended")))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.submit(Change::Hint(COMMITTED, encode(&committed)?), Waiter::None, |tail, _| {
            tail.committed = committed
        })
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.shared.tail().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        check_consecutive(&entries)?;
        let Some((first, last)) = entries.first().zip(entries.last()) else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        if let Some(next) = self.shared.tail().next_index()
            && next != first.index()
        {
            return Err(io::Error::other(format!(
                "entry {} cannot follow entry {}",
                first.index(),
                next - 1
            )));
        }
        let last = last.log_id();
        let records = entries
            .iter()
            .map(|e| Ok((e.index(), encode(e)?)))
            .collect::<io::Result<Vec<_>>>()?;
        self.submit(Change::Append(records), Waiter::Raft(callback), |tail, number| {
            tail.pending
                .extend(entries.into_iter().map(|entry| (entry.index(), (number, entry))));
            tail.last = Some(last);
        })
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let from = last_log_id.as_ref().map_or(0, |last| last.index + 1);
        let Some(to) = self
            .shared
            .tail()
            .last
            .as_ref()
            .map(|last| last.index)
            .filter(|to| *to >= from)
        else {
            return Ok(());
        };
        // Waited for: a snapshot may be installed next, and a start must not find it under a tail
        // that it replaced.
        let (done, on_disk) = tokio::sync::oneshot::channel();
        self.submit(Change::Truncate { from, to }, Waiter::Caller(done), |tail, number| {
            tail.pending.split_off(&from);
            tail.cut = Some((number, tail.cut.map_or(from, |(_, cut)| cut.min(from))));
            tail.last = last_log_id;
        })?;
        on_disk
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the thread that writes the Raft log has ended")))
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        if let Some(gate) = self.purge_gate.clone() {
            // The catalog is not synced with each command: after a crash it is made up to date from
            // this log. So the log may lose only what the catalog on disk holds, and this waits for it.
            let index = log_id.index;
            tokio::task::spawn_blocking(move || gate(index))
                .await
                .map_err(io::Error::other)??;
        }
        let change = Change::Purge {
            upto: log_id.index,
            position: encode(&log_id)?,
        };
        self.submit(change, Waiter::None, |tail, _| {
            tail.pending = tail.pending.split_off(&(log_id.index + 1));
            if tail.last.as_ref().is_none_or(|last| last.index < log_id.index) {
                tail.last = Some(log_id);
            }
            tail.purged = Some(log_id);
        })
    }
}
