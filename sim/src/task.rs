//! The task of a shard: reads the source, keeps what is not committed, makes it durable, commits it.
//!
//! A model of `ingest/src/task.rs`, `writer.rs` and `storage/src/memtable.rs`, with their rules in their order. What it
//! leaves out is how rows look, how files are written, and how long anything takes.

mod direct;
mod flush;
mod lane;
mod standby;

pub use direct::{Answer, Awaiting, Incoming, Taken};
pub use lane::Piece;

use crate::mutant::Mutant;
use crate::source::{Loss, RecordId, Slot, Topic};
use crate::time::{MS, Time};
use crate::wal::Wal;
use flush::Stage;
use lane::Lane;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tidemill_core::catalog::{Pipe, PipeState, SourcePartition, Table, WalMode, Writer};
use tidemill_core::command::{CommitPart, StopPartition};
use tidemill_core::stop::StopReason;
use tidemill_core::tail::Tail;
use tidemill_core::{Epoch, Offset, PartId, PartitionId, PipeId, ShardId, SpanKey};

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

/// What the catalog says of a pipe that fills the table.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The pipe.
    pub pipe: Arc<Pipe>,
    /// Its partitions of this shard.
    pub partitions: Vec<Arc<SourcePartition>>,
    /// The programs that write to it, if it is theirs.
    pub writers: Vec<Arc<Writer>>,
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
    /// A program told what came of its rows.
    Answer((usize, u64), Answer),
}

/// Files that tasks have written, by id: what was put is what is there.
pub type Files = BTreeMap<PartId, Contents>;

/// See the module's page.
#[derive(Clone, Debug)]
pub struct Task {
    /// The shard.
    pub shard: ShardId,
    /// The epoch in which it leads; none while it stands by.
    pub epoch: Option<Epoch>,
    /// Whether it was fenced.
    pub ended: bool,
    /// How many histories it has begun with what was in the log, since somebody looked.
    pub replayed: u64,
    lanes: BTreeMap<(PipeId, PartitionId), Lane>,
    stage: Stage,
    stops: VecDeque<(SpanKey, StopReason)>,
    stopping: Option<(StopPartition, Time)>,
    hurry: bool,
    /// Everything is committed soon, once.
    hurry_once: bool,
    dropped: bool,
    flush_age: Time,
    /// Whether its table has a write-ahead log.
    logs: bool,
    awaiting: Vec<Awaiting>,
    /// Partitions of writers that stay closed for the moment.
    held: BTreeSet<(PipeId, PartitionId)>,
    /// Histories that only a log can continue, with the oldest offset that the source still had.
    expired: BTreeMap<SpanKey, Offset>,
    tail: Tail<Duration>,
    pipes: BTreeMap<PipeId, Arc<Pipe>>,
}

/// What a task may use for a moment.
pub struct Hands<'h> {
    /// The time.
    pub now: Time,
    /// The source.
    pub topic: &'h Topic,
    /// All files.
    pub files: &'h mut Files,
    /// The log of the node.
    pub wal: &'h mut Wal,
    /// Whether the disk of the node is full.
    pub full: bool,
    /// Whether the node does not reach the brokers.
    pub reads_nothing: bool,
    /// Ids that nobody else has.
    pub id: &'h mut dyn FnMut() -> u128,
    /// How it is broken, if it is.
    pub mutant: Option<Mutant>,
}

impl Task {
    /// A task that has read nothing; without an epoch it stands by.
    pub fn new(shard: ShardId, epoch: Option<Epoch>, flush_age: Time) -> Self {
        Self {
            shard,
            epoch,
            ended: false,
            replayed: 0,
            lanes: BTreeMap::new(),
            stage: Stage::Idle,
            stops: VecDeque::new(),
            stopping: None,
            hurry: false,
            hurry_once: false,
            dropped: false,
            flush_age,
            logs: false,
            awaiting: Vec::new(),
            held: BTreeSet::new(),
            expired: BTreeMap::new(),
            tail: Tail::default(),
            pipes: BTreeMap::new(),
        }
    }

