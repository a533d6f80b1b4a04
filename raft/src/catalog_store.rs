//! The state machine: the catalog in RocksDB, as openraft applies to it, copies it and replaces it.
//!
//! Layout of `<data>/catalog`: `CURRENT` names the folder of the catalog in use, `<number>/` are
//! catalogs, `snapshots/` holds the last Raft snapshot, `incoming/` what is arriving. A catalog is
//! replaced by writing `CURRENT` anew, whole; so a crash leaves the old one or the new one, and the
//! next start removes what nothing refers to. Readers keep the catalog that they have open.
//!
//! The rules of the catalog are in `tidemill_core::apply`; an error from there is a failure of the
//! store, never a refusal, and stops this node.

use crate::{
    catalog_db::{CatalogDb, PinnedCatalog, version_of},
    database::Closing,
    folder::{self, OwnedFolder},
    snapshot::{self, SnapshotFiles, SnapshotFolder, SnapshotReceiver},
    timing::RUN_ENTRIES,
    types::{Entry, LogId, Membership, Reply, SnapshotMeta, TypeConfig},
};
use futures::{Stream, TryStreamExt};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder, StoredMembership,
    storage::{ApplyResponder, EntryResponder, RaftStateMachine},
    type_config::alias::SnapshotOf,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};
use tidemill_core::{
    Version,
    view::{CatalogSnapshot, Overlay},
};
use tokio::sync::watch;

/// The file that names the catalog in use.
const CURRENT: &str = "CURRENT";

/// The current snapshot as openraft passes it around.
pub type Snapshot = SnapshotOf<TypeConfig, SnapshotFolder>;

/// The catalog of this node, shared by the state machine and by readers.
pub struct CatalogFolder {
    root: PathBuf,
    /// Bytes of memory for the databases of a node, this one among them.
    memory: u64,
    /// `None` after closing.
    current: RwLock<Option<Arc<CatalogDb>>>,
    /// Held while the catalog is written, copied or replaced.
    changing: Mutex<()>,
    snapshot: Mutex<Option<(SnapshotMeta, SnapshotFolder)>>,
    version: watch::Sender<Version>,
}

/// The state machine that openraft drives.
#[derive(Clone)]
pub struct CatalogStore(Arc<CatalogFolder>);

impl CatalogStore {
    /// Opens the catalog in `root`, creating an empty one if there is none; `memory` as in [`crate::RaftConfig`]. Blocks.
    pub fn open(root: &Path, memory: u64) -> io::Result<Self> {
        for folder in [root.to_owned(), root.join("snapshots")] {
            fs::create_dir_all(folder)?;
        }
        let incoming = root.join("incoming");
        if incoming.exists() {
            fs::remove_dir_all(&incoming)?;
        }
        fs::create_dir_all(&incoming)?;
        let name = current_name(root)?;
        remove_other_catalogs(root, &name)?;
        let db = CatalogDb::open(root.join(&name), memory)?;
        folder::sync_folder(root)?;
        let snapshot = last_snapshot(&root.join("snapshots"))?;
        let (applied, _) = db.applied()?;
        Ok(Self(Arc::new(CatalogFolder {
            root: root.to_owned(),
            memory,
            current: RwLock::new(Some(Arc::new(db))),
            changing: Mutex::new(()),
            snapshot: Mutex::new(snapshot),
            version: watch::Sender::new(version_of(applied.as_ref())),
        })))
    }

    /// What readers share.
    pub fn folder(&self) -> Arc<CatalogFolder> {
        self.0.clone()
    }
}

/// The name in `CURRENT`; the first catalog is named before it is made.
fn current_name(root: &Path) -> io::Result<String> {
    let path = root.join(CURRENT);
    match fs::read_to_string(&path) {
        Ok(name) => {
            let name = name.trim().to_owned();
            name.parse::<u64>().map_err(|_| {
                let message = format!("{} says '{name}', which is not the number of a catalog", path.display());
                io::Error::new(io::ErrorKind::InvalidData, message)
            })?;
            Ok(name)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let name = catalog_name(1);
            folder::write_whole(&path, name.as_bytes())?;
            Ok(name)
        }
        Err(error) => Err(error),
    }
}

fn catalog_name(number: u64) -> String {
    format!("{number:06}")
}

