//! What arrives at the sources, in bytes per second, as the heartbeats of the leaders tell: placement weighs shards by it.

use super::SILENT;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tidemill_core::{Incarnation, PartitionId, PipeId, ShardId, TableId};
use tidemill_proto::api::{NodeReport, PartitionRate, TaskProgress};

/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a manager must have looked before it knows enough to move shards.
const KNOWN: Duration = Duration::from_secs(10);
/// Rates are means over about so long: no shard moves for a burst.
const MEAN: Duration = Duration::from_secs(60);
/// How long a partition of which nothing is heard is remembered.
const FORGET: Duration = Duration::from_secs(60);

/// See the module's page.
#[derive(Debug)]
pub(super) struct Rates {
    since: Instant,
    looked: Instant,
    arriving: BTreeMap<(PipeId, PartitionId), Arriving>,
}

#[derive(Debug)]
struct Arriving {
    shard: ShardId,
    incarnation: Incarnation,
    /// One past the newest record, when that was heard, and when it was first.
    end: u64,
    at: Instant,
    since: Instant,
    bytes_per_second: f64,
}

impl Rates {
    /// Nothing is known.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            looked: now,
            arriving: BTreeMap::new(),
        }
    }

    /// Whether it is time to look.
    pub(super) fn are_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.looked) >= LOOK
    }

    /// Takes what the nodes said last: the newest leader of each shard, if it is heard. What a lost one last said stays among
    /// the reports, and is old.
    pub(super) fn look(&mut self, now: Instant, said: &[NodeReport]) {
        self.looked = now;
        let heard = said
            .iter()
            .filter(|said| u128::from(said.silent_ms) < SILENT.as_millis());
        let mut leading: BTreeMap<ShardId, &TaskProgress> = BTreeMap::new();
        for task in heard.filter_map(|said| said.progress.as_ref()).flat_map(|p| &p.tasks) {
            let shard = ShardId {
                table: TableId(task.table),
                index: task.shard,
            };
            let newest = leading.entry(shard).or_insert(task);
            if newest.epoch < task.epoch {
                *newest = task;
            }
        }
        for (shard, task) in leading {
            for p in &task.partitions {
                if let (Some(end), Some(record_bytes)) = (p.end, p.record_bytes) {
                    let incarnation = Incarnation(p.incarnation);
                    let known = self.arriving.entry((PipeId(p.pipe), PartitionId(p.partition)));
                    let known = known.or_insert_with(|| Arriving::begin(now, shard, incarnation, end));
                    known.hear(now, shard, incarnation, end, record_bytes);
                }
            }
        }
        self.arriving
            .retain(|_, known| now.saturating_duration_since(known.at) < FORGET);
    }

    /// Whether enough is known to move shards by it.
    pub(super) fn are_known(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= KNOWN
    }

    /// What arrives for each shard, in bytes per second; nothing while that is not known.
    pub(super) fn of_shards(&self, now: Instant) -> BTreeMap<ShardId, f64> {
        let mut rates = BTreeMap::new();
        if self.are_known(now) {
            for known in self.arriving.values() {
                *rates.entry(known.shard).or_default() += known.bytes_per_second;
            }
        }
        rates
    }

    /// The same of each partition, for people.
    pub(super) fn of_partitions(&self) -> Vec<PartitionRate> {
        let rate = |((pipe, partition), known): (&(PipeId, PartitionId), &Arriving)| PartitionRate {
            pipe: pipe.0,
            partition: partition.0,
            bytes_per_second: known.bytes_per_second,
        };
        self.arriving.iter().map(rate).collect()
    }
}

impl Arriving {
    fn begin(now: Instant, shard: ShardId, incarnation: Incarnation, end: u64) -> Self {
        Self {
            shard,
            incarnation,
            end,
            at: now,
            since: now,
            bytes_per_second: 0.0,
        }
    }

