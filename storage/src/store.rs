//! Part stores: where part files are kept.
//!
//! A store maps relative paths to whole files that never change. It promises that an acknowledged
//! [`PartStore::put`] survives a power cut, that no reader sees half a file, and that two contents
//! never share a path. It knows nothing of tables, and it deletes only what it is told to delete.

#[cfg(test)]
mod conformance;
mod disk;
mod durable;
mod local;
mod object;
mod reader;
mod replicated;
mod s3;
#[cfg(test)]
mod tests;

pub use disk::{Contents, Disk, DiskFolder};
pub use local::LocalStore;
pub use object::FileObjectStore;
pub use object_store::ObjectStore;
pub use replicated::{Place, Replicas, ReplicatedStore, Targets};
pub use s3::{S3Options, S3Store};

use async_trait::async_trait;
use bytes::Bytes;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use tidemill_core::catalog::Holder;

/// A place for part files. Paths are relative, with `/` between names of letters, digits, `-`, `_`,
/// `.` and `=`; no name is empty or begins with a dot.
#[async_trait]
pub trait PartStore: Send + Sync + fmt::Debug {
    /// Keeps `bytes` at `path`. When it returns, they are durable: file, name and every new folder. The answer names the
    /// disks on which they are, and nobody in a store that all nodes share.
    ///
    /// After an error that is not [`StoreError::Exists`] or [`StoreError::Path`] the file may be
    /// there or not; putting the same again is safe and settles it.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when something else is at `path`; the same content there is success.
    async fn put(&self, path: &str, bytes: Bytes) -> Result<Vec<Holder>, StoreError>;

    /// The file at `path`, whole.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is none.
    async fn get(&self, path: &str) -> Result<Bytes, StoreError>;

    /// The bytes of `range` of the file at `path`, as far as it goes.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such file.
    async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Piece, StoreError> {
        let bytes = self.get(path).await?;
        let total = bytes.len() as u64;
        let range = within(&range, total);
        Ok(Piece {
            bytes: bytes.slice(range.start as usize..range.end as usize),
            total,
        })
    }

    /// Removes the file at `path`, if it is there. A power cut may bring it back.
    async fn delete(&self, path: &str) -> Result<(), StoreError>;

    /// The files in the folder `prefix` and in its subfolders, by path, each once; all of them for `""`. A folder that is
    /// not there has no files. Files put or deleted meanwhile may be missing or not.
    async fn list(&self, prefix: &str) -> Result<Vec<StoredFile>, StoreError>;

    /// The same files for reading in ranges, under the same paths.
    fn reader(&self) -> Arc<dyn ObjectStore>;
}

/// A piece of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The bytes.
    pub bytes: Bytes,
    /// The length of the whole file.
    pub total: u64,
}

/// A file in a store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoredFile {
    /// Its path.
    pub path: String,
    /// Its length.
    pub bytes: u64,
}

/// Why a store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such file.
    #[error("{path} is not in the part store")]
    NotFound {
        /// The path asked for.
        path: String,
    },
    /// Another file is there already.
    #[error("{path} is in the part store already, with other content")]
    Exists {
        /// The path given.
        path: String,
    },
    /// The disk or a quota is full.
    #[error("no space left in the part store for {path}: {source}")]
    NoSpace {
        /// The path given.
        path: String,
        /// What the system said.
        source: BoxError,
    },
    /// The path is not one that a store takes.
    #[error("{path:?} is not a path of a part store: {why}")]
    Path {
        /// The path given.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The store's URL is not one that can be opened.
    #[error(
        "{url:?} is no part store: {why}; possible are file:///absolute/folder, local:///absolute/folder and s3://bucket/prefix"
    )]
    Url {
        /// The URL given.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file is there and not what was put.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// The path given.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// Fewer replicas than needed have the file. Putting the same again is safe.
    #[error("{path} is durable on {durable} replicas, {needed} are needed: {why}")]
    TooFewReplicas {
        /// The path given.
        path: String,
        /// How many have it.
        durable: usize,
        /// How many must have it.
        needed: usize,
        /// What kept the others from it.
        why: String,
    },
    /// The operating system or the network failed. What happened to the file is not known.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: String,
        /// What the system said.
        source: BoxError,
    },
}

