//! What was changed since it was last synced, and what was there before, so that a power cut can lose it.

use anyhow::Context;
use rand::{Rng, RngCore};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What a power cut leaves of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Nothing.
    Nothing,
    /// Of each file the first so many writes, decided by chance, and a part of the one after (a torn write); of the names the
    /// first so many changes.
    Some,
}

/// What a power cut has lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Bytes that were written.
    pub bytes: u64,
    /// Files and folders that were created, renamed or removed.
    pub names: u64,
    /// Writes of which a part was kept.
    pub torn: u64,
}

/// A change of what a file holds.
#[derive(Debug)]
struct Change {
    /// Grows with time.
    number: u64,
    offset: u64,
    /// How many bytes were written.
    length: u64,
    /// What was there before, as far as there was anything.
    before: Vec<u8>,
    /// How long the file was.
    length_before: u64,
    /// A sync of it has failed: none that comes later makes up for it.
    doomed: bool,
}

/// A change of a name. Paths are relative to the root of the disk.
#[derive(Debug)]
enum Name {
    Made(PathBuf),
    /// It was moved aside.
    Removed(PathBuf, PathBuf),
    /// What had the name before was moved aside.
    Renamed(PathBuf, PathBuf, Option<PathBuf>),
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct Journal {
    /// Where removed files lie until their removal is durable.
    aside: PathBuf,
    number: u64,
    /// By the number of the file in the file system below: it stays when the file is renamed, and is not given to another file
    /// before the removal is durable.
    files: BTreeMap<u64, Vec<Change>>,
    names: Vec<Name>,
}

impl Journal {
    pub fn new(aside: PathBuf) -> Self {
        Self {
            aside,
            number: 0,
            files: BTreeMap::new(),
            names: vec![],
        }
    }

    /// What has changed so far: a sync that begins now makes that durable.
    pub fn now(&self) -> u64 {
        self.number
    }

    /// To be called before `length` bytes are written, or, with `length` 0, before the file is cut at `offset` or made longer.
    pub fn changes(&mut self, file: &File, offset: u64, length: u64) -> std::io::Result<()> {
        let there = file.metadata()?;
        let end = if length == 0 {
            there.len()
        } else {
            there.len().min(offset + length)
        };
        let mut before = vec![0; end.saturating_sub(offset) as usize];
        file.read_exact_at(&mut before, offset)?;
        self.number += 1;
        let number = self.number;
        self.files.entry(there.ino()).or_default().push(Change {
            number,
            offset,
            length,
            before,
            length_before: there.len(),
            doomed: false,
        });
        Ok(())
    }

    /// What the file held at that time is durable.
    pub fn synced(&mut self, file: &File, then: u64) -> std::io::Result<()> {
        let inode = file.metadata()?.ino();
        if let Some(changes) = self.files.get_mut(&inode) {
            changes.retain(|change| change.doomed || change.number > then);
            if changes.is_empty() {
                self.files.remove(&inode);
            }
        }
        Ok(())
    }

    /// It should be and is not.
    pub fn sync_failed(&mut self, file: &File) -> std::io::Result<()> {
        let changes = self.files.get_mut(&file.metadata()?.ino());
        changes.into_iter().flatten().for_each(|change| change.doomed = true);
        Ok(())
    }

    pub fn made(&mut self, path: &Path) {
        self.names.push(Name::Made(path.to_owned()));
    }

    /// Moves a file or folder aside that is to be removed.
    pub fn remove(&mut self, root: &Path, path: &Path) -> std::io::Result<()> {
        let aside = self.put_aside(root, path)?;
        self.names.push(Name::Removed(path.to_owned(), aside));
        Ok(())
    }

    /// Renames, after moving aside what had the name before.
    pub fn rename(&mut self, root: &Path, from: &Path, to: &Path) -> std::io::Result<()> {
        let replaced = match fs::symlink_metadata(root.join(to)) {
            Ok(there) if there.is_dir() => None,
            // Under two names for a moment, so that there is always a file with this name.
            Ok(_) => {
                let aside = self.next_aside();
                fs::hard_link(root.join(to), &aside)?;
                Some(aside)
            }
            Err(_) => None,
        };
        fs::rename(root.join(from), root.join(to))?;
        self.names.push(Name::Renamed(from.to_owned(), to.to_owned(), replaced));
        Ok(())
    }

    fn next_aside(&mut self) -> PathBuf {
        self.number += 1;
        self.aside.join(self.number.to_string())
    }

    fn put_aside(&mut self, root: &Path, path: &Path) -> std::io::Result<PathBuf> {
        let aside = self.next_aside();
        fs::rename(root.join(path), &aside)?;
        Ok(aside)
    }

