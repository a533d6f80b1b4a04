//! The write-ahead log of a node's memtables: chunks that survive the end of the process before they are in a part.
//!
//! It owns one RocksDB database, in which every chunk is an entry under (shard, epoch, sequence). It promises:
//! what [`Wal::append`] took is on disk when that returns, and is given back exactly by [`Wal::recover`] until it is
//! trimmed; damage in what was acknowledged refuses to open or to be read, and is never passed over. All
//! shards of the node share fsyncs: whoever appends while one is under way waits for the next together.
//!
//! Replay goes by offset, not by epoch: which entries continue a history is decided in [`replay`] from their spans and the
//! committed offset alone, so it does not matter who led in between. A write that fails ends the process, because
//! what it covered is neither on disk nor gone (the kernel marks pages clean after a failed fsync).
//!
//! It knows no catalog: whoever trims says what is committed, and when a table or a partition is gone.

mod entry;
mod index;
pub mod replay;
#[cfg(test)]
mod tests;

use crate::memtable::Chunk;
pub use entry::{decode as decode_chunk, encode as encode_chunk};
use index::Index;
pub use index::WalEntry;
use rocksdb::statistics::Histogram;
use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, DBRecoveryMode, IteratorMode, Options, WriteBatch, WriteOptions,
};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use thiserror::Error;
use tidemill_core::{Epoch, Offset, PartitionId, PipeId, ShardId, SpanKey};

/// Column family of the entries.
const ENTRIES: &str = "entries";
/// Column family of what is known of the log itself.
const META: &str = "meta";
/// Whose log it is.
const OWNER: &[u8] = b"owner";

/// Entries from this size on are written to blob files: compaction moves references to them instead of their bytes.
const BLOB_BYTES: u64 = 4 << 10;
/// What is gathered in memory before it goes into tables. What is trimmed before that is written once only.
const BUFFER_BYTES: usize = 32 << 20;

/// Why the write-ahead log cannot be used.
#[derive(Debug, Error)]
pub enum WalError {
    /// Another process has it open, or the disk failed.
    #[error("the write-ahead log in {folder} cannot be used: {reason}")]
    Store {
        /// Where it is.
        folder: PathBuf,
        /// What RocksDB said.
        reason: String,
    },
    /// Something in it is not what was written.
    #[error(
        "the write-ahead log in {folder} is damaged: {reason}. What follows the damage was acknowledged, so nothing is \
         cut off and nothing is skipped. Move this folder away for inspection and start the node again: rows from Kafka \
         that are not in committed parts yet are read again from there; of direct writes, rows that were acknowledged by \
         this node alone are in the folder moved away and nowhere else"
    )]
    Damaged {
        /// Where it is.
        folder: PathBuf,
        /// What was found.
        reason: String,
    },
    /// It was written by another cluster.
    #[error(
        "the write-ahead log in {folder} belongs to {found}, not to {wanted}: its rows are others. Give this node a \
         folder of its own"
    )]
    NotOurs {
        /// Where it is.
        folder: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        wanted: String,
    },
    /// A write has failed before; nothing is taken any more.
    #[error("the write-ahead log in {folder} takes nothing since a write has failed")]
    Failed {
        /// Where it is.
        folder: PathBuf,
    },
    /// The rows cannot be encoded: a mistake of the caller.
    #[error("rows cannot be written to the write-ahead log: {0}")]
    Encode(String),
}

/// Called when the log cannot be written; it should not return. The default ends the process.
pub type FailureHook = Arc<dyn Fn(&str) + Send + Sync>;

/// Asked before each append in tests: an error is taken as that of the disk.
pub type WriteFault = Arc<dyn Fn() -> Option<io::Error> + Send + Sync>;

/// How a log is opened.
#[derive(Clone)]
pub struct WalOptions {
    /// Called when the log cannot be written.
    pub on_failure: FailureHook,
    /// Lets tests fail a write.
    pub fault: Option<WriteFault>,
}

impl Default for WalOptions {
    fn default() -> Self {
        let abort = |message: &str| {
            tracing::error!("{message}");
            // The log output may be off or buffered; this must be seen.
            eprintln!("tidemill: {message}");
            std::process::abort()
        };
        Self {
            on_failure: Arc::new(abort),
            fault: None,
        }
    }
}

