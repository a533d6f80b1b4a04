//! The Raft group, as the rest of the system sees it: one log, terms with one leader each, and proposals whose fate may
//! never be told.
//!
//! Raft itself is not simulated here. What it promises is taken for granted: a term has one leader; what is committed stays;
//! whoever is elected has everything that is committed. What it does not promise happens often: a deposed leader believes
//! in itself for a while, a proposal is committed by the next leader after its proposer was told nothing, another
//! is never heard of again, and nodes learn late how far the log is.

use crate::mutant::Mutant;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use tidemill_core::command::Outcome;
use tidemill_core::view::{CatalogRead, MemView, Overlay, ViewError};
use tidemill_core::{Proposal, Version, apply};

/// A proposal that a leader has taken and that is not decided.
#[derive(Clone, Debug)]
pub struct Pending {
    /// What is proposed.
    pub proposal: Proposal,
    /// The leader that took it, and the run of its process.
    pub leader: (usize, u64),
    /// In which term.
    pub term: u64,
    /// Who waits for the outcome: a node and its request.
    pub asked: (usize, u64),
}

/// The group.
#[derive(Debug, Default)]
pub struct Group {
    /// The present term.
    pub term: u64,
    /// Who leads in it.
    pub leader: Option<usize>,
    /// Who votes.
    pub voters: BTreeSet<usize>,
    /// Who gets the log beside them.
    pub learners: BTreeSet<usize>,
    /// What leaders have taken and not decided, in the order in which they took it.
    pub pending: BTreeMap<u64, Pending>,
    log: Vec<Proposal>,
    states: BTreeMap<usize, Rc<MemView>>,
    next: u64,
}

/// What a decision changed.
pub struct Decided {
    /// The state before.
    pub before: Rc<MemView>,
    /// The state after.
    pub after: Rc<MemView>,
    /// What came of it.
    pub outcome: Outcome,
    /// Its place in the log.
    pub version: usize,
}

impl Group {
    /// An empty log of so many voters.
    pub fn of(voters: usize) -> Self {
        let mut group = Self {
            voters: (0..voters).collect(),
            ..Self::default()
        };
        group.states.insert(0, Rc::default());
        group
    }

    /// Whether a node gets the log.
    pub fn has(&self, index: usize) -> bool {
        self.voters.contains(&index) || self.learners.contains(&index)
    }

    /// How many commands are committed.
    pub fn committed(&self) -> usize {
        self.log.len()
    }

    /// The state after the last of them.
    pub fn tip(&self) -> Rc<MemView> {
        self.state(self.committed())
    }

    /// The state after `version` commands; the newest one known if that was forgotten.
    pub fn state(&self, version: usize) -> Rc<MemView> {
        let known = self.states.range(..=version).next_back();
        known.map(|(_, state)| state.clone()).unwrap_or_default()
    }

    /// Forgets the states before `version`: nobody goes back behind it.
    pub fn forget_before(&mut self, version: usize) {
        self.states = self.states.split_off(&version);
    }

    /// A leader takes a proposal.
    pub fn take(&mut self, pending: Pending) -> u64 {
        self.next += 1;
        self.pending.insert(self.next, pending);
        self.next
    }

    /// Commits `proposal`: it is applied to the newest state, once and for all.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn commit(&mut self, proposal: Proposal, mutant: Option<Mutant>) -> Result<Decided, ViewError> {
        let before = self.tip();
        let version = self.committed() + 1;
        let mut applied = proposal.clone();
        if mutant == Some(Mutant::ApplyReadsTheClock) {
            // Whoever applies the log later has another time.
            applied.at_ms += 1;
        }
        let (after, outcome) = step(&before, version, &applied, mutant)?;
        let after = Rc::new(after);
        self.log.push(proposal);
        self.states.insert(version, after.clone());
        Ok(Decided {
            before,
            after,
            outcome,
            version,
        })
    }

    /// The digest that a node has which applies the log anew from `from` on, and the one that it should have.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn replay(&self, from: usize, mutant: Option<Mutant>) -> Result<(u128, u128), ViewError> {
        let mut state = (*self.state(from)).clone();
        for (i, proposal) in self.log.iter().enumerate().skip(from) {
            state = step(&state, i + 1, proposal, mutant)?.0;
        }
        Ok((state.recomputed_digest(), self.tip().digest()?))
    }
}

fn step(
    before: &MemView,
    version: usize,
    proposal: &Proposal,
    mutant: Option<Mutant>,
) -> Result<(MemView, Outcome), ViewError> {
    let mut overlay = Overlay::new(before);
    let outcome = match mutant {
        None => apply(&mut overlay, Version(version as u64), proposal)?,
        Some(mutant) => {
            let mut proposal = proposal.clone();
            let writes = mutant.before_apply(before, &mut proposal.command)?;
            if !writes.is_empty() {
                overlay.absorb(writes)?;
            }
            apply(&mut overlay, Version(version as u64), &proposal)?
        }
    };
    let mut after = before.clone();
    if outcome.is_ok() {
        after.write(overlay.into_writes());
    }
    if let Some(mutant) = mutant {
        let more = mutant.after_apply(before, &after, &proposal.command, outcome.is_err())?;
        after.write(more);
    }
    Ok((after, outcome))
}
