//! A node's clock: jumps of the wall clock, and drift of it, while the process runs.
//!
//! A small library (`clock.c`), which the C compiler makes when a world needs it, is preloaded into the process. Only the wall clock is
//! shifted: `SystemTime` in Rust, `gettimeofday` and its kin in C. The monotonic clock, by which timers and time-outs run, stays
//! right: on a real machine, too, it does not jump. (libfaketime 0.9.10 does not do: told to leave the
//! monotonic clock alone, it makes every sleep until a point in time fail with EINVAL.)

use crate::world::output;
use anyhow::{Context, ensure};
use nix::time::{ClockId, clock_gettime};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The source of the library.
const SOURCE: &str = include_str!("clock.c");
/// What tells the library which file says how wrong the clock is.
const VARIABLE: &str = "TIDEMILL_CLOCK";

/// How wrong a clock is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shift {
    /// Seconds that it is ahead (or, below 0, behind) at once.
    pub jump_s: i64,
    /// From now on, how many seconds pass by it in a second; 0 counts as 1.
    pub rate: f64,
}

/// The clock of one node, whichever process that is at the moment.
#[derive(Debug)]
pub struct Clock {
    library: PathBuf,
    path: PathBuf,
    file: File,
    number: AtomicU64,
}

impl Clock {
    /// Why there can be none here, if that is so.
    pub fn missing() -> Option<String> {
        let folder = match tempfile::tempdir() {
            Ok(folder) => folder,
            Err(error) => return Some(error.to_string()),
        };
        Self::new(folder.path(), "tried")
            .err()
            .map(|error| format!("{error:#}"))
    }

    /// A clock that is right; its file and the library lie in `folder`.
    ///
    /// # Errors
    /// Without a C compiler.
    pub fn new(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let library = folder.join("clock.so");
        if !library.exists() {
            let source = folder.join("clock.c");
            fs::write(&source, SOURCE)?;
            let mut compiler = Command::new("cc");
            compiler
                .args(["-O1", "-shared", "-fPIC", "-o"])
                .arg(&library)
                .arg(&source)
                .arg("-ldl");
            output(&mut compiler).context("the library that shifts clocks cannot be made")?;
        }
        let path = folder.join(format!("{name}.clock"));
        let file = File::options().create(true).truncate(true).write(true).open(&path)?;
        file.write_all_at(&[0; 32], 0)?;
        Ok(Self {
            library,
            path,
            file,
            number: AtomicU64::new(0),
        })
    }

    /// Has the process that `command` starts, and those that it starts, go by this clock.
    pub fn give(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.library).env(VARIABLE, &self.path);
    }

    /// Makes it wrong, from now on.
    ///
    /// # Errors
    /// If it cannot be written down, or a rate is negative.
    pub fn set(&self, shift: Shift) -> anyhow::Result<()> {
        let rate = if shift.rate == 0.0 { 1.0 } else { shift.rate };
        ensure!(rate > 0.0 && rate < 1000.0, "a clock cannot run {rate} times as fast");
        let since = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        let words = [
            shift.jump_s * 1_000_000_000,
            since.as_nanos() as i64,
            ((rate - 1.0) * 1e6) as i64,
        ];
        // Odd while it is written: the processes that read it wait for a moment.
        let number = self.number.fetch_add(2, Ordering::Relaxed);
        self.file.write_all_at(&(number + 1).to_ne_bytes(), 0)?;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.file.write_all_at(&bytes, 8)?;
        self.file.write_all_at(&(number + 2).to_ne_bytes(), 0)?;
        Ok(())
    }
}