/// What the log holds and has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalStats {
    /// Entries that are not trimmed.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Appends, each durable.
    pub appends: u64,
    /// Bytes appended.
    pub appended_bytes: u64,
    /// How often the disk was waited for; one wait may serve many appends.
    pub syncs: u64,
    /// How long that took, added up.
    pub sync_time: Duration,
    /// Rows given back to memtables.
    pub replayed_rows: u64,
}

/// What of a history is in the log.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Chunks that continue the history from the committed offset on, each from where the one before ends.
    pub chunks: Vec<Chunk>,
    /// What else is there of this partition: committed, of another life, or behind the first hole. It does not become
    /// part of the history any more once offsets are appended anew: [`Wal::forget`] it before that.
    pub unused: Vec<WalEntry>,
}

/// See the module's page.
pub struct Wal {
    db: DB,
    /// The options that it was opened with: RocksDB counts there.
    counters: Options,
    folder: PathBuf,
    options: WalOptions,
    index: Mutex<Index>,
    failed: AtomicBool,
    appends: AtomicU64,
    appended_bytes: AtomicU64,
    replayed_rows: AtomicU64,
    // Dropped, and so told, after the database is closed.
    open: Arc<()>,
}

/// Tells whether a log is closed. A process that ends while RocksDB closes a database aborts, so it waits for that.
#[derive(Clone, Debug, Default)]
pub struct WalClosing(Weak<()>);

