//! The allocator of the process, told to keep less.
//!
//! glibc's gives threads areas of memory of their own, eight for each core, and what is freed in one of them is not used in
//! another. Rows are allocated by consumer threads, encoded by others and freed by a third kind, so these areas held as much
//! again as was in use (measured: docs/benchmarks.md). As many as there are cores are enough for them not to wait for each
//! other.

#![cfg_attr(
    all(target_os = "linux", target_env = "gnu"),
    expect(unsafe_code, reason = "a call of the C library")
)]

/// Sets the allocator up; to be called before the first thread is started.
pub fn set_up() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let cores = std::thread::available_parallelism().map_or(2, usize::from).max(2);
        // Safety: it takes two numbers, and no other thread runs yet.
        let taken = unsafe { libc::mallopt(libc::M_ARENA_MAX, cores as libc::c_int) };
        debug_assert_eq!(taken, 1, "glibc knows this option");
    }
}
