//! A part store in a folder through the `object_store` library: `file:///abs/path`.
//!
//! The library's `LocalFileSystem` names a file only when it is complete, and creates without
//! replacing, but it never fsyncs (version 0.13). So after each put the file and its folders are
//! fsynced here. Its temporary files (`name#1`) are never listed, and cannot be asked for; those of
//! writers that died stay, since they cannot be told from those of writers on other nodes.

use super::durable::{Folders, make_root, sync_folder};
use super::{BoxError, PartStore, StoreError, StoredFile, check_path, check_prefix, io_error};
use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tidemill_core::catalog::Holder;

/// See the module's page.
#[derive(Debug)]
pub struct FileObjectStore {
    objects: Arc<LocalFileSystem>,
    root: Arc<PathBuf>,
    folders: Arc<Folders>,
    /// Files whose fsync failed. The system reports such a failure once and then forgets it, so
    /// these are written anew when they are put again.
    unsure: Mutex<HashSet<String>>,
}

impl FileObjectStore {
    /// Opens the store in `folder`, and makes that if it is missing. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the folder cannot be made or read.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let failed = |source: BoxError| StoreError::Io {
            action: "open part store",
            path: folder.display().to_string(),
            source,
        };
        make_root(folder).map_err(|e| failed(e.into()))?;
        let root = fs::canonicalize(folder).map_err(|e| failed(e.into()))?;
        let objects = LocalFileSystem::new_with_prefix(&root).map_err(|e| failed(e.into()))?;
        Ok(Self {
            objects: Arc::new(objects),
            root: Arc::new(root),
            folders: Arc::default(),
            unsure: Mutex::default(),
        })
    }

    /// Runs `work` on the place of `path` where blocking is allowed.
    async fn blocking(
        &self,
        path: &str,
        work: impl FnOnce(&Folders, &Path, &Path, &Path) -> io::Result<()> + Send + 'static,
    ) -> Result<(), StoreError> {
        let (folders, root, target) = (self.folders.clone(), self.root.clone(), self.root.join(path));
        let work = move || {
            let folder = target.parent().ok_or(io::ErrorKind::InvalidInput)?;
            work(&folders, &root, folder, &target)
        };
        let done = tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)));
        done.map_err(|error| match error.kind() {
            // Not "not found" to the caller: that is for files that were asked for.
            io::ErrorKind::NotFound => io_error("write", path, io::Error::other(error)),
            _ => io_error("write", path, error),
        })
    }

    fn unsure<T>(&self, f: impl FnOnce(&mut HashSet<String>) -> T) -> T {
        f(&mut self.unsure.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl PartStore for FileObjectStore {
    async fn put(&self, path: &str, bytes: Bytes) -> Result<Vec<Holder>, StoreError> {
        let location = location(path)?;
        self.blocking(path, |folders, root, folder, _| folders.make(root, folder))
            .await?;
        match self
            .objects
            .put_opts(&location, bytes.clone().into(), PutMode::Create.into())
            .await
        {
            Ok(_) => {}
            Err(object_store::Error::AlreadyExists { .. }) => {
                if self.get(path).await? != bytes {
                    return Err(StoreError::Exists { path: path.to_owned() });
                }
                if self.unsure(|unsure| unsure.contains(path)) {
                    let again = self.objects.put(&location, bytes.into()).await;
                    again.map_err(|error| object_error("write", path, error))?;
                }
            }
            Err(error) => {
                self.folders.forget();
                return Err(object_error("write", path, error));
            }
        }
        let sync = |_: &Folders, _: &Path, folder: &Path, target: &Path| {
            File::open(target)?.sync_all()?;
            sync_folder(folder)
        };
        let synced = self.blocking(path, sync).await;
        self.unsure(|unsure| match &synced {
            Ok(()) => unsure.remove(path),
            Err(_) => unsure.insert(path.to_owned()),
        });
        synced.map(|()| Vec::new())
    }

    async fn get(&self, path: &str) -> Result<Bytes, StoreError> {
        get_object(&*self.objects, path).await
    }

    async fn delete(&self, path: &str) -> Result<(), StoreError> {
        delete_object(&*self.objects, path).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<StoredFile>, StoreError> {
        list_objects(&*self.objects, prefix).await
    }

    fn reader(&self) -> Arc<dyn ObjectStore> {
        self.objects.clone()
    }
}

/// The object at `path`, whole.
pub(super) async fn get_object(objects: &dyn ObjectStore, path: &str) -> Result<Bytes, StoreError> {
    let location = location(path)?;
    let read = async { objects.get(&location).await?.bytes().await };
    read.await.map_err(|error| object_error("read", path, error))
}

/// Removes the object at `path`, if it is there.
pub(super) async fn delete_object(objects: &dyn ObjectStore, path: &str) -> Result<(), StoreError> {
    match objects.delete(&location(path)?).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(object_error("delete", path, error)),
    }
}

/// The objects in the folder `prefix` that a part store may have put there.
pub(super) async fn list_objects(objects: &dyn ObjectStore, prefix: &str) -> Result<Vec<StoredFile>, StoreError> {
    let folder = check_prefix(prefix)?;
    let failed = |error| object_error("list", folder, error);
    let within = match folder {
        "" => None,
        folder => Some(ObjectPath::parse(folder).map_err(|error| failed(error.into()))?),
    };
    let found: Vec<_> = objects.list(within.as_ref()).try_collect().await.map_err(failed)?;
    let ours = found.into_iter().map(|object| StoredFile {
        path: object.location.into(),
        bytes: object.size,
    });
    let mut files: Vec<_> = ours.filter(|file| check_path(&file.path).is_ok()).collect();
    files.sort();
    Ok(files)
}

pub(super) fn location(path: &str) -> Result<ObjectPath, StoreError> {
    check_path(path)?;
    ObjectPath::parse(path).map_err(|error| object_error("name", path, error.into()))
}

/// `error` as one of ours. The library wraps the system's error several times.
pub(super) fn object_error(action: &'static str, path: &str, error: object_store::Error) -> StoreError {
    if matches!(error, object_store::Error::NotFound { .. }) {
        return StoreError::NotFound { path: path.to_owned() };
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        let kind = current.downcast_ref::<io::Error>().map(io::Error::kind);
        if matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) {
            return StoreError::NoSpace {
                path: path.to_owned(),
                source: error.into(),
            };
        }
        cause = current.source();
    }
    StoreError::Io {
        action,
        path: path.to_owned(),
        source: error.into(),
    }
}
