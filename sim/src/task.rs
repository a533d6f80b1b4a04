//! The task of a shard: reads the source, keeps what is not committed, makes it durable, commits it.
//!
//! A model of `ingest/src/task.rs`, `writer.rs` and `storage/src/memtable.rs`, with their rules in their order. What it
//! leaves out is how rows look, how files are written, and how long anything takes.

mod flush;
mod lane;

use crate::mutant::Mutant;
use crate::source::{Loss, RecordId, Topic};
use crate::time::{MS, Time};
use flush::Stage;
use lane::{Lane, Piece};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tidemill_core::catalog::{Pipe, PipeState, SourcePartition};
use tidemill_core::command::{CommitPart, StopPartition};
use tidemill_core::stop::StopReason;
use tidemill_core::{Counts, Epoch, Offset, PartId, PartitionId, PipeId, ShardId, Span, SpanKey};

/// The most slots that are read at a time.
const RUN: usize = 12;
/// A row, with the place that it has in its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// The pipe that it came through.
    pub pipe: PipeId,
    /// The partition.
    pub partition: PartitionId,
    /// The offset.
    pub offset: u64,
    /// Which record it is.
    pub id: RecordId,
    /// Whether it could not be decoded.
    pub rejected: bool,
}

/// A file of rows, or of rejects.
#[derive(Clone, Debug)]
pub struct Contents {
    /// The shard and the epoch for which it was written.
    pub of: (ShardId, Epoch),
    /// What is in it.
    pub rows: Vec<Row>,
}

/// What a query gets of a lane.
#[derive(Clone, Debug)]
pub struct PinnedLane {
    /// Its history.
    pub key: SpanKey,
    /// From which offset on it is here.
    pub from: u64,
    /// The rows.
    pub rows: Vec<Row>,
}

/// A program that waits for its rows to be committed.
#[derive(Clone, Copy, Debug)]
pub struct Awaiting {
    /// The program.
    pub client: usize,
    /// Its request.
    pub request: u64,
    /// Its partition.
    pub place: (PipeId, PartitionId),
    /// The number behind the last of its rows.
    pub end: u64,
}

/// What a task wants done.
#[derive(Clone, Debug)]
pub enum Wish {
    /// A file on all replicas.
    Put(PartId),
    /// A commit decided.
    Commit(CommitPart),
    /// A stop decided.
    Stop(StopPartition),
    /// A program told that its rows are committed up to there.
    Acknowledge(Awaiting),
}

/// Files that tasks have written, by id: what was put is what is there.
pub type Files = BTreeMap<PartId, Contents>;

/// See the module's page.
#[derive(Clone, Debug)]
pub struct Task {
    /// The shard.
    pub shard: ShardId,
    /// The epoch in which it leads.
    pub epoch: Epoch,
    /// Whether it was fenced.
    pub ended: bool,
    lanes: BTreeMap<(PipeId, PartitionId), Lane>,
    stage: Stage,
    stops: VecDeque<(SpanKey, StopReason)>,
    stopping: Option<(StopPartition, Time)>,
    hurry: bool,
    dropped: bool,
    flush_age: Time,
    awaiting: Vec<Awaiting>,
}

/// What a task may use for a moment.
pub struct Hands<'h> {
    /// The time.
    pub now: Time,
    /// The source.
    pub topic: &'h Topic,
    /// All files.
    pub files: &'h mut Files,
    /// Ids that nobody else has.
    pub id: &'h mut dyn FnMut() -> u128,
    /// How it is broken, if it is.
    pub mutant: Option<Mutant>,
}

impl Task {
    /// A task that has read nothing.
    pub fn new(shard: ShardId, epoch: Epoch, flush_age: Time) -> Self {
        Self {
            shard,
            epoch,
            ended: false,
            lanes: BTreeMap::new(),
            stage: Stage::Idle,
            stops: VecDeque::new(),
            stopping: None,
            hurry: false,
            dropped: false,
            flush_age,
            awaiting: Vec::new(),
        }
    }

