//! What the keeper counts, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the process began, and how much is missing now.
#[derive(Debug, Default)]
pub struct KeeperState {
    /// Files that this node shall keep and does not hold.
    pub missing_files: AtomicU64,
    /// Their bytes.
    pub missing_bytes: AtomicU64,
    /// Bytes copied from other nodes.
    pub copied_bytes: AtomicU64,
    /// Bytes verified in the background.
    pub scrubbed_bytes: AtomicU64,
    /// Copies that were found damaged or missing.
    pub lost_copies: AtomicU64,
}

impl KeeperState {
    pub(super) fn missing(&self, files: u64, bytes: u64) {
        self.missing_files.store(files, Ordering::Relaxed);
        self.missing_bytes.store(bytes, Ordering::Relaxed);
    }
}