    /// Makes it read what the catalog says: the pipes into its table that are not paused, each with its partitions of this shard.
    pub fn reconcile(&mut self, table: &Table, wanted: Vec<Wanted>, hands: &mut Hands<'_>) {
        self.logs = table.settings.wal == WalMode::Local;
        let wanted = match self.epoch {
            Some(_) => wanted,
            None => self.worth_tailing(wanted, hands.now),
        };
        let open: BTreeSet<SpanKey> = self.lanes.values().map(|lane| lane.key).collect();
        let stays = |p: &&Arc<SourcePartition>| p.stop.as_ref().is_none_or(|stop| !stop.reason.drops_what_was_read());
        let kept = wanted.iter().flat_map(|w| w.partitions.iter().filter(stays));
        let kept: BTreeSet<_> = kept.map(|p| (p.pipe, p.partition)).collect();
        self.lanes.retain(|place, _| kept.contains(place));
        (self.hurry, self.dropped) = (false, false);
        self.expired.clear();
        for wanted in wanted {
            let pipe = wanted.pipe.clone();
            if pipe.source.kafka().is_none() {
                self.admit(&wanted, table.shards, &open, hands);
                continue;
            }
            if self.epoch.is_some() {
                self.keep_expired(&wanted, &open, hands);
            }
            if pipe.state != PipeState::Running {
                self.hurry |= open.iter().any(|key| key.pipe == pipe.id);
                let of_pipe = self.lanes.values_mut().filter(|lane| lane.key.pipe == pipe.id);
                of_pipe.for_each(|lane| lane.reads = false);
                continue;
            }
            for p in &wanted.partitions {
                self.read_on(p, &open, hands);
            }
        }
    }

    /// Has a partition of a pipe that runs read, if it may be.
    fn read_on(&mut self, p: &SourcePartition, open: &BTreeSet<SpanKey>, hands: &mut Hands<'_>) {
        let reads = p.stop.is_none() && !p.is_complete();
        if reads && !open.contains(&p.key()) {
            self.open(p, true, hands);
        }
        let stopping = self.stopping.as_ref().map(|(stop, _)| stop.key);
        let lane = self.lanes.get_mut(&(p.pipe, p.partition));
        if let Some(lane) = lane.filter(|lane| lane.key == p.key()) {
            let found = self.stops.iter().any(|(key, _)| *key == lane.key) || stopping == Some(lane.key);
            lane.reads = reads && !found;
            lane.topic = lane.topic.or(p.topic);
        }
    }

    /// Begins a history, with what the log has of it.
    fn open(&mut self, p: &SourcePartition, shows: bool, hands: &mut Hands<'_>) {
        let mut lane = Lane::opened(p, shows);
        if self.epoch.is_some() {
            let (mut pieces, mut unused) = hands.wal.recover(self.shard, p.key(), p.offset);
            let again = !p.has_expired();
            let other = |piece: &Piece| piece.span.is_of_another_log(p.source_epoch, again);
            if pieces.first().is_some_and(other) && hands.mutant != Some(Mutant::ReplayIgnoresTheEpoch) {
                hands.wal.drop_lane((self.shard, p.pipe, p.partition));
                (pieces, unused) = Default::default();
            }
            self.replayed += u64::from(!pieces.is_empty());
            for mut piece in pieces {
                piece.at = hands.now;
                lane.append(piece);
            }
            // Before new offsets are appended, so that what is left over never fills a hole among them.
            hands.wal.forget(&unused);
        }
        self.lanes.insert((p.pipe, p.partition), lane);
    }

    /// Keeps open what has expired: only a log can continue it.
    fn keep_expired(&mut self, wanted: &Wanted, open: &BTreeSet<SpanKey>, hands: &mut Hands<'_>) {
        for (p, earliest) in wanted
            .partitions
            .iter()
            .filter_map(|p| p.expired_until().map(|earliest| (p, earliest)))
        {
            if !open.contains(&p.key()) {
                self.open(p, true, hands);
            }
            self.expired.insert(p.key(), earliest);
            let lane = self.lanes.get(&(p.pipe, p.partition));
            self.hurry |= lane.is_some_and(|lane| lane.from < lane.to);
        }
    }

