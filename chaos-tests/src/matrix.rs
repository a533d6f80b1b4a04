//! The matrix: every fault against every workload, cell by cell. A cell that has ended is not run again, so a matrix may be
//! cut off at any time and goes on where it was.

use crate::fault::Fault;
use crate::report::{self, record};
use crate::workload::Workload;
use anyhow::{Context, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Workloads that run beside each other. Every one of them meets every fault once.
pub const GROUPS: [&[Workload]; 3] = [
    &[Workload::Counter, Workload::Transactions],
    &[Workload::Compacted, Workload::Writers, Workload::Registers],
    &[Workload::Operators, Workload::Growth, Workload::CreateDrop],
];

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The folder for all cells; one that is there is gone on with
    #[arg(long)]
    pub out: PathBuf,
    /// For how long things break in each cell
    #[arg(long, default_value_t = 40)]
    pub seconds: u64,
    /// Decides, with the cell's name, what happens in it
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Only cells whose name contains one of these, separated by commas
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// Begins no cell after so many minutes
    #[arg(long)]
    pub minutes: Option<u64>,
    /// What came of cells is kept in this file, with a table beside it; what has passed there is not run again
    #[arg(long)]
    pub record: Option<PathBuf>,
    /// Says which cells there are, and which have ended
    #[arg(long)]
    pub list: bool,
}

/// One cell.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// What clients do.
    pub workloads: &'static [Workload],
    /// What breaks.
    pub fault: Fault,
}

impl Cell {
    /// Its name, and that of its folder.
    pub fn name(&self) -> String {
        format!("{}-{}", self.fault.name(), self.names().join("+"))
    }

    fn names(&self) -> Vec<&'static str> {
        self.workloads.iter().map(|workload| workload.name()).collect()
    }

    fn has_passed(&self, record: &record::Record) -> bool {
        record.is_of(&self.names(), self.fault.name()) && record.verdict == "passed"
    }
}

/// All cells: by fault, so that a part of a matrix has each workload.
pub fn cells() -> impl Iterator<Item = Cell> {
    let of = |fault: Fault| GROUPS.iter().map(move |workloads| Cell { workloads, fault });
    Fault::ALL.iter().copied().flat_map(of)
}

/// The cell that a seed chooses.
pub fn random(seed: u64) -> Cell {
    let mut rng = StdRng::seed_from_u64(seed);
    let fault = Fault::ALL[rng.random_range(0..Fault::ALL.len())];
    let workloads = GROUPS[rng.random_range(0..GROUPS.len())];
    Cell { workloads, fault }
}

/// Runs what has not ended yet, each cell in a process of its own, and judges all; gives how the program has to end.
///
/// # Errors
/// If a cell cannot be run.
pub fn run(options: &Options) -> anyhow::Result<i32> {
    std::fs::create_dir_all(&options.out).with_context(|| format!("cannot make {}", options.out.display()))?;
    let began = Instant::now();
    let chosen = |cell: &Cell| options.only.is_empty() || options.only.iter().any(|part| cell.name().contains(part));
    let cells: Vec<Cell> = cells().filter(chosen).collect();
    if cells.is_empty() {
        bail!("no cell has a name with {}", options.only.join(" or "));
    }
    let kept = options
        .record
        .as_deref()
        .map(record::read)
        .transpose()?
        .unwrap_or_default();
    for (number, cell) in cells.iter().enumerate() {
        let folder = options.out.join(cell.name());
        // The page is written last.
        let ended = folder.join(report::PAGE).exists() || kept.iter().any(|record| cell.has_passed(record));
        if options.list {
            println!("{} {}", if ended { "ended" } else { "open " }, cell.name());
            continue;
        }
        if ended {
            continue;
        }
        let late = options
            .minutes
            .is_some_and(|minutes| began.elapsed() > Duration::from_secs(minutes * 60));
        if late {
            println!(
                "{} cells are open; the same command goes on with them",
                cells.len() - number
            );
            break;
        }
        let at = Instant::now();
        run_cell(options, cell, &folder)?;
        if let Some(path) = &options.record {
            record::keep(path, record::Record::read(&folder)?)?;
        }
        println!(
            "== {}/{} {} in {} s",
            number + 1,
            cells.len(),
            cell.name(),
            at.elapsed().as_secs()
        );
    }
    if options.list || std::fs::read_dir(&options.out)?.next().is_none() {
        return Ok(0);
    }
    report::command::judged(&options.out)
}

fn run_cell(options: &Options, cell: &Cell, folder: &Path) -> anyhow::Result<()> {
    // What is there was cut off.
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    let seed = cell.name().bytes().fold(options.seed, |seed, byte| {
        seed.wrapping_mul(31).wrapping_add(u64::from(byte)) % 1_000_000_007
    });
    let me = std::env::current_exe()?;
    let mut command = std::process::Command::new(me);
    command.args([
        "cell",
        "--workloads",
        &cell.names().join(","),
        "--fault",
        cell.fault.name(),
    ]);
    command.args(["--seed", &seed.to_string(), "--seconds", &options.seconds.to_string()]);
    let ended = command.arg("--out").arg(folder).status()?;
    // Whatever the verdict: without a page nobody has judged it.
    ensure!(folder.join(report::PAGE).exists(), "{} ended with {ended}", cell.name());
    Ok(())
}