impl WalClosing {
    /// Whether nobody has the log any more and its database is closed.
    pub fn is_done(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl Wal {
    /// Opens the log in `folder`, creating it if there is none, and reads and verifies everything in it. Blocks.
    ///
    /// # Errors
    /// [`WalError::Damaged`] when an entry is not what was written; [`WalError::Store`] when it cannot be opened.
    pub fn open(folder: &Path, options: WalOptions) -> Result<Self, WalError> {
        let counters = database_options();
        let db = open_database(&counters, folder).map_err(|e| of_rocksdb(folder, &e))?;
        let mut wal = Self {
            db,
            counters,
            folder: folder.into(),
            options,
            index: Mutex::default(),
            failed: AtomicBool::new(false),
            appends: AtomicU64::new(0),
            appended_bytes: AtomicU64::new(0),
            replayed_rows: AtomicU64::new(0),
            open: Arc::default(),
        };
        wal.index = Mutex::new(wal.load()?);
        Ok(wal)
    }

    /// Tells when it is closed.
    pub fn closing(&self) -> WalClosing {
        WalClosing(Arc::downgrade(&self.open))
    }

    /// Says whose log this is. The first owner stays.
    ///
    /// # Errors
    /// [`WalError::NotOurs`] when it is another's.
    pub fn claim(&self, owner: &str) -> Result<(), WalError> {
        let meta = self.family(META)?;
        match self.db.get_cf(meta, OWNER).map_err(|e| self.failure(&e))? {
            None => {
                let written = self.db.put_cf_opt(meta, OWNER, owner, &synced());
                written.map_err(|e| self.failure(&e))
            }
            Some(found) if found == owner.as_bytes() => Ok(()),
            Some(found) => Err(WalError::NotOurs {
                folder: self.folder.clone(),
                found: String::from_utf8_lossy(&found).into_owned(),
                wanted: owner.to_owned(),
            }),
        }
    }

    /// Writes `chunks`, in their order, all of them or none; they are on disk when this returns. Blocks for an fsync, which
    /// it shares with those who append at the same time.
    ///
    /// Appends of one partition must not overlap in time: their order is that of the calls.
    ///
    /// # Errors
    /// [`WalError::Encode`] when a chunk cannot be written, and nothing is then. Does not return when the disk fails,
    /// unless the failure hook does: then what was appended is unknown, and the log takes nothing any more.
    pub fn append(&self, shard: ShardId, epoch: Epoch, chunks: &[Chunk]) -> Result<(), WalError> {
        let mut encoded = Vec::with_capacity(chunks.len());
        // A chunk over no offset says nothing, and nothing could be found by it.
        for chunk in chunks.iter().filter(|chunk| chunk.span.width() > 0) {
            let bytes = entry::encode(chunk).map_err(|e| WalError::Encode(e.to_string()))?;
            encoded.push((chunk.span, bytes));
        }
        if encoded.is_empty() {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        let entries = self.family(ENTRIES)?;
        let mut size = 0;
        {
            // In the index before they are written: a trim may delete everything below the oldest entry that it knows.
            let mut index = self.index();
            for (span, bytes) in &encoded {
                let entry = index.add(shard, epoch, span, bytes.len() as u64);
                batch.put_cf(entries, entry.key(), bytes);
                size += bytes.len() as u64;
            }
        }
        self.write(batch)?;
        self.appends.fetch_add(1, Ordering::Relaxed);
        self.appended_bytes.fetch_add(size, Ordering::Relaxed);
        Ok(())
    }

    fn write(&self, batch: WriteBatch) -> Result<(), WalError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(WalError::Failed {
                folder: self.folder.clone(),
            });
        }
        let fault = self.options.fault.as_ref().and_then(|fault| fault());
        let written = match fault {
            Some(error) => Err(error.to_string()),
            // RocksDB makes one write and one fsync of all batches that wait for it.
            None => self.db.write_opt(batch, &synced()).map_err(|e| e.to_string()),
        };
        written.map_err(|reason| {
            self.failed.store(true, Ordering::Release);
            (self.options.on_failure)(&format!(
                "the write-ahead log in {} cannot be written: {reason}. What was just written may or may not be on disk, so \
                 this process ends now; check the disk and start it again",
                self.folder.display()
            ));
            WalError::Failed {
                folder: self.folder.clone(),
            }
        })
    }

    /// The rows of the history `key` that are here from `committed` on. Changes nothing. Blocks for reading and decoding.
    ///
    /// # Errors
    /// [`WalError::Damaged`] when an entry cannot be read as it was written.
    pub fn recover(&self, shard: ShardId, key: SpanKey, committed: Offset) -> Result<Recovered, WalError> {
        let entries = self.index().of_lane(shard, key.pipe, key.partition);
        let plan = replay::plan(&entries, key, committed);
        let family = self.family(ENTRIES)?;
        let mut chunks = Vec::with_capacity(plan.adopted.len());
        for (entry, from) in plan.adopted {
            let bytes = self
                .db
                .get_pinned_cf(family, entry.key())
                .map_err(|e| self.failure(&e))?;
            let bytes = bytes.ok_or_else(|| self.damaged(format!("{entry} is not there")))?;
            let chunk = entry::decode(&bytes).map_err(|why| self.damaged(format!("{entry}: {why}")))?;
            let chunk = replay::from_offset(chunk, from);
            chunks.push(chunk.ok_or_else(|| self.damaged(format!("{entry} does not hold what its span counts")))?);
        }
        let rows: u64 = chunks.iter().map(|chunk| chunk.span.counts.rows).sum();
        self.replayed_rows.fetch_add(rows, Ordering::Relaxed);
        Ok(Recovered {
            chunks,
            unused: plan.unused,
        })
    }

    /// The partitions of which there are entries, by shard.
    pub fn lanes(&self) -> Vec<(ShardId, PipeId, PartitionId)> {
        self.index().lanes()
    }

    /// Forgets what is committed: of each history, entries that end at or below its offset, and all of the lives of its
    /// partition before; but none behind one that reaches further. Partitions that are not named are left alone. Nothing waits for the disk: an entry that comes
    /// back after a crash lies below the committed offset.
    ///
    /// # Errors
    /// [`WalError::Store`] when the log cannot be written; what was to be forgotten may come back when it is opened again.
    pub fn trim(&self, shard: ShardId, committed: &[(SpanKey, Offset)]) -> Result<(), WalError> {
        self.delete(|index| index.trim(shard, committed))
    }

    /// Forgets these entries.
    ///
    /// # Errors
    /// As [`Wal::trim`].
    pub fn forget(&self, entries: &[WalEntry]) -> Result<(), WalError> {
        self.delete(|index| index.remove(entries))
    }

    /// Forgets a partition of a shard: its pipe is gone, or it belongs to another shard now.
    ///
    /// # Errors
    /// As [`Wal::trim`].
    pub fn drop_lane(&self, shard: ShardId, pipe: PipeId, partition: PartitionId) -> Result<(), WalError> {
        self.delete(|index| index.remove_lane(shard, pipe, partition))
    }

    /// What it holds and has done.
    pub fn stats(&self) -> WalStats {
        let (entries, bytes) = self.index().totals();
        let syncs = self.counters.get_histogram_data(Histogram::WalFileSyncMicros);
        WalStats {
            entries,
            bytes,
            appends: self.appends.load(Ordering::Relaxed),
            appended_bytes: self.appended_bytes.load(Ordering::Relaxed),
            syncs: syncs.count(),
            sync_time: Duration::from_micros(syncs.sum()),
            replayed_rows: self.replayed_rows.load(Ordering::Relaxed),
        }
    }

    /// Deletes from the database what `choose` takes out of the index.
    fn delete(&self, choose: impl FnOnce(&mut Index) -> index::Deletions) -> Result<(), WalError> {
        let deletions = choose(&mut self.index());
        if deletions.is_empty() {
            return Ok(());
        }
        let entries = self.family(ENTRIES)?;
        let mut batch = WriteBatch::default();
        for (from, to) in &deletions.ranges {
            batch.delete_range_cf(entries, from, to);
        }
        for key in &deletions.points {
            batch.delete_cf(entries, key);
        }
        self.db.write(batch).map_err(|e| self.failure(&e))
    }

    /// Reads every entry: RocksDB verifies its checksum on the way, and its span says where it belongs.
    fn load(&self) -> Result<Index, WalError> {
        let mut index = Index::default();
        for item in self.db.iterator_cf(self.family(ENTRIES)?, IteratorMode::Start) {
            let (key, value) = item.map_err(|e| self.failure(&e))?;
            let span = entry::decode_span(&value).map_err(|why| self.damaged(why));
            let known = span.map(|span| index.load(&key, &span, value.len() as u64))?;
            known.map_err(|why| self.damaged(why))?;
        }
        Ok(index)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // No code that runs under the lock can leave the index half changed by a panic.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn family(&self, name: &str) -> Result<&ColumnFamily, WalError> {
        self.db
            .cf_handle(name)
            .ok_or_else(|| self.damaged(format!("column family {name} is missing")))
    }

    fn failure(&self, error: &rocksdb::Error) -> WalError {
        of_rocksdb(&self.folder, error)
    }

    fn damaged(&self, reason: String) -> WalError {
        WalError::Damaged {
            folder: self.folder.clone(),
            reason,
        }
    }
}

fn synced() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options
}

