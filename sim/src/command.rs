//! What people type to run a simulation.

use crate::seeds::{Failure, Simulation, Tally, run_all};
use clap::ValueEnum;
use clap::builder::StyledStr;
use std::io::Write;
use std::time::Instant;

/// How much of a broken history is shown.
const TOLD: usize = 60;

/// Simulated histories: a seed is one.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments<M: ValueEnum + Send + Sync + 'static> {
    /// Runs this seed alone, twice, and compares the two
    #[arg(long, conflicts_with_all = ["seeds", "mutants"])]
    seed: Option<u64>,
    /// How many seeds to run, from --from on [default: 1000 of sim, 12000 where something is broken on purpose; 200 and 2000 of raft]
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed [default: 1]
    #[arg(long)]
    from: Option<u64>,
    /// Breaks a behaviour on purpose
    #[arg(long, value_enum)]
    mutant: Option<M>,
    /// Breaks each behaviour in turn, and says after how many seeds which check noticed
    #[arg(long, conflicts_with = "mutant")]
    mutants: bool,
    /// Tells everything that happens in the history of --seed
    #[arg(long, requires = "seed")]
    tell: bool,
}

#[derive(clap::Parser)]
struct Alone<M: ValueEnum + Send + Sync + 'static> {
    #[command(flatten)]
    arguments: Arguments<M>,
}

/// A whole program that runs a simulation. It ends in failure when a rule is broken.
pub fn main<S: Simulation>() -> std::process::ExitCode {
    use clap::Parser;
    match run::<S>(&Alone::parse().arguments) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// Does what was typed.
///
/// # Errors
/// What was broken, and how to see it again.
pub fn run<S: Simulation>(arguments: &Arguments<S::Mutant>) -> Result<(), String> {
    match arguments.seed {
        Some(seed) => one::<S>(seed, arguments),
        None if arguments.mutants => all_mutants::<S>(arguments),
        None => many::<S>(seeds::<S>(arguments, arguments.mutant), arguments.mutant),
    }
}

/// Which seeds are run.
fn seeds<S: Simulation>(arguments: &Arguments<S::Mutant>, mutant: Option<S::Mutant>) -> std::ops::Range<u64> {
    let from = arguments.from.unwrap_or(1);
    let count = match mutant {
        Some(_) => S::SEEDS_FOR_MUTANTS,
        None => S::SEEDS,
    };
    from..from + arguments.seeds.unwrap_or(count)
}

fn one<S: Simulation>(seed: u64, arguments: &Arguments<S::Mutant>) -> Result<(), String> {
    let mutant = arguments.mutant;
    let (first, told) = S::tell(seed, mutant);
    if arguments.tell {
        let mut out = std::io::stdout().lock();
        if told.iter().any(|line| writeln!(out, "{line}").is_err()) {
            // Nobody listens any more.
            return Ok(());
        }
    }
    let first = first.map_err(|failure| match arguments.tell {
        true => broken::<S>(&failure, mutant),
        false => explain::<S>(&failure, mutant),
    })?;
    let second = S::run(seed, mutant).map_err(|failure| explain::<S>(&failure, mutant))?;
    if first != second {
        return Err(format!("seed {seed} gave two histories: {first:?} and {second:?}"));
    }
    println!("seed {seed}: {first:#?}\ntwice the same history");
    Ok(())
}

fn many<S: Simulation>(seeds: std::ops::Range<u64>, mutant: Option<S::Mutant>) -> Result<(), String> {
    println!("seeds {} to {}", seeds.start, seeds.end - 1);
    let sum = run_all::<S>(seeds, mutant).map_err(|failure| explain::<S>(&failure, mutant))?;
    println!("{sum}");
    let lacks = sum.tally.lacks();
    if sum.seeds >= S::ENOUGH && !lacks.is_empty() {
        return Err(format!(
            "unknown: there were no {}, so this proves nothing",
            lacks.join(", no ")
        ));
    }
    println!("no rule was broken");
    Ok(())
}

fn all_mutants<S: Simulation>(arguments: &Arguments<S::Mutant>) -> Result<(), String> {
    let mut survivors = Vec::new();
    println!("| broken on purpose | noticed by | seeds | seconds |\n|---|---|---|---|");
    for mutant in S::Mutant::value_variants() {
        let began = Instant::now();
        let seeds = seeds::<S>(arguments, Some(*mutant));
        let from = match seeds.start {
            1 => String::new(),
            from => format!(", from {from} on"),
        };
        let caught = seeds.clone().find_map(|seed| S::run(seed, Some(*mutant)).err());
        let seconds = began.elapsed().as_secs_f64();
        let what = describe(*mutant);
        match caught {
            Some(Failure { seed, violation }) => {
                let rule = violation.rule;
                println!("| {what} | {rule} | {}{from} | {seconds:.1} |", seed - seeds.start + 1);
            }
            None => {
                println!(
                    "| {what} | **nobody** | {}{from} | {seconds:.1} |",
                    seeds.end - seeds.start
                );
                survivors.push(*mutant);
            }
        }
    }
    match survivors.is_empty() {
        true => Ok(()),
        false => Err(format!("not noticed: {survivors:?}")),
    }
}

/// What is broken, in a sentence: its documentation, which `--help` shows too.
fn describe(mutant: impl ValueEnum) -> String {
    let value = mutant.to_possible_value();
    let help = value.as_ref().and_then(|value| value.get_help());
    format!("{}.", help.map_or_else(String::new, StyledStr::to_string))
}

/// What was broken, how it came to that, and how to see it again.
fn explain<S: Simulation>(failure: &Failure, mutant: Option<S::Mutant>) -> String {
    // The same history, told this time.
    let (_, told) = S::tell(failure.seed, mutant);
    let last = &told[told.len().saturating_sub(TOLD)..];
    format!("{}\n{}", last.join("\n"), broken::<S>(failure, mutant))
}

fn broken<S: Simulation>(failure: &Failure, mutant: Option<S::Mutant>) -> String {
    let Failure { seed, violation } = failure;
    let mutant = mutant.and_then(|mutant| mutant.to_possible_value());
    let mutant = mutant.map_or_else(String::new, |mutant| format!(" --mutant {}", mutant.get_name()));
    let word = S::WORD;
    format!(
        "seed {seed} breaks {violation}\nto see it again: cargo run -p tidemill-chaos-tests -- {word} --seed {seed}{mutant} --tell"
    )
}
