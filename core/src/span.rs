//! Spans: half-open ranges of source offsets.

use crate::ids::{Incarnation, Offset, PartitionId, PipeId};
use serde::{Deserialize, Serialize};

/// Which history a span belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SpanKey {
    /// The pipe.
    pub pipe: PipeId,
    /// The partition of its source.
    pub partition: PartitionId,
    /// The life of that partition.
    pub incarnation: Incarnation,
}

/// The offsets `start..end` of one partition, with what became of the records found there.
///
/// Holes are normal: a source may have removed records (compaction) or use offsets for its own
/// marks (transactions). So `stored + rejected` may be less than `end - start`, never more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Which history it belongs to.
    pub key: SpanKey,
    /// First offset.
    pub start: Offset,
    /// One past the last offset.
    pub end: Offset,
    /// Records in it that became rows.
    pub stored: u64,
    /// Records in it that could not be decoded.
    pub rejected: u64,
    /// Leader epoch of the source at the last record, where the source has one (KIP-320).
    pub source_epoch: Option<i32>,
}

impl Span {
    /// How many offsets it passes over.
    pub fn width(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether its own numbers are possible: not backwards, and no more records than offsets.
    pub fn is_sound(&self) -> bool {
        self.start <= self.end
            && self
                .stored
                .checked_add(self.rejected)
                .is_some_and(|records| records <= self.width())
    }

    /// Joins `next` to the end of this span, if it is the same history and starts where this ends.
    pub fn join(&self, next: &Span) -> Option<Span> {
        (self.key == next.key && self.end == next.start).then(|| Span {
            end: next.end,
            stored: self.stored + next.stored,
            rejected: self.rejected + next.rejected,
            source_epoch: next.source_epoch.or(self.source_epoch),
            ..*self
        })
    }
}
