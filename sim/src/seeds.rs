//! A history for each seed: what every simulation is, many of its histories at once, and what came of them.

use clap::ValueEnum;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tidemill_core::view::ViewError;

/// A simulation: a seed decides everything that happens in it.
pub trait Simulation {
    /// Its word on the command line, behind `chaos`.
    const WORD: &'static str;
    /// How many seeds are run if nobody says.
    const SEEDS: u64;
    /// How many, if something is broken on purpose.
    const SEEDS_FOR_MUTANTS: u64;
    /// So many histories meet every fault and act there is: if they do not, they prove nothing. Of fewer nothing is asked.
    const ENOUGH: u64;
    /// Behaviours that can be broken on purpose.
    type Mutant: ValueEnum + fmt::Debug + Copy + Send + Sync + 'static;
    /// What comes of a history.
    type Tally: Tally;

    /// The history of `seed`, broken on purpose if that is asked for; and what happens in it, line by line, if it `tells`.
    fn history(seed: u64, mutant: Option<Self::Mutant>, tells: bool) -> (Result<Self::Tally, Violation>, Vec<String>);

    /// Runs the history of `seed`.
    ///
    /// # Errors
    /// The first rule that is broken.
    fn run(seed: u64, mutant: Option<Self::Mutant>) -> Result<Self::Tally, Failure> {
        let (ended, _) = Self::history(seed, mutant, false);
        ended.map_err(|violation| Failure { seed, violation })
    }

    /// As [`Simulation::run`], and what happens, line by line.
    fn tell(seed: u64, mutant: Option<Self::Mutant>) -> (Result<Self::Tally, Failure>, Vec<String>) {
        let (ended, told) = Self::history(seed, mutant, true);
        (ended.map_err(|violation| Failure { seed, violation }), told)
    }
}

/// What came of a history, or of many. It shows itself in lines.
pub trait Tally: Clone + fmt::Debug + fmt::Display + Default + PartialEq + Send {
    /// Adds what came of another history.
    fn add(&mut self, other: &Self);

    /// What never happened and must happen in many histories: a sum that lacks it proves nothing.
    fn lacks(&self) -> Vec<&'static str>;

    /// Simulated time.
    fn time(&self) -> Duration;

    /// How many steps it took.
    fn steps(&self) -> u64;
}

/// How often things happened, by name.
pub type Counts = BTreeMap<&'static str, u64>;

/// Adds what was counted elsewhere.
pub fn add_counts(into: &mut Counts, from: &Counts) {
    for (name, count) in from {
        *into.entry(*name).or_default() += count;
    }
}

/// What was counted, in a line.
pub fn list(counts: &Counts) -> String {
    let each = counts.iter().map(|(name, count)| format!("{name} {count}"));
    each.collect::<Vec<_>>().join(", ")
}

/// Something that must never be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which rule is broken: an invariant of the catalog, or one of a simulation's own checks.
    pub rule: Cow<'static, str>,
    /// What was found.
    pub found: String,
}

impl Violation {
    /// A broken rule.
    pub fn new(rule: impl Into<Cow<'static, str>>, found: impl Into<String>) -> Self {
        Self {
            rule: rule.into(),
            found: found.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}': {}", self.rule, self.found)
    }
}

impl From<ViewError> for Violation {
    fn from(error: ViewError) -> Self {
        Self::new("the catalog can be read", error.to_string())
    }
}

/// A history that broke a rule.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// What it broke.
    pub violation: Violation,
}

/// What came of many histories.
#[derive(Clone, Debug, Default)]
pub struct Sum<T> {
    /// Those that ended well.
    pub seeds: u64,
    /// All of theirs, added up.
    pub tally: T,
    /// How long they took.
    pub took: Duration,
}

/// Runs all `seeds`, on as many threads as there are processors; stops at the first that breaks a rule.
///
/// # Errors
/// That one, of the smallest seed that was found.
pub fn run_all<S: Simulation>(seeds: Range<u64>, mutant: Option<S::Mutant>) -> Result<Sum<S::Tally>, Failure> {
    let began = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let broken = AtomicBool::new(false);
    let sum = Mutex::new(Sum::<S::Tally>::default());
    let failure: Mutex<Option<Failure>> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        while !broken.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            match S::run(seed, mutant) {
                Ok(tally) => {
                    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                    sum.seeds += 1;
                    sum.tally.add(&tally);
                }
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

impl<T: Tally> fmt::Display for Sum<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f64();
        let speed = self.seeds as f64 / seconds.max(1e-9);
        let decimals = usize::from(speed < 10.0);
        writeln!(
            f,
            "{} seeds in {seconds:.1} s ({speed:.decimals$} per second): {:.1} simulated hours, {} steps",
            self.seeds,
            self.tally.time().as_secs_f64() / 3600.0,
            self.tally.steps()
        )?;
        write!(f, "{}", self.tally)
    }
}
