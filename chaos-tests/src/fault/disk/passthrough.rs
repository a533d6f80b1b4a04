//! The file system: what is asked of it is done to the folder below, unless there is trouble.
//!
//! Files are opened for direct access: every read and write arrives here, and nothing that a power cut has changed is cached.

use super::inodes::Inodes;
use super::{Done, Shared, Troubles};
use fuser::{FileAttr, FileHandle, FileType, INodeNo, ReplyEmpty};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

/// What a folder has: number, kind and name of each.
pub(super) type Listing = Arc<Vec<(u64, FileType, OsString)>>;

/// What is open.
#[derive(Debug, Default)]
pub(super) struct Handles {
    next: u64,
    /// With the number of the path under which each was opened.
    pub files: HashMap<u64, (u64, Arc<File>)>,
    pub folders: HashMap<u64, Listing>,
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct Passthrough {
    pub shared: Arc<Shared>,
    inodes: Mutex<Inodes>,
    handles: Mutex<Handles>,
}

impl Passthrough {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            inodes: Mutex::new(Inodes::new()),
            handles: Mutex::default(),
        }
    }

    pub fn inodes(&self) -> MutexGuard<'_, Inodes> {
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The path of a number, relative to the root.
    pub fn path(&self, number: INodeNo) -> io::Result<PathBuf> {
        self.inodes().path(number.0).ok_or_else(gone)
    }

    pub fn child(&self, parent: INodeNo, name: &OsStr) -> io::Result<PathBuf> {
        Ok(self.path(parent)?.join(name))
    }

    /// Where it lies.
    pub fn below(&self, path: &Path) -> PathBuf {
        // Joining an empty path would add a slash, with which a file is no file.
        if path.as_os_str().is_empty() {
            self.shared.folder.clone()
        } else {
            self.shared.folder.join(path)
        }
    }

    pub fn attributes(&self, path: &Path) -> io::Result<FileAttr> {
        let there = fs::symlink_metadata(self.below(path))?;
        Ok(attributes(self.inodes().number(path), &there))
    }

    pub fn file(&self, handle: FileHandle) -> io::Result<Arc<File>> {
        let open = self.handles().files.get(&handle.0).map(|(_, file)| file.clone());
        open.ok_or_else(|| io::Error::from_raw_os_error(nix::libc::EBADF))
    }

    /// The attributes of a number; also when its path was removed, as long as somebody has it open.
    pub fn look(&self, number: INodeNo) -> io::Result<FileAttr> {
        if let Ok(path) = self.path(number) {
            return self.attributes(&path);
        }
        let handles = self.handles();
        let open = handles.files.values().find(|(opened, _)| *opened == number.0);
        let (_, file) = open.ok_or_else(gone)?;
        Ok(attributes(number.0, &file.metadata()?))
    }

    pub fn keep(&self, number: u64, file: File) -> FileHandle {
        let mut handles = self.handles();
        handles.next += 1;
        let next = handles.next;
        handles.files.insert(next, (number, Arc::new(file)));
        FileHandle(next)
    }

    /// Takes so much of the space that is left; gives how much of it there is.
    fn take_space(&self, wanted: u64) -> io::Result<u64> {
        let Troubles { space: Some(left), .. } = &mut *self.shared.troubles() else {
            return Ok(wanted);
        };
        if *left == 0 && wanted > 0 {
            Done::count(&self.shared.done.refused);
            return Err(io::Error::from_raw_os_error(nix::libc::ENOSPC));
        }
        let given = wanted.min(*left);
        *left -= given;
        Ok(given)
    }

    pub fn give_space(&self, freed: u64) {
        if let Some(left) = &mut self.shared.troubles().space {
            *left += freed;
        }
    }

    pub fn create_file(
        &self,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        flags: i32,
    ) -> io::Result<(FileAttr, FileHandle)> {
        let path = self.child(parent, name)?;
        // Not a byte, but there must be room for a name.
        self.take_space(1).map(|_| self.give_space(1))?;
        let mut options = File::options();
        options.read(true).write(true).mode(mode);
        match flags & nix::libc::O_EXCL {
            0 => options.create(true),
            _ => options.create_new(true),
        };
        let mut journal = self.shared.journal();
        let new = !self.below(&path).exists();
        let file = options.open(self.below(&path))?;
        if new {
            journal.made(&path);
        }
        drop(journal);
        let found = self.attributes(&path)?;
        Ok((found, self.keep(found.ino.0, file)))
    }

    pub fn write_bytes(&self, handle: FileHandle, offset: u64, data: &[u8]) -> io::Result<u32> {
        let file = self.file(handle)?;
        let mut journal = self.shared.journal();
        let grows = (offset + data.len() as u64).saturating_sub(file.metadata()?.len());
        let given = self.take_space(grows)?;
        let data = &data[..data.len() - (grows - given) as usize];
        journal.changes(&file, offset, data.len() as u64)?;
        file.write_all_at(data, offset)?;
        Ok(data.len() as u32)
    }

    pub fn read_bytes(&self, handle: FileHandle, offset: u64, size: u32) -> io::Result<Vec<u8>> {
        if let Some(one_in) = self.shared.troubles().failing_reads
            && rand::random_ratio(1, one_in.max(1))
        {
            Done::count(&self.shared.done.failed_reads);
            return Err(io::Error::from_raw_os_error(nix::libc::EIO));
        }
        let file = self.file(handle)?;
        let mut buffer = vec![0; size as usize];
        let mut read = 0;
        while read < buffer.len() {
            match file.read_at(&mut buffer[read..], offset + read as u64)? {
                0 => break,
                more => read += more,
            }
        }
        buffer.truncate(read);
        Ok(buffer)
    }

    pub fn resize(&self, path: Option<&Path>, handle: Option<FileHandle>, size: u64) -> io::Result<()> {
        let file = match (handle, path) {
            (Some(handle), _) => self.file(handle)?,
            (None, Some(path)) => Arc::new(File::options().read(true).write(true).open(self.below(path))?),
            (None, None) => return Err(gone()),
        };
        let mut journal = self.shared.journal();
        let length = file.metadata()?.len();
        self.give_space(length.saturating_sub(size));
        if self.take_space(size.saturating_sub(length))? < size.saturating_sub(length) {
            return Err(io::Error::from_raw_os_error(nix::libc::ENOSPC));
        }
        journal.changes(&file, size, 0)?;
        file.set_len(size)
    }

    pub fn remove(&self, parent: INodeNo, name: &OsStr) -> io::Result<()> {
        let path = self.child(parent, name)?;
        let there = fs::symlink_metadata(self.below(&path))?;
        if there.is_dir() {
            if fs::read_dir(self.below(&path))?.next().is_some() {
                return Err(io::Error::from_raw_os_error(nix::libc::ENOTEMPTY));
            }
        } else if there.nlink() == 1 {
            self.give_space(there.len());
        }
        self.shared.journal().remove(&self.shared.folder, &path)?;
        self.inodes().remove(&path);
        Ok(())
    }

    pub fn list(&self, number: INodeNo) -> io::Result<FileHandle> {
        let path = self.path(number)?;
        let mut listing = vec![
            (1, FileType::Directory, OsString::from(".")),
            (1, FileType::Directory, OsString::from("..")),
        ];
        for entry in fs::read_dir(self.below(&path))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let kind = FileType::from_std(kind).unwrap_or(FileType::RegularFile);
            listing.push((
                self.inodes().number(&path.join(entry.file_name())),
                kind,
                entry.file_name(),
            ));
        }
        let mut handles = self.handles();
        handles.next += 1;
        let next = handles.next;
        handles.folders.insert(next, Arc::new(listing));
        Ok(FileHandle(next))
    }

    /// Syncs a file or, without one, a folder, which is at `path` if it still has a name, as far as the troubles allow; answers
    /// when that is over, from a thread of its own when it takes long.
    pub fn sync(&self, file: io::Result<Option<Arc<File>>>, path: Option<PathBuf>, reply: ReplyEmpty) {
        let shared = self.shared.clone();
        let delay = shared.troubles().sync_delay;
        let work = move || {
            std::thread::sleep(delay);
            match file.and_then(|file| sync(&shared, file.as_deref(), path.as_deref())) {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(error.into()),
            }
        };
        if delay.is_zero() {
            work();
        } else {
            std::thread::spawn(work);
        }
    }
}

