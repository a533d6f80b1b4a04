//! The task of a shard: reads the source, keeps what is not committed, makes it durable, commits it.
//!
//! A model of `ingest/src/task.rs`, `writer.rs` and `storage/src/memtable.rs`, with their rules in their order. What it
//! leaves out is how rows look, how files are written, and how long anything takes.

use crate::mutant::Mutant;
use crate::source::{Loss, RecordId, Slot, Topic};
use crate::time::{MS, Time};
use std::collections::{BTreeMap, VecDeque};
use tidemill_core::catalog::{Holder, PartFile, Pipe, PipeState, SourcePartition};
use tidemill_core::command::{CommitPart, Outcome, Refusal, StopPartition};
use tidemill_core::stop::StopReason;
use tidemill_core::{
    CommitId, Counts, Epoch, Offset, PartId, PartitionId, PipeId, SchemaVersion, ShardId, Span, SpanKey, TopicId,
};

/// The most slots that are read at a time.
const RUN: usize = 12;
/// How long files are waited for before they are put once more.
const PUT_AGAIN: Time = 700 * MS;
/// How long a commit waits for replicas that may still answer, when enough have.
const GRACE: Time = 15 * MS;
/// The pause before a command is proposed again.
const AGAIN: Time = 40 * MS;

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

/// A run that was read.
#[derive(Clone, Debug)]
struct Piece {
    span: Span,
    rows: Vec<Row>,
    at: Time,
}