    fn hear(&mut self, now: Instant, shard: ShardId, incarnation: Incarnation, end: u64, record_bytes: f64) {
        if self.incarnation != incarnation || end < self.end {
            // Another life may be of another topic: the difference of their ends says nothing.
            (self.shard, self.incarnation, self.end, self.at) = (shard, incarnation, end, now);
            return;
        }
        self.shard = shard;
        let time = now.saturating_duration_since(self.at);
        if time.is_zero() {
            return;
        }
        let rate = (end - self.end) as f64 * record_bytes / time.as_secs_f64();
        // The mean of all there was in the beginning, and of the last minute or so later.
        let all = now.saturating_duration_since(self.since).min(MEAN);
        let share = (time.as_secs_f64() / all.as_secs_f64()).min(1.0);
        self.bytes_per_second += share * (rate - self.bytes_per_second);
        (self.end, self.at) = (end, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_proto::api::{NodeProgress, PartitionProgress};

    fn report(shard: u32, incarnation: u64, end: Option<u64>) -> NodeReport {
        let partition = PartitionProgress {
            pipe: 1,
            partition: 0,
            incarnation,
            end,
            record_bytes: Some(100.0),
            ..PartitionProgress::default()
        };
        let task = TaskProgress {
            table: 1,
            shard,
            epoch: 1,
            partitions: vec![partition],
            ..TaskProgress::default()
        };
        let progress = NodeProgress {
            tasks: vec![task],
            ..NodeProgress::default()
        };
        NodeReport {
            node: 1,
            silent_ms: 0,
            progress: Some(progress),
        }
    }

    fn rate(rates: &Rates, now: Instant) -> f64 {
        let shard = ShardId {
            table: TableId(1),
            index: 0,
        };
        rates.of_shards(now).get(&shard).copied().unwrap_or(f64::NAN)
    }

    #[test]
    fn what_arrives_is_counted_whoever_reads_it() {
        let begun = Instant::now();
        let mut rates = Rates::new(begun);
        let at = |s: u64| begun + Duration::from_secs(s);
        for s in 1..=20 {
            assert!(rates.are_due(at(s)));
            rates.look(at(s), &[report(0, 1, Some(1_000 * s))]);
            assert!(!rates.are_due(at(s)));
            assert_eq!(rates.are_known(at(s)), s >= 10);
        }
        assert!((rate(&rates, at(20)) - 100_000.0).abs() < 1.0);
        // Nobody leads it for a while; what arrived meanwhile is not a burst.
        rates.look(at(30), &[]);
        rates.look(at(40), &[report(0, 1, None)]);
        rates.look(at(50), &[report(0, 1, Some(50_000))]);
        assert!((rate(&rates, at(50)) - 100_000.0).abs() < 1.0);
        // It begins another life, at an end that is far away.
        rates.look(at(51), &[report(0, 2, Some(9_000_000))]);
        rates.look(at(52), &[report(0, 2, Some(9_001_000))]);
        assert!((rate(&rates, at(52)) - 100_000.0).abs() < 1.0);
        for s in 53..400 {
            rates.look(at(s), &[report(0, 2, Some(9_001_000))]);
        }
        assert!(rate(&rates, at(400)) < 1_000.0, "nothing arrives any more");
        rates.look(at(500), &[]);
        assert!(rate(&rates, at(500)).is_nan(), "it is forgotten");
    }

    #[test]
    fn what_a_lost_leader_said_last_does_not_count() {
        let begun = Instant::now();
        let at = |s: u64| begun + Duration::from_secs(s);
        for lost_is_first in [true, false] {
            let mut rates = Rates::new(begun);
            for s in 1..=60 {
                let mut lost = report(0, 1, Some(1_000 * s.min(20)));
                let mut leads = report(0, 1, Some(1_000 * s));
                lost.silent_ms = 1_000 * s.saturating_sub(20);
                if let Some(progress) = &mut leads.progress {
                    progress.tasks[0].epoch = 2;
                }
                let said = match (s <= 20, lost_is_first) {
                    (true, _) => vec![lost],
                    (false, true) => vec![lost, leads],
                    (false, false) => vec![leads, lost],
                };
                rates.look(at(s), &said);
            }
            assert!((rate(&rates, at(60)) - 100_000.0).abs() < 1.0, "{:?}", rates.arriving);
        }
    }

    #[test]
    fn a_burst_weighs_little() {
        let begun = Instant::now();
        let mut rates = Rates::new(begun);
        let at = |s: u64| begun + Duration::from_secs(s);
        for s in 1..=100 {
            rates.look(at(s), &[report(0, 1, Some(1_000 * s))]);
        }
        rates.look(at(101), &[report(0, 1, Some(110_000))]);
        assert!(rate(&rates, at(101)) < 120_000.0);
    }
}
