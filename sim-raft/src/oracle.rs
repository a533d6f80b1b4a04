//! What must hold, whatever happens. It sees every append and every apply of every node, and every answer that a client got, and
//! knows the one log that all of them must have.

use crate::disk::CatalogState;
use crate::types::{Entry, LogId, Reply};
use openraft::EntryPayload;
use std::collections::BTreeMap;
use tidemill_core::command::{Command, Refusal};
use tidemill_core::invariants::{check_state, check_step};
use tidemill_core::view::{CatalogRead, MemView, Overlay};
use tidemill_core::{CommitId, Outcome, Version};
use tidemill_sim::seeds::Violation;

/// How often the whole state is checked; every step is.
const STATE_EVERY: u64 = 16;

/// Who leads in a term of office.
pub(crate) type LeaderId = openraft::type_config::alias::LeaderIdOf<crate::types::TypeConfig>;

/// An entry that some node has applied, which is final.
struct Committed {
    entry: Entry,
    reply: Reply,
    /// Of the catalog behind it.
    digest: u128,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Oracle {
    /// By index, from 0 on.
    log: Vec<Committed>,
    state: MemView,
    /// Every entry that was ever in a log, and the one before it there.
    appended: BTreeMap<LogId, (Entry, Option<LogId>)>,
    /// Which run of which machine won each election.
    elected: BTreeMap<LeaderId, (u64, u64)>,
    /// How often each proposal is in the log, by its number.
    times: BTreeMap<i64, u64>,
    /// How often each may be.
    allowed: BTreeMap<i64, u64>,
    /// The greatest version that anybody was told of.
    told: u64,
    refused: BTreeMap<CommitId, u64>,
    taken: BTreeMap<CommitId, u64>,
}

type Checked = Result<(), Violation>;

impl Oracle {
    /// How many entries were committed, and how many elections won.
    pub fn counts(&self) -> (u64, u64) {
        (self.log.len() as u64, self.elected.len() as u64)
    }

    /// The position of the newest entry that some node has applied.
    pub fn tip(&self) -> Option<LogId> {
        self.log.last().map(|last| last.entry.log_id)
    }

    /// A node, in one run of its process, appends to its log. Says if this shows that it has been elected.
    pub fn appended(
        &mut self,
        writer: (u64, u64),
        office: Option<LeaderId>,
        before: Option<LogId>,
        entries: &[Entry],
    ) -> (Checked, Option<LeaderId>) {
        let mut previous = before;
        let mut elected = None;
        for entry in entries {
            let id = entry.log_id;
            // By its vote: what it wrote in an earlier office, and has lost, may come back to it from another leader.
            let leads = id.leader_id.node_id == writer.0 && id.leader_id.term > 0 && office == Some(id.leader_id);
            if leads && previous.is_none_or(|previous| previous.leader_id != id.leader_id) {
                elected = Some(id.leader_id);
                if let Err(violation) = self.elect(id.leader_id, writer, previous) {
                    return (Err(violation), elected);
                }
            }
            let known = self.appended.entry(id).or_insert_with(|| (entry.clone(), previous));
            if known.0 != *entry || known.1 != previous {
                let found = format!(
                    "node {}: {entry:?} behind {previous:?} is elsewhere {known:?}",
                    writer.0
                );
                return (
                    Err(Violation::new(
                        "LOG-1: two logs with the same entry are the same up to it",
                        found,
                    )),
                    elected,
                );
            }
            previous = Some(id);
        }
        (Ok(()), elected)
    }

    fn elect(&mut self, leader: LeaderId, writer: (u64, u64), last: Option<LogId>) -> Checked {
        let first = *self.elected.entry(leader).or_insert(writer);
        if first != writer {
            let found = format!("{leader} was won by {first:?} and by {writer:?}");
            return Err(Violation::new("LEAD-1: an election is won once", found));
        }
        // What an older leader has committed is in the log of whoever is elected after it.
        let older = self
            .log
            .iter()
            .rev()
            .find(|committed| committed.entry.log_id.leader_id < leader);
        if let Some(older) = older.filter(|older| last < Some(older.entry.log_id)) {
            let found = format!(
                "{leader} has entries up to {last:?}, committed is {}",
                older.entry.log_id
            );
            return Err(Violation::new("LEAD-2: a leader has all that is committed", found));
        }
        Ok(())
    }

    /// A node has applied entries. Says how many of them are new to all.
    pub fn applied(&mut self, entries: &[Entry], replies: &[Reply], view: &MemView) -> Result<usize, Violation> {
        let mut new = 0;
        for (entry, reply) in entries.iter().zip(replies) {
            let index = entry.log_id.index as usize;
            if index == self.log.len() {
                self.commit(entry)?;
                new += 1;
            }
            let Some(known) = self.log.get(index) else {
                let found = format!("{} is applied, and nobody has {}", entry.log_id, self.log.len());
                return Err(Violation::new(
                    "SM-1: every entry is applied, in the order of the log",
                    found,
                ));
            };
            if known.entry != *entry {
                let found = format!("{entry:?} is applied, elsewhere {:?}", known.entry);
                return Err(Violation::new(
                    "SM-2: what is committed is never lost and never changes",
                    found,
                ));
            }
            if known.reply != *reply {
                let found = format!("{}: {reply:?}, elsewhere {:?}", entry.log_id, known.reply);
                return Err(Violation::new("REP: the same log gives the same catalog", found));
            }
        }
        let last = entries.last().and_then(|last| self.log.get(last.log_id.index as usize));
        if let Some(last) = last {
            same(last, view.digest()?)?;
        }
        Ok(new)
    }

