//! A topic, as Kafka would have it: partitions with offsets, gaps, retention, and logs that are cut and grow again.

use std::collections::BTreeSet;
use tidemill_core::TopicId;

/// A record that was produced, by a number that no other has.
pub type RecordId = u64;

/// What lies at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// A record; `bad` ones cannot be decoded.
    Record {
        /// Which.
        id: RecordId,
        /// Whether it becomes a reject.
        bad: bool,
    },
    /// A record of a transaction that was aborted. Nobody may see it.
    Aborted(RecordId),
    /// The mark of a transaction's end, or a record that compaction has removed.
    Gone,
}

/// One partition.
#[derive(Clone, Debug, Default)]
pub struct Log {
    slots: Vec<Slot>,
    /// The oldest offset that is still there.
    pub low: u64,
    /// Leader epochs and the offset at which each began.
    epochs: Vec<(i32, u64)>,
}

/// Why a reader cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// What it wants has expired.
    Expired {
        /// The oldest offset that there is.
        earliest: u64,
    },
    /// The log was cut.
    Truncated {
        /// From where on it is another.
        diverged: u64,
        /// The leader epoch of the record before.
        epoch: Option<i32>,
    },
    /// The log ends before.
    EndBelow {
        /// Where it ends.
        end: u64,
    },
    /// It is another topic.
    Recreated(TopicId),
}

impl Log {
    /// One past the newest offset.
    pub fn high(&self) -> u64 {
        self.slots.len() as u64
    }

    fn epoch(&self) -> i32 {
        self.epochs.last().map_or(0, |(epoch, _)| *epoch)
    }

    /// The epoch of the record at `offset`.
    pub fn epoch_of(&self, offset: u64) -> i32 {
        let begun = self.epochs.iter().rev().find(|(_, start)| *start <= offset);
        begun.map_or(0, |(epoch, _)| *epoch)
    }

    /// What lies at `offset`.
    pub fn slot(&self, offset: u64) -> Option<Slot> {
        self.slots.get(offset as usize).copied()
    }

    fn check(&self, next: u64, epoch: Option<i32>) -> Result<(), Loss> {
        if let Some(known) = epoch {
            let after = self.epochs.iter().find(|(e, _)| *e > known);
            let end = after.map_or(self.high(), |(_, start)| *start);
            if next > end {
                return Err(Loss::Truncated {
                    diverged: end,
                    epoch: end.checked_sub(1).map(|before| self.epoch_of(before)),
                });
            }
        }
        if next < self.low {
            return Err(Loss::Expired { earliest: self.low });
        }
        if next > self.high() {
            return Err(Loss::EndBelow { end: self.high() });
        }
        Ok(())
    }
}

/// The topic.
#[derive(Clone, Debug)]
pub struct Topic {
    /// Which one: a topic that is created again has another id.
    pub id: TopicId,
    /// Its partitions.
    pub logs: Vec<Log>,
    /// Whether nobody is answered.
    pub down: bool,
    /// Offsets of partitions that nobody could know to be cut: the reader had been told where to begin, and had read nothing yet.
    pub blind: Vec<(usize, std::ops::Range<u64>)>,
    /// Records that a reader cannot be blamed for: they expired, were cut off, compacted, or went with their topic.
    pub excused: BTreeSet<RecordId>,
    /// Records of transactions that were aborted.
    pub aborted: BTreeSet<RecordId>,
    next: RecordId,
}

impl Topic {
    /// An empty topic.
    pub fn new(partitions: usize) -> Self {
        Self {
            id: TopicId(1),
            logs: vec![Log::default(); partitions],
            down: false,
            blind: Vec::new(),
            excused: BTreeSet::new(),
            aborted: BTreeSet::new(),
            next: 1,
        }
    }

    /// How many records were produced.
    pub fn produced(&self) -> u64 {
        self.next - 1
    }

    fn id(&mut self) -> RecordId {
        self.next += 1;
        self.next - 1
    }

    /// Appends a record.
    pub fn append(&mut self, partition: usize, bad: bool) {
        let id = self.id();
        self.push(partition, Slot::Record { id, bad });
    }

    /// Appends a transaction that is aborted, with its mark.
    pub fn abort(&mut self, partition: usize, records: u64) {
        for _ in 0..records {
            let id = self.id();
            self.aborted.insert(id);
            self.push(partition, Slot::Aborted(id));
        }
        self.push(partition, Slot::Gone);
    }

    fn push(&mut self, partition: usize, slot: Slot) {
        if let Some(log) = self.logs.get_mut(partition) {
            if log.epochs.is_empty() {
                log.epochs.push((0, 0));
            }
            log.slots.push(slot);
        }
    }

    /// Everything in `partition` below `to` expires.
    pub fn expire(&mut self, partition: usize, to: u64) {
        let Some(log) = self.logs.get_mut(partition) else {
            return;
        };
        let to = to.min(log.high());
        for slot in log.slots.iter().take(to as usize).skip(log.low as usize) {
            if let Slot::Record { id, .. } = slot {
                self.excused.insert(*id);
            }
        }
        log.low = log.low.max(to);
    }

    /// Compaction removes the record at `offset`, if one is there.
    pub fn compact(&mut self, partition: usize, offset: u64) {
        let Some(slot) = self
            .logs
            .get_mut(partition)
            .and_then(|log| log.slots.get_mut(offset as usize))
        else {
            return;
        };
        if let Slot::Record { id, .. } = *slot {
            self.excused.insert(id);
            *slot = Slot::Gone;
        }
    }

