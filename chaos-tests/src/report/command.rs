//! `chaos check`: judges runs, writes their pages, and ends by what came of them.

use super::index::Line;
use super::record::{self, Record};
use super::{INDEX, Judged, TABLE, write_index};
use crate::check::synthetic::{self, Size};
use crate::check::{Outcome, proof};
use crate::history::{self, DESCRIPTION};
use anyhow::Context;
use clap::Args;
use std::path::{Path, PathBuf};

/// How the program ends if a run failed.
pub const FAILED: i32 = 1;
/// How it ends if none failed, and some run proves nothing.
pub const UNKNOWN: i32 = 3;
/// Findings that are printed of each checker; the page has more.
const SHOWN: usize = 5;

/// What is judged.
#[derive(Args)]
pub struct Arguments {
    /// Folders of runs, or folders that have such folders in them
    #[arg(required_unless_present = "prove", conflicts_with = "prove")]
    folders: Vec<PathBuf>,
    /// Where index.html goes [default: the folder that the first run is in]
    #[arg(long)]
    index: Option<PathBuf>,
    /// Prove the checkers instead: forge this many correct histories in every way, and show who notices
    #[arg(long, value_name = "SEEDS")]
    prove: Option<u64>,
    /// Make up a correct history from this seed in the folder first
    #[arg(long, value_name = "SEED", requires = "folders")]
    make_up: Option<u64>,
}

/// Judges one run, and writes its page; gives how the program has to end.
///
/// # Errors
/// If the page cannot be written.
pub fn one(folder: &Path) -> anyhow::Result<i32> {
    let judged = Judged::read(folder);
    print(&judged);
    judged.write()?;
    Ok(match judged.judgement.verdict.word() {
        "passed" => 0,
        "failed" => FAILED,
        _ => UNKNOWN,
    })
}

/// Writes a page over all runs in `folder` that were judged; gives how the program has to end.
///
/// # Errors
/// If the page cannot be written.
pub fn judged(folder: &Path) -> anyhow::Result<i32> {
    let mut lines = Vec::new();
    for run in runs_in(&[folder.to_owned()])? {
        // What was cut off has no verdict.
        if run.join(record::VERDICT).exists() {
            lines.push(Line::new(Record::read(&run)?, &run, folder));
        }
    }
    conclude(folder, &lines)
}

/// Does it; gives how the program has to end.
///
/// # Errors
/// If a page cannot be written.
pub fn run(arguments: &Arguments) -> anyhow::Result<i32> {
    if let Some(seeds) = arguments.prove {
        let seeds = 1..seeds + 1;
        let alarms = proof::false_alarms(seeds.clone());
        let (table, missed) = proof::table(seeds.clone());
        println!("{table}");
        println!("{} forgeries, {missed} missed", proof::FORGERIES.len());
        println!(
            "{} correct histories, {} not passed {alarms:?}",
            seeds.count(),
            alarms.len()
        );
        return Ok(if missed == 0 && alarms.is_empty() { 0 } else { FAILED });
    }
    if let (Some(seed), Some(folder)) = (arguments.make_up, arguments.folders.first()) {
        make_up(folder, seed)?;
    }
    let folders = runs_in(&arguments.folders)?;
    let first = folders
        .first()
        .and_then(|folder| folder.parent())
        .filter(|parent| !parent.as_os_str().is_empty());
    let index = arguments
        .index
        .clone()
        .unwrap_or_else(|| first.map_or_else(|| PathBuf::from("."), Path::to_path_buf));
    let mut lines = Vec::new();
    for folder in &folders {
        // One at a time, since a history may be large.
        let judged = Judged::read(folder);
        print(&judged);
        lines.push(Line::new(judged.write()?, folder, &index));
    }
    conclude(&index, &lines)
}

/// Writes the page over runs; gives how the program has to end.
fn conclude(index: &Path, lines: &[Line]) -> anyhow::Result<i32> {
    write_index(index, lines)?;
    let count = |verdict: &str| lines.iter().filter(|line| line.record.verdict == verdict).count();
    let (failed, unknown) = (count("failed"), count("unknown"));
    println!(
        "{} runs: {} passed, {failed} failed, {unknown} unknown",
        lines.len(),
        count("passed")
    );
    println!("{} and {TABLE}", index.join(INDEX).display());
    Ok(match (failed, unknown) {
        (1.., _) => FAILED,
        (0, 1..) => UNKNOWN,
        _ => 0,
    })
}

/// The folders of runs among these and right below them, in order. One that is neither is judged as well: it is unknown.
fn runs_in(folders: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let is_run = |folder: &Path| folder.join(DESCRIPTION).is_file();
    let mut runs = Vec::new();
    for folder in folders {
        if is_run(folder) {
            runs.push(folder.clone());
            continue;
        }
        let list = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut below: Vec<PathBuf> = list
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| is_run(path))
            .collect();
        below.sort();
        match below.is_empty() {
            true => runs.push(folder.clone()),
            false => runs.append(&mut below),
        }
    }
    Ok(runs)
}

fn make_up(folder: &Path, seed: u64) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let (meta, entries) = synthetic::history(seed, Size::default());
    meta.write(folder)?;
    history::write(folder, &entries)
}

fn print(judged: &Judged) {
    println!("{}: {}", judged.name(), judged.judgement.verdict.word());
    for outcome in &judged.judgement.outcomes {
        println!("  {:<8} {:<13} {}", outcome.word(), outcome.name, outcome.summary());
        details(outcome);
    }
}

fn details(outcome: &Outcome) {
    for finding in outcome.findings.iter().take(SHOWN) {
        let entries: Vec<String> = finding.entries.iter().map(u64::to_string).collect();
        println!("           - {} (entries {})", finding.text, entries.join(", "));
    }
    for doubt in outcome.doubts.iter().take(SHOWN) {
        println!("           ? {doubt}");
    }
    let more = (outcome.found as usize).saturating_sub(SHOWN) + outcome.doubts.len().saturating_sub(SHOWN);
    if more > 0 {
        println!("             and {more} more");
    }
}
