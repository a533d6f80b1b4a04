//! What a consumer thread shows of itself: how far the source goes, and what each partition waits for.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tidemill_core::wait::Wait;
use tidemill_core::{Offset, SpanKey};

/// For how long a broker that should answer may be silent before that is said.
const SILENT: Duration = Duration::from_secs(3);

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
    /// What keeps it from going on.
    pub wait: Option<Wait>,
}

/// How far the source goes, as the broker last said, and when it last said anything.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ends {
    /// One past the newest record that a reader of committed records may see (last stable offset).
    pub stable: i64,
    /// One past the newest record, committed or not.
    pub high: i64,
    /// Whether the broker has said.
    pub known: bool,
    /// Since when a transaction has kept the two apart.
    open_since: Option<Instant>,
    /// When the broker that leads the partition was last heard, or was not asked for anything.
    heard: Option<Instant>,
    /// For how long it had been silent when the client last told.
    silent: Duration,
}

impl Ends {
    pub fn observe(&mut self, stable: i64, high: i64) {
        let open = stable < high;
        self.open_since = match (open, self.open_since) {
            (true, Some(since)) if self.stable == stable => Some(since),
            (true, _) => Some(Instant::now()),
            (false, _) => None,
        };
        (self.stable, self.high, self.known) = (stable, high, true);
    }

    /// Takes note of when its broker was last heard, so long ago; `None` where that is not known. Clients forget it when they
    /// connect again, so it is kept here.
    pub fn hear(&mut self, ago: Option<Duration>) {
        let now = Instant::now();
        let heard = ago.and_then(|ago| now.checked_sub(ago)).max(self.heard).unwrap_or(now);
        (self.heard, self.silent) = (Some(heard), now.duration_since(heard));
    }

    /// What the source lets it wait for.
    fn wait(&self) -> Option<Wait> {
        let open = self.open_since.map(|since| since.elapsed().as_secs());
        match open {
            _ if self.silent >= SILENT => {
                let seconds = self.silent.as_secs();
                Some(Wait::Broker(format!("it has not answered for {seconds} s")))
            }
            Some(seconds) if seconds >= 2 => Some(Wait::Transaction {
                seconds,
                offsets: self.high - self.stable,
                from: self.stable,
            }),
            _ => None,
        }
    }
}

/// What each partition waits for.
#[derive(Debug, Default)]
pub(super) struct Waits(Mutex<BTreeMap<SpanKey, Option<Wait>>>);

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
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SpanKey, Option<Wait>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn of(&self, key: &SpanKey) -> Option<Wait> {
        self.lock().get(key).cloned().flatten()
    }

    pub fn replace(&self, waits: BTreeMap<SpanKey, Option<Wait>>) {
        *self.lock() = waits;
    }

    pub fn set(&self, key: SpanKey, wait: Option<Wait>) {
        if let Some(known) = self.lock().get_mut(&key) {
            *known = wait;
        }
    }

    pub fn status(
        &self,
        ends: &BTreeMap<i32, Ends>,
        read: &BTreeMap<i32, Read>,
        reading: bool,
    ) -> Vec<PartitionStatus> {
        let status = |(key, wait): (&SpanKey, &Option<Wait>)| {
            let ends = ends.get(&(key.partition.0 as i32));
            let read = read.get(&(key.partition.0 as i32));
            PartitionStatus {
                key: *key,
                end: ends.filter(|ends| ends.known).map(|ends| Offset(ends.stable as u64)),
                reading,
                record_bytes: read.and_then(|read| read.record_bytes),
                read_to_ms: read.and_then(|read| read.to_ms),
                wait: wait.clone().or_else(|| ends.and_then(Ends::wait)),
            }
        };
        self.lock().iter().map(status).collect()
    }
}