    /// A broker that lacks everything from `from` on becomes leader: the log ends there, and what follows is of another epoch.
    pub fn truncate(&mut self, partition: usize, from: u64) {
        let Some(log) = self.logs.get_mut(partition) else {
            return;
        };
        let from = from.max(log.low);
        for slot in log.slots.drain((from as usize).min(log.slots.len())..) {
            if let Slot::Record { id, .. } = slot {
                self.excused.insert(id);
            }
        }
        let (epoch, high) = (log.epoch() + 1, log.high());
        log.epochs.retain(|(_, start)| *start < high || *start == 0);
        log.epochs.push((epoch, high));
    }

    /// The topic is deleted and created again.
    pub fn recreate(&mut self) {
        for partition in 0..self.logs.len() {
            let high = self.logs.get(partition).map_or(0, Log::high);
            self.expire(partition, high);
        }
        self.id = self.id.0.checked_add(1).map_or(self.id, TopicId);
        for log in &mut self.logs {
            *log = Log::default();
        }
    }

    /// Up to `most` slots from `next` on, for a reader whose last record was of `epoch`, of the topic that it knows.
    ///
    /// # Errors
    /// When it cannot go on there.
    pub fn read(
        &self,
        partition: usize,
        next: u64,
        epoch: Option<i32>,
        known: Option<TopicId>,
        most: usize,
    ) -> Result<Vec<Slot>, Loss> {
        if known.is_some_and(|known| known != self.id) {
            return Err(Loss::Recreated(self.id));
        }
        let Some(log) = self.logs.get(partition) else {
            return Ok(Vec::new());
        };
        log.check(next, epoch)?;
        Ok(log.slots.iter().skip(next as usize).take(most).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_core::catalog::SourcePartition;
    use tidemill_core::stop::{Stop, StopReason};
    use tidemill_core::{Incarnation, Ledger, Offset, PartitionId, PipeId, ShardId, TableId};

    #[test]
    fn readers_are_told_what_the_source_has_lost() {
        let mut topic = Topic::new(1);
        (0..10).for_each(|_| topic.append(0, false));
        assert_eq!(
            topic.read(0, 4, Some(0), Some(TopicId(1)), 3).map(|slots| slots.len()),
            Ok(3)
        );
        topic.truncate(0, 6);
        let cut = Loss::Truncated {
            diverged: 6,
            epoch: Some(0),
        };
        assert_eq!(topic.read(0, 8, Some(0), None, 1), Err(cut));
        (0..10).for_each(|_| topic.append(0, false));
        // The log has grown past it, and only the epoch tells.
        assert_eq!(topic.read(0, 8, Some(0), None, 1), Err(cut));
        assert_eq!(topic.read(0, 6, Some(0), None, 1).map(|slots| slots.len()), Ok(1));
        assert_eq!(topic.logs[0].epoch_of(5), 0);
        assert_eq!(topic.logs[0].epoch_of(6), 1);
        topic.expire(0, 8);
        assert_eq!(topic.read(0, 3, Some(0), None, 1), Err(Loss::Expired { earliest: 8 }));
        assert_eq!(topic.excused.len(), 12, "four were cut off, and eight have expired");
        topic.recreate();
        assert_eq!(
            topic.read(0, 0, None, Some(TopicId(1)), 1),
            Err(Loss::Recreated(TopicId(2)))
        );
        assert_eq!(topic.read(0, 9, None, None, 1), Err(Loss::EndBelow { end: 0 }));
    }

    /// Found by a simulated history: the reader that goes on after a repair must be able to notice that the log was cut once more,
    /// deeper, while its partition stood still. Going on at the first cut in silence would skip what has grown below.
    #[test]
    fn a_log_that_is_cut_again_before_the_repair_is_noticed() {
        let mut topic = Topic::new(1);
        (0..20).for_each(|_| topic.append(0, false));
        topic.truncate(0, 15);
        let Err(Loss::Truncated { diverged, epoch }) = topic.read(0, 18, Some(0), None, 1) else {
            panic!("the first cut is not noticed");
        };
        let reason = StopReason::Truncated {
            diverged: Some(Offset(diverged)),
            epoch,
        };
        let stopped = stopped_at(18, reason);
        topic.truncate(0, 10);
        (0..20).for_each(|_| topic.append(0, false));
        let (to, epoch) = stopped.goes_on(Some(topic.id), Offset(0)).unwrap();
        assert_eq!(to, Offset(15));
        let again = topic.read(0, to.0, epoch, None, 1);
        assert!(matches!(again, Err(Loss::Truncated { diverged: 10, .. })), "{again:?}");
    }

    /// Found by reading: whatever a partition stopped for, a topic that was created again since is read from its beginning.
    #[test]
    fn a_repair_onto_another_topic_begins_at_its_beginning() {
        for reason in [
            StopReason::Expired { earliest: Offset(9) },
            StopReason::TooManyRejected { rejected: 1, of: 2 },
        ] {
            let mut stopped = stopped_at(18, reason);
            assert_eq!(
                stopped.goes_on(Some(TopicId(1)), Offset(0)),
                Some((Offset(18), Some(0)))
            );
            assert_eq!(stopped.goes_on(Some(TopicId(2)), Offset(0)), Some((Offset(0), None)));
            stopped.topic = None;
            assert_eq!(
                stopped.goes_on(Some(TopicId(2)), Offset(0)),
                Some((Offset(18), Some(0)))
            );
        }
    }

    fn stopped_at(offset: u64, reason: StopReason) -> SourcePartition {
        SourcePartition {
            pipe: PipeId(1),
            partition: PartitionId(0),
            shard: ShardId {
                table: TableId(1),
                index: 0,
            },
            incarnation: Incarnation(1),
            offset: Offset(offset),
            until: None,
            topic: Some(TopicId(1)),
            source_epoch: Some(0),
            ledger: Ledger::default(),
            stop: Some(Stop { reason, at_ms: 0 }),
            committed_at_ms: 0,
        }
    }
}
