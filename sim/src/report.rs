//! Many seeds at once, and what came of them.

use crate::mutant::Mutant;
use crate::time::SECOND;
use crate::world::Tally;
use crate::{Failure, run};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What must have happened in a sum that proves something, beside all kinds of faults.
const ACTS: [&str; 18] = [
    "alter pipe",
    "alter table",
    "create pipe",
    "drain or resume a node",
    "drop pipe",
    "log lost with a disk",
    "log replayed",
    "node joins",
    "node removed",
    "pause or resume",
    "repair",
    "reset",
    "rows missing after an acknowledgement",
    "rows of a program out of a log",
    "rows of a source out of a log",
    "rows passed over",
    "standby takes over",
    "voters change",
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
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
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
            });
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
        sum.events += tally.events;
        sum.time += tally.time;
        sum.commands += tally.commands;
        sum.commits += tally.commits;
        sum.refusals += tally.refusals;
        sum.queries += tally.queries;
        sum.records += tally.records;
        sum.rows += tally.rows;
        let counts = [
            (&mut sum.faults, &tally.faults),
            (&mut sum.acts, &tally.acts),
            (&mut sum.acked, &tally.acked),
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
        let there = [
            ("commits", t.commits > 0),
            ("refusals", t.refusals > 0),
            ("queries", t.queries > 0),
            ("faults of all kinds", t.faults.len() == crate::nemesis::KINDS),
            ("rows acknowledged at every level", t.acked.len() == 3),
        ];
        let missing = there.iter().filter(|(_, is)| !is).map(|(name, _)| *name);
        let acts = ACTS.iter().filter(|act| !t.acts.contains_key(**act)).copied();
        missing.chain(acts).collect()
    }
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let t = &self.tally;
        let seconds = self.took.as_secs_f64();
        writeln!(
            f,
            "{} seeds in {seconds:.1} s ({:.0} per second): {:.1} simulated hours, {} steps",
            self.seeds,
            self.seeds as f64 / seconds.max(1e-9),
            t.time as f64 / (3600 * SECOND) as f64,
            t.events
        )?;
        writeln!(
            f,
            "{} commands, {} commits of parts, {} refused; {} queries; {} records produced, {} rows in the tables at the end",
            t.commands, t.commits, t.refusals, t.queries, t.records, t.rows
        )?;
        let list = |counts: &BTreeMap<&str, u64>| {
            let each = counts.iter().map(|(name, count)| format!("{name} {count}"));
            each.collect::<Vec<_>>().join(", ")
        };
        writeln!(f, "faults: {}", list(&t.faults))?;
        writeln!(f, "rows of programs acknowledged: {}", list(&t.acked))?;
        write!(f, "acts: {}", list(&t.acts))
    }
}
