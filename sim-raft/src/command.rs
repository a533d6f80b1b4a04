//! What people type.

use crate::mutant::Mutant;
use crate::report::run_all;
use crate::world::Tally;
use crate::{Failure, tell};
use clap::ValueEnum;
use std::io::Write;
use std::time::Instant;

/// How much of a broken history is shown.
const TOLD: usize = 60;

/// Simulated histories of the replicated catalog, with real openraft.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "sim-raft")]
pub struct Arguments {
    /// Runs this seed alone, twice, and compares the two
    #[arg(long, conflicts_with_all = ["seeds", "mutants"])]
    seed: Option<u64>,
    /// How many seeds to run, from --from on
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Breaks a behaviour on purpose
    #[arg(long, value_enum)]
    mutant: Option<Mutant>,
    /// Breaks each behaviour in turn, and says after how many seeds which check noticed
    #[arg(long, conflicts_with = "mutant")]
    mutants: bool,
    /// Tells everything that happens in the history of --seed
    #[arg(long, requires = "seed")]
    tell: bool,
}

/// Does what was typed.
///
/// # Errors
/// What was broken, and how to see it again.
pub fn run(arguments: &Arguments) -> Result<(), String> {
    match arguments.seed {
        Some(seed) => one(seed, arguments),
        None if arguments.mutants => all_mutants(arguments),
        None => many(arguments),
    }
}

fn one(seed: u64, arguments: &Arguments) -> Result<(), String> {
    let mutant = arguments.mutant;
    let (first, told) = tell(seed, mutant);
    if arguments.tell {
        let mut out = std::io::stdout().lock();
        if told.iter().any(|line| writeln!(out, "{line}").is_err()) {
            // Nobody listens any more.
            return Ok(());
        }
    }
    let failed = |failure: Failure| match arguments.tell {
        true => broken(&failure, mutant),
        false => explain(&failure, mutant),
    };
    let first: Tally = first.map_err(failed)?;
    let second = crate::run(seed, mutant).map_err(|failure| explain(&failure, mutant))?;
    if first != second {
        return Err(format!("seed {seed} gave two histories: {first:?} and {second:?}"));
    }
    println!("seed {seed}: {first:#?}\ntwice the same history");
    Ok(())
}

fn many(arguments: &Arguments) -> Result<(), String> {
    let seeds = arguments.from..arguments.from + arguments.seeds;
    println!("seeds {} to {}", seeds.start, seeds.end - 1);
    let sum = run_all(seeds, arguments.mutant).map_err(|failure| explain(&failure, arguments.mutant))?;
    println!("{sum}");
    // A thousand histories meet everything; of a few nothing can be asked.
    let lacks = sum.lacks();
    if sum.seeds >= 1_000 && !lacks.is_empty() {
        return Err(format!(
            "unknown: there were no {}, so this proves nothing",
            lacks.join(", no ")
        ));
    }
    println!("no rule was broken");
    Ok(())
}

fn all_mutants(arguments: &Arguments) -> Result<(), String> {
    let mut survivors = Vec::new();
    println!("| broken on purpose | noticed by | seeds | seconds |\n|---|---|---|---|");
    for mutant in Mutant::ALL {
        let began = Instant::now();
        let mut seeds = arguments.from..arguments.from + arguments.seeds;
        let caught = seeds.find_map(|seed| crate::run(seed, Some(*mutant)).err().map(|failure| (seed, failure)));
        let seconds = began.elapsed().as_secs_f64();
        match caught {
            Some((seed, failure)) => println!(
                "| {} | {} | {} | {seconds:.1} |",
                mutant.describe(),
                failure.violation.rule,
                seed - arguments.from + 1
            ),
            None => {
                println!(
                    "| {} | **nobody** | {} | {seconds:.1} |",
                    mutant.describe(),
                    arguments.seeds
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

/// What was broken, how it came to that, and how to see it again.
fn explain(failure: &Failure, mutant: Option<Mutant>) -> String {
    // The same history, told this time.
    let (_, told) = tell(failure.seed, mutant);
    let last = &told[told.len().saturating_sub(TOLD)..];
    format!("{}\n{}", last.join("\n"), broken(failure, mutant))
}

fn broken(failure: &Failure, mutant: Option<Mutant>) -> String {
    let Failure { seed, violation } = failure;
    let mutant = mutant.and_then(|mutant| mutant.to_possible_value());
    let mutant = mutant.map_or_else(String::new, |mutant| format!(" --mutant {}", mutant.get_name()));
    format!(
        "seed {seed} breaks {violation}\nto see it again: cargo run -p tidemill-chaos-tests -- raft --seed {seed}{mutant} --tell"
    )
}
