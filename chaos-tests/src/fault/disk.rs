//! A disk that can be made to misbehave: a file system in user space (FUSE) over a folder, which passes everything through and is
//! slow, full, dishonest or broken when told to. And a power cut, which loses whatever was not synced, data and names.
//!
//! The folder always has what was written, so a node that is merely killed loses nothing. What is written since the last sync
//! that was one is remembered with what was there before (`journal.rs`), and [`Disk::cut_power`] puts that back. Names are kept as
//! strictly as POSIX promises: a file that was created, renamed or removed is durably so when its *folder* was synced.

mod calls;
mod inodes;
mod journal;
mod passthrough;

pub use journal::Kept;

use crate::world::output;
use anyhow::Context;
use journal::Journal;
use rand::RngCore;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What all mounts of the harness are called; the pid follows.
const NAME: &str = "tidemill-disk-";
/// Requests that are served at once.
const THREADS: usize = 8;

/// What is wrong with a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// A sync takes so much longer.
    pub sync_delay: Duration,
    /// So many of the next syncs fail with EIO. What they should have synced is then never synced, also when a later
    /// sync says that it went well: so does a kernel that marks pages clean that it could not write.
    pub failing_syncs: u64,
    /// Syncs of what is in folders of these names say that they are done and do nothing; an empty name is that of all.
    pub lying: &'static [&'static str],
    /// So many bytes may still be written before ENOSPC; what is deleted is free again.
    pub space: Option<u64>,
    /// One of so many reads fails with EIO.
    pub failing_reads: Option<u32>,
}

/// What was done to whoever used the disk.
#[derive(Debug, Default)]
pub struct Done {
    /// Syncs that were asked for.
    pub syncs: AtomicU64,
    /// Syncs that failed or that were not done although the answer said so.
    pub bad_syncs: AtomicU64,
    /// Writes that were refused for lack of space.
    pub refused: AtomicU64,
    /// Reads that failed.
    pub failed_reads: AtomicU64,
}

/// What the file system and the one who makes trouble share.
#[derive(Debug)]
struct Shared {
    /// The folder that is passed through.
    folder: PathBuf,
    troubles: Mutex<Troubles>,
    journal: Mutex<Journal>,
    done: Done,
}

impl Shared {
    fn troubles(&self) -> MutexGuard<'_, Troubles> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A mounted disk. Dropping it unmounts it; whoever still has files open on it gets errors from then on.
#[derive(Debug)]
pub struct Disk {
    shared: Arc<Shared>,
    mounted: PathBuf,
    session: Option<fuser::BackgroundSession>,
}

impl Disk {
    /// Why there can be none here, if that is so.
    pub fn missing() -> Option<String> {
        let tried = tempfile::tempdir().map_err(anyhow::Error::from);
        let tried =
            tried.and_then(|folder| Self::mount(&folder.path().join("seen"), &folder.path().join("disk")).map(drop));
        tried.err().map(|error| format!("{error:#}"))
    }

    /// Mounts a disk at `at`, of which everything lies in `folder`. Both are made if they are not there.
    ///
    /// # Errors
    /// Without /dev/fuse or the right to mount.
    pub fn mount(at: &Path, folder: &Path) -> anyhow::Result<Self> {
        sweep();
        fs::create_dir_all(at)?;
        fs::create_dir_all(folder)?;
        let removed = folder.with_extension("removed");
        fs::create_dir_all(&removed)?;
        let shared = Arc::new(Shared {
            folder: folder.to_owned(),
            troubles: Mutex::default(),
            journal: Mutex::new(Journal::new(removed)),
            done: Done::default(),
        });
        let mut config = fuser::Config::default();
        let name = format!("{NAME}{}", std::process::id());
        config.mount_options = vec![fuser::MountOption::FSName(name)];
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        let session = fuser::spawn_mount(passthrough::Passthrough::new(shared.clone()), at, &config);
        Ok(Self {
            shared,
            mounted: at.to_owned(),
            session: Some(session.context("no file system in user space can be mounted here (FUSE)")?),
        })
    }

    /// The folder in which everything lies: what is done there is not noticed by the journal.
    pub fn folder(&self) -> &Path {
        &self.shared.folder
    }

    /// Makes trouble, or ends it.
    pub fn trouble(&self, troubles: Troubles) {
        *self.shared.troubles() = troubles;
    }

    /// Whether anything is wrong with it.
    pub fn has_trouble(&self) -> bool {
        *self.shared.troubles() != Troubles::default()
    }

    /// What the troubles have done so far.
    pub fn done(&self) -> &Done {
        &self.shared.done
    }

    /// A power cut: what was not synced is gone, or all but some of it. Nobody may have files open: kill the node before.
    /// Gives what was lost.
    ///
    /// # Errors
    /// If the folder cannot be brought back to what was synced.
    pub fn cut_power(&self, kept: Kept, rng: &mut dyn RngCore) -> anyhow::Result<journal::Lost> {
        self.shared.journal().revert(&self.shared.folder, kept, rng)
    }

    /// Bytes that a power cut would lose now.
    pub fn unsynced(&self) -> u64 {
        self.shared.journal().unsynced()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        if let Err(error) = session.umount_and_join() {
            // Somebody has a file open. Lazily: it goes when they do.
            eprintln!("{} is busy: {error}", self.mounted.display());
            drop(output(Command::new("umount").arg("-l").arg(&self.mounted)));
        }
    }
}

/// Unmounts what runs left that have ended: nobody serves it, and everybody who looks at it gets an error.
fn sweep() {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (Some(name), Some(at)) = (words.next(), words.next()) else {
            continue;
        };
        let pid = name.strip_prefix(NAME).and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            eprintln!("unmounting {at}, which a run left that has ended");
            // Another run may be doing the same.
            drop(output(Command::new("umount").arg("-l").arg(at)));
        }
    }
}

impl Done {
    fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
