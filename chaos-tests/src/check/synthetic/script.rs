//! A history that is being made up: entries with a clock that somebody else moves.

use crate::history::{Entry, Kind, Who};
use serde_json::Value;

/// See the module's page.
pub struct Script {
    pub entries: Vec<Entry>,
    clock: u64,
    processes: u64,
    sampled: u64,
}

impl Script {
    pub fn new() -> Self {
        Self {
            entries: Vec::new(),
            clock: 0,
            processes: 0,
            sampled: 0,
        }
    }

    /// Time passes, in nanoseconds.
    pub fn pass(&mut self, ns: u64) {
        self.clock += ns;
    }

    /// Milliseconds since the last sample.
    pub fn since_sample_ms(&mut self) -> u64 {
        let ms = (self.clock - self.sampled) / 1_000_000;
        self.sampled = self.clock;
        ms
    }

    /// A process that has not done anything.
    pub fn process(&mut self) -> u64 {
        self.processes += 1;
        self.processes - 1
    }

    pub fn note(&mut self, who: &str, f: &str, value: Value) {
        self.entry(Who::Named(who.to_owned()), Kind::Info, f, value, None);
    }

    pub fn entry(&mut self, process: Who, kind: Kind, f: &str, value: Value, node: Option<String>) {
        let error = (kind == Kind::Fail || (kind == Kind::Info && matches!(process, Who::Process(_))))
            .then(|| "no answer".to_owned());
        self.entries.push(Entry {
            index: self.entries.len() as u64,
            time: self.clock,
            wall_ms: 1_790_000_000_000 + self.clock / 1_000_000,
            process,
            kind,
            f: f.to_owned(),
            value,
            node,
            error,
        });
        // No two entries at once, as with a real clock.
        self.clock += 1_000;
    }
}
