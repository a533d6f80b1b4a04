//! The numbers by which the kernel knows files. Each path has its own, also when two paths are links to one file: nothing is
//! cached under a number, so nobody can tell.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// See the module's page. Paths are relative to the root, which is number 1.
#[derive(Debug)]
pub(super) struct Inodes {
    paths: HashMap<u64, PathBuf>,
    numbers: HashMap<PathBuf, u64>,
    next: u64,
}

impl Inodes {
    pub fn new() -> Self {
        let root = PathBuf::new();
        Self {
            paths: HashMap::from([(1, root.clone())]),
            numbers: HashMap::from([(root, 1)]),
            next: 2,
        }
    }

    /// The path of a number; `None` when it was removed.
    pub fn path(&self, number: u64) -> Option<PathBuf> {
        self.paths.get(&number).cloned()
    }

    /// The number of a path that is there.
    pub fn number(&mut self, path: &Path) -> u64 {
        if let Some(number) = self.numbers.get(path) {
            return *number;
        }
        let number = self.next;
        self.next += 1;
        self.paths.insert(number, path.to_owned());
        self.numbers.insert(path.to_owned(), number);
        number
    }

    /// The path is gone, and whatever gets its name has another number.
    pub fn remove(&mut self, path: &Path) {
        if let Some(number) = self.numbers.remove(path) {
            self.paths.remove(&number);
        }
    }

    /// The path, and all below it, have moved.
    pub fn rename(&mut self, from: &Path, to: &Path) {
        self.remove(to);
        let below: Vec<(PathBuf, u64)> = self
            .numbers
            .iter()
            .map(|(path, number)| (path.clone(), *number))
            .collect();
        for (old, number) in below {
            let Ok(rest) = old.strip_prefix(from) else { continue };
            let new = if rest.as_os_str().is_empty() {
                to.to_owned()
            } else {
                to.join(rest)
            };
            self.numbers.remove(&old);
            self.paths.insert(number, new.clone());
            self.numbers.insert(new, number);
        }
    }
}
