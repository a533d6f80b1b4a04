//! The memory that all memtables of a node may use together.
//!
//! Every task has an [`Account`] and says how much it holds whenever that changes: consumers as they
//! append, writers when a commit is through. Consumers ask before they read on; writers ask whether
//! theirs is the memtable to flush first. The limit is soft by one run for each consumer, since rows
//! are counted once they are decoded. An account that nobody holds any more counts for nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Share of the limit from which the largest memtable is flushed before its time.
const FLUSH_AT_PERCENT: u64 = 70;

/// Bytes used by memtables against a limit.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    accounts: Mutex<Vec<Weak<AtomicU64>>>,
}

/// What one memtable uses.
#[derive(Clone, Debug)]
pub struct Account {
    budget: Arc<Budget>,
    bytes: Arc<AtomicU64>,
}

impl Budget {
    /// A budget of `limit` bytes, none of them used.
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            accounts: Mutex::default(),
        }
    }

    /// A new account, empty.
    pub fn open(self: &Arc<Self>) -> Account {
        let bytes = Arc::new(AtomicU64::new(0));
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        accounts.retain(|account| account.strong_count() > 0);
        accounts.push(Arc::downgrade(&bytes));
        Account {
            budget: self.clone(),
            bytes,
        }
    }

    fn each(&self) -> Vec<u64> {
        let accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        accounts
            .iter()
            .filter_map(Weak::upgrade)
            .map(|bytes| bytes.load(Ordering::Relaxed))
            .collect()
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.each().iter().sum()
    }

    /// Whether consumers have to wait.
    pub fn is_spent(&self) -> bool {
        self.used() >= self.limit
    }
}

impl Account {
    /// Says how many bytes it has now.
    pub fn report(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Whether consumers have to wait.
    pub fn is_spent(&self) -> bool {
        self.budget.is_spent()
    }

    /// Whether no memtable is larger, while memory is short.
    pub fn should_flush(&self) -> bool {
        let own = self.bytes.load(Ordering::Relaxed);
        let each = self.budget.each();
        let total: u64 = each.iter().sum();
        let short = total.saturating_mul(100) >= self.budget.limit.saturating_mul(FLUSH_AT_PERCENT);
        own > 0 && short && each.iter().all(|other| *other <= own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_memtable_goes_first_and_consumers_wait_at_the_limit() {
        let budget = Arc::new(Budget::new(100));
        let (a, b) = (budget.open(), budget.open());
        a.report(40);
        b.report(20);
        assert!(!a.should_flush());
        b.report(59);
        assert!(b.should_flush() && !a.should_flush());
        assert!(!budget.is_spent());
        a.report(41);
        assert!(a.is_spent() && b.is_spent());
        drop(b);
        assert_eq!(budget.used(), 41);
    }
}
