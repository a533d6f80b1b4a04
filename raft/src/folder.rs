//! Files and folders that survive a crash: writing a file whole or not at all, moving a folder
//! into place, syncing a tree. Nothing here knows what the files mean.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Makes the entries of a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Writes a file so that after a crash it has either the old content or all of the new.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, content)?;
    File::open(&temporary)?.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// Makes all files directly in a folder, and the folder itself, durable.
pub(crate) fn sync_files(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_folder(folder)
}

/// Moves a folder within one parent, or between two, durably.
pub(crate) fn move_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    for parent in [from.parent(), to.parent()].into_iter().flatten() {
        sync_folder(parent)?;
    }
    Ok(())
}

/// A folder that is deleted when this is dropped, unless it is to be kept.
#[derive(Debug)]
pub(crate) struct OwnedFolder {
    path: Mutex<PathBuf>,
    kept: AtomicBool,
}

impl OwnedFolder {
    /// `kept`: whether it outlives this value.
    pub(crate) fn new(path: PathBuf, kept: bool) -> Self {
        Self {
            path: Mutex::new(path),
            kept: AtomicBool::new(kept),
        }
    }

    /// Where it is now.
    pub(crate) fn path(&self) -> PathBuf {
        self.path.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it outlives this value.
    pub(crate) fn keep(&self, kept: bool) {
        self.kept.store(kept, Ordering::SeqCst);
    }

    /// Moves it, durably.
    pub(crate) fn move_to(&self, to: PathBuf) -> io::Result<()> {
        let mut path = self.path.lock().unwrap_or_else(PoisonError::into_inner);
        move_folder(&path, &to)?;
        *path = to;
        Ok(())
    }
}

impl Drop for OwnedFolder {
    fn drop(&mut self) {
        if !self.kept.load(Ordering::SeqCst) {
            let path = self.path();
            if let Err(error) = fs::remove_dir_all(&path) {
                // The next start removes what nothing refers to.
                tracing::warn!("the folder {} cannot be removed now: {error}", path.display());
            }
        }
    }
}