    /// The names in a folder are durable now.
    pub fn folder_synced(&mut self, folder: &Path) {
        let in_it = |path: &Path| path.parent() == Some(folder);
        let (done, left) = std::mem::take(&mut self.names)
            .into_iter()
            .partition(|name| match name {
                Name::Made(path) | Name::Removed(path, _) => in_it(path),
                Name::Renamed(from, to, _) => in_it(to) || in_it(from),
            });
        self.names = left;
        let gone = Vec::into_iter(done).filter_map(|name| match name {
            Name::Made(_) => None,
            Name::Removed(_, aside) => Some(aside),
            Name::Renamed(_, _, aside) => aside,
        });
        gone.for_each(|aside| self.forget(&aside));
    }

    /// Deletes what was moved aside, for good.
    fn forget(&mut self, aside: &Path) {
        let Ok(there) = fs::symlink_metadata(aside) else { return };
        if there.is_dir() {
            drop(fs::remove_dir_all(aside));
            return;
        }
        if there.nlink() == 1 {
            self.files.remove(&there.ino());
        }
        drop(fs::remove_file(aside));
    }

    pub fn unsynced(&self) -> u64 {
        self.files.values().flatten().map(|change| change.length).sum()
    }

    /// Undoes what is not durable.
    pub fn revert(&mut self, root: &Path, kept: Kept, rng: &mut dyn RngCore) -> anyhow::Result<Lost> {
        let mut lost = Lost::default();
        let mut paths = HashMap::new();
        for folder in [root, &self.aside] {
            find(folder, &mut paths).with_context(|| format!("cannot read {}", folder.display()))?;
        }
        for (number, changes) in std::mem::take(&mut self.files) {
            // One that was made and removed meanwhile is not there.
            if let Some(path) = paths.get(&number) {
                let file = File::options().read(true).write(true).open(path)?;
                revert_file(&file, changes, kept, rng, &mut lost).with_context(|| path.display().to_string())?;
            }
        }
        let names = std::mem::take(&mut self.names);
        let stay = match kept {
            Kept::Nothing => 0,
            Kept::Some => rng.random_range(0..=names.len()),
        };
        for (i, name) in names.into_iter().enumerate().rev() {
            if i >= stay {
                lost.names += 1;
                revert_name(root, name);
            } else if let Name::Removed(_, aside) | Name::Renamed(_, _, Some(aside)) = name {
                self.forget(&aside);
            }
        }
        Ok(lost)
    }
}

/// Where each file is.
fn find(folder: &Path, paths: &mut HashMap<u64, PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let there = fs::symlink_metadata(&path)?;
        if there.is_dir() {
            find(&path, paths)?;
        } else {
            paths.insert(there.ino(), path);
        }
    }
    Ok(())
}

fn revert_file(
    file: &File,
    changes: Vec<Change>,
    kept: Kept,
    rng: &mut dyn RngCore,
    lost: &mut Lost,
) -> anyhow::Result<()> {
    let whole = match kept {
        Kept::Nothing => 0,
        Kept::Some => rng.random_range(0..=changes.len()),
    };
    for (i, change) in changes.into_iter().enumerate().rev() {
        if i < whole && !change.doomed {
            continue;
        }
        let mut stays = 0;
        if i == whole && kept == Kept::Some && !change.doomed && change.length > 1 {
            stays = rng.random_range(1..change.length);
            lost.torn += 1;
        }
        lost.bytes += change.length - stays;
        undo(file, &change, stays)?;
    }
    file.sync_all()?;
    Ok(())
}

/// Undoes a change but for its first `stays` bytes.
fn undo(file: &File, change: &Change, stays: u64) -> std::io::Result<()> {
    let end = change.offset + change.length;
    let behind = file.metadata()?.len() > end.max(change.length_before);
    if change.length > 0 && behind {
        // Something that is durable was written behind it: it leaves a hole.
        let hole = (end - change.offset.max(change.length_before).min(end)) as usize;
        file.write_all_at(&vec![0; hole], end - hole as u64)?;
    } else {
        file.set_len(
            change
                .length_before
                .max(if stays > 0 { change.offset + stays } else { 0 }),
        )?;
    }
    match change.before.get(stays as usize..) {
        Some(before) => file.write_all_at(before, change.offset + stays),
        None => Ok(()),
    }
}

/// As far as it is still so: a later change of the same name may be durable.
fn revert_name(root: &Path, name: Name) {
    match name {
        Name::Made(path) => {
            let path = root.join(path);
            drop(fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)));
        }
        Name::Removed(path, aside) => {
            if !root.join(&path).exists() {
                drop(fs::rename(aside, root.join(path)));
            }
        }
        Name::Renamed(from, to, aside) => {
            let moved = fs::rename(root.join(&to), root.join(from));
            if let (Ok(()), Some(aside)) = (moved, aside) {
                drop(fs::rename(aside, root.join(to)));
            }
        }
    }
}
