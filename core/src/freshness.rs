//! Histograms of how old records are when queries can see them.

/// Upper bounds of the buckets in milliseconds; a last one takes everything older.
pub const FRESHNESS_BOUNDS_MS: [u64; 15] = [
    10, 25, 50, 100, 200, 400, 700, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 300_000, 3_600_000,
];

/// The age in milliseconds that `share` of the records counted in `buckets` did not exceed; `None` without records.
/// It is the upper bound of a bucket, so the truth is less.
pub fn quantile_ms(buckets: &[u64], share: f64) -> Option<u64> {
    let total: u64 = buckets.iter().sum();
    if total == 0 {
        return None;
    }
    let wanted = (total as f64 * share).ceil() as u64;
    let mut seen = 0;
    for (i, count) in buckets.iter().enumerate() {
        seen += count;
        if seen >= wanted {
            return Some(FRESHNESS_BOUNDS_MS.get(i).copied().unwrap_or(u64::MAX));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_bound_of_its_bucket() {
        let mut buckets = vec![0; FRESHNESS_BOUNDS_MS.len() + 1];
        (buckets[0], buckets[4], buckets[15]) = (50, 49, 1);
        assert_eq!(quantile_ms(&buckets, 0.5), Some(10));
        assert_eq!(quantile_ms(&buckets, 0.99), Some(200));
        assert_eq!(quantile_ms(&buckets, 1.0), Some(u64::MAX));
        assert_eq!(quantile_ms(&[], 0.5), None);
    }
}