    /// The numbers of the rows that it has of a partition, if there are any.
    pub fn has_rows_of(&self, place: (PipeId, PartitionId)) -> Option<(u64, u64)> {
        let lane = self.lanes.get(&place).filter(|lane| lane.from < lane.to && !self.ended);
        lane.map(|lane| (lane.from, lane.to))
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
        if self.epoch.is_none() {
            return wishes;
        }
        self.stop(hands.now, hands.mutant, &mut wishes);
        if matches!(self.stage, Stage::Idle) && self.is_due(hands.now) {
            self.cut(hands, &mut wishes);
        }
        self.carry_on(hands, &mut wishes);
        self.answer_awaiting(&mut wishes);
        wishes
    }

    fn read(&mut self, hands: &mut Hands<'_>) {
        let epoch = self.epoch;
        let to_log = epoch.filter(|_| self.logs);
        let mut lost = Vec::new();
        for lane in self
            .lanes
            .values_mut()
            .filter(|lane| lane.reads && !hands.topic.down && !hands.reads_nothing)
        {
            // Memory is bounded: so is what is read ahead.
            if lane.to - lane.from > 60 || (to_log.is_some() && hands.full) {
                continue;
            }
            let partition = lane.key.partition.0 as usize;
            let known = lane.topic.filter(|_| hands.mutant != Some(Mutant::OtherTopicIsRead));
            let compared = lane.epoch.filter(|_| hands.mutant != Some(Mutant::CutLogIsRead));
            match hands.topic.read(partition, lane.to, compared, known, RUN) {
                Ok(slots) if slots.is_empty() => {}
                Ok(slots) if hands.mutant == Some(Mutant::GapsWedge) && slots.contains(&Slot::Gone) => {
                    lane.reads = false
                }
                Ok(slots) => {
                    let piece = lane.decode(&slots, hands);
                    if let Some(epoch) = to_log {
                        hands.wal.append(self.shard, epoch, piece.clone());
                        hands.wal.sync();
                    }
                    lane.append(piece);
                }
                Err(loss) => {
                    lane.reads = false;
                    if let Loss::Expired { earliest } = loss {
                        let to = match hands.mutant {
                            Some(Mutant::ResetsToEarliest) => Some(earliest),
                            Some(Mutant::ResetsToLatest) => Some(hands.topic.logs[partition].high()),
                            _ => None,
                        };
                        if let Some(to) = to {
                            lane.pass_over(to, hands.now);
                            continue;
                        }
                    }
                    lost.push((lane.key, reason(loss)));
                }
            }
        }
        for (key, reason) in lost {
            // A standby's place is not the leader's: whoever leads finds what is to be found at the committed offset.
            if epoch.is_none() || reason.drops_what_was_read() {
                self.lanes.remove(&(key.pipe, key.partition));
            }
            if epoch.is_some() {
                self.stops.push_back((key, reason));
            }
        }
    }

    fn stop(&mut self, now: Time, mutant: Option<Mutant>, wishes: &mut Vec<Wish>) {
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
        let stop = StopPartition {
            key,
            epoch: self.epoch.filter(|_| mutant != Some(Mutant::StopsAreNotFenced)),
            reason,
        };
        self.stopping = Some((stop.clone(), now + 2_000 * MS));
        wishes.push(Wish::Stop(stop));
    }

    /// What came of a stop.
    pub fn stop_decided(&mut self, key: SpanKey, known: bool) {
        if known && self.stopping.as_ref().is_some_and(|(stop, _)| stop.key == key) {
            self.stopping = None;
        }
    }

    /// What is not committed, as a query sees it; nothing while it stands by.
    pub fn pin(&self) -> Option<(Epoch, Vec<PinnedLane>)> {
        let pin = |lane: &Lane| {
            let pieces = lane.frozen.iter().chain(&lane.fresh).filter(|_| lane.shows);
            PinnedLane {
                key: lane.key,
                from: lane.from,
                rows: pieces.flat_map(|piece| piece.rows.iter().copied()).collect(),
            }
        };
        Some((self.epoch?, self.lanes.values().map(pin).collect()))
    }
}

fn reason(loss: Loss) -> StopReason {
    match loss {
        Loss::Expired { earliest } => StopReason::Expired {
            earliest: Offset(earliest),
        },
        Loss::Truncated { diverged, epoch } => StopReason::Truncated {
            diverged: Some(Offset(diverged)),
            epoch,
        },
        Loss::EndBelow { end } => StopReason::EndBelow { end: Offset(end) },
        Loss::Recreated(topic) => StopReason::TopicRecreated { topic, known_end: None },
    }
}
