//! What must hold, whatever happens: checked after every command, at every query, and at the end.

use crate::client::TOPIC;
use crate::node::index_of;
use crate::seeds::Violation;
use crate::source::{RecordId, Slot, Topic};
use crate::task::{Files, PinnedLane, Row};
use crate::time::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tidemill_core::catalog::*;
use tidemill_core::command::CommitPart;
use tidemill_core::invariants::{check_state, check_step};
use tidemill_core::view::{CatalogRead, MemView};
use tidemill_core::{Epoch, ShardId};

/// Rows of which a program was told that they are there.
#[derive(Clone, Debug)]
pub struct Promise {
    /// What the program had asked for.
    pub acks: Acks,
    /// Which node has said so, and in which epoch it led.
    pub node: usize,
    /// See there.
    pub epoch: Option<Epoch>,
    /// The shard.
    pub shard: ShardId,
    /// How often its log had been lost by then.
    pub wipes: u64,
    /// The number of the first.
    pub first: u64,
    /// The rows.
    pub rows: Vec<RecordId>,
}

/// A row that was acknowledged before it was committed.
#[derive(Clone, Copy, Debug)]
pub struct Early {
    /// By whom.
    pub node: usize,
    /// Of which shard.
    pub shard: ShardId,
    /// In which epoch that one led.
    pub epoch: Option<Epoch>,
    /// When.
    pub at: Time,
    /// How often the log of that node had been lost by then.
    pub wipes: u64,
    /// Whether it was in the log.
    pub logged: bool,
    /// Whether it is counted as lost.
    pub passed: bool,
}

/// What was seen so far.
#[derive(Debug, Default)]
pub struct Oracle {
    /// Committed rows that a finished query has shown, and that nobody has deleted since, in order.
    seen: Vec<RecordId>,
    /// Rows that a program was told are committed.
    acknowledged: BTreeSet<RecordId>,
    /// Rows that a program was told are in a log, or in memory.
    pub early: BTreeMap<RecordId, Early>,
    /// Records that operators had skipped or deleted; they may be missing.
    pub given_up: BTreeSet<RecordId>,
    leaders: BTreeMap<(ShardId, Epoch), tidemill_core::NodeId>,
}

/// A query that has everything that it needs.
pub struct Answer<'a> {
    /// Its snapshot of the catalog.
    pub state: &'a MemView,
    /// What the leaders had in memory, and in which epoch they led.
    pub pins: &'a BTreeMap<ShardId, (Epoch, Vec<PinnedLane>)>,
    /// Whether rows in memory are used that are committed by now: broken on purpose.
    pub uncut: bool,
    /// Whether nobody compares epochs: broken on purpose.
    pub serves: bool,
    /// When it was asked.
    pub begun: Time,
}

impl Oracle {
    /// Two states that follow each other.
    ///
    /// # Errors
    /// The first thing that is broken.
    pub fn step(&mut self, before: &MemView, after: &MemView) -> Result<(), Violation> {
        // A refusal, or what was so already.
        if before.digest()? == after.digest()? {
            return Ok(());
        }
        let found = check_step(before, after)?.into_iter().chain(check_state(after)?).next();
        if let Some(broken) = found {
            return Err(Violation::new(broken.invariant, broken.found));
        }
        for shard in after.all::<Shard>(&[])? {
            let Some(leader) = shard.leader else { continue };
            let known = *self.leaders.entry((shard.id, shard.epoch)).or_insert(leader);
            if known != leader {
                let what = format!("{leader} and {known} lead shard {} in epoch {}", shard.id, shard.epoch);
                return Err(Violation::new("OWN-1", what));
            }
        }
        Ok(())
    }

    /// A commit that was taken: what the catalog has to check, found out in another way, and whether it accounts truly for what
    /// lay in the source.
    ///
    /// # Errors
    /// What should have been refused.
    pub fn check_commit(
        &self,
        commit: &CommitPart,
        before: &MemView,
        files: &Files,
        topic: &Topic,
    ) -> Result<(), Violation> {
        let shard = before.find::<Shard>(&commit.shard)?;
        if shard.is_none_or(|shard| shard.epoch != commit.epoch || shard.leader.is_none()) {
            let what = format!("a commit of epoch {} is taken for shard {}", commit.epoch, commit.shard);
            return Err(Violation::new("OWN-1", what));
        }
        let rows: BTreeSet<(u32, u64)> = commit
            .files()
            .filter_map(|file| files.get(&file.id))
            .flat_map(|contents| contents.rows.iter().map(|row| (row.partition.0, row.offset)))
            .collect();
        for span in &commit.spans {
            let (key, start) = (span.key, span.start);
            let p = before.find::<SourcePartition>(&(key.pipe, key.partition))?;
            if p.is_none_or(|p| p.offset != start || p.incarnation != key.incarnation) {
                return Err(Violation::new(
                    "OFF-1",
                    format!("a commit of {key:?} is taken from {start} on"),
                ));
            }
            let Some(log) = topic.logs.get(key.partition.0 as usize) else {
                continue;
            };
            if span.topic != Some(topic.id) {
                continue;
            }
            for offset in start.0..span.end.0 {
                // What lies there now is what was read, unless the log was cut in between.
                let same = span.source_epoch.is_none_or(|epoch| log.epoch_of(offset) <= epoch);
                if same
                    && let Some(Slot::Record { id, .. }) = log.slot(offset)
                    && !rows.contains(&(key.partition.0, offset))
                {
                    let what = format!("{key:?} passes over record {id} at offset {offset} as if there were none");
                    return Err(Violation::new("LED-1", what));
                }
            }
        }
        Ok(())
    }

