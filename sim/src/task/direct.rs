//! What a task does for programs that write rows themselves, and with rows that come out of a write-ahead log.
//!
//! A model of `ingest/src/direct.rs`, `task/direct.rs` and `task/adopt.rs`.

use super::lane::Lane;
use super::{Hands, Piece, Row, Task, Wanted, Wish};
use crate::mutant::Mutant;
use crate::source::RecordId;
use std::collections::BTreeSet;
use tidemill_core::catalog::{Acks, Writer};
use tidemill_core::{Counts, Offset, PartitionId, PipeId, Span, SpanKey};

/// So many rows back what a program sends again is known, when it is broken on purpose.
const WINDOW: u64 = 10;

/// Rows on their way in, and who sent them.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// Whoever waits for an answer; nobody does when a log is handed over.
    pub from: Option<(usize, u64)>,
    /// When it is given.
    pub acks: Acks,
    /// The partition.
    pub place: (PipeId, PartitionId),
    /// The number of the first.
    pub first: u64,
    /// The rows.
    pub rows: Vec<RecordId>,
}

impl Incoming {
    /// The number behind the last.
    pub fn end(&self) -> u64 {
        self.first + self.rows.len() as u64
    }
}

/// What a program is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Its rows are there, as safe as it asked for.
    Done,
    /// Rows before them are missing; this is the next number.
    Gap(u64),
    /// Nothing was taken: not now, or not here.
    Retry,
    /// It goes on behind what was missing.
    Passed,
}

/// What becomes of rows.
#[derive(Clone, Debug)]
pub enum Taken {
    /// This can be said at once.
    Now(Answer),
    /// It is said when they are committed.
    Later,
    /// They are in the log under this number, and not synced yet.
    Logged(u64, Piece),
}

/// A program that waits for its rows to be committed.
#[derive(Clone, Copy, Debug)]
pub struct Awaiting {
    /// The program and its request.
    pub from: (usize, u64),
    /// Its partition.
    pub place: (PipeId, PartitionId),
    /// The number behind the last of its rows.
    pub end: u64,
}

impl Task {
    /// Opens the histories of writers that are not open.
    pub(super) fn admit(&mut self, wanted: &Wanted, shards: u32, open: &BTreeSet<SpanKey>, hands: &mut Hands<'_>) {
        for p in &wanted.partitions {
            if open.contains(&p.key()) || self.held.contains(&(p.pipe, p.partition)) {
                continue;
            }
            let number = Writer::number_of(p.partition, shards);
            let writer = wanted.writers.iter().find(|writer| writer.number == number);
            let shows = writer.is_some_and(|writer| writer.acks != Acks::All);
            self.open(p, shows, hands);
        }
    }

    /// Takes rows of a program, those that are not here yet.
    pub fn take(&mut self, incoming: &Incoming, hands: &mut Hands<'_>) -> Taken {
        let (first, end) = (incoming.first, incoming.end());
        let leads = self.epoch.filter(|_| !self.ended);
        let Some((lane, epoch)) = self.lanes.get_mut(&incoming.place).zip(leads) else {
            return Taken::Now(Answer::Retry);
        };
        if first > lane.to {
            return Taken::Now(Answer::Gap(lane.to));
        }
        let again = match hands.mutant {
            Some(Mutant::RepeatedRowsAreTaken) => true,
            Some(Mutant::OldRepeatsAreTaken) => end + WINDOW < lane.to,
            _ => false,
        };
        if end > lane.to || again {
            let known = if again { 0 } else { (lane.to - first) as usize };
            let piece = lane.written(incoming.rows.iter().skip(known), hands);
            if !piece.rows.is_empty() && incoming.acks != Acks::All && self.logs {
                if hands.full {
                    return Taken::Now(Answer::Retry);
                }
                // In the log first: what is shown, or acknowledged, must not be forgotten.
                let number = hands.wal.append(self.shard, epoch, piece.clone());
                return Taken::Logged(number, piece);
            }
            if !piece.rows.is_empty() {
                lane.append(piece);
            }
        }
        self.settle(incoming, hands)
    }