/// What is not committed of one partition.
#[derive(Clone, Debug)]
struct Lane {
    key: SpanKey,
    from: u64,
    to: u64,
    fresh: Vec<Piece>,
    frozen: Vec<Piece>,
    topic: Option<TopicId>,
    epoch: Option<i32>,
    reads: bool,
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

#[derive(Clone, Debug)]
enum Stage {
    Idle,
    /// The files are being put onto disks.
    Putting {
        files: Vec<(Option<PipeId>, PartFile)>,
        spans: Vec<Span>,
        holders: BTreeMap<PartId, Vec<Holder>>,
        put_at: Time,
        began: Time,
    },
    /// The commit is proposed, and proposed again until it is decided.
    Committing {
        commit: Box<CommitPart>,
        asked: bool,
        again_at: Time,
    },
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
    pub fn reconcile(&mut self, wanted: &[(Pipe, Vec<SourcePartition>)]) {
        let stays = |p: &&SourcePartition| p.stop.as_ref().is_none_or(|stop| !stop.reason.drops_what_was_read());
        let running = |pipe: &Pipe| pipe.state != PipeState::Paused;
        let kept: Vec<&SourcePartition> = wanted
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

    fn is_due(&self, now: Time) -> bool {
        let mut fresh = self.lanes.values().flat_map(|lane| &lane.fresh);
        let awaited = !self.awaiting.is_empty();
        fresh.any(|piece| self.hurry || awaited || piece.at + self.flush_age <= now)
    }

    fn cut(&mut self, hands: &mut Hands<'_>, wishes: &mut Vec<Wish>) {
        for lane in self.lanes.values_mut() {
            lane.frozen = std::mem::take(&mut lane.fresh);
        }
        self.recut(hands, wishes);
    }

    /// Makes files of what is frozen, and has them put.
    fn recut(&mut self, hands: &mut Hands<'_>, wishes: &mut Vec<Wish>) {
        let mut spans: Vec<Span> = Vec::new();
        let mut rows = Vec::new();
        let mut rejects: BTreeMap<PipeId, Vec<Row>> = BTreeMap::new();
        for lane in self.lanes.values().filter(|lane| !lane.frozen.is_empty()) {
            let joined = lane
                .frozen
                .iter()
                .map(|piece| piece.span)
                .reduce(|a, b| a.join(&b).unwrap_or(a));
            spans.extend(joined);
            for row in lane.frozen.iter().flat_map(|piece| &piece.rows) {
                match row.rejected {
                    true => rejects.entry(row.pipe).or_default().push(*row),
                    false => rows.push(*row),
                }
            }
        }
        if spans.is_empty() {
            self.stage = Stage::Idle;
            return;
        }
        if hands.mutant == Some(Mutant::RejectedAreForgotten) {
            rejects.clear();
            for span in &mut spans {
                span.counts.filtered += std::mem::take(&mut span.counts.rejected);
            }
        }
        if hands.mutant == Some(Mutant::OffsetsGoAhead) {
            rows.clear();
            for counts in spans.iter_mut().map(|span| &mut span.counts) {
                counts.filtered += std::mem::take(&mut counts.stored);
                counts.rows = 0;
            }
        }
        let mut files = Vec::new();
        let of_rows = (!rows.is_empty()).then_some((None, rows));
        for (pipe, rows) in of_rows
            .into_iter()
            .chain(rejects.into_iter().map(|(pipe, rows)| (Some(pipe), rows)))
        {
            let id = PartId((hands.id)());
            let file = PartFile {
                id,
                path: format!("{}/{}/{id}", self.shard, self.epoch),
                rows: rows.len() as u64,
                bytes: rows.len() as u64,
                checksum: id.0 as u64,
                partition_value: None,
                ranges: vec![],
            };
            let of = (self.shard, self.epoch);
            hands.files.insert(id, Contents { of, rows });
            wishes.push(Wish::Put(id));
            files.push((pipe, file));
        }
        self.stage = Stage::Putting {
            files,
            spans,
            holders: BTreeMap::new(),
            put_at: hands.now,
            began: hands.now,
        };
    }

    fn carry_on(&mut self, hands: &mut Hands<'_>, wishes: &mut Vec<Wish>) {
        let (shard, epoch, now) = (self.shard, self.epoch, hands.now);
        match &mut self.stage {
            Stage::Idle => {}
            Stage::Putting {
                files,
                spans,
                holders,
                put_at,
                began,
            } => {
                let of = |id: &PartId| holders.get(id).map_or(&[][..], Vec::as_slice);
                // On the disks that have all of them.
                let mut common: Vec<Holder> = files.first().map_or(vec![], |(_, file)| of(&file.id).to_vec());
                common.retain(|holder| files.iter().all(|(_, file)| of(&file.id).contains(holder)));
                let enough = common.len() >= 2 || files.is_empty();
                if enough && (common.len() >= 3 || files.is_empty() || *began + GRACE <= now) {
                    let commit = CommitPart {
                        commit: CommitId((hands.id)()),
                        shard,
                        epoch,
                        schema_version: SchemaVersion(1),
                        parts: files
                            .iter()
                            .filter(|(pipe, _)| pipe.is_none())
                            .map(|(_, f)| f.clone())
                            .collect(),
                        reject_parts: files
                            .iter()
                            .filter_map(|(pipe, f)| Some(((*pipe)?, f.clone())))
                            .collect(),
                        spans: spans.clone(),
                        holders: common,
                    };
                    wishes.push(Wish::Commit(commit.clone()));
                    self.stage = Stage::Committing {
                        commit: Box::new(commit),
                        asked: true,
                        again_at: now,
                    };
                } else if *put_at + PUT_AGAIN <= now {
                    *put_at = now;
                    wishes.extend(files.iter().map(|(_, file)| Wish::Put(file.id)));
                }
            }
            Stage::Committing {
                commit,
                asked,
                again_at,
            } => {
                if !*asked && *again_at <= now {
                    *asked = true;
                    wishes.push(Wish::Commit((**commit).clone()));
                }
            }
        }
    }

    /// A disk says that it has a file.
    pub fn is_put(&mut self, part: PartId, holder: Holder) {
        if let Stage::Putting { files, holders, .. } = &mut self.stage
            && files.iter().any(|(_, file)| file.id == part)
        {
            let of = holders.entry(part).or_default();
            if !of.contains(&holder) {
                of.push(holder);
            }
        }
    }

    /// What came of a commit; `None` when nobody knows.
    pub fn decided(&mut self, id: CommitId, outcome: Option<Outcome>, hands: &mut Hands<'_>) -> Vec<Wish> {
        let mut wishes = Vec::new();
        let Stage::Committing {
            commit,
            asked,
            again_at,
        } = &mut self.stage
        else {
            return wishes;
        };
        if commit.commit != id || self.ended {
            return wishes;
        }
        let known = match outcome {
            None if hands.mutant == Some(Mutant::UnknownIsTakenForDone) => Ok(()),
            None => {
                (*asked, *again_at) = (false, hands.now + AGAIN);
                return wishes;
            }
            Some(Ok(_)) | Some(Err(Refusal::AlreadyCommitted(_))) => Ok(()),
            Some(Err(refusal)) => Err(refusal),
        };
        match known {
            Ok(()) => {
                self.stage = Stage::Idle;
                for lane in self.lanes.values_mut() {
                    let committed = lane.frozen.last().map(|piece| piece.span.end.0);
                    lane.from = committed.unwrap_or(lane.from);
                    lane.frozen.clear();
                }
                self.acknowledge(&mut wishes);
            }
            Err(Refusal::Spans(refused)) if hands.mutant == Some(Mutant::RefusedSpansAreTakenForDone) => {
                _ = refused;
                self.stage = Stage::Idle;
                for lane in self.lanes.values_mut() {
                    lane.from = lane.frozen.last().map_or(lane.from, |piece| piece.span.end.0);
                    lane.frozen.clear();
                }
            }
            Err(Refusal::Spans(refused)) => {
                let keys: Vec<SpanKey> = refused.iter().map(|(key, _)| *key).collect();
                self.lanes.retain(|_, lane| !keys.contains(&lane.key));
                self.dropped = true;
                self.recut(hands, &mut wishes);
            }
            Err(Refusal::TooFewHolders { .. }) => {
                // Replicas came or went since: put the same files where they are wanted now.
                let files: Vec<(Option<PipeId>, PartFile)> = commit
                    .parts
                    .iter()
                    .map(|file| (None, file.clone()))
                    .chain(
                        commit
                            .reject_parts
                            .iter()
                            .map(|(pipe, file)| (Some(*pipe), file.clone())),
                    )
                    .collect();
                wishes.extend(files.iter().map(|(_, file)| Wish::Put(file.id)));
                self.stage = Stage::Putting {
                    files,
                    spans: commit.spans.clone(),
                    holders: BTreeMap::new(),
                    put_at: hands.now,
                    began: hands.now,
                };
            }
            Err(_) => {
                self.ended = true;
                self.lanes.clear();
            }
        }
        wishes
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

    /// Takes rows of a program from number `first` on, and remembers who waits for them.
    ///
    /// # Errors
    /// The number that it expects, where it has one, if these do not follow.
    pub fn write(
        &mut self,
        first: u64,
        ids: &[RecordId],
        who: Awaiting,
        hands: &mut Hands<'_>,
    ) -> Result<Vec<Wish>, Option<u64>> {
        let Some(lane) = self.lanes.get_mut(&who.place).filter(|_| !self.ended) else {
            return Err(None);
        };
        let again = hands.mutant == Some(Mutant::RepeatedRowsAreTaken);
        if first > lane.to {
            return Err(Some(lane.to));
        }
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
        Ok(wishes)
    }

    fn acknowledge(&mut self, wishes: &mut Vec<Wish>) {
        let lanes = &self.lanes;
        let done = |a: &Awaiting| lanes.get(&a.place).is_some_and(|lane| lane.from >= a.end);
        wishes.extend(self.awaiting.iter().filter(|a| done(a)).map(|a| Wish::Acknowledge(*a)));
        self.awaiting.retain(|a| !done(a) && lanes.contains_key(&a.place));
    }
}

impl Lane {
    fn is_of_source(&self) -> bool {
        self.topic.is_some()
    }

    fn take(&mut self, slots: &[Slot], hands: &Hands<'_>) {
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
    fn pass_over(&mut self, to: u64, now: Time) {
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
