//! The allocator of the process, told to keep less.
//!
//! glibc's gives threads areas of memory of their own, eight for each core, and what is freed in one of them is not used in
//! another. Rows are allocated by consumer threads, encoded by others and freed by a third kind, so these areas held as much
//! again as was in use. As many as there are cores are enough for them not to wait for each other. It also learns to keep ever
//! larger blocks instead of giving them back; these are given back here, and when memory is short, all that is free.

#![cfg_attr(
    all(target_os = "linux", target_env = "gnu"),
    expect(unsafe_code, reason = "calls of the C library")
)]

use crate::memory::resident;
use std::time::Duration;

/// Blocks of so many bytes are given back when they are freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: libc::c_int = 256 << 10;
/// How often it is looked whether memory is short.
const LOOK: Duration = Duration::from_secs(1);
/// It is short from this share of the limit on.
const SHORT_PERCENT: u64 = 70;

/// Sets the allocator up; to be called before the first thread is started.
pub fn set_up() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let cores = std::thread::available_parallelism().map_or(2, usize::from).max(2);
        // Safety: these take two numbers, and no other thread runs yet.
        let taken = unsafe {
            libc::mallopt(libc::M_ARENA_MAX, cores as libc::c_int) + libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE)
        };
        debug_assert_eq!(taken, 2, "glibc knows these options");
    }
}

/// Gives back what is free whenever the process has nearly as much as `limit`. Never ends.
pub async fn give_back(limit: u64) {
    loop {
        tokio::time::sleep(LOOK).await;
        if resident().is_some_and(|bytes| bytes.saturating_mul(100) >= limit.saturating_mul(SHORT_PERCENT)) {
            // It takes a while, and an error would be a panic in it: then the next look tries again.
            drop(tokio::task::spawn_blocking(trim).await);
        }
    }
}

fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // Safety: it may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
