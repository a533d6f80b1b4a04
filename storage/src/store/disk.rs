//! A disk of one node for replicas of parts: a folder of files, each with the checksums of its blocks beside it.
//!
//! The file at `a/b` has its checksums in `a/b.sums`. Every read, also of a range, is verified against them, so that a
//! flipped bit is an error and never a wrong row. The checksums are also the mark of completeness: they get their name
//! after the file and lose it before, so a file without them is one that was never acknowledged, or is being deleted;
//! it is not there, and may be written anew.
//!
//! A disk belongs to one process at a time, which holds a lock, and has an id for life: a folder that was emptied is
//! another disk.

use super::durable::{Folders, make_root, sync_folder};
use super::local::{Temporary, remove_leftovers, unless_missing, walk};
use super::reader::RangeReader;
use super::{PartStore, Piece, StoreError, StoredFile, check_path, check_prefix, io_error, within};
use async_trait::async_trait;
use bytes::Bytes;
use object_store::ObjectStore;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tidemill_core::catalog::Holder;
use tidemill_core::{DiskId, NodeId};
use xxhash_rust::xxh3::xxh3_64;

/// The name of the file that says which disk a folder is.
const ID: &str = "disk.id";
/// What the names of files with checksums end in.
const SUMS: &str = ".sums";
/// The first bytes of such a file.
const MAGIC: &[u8; 8] = b"TMSUMS1\n";
/// How many bytes each checksum is of.
const BLOCK: u64 = 64 << 10;
/// The most files whose checksums are kept in memory: 8 bytes for each block of 64 KiB.
const MAX_KNOWN: usize = 4096;

/// The folder of a disk, locked for this process. It becomes a [`Disk`] when it is known whose it is.
#[derive(Debug)]
pub struct DiskFolder {
    root: PathBuf,
    id: DiskId,
    /// Holds the lock.
    lock: File,
}

/// See the module's page. Copies are the same disk.
#[derive(Clone, Debug)]
pub struct Disk {
    inner: Arc<Inner>,
    holder: Holder,
}

/// All that lies on a disk, by path.
#[derive(Clone, Debug)]
pub struct Contents {
    /// Complete files.
    pub whole: Vec<String>,
    /// Files without checksums, and checksums without a file: what a crash in the middle of putting or deleting leaves
    /// behind, and what is being put or deleted now.
    pub unfinished: Vec<String>,
}

#[derive(Debug)]
struct Inner {
    folder: DiskFolder,
    folders: Folders,
    /// Held while files get their names or lose them.
    naming: Mutex<()>,
    known: Mutex<HashMap<String, Arc<Sums>>>,
}

impl DiskFolder {
    /// Locks `folder`, makes it if it is missing, gives it an id if it is empty, and removes files that were never
    /// finished. `new_id` is the id for a new disk. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the folder cannot be used, is used by another process, or has files and no id.
    pub fn open(folder: &Path, new_id: DiskId) -> Result<Self, StoreError> {
        let failed = |source: io::Error| StoreError::Io {
            action: "open the folder of parts",
            path: folder.display().to_string(),
            source: source.into(),
        };
        let other = |why: &str| failed(io::Error::other(why.to_owned()));
        make_root(folder).map_err(failed)?;
        let root = fs::canonicalize(folder).map_err(failed)?;
        let path = root.join(ID);
        let id = match fs::read_to_string(&path) {
            Ok(text) => {
                let id = text.trim().parse();
                id.map_err(|_| other("its disk.id does not hold 32 hexadecimal digits"))?
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let mut entries = fs::read_dir(&root).map_err(failed)?;
                // A crash may have left the file that was to become the id, and ext4 makes a folder of its own.
                let foreign = entries.find_map(|entry| {
                    let name = entry.ok()?.file_name().into_string().ok()?;
                    (!name.starts_with('.') && name != "lost+found").then_some(name)
                });
                if let Some(name) = foreign {
                    return Err(other(&format!(
                        "it has files ({name}) and no disk.id: it is not a folder of parts; name an empty one"
                    )));
                }
                let written = Temporary::write(&root, format!("{new_id}\n").as_bytes()).map_err(failed)?;
                written.rename(&path).map_err(failed)?;
                sync_folder(&root).map_err(failed)?;
                new_id
            }
            Err(error) => return Err(failed(error)),
        };
        let lock = File::open(&path).map_err(failed)?;
        if let Err(error) = lock.try_lock() {
            return Err(other(&format!("another process uses it ({error})")));
        }
        let removed = remove_leftovers(&root).map_err(failed)?;
        if removed > 0 {
            tracing::info!(folder = %root.display(), removed, "removed part files that were never finished");
        }
        Ok(Self { root, id, lock })
    }

    /// The disk's id.
    pub fn id(&self) -> DiskId {
        self.id
    }

    /// The disk, as one of `node`.
    pub fn of(self, node: NodeId) -> Disk {
        let holder = Holder { node, disk: self.id };
        let inner = Inner {
            folder: self,
            folders: Folders::default(),
            naming: Mutex::default(),
            known: Mutex::default(),
        };
        Disk {
            inner: Arc::new(inner),
            holder,
        }
    }
}

