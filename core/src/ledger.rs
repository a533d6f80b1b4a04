//! The ledger: what became of every offset of a source partition.
//!
//! `passed = delivered + absent + lost` and `delivered = stored + rejected + filtered`. Each term is counted at another
//! place, so that a mistake in one of them shows: *delivered* where records are polled, *absent* from the gaps between
//! their offsets, *rejected* and *filtered* by the decoder, *stored* from the files that were written, *lost* by the
//! command that passes over offsets which nobody will read.

use crate::ids::{Incarnation, Offset, PartitionId, PipeId};
use crate::span::SpanKey;
use serde::{Deserialize, Serialize};
use std::ops::AddAssign;

/// What became of the offsets of a span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Records that the source gave.
    pub delivered: u64,
    /// Offsets between or behind them that hold no record for a reader of committed records: marks of transactions,
    /// aborted records, records removed by compaction.
    pub absent: u64,
    /// Records that became rows.
    pub stored: u64,
    /// Records that could not be decoded and are kept in reject parts.
    pub rejected: u64,
    /// Records that were left out on purpose, such as tombstones.
    pub filtered: u64,
    /// Rows that the stored records became; as many as records unless a record holds several.
    pub rows: u64,
}

impl Counts {
    /// Of `stored` records with a row each, and nothing else.
    pub fn stored(stored: u64) -> Self {
        Self {
            delivered: stored,
            stored,
            rows: stored,
            ..Self::default()
        }
    }

    /// What of these counts is of the last `width` offsets of what they count, in which there are `stored` and `rejected` records and
    /// `rows` rows. The counts are exact or there is no answer (LED-1): offsets with neither were filtered or are absent, and
    /// which of them were what is known only if one of the two did not occur, or if all of these offsets are on one side.
    pub fn of_end(self, width: u64, stored: u64, rejected: u64, rows: u64) -> Option<Self> {
        let neither = width.checked_sub(stored + rejected)?;
        let (filtered, absent) = match (self.filtered, self.absent) {
            (0, _) => (0, neither),
            (_, 0) => (neither, 0),
            _ if neither == 0 => (0, 0),
            (filtered, absent) if neither == filtered + absent => (filtered, absent),
            _ => return None,
        };
        Some(Self {
            delivered: stored + rejected + filtered,
            absent,
            stored,
            rejected,
            filtered,
            rows,
        })
    }

    /// How many offsets these account for; `None` when there are more than can be counted.
    pub fn offsets(&self) -> Option<u64> {
        self.delivered.checked_add(self.absent)
    }

    /// Whether every delivered record is accounted for, and no row without a record.
    pub fn balance(&self) -> bool {
        let ended = self
            .stored
            .checked_add(self.rejected)
            .and_then(|n| n.checked_add(self.filtered));
        ended == Some(self.delivered) && self.rows >= self.stored && (self.stored > 0 || self.rows == 0)
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.delivered += other.delivered;
        self.absent += other.absent;
        self.stored += other.stored;
        self.rejected += other.rejected;
        self.filtered += other.filtered;
        self.rows += other.rows;
    }
}

/// What became of the offsets of one life of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// The offset at which this life began.
    pub start: Offset,
    /// What became of the offsets that were read.
    pub counts: Counts,
    /// Offsets that were passed over unread: expired or vanished at the source, or skipped by command.
    pub lost: u64,
}

impl Ledger {
    /// Nothing passed yet.
    pub fn opened(start: Offset) -> Self {
        Self {
            start,
            ..Self::default()
        }
    }

    /// What is wrong when the next offset is `end`, if anything (LED-1).
    pub fn imbalance(&self, end: Offset) -> Option<String> {
        let passed = end.0.checked_sub(self.start.0);
        let accounted = self.counts.offsets().and_then(|n| n.checked_add(self.lost));
        if passed.is_none() || passed != accounted {
            return Some(format!(
                "offsets {} to {end} were passed, but delivered, absent and lost are {}, {} and {}",
                self.start, self.counts.delivered, self.counts.absent, self.lost
            ));
        }
        (!self.counts.balance()).then(|| {
            let Counts {
                delivered,
                stored,
                rejected,
                filtered,
                rows,
                ..
            } = self.counts;
            format!(
                "{delivered} records were delivered, but stored, rejected and filtered are {stored}, {rejected} and \
                 {filtered}, with {rows} rows"
            )
        })
    }
}

/// The ledger of a life that is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedLedger {
    /// The pipe.
    pub pipe: PipeId,
    /// The partition.
    pub partition: PartitionId,
    /// Which life.
    pub incarnation: Incarnation,
    /// What became of its offsets.
    pub ledger: Ledger,
    /// One past the last offset that it passed.
    pub end: Offset,
    /// What ended it, in a word or two.
    pub ended_by: String,
    /// When it ended, milliseconds since 1970.
    pub ended_at_ms: i64,
}

impl ClosedLedger {
    /// Which history it is the ledger of.
    pub fn key(&self) -> SpanKey {
        SpanKey {
            pipe: self.pipe,
            partition: self.partition,
            incarnation: self.incarnation,
        }
    }
}
