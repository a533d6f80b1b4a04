//! One RocksDB that holds one catalog: a column family for each kind of record, and one for what
//! Raft must know about it (the last applied position and the membership). It opens, reads and
//! writes; which catalog is the current one is decided in [`crate::catalog_store`].
//!
//! Writes are not synced one by one: the Raft log is the truth, and repeats what a crash takes away.

use crate::{
    database::{Closing, Open, family},
    folder::OwnedFolder,
    types::{LogId, Membership, decode, encode},
};
use rocksdb::{
    BlockBasedOptions, ColumnFamily, ColumnFamilyDescriptor, DB, DBAccess, DBIteratorWithThreadMode, DBRecoveryMode,
    Direction, IteratorMode, Options, ReadOptions, SnapshotWithThreadMode, WriteBatch,
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{
    Version,
    view::{CatalogSnapshot, CatalogView, Kind, ViewError, Visit, WriteSet},
};

/// Column family of what Raft must know; no [`Kind`] has this name.
const RAFT: &str = "raft";
const APPLIED: &[u8] = b"applied";
const MEMBERSHIP: &[u8] = b"membership";

/// A catalog that is open, in a folder that goes with it when it was replaced.
pub(crate) struct CatalogDb {
    // Dropped, and so closed, before the folder.
    db: DB,
    folder: OwnedFolder,
    cache: rocksdb::Cache,
    // Dropped, and so told, after the database is closed.
    open: Open,
}

/// The names of all column families.
fn families() -> impl Iterator<Item = &'static str> {
    Kind::ALL.map(Kind::name).into_iter().chain([RAFT])
}

impl CatalogDb {
    /// Opens the catalog in `path`, creating it if there is none. Of `memory`, half is for what was read and a quarter for
    /// what is on its way into files. Blocks.
    pub(crate) fn open(path: PathBuf, memory: u64) -> io::Result<Self> {
        let cache = rocksdb::Cache::new_lru_cache((memory / 2) as usize);
        let families = families().map(|name| ColumnFamilyDescriptor::new(name, family_options(memory, &cache)));
        let db = DB::open_cf_descriptors(&database_options(memory), &path, families).map_err(io::Error::other)?;
        Ok(Self {
            db,
            folder: OwnedFolder::new(path, true),
            cache,
            open: Open::default(),
        })
    }

    /// Whether the folder outlives this value; if not, it is deleted as soon as nobody reads it any more.
    pub(crate) fn keep(&self, kept: bool) {
        self.folder.keep(kept);
    }

    /// Bytes of memory that its cache holds, and what is not in files yet.
    pub(crate) fn memory(&self) -> u64 {
        let unwritten = |name| {
            let family = self.db.cf_handle(name)?;
            let bytes = self.db.property_int_value_cf(family, "rocksdb.cur-size-all-mem-tables");
            bytes.ok().flatten()
        };
        families().filter_map(unwritten).sum::<u64>() + self.cache.get_usage() as u64
    }

    /// Tells when it is closed.
    pub(crate) fn closing(&self) -> Closing {
        self.open.closing()
    }

    /// Writes changes and the position they bring the catalog to, at once.
    pub(crate) fn write(&self, writes: WriteSet, applied: &LogId, membership: Option<&Membership>) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        for ((kind, key), value) in writes {
            let family = self.family(kind.name())?;
            match value {
                Some(value) => batch.put_cf(family, key, value),
                None => batch.delete_cf(family, key),
            }
        }
        let raft = self.family(RAFT)?;
        batch.put_cf(raft, APPLIED, encode(applied)?);
        if let Some(membership) = membership {
            batch.put_cf(raft, MEMBERSHIP, encode(membership)?);
        }
        self.db.write(batch).map_err(io::Error::other)
    }

    /// The position and membership that it stands at.
    pub(crate) fn applied(&self) -> io::Result<(Option<LogId>, Membership)> {
        let raft = self.family(RAFT)?;
        let applied = self.db.get_cf(raft, APPLIED).map_err(io::Error::other)?;
        let membership = self.db.get_cf(raft, MEMBERSHIP).map_err(io::Error::other)?;
        Ok((
            applied.map(|bytes| decode(&bytes)).transpose()?,
            membership.map(|bytes| decode(&bytes)).transpose()?.unwrap_or_default(),
        ))
    }

    /// Makes everything written so far durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.db.flush_wal(true).map_err(io::Error::other)
    }

    /// Moves what is in memory into files, so that a checkpoint has little left to do.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let families = families()
            .map(|name| self.family(name))
            .collect::<io::Result<Vec<_>>>()?;
        self.db
            .flush_cfs_opt(&families, &rocksdb::FlushOptions::default())
            .map_err(io::Error::other)
    }

    /// Makes a copy in the new folder `path`, out of hard links where files never change.
    pub(crate) fn checkpoint(&self, path: &Path) -> io::Result<()> {
        let checkpoint = rocksdb::checkpoint::Checkpoint::new(&self.db).map_err(io::Error::other)?;
        checkpoint.create_checkpoint(path).map_err(io::Error::other)
    }

    fn family(&self, name: &str) -> io::Result<&ColumnFamily> {
        family(&self.db, name)
    }

    fn kind(&self, kind: Kind) -> Result<&ColumnFamily, ViewError> {
        self.family(kind.name()).map_err(store_error)
    }
}

