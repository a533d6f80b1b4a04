//! What came of a run, from its folder alone: `run.json` and `history.jsonl`.
//!
//! Every checker scans the history for one kind of violation and says what it looked at. What a checker cannot decide makes the
//! run *unknown*: a run that lacked a fault or a success that it was made for, that never healed, whose history is not whole or
//! whose harness gave up has shown nothing. A violation counts, whatever else is unknown.
//!
//! The checkers know nothing of Tidemill but the form of the history, so histories of another system can be checked as well.

mod acknowledged;
mod coverage;
mod decode;
mod digests;
mod duplicated;
mod facts;
mod leadership;
mod ledger;
mod lost;
mod operator;
pub mod outcome;
mod phantom;
pub mod proof;
mod reads;
mod recovery;
mod registers;
mod reordered;
mod sources;
pub mod synthetic;
mod tables;
#[cfg(test)]
mod tests;

pub use decode::{Sample, ShardSample};
pub use facts::{Facts, FaultSpan, Operation};
pub use outcome::{Finding, Outcome, Verdict};

use crate::history::{self, Entry, RunMeta};
use std::path::Path;

/// A run that was read.
pub struct Run {
    /// What it was meant to be.
    pub meta: RunMeta,
    /// Its history.
    pub entries: Vec<Entry>,
    /// What the history says, taken apart.
    pub facts: Facts,
}

impl Run {
    /// Takes a history apart.
    pub fn new(meta: RunMeta, entries: Vec<Entry>) -> Self {
        let facts = Facts::of(&entries);
        Self { meta, entries, facts }
    }

    /// Reads the run in `folder`.
    ///
    /// # Errors
    /// If its description or its history cannot be read.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        Ok(Self::new(RunMeta::read(folder)?, history::read(folder)?))
    }

    /// Milliseconds since the run began, of an entry.
    pub fn ms(&self, entry: usize) -> u64 {
        self.entries.get(entry).map_or(0, |e| e.time / 1_000_000)
    }
}

/// What came of a run.
pub struct Judgement {
    /// All in all.
    pub verdict: Verdict,
    /// By checker.
    pub outcomes: Vec<Outcome>,
}

type Checker = fn(&Run) -> Outcome;

/// All of them, in the order in which they are shown.
const CHECKERS: [Checker; 12] = [
    lost::check,
    duplicated::check,
    phantom::check,
    reordered::check,
    reads::check,
    ledger::check,
    acknowledged::check,
    registers::check,
    digests::check,
    leadership::check,
    recovery::check,
    coverage::check,
];

/// Lets every checker look at a run.
pub fn judge(run: &Run) -> Judgement {
    let outcomes: Vec<Outcome> = CHECKERS.iter().map(|check| check(run)).collect();
    let verdict = Verdict::of(&outcomes);
    Judgement { verdict, outcomes }
}

/// Reads the run in `folder` and judges it. What cannot be read is unknown.
pub fn folder(folder: &Path) -> (Option<Run>, Judgement) {
    match Run::read(folder) {
        Ok(run) => {
            let judgement = judge(&run);
            (Some(run), judgement)
        }
        Err(error) => {
            let mut outcome = Outcome::new("coverage");
            outcome.doubt(format!("the run cannot be read: {error:#}"));
            let outcomes = vec![outcome];
            let verdict = Verdict::of(&outcomes);
            (None, Judgement { verdict, outcomes })
        }
    }
}