    /// A row that was acknowledged and is not there, if there is one.
    ///
    /// # Errors
    /// DUR-1: that row.
    pub fn check_acknowledged(&self, state: &MemView, files: &Files) -> Result<(), Violation> {
        let ids = sorted(&committed_rows(state, files)?);
        // What was acknowledged earlier is there, or counted as lost, and never both.
        let wrong = |(id, early): &(&RecordId, &Early)| ids.binary_search(id).is_ok() == early.passed;
        if let Some((id, early)) = self.early.iter().find(wrong) {
            let what = format!("row {id} was acknowledged, {early:?}, and is there: {}", early.passed);
            return Err(Violation::new("DUR-1", what));
        }
        match self.acknowledged.iter().find(|id| ids.binary_search(id).is_err()) {
            Some(id) => Err(Violation::new(
                "DUR-1",
                format!("row {id} was acknowledged and is missing"),
            )),
            None => Ok(()),
        }
    }

    /// A program was told that these rows are committed.
    pub fn acknowledge(&mut self, rows: impl Iterator<Item = RecordId>) {
        self.acknowledged.extend(rows);
    }

    /// Rows were deleted by command: what was seen before says nothing any more.
    pub fn forget_seen(&mut self) {
        self.seen.clear();
    }

    /// What a query shows. Gives how many rows, or nothing if it has to be asked again.
    ///
    /// # Errors
    /// QRY-1: a row twice, a row that nobody wrote, or one that was there before and is missing.
    pub fn query(
        &mut self,
        answer: &Answer<'_>,
        files: &Files,
        aborted: &BTreeSet<RecordId>,
    ) -> Result<Option<usize>, Violation> {
        let committed = committed_rows(answer.state, files)?;
        let mut shown: Vec<Row> = committed.iter().filter(|row| !row.rejected).copied().collect();
        for shard in answer.state.all::<Shard>(&[])? {
            let Some((epoch, lanes)) = answer.pins.get(&shard.id) else {
                return Ok(None);
            };
            if *epoch != shard.epoch && !answer.serves {
                return Ok(None);
            }
            for lane in lanes {
                let place = (lane.key.pipe, lane.key.partition);
                let Some(p) = answer.state.find::<SourcePartition>(&place)? else {
                    continue;
                };
                if p.incarnation != lane.key.incarnation {
                    continue;
                }
                if lane.from > p.offset.0 {
                    let what = format!(
                        "of {:?} {} is committed in the snapshot, and the leader has forgotten what is below {}",
                        lane.key, p.offset, lane.from
                    );
                    return Err(Violation::new("QRY-1", what));
                }
                let is_beyond = |row: &&Row| (row.offset >= p.offset.0 || answer.uncut) && !row.rejected;
                let beyond = lane.rows.iter().filter(is_beyond);
                shown.extend(beyond.copied());
            }
        }
        let ids = distinct(&shown)?;
        if let Some(id) = ids.iter().find(|id| aborted.contains(id)) {
            return Err(Violation::new(
                "phantom",
                format!("record {id} was never committed to the source"),
            ));
        }
        self.check_early(answer, &ids)?;
        let now = sorted(&committed);
        let mut there = now.iter().peekable();
        let mut is_there = |id: &RecordId| {
            while there.next_if(|there| *there < id).is_some() {}
            there.peek() == Some(&id)
        };
        if let Some(id) = self.seen.iter().find(|id| !is_there(id)) {
            let what = format!("record {id} was there and is missing now");
            return Err(Violation::new("QRY-1", what));
        }
        self.seen = now;
        Ok(Some(ids.len()))
    }

    /// QRY-1: what a leader has acknowledged from its log before somebody asked is shown as long as it leads.
    fn check_early(&self, answer: &Answer<'_>, shown: &[RecordId]) -> Result<(), Violation> {
        let shards = answer.state.all::<Shard>(&[])?;
        for (id, early) in &self.early {
            let leads = |shard: &Arc<Shard>| {
                let leader = shard.leader.map(index_of);
                leader == Some(early.node) && Some(shard.epoch) == early.epoch
            };
            let promised = early.logged && !early.passed && early.at < answer.begun;
            if promised
                && shards.iter().filter(|shard| shard.id == early.shard).any(leads)
                && shown.binary_search(id).is_err()
            {
                let what = format!("row {id} is not shown, and its leader has acknowledged it: {early:?}");
                return Err(Violation::new("QRY-1", what));
            }
        }
        Ok(())
    }