fn remove_other_catalogs(root: &Path, current: &str) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_catalog = name.chars().next().is_some_and(|c| c.is_ascii_digit());
        if is_catalog && name != current {
            tracing::info!("removing {}, which is not the catalog in use", entry.path().display());
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// The newest complete snapshot; the others are removed.
fn last_snapshot(folder: &Path) -> io::Result<Option<(SnapshotMeta, SnapshotFolder)>> {
    let mut last: Option<(SnapshotMeta, PathBuf)> = None;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let complete = path.extension().is_none();
        let described = if complete {
            snapshot::describe(&path)
        } else {
            Err(io::ErrorKind::Interrupted.into())
        };
        let unused = match described {
            Ok(meta)
                if last
                    .as_ref()
                    .is_none_or(|(newest, _)| newest.last_log_id < meta.last_log_id) =>
            {
                last.replace((meta, path)).map(|(_, older)| older)
            }
            Ok(_) => Some(path),
            Err(error) => {
                // Nothing depends on it alone: the catalog itself is at least as new, and a new
                // snapshot is made of it as soon as one is asked for.
                tracing::warn!("removing the snapshot {}: {error}", path.display());
                Some(path)
            }
        };
        if let Some(path) = unused {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(last.map(|(meta, path)| {
        (
            meta,
            Arc::new(SnapshotFiles {
                folder: OwnedFolder::new(path, true),
            }),
        )
    }))
}

impl CatalogFolder {
    /// One state of the catalog: the newest applied one.
    pub fn pin(&self) -> io::Result<Arc<dyn CatalogSnapshot>> {
        Ok(Arc::new(PinnedCatalog::new(self.current()?)?))
    }

    /// Follows the version of the newest applied state.
    pub fn version(&self) -> watch::Receiver<Version> {
        self.version.subscribe()
    }

    /// Makes the catalog durable and confirms that it holds everything up to `index`.
    pub(crate) fn sync_up_to(&self, index: u64) -> io::Result<()> {
        let db = self.current()?;
        db.sync()?;
        let (applied, _) = db.applied()?;
        if applied.is_none_or(|applied| applied.index < index) {
            let message = format!("the catalog stands at {applied:?}, the log cannot be purged up to {index}");
            return Err(io::Error::other(message));
        }
        Ok(())
    }

    /// Makes a record unreadable.
    #[cfg(test)]
    pub(crate) fn spoil(&self, kind: tidemill_core::view::Kind, key: &[u8]) {
        let db = self.current().unwrap();
        let (applied, _) = db.applied().unwrap();
        let spoilt = [((kind, key.to_vec()), Some(vec![0xc1]))].into();
        db.write(spoilt, &applied.unwrap(), None).unwrap();
    }

    /// Prepares to receive a snapshot.
    pub(crate) fn receive(&self) -> io::Result<SnapshotReceiver> {
        SnapshotReceiver::new(self.root.join("incoming").join(random_name()))
    }

    /// The position and membership of the newest applied state.
    pub(crate) fn applied(&self) -> io::Result<(Option<LogId>, Membership)> {
        self.current()?.applied()
    }

    /// Closes the catalog as soon as nobody reads it any more, which the returned value tells.
    pub(crate) fn close(&self) -> Closing {
        let db = self.current.write().unwrap_or_else(PoisonError::into_inner).take();
        db.map_or_else(Closing::default, |db| db.closing())
    }

    /// Bytes of memory that its database uses.
    pub(crate) fn memory_used(&self) -> u64 {
        self.current().map_or(0, |db| db.memory())
    }

    fn current(&self) -> io::Result<Arc<CatalogDb>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.clone().ok_or_else(|| io::Error::other("the catalog is closed"))
    }

    fn snapshot(&self) -> Option<(SnapshotMeta, SnapshotFolder)> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Applies entries one after the other and writes what they change at once.
    fn apply(&self, entries: &[Entry]) -> io::Result<Vec<Reply>> {
        let Some(last) = entries.last() else {
            return Ok(Vec::new());
        };
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let db = self.current()?;
        let mut overlay = Overlay::new(db.as_ref());
        let mut membership = None;
        let mut replies = Vec::with_capacity(entries.len());
        for entry in entries {
            replies.push(match &entry.payload {
                EntryPayload::Blank => Reply(None),
                EntryPayload::Normal(logged) => {
                    let outcome = tidemill_core::apply(&mut overlay, Version(entry.log_id.index), &logged.0)
                        .map_err(|e| io::Error::other(format!("entry {} cannot be applied: {e}", entry.log_id)))?;
                    Reply(Some(outcome))
                }
                EntryPayload::Membership(members) => {
                    membership = Some(StoredMembership::new(Some(entry.log_id), members.clone()));
                    Reply(None)
                }
            });
        }
        db.write(overlay.into_writes(), &last.log_id, membership.as_ref())?;
        self.version.send_replace(Version(last.log_id.index));
        Ok(replies)
    }

    /// Copies the catalog as it is now and makes the copy the current snapshot.
    pub(crate) fn build_snapshot(&self) -> io::Result<Snapshot> {
        let copy = self.copy()?;
        self.adopt(&copy.meta, &copy.snapshot)?;
        Ok(copy)
    }

    /// Copies the catalog as it is now.
    pub(crate) fn copy(&self) -> io::Result<Snapshot> {
        // Most of the writing is done before the lock is taken, so that applying hardly waits.
        self.current()?.flush()?;
        let building = self.root.join("snapshots").join(format!("{}.building", random_name()));
        let folder = OwnedFolder::new(building.clone(), false);
        let meta = {
            let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
            let db = self.current()?;
            let (last_log_id, last_membership) = db.applied()?;
            db.checkpoint(&building)?;
            SnapshotMeta {
                last_log_id,
                last_membership,
            }
        };
        snapshot::complete(&building, &meta)?;
        let snapshot = Arc::new(SnapshotFiles { folder });
        Ok(Snapshot { meta, snapshot })
    }

    /// Makes complete files the current snapshot, in place of the last one, unless that is newer.
    ///
    /// One from the leader may be installed while one of this node is being built, and openraft purges the log up to it. Were the older
    /// one to take its place, nothing would lead on from it: a follower that is sent it asks for entries that are gone.
    pub(crate) fn adopt(&self, meta: &SnapshotMeta, files: &SnapshotFolder) -> io::Result<()> {
        // Held until the files have their place, so that of two the newer one wins, whichever comes first.
        let mut current = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        if current
            .as_ref()
            .is_some_and(|(current, _)| current.last_log_id > meta.last_log_id)
        {
            return Ok(());
        }
        let name = format!("{:020}-{}", version_of(meta.last_log_id.as_ref()).0, random_name());
        files.folder.move_to(self.root.join("snapshots").join(name))?;
        files.folder.keep(true);
        if let Some((_, last)) = current.replace((meta.clone(), files.clone()))
            && !Arc::ptr_eq(&last, files)
        {
            last.folder.keep(false);
        }
        Ok(())
    }

    /// Replaces the catalog by that of a snapshot.
    fn install(&self, meta: &SnapshotMeta, files: &SnapshotFolder) -> io::Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let number = current_name(&self.root)?.parse::<u64>().map_err(io::Error::other)? + 1;
        let path = self.root.join(catalog_name(number));
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        snapshot::copy_database(&files.folder.path(), &path)?;
        let db = CatalogDb::open(path, self.memory)?;
        db.keep(false);
        let (applied, membership) = db.applied()?;
        if applied != meta.last_log_id || membership != meta.last_membership {
            let message = format!(
                "the snapshot says it is at {:?}, its catalog is at {applied:?}",
                meta.last_log_id
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        db.sync()?;
        folder::sync_folder(&self.root)?;
        folder::write_whole(&self.root.join(CURRENT), catalog_name(number).as_bytes())?;
        // From here on a start finds the new catalog.
        db.keep(true);
        let old = self
            .current
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(Arc::new(db));
        if let Some(old) = old {
            old.keep(false);
        }
        self.version.send_replace(version_of(applied.as_ref()));
        self.adopt(meta, files)
    }
}

fn random_name() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// Work that blocks on the disk, away from the threads that keep Raft going.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

impl RaftStateMachine<TypeConfig> for CatalogStore {
    type SnapshotData = SnapshotFolder;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, Membership)> {
        self.0.applied()
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        loop {
            let mut run = Vec::new();
            let mut responders: Vec<Option<ApplyResponder<TypeConfig>>> = Vec::new();
            while run.len() < RUN_ENTRIES
                && let Some((entry, responder)) = entries.try_next().await?
            {
                run.push(entry);
                responders.push(responder);
            }
            if run.is_empty() {
                return Ok(());
            }
            let folder = self.0.clone();
            let replies = blocking(move || folder.apply(&run)).await?;
            for (responder, reply) in responders.into_iter().zip(replies) {
                if let Some(responder) = responder {
                    responder.send(reply);
                }
            }
        }
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFolder) -> io::Result<()> {
        let (folder, meta) = (self.0.clone(), meta.clone());
        blocking(move || folder.install(&meta, &snapshot)).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        // May wait for one that is taking its place on the disk.
        let folder = self.0.clone();
        let snapshot = blocking(move || Ok(folder.snapshot())).await?;
        Ok(snapshot.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for CatalogStore {
    type SnapshotData = SnapshotFolder;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let folder = self.0.clone();
        blocking(move || folder.build_snapshot()).await
    }
}
