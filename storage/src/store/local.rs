//! A part store in a folder, by our own code: `local:///abs/path`.
//!
//! A put writes a temporary file beside its target, fsyncs it, gives it its name by a hard link
//! (which, unlike a rename, never replaces a file), and fsyncs the folder. So a name never stands for
//! less than the whole file, and of two writers with different contents one is refused.
//!
//! Several processes may use one folder. A temporary file is locked by its writer as long as that
//! lives; opening the store removes those that it can lock, and no others. Where locks do not work,
//! leftovers stay. Should one be removed wrongly, its writer notices, and writes another.

use super::durable::{Folders, make_root, sync_folder};
use super::{PartStore, StoreError, StoredFile, check_path, check_prefix, io_error};
use async_trait::async_trait;
use bytes::Bytes;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tidemill_core::catalog::Holder;

/// Names of temporary files begin so; no path that a store takes does.
const TEMPORARY: &str = ".tmp-";
/// How often a put begins again when its temporary file or its folder was removed meanwhile.
const ATTEMPTS: usize = 3;

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// See the module's page.
#[derive(Debug)]
pub struct LocalStore {
    inner: Arc<Inner>,
    reader: Arc<LocalFileSystem>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    folders: Folders,
}

impl LocalStore {
    /// Opens the store in `folder`, makes that if it is missing, and removes leftovers of writers
    /// that died. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the folder cannot be made or read.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let failed = |source: io::Error| StoreError::Io {
            action: "open part store",
            path: folder.display().to_string(),
            source: source.into(),
        };
        make_root(folder).map_err(failed)?;
        let root = fs::canonicalize(folder).map_err(failed)?;
        let removed = remove_leftovers(&root).map_err(failed)?;
        if removed > 0 {
            tracing::info!(folder = %root.display(), removed, "removed part files that were never finished");
        }
        let reader = LocalFileSystem::new_with_prefix(&root).map_err(|e| failed(io::Error::other(e)))?;
        Ok(Self {
            inner: Arc::new(Inner {
                root,
                folders: Folders::default(),
            }),
            reader: Arc::new(reader),
        })
    }

    /// Runs `work` where blocking is allowed.
    async fn blocking<T: Send + 'static>(
        &self,
        action: &'static str,
        path: &str,
        work: impl FnOnce(&Inner, &Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (inner, target) = (self.inner.clone(), self.inner.root.join(path));
        match tokio::task::spawn_blocking(move || work(&inner, &target)).await {
            Ok(done) => done.map_err(|error| io_error(action, path, error)),
            Err(error) => Err(io_error(action, path, io::Error::other(error))),
        }
    }
}

#[async_trait]
impl PartStore for LocalStore {
    async fn put(&self, path: &str, bytes: Bytes) -> Result<Vec<Holder>, StoreError> {
        check_path(path)?;
        match self
            .blocking("write", path, move |inner, target| inner.put(target, &bytes))
            .await?
        {
            Put::Done => Ok(Vec::new()),
            Put::OtherContent => Err(StoreError::Exists { path: path.to_owned() }),
        }
    }

    async fn get(&self, path: &str) -> Result<Bytes, StoreError> {
        check_path(path)?;
        let read = |_: &Inner, target: &Path| match fs::read(target) {
            // A folder is not a file.
            Err(error) if error.kind() == ErrorKind::IsADirectory => Err(ErrorKind::NotFound.into()),
            other => other,
        };
        self.blocking("read", path, read).await.map(Bytes::from)
    }