fn database_options(memory: u64) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // Unsynced bytes may be missing, or torn anywhere, after a power failure. What stands before
    // the first gap is a true older state; the Raft log, never purged past what was synced, has
    // the rest. If damage reaches further back than that, openraft finds the entries missing.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_recycle_log_file_num(0);
    // All families go to files together, so that none can be ahead of another after a crash.
    options.set_atomic_flush(true);
    options.set_paranoid_checks(true);
    options.set_max_total_wal_size(128 << 20);
    options.set_db_write_buffer_size((memory / 4) as usize);
    options.set_keep_log_file_num(4);
    options.set_max_background_jobs(2);
    options
}

fn family_options(memory: u64, cache: &rocksdb::Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_bloom_filter(10.0, false);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size((memory / 16) as usize);
    options.set_compression_type(rocksdb::DBCompressionType::Lz4);
    options
}

fn store_error(error: impl std::fmt::Display) -> ViewError {
    ViewError::Store(error.to_string())
}

/// Reads that end where the prefix does.
fn bounded(prefix: &[u8]) -> ReadOptions {
    let mut options = ReadOptions::default();
    let mut end = prefix.to_vec();
    while end.last() == Some(&u8::MAX) {
        end.pop();
    }
    if let Some(last) = end.last_mut() {
        *last += 1;
        options.set_iterate_upper_bound(end);
    }
    options
}

fn visit_all<D: DBAccess>(items: DBIteratorWithThreadMode<'_, D>, visit: &mut Visit<'_>) -> Result<(), ViewError> {
    for item in items {
        let (key, value) = item.map_err(store_error)?;
        visit(&key, &value)?;
    }
    Ok(())
}

/// The state as it is now; for the one task that changes it.
impl CatalogView for CatalogDb {
    fn get_bytes(&self, kind: Kind, key: &[u8]) -> Result<Option<Vec<u8>>, ViewError> {
        self.db.get_cf(self.kind(kind)?, key).map_err(store_error)
    }

    fn scan_bytes(&self, kind: Kind, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), ViewError> {
        let mode = IteratorMode::From(prefix, Direction::Forward);
        visit_all(self.db.iterator_cf_opt(self.kind(kind)?, bounded(prefix), mode), visit)
    }
}

type DbSnapshot<'d> = SnapshotWithThreadMode<'d, DB>;

self_cell::self_cell!(
    /// A RocksDB snapshot and the database that it must not outlive.
    struct Pinned {
        owner: Arc<CatalogDb>,
        #[covariant]
        dependent: DbSnapshot,
    }
);

/// One state of the catalog, unchanged for as long as it is held.
pub(crate) struct PinnedCatalog {
    pinned: Pinned,
    version: Version,
}

impl PinnedCatalog {
    /// Pins the state as it is now.
    pub(crate) fn new(db: Arc<CatalogDb>) -> io::Result<Self> {
        let pinned = Pinned::new(db, |db| db.db.snapshot());
        // Through the snapshot itself: its number and its content are written in one batch.
        let raft = pinned.borrow_owner().family(RAFT)?;
        let applied = pinned
            .borrow_dependent()
            .get_cf(raft, APPLIED)
            .map_err(io::Error::other)?;
        let applied = applied.map(|bytes| decode::<LogId>(&bytes)).transpose()?;
        Ok(Self {
            pinned,
            version: version_of(applied.as_ref()),
        })
    }
}

/// The version of a catalog at a position.
pub(crate) fn version_of(applied: Option<&LogId>) -> Version {
    Version(applied.map_or(0, |applied| applied.index))
}

impl CatalogView for PinnedCatalog {
    fn get_bytes(&self, kind: Kind, key: &[u8]) -> Result<Option<Vec<u8>>, ViewError> {
        let family = self.pinned.borrow_owner().kind(kind)?;
        self.pinned.borrow_dependent().get_cf(family, key).map_err(store_error)
    }

    fn scan_bytes(&self, kind: Kind, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), ViewError> {
        let family = self.pinned.borrow_owner().kind(kind)?;
        let mode = IteratorMode::From(prefix, Direction::Forward);
        visit_all(
            self.pinned
                .borrow_dependent()
                .iterator_cf_opt(family, bounded(prefix), mode),
            visit,
        )
    }
}

impl CatalogSnapshot for PinnedCatalog {
    fn version(&self) -> Version {
        self.version
    }
}