    /// Makes it read what the catalog says: the pipes into its table, each with its partitions of this shard.
    pub fn reconcile(&mut self, wanted: &[(Arc<Pipe>, Vec<Arc<SourcePartition>>)]) {
        let stays = |p: &&Arc<SourcePartition>| p.stop.as_ref().is_none_or(|stop| !stop.reason.drops_what_was_read());
        let running = |pipe: &Pipe| pipe.state != PipeState::Paused;
        let kept: Vec<&Arc<SourcePartition>> = wanted
            .iter()
            .filter(|(pipe, _)| running(pipe))
            .flat_map(|(_, partitions)| partitions.iter().filter(stays))
            .collect();
        self.lanes
            .retain(|place, _| kept.iter().any(|p| (p.pipe, p.partition) == *place));
        (self.hurry, self.dropped) = (false, false);
        for (pipe, partitions) in wanted.iter().filter(|(pipe, _)| running(pipe)) {
            let quiet = pipe.state != PipeState::Running;
            for p in partitions {
                let place = (p.pipe, p.partition);
                let reads = !quiet && p.stop.is_none() && !p.is_complete() && pipe.source.kafka().is_some();
                match self.lanes.get_mut(&place).filter(|lane| lane.key == p.key()) {
                    Some(lane) if quiet => {
                        lane.reads = false;
                        self.hurry |= lane.from < lane.to;
                    }
                    Some(lane) if reads && !self.stops.iter().any(|(key, _)| *key == lane.key) => {
                        let stops_here = self.stopping.as_ref().is_some_and(|(stop, _)| stop.key == lane.key);
                        lane.reads = !stops_here;
                        lane.topic = lane.topic.or(p.topic);
                    }
                    Some(lane) => lane.reads = false,
                    None if quiet || p.stop.is_some() => {}
                    None => {
                        let lane = Lane {
                            key: p.key(),
                            from: p.offset.0,
                            to: p.offset.0,
                            fresh: vec![],
                            frozen: vec![],
                            topic: p.topic,
                            epoch: p.source_epoch,
                            reads,
                        };
                        self.lanes.insert(place, lane);
                    }
                }
            }
        }
    }

    /// Whether it has given up a history that it may have to begin again.
    pub fn wants_more(&self) -> bool {
        self.dropped
    }

    /// Goes on. Gives what it wants done.
    pub fn go_on(&mut self, hands: &mut Hands<'_>) -> Vec<Wish> {
        let mut wishes = Vec::new();
        if self.ended {
            return wishes;
        }
        self.read(hands);
        self.stop(hands.now, &mut wishes);
        if matches!(self.stage, Stage::Idle) && self.is_due(hands.now) {
            self.cut(hands, &mut wishes);
        }
        self.carry_on(hands, &mut wishes);
        wishes
    }

    fn read(&mut self, hands: &mut Hands<'_>) {
        for lane in self.lanes.values_mut().filter(|lane| lane.reads && !hands.topic.down) {
            // Memory is bounded: so is what is read ahead.
            if lane.to - lane.from > 60 {
                continue;
            }
            let partition = lane.key.partition.0 as usize;
            let known = lane.topic.filter(|_| hands.mutant != Some(Mutant::OtherTopicIsRead));
            let epoch = lane.epoch.filter(|_| hands.mutant != Some(Mutant::CutLogIsRead));
            match hands.topic.read(partition, lane.to, epoch, known, RUN) {
                Ok(slots) if slots.is_empty() => {}
                Ok(slots) => lane.take(&slots, hands),
                Err(loss) => {
                    lane.reads = false;
                    if hands.mutant == Some(Mutant::ResetsToEarliest)
                        && let Loss::Expired { earliest } = loss
                    {
                        lane.pass_over(earliest, hands.now);
                        continue;
                    }
                    let reason = match loss {
                        Loss::Expired { earliest } => StopReason::Expired {
                            earliest: Offset(earliest),
                        },
                        Loss::Truncated { diverged, epoch } => StopReason::Truncated {
                            diverged: Some(Offset(diverged)),
                            epoch,
                        },
                        Loss::EndBelow { end } => StopReason::EndBelow { end: Offset(end) },
                        Loss::Recreated(topic) => StopReason::TopicRecreated { topic, known_end: None },
                    };
                    self.stops.push_back((lane.key, reason));
                }
            }
        }
    }