fn of_rocksdb(folder: &Path, error: &rocksdb::Error) -> WalError {
    let (folder, reason) = (folder.to_owned(), error.to_string());
    match error.kind() {
        rocksdb::ErrorKind::Corruption => WalError::Damaged { folder, reason },
        _ => WalError::Store { folder, reason },
    }
}

fn database_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // An unfinished record at the end was never acknowledged; damage anywhere else refuses to open. RocksDB's default
    // would drop acknowledged entries behind the damage without a word.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    // Needed for that: in a recycled file, old records look like a torn end.
    options.set_recycle_log_file_num(0);
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_paranoid_checks(true);
    options.set_max_total_wal_size(4 * BUFFER_BYTES as u64);
    options.set_keep_log_file_num(4);
    options.set_max_background_jobs(2);
    options.enable_statistics();
    options
}

fn open_database(options: &Options, folder: &Path) -> Result<DB, rocksdb::Error> {
    let mut entries = Options::default();
    entries.set_write_buffer_size(BUFFER_BYTES);
    entries.set_max_write_buffer_number(3);
    // The values are compressed already.
    entries.set_compression_type(rocksdb::DBCompressionType::None);
    entries.set_enable_blob_files(true);
    entries.set_min_blob_size(BLOB_BYTES);
    entries.set_blob_file_size(BUFFER_BYTES as u64);
    entries.set_enable_blob_gc(true);
    let families = [
        ColumnFamilyDescriptor::new(ENTRIES, entries),
        ColumnFamilyDescriptor::new(META, Options::default()),
    ];
    DB::open_cf_descriptors(options, folder, families)
}
