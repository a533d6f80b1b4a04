//! The checkers are proved: each forgery of a correct history must be found by the checker that it belongs to.

mod forge;
mod forgeries;

pub use forgeries::FORGERIES;

use super::synthetic::{self, Size};
use super::{Judgement, Run, Verdict, judge};
use crate::history::Entry;
use forge::Forge;
use std::collections::BTreeSet;

/// A way to forge a history.
pub struct Forgery {
    /// What it does.
    pub what: &'static str,
    /// The checker that has to notice.
    pub by: &'static str,
    /// What the run has to be called then.
    pub verdict: &'static str,
    /// Does it, if the history has what it takes.
    act: fn(&mut Forge<'_>) -> Option<()>,
}

/// How a forgery fared over many seeds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Histories that could be forged so.
    pub forged: u64,
    /// In how many its checker noticed, and the run was called what it has to be.
    pub noticed: u64,
    /// The first seed in which it was noticed.
    pub first: Option<u64>,
    /// Other checkers that noticed as well.
    pub others: BTreeSet<&'static str>,
    /// Seeds in which it was not noticed.
    pub missed: Vec<u64>,
}

impl Forgery {
    /// Forges a history, if it has what it takes.
    pub fn apply(&self, seed: u64, entries: &mut Vec<Entry>) -> bool {
        (self.act)(&mut Forge::new(seed, entries)).is_some()
    }

    /// Forges the correct histories of these seeds.
    pub fn tally(&self, seeds: impl IntoIterator<Item = u64>) -> Tally {
        let mut tally = Tally::default();
        for seed in seeds {
            let (meta, mut entries) = synthetic::history(seed, Size::default());
            if !self.apply(seed, &mut entries) {
                continue;
            }
            tally.forged += 1;
            let judgement = judge(&Run::new(meta, entries));
            match self.is_noticed(&judgement) {
                true => {
                    tally.noticed += 1;
                    tally.first.get_or_insert(seed);
                }
                false => tally.missed.push(seed),
            }
            let others = judgement
                .outcomes
                .iter()
                .filter(|o| o.name != self.by && matches!(o.word(), "failed" | "unknown"));
            tally.others.extend(others.map(|o| o.name));
        }
        tally
    }

    fn is_noticed(&self, judgement: &Judgement) -> bool {
        let own = judgement.outcomes.iter().find(|o| o.name == self.by);
        own.is_some_and(|o| o.word() == self.verdict) && judgement.verdict.word() == self.verdict
    }
}

/// The seeds whose correct histories do not pass.
pub fn false_alarms(seeds: std::ops::Range<u64>) -> Vec<u64> {
    let passes = |seed: &u64| {
        let (meta, entries) = synthetic::history(*seed, Size::default());
        judge(&Run::new(meta, entries)).verdict == Verdict::Passed
    };
    seeds.filter(|seed| !passes(seed)).collect()
}

/// All forgeries over `seeds`, as a table; with the number of those that were missed.
pub fn table(seeds: std::ops::Range<u64>) -> (String, u64) {
    let mut out = String::from(
        "| forged | has to be noticed by | run is called | forged in | noticed in | also noticed by |\n|---|---|---|---|---|---|\n",
    );
    let mut missed = 0;
    for forgery in FORGERIES {
        let tally = forgery.tally(seeds.clone());
        missed += tally.forged - tally.noticed + u64::from(tally.forged == 0);
        let others: Vec<&str> = tally.others.iter().copied().collect();
        out += &format!(
            "| {} | {} | {} | {} | {} | {} |\n",
            forgery.what,
            forgery.by,
            forgery.verdict,
            tally.forged,
            tally.noticed,
            others.join(", ")
        );
    }
    (out, missed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_forgery_is_noticed_by_its_checker() {
        for forgery in FORGERIES {
            let tally = forgery.tally(0..30);
            assert!(
                tally.forged >= 5,
                "{} could be forged in {} histories only",
                forgery.what,
                tally.forged
            );
            assert_eq!(tally.missed, Vec::<u64>::new(), "{} was missed", forgery.what);
        }
    }

    #[test]
    fn every_checker_has_a_forgery() {
        let (meta, entries) = synthetic::history(1, Size::default());
        for outcome in judge(&Run::new(meta, entries)).outcomes {
            assert!(
                FORGERIES.iter().any(|f| f.by == outcome.name),
                "nothing proves {}",
                outcome.name
            );
        }
    }
}