impl Drop for DiskFolder {
    fn drop(&mut self) {
        // Closing the file would do the same, in an order that nobody promises.
        let _ = self.lock.unlock();
    }
}

impl Disk {
    /// Which disk of which node this is.
    pub fn holder(&self) -> Holder {
        self.holder
    }

    /// The file at `path` as it lies there, whatever its checksums say.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is none.
    pub async fn get_unverified(&self, path: &str) -> Result<Bytes, StoreError> {
        check_path(path)?;
        let read = |inner: &Inner, path: &str| fs::read(inner.target(path).0).map_err(|e| io_error("read", path, e));
        self.blocking("read", path, read).await.map(Bytes::from)
    }

    /// All that lies on the disk.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the folder cannot be read.
    pub async fn contents(&self) -> Result<Contents, StoreError> {
        let look = |inner: &Inner, _: &str| inner.contents("").map_err(|e| io_error("list", "", e));
        let (whole, unfinished) = self.blocking("list", "", look).await?;
        Ok(Contents {
            whole: whole.into_iter().map(|file| file.path).collect(),
            unfinished,
        })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        action: &'static str,
        path: &str,
        work: impl FnOnce(&Inner, &str) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (inner, owned) = (self.inner.clone(), path.to_owned());
        let done = tokio::task::spawn_blocking(move || work(&inner, &owned)).await;
        done.unwrap_or_else(|error| Err(io_error(action, path, io::Error::other(error))))
    }
}

#[async_trait]
impl PartStore for Disk {
    async fn put(&self, path: &str, bytes: Bytes) -> Result<Vec<Holder>, StoreError> {
        check_path(path)?;
        self.blocking("write", path, move |inner, path| inner.put(path, &bytes))
            .await?;
        Ok(vec![self.holder])
    }

    async fn get(&self, path: &str) -> Result<Bytes, StoreError> {
        check_path(path)?;
        let read = |inner: &Inner, path: &str| {
            // Whoever wants all of it may want to know whether it is whole: the checksums, too, as they lie on the disk.
            inner.known().remove(path);
            inner.read(path, 0..u64::MAX)
        };
        Ok(self.blocking("read", path, read).await?.bytes)
    }

    async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Piece, StoreError> {
        check_path(path)?;
        self.blocking("read", path, move |inner, path| inner.read(path, range))
            .await
    }

    async fn delete(&self, path: &str) -> Result<(), StoreError> {
        check_path(path)?;
        let delete = |inner: &Inner, path: &str| inner.delete(path).map_err(|e| io_error("delete", path, e));
        self.blocking("delete", path, delete).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<StoredFile>, StoreError> {
        let folder = check_prefix(prefix)?;
        let look = |inner: &Inner, folder: &str| inner.contents(folder).map_err(|e| io_error("list", folder, e));
        Ok(self.blocking("list", folder, look).await?.0)
    }

    fn reader(&self) -> Arc<dyn ObjectStore> {
        Arc::new(RangeReader::new(Arc::new(self.clone())))
    }
}

impl Inner {
    fn target(&self, path: &str) -> (PathBuf, PathBuf) {
        let root = &self.folder.root;
        (root.join(path), root.join(format!("{path}{SUMS}")))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Arc<Sums>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let failed = |error: io::Error| match error.kind() {
            // Not "not found" to the caller: that is for files that were asked for.
            ErrorKind::NotFound => io_error("write", path, io::Error::other(error)),
            _ => io_error("write", path, error),
        };
        let (target, sums_target) = self.target(path);
        let folder = target.parent().unwrap_or(&self.folder.root);
        let sums = Sums::of(bytes);
        let write = || {
            self.folders.make(&self.folder.root, folder)?;
            // Both are durable before either has its name.
            Ok((
                Temporary::write(folder, bytes)?,
                Temporary::write(folder, &sums.encode())?,
            ))
        };
        let written = write().or_else(|error: io::Error| match error.kind() {
            ErrorKind::NotFound => {
                self.folders.forget();
                write()
            }
            _ => Err(error),
        });
        let (file, sums_file) = written.map_err(failed)?;
        {
            let _naming = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
            let there = unless_missing(fs::read(&sums_target)).map_err(failed)?;
            let other = there
                .and_then(|text| Sums::decode(&text))
                .filter(|there| *there != sums);
            if other.is_some() && target.exists() {
                return Err(StoreError::Exists { path: path.to_owned() });
            }
            self.known().remove(path);
            // Also when the same is there: whoever put it may have failed before it was durable, or it is damaged now.
            file.rename(&target).map_err(failed)?;
            sums_file.rename(&sums_target).map_err(failed)?;
        }
        sync_folder(folder).map_err(failed)
    }

    fn sums(&self, path: &str, sums_target: &Path) -> Result<Arc<Sums>, StoreError> {
        if let Some(sums) = self.known().get(path) {
            return Ok(sums.clone());
        }
        let text = fs::read(sums_target).map_err(|error| match error.kind() {
            ErrorKind::NotADirectory => io_error("read", path, ErrorKind::NotFound.into()),
            _ => io_error("read", path, error),
        })?;
        let sums = Sums::decode(&text).ok_or_else(|| damaged(path, "its checksums cannot be read"))?;
        let sums = Arc::new(sums);
        let mut known = self.known();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(path.to_owned(), sums.clone());
        Ok(sums)
    }

