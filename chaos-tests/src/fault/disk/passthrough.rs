//! The file system: each call of the kernel becomes the same call on the folder below, unless there is trouble.
//!
//! Files are opened for direct access: every read and write arrives here, and nothing that a power cut has changed is cached.

use super::inodes::Inodes;
use super::{Done, Shared, Troubles};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nothing is remembered by the kernel.
const TTL: Duration = Duration::ZERO;

type Listing = Arc<Vec<(u64, FileType, OsString)>>;

/// What is open.
#[derive(Debug, Default)]
struct Handles {
    next: u64,
    /// With the number of the path under which each was opened.
    files: HashMap<u64, (u64, Arc<File>)>,
    folders: HashMap<u64, Listing>,
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct Passthrough {
    shared: Arc<Shared>,
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

    fn inodes(&self) -> MutexGuard<'_, Inodes> {
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The path of a number, relative to the root.
    fn path(&self, number: INodeNo) -> io::Result<PathBuf> {
        self.inodes().path(number.0).ok_or_else(gone)
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> io::Result<PathBuf> {
        Ok(self.path(parent)?.join(name))
    }

    /// Where it lies.
    fn below(&self, path: &Path) -> PathBuf {
        // Joining an empty path would add a slash, with which a file is no file.
        if path.as_os_str().is_empty() {
            self.shared.folder.clone()
        } else {
            self.shared.folder.join(path)
        }
    }

    fn attributes(&self, path: &Path) -> io::Result<FileAttr> {
        let there = fs::symlink_metadata(self.below(path))?;
        Ok(attributes(self.inodes().number(path), &there))
    }

    fn file(&self, handle: FileHandle) -> io::Result<Arc<File>> {
        let open = self.handles().files.get(&handle.0).map(|(_, file)| file.clone());
        open.ok_or_else(|| io::Error::from_raw_os_error(nix::libc::EBADF))
    }

    /// The attributes of a number; also when its path was removed, as long as somebody has it open.
    fn look(&self, number: INodeNo) -> io::Result<FileAttr> {
        if let Ok(path) = self.path(number) {
            return self.attributes(&path);
        }
        let handles = self.handles();
        let open = handles.files.values().find(|(opened, _)| *opened == number.0);
        let (_, file) = open.ok_or_else(gone)?;
        Ok(attributes(number.0, &file.metadata()?))
    }

    fn keep(&self, number: u64, file: File) -> FileHandle {
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

    fn give_space(&self, freed: u64) {
        if let Some(left) = &mut self.shared.troubles().space {
            *left += freed;
        }
    }

    fn create_file(&self, parent: INodeNo, name: &OsStr, mode: u32, flags: i32) -> io::Result<(FileAttr, FileHandle)> {
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

    fn write_bytes(&self, handle: FileHandle, offset: u64, data: &[u8]) -> io::Result<u32> {
        let file = self.file(handle)?;
        let mut journal = self.shared.journal();
        let grows = (offset + data.len() as u64).saturating_sub(file.metadata()?.len());
        let given = self.take_space(grows)?;
        let data = &data[..data.len() - (grows - given) as usize];
        journal.changes(&file, offset, data.len() as u64)?;
        file.write_all_at(data, offset)?;
        Ok(data.len() as u32)
    }

    fn read_bytes(&self, handle: FileHandle, offset: u64, size: u32) -> io::Result<Vec<u8>> {
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

    fn resize(&self, path: Option<&Path>, handle: Option<FileHandle>, size: u64) -> io::Result<()> {
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

    fn remove(&self, parent: INodeNo, name: &OsStr) -> io::Result<()> {
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

    fn list(&self, number: INodeNo) -> io::Result<FileHandle> {
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

    /// Syncs a file or, without one, a folder, as far as the troubles allow; answers when that is over, from a thread of its own
    /// when it takes long.
    fn sync(&self, file: io::Result<Option<Arc<File>>>, folder: Option<PathBuf>, reply: ReplyEmpty) {
        let shared = self.shared.clone();
        let delay = shared.troubles().sync_delay;
        let work = move || {
            std::thread::sleep(delay);
            match file.and_then(|file| sync(&shared, file.as_deref(), folder.as_deref())) {
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

fn sync(shared: &Shared, file: Option<&File>, folder: Option<&Path>) -> io::Result<()> {
    Done::count(&shared.done.syncs);
    let (fails, lies) = {
        let mut troubles = shared.troubles();
        let fails = troubles.failing_syncs > 0;
        troubles.failing_syncs = troubles.failing_syncs.saturating_sub(1);
        (fails, troubles.lying)
    };
    if fails || lies {
        Done::count(&shared.done.bad_syncs);
    }
    match (file, folder) {
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

fn attributes(number: u64, there: &Metadata) -> FileAttr {
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

fn when(time: TimeOrNow) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    }
}

impl Filesystem for Passthrough {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.child(parent, name).and_then(|path| self.attributes(&path)) {
            Ok(found) => reply.entry(&TTL, &found, Generation(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        let open = handle.and_then(|handle| self.file(handle).ok());
        let found = match open {
            Some(file) => file.metadata().map(|there| attributes(number.0, &there)),
            None => self.look(number),
        };
        match found {
            Ok(found) => reply.attr(&TTL, &found),
            Err(error) => reply.error(error.into()),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let path = self.path(number);
        let change = || {
            if let Some(size) = size {
                self.resize(path.as_deref().ok(), handle, size)?;
            }
            let Ok(path) = &path else { return self.look(number) };
            let below = self.below(path);
            if let Some(mode) = mode {
                fs::set_permissions(&below, fs::Permissions::from_mode(mode & 0o7777))?;
            }
            if uid.is_some() || gid.is_some() {
                std::os::unix::fs::chown(&below, uid, gid)?;
            }
            if atime.is_some() || mtime.is_some() {
                let mut times = fs::FileTimes::new();
                times = atime.map_or(times, |time| times.set_accessed(when(time)));
                times = mtime.map_or(times, |time| times.set_modified(when(time)));
                File::open(&below)?.set_times(times)?;
            }
            self.attributes(path)
        };
        match change() {
            Ok(found) => reply.attr(&TTL, &found),
            Err(error) => reply.error(error.into()),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let make = || {
            let path = self.child(parent, name)?;
            let mut journal = self.shared.journal();
            fs::DirBuilder::new().mode(mode).create(self.below(&path))?;
            journal.made(&path);
            drop(journal);
            self.attributes(&path)
        };
        match make() {
            Ok(found) => reply.entry(&TTL, &found, Generation(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(self.remove(parent, name), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(self.remove(parent, name), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let rename = || {
            let (from, to) = (self.child(parent, name)?, self.child(new_parent, new_name)?);
            if flags.contains(RenameFlags::RENAME_NOREPLACE) && self.below(&to).exists() {
                return Err(io::Error::from_raw_os_error(nix::libc::EEXIST));
            }
            if flags.contains(RenameFlags::RENAME_EXCHANGE) {
                return Err(io::Error::from_raw_os_error(nix::libc::EINVAL));
            }
            self.shared.journal().rename(&self.shared.folder, &from, &to)?;
            self.inodes().rename(&from, &to);
            Ok(())
        };
        answer(rename(), reply);
    }

    fn link(&self, _: &Request, number: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let link = || {
            let (from, to) = (self.path(number)?, self.child(new_parent, new_name)?);
            let mut journal = self.shared.journal();
            fs::hard_link(self.below(&from), self.below(&to))?;
            journal.made(&to);
            drop(journal);
            self.attributes(&to)
        };
        match link() {
            Ok(found) => reply.entry(&TTL, &found, Generation(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn open(&self, _: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let open = || {
            let below = self.below(&self.path(number)?);
            // For both, whatever was asked: what is overwritten has to be read.
            File::options().read(true).write(true).open(below)
        };
        match open() {
            Ok(file) => reply.opened(self.keep(number.0, file), FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(error.into()),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        match self.create_file(parent, name, mode, flags) {
            Ok((found, handle)) => reply.created(&TTL, &found, Generation(0), handle, FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(error.into()),
        }
    }

    fn read(
        &self,
        _: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.read_bytes(handle, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.write_bytes(handle, offset, data) {
            Ok(count) => reply.written(count),
            Err(error) => reply.error(error.into()),
        }
    }

    fn flush(&self, _: &Request, _number: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.handles().files.remove(&handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _number: INodeNo, handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        self.sync(self.file(handle).map(Some), None, reply);
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        self.sync(Ok(None), self.path(number).ok(), reply);
    }

    fn opendir(&self, _: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.list(number) {
            Ok(handle) => reply.opened(handle, FopenFlags::empty()),
            Err(error) => reply.error(error.into()),
        }
    }

    fn readdir(&self, _: &Request, _number: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listing = self.handles().folders.get(&handle.0).cloned().unwrap_or_default();
        for (i, (number, kind, name)) in listing.iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(*number), i as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _number: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.handles().folders.remove(&handle.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _number: INodeNo, reply: ReplyStatfs) {
        match nix::sys::statvfs::statvfs(&self.shared.folder) {
            Ok(there) => {
                let block = there.fragment_size().max(1);
                let left = self.shared.troubles().space.map_or(u64::MAX, |bytes| bytes / block);
                let (free, available) = (there.blocks_free().min(left), there.blocks_available().min(left));
                let (files, free_files) = (there.files(), there.files_free());
                reply.statfs(
                    there.blocks(),
                    free,
                    available,
                    files,
                    free_files,
                    block as u32,
                    255,
                    block as u32,
                );
            }
            Err(error) => reply.error(Errno::from_i32(error as i32)),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        _length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        // Room ahead of the end of a file is a wish that may be ignored; anything else changes what the file holds.
        if mode == nix::libc::FALLOC_FL_KEEP_SIZE {
            reply.ok();
        } else {
            reply.error(Errno::EOPNOTSUPP);
        }
    }
}

fn answer(done: io::Result<()>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error.into()),
    }
}
