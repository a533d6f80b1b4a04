//! When a task that stands by begins to read a partition, and when it has fallen so far behind that it begins again.

use crate::ids::Offset;
use crate::span::SpanKey;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Add;
use std::time::Duration;

/// The shortest time between two beginnings of the same partition.
const AGAIN: Duration = Duration::from_secs(5);
/// How long a standby may be behind the committed offset before it begins again there.
const BEHIND: Duration = Duration::from_secs(3);

/// What a standby remembers of its partitions. `T` is a moment of whatever clock there is.
#[derive(Clone, Debug)]
pub struct Tail<T> {
    /// When each was last begun.
    begun: BTreeMap<SpanKey, T>,
    /// Since when it has been behind the committed offset.
    behind: BTreeMap<SpanKey, T>,
}

impl<T> Default for Tail<T> {
    fn default() -> Self {
        Self {
            begun: BTreeMap::new(),
            behind: BTreeMap::new(),
        }
    }
}

impl<T: Copy + Ord + Add<Duration, Output = T>> Tail<T> {
    /// Whether a partition may be begun now; notes that it is.
    pub fn may_begin(&mut self, key: SpanKey, now: T) -> bool {
        let waits = self.begun.get(&key).is_some_and(|at| now < *at + AGAIN);
        if !waits {
            // An incarnation that is over does not come back.
            self.begun
                .retain(|known, _| (known.pipe, known.partition) != (key.pipe, key.partition));
            self.begun.insert(key, now);
        }
        !waits
    }

    /// Whether it has read less than is committed for too long. A little behind for a moment it always is: the leader
    /// reads and commits at its own pace.
    pub fn is_too_far_behind(&mut self, key: SpanKey, to: Offset, committed: Offset, now: T) -> bool {
        if to >= committed {
            self.behind.remove(&key);
            return false;
        }
        let since = *self.behind.entry(key).or_insert(now);
        let too_long = now >= since + BEHIND;
        if too_long {
            self.behind.remove(&key);
        }
        too_long
    }

    /// Forgets how far behind all others were.
    pub fn keep(&mut self, known: &BTreeSet<SpanKey>) {
        self.behind.retain(|key, _| known.contains(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Incarnation, PartitionId, PipeId};

    fn key(incarnation: u64) -> SpanKey {
        SpanKey {
            pipe: PipeId(1),
            partition: PartitionId(0),
            incarnation: Incarnation(incarnation),
        }
    }

    #[test]
    fn a_partition_that_had_to_be_closed_is_not_begun_over_and_over() {
        let (mut tail, now) = (Tail::default(), Duration::ZERO);
        assert!(tail.may_begin(key(1), now));
        assert!(!tail.may_begin(key(1), now + AGAIN / 2));
        assert!(
            tail.may_begin(key(2), now + AGAIN / 2),
            "another life is another beginning"
        );
        assert!(tail.may_begin(key(1), now + AGAIN));
        assert_eq!(tail.begun.len(), 1);
    }

    #[test]
    fn who_is_behind_for_a_moment_reads_on() {
        let mut tail = Tail::default();
        let mut at = |ms, to| tail.is_too_far_behind(key(1), Offset(to), Offset(10), Duration::from_millis(ms));
        assert!(!at(0, 5) && !at(2_000, 9));
        assert!(!at(2_500, 10), "it has caught up");
        assert!(!at(3_000, 5) && !at(5_900, 5));
        assert!(at(6_000, 5));
        assert!(!at(6_001, 5), "it has begun again");
    }
}