/// An error of another library.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Opens the store at `url`, which all nodes share, and makes its folder if that is missing.
///
/// * `local:///abs/path`: files in a folder, by our own code. Removes leftovers of dead writers.
/// * `file:///abs/path`: files in a folder, through the `object_store` library, made durable here.
///   Leftovers of dead writers (`name#1`) are never listed; they stay, because nothing tells them
///   from the files of a living writer on another node.
/// * `s3://bucket/prefix`: objects in a bucket, reached as `s3` says, by the runtime that this is called on.
///
/// All lay files out alike, so a folder may be opened as either. Blocks: call it when starting.
///
/// # Errors
/// [`StoreError::Url`] for any other URL, [`StoreError::Io`] when the folder cannot be made or read, or the settings of
/// S3 do not fit together.
pub fn open(url: &str, s3: &S3Options) -> Result<Arc<dyn PartStore>, StoreError> {
    let wrong = |why| StoreError::Url {
        url: url.to_owned(),
        why,
    };
    let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("it has no scheme"))?;
    let folder = || match rest.starts_with('/') {
        true => Ok(Path::new(rest)),
        false => Err(wrong("its folder is not absolute (three slashes)")),
    };
    Ok(match scheme {
        "file" => Arc::new(FileObjectStore::open(folder()?)?),
        "local" => Arc::new(LocalStore::open(folder()?)?),
        "s3" => {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err(wrong("it names no bucket"));
            }
            Arc::new(S3Store::open(bucket, prefix, s3)?)
        }
        _ => return Err(wrong("its scheme is not known")),
    })
}

/// Puts several files side by side; the answer names the disks that hold all of them.
///
/// # Errors
/// Those of [`PartStore::put`]; putting the same again is safe.
pub async fn put_all(
    store: &dyn PartStore,
    files: impl IntoIterator<Item = (&str, Bytes)>,
) -> Result<Vec<Holder>, StoreError> {
    let puts = files.into_iter().map(|(path, bytes)| store.put(path, bytes));
    let mut common: Option<Vec<Holder>> = None;
    for holders in futures::future::join_all(puts).await {
        let holders = holders?;
        common = Some(match common {
            None => holders,
            Some(known) => known.into_iter().filter(|holder| holders.contains(holder)).collect(),
        });
    }
    Ok(common.unwrap_or_default())
}

/// The files of `store` for reading in ranges, by its [`PartStore::get_range`].
pub fn range_reader(store: Arc<dyn PartStore>) -> Arc<dyn ObjectStore> {
    Arc::new(reader::RangeReader::new(store))
}

/// What of `range` lies within a file of `total` bytes.
fn within(range: &Range<u64>, total: u64) -> Range<u64> {
    let start = range.start.min(total);
    start..range.end.clamp(start, total)
}

/// Whether `path` can name a file of a store.
fn check_path(path: &str) -> Result<(), StoreError> {
    let wrong = |why| StoreError::Path {
        path: path.to_owned(),
        why,
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '=' | '/');
    if !path.chars().all(allowed) {
        return Err(wrong("only letters, digits, and - _ . = are allowed in names"));
    }
    for name in path.split('/') {
        match name {
            "" => return Err(wrong("a name in it is empty")),
            // This refuses "..", and our own temporary files.
            _ if name.starts_with('.') => return Err(wrong("a name in it begins with a dot")),
            _ => {}
        }
    }
    Ok(())
}

/// Whether `prefix` can name a folder of a store; without the slash at its end, if it has one.
fn check_prefix(prefix: &str) -> Result<&str, StoreError> {
    let folder = prefix.strip_suffix('/').unwrap_or(prefix);
    if prefix.is_empty() {
        return Ok(folder);
    }
    check_path(folder).map(|()| folder)
}

/// `source` as the error it means for `path`.
fn io_error(action: &'static str, path: &str, source: std::io::Error) -> StoreError {
    use std::io::ErrorKind;
    let path = path.to_owned();
    match source.kind() {
        ErrorKind::NotFound => StoreError::NotFound { path },
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::NoSpace {
            path,
            source: source.into(),
        },
        _ => StoreError::Io {
            action,
            path,
            source: source.into(),
        },
    }
}