    fn stop(&mut self, now: Time, wishes: &mut Vec<Wish>) {
        if let Some((stop, again_at)) = &mut self.stopping {
            if *again_at <= now {
                *again_at = now + 2_000 * MS;
                wishes.push(Wish::Stop(stop.clone()));
            }
            return;
        }
        let Some((key, reason)) = self.stops.front().cloned() else {
            return;
        };
        // What was read in this life is committed before, if it is good.
        let lane = self
            .lanes
            .get(&(key.pipe, key.partition))
            .filter(|lane| lane.key == key);
        let uncommitted = lane.is_some_and(|lane| lane.from < lane.to);
        if !reason.drops_what_was_read() && uncommitted {
            self.hurry = true;
            return;
        }
        self.stops.pop_front();
        let stop = StopPartition { key, reason };
        self.stopping = Some((stop.clone(), now + 2_000 * MS));
        wishes.push(Wish::Stop(stop));
    }

    /// What came of a stop.
    pub fn stop_decided(&mut self, key: SpanKey, known: bool) {
        if known && self.stopping.as_ref().is_some_and(|(stop, _)| stop.key == key) {
            self.stopping = None;
        }
    }

    /// What is not committed, as a query sees it.
    pub fn pin(&self) -> Vec<PinnedLane> {
        let pin = |lane: &Lane| {
            let pieces = lane.frozen.iter().chain(&lane.fresh);
            PinnedLane {
                key: lane.key,
                from: lane.from,
                rows: pieces.flat_map(|piece| piece.rows.iter().copied()).collect(),
            }
        };
        // Rows of programs are not shown before they are committed.
        self.lanes
            .values()
            .filter(|lane| lane.is_of_source())
            .map(pin)
            .collect()
    }

    /// Takes rows of a program from number `first` on, and remembers who waits for them; nothing if they do not follow what is
    /// there.
    pub fn write(&mut self, first: u64, ids: &[RecordId], who: Awaiting, hands: &mut Hands<'_>) -> Option<Vec<Wish>> {
        let lane = self
            .lanes
            .get_mut(&who.place)
            .filter(|lane| !self.ended && first <= lane.to)?;
        let again = hands.mutant == Some(Mutant::RepeatedRowsAreTaken);
        let known = if again { 0 } else { (lane.to - first) as usize };
        let start = lane.to;
        let new: Vec<Row> = ids
            .iter()
            .skip(known)
            .enumerate()
            .map(|(i, id)| Row {
                pipe: who.place.0,
                partition: who.place.1,
                offset: start + i as u64,
                id: *id,
                rejected: false,
            })
            .collect();
        let mut wishes = Vec::new();
        if !new.is_empty() {
            let span = Span {
                key: lane.key,
                start: Offset(start),
                end: Offset(start + new.len() as u64),
                counts: Counts::stored(new.len() as u64),
                topic: None,
                source_epoch: None,
            };
            lane.to = span.end.0;
            lane.fresh.push(Piece {
                span,
                rows: new,
                at: hands.now,
            });
        }
        if hands.mutant == Some(Mutant::AcknowledgesBeforeCommit) {
            wishes.push(Wish::Acknowledge(who));
        } else {
            self.awaiting.push(who);
            self.acknowledge(&mut wishes);
        }
        Some(wishes)
    }

    fn acknowledge(&mut self, wishes: &mut Vec<Wish>) {
        let lanes = &self.lanes;
        let done = |a: &Awaiting| lanes.get(&a.place).is_some_and(|lane| lane.from >= a.end);
        wishes.extend(self.awaiting.iter().filter(|a| done(a)).map(|a| Wish::Acknowledge(*a)));
        self.awaiting.retain(|a| !done(a) && lanes.contains_key(&a.place));
    }
}
