//! A Raft snapshot: a folder with the files of a RocksDB checkpoint and one file that says which
//! state it is. This module makes the folder durable, lists what is to be sent, and receives one
//! from a peer file by file, checking each. It does not decide when a snapshot is made or installed.

use crate::{
    folder::{self, OwnedFolder},
    types::{SnapshotMeta, decode, encode},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};
use xxhash_rust::xxh3::Xxh3;

/// The file that says which state it is; written last.
const DESCRIPTION: &str = "SNAPSHOT";
/// The format that this version writes.
const FORMAT: u16 = 1;

/// A snapshot on disk; its folder is deleted when it has been replaced and nobody sends it any more.
pub type SnapshotFolder = Arc<SnapshotFiles>;

/// See [`SnapshotFolder`].
#[derive(Debug)]
pub struct SnapshotFiles {
    pub(crate) folder: OwnedFolder,
}

#[derive(Serialize, Deserialize)]
struct Description {
    format: u16,
    meta: SnapshotMeta,
}

/// Writes which state the files in `path` hold, and makes all of them durable.
pub(crate) fn complete(path: &Path, meta: &SnapshotMeta) -> io::Result<()> {
    let description = Description {
        format: FORMAT,
        meta: meta.clone(),
    };
    folder::sync_files(path)?;
    folder::write_whole(&path.join(DESCRIPTION), &encode(&description)?)
}

/// Which state the files in `path` hold.
pub(crate) fn describe(path: &Path) -> io::Result<SnapshotMeta> {
    let description: Description = decode(&fs::read(path.join(DESCRIPTION))?)?;
    if description.format != FORMAT {
        let message = format!("snapshot format {} is not known", description.format);
        return Err(io::Error::new(io::ErrorKind::Unsupported, message));
    }
    Ok(description.meta)
}

/// The database files in a snapshot: name, path and length.
pub(crate) fn files(path: &Path) -> io::Result<Vec<(String, PathBuf, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // RocksDB's own report and lock files come into being when somebody opens the folder.
        let part_of_it = name != DESCRIPTION && !name.starts_with("LOG") && name != "LOCK";
        if part_of_it && entry.file_type()?.is_file() {
            found.push((name, entry.path(), entry.metadata()?.len()));
        }
    }
    found.sort();
    Ok(found)
}

/// Puts the database files of a snapshot into the new folder `to`: hard links for what never
/// changes, copies for what a database goes on writing. Durable when it returns.
pub(crate) fn copy_database(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for (name, path, _) in files(from)? {
        if name.ends_with(".sst") {
            fs::hard_link(&path, to.join(&name))?;
        } else {
            fs::copy(&path, to.join(&name))?;
        }
    }
    folder::sync_files(to)
}

/// A snapshot that is arriving. Dropped before [`SnapshotReceiver::finish`], it leaves nothing.
pub(crate) struct SnapshotReceiver {
    folder: OwnedFolder,
    open: Option<OpenFile>,
    files: u32,
}

struct OpenFile {
    name: String,
    file: File,
    hash: Xxh3,
    missing: u64,
}

impl SnapshotReceiver {
    /// Receives into the new folder `path`.
    pub(crate) fn new(path: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&path)?;
        Ok(Self {
            folder: OwnedFolder::new(path, false),
            open: None,
            files: 0,
        })
    }

    /// Opens a file.
    pub(crate) fn file(&mut self, name: &str, bytes: u64) -> io::Result<()> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if self.open.is_some() || name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(invalid(format!("a snapshot cannot have a file '{name}' here")));
        }
        let file = File::create_new(self.folder.path().join(name))?;
        self.open = Some(OpenFile {
            name: name.to_owned(),
            file,
            hash: Xxh3::new(),
            missing: bytes,
        });
        Ok(())
    }

    /// Takes the next bytes of the open file.
    pub(crate) fn chunk(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(open) = &mut self.open else {
            return Err(invalid("bytes outside of any file"));
        };
        let Some(missing) = open.missing.checked_sub(bytes.len() as u64) else {
            return Err(invalid(format!("file {} is longer than announced", open.name)));
        };
        open.missing = missing;
        open.hash.update(bytes);
        open.file.write_all(bytes)
    }

    /// Closes the open file; durable when it returns.
    pub(crate) fn file_end(&mut self, checksum: u64) -> io::Result<()> {
        let Some(open) = self.open.take() else {
            return Err(invalid("the end of no file"));
        };
        if open.missing > 0 {
            return Err(invalid(format!("file {} ends {} bytes early", open.name, open.missing)));
        }
        if open.hash.digest() != checksum {
            return Err(invalid(format!(
                "file {} arrived damaged: its checksum differs",
                open.name
            )));
        }
        self.files += 1;
        open.file.sync_all()
    }

    /// Closes the snapshot; durable when it returns.
    pub(crate) fn finish(self, files: u32, meta: &SnapshotMeta) -> io::Result<SnapshotFolder> {
        if self.open.is_some() || files != self.files {
            return Err(invalid(format!(
                "the snapshot has {files} files, {} arrived",
                self.files
            )));
        }
        complete(&self.folder.path(), meta)?;
        Ok(Arc::new(SnapshotFiles { folder: self.folder }))
    }
}

fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}
