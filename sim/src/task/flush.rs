//! From what was read to a commit: cut, put onto disks, proposed until it is decided.

use super::lane::epoch_after;
use super::{Contents, Hands, Row, Task, Wish};
use crate::mutant::Mutant;
use crate::time::{MS, Time};
use std::collections::BTreeMap;
use tidemill_core::catalog::{Holder, PartFile};
use tidemill_core::command::{CommitPart, Outcome, Refusal};
use tidemill_core::{CommitId, PartId, PipeId, SchemaVersion, Span, SpanKey};

/// How long files are waited for before they are put once more.
const PUT_AGAIN: Time = 700 * MS;
/// How long a commit waits for replicas that may still answer, when enough have.
const GRACE: Time = 15 * MS;
/// The pause before a command is proposed again.
const AGAIN: Time = 40 * MS;

/// Files, each with the pipe whose rejects are in it, if it holds rejects.
type Written = Vec<(Option<PipeId>, PartFile)>;

/// How far the commit of what was cut is.
#[derive(Clone, Debug)]
pub(super) enum Stage {
    Idle,
    /// The files are being put onto disks.
    Putting {
        files: Written,
        spans: Vec<Span>,
        holders: BTreeMap<PartId, Vec<Holder>>,
        put_at: Time,
        began: Time,
    },
    /// The commit is proposed, and proposed again until it is decided.
    Committing {
        commit: Box<CommitPart>,
        files: Written,
        asked: bool,
        again_at: Time,
    },
}

impl Stage {
    fn put(files: Written, spans: Vec<Span>, now: Time) -> Self {
        Stage::Putting {
            files,
            spans,
            holders: BTreeMap::new(),
            put_at: now,
            began: now,
        }
    }
}

impl Task {
    pub(super) fn is_due(&self, now: Time) -> bool {
        let mut fresh = self.lanes.values().flat_map(|lane| &lane.fresh);
        let awaited = !self.awaiting.is_empty();
        fresh.any(|piece| self.hurry || self.hurry_once || awaited || piece.at + self.flush_age <= now)
    }

    pub(super) fn cut(&mut self, hands: &mut Hands<'_>, wishes: &mut Vec<Wish>) {
        for lane in self.lanes.values_mut() {
            lane.frozen = std::mem::take(&mut lane.fresh);
        }
        self.hurry_once = false;
        self.recut(hands, wishes);
    }

    /// Makes files of what is frozen, and has them put.
    fn recut(&mut self, hands: &mut Hands<'_>, wishes: &mut Vec<Wish>) {
        let Some(epoch) = self.epoch else {
            return;
        };
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
        let mut files = Written::new();
        let of_rows = (!rows.is_empty()).then_some((None, rows));
        for (pipe, rows) in of_rows
            .into_iter()
            .chain(rejects.into_iter().map(|(pipe, rows)| (Some(pipe), rows)))
        {
            let id = PartId((hands.id)());
            let file = PartFile {
                id,
                path: format!("{}/{epoch}/{id}", self.shard),
                rows: rows.len() as u64,
                bytes: rows.len() as u64,
                checksum: id.0 as u64,
                partition_value: None,
                ranges: vec![],
            };
            let of = (self.shard, epoch);
            hands.files.insert(id, Contents { of, rows });
            wishes.push(Wish::Put(id));
            files.push((pipe, file));
        }
        self.stage = Stage::put(files, spans, hands.now);
    }

    pub(super) fn carry_on(&mut self, hands: &mut Hands<'_>, wishes: &mut Vec<Wish>) {
        let (shard, now) = (self.shard, hands.now);
        let Some(epoch) = self.epoch else {
            return;
        };
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
                        files: std::mem::take(files),
                        asked: true,
                        again_at: now,
                    };
                    self.forget_too_early(hands);
                } else if *put_at + PUT_AGAIN <= now {
                    *put_at = now;
                    wishes.extend(files.iter().map(|(_, file)| Wish::Put(file.id)));
                }
            }
            Stage::Committing {
                commit,
                asked,
                again_at,
                ..
            } => {
                if !*asked && *again_at <= now {
                    *asked = true;
                    wishes.push(Wish::Commit((**commit).clone()));
                }
            }
        }
    }

    /// The outstanding cut is in committed parts: its pieces go.
    fn forget_cut(&mut self) {
        for lane in self.lanes.values_mut() {
            if let Some(last) = lane.frozen.last() {
                lane.from = last.span.end.0;
                lane.before = epoch_after(lane.before, &lane.frozen);
                lane.frozen.clear();
            }
        }
    }

    /// What must not be done before a commit is known to be there: broken on purpose.
    fn forget_too_early(&mut self, hands: &mut Hands<'_>) {
        if hands.mutant == Some(Mutant::TrimsBeforeCommit) {
            for ((pipe, partition), lane) in &self.lanes {
                if let Some(last) = lane.frozen.last() {
                    hands.wal.trim((self.shard, *pipe, *partition), lane.key, last.span.end);
                }
            }
        }
        if hands.mutant == Some(Mutant::MemtableIsDroppedEarly) {
            self.forget_cut();
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
            files,
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
            None if hands.mutant == Some(Mutant::FilesAreWrittenAgain) => {
                // With what has come meanwhile, under the same name.
                let fresh = self.lanes.values().flat_map(|lane| &lane.fresh);
                let more: Vec<Row> = fresh.flat_map(|piece| piece.rows.iter().copied()).collect();
                let file = files.first().and_then(|(_, file)| hands.files.get_mut(&file.id));
                file.into_iter().for_each(|file| file.rows.extend_from_slice(&more));
                (*asked, *again_at) = (false, hands.now + AGAIN);
                return wishes;
            }
            None => {
                (*asked, *again_at) = (false, hands.now + AGAIN);
                return wishes;
            }
            Some(Ok(_)) | Some(Err(Refusal::AlreadyCommitted(_))) => Ok(()),
            Some(Err(Refusal::Spans(_))) if hands.mutant == Some(Mutant::RefusedSpansAreTakenForDone) => Ok(()),
            Some(Err(refusal)) => Err(refusal),
        };
        match known {
            Ok(()) => {
                self.stage = Stage::Idle;
                self.forget_cut();
                self.answer_awaiting(&mut wishes);
            }
            Err(Refusal::Spans(refused)) => {
                let keys: Vec<SpanKey> = refused.iter().map(|(key, _)| *key).collect();
                self.lanes.retain(|_, lane| !keys.contains(&lane.key));
                self.dropped = true;
                self.recut(hands, &mut wishes);
            }
            Err(Refusal::TooFewHolders { .. }) => {
                // Replicas came or went since: put the same files where they are wanted now.
                wishes.extend(files.iter().map(|(_, file)| Wish::Put(file.id)));
                self.stage = Stage::put(std::mem::take(files), commit.spans.clone(), hands.now);
            }
            Err(_) => {
                self.ended = true;
                self.lanes.clear();
            }
        }
        wishes
    }
}