    async fn delete(&self, path: &str) -> Result<(), StoreError> {
        check_path(path)?;
        self.blocking("delete", path, |_, target| {
            unless_missing(fs::remove_file(target)).map(|_| ())
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<StoredFile>, StoreError> {
        let folder = check_prefix(prefix)?.to_owned();
        let list = {
            let folder = folder.clone();
            move |inner: &Inner, _: &Path| {
                let mut files = Vec::new();
                walk(&inner.root, &folder, &mut |path, entry| {
                    let Some(metadata) = unless_missing(entry.metadata())? else {
                        return Ok(());
                    };
                    if check_path(&path).is_ok() {
                        files.push(StoredFile {
                            path,
                            bytes: metadata.len(),
                        });
                    }
                    Ok(())
                })?;
                files.sort();
                Ok(files)
            }
        };
        self.blocking("list", &folder, list).await
    }

    fn reader(&self) -> Arc<dyn ObjectStore> {
        self.reader.clone()
    }
}

enum Put {
    Done,
    OtherContent,
}

impl Inner {
    fn put(&self, target: &Path, bytes: &[u8]) -> io::Result<Put> {
        let folder = target.parent().ok_or(ErrorKind::InvalidInput)?;
        let mut attempt = 1;
        loop {
            self.folders.make(&self.root, folder)?;
            match put_in(folder, target, bytes) {
                Err(error) if error.kind() == ErrorKind::NotFound && attempt < ATTEMPTS => {
                    self.folders.forget();
                    attempt += 1;
                }
                // Not "not found" to the caller: that is for files that were asked for.
                Err(error) if error.kind() == ErrorKind::NotFound => return Err(io::Error::other(error)),
                other => return other,
            }
        }
    }
}

/// Writes `bytes` to a temporary file in `folder` and names it `target`.
fn put_in(folder: &Path, target: &Path, bytes: &[u8]) -> io::Result<Put> {
    let temporary = Temporary::write(folder, bytes)?;
    match fs::hard_link(&temporary.path, target) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            if fs::read(target)? != bytes {
                return Ok(Put::OtherContent);
            }
            // Whoever put it may have died, or failed, before it was durable. The file at hand is.
            fs::rename(&temporary.path, target)?;
        }
        Err(error) => return Err(error),
    }
    drop(temporary);
    sync_folder(folder)?;
    Ok(Put::Done)
}

/// A file with durable content under a name that lasts no longer than this value.
pub(super) struct Temporary {
    path: PathBuf,
    /// Holds the lock.
    _file: File,
}

impl Temporary {
    pub(super) fn write(folder: &Path, bytes: &[u8]) -> io::Result<Self> {
        let mut file = loop {
            // The clock and the process id only make a collision rare; `create_new` excludes it.
            let now = std::time::SystemTime::UNIX_EPOCH
                .elapsed()
                .unwrap_or_default()
                .as_nanos();
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!("{TEMPORARY}{}-{now}-{number}", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => break Self { path, _file: file },
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        };
        // Without a lock the file merely is not recognised as a leftover, or removed and written again.
        let _ = file._file.try_lock();
        file._file.write_all(bytes)?;
        file._file.sync_all()?;
        Ok(file)
    }

    /// Gives the file its name, in place of what has it now.
    pub(super) fn rename(self, target: &Path) -> io::Result<()> {
        fs::rename(&self.path, target)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // It is gone already if it was renamed; what cannot be removed is a leftover.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes temporary files whose writers are gone; how many.
pub(super) fn remove_leftovers(root: &Path) -> io::Result<usize> {
    let mut removed = 0;
    walk(root, "", &mut |_, entry| {
        if !entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            return Ok(());
        }
        let Some(file) = unless_missing(File::open(entry.path()))? else {
            return Ok(());
        };
        if file.try_lock().is_ok() && fs::remove_file(entry.path()).is_ok() {
            removed += 1;
        }
        Ok(())
    })?;
    Ok(removed)
}

/// Shows `see` every file in `root/folder` and below, with its path below `root`.
pub(super) fn walk(
    root: &Path,
    folder: &str,
    see: &mut dyn FnMut(String, &fs::DirEntry) -> io::Result<()>,
) -> io::Result<()> {
    let entries = match fs::read_dir(root.join(folder)) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        // Names that are not UTF-8 are not ours.
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        // Of the file system, at the root of a disk of its own; for root alone.
        if folder.is_empty() && name == "lost+found" {
            continue;
        }
        let path = if folder.is_empty() {
            name
        } else {
            format!("{folder}/{name}")
        };
        match unless_missing(entry.file_type())? {
            Some(kind) if kind.is_dir() => walk(root, &path, see)?,
            Some(kind) if kind.is_file() => see(path, &entry)?,
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn unless_missing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