    /// The bytes of `range`, as far as the file goes, verified.
    fn read(&self, path: &str, range: Range<u64>) -> Result<Piece, StoreError> {
        let (target, sums_target) = self.target(path);
        let sums = self.sums(path, &sums_target)?;
        let mut file = match File::open(&target) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.known().remove(path);
                // Deleted just now, or lost.
                return Err(io_error("read", path, error));
            }
            Err(error) => return Err(io_error("read", path, error)),
        };
        let failed = |error: io::Error| io_error("read", path, error);
        let length = file.metadata().map_err(failed)?.len();
        if length != sums.bytes {
            let what = format!("it has {length} bytes instead of {}", sums.bytes);
            return Err(damaged(path, &what));
        }
        let range = within(&range, length);
        let first = range.start / BLOCK;
        let read_from = first * BLOCK;
        let read_to = range
            .end
            .div_ceil(BLOCK)
            .saturating_mul(BLOCK)
            .min(length)
            .max(read_from);
        let mut bytes = vec![0; (read_to - read_from) as usize];
        file.seek(SeekFrom::Start(read_from)).map_err(failed)?;
        file.read_exact(&mut bytes).map_err(failed)?;
        for (block, expected) in bytes.chunks(BLOCK as usize).zip(&sums.blocks[first as usize..]) {
            if xxh3_64(block) != *expected {
                return Err(damaged(path, "a block does not have its checksum"));
            }
        }
        let asked = (range.start - read_from) as usize..(range.end - read_from) as usize;
        Ok(Piece {
            bytes: Bytes::from(bytes).slice(asked),
            total: length,
        })
    }

    fn delete(&self, path: &str) -> io::Result<()> {
        let (target, sums_target) = self.target(path);
        let _naming = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        self.known().remove(path);
        unless_missing(fs::remove_file(sums_target))?;
        unless_missing(fs::remove_file(target)).map(|_| ())
    }

    /// The complete files in `folder`, by path, and the paths of what is not complete.
    fn contents(&self, folder: &str) -> io::Result<(Vec<StoredFile>, Vec<String>)> {
        let (mut found, mut summed) = (HashMap::new(), HashSet::new());
        walk(&self.folder.root, folder, &mut |path, entry| {
            if let Some(of) = path.strip_suffix(SUMS) {
                summed.insert(of.to_owned());
            } else if let Some(metadata) = unless_missing(entry.metadata())? {
                found.insert(path, metadata.len());
            }
            Ok(())
        })?;
        let (mut whole, mut unfinished) = (Vec::new(), Vec::new());
        for (path, bytes) in found.into_iter().filter(|(path, _)| check_path(path).is_ok()) {
            match summed.remove(&path) {
                true => whole.push(StoredFile { path, bytes }),
                false => unfinished.push(path),
            }
        }
        // Checksums without a file.
        unfinished.extend(summed.into_iter().filter(|path| check_path(path).is_ok()));
        whole.sort();
        Ok((whole, unfinished))
    }
}

fn damaged(path: &str, what: &str) -> StoreError {
    StoreError::Damaged {
        path: path.to_owned(),
        what: what.to_owned(),
    }
}

/// The checksums (XXH3, 64 bits) of a file, block by block.
#[derive(Debug, PartialEq, Eq)]
struct Sums {
    bytes: u64,
    blocks: Vec<u64>,
}

impl Sums {
    fn of(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.len() as u64,
            blocks: bytes.chunks(BLOCK as usize).map(xxh3_64).collect(),
        }
    }

    /// Magic, length, checksums, and the checksum of all that; numbers in little endian.
    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&self.bytes.to_le_bytes());
        for block in &self.blocks {
            out.extend_from_slice(&block.to_le_bytes());
        }
        let own = xxh3_64(&out);
        out.extend_from_slice(&own.to_le_bytes());
        out
    }

    fn decode(text: &[u8]) -> Option<Self> {
        let (body, own) = text.split_last_chunk::<8>()?;
        if xxh3_64(body) != u64::from_le_bytes(*own) {
            return None;
        }
        let body = body.strip_prefix(MAGIC)?;
        let (bytes, blocks) = body.split_first_chunk::<8>()?;
        let bytes = u64::from_le_bytes(*bytes);
        let (blocks, rest) = blocks.as_chunks::<8>();
        let whole = rest.is_empty() && blocks.len() as u64 == bytes.div_ceil(BLOCK);
        whole.then(|| Self {
            bytes,
            blocks: blocks.iter().map(|block| u64::from_le_bytes(*block)).collect(),
        })
    }
}

/// For tests of others: spoils a file on a disk, as hardware does.
#[cfg(test)]
pub(super) fn flip(root: &Path, path: &str, at: u64) {
    use std::io::Write;
    let mut file = File::options().read(true).write(true).open(root.join(path)).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ 4]).unwrap();
}
