//! What a consumer thread shows of itself: how far the source goes, and what each partition waits for.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tidemill_core::{Offset, SpanKey};

/// How far a partition is.
#[derive(Clone, Debug, PartialEq)]
pub struct PartitionStatus {
    /// The partition and its life.
    pub key: SpanKey,
    /// One past the newest record that a reader may see, if the broker has said.
    pub end: Option<Offset>,
    /// Whether it is being read.
    pub reading: bool,
    /// Bytes of a record, its key and payload, on average over the last ones.
    pub record_bytes: Option<f64>,
    /// The time of the newest record that was read, milliseconds since 1970.
    pub read_to_ms: Option<i64>,
    /// What keeps it from going on; empty if nothing does.
    pub waiting_for: String,
}

/// How far the source goes, as the broker last said.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ends {
    /// The oldest offset.
    pub low: i64,
    /// One past the newest record that a reader of committed records may see (last stable offset).
    pub stable: i64,
    /// One past the newest record, committed or not.
    pub high: i64,
    /// Since when a transaction has kept the two apart.
    open_since: Option<Instant>,
}

impl Ends {
    pub fn observe(&mut self, low: i64, stable: i64, high: i64) {
        let open = stable < high;
        self.open_since = match (open, self.open_since) {
            (true, Some(since)) if self.stable == stable => Some(since),
            (true, _) => Some(Instant::now()),
            (false, _) => None,
        };
        (self.low, self.stable, self.high) = (low, stable, high);
    }
}

/// What each partition waits for.
#[derive(Debug, Default)]
pub(super) struct Waits(Mutex<BTreeMap<SpanKey, String>>);

/// What the records of a partition are like, as far as they were read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Read {
    record_bytes: Option<f64>,
    to_ms: Option<i64>,
}

impl Read {
    /// Takes a run of `records` with `bytes` in all, the newest of which is of the time `to_ms`.
    pub fn observe(&mut self, records: u64, bytes: u64, to_ms: Option<i64>) {
        if records == 0 {
            return;
        }
        let mean = bytes as f64 / records as f64;
        // The mean over about the last 10,000 records.
        let weight = (records as f64 / 10_000.0).min(1.0);
        self.record_bytes = Some(self.record_bytes.map_or(mean, |old| old + (mean - old) * weight));
        self.to_ms = to_ms.or(self.to_ms);
    }
}

impl Waits {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SpanKey, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn of(&self, key: &SpanKey) -> Option<String> {
        self.lock().get(key).cloned()
    }

    pub fn replace(&self, waits: BTreeMap<SpanKey, String>) {
        *self.lock() = waits;
    }

    pub fn set(&self, key: SpanKey, why: &str) {
        if let Some(wait) = self.lock().get_mut(&key)
            && wait != why
        {
            why.clone_into(wait);
        }
    }

    pub fn status(
        &self,
        ends: &BTreeMap<i32, Ends>,
        read: &BTreeMap<i32, Read>,
        reading: bool,
    ) -> Vec<PartitionStatus> {
        let status = |(key, why): (&SpanKey, &String)| {
            let ends = ends.get(&(key.partition.0 as i32));
            let read = read.get(&(key.partition.0 as i32));
            let waiting_for = match ends.and_then(|ends| Some((ends, ends.open_since?))) {
                Some((ends, since)) if why.is_empty() && since.elapsed().as_secs() >= 2 => format!(
                    "a transaction at the source that has been open for {} s: it holds back {} offsets from {} on",
                    since.elapsed().as_secs(),
                    ends.high - ends.stable,
                    ends.stable
                ),
                _ => why.clone(),
            };
            PartitionStatus {
                key: *key,
                end: ends.map(|ends| Offset(ends.stable as u64)),
                reading,
                record_bytes: read.and_then(|read| read.record_bytes),
                read_to_ms: read.and_then(|read| read.to_ms),
                waiting_for,
            }
        };
        self.lock().iter().map(status).collect()
    }
}
