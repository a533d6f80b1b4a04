//! The memory that all memtables of a node may use together.
//!
//! Consumers ask before they read on; writers ask whether theirs is the memtable to flush first. The
//! limit is soft by one batch for each consumer, since rows are counted once they are decoded.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use tidemill_core::ShardId;

/// Share of the limit from which the largest memtable is flushed before its time.
const FLUSH_AT_PERCENT: u64 = 70;

/// Bytes used by memtables against a limit.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: Mutex<BTreeMap<ShardId, u64>>,
}

impl Budget {
    /// A budget of `limit` bytes, none of them used.
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            used: Mutex::default(),
        }
    }

    /// Says how many bytes the memtable of `shard` has now; zero when it is gone.
    pub fn report(&self, shard: ShardId, bytes: u64) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        match bytes {
            0 => used.remove(&shard),
            _ => used.insert(shard, bytes),
        };
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }

    /// Whether consumers have to wait.
    pub fn is_spent(&self) -> bool {
        self.used() >= self.limit
    }

    /// Whether `shard` has the largest memtable while memory is short.
    pub fn wants_flush_of(&self, shard: ShardId) -> bool {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let total: u64 = used.values().sum();
        let largest = used.iter().max_by_key(|(_, bytes)| **bytes).map(|(shard, _)| *shard);
        total.saturating_mul(100) >= self.limit.saturating_mul(FLUSH_AT_PERCENT) && largest == Some(shard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_core::TableId;

    #[test]
    fn the_largest_memtable_goes_first_and_consumers_wait_at_the_limit() {
        let shard = |index| ShardId {
            table: TableId(1),
            index,
        };
        let budget = Budget::new(100);
        budget.report(shard(0), 40);
        budget.report(shard(1), 20);
        assert!(!budget.wants_flush_of(shard(0)));
        budget.report(shard(1), 59);
        assert!(budget.wants_flush_of(shard(1)) && !budget.wants_flush_of(shard(0)));
        assert!(!budget.is_spent());
        budget.report(shard(0), 41);
        assert!(budget.is_spent());
        budget.report(shard(1), 0);
        assert_eq!(budget.used(), 41);
    }
}