    /// A snapshot has taken the place of a node's catalog.
    pub fn installed(&self, state: &CatalogState) -> Checked {
        self.stands(state.applied, &state.view)
    }

    /// Whether a catalog is what it must be at its position.
    pub fn stands(&self, at: Option<LogId>, view: &MemView) -> Checked {
        let Some(at) = at else {
            return Ok(());
        };
        match self.log.get(at.index as usize).filter(|known| known.entry.log_id == at) {
            Some(known) => same(known, view.digest()?),
            None => Err(Violation::new(
                "SM-2: what is committed is never lost and never changes",
                format!("a catalog stands at {at}, which nobody has applied"),
            )),
        }
    }

    /// An entry is applied for the first time anywhere.
    fn commit(&mut self, entry: &Entry) -> Checked {
        let version = entry.log_id.index;
        let mut reply = Reply(None);
        if let EntryPayload::Normal(logged) = &entry.payload {
            *self.times.entry(logged.0.at_ms).or_default() += 1;
            let mut overlay = Overlay::new(&self.state);
            let outcome = tidemill_core::apply(&mut overlay, Version(version), &logged.0)?;
            let writes = overlay.into_writes();
            self.decided(version, &logged.0.command, &outcome)?;
            if outcome.is_ok() {
                let mut after = self.state.clone();
                after.write(writes);
                let mut found = check_step(&self.state, &after)?;
                if version.is_multiple_of(STATE_EVERY) {
                    found.extend(check_state(&after)?);
                }
                if let Some(broken) = found.first() {
                    return Err(Violation::new(broken.invariant, broken.found.clone()));
                }
                self.state = after;
            }
            reply = Reply(Some(outcome));
        }
        let digest = self.state.digest()?;
        self.log.push(Committed {
            entry: entry.clone(),
            reply,
            digest,
        });
        Ok(())
    }

    /// A commit that was refused stays refused, and one that was taken is not taken again.
    fn decided(&mut self, version: u64, command: &Command, outcome: &Outcome) -> Checked {
        let Command::CommitPart(commit) = command else {
            return Ok(());
        };
        let id = commit.commit;
        match outcome {
            Ok(_) => {
                let before = self.taken.insert(id, version).or(self.refused.get(&id).copied());
                if let Some(before) = before {
                    let found = format!("commit {id} is taken at {version}, and was decided at {before}");
                    return Err(Violation::new("ANS-1: a commit is decided once", found));
                }
            }
            Err(Refusal::AlreadyCommitted(_)) => {}
            Err(_) => drop(self.refused.insert(id, version)),
        }
        Ok(())
    }

    /// The least version that whoever asks now must see.
    pub fn floor(&self) -> u64 {
        self.told
    }

    /// A proposal is on its way, and may be committed.
    pub fn may_be(&mut self, number: i64) {
        *self.allowed.entry(number).or_default() += 1;
    }

    /// A proposal was not made, as its proposer was told.
    pub fn was_not_sent(&mut self, number: i64) {
        if let Some(allowed) = self.allowed.get_mut(&number) {
            *allowed -= 1;
        }
    }

    /// A proposer was told what came of its proposal, which it made when `floor` was the least version to see.
    pub fn answered(&mut self, number: i64, floor: u64, version: u64, outcome: &Outcome) -> Checked {
        let known = self.log.get(version as usize);
        let same = known.is_some_and(|known| {
            let is_it = matches!(&known.entry.payload, EntryPayload::Normal(logged) if logged.0.at_ms == number);
            is_it && known.reply.0.as_ref() == Some(outcome)
        });
        if !same {
            let found = format!("proposal {number} was acknowledged at {version} with {outcome:?}");
            return Err(Violation::new(
                "ANS-2: what was acknowledged is in the log, as it was told",
                found,
            ));
        }
        if version <= floor {
            let found = format!("proposal {number} is at {version}, made after {floor} was seen");
            return Err(Violation::new(
                "LIN-1: a command comes after all that was seen before it was made",
                found,
            ));
        }
        self.told = self.told.max(version);
        Ok(())
    }

    /// A linearizable read that was asked for when `floor` was the least version to see was answered with a state.
    pub fn read(&mut self, floor: u64, at: Option<LogId>, view: &MemView) -> Checked {
        self.stands(at, view)?;
        let version = at.map_or(0, |at| at.index);
        if version < floor {
            let found = format!("a read shows {version}, asked for after {floor} was seen");
            return Err(Violation::new(
                "LIN-2: a linearizable read shows all that was seen before it",
                found,
            ));
        }
        self.told = self.told.max(version);
        Ok(())
    }

    /// When all is over: the state is sound, and nothing is in the log that should not be.
    pub fn ended(&self) -> Checked {
        if let Some(broken) = check_state(&self.state)?.first() {
            return Err(Violation::new(broken.invariant, broken.found.clone()));
        }
        if self.state.recomputed_digest() != self.state.digest()? {
            return Err(Violation::new(
                "REP: the same log gives the same catalog",
                "the digest is not that of the state",
            ));
        }
        for (number, times) in &self.times {
            let allowed = self.allowed.get(number).copied().unwrap_or_default();
            if *times > allowed {
                let found = format!("proposal {number} is in the log {times} times, was made {allowed} times");
                return Err(Violation::new("ANS-3: what was not made is not in the log", found));
            }
        }
        Ok(())
    }
}

fn same(known: &Committed, digest: u128) -> Checked {
    if known.digest == digest {
        return Ok(());
    }
    let found = format!(
        "at {} there are the digests {:032x} and {digest:032x}",
        known.entry.log_id, known.digest
    );
    Err(Violation::new("REP: the same log gives the same catalog", found))
}
