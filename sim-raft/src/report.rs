//! Many seeds at once, and what came of them.

use crate::mutant::Mutant;
use crate::nemesis::{ACTS, FAULTS, OTHERS};
use crate::world::Tally;
use crate::{Failure, run};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What must happen in many runs, or they prove nothing.
const EVENTS: [&str; 10] = [
    "changes of the group",
    "leaderships handed on",
    "local reads",
    "no: already committed",
    "no: not the next offset",
    "no: stale epoch",
    "nodes retired",
    "purges",
    "snapshots installed",
    "truncations",
];

/// What came of many runs.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    /// Runs that ended well.
    pub seeds: u64,
    /// All of theirs, added up.
    pub tally: Tally,
    /// How long they took.
    pub took: Duration,
}

/// Runs all `seeds`, on as many threads as there are processors; stops at the first that breaks a rule.
///
/// # Errors
/// That one, of the smallest seed that was found.
pub fn run_all(seeds: Range<u64>, mutant: Option<Mutant>) -> Result<Sum, Failure> {
    let began = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let broken = AtomicBool::new(false);
    let sum = Mutex::new(Sum::default());
    let failure: Mutex<Option<Failure>> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        while !broken.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            match run(seed, mutant) {
                Ok(tally) => sum.lock().unwrap_or_else(PoisonError::into_inner).add(&tally),
                Err(found) => {
                    broken.store(true, Ordering::Relaxed);
                    let mut first = failure.lock().unwrap_or_else(PoisonError::into_inner);
                    if first.as_ref().is_none_or(|first| found.seed < first.seed) {
                        *first = Some(found);
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(failure) => Err(failure),
        None => {
            let mut sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
            sum.took = began.elapsed();
            Ok(sum)
        }
    }
}

impl Sum {
    fn add(&mut self, tally: &Tally) {
        let sum = &mut self.tally;
        self.seeds += 1;
        sum.time += tally.time;
        sum.steps += tally.steps;
        sum.entries += tally.entries;
        sum.elections += tally.elections;
        sum.acknowledged += tally.acknowledged;
        sum.unknown += tally.unknown;
        sum.reads += tally.reads;
        let counts = [
            (&mut sum.events, &tally.events),
            (&mut sum.faults, &tally.faults),
            (&mut sum.acts, &tally.acts),
        ];
        for (into, from) in counts {
            for (name, count) in from {
                *into.entry(*name).or_default() += count;
            }
        }
    }

    /// What never happened and should have: a sum that lacks it proves nothing.
    pub fn lacks(&self) -> Vec<&'static str> {
        let t = &self.tally;
        let numbers = [
            ("acknowledged proposals", t.acknowledged),
            ("proposals of unknown fate", t.unknown),
            ("linearizable reads", t.reads),
        ];
        let none = numbers
            .into_iter()
            .filter(|(_, count)| *count == 0)
            .map(|(name, _)| name);
        let faults = FAULTS
            .into_iter()
            .chain(OTHERS)
            .filter(|fault| !t.faults.contains_key(fault));
        let acts = ACTS.into_iter().filter(|act| !t.acts.contains_key(act));
        let events = EVENTS.into_iter().filter(|event| !t.events.contains_key(event));
        none.chain(faults).chain(acts).chain(events).collect()
    }
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let t = &self.tally;
        let seconds = self.took.as_secs_f64();
        writeln!(
            f,
            "{} seeds in {seconds:.1} s ({:.1} per second): {:.1} simulated hours, {} steps",
            self.seeds,
            self.seeds as f64 / seconds.max(1e-9),
            t.time as f64 / 3.6e12,
            t.steps
        )?;
        writeln!(
            f,
            "{} entries committed, {} elections; {} proposals acknowledged, {} of unknown fate; {} linearizable reads",
            t.entries, t.elections, t.acknowledged, t.unknown, t.reads
        )?;
        let list = |counts: &BTreeMap<&str, u64>| {
            let each = counts.iter().map(|(name, count)| format!("{name} {count}"));
            each.collect::<Vec<_>>().join(", ")
        };
        writeln!(f, "faults: {}", list(&t.faults))?;
        writeln!(f, "operators: {}", list(&t.acts))?;
        write!(f, "besides: {}", list(&t.events))
    }
}