fn sync(shared: &Shared, file: Option<&File>, path: Option<&Path>) -> io::Result<()> {
    Done::count(&shared.done.syncs);
    let (fails, lies) = {
        let mut troubles = shared.troubles();
        let fails = troubles.failing_syncs > 0;
        troubles.failing_syncs = troubles.failing_syncs.saturating_sub(1);
        let is_in =
            |folder: &&str| folder.is_empty() || path.is_some_and(|path| path.iter().any(|name| name == *folder));
        (fails, troubles.lying.iter().any(is_in))
    };
    if fails || lies {
        Done::count(&shared.done.bad_syncs);
    }
    match (file, path) {
        (Some(file), _) if fails => shared.journal().sync_failed(file)?,
        _ if fails || lies => {}
        (Some(file), _) => {
            // What is written while it is synced may not be synced.
            let then = shared.journal().now();
            file.sync_data()?;
            shared.journal().synced(file, then)?;
        }
        (None, Some(folder)) => shared.journal().folder_synced(folder),
        (None, None) => {}
    }
    if fails {
        Err(io::Error::from_raw_os_error(nix::libc::EIO))
    } else {
        Ok(())
    }
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(nix::libc::ENOENT)
}

pub(super) fn attributes(number: u64, there: &Metadata) -> FileAttr {
    let time = |seconds: i64, nanos: i64| UNIX_EPOCH + Duration::new(seconds.max(0) as u64, nanos.max(0) as u32);
    let kind = there.file_type();
    FileAttr {
        ino: INodeNo(number),
        size: there.len(),
        blocks: there.blocks(),
        atime: time(there.atime(), there.atime_nsec()),
        mtime: time(there.mtime(), there.mtime_nsec()),
        ctime: time(there.ctime(), there.ctime_nsec()),
        crtime: UNIX_EPOCH,
        kind: if kind.is_socket() {
            FileType::Socket
        } else {
            FileType::from_std(kind).unwrap_or(FileType::RegularFile)
        },
        perm: (there.permissions().mode() & 0o7777) as u16,
        nlink: there.nlink() as u32,
        uid: there.uid(),
        gid: there.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}
