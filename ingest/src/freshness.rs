//! How old records are at the moment when a query can see them: from the producer's time stamp to the memtable.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use tidemill_core::freshness::FRESHNESS_BOUNDS_MS;

/// A histogram of ages, counted since the task began.
#[derive(Debug, Default)]
pub struct Freshness {
    buckets: [AtomicU64; FRESHNESS_BOUNDS_MS.len() + 1],
}

impl Freshness {
    /// Records with these time stamps (milliseconds since 1970) can be queried from now on.
    pub fn observe(&self, timestamps_ms: impl Iterator<Item = i64>) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_millis() as i64);
        let mut counts = [0_u64; FRESHNESS_BOUNDS_MS.len() + 1];
        for at in timestamps_ms {
            // A producer's clock may run ahead of ours.
            let age = now.saturating_sub(at).max(0) as u64;
            counts[FRESHNESS_BOUNDS_MS.partition_point(|bound| *bound < age)] += 1;
        }
        for (bucket, count) in self.buckets.iter().zip(counts) {
            if count > 0 {
                bucket.fetch_add(count, Ordering::Relaxed);
            }
        }
    }

    /// How many records fell into each bucket.
    pub fn counts(&self) -> Vec<u64> {
        self.buckets
            .iter()
            .map(|bucket| bucket.load(Ordering::Relaxed))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_fall_into_the_bucket_whose_bound_they_do_not_exceed() {
        let freshness = Freshness::default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        freshness.observe([now + 60_000, now - 900, now - 10_000_000].into_iter());
        let counts = freshness.counts();
        assert_eq!(counts.iter().sum::<u64>(), 3);
        assert_eq!((counts[0], counts[7], counts[15]), (1, 1, 1));
    }
}
