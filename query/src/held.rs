//! Which versions of the catalog running queries still read.
//!
//! A query holds a version from before it takes its snapshot until its stream is dropped. The files
//! that a held version names must stay; whoever deletes files asks for the oldest. A hold is taken
//! *before* the snapshot, at a version that cannot be newer, so that there is no moment at which a
//! query has a snapshot that nobody knows of.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tidemill_core::Version;

/// The versions that are held, and how often each.
#[derive(Debug, Default)]
pub(crate) struct HeldVersions(Mutex<BTreeMap<Version, usize>>);

/// One hold; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct HeldVersion {
    all: Arc<HeldVersions>,
    version: Version,
}

impl HeldVersions {
    /// Holds `version`.
    pub(crate) fn hold(self: &Arc<Self>, version: Version) -> HeldVersion {
        *self.lock().entry(version).or_default() += 1;
        HeldVersion {
            all: self.clone(),
            version,
        }
    }

    /// The oldest version that is held.
    pub(crate) fn oldest(&self) -> Option<Version> {
        self.lock().first_key_value().map(|(version, _)| *version)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Version, usize>> {
        // The map is whole at every moment at which a panic could happen.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeldVersion {
    /// Holds `version` instead, if that is newer.
    pub(crate) fn raise(&mut self, version: Version) {
        if version > self.version {
            let newer = self.all.hold(version);
            *self = newer;
        }
    }
}

impl Drop for HeldVersion {
    fn drop(&mut self) {
        let mut held = self.all.lock();
        if let Some(count) = held.get_mut(&self.version) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.version);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_hold_counts_until_it_is_dropped_or_raised() {
        let all = Arc::new(HeldVersions::default());
        assert_eq!(all.oldest(), None);
        let mut first = all.hold(Version(3));
        let second = all.hold(Version(3));
        let third = all.hold(Version(9));
        assert_eq!(all.oldest(), Some(Version(3)));
        first.raise(Version(5));
        assert_eq!(all.oldest(), Some(Version(3)));
        drop(second);
        assert_eq!(all.oldest(), Some(Version(5)));
        first.raise(Version(4));
        assert_eq!(all.oldest(), Some(Version(5)));
        drop(first);
        drop(third);
        assert_eq!(all.oldest(), None);
    }
}