    fn settle(&mut self, incoming: &Incoming, hands: &Hands<'_>) -> Taken {
        // Without rows, it is asked whether those before are committed.
        let waits = incoming.acks == Acks::All || incoming.rows.is_empty();
        match incoming.from {
            Some(from) if waits && hands.mutant != Some(Mutant::AcknowledgesBeforeCommit) => {
                let (place, end) = (incoming.place, incoming.end());
                self.awaiting.push(Awaiting { from, place, end });
                Taken::Later
            }
            _ => Taken::Now(Answer::Done),
        }
    }

    /// Rows are in the log for good: they may be shown now, unless others have come before them.
    pub fn logged(&mut self, incoming: &Incoming, piece: Piece, hands: &mut Hands<'_>) -> Taken {
        let lane = self.lanes.get_mut(&incoming.place).filter(|_| !self.ended);
        match lane.filter(|lane| lane.key == piece.span.key) {
            Some(lane) if lane.to == piece.span.start.0 => {
                lane.append(piece);
                self.settle(incoming, hands)
            }
            // The same rows came in twice at a time, and the other has been faster.
            Some(_) => self.take(incoming, hands),
            None => Taken::Now(Answer::Retry),
        }
    }

    /// Tells those whose rows are committed, or are not here any more.
    pub(super) fn answer_awaiting(&mut self, wishes: &mut Vec<Wish>) {
        let lanes = &self.lanes;
        self.awaiting.retain(|a| {
            let answer = match lanes.get(&a.place) {
                Some(lane) if lane.from >= a.end => Answer::Done,
                Some(lane) if lane.to >= a.end => return true,
                Some(lane) => Answer::Gap(lane.to),
                None => Answer::Retry,
            };
            wishes.push(Wish::Answer(a.from, answer));
            false
        });
    }

    /// Keeps the partition of a writer closed, if nothing of it is here and it ends at `end`. Returns whether it does; if not, what
    /// is here is committed soon.
    pub fn hold(&mut self, place: (PipeId, PartitionId), end: u64) -> bool {
        let lane = self.lanes.get(&place).filter(|_| !self.ended && self.epoch.is_some());
        let is_empty = lane.is_some_and(|lane| (lane.from, lane.to) == (end, end));
        let holds = is_empty && self.held.insert(place);
        if holds {
            self.lanes.remove(&place);
        }
        self.hurry_once |= !holds;
        holds
    }

    /// Whether it keeps a partition closed: another task, which has taken its place, does not.
    pub fn holds(&self, place: (PipeId, PartitionId)) -> bool {
        self.held.contains(&place)
    }

    /// Opens it again, as the catalog says by then.
    pub fn release(&mut self, place: (PipeId, PartitionId)) {
        self.held.remove(&place);
        self.dropped = true;
    }

    /// Takes a chunk out of another node's log, if its partition has expired and it continues what is here. Returns whether it
    /// is here then.
    pub fn adopt(&mut self, piece: Piece, hands: &mut Hands<'_>) -> bool {
        let key = piece.span.key;
        let Some((earliest, epoch)) = self.expired.get(&key).copied().zip(self.epoch) else {
            return false;
        };
        if self.ended || hands.full {
            return false;
        }
        let lane = self.lanes.get_mut(&(key.pipe, key.partition));
        let Some(lane) = lane.filter(|lane| lane.key == key) else {
            return false;
        };
        if piece.span.end.0 <= lane.to {
            return true;
        }
        let again = lane.to >= earliest.0;
        if piece.span.start.0 > lane.to || piece.span.is_of_another_log(lane.epoch, again) {
            return false;
        }
        let Some(piece) = piece.starting_at(lane.to) else {
            return false;
        };
        if self.logs {
            hands.wal.append(self.shard, epoch, piece.clone());
            hands.wal.sync();
        }
        lane.append(piece);
        self.hurry_once = true;
        true
    }
}

impl Lane {
    /// Rows that come next.
    fn written<'r>(&self, ids: impl Iterator<Item = &'r RecordId>, hands: &Hands<'_>) -> Piece {
        let row = |(offset, id): (u64, &RecordId)| Row {
            pipe: self.key.pipe,
            partition: self.key.partition,
            offset,
            id: *id,
            rejected: false,
        };
        let rows: Vec<Row> = (self.to..).zip(ids).map(row).collect();
        let span = Span {
            key: self.key,
            start: Offset(self.to),
            end: Offset(self.to + rows.len() as u64),
            counts: Counts::stored(rows.len() as u64),
            topic: None,
            source_epoch: None,
        };
        Piece {
            span,
            rows,
            at: hands.now,
        }
    }
}
