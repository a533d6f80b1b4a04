//! What a task has of one partition, and not committed.

use super::{Hands, Row};
use crate::mutant::Mutant;
use crate::source::{RecordId, Slot};
use crate::time::Time;
use tidemill_core::catalog::SourcePartition;
use tidemill_core::{Counts, Offset, Span, SpanKey, TopicId};

/// A run that was read, or rows that a program wrote.
#[derive(Clone, Debug)]
pub struct Piece {
    /// What it passes over.
    pub span: Span,
    /// What is in it.
    pub rows: Vec<Row>,
    /// When it came.
    pub at: Time,
}

impl Piece {
    /// What of it is at or above `offset`; nothing if its counts cannot be divided there exactly.
    pub fn starting_at(&self, offset: u64) -> Option<Piece> {
        if offset == self.span.start.0 {
            return Some(self.clone());
        }
        let rows: Vec<Row> = self.rows.iter().filter(|row| row.offset >= offset).copied().collect();
        let rejected = rows.iter().filter(|row| row.rejected).count() as u64;
        let stored = rows.len() as u64 - rejected;
        let width = self.span.end.0 - offset;
        let span = Span {
            start: Offset(offset),
            counts: self.span.counts.of_end(width, stored, rejected, stored)?,
            ..self.span
        };
        Some(Piece {
            span,
            rows,
            at: self.at,
        })
    }
}

/// The leader epoch of the source behind `pieces`, which follow on a record of the epoch `before`.
pub(super) fn epoch_after(before: Option<i32>, pieces: &[Piece]) -> Option<i32> {
    let newest = pieces.iter().rev().find_map(|piece| piece.span.source_epoch);
    newest.or(before)
}

/// What is not committed of one partition.
#[derive(Clone, Debug)]
pub(super) struct Lane {
    pub key: SpanKey,
    pub from: u64,
    pub to: u64,
    /// The leader epoch of the source at the record before `from`.
    pub before: Option<i32>,
    pub fresh: Vec<Piece>,
    pub frozen: Vec<Piece>,
    pub topic: Option<TopicId>,
    pub epoch: Option<i32>,
    pub reads: bool,
    /// Whether its rows are shown before they are committed.
    pub shows: bool,
}

impl Lane {
    /// A history that begins where the catalog says.
    pub fn opened(p: &SourcePartition, shows: bool) -> Self {
        Self {
            key: p.key(),
            from: p.offset.0,
            to: p.offset.0,
            before: p.source_epoch,
            fresh: vec![],
            frozen: vec![],
            topic: p.topic,
            epoch: p.source_epoch,
            reads: false,
            shows,
        }
    }

    /// What the slots are that come next.
    pub fn decode(&self, slots: &[Slot], hands: &Hands<'_>) -> Piece {
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
        let log = hands.topic.logs.get(self.key.partition.0 as usize);
        let span = Span {
            key: self.key,
            start: Offset(start),
            end: Offset(end),
            counts,
            topic: Some(hands.topic.id),
            source_epoch: log.map(|log| log.epoch_of(end - 1)),
        };
        Piece {
            span,
            rows,
            at: hands.now,
        }
    }

    /// Takes what continues it.
    pub fn append(&mut self, piece: Piece) {
        self.to = piece.span.end.0;
        self.epoch = piece.span.source_epoch.or(self.epoch);
        self.topic = self.topic.or(piece.span.topic);
        self.fresh.push(piece);
    }

    /// Forgets the pieces that lie below the committed offset; one that lies across stays until the next commit has passed it.
    pub fn release_below(&mut self, offset: u64) {
        let below = self.fresh.partition_point(|piece| piece.span.end.0 <= offset);
        let gone: Vec<Piece> = self.fresh.drain(..below).collect();
        if let Some(last) = gone.last() {
            self.from = last.span.end.0;
            self.before = epoch_after(self.before, &gone);
        }
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
