//! The calls of the kernel, one by one: each is given to [`Passthrough`] and answered.

use super::passthrough::{Passthrough, attributes};
use fuser::{
    Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request,
    TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::time::{Duration, SystemTime};

/// Nothing is remembered by the kernel.
const TTL: Duration = Duration::ZERO;

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

    fn fsync(&self, _: &Request, number: INodeNo, handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        self.sync(self.file(handle).map(Some), self.path(number).ok(), reply);
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