    /// The end, when all is well again: every record that can be read is there once, and what was acknowledged.
    ///
    /// # Errors
    /// What is there twice, is missing, or was never written.
    pub fn finish(&self, state: &MemView, files: &Files, topic: &Topic) -> Result<u64, Violation> {
        let rows = committed_rows(state, files)?;
        let ids = distinct(&rows)?;
        let has = |id: RecordId| ids.binary_search(&id).is_ok();
        let rejected: BTreeSet<RecordId> = rows.iter().filter(|row| row.rejected).map(|row| row.id).collect();
        for (partition, log) in topic.logs.iter().enumerate() {
            for offset in log.low..log.high() {
                let is_blind =
                    |(blind, offsets): &(usize, std::ops::Range<u64>)| *blind == partition && offsets.contains(&offset);
                if topic.blind.iter().any(is_blind) {
                    continue;
                }
                match log.slot(offset) {
                    Some(Slot::Record { id, bad }) => {
                        if !has(id) && !self.given_up.contains(&id) && !topic.excused.contains(&id) {
                            let what = format!("record {id} at offset {offset} of partition {partition} is missing");
                            return Err(Violation::new("lost", what));
                        }
                        if has(id) && bad != rejected.contains(&id) {
                            let what = format!("record {id} is bad: {bad}, and was taken for the other");
                            return Err(Violation::new("lost", what));
                        }
                    }
                    Some(Slot::Aborted(id)) if has(id) => {
                        let what = format!("record {id} at offset {offset} of partition {partition} was aborted");
                        return Err(Violation::new("phantom", what));
                    }
                    _ => {}
                }
            }
        }
        self.check_acknowledged(state, files)?;
        Ok(ids.len() as u64)
    }
}

fn sorted(rows: &[Row]) -> Vec<RecordId> {
    let mut ids: Vec<RecordId> = rows.iter().map(|row| row.id).collect();
    ids.sort_unstable();
    ids
}

/// The ids of all committed rows, in order.
///
/// # Errors
/// See [`committed_rows`].
pub fn committed_ids(state: &MemView, files: &Files) -> Result<Vec<RecordId>, Violation> {
    Ok(sorted(&committed_rows(state, files)?))
}

/// The ids of `rows` in order, each of which must be there once.
fn distinct(rows: &[Row]) -> Result<Vec<RecordId>, Violation> {
    let ids = sorted(rows);
    match ids.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => {
            let row = rows.iter().rfind(|row| row.id == pair[0]);
            let what = format!("record {} is there twice, once as {row:?}", pair[0]);
            Err(Violation::new("duplicate", what))
        }
        None => Ok(ids),
    }
}

/// The rows and rejects that are committed in `state`, without those that were deleted.
pub fn committed_rows(state: &MemView, files: &Files) -> Result<Vec<Row>, Violation> {
    let (parts, rejects) = (state.all::<Part>(&[])?, state.all::<RejectPart>(&[])?);
    let parts = parts.iter().map(|p| (&p.file, p.version, p.shard));
    let all = parts.chain(rejects.iter().map(|p| (&p.file, p.version, p.shard)));
    let (tables, pipes) = (state.all::<Table>(&[])?, state.all::<Pipe>(&[])?);
    let mut rows = Vec::new();
    for (file, version, shard) in all {
        let Some(contents) = files.get(&file.id) else {
            return Err(Violation::new("CAT-1", format!("nobody has written {}", file.path)));
        };
        if contents.rows.len() as u64 != file.rows {
            return Err(Violation::new(
                "CAT-1",
                format!("{} holds other than it says", file.path),
            ));
        }
        let deletions = tables.iter().filter(|t| t.id == shard.table).flat_map(|t| &t.deleted);
        let deletions: Vec<&DeletedRows> = deletions.filter(|d| d.version >= version).collect();
        if deletions.is_empty() {
            rows.extend_from_slice(&contents.rows);
            continue;
        }
        let is_deleted = |row: &Row| {
            let pipe = pipes.iter().find(|pipe| pipe.id == row.pipe);
            // Rows know their topic by name, whatever became of their pipe.
            let topic = pipe.map_or(TOPIC, |pipe| pipe.source.topic());
            deletions.iter().any(|d| {
                let from = d.from.get(&row.partition);
                d.topic == topic && from.is_some_and(|from| row.offset >= from.0)
            })
        };
        rows.extend(contents.rows.iter().filter(|row| !is_deleted(row)).copied());
    }
    Ok(rows)
}
