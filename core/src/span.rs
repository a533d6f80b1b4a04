//! Spans: half-open ranges of source offsets.

use crate::ids::{Incarnation, Offset, PartitionId, PipeId, TopicId};
use crate::ledger::Counts;
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
/// marks (transactions). Its counts say how many, so that every offset is accounted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Which history it belongs to.
    pub key: SpanKey,
    /// First offset.
    pub start: Offset,
    /// One past the last offset.
    pub end: Offset,
    /// What became of its offsets.
    pub counts: Counts,
    /// The topic that it was read from, where the source says (KIP-516).
    pub topic: Option<TopicId>,
    /// Leader epoch of the source at the last record, where the source has one (KIP-320).
    pub source_epoch: Option<i32>,
}

impl Span {
    /// How many offsets it passes over.
    pub fn width(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether its own numbers are possible: not backwards, and every offset and record accounted for once (LED-1).
    pub fn is_sound(&self) -> bool {
        self.start <= self.end && self.counts.offsets() == Some(self.width()) && self.counts.balance()
    }

    /// Whether it was read from another log of its source than the record before it, which is of the leader epoch `before`: the
    /// source's log was cut in between. Epochs grow along a log, so what is of an older one does not go on there. What is of a newer
    /// one may have records in between that nobody has read: only the source can tell, so it is taken for another
    /// where that can be asked `again` from there on. What lies there is gone where it cannot.
    pub fn is_of_another_log(&self, before: Option<i32>, again: bool) -> bool {
        let epochs = self.source_epoch.zip(before);
        epochs.is_some_and(|(read, before)| read < before || (again && read != before))
    }

    /// Joins `next` to the end of this span, if it is the same history and starts where this ends.
    pub fn join(&self, next: &Span) -> Option<Span> {
        (self.key == next.key && self.end == next.start && self.topic == next.topic).then(|| {
            let mut counts = self.counts;
            counts += next.counts;
            Span {
                end: next.end,
                counts,
                source_epoch: next.source_epoch.or(self.source_epoch),
                ..*self
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_before_or_after_a_cut_is_of_another_log() {
        let span = |source_epoch| Span {
            key: SpanKey {
                pipe: PipeId(1),
                partition: PartitionId(0),
                incarnation: Incarnation(1),
            },
            start: Offset(5),
            end: Offset(9),
            counts: Counts::stored(4),
            topic: None,
            source_epoch,
        };
        for (read, before, if_not_again, if_again) in [
            (Some(2), Some(2), false, false),
            (Some(1), Some(2), true, true),
            (Some(3), Some(2), false, true),
            (None, Some(2), false, false),
            (Some(2), None, false, false),
        ] {
            let span = span(read);
            let other = [false, true].map(|again| span.is_of_another_log(before, again));
            assert_eq!(other, [if_not_again, if_again], "{read:?} behind {before:?}");
        }
    }
}
