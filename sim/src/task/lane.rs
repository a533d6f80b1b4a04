//! What a task has read of one partition, and not committed.

use super::{Hands, Row};
use crate::mutant::Mutant;
use crate::source::{RecordId, Slot};
use crate::time::Time;
use tidemill_core::{Counts, Offset, Span, SpanKey, TopicId};

/// A run that was read.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub span: Span,
    pub rows: Vec<Row>,
    pub at: Time,
}

/// What is not committed of one partition.
#[derive(Clone, Debug)]
pub(super) struct Lane {
    pub key: SpanKey,
    pub from: u64,
    pub to: u64,
    pub fresh: Vec<Piece>,
    pub frozen: Vec<Piece>,
    pub topic: Option<TopicId>,
    pub epoch: Option<i32>,
    pub reads: bool,
}

impl Lane {
    pub fn is_of_source(&self) -> bool {
        self.topic.is_some()
    }

    pub fn take(&mut self, slots: &[Slot], hands: &Hands<'_>) {
        let start = self.to;
        let (mut rows, mut counts) = (Vec::new(), Counts::default());
        for (i, slot) in slots.iter().enumerate() {
            let row = |id: RecordId, rejected: bool| Row {
                pipe: self.key.pipe,
                partition: self.key.partition,
                offset: start + i as u64,
                id,
                rejected,
            };
            match *slot {
                Slot::Record { id, bad } => {
                    counts.delivered += 1;
                    counts.rejected += u64::from(bad);
                    counts.stored += u64::from(!bad);
                    counts.rows += u64::from(!bad);
                    rows.push(row(id, bad));
                }
                Slot::Aborted(id) if hands.mutant == Some(Mutant::AbortedRecordsAreRead) => {
                    counts += Counts::stored(1);
                    rows.push(row(id, false));
                }
                Slot::Aborted(_) | Slot::Gone => counts.absent += 1,
            }
        }
        let end = start + slots.len() as u64;
        let epoch = hands
            .topic
            .logs
            .get(self.key.partition.0 as usize)
            .map(|log| log.epoch_of(end - 1));
        let span = Span {
            key: self.key,
            start: Offset(start),
            end: Offset(end),
            counts,
            topic: Some(hands.topic.id),
            source_epoch: epoch,
        };
        self.to = end;
        self.epoch = epoch.or(self.epoch);
        self.topic = self.topic.or(Some(hands.topic.id));
        self.fresh.push(Piece {
            span,
            rows,
            at: hands.now,
        });
    }

    /// What a client does that is told `auto.offset.reset = earliest`: it goes on where there is something, and says nothing.
    pub fn pass_over(&mut self, to: u64, now: Time) {
        let counts = Counts {
            absent: to - self.to,
            ..Counts::default()
        };
        let span = Span {
            key: self.key,
            start: Offset(self.to),
            end: Offset(to),
            counts,
            topic: self.topic,
            source_epoch: None,
        };
        (self.to, self.reads) = (to, true);
        self.fresh.push(Piece {
            span,
            rows: vec![],
            at: now,
        });
    }
}
