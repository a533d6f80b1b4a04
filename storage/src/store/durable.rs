//! Folders that survive a power cut.
//!
//! A file is durable when its content is, its name in its folder is, and so on up to a folder that
//! was durable before. This module makes folders in that way and remembers which it has done. It
//! trusts that nobody removes folders behind its back; who notices that calls [`Folders::forget`].

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Above this many the memory is emptied: doing a folder again is merely slow.
const MAX_KNOWN: usize = 10_000;

/// The folders below a root of which it is known that their names are durable.
#[derive(Debug, Default)]
pub(super) struct Folders {
    known: Mutex<HashSet<PathBuf>>,
}

impl Folders {
    /// Makes `folder` and what is missing above it, and makes their names durable, up to `root`,
    /// which must exist.
    pub fn make(&self, root: &Path, folder: &Path) -> io::Result<()> {
        if folder == root || self.with(|known| known.contains(folder)) {
            return Ok(());
        }
        let Some(parent) = folder.parent() else { return Ok(()) };
        self.make(root, parent)?;
        make_folder(folder)?;
        // Also when it was there: whoever made it may not have come to this line yet.
        sync_folder(parent)?;
        self.with(|known| {
            if known.len() >= MAX_KNOWN {
                known.clear();
            }
            known.insert(folder.to_owned())
        });
        Ok(())
    }

    /// Forgets what is known, because a folder turned out to be gone.
    pub fn forget(&self) {
        self.with(HashSet::clear);
    }

    fn with<T>(&self, f: impl FnOnce(&mut HashSet<PathBuf>) -> T) -> T {
        f(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Makes the folder of a store, durably, with what is missing above it.
pub(super) fn make_root(root: &Path) -> io::Result<()> {
    if root.is_dir() {
        return Ok(());
    }
    if let Some(parent) = root.parent() {
        make_root(parent)?;
        make_folder(root)?;
        sync_folder(parent)?;
    }
    Ok(())
}

/// Makes the names in `folder` durable.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn make_folder(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        other => other,
    }
}
