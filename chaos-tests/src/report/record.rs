//! What is kept of runs when their histories are not: a line of JSON for each, and a table of all of them. A matrix goes on from
//! such a file on whatever machine.

use super::{Judged, duration, write};
use crate::check::outcome::{grouped, percentile};
use crate::check::{Outcome, Verdict};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;

/// What came of a run, in the folder of the run.
pub const VERDICT: &str = "verdict.json";

/// What is kept of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What people call it.
    pub name: String,
    /// What was asked of the cluster.
    pub workloads: String,
    /// What was done to it.
    pub fault: String,
    /// Decides what was left to chance.
    pub seed: u64,
    /// Of what build.
    pub version: String,
    /// What came of it, in one word.
    pub verdict: String,
    /// What is wrong or unknown, in short; or how much there was.
    pub detail: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// How often something was broken.
    pub faults: usize,
    /// What each checker has looked at and measured.
    pub says: BTreeMap<String, String>,
    /// How long things took, in milliseconds, by what it is; in order.
    #[serde(default)]
    pub times: BTreeMap<String, Vec<u64>>,
}

impl Record {
    /// What is kept of a run that was judged.
    pub fn of(judged: &Judged) -> Self {
        let run = judged.run.as_ref();
        let meta = run.map(|run| run.meta.clone()).unwrap_or_default();
        let or_unknown = |text: String| if text.is_empty() { "?".to_owned() } else { text };
        let outcomes = judged.judgement.outcomes.iter();
        Self {
            name: judged.name(),
            workloads: or_unknown(meta.workloads.join(" + ")),
            fault: or_unknown(meta.fault),
            seed: meta.seed,
            version: meta.version,
            verdict: judged.judgement.verdict.word().to_owned(),
            detail: detail(judged),
            took_ms: run.and_then(|run| run.entries.last()).map_or(0, |e| e.time / 1_000_000),
            faults: run.map_or(0, |run| run.facts.faults.len()),
            times: outcomes
                .clone()
                .flat_map(|outcome| &outcome.times)
                .map(|(what, times)| ((*what).to_owned(), times.clone()))
                .collect(),
            says: outcomes
                .filter(|outcome| outcome.word() != "nothing")
                .map(|outcome| (outcome.name.to_owned(), outcome.summary()))
                .collect(),
        }
    }

    /// What was kept in the folder of a run.
    ///
    /// # Errors
    /// If there is nothing, or it cannot be read.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(VERDICT);
        let text = std::fs::read(&path).with_context(|| format!("cannot open {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no verdict", path.display()))
    }

    /// Puts it into the folder of the run.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        write(&folder.join(VERDICT), &(serde_json::to_string_pretty(self)? + "\n"))
    }

    /// Whether it is of these workloads and this fault.
    pub fn is_of(&self, workloads: &[&str], fault: &str) -> bool {
        self.workloads == workloads.join(" + ") && self.fault == fault
    }
}

fn detail(judged: &Judged) -> String {
    let wrong = |o: &Outcome| format!("{} {}", o.name, grouped(o.found));
    match &judged.judgement.verdict {
        Verdict::Failed(_) => {
            let failed = judged.judgement.outcomes.iter().filter(|o| o.found > 0);
            failed.map(wrong).collect::<Vec<_>>().join(", ")
        }
        Verdict::Unknown(reasons) => reasons.first().cloned().unwrap_or_default(),
        Verdict::Passed => judged.run.as_ref().map_or(String::new(), |run| {
            format!(
                "{} rows, {} faults",
                grouped(run.facts.rows() as u64),
                run.facts.faults.len()
            )
        }),
    }
}

/// All records of a file, one in each line; none if there is no file.
///
/// # Errors
/// If it cannot be read.
pub fn read(path: &Path) -> anyhow::Result<Vec<Record>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let parse = |(at, line): (usize, &str)| {
        serde_json::from_str(line).with_context(|| format!("{}:{} is no record", path.display(), at + 1))
    };
    text.lines().enumerate().map(parse).collect()
}

/// Puts one among those of a file, instead of what was there of the same cell, and writes the table beside it.
///
/// # Errors
/// If a file cannot be read or written.
pub fn keep(path: &Path, record: Record) -> anyhow::Result<()> {
    let mut records = read(path)?;
    let same = |other: &Record| (&other.fault, &other.workloads) == (&record.fault, &record.workloads);
    match records.iter_mut().find(|other| same(other)) {
        Some(other) => *other = record,
        None => records.push(record),
    }
    let lines: Result<Vec<String>, _> = records.iter().map(serde_json::to_string).collect();
    write(path, &(lines?.join("\n") + "\n"))?;
    write(&path.with_extension("md"), &table(&records))
}

/// The table: a row for each fault, a column for each group of workloads.
pub fn table(records: &[Record]) -> String {
    let count = |verdict: &str| records.iter().filter(|record| record.verdict == verdict).count();
    let took: u64 = records.iter().map(|record| record.took_ms).sum();
    let faults: usize = records.iter().map(|record| record.faults).sum();
    let groups: BTreeSet<&str> = records.iter().map(|record| record.workloads.as_str()).collect();
    let mut out = format!(
        "# Every workload under every fault\n\nWritten by `scripts/chaos matrix --out DIR --record FILE`, which goes on with what is open in FILE; a new FILE begins anew. What is broken \
         and what is asked says [chaos.md](chaos.md). Real nodes, a real Kafka, three of each.\n\n{} cells: {} passed, {} failed, {} unknown. {} faults in {}. {}\n\n",
        records.len(),
        count("passed"),
        count("failed"),
        count("unknown"),
        grouped(faults as u64),
        duration(took),
        versions(records)
    );
    out += &row("| |", groups.iter().map(|group| (*group).to_owned()));
    out += &row("| --- |", groups.iter().map(|_| "---".to_owned()));
    let mut seen = BTreeSet::new();
    let named = records.iter().map(|record| record.fault.as_str());
    for fault in named.filter(|fault| seen.insert(*fault)) {
        let of = |group: &&str| records.iter().find(|r| r.fault == fault && r.workloads == *group);
        let cells = groups
            .iter()
            .map(|group| of(group).map_or_else(|| "–".to_owned(), cell));
        out += &row(&format!("| {fault} |"), cells);
    }
    out + &times(records)
}

/// Of which builds they are.
fn versions(records: &[Record]) -> String {
    let mut cells: BTreeMap<&str, usize> = BTreeMap::new();
    for record in records {
        *cells.entry(&record.version).or_default() += 1;
    }
    let each = cells.iter().map(|(version, count)| format!("{count} of {version}"));
    format!("Builds: {}.", each.collect::<Vec<_>>().join(", "))
}

/// How long things took after each fault, over all its cells.
fn times(records: &[Record]) -> String {
    let mut by_fault: BTreeMap<&str, BTreeMap<&str, Vec<u64>>> = BTreeMap::new();
    for record in records {
        for (what, times) in &record.times {
            let of_fault = by_fault.entry(&record.fault).or_default();
            of_fault.entry(what).or_default().extend(times);
        }
    }
    let whats: BTreeSet<&str> = by_fault.values().flat_map(BTreeMap::keys).copied().collect();
    if whats.is_empty() {
        return String::new();
    }
    let mut out = "\n## How long it took\n\nFrom the beginning of each fault, and from when all was mended: how often that was measured, and p50, p90 and maximum in milliseconds. What the next fault cut short is not in it.\n\n".to_owned();
    out += &row("| |", whats.iter().map(|what| (*what).to_owned()));
    out += &row("| --- |", whats.iter().map(|_| "---".to_owned()));
    for (fault, mut of_fault) in by_fault {
        let cells = whats.iter().map(|what| {
            let Some(times) = of_fault.get_mut(what) else {
                return "–".to_owned();
            };
            times.sort_unstable();
            let at = |percent: usize| percentile(times, percent).unwrap_or_default();
            format!("{}: {}, {}, {}", times.len(), at(50), at(90), at(100))
        });
        out += &row(&format!("| {fault} |"), cells);
    }
    out
}

fn row(head: &str, cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<String> = cells.map(|cell| cell.replace('|', "\\|")).collect();
    format!("{head} {} |\n", cells.join(" | "))
}

/// A verdict with what there was, how long it took until all was well, and the seed.
fn cell(record: &Record) -> String {
    // The first thing that it says is how much it has looked at.
    let recovery = record.says.get("recovery").and_then(|says| says.split_once(", "));
    let lines = [
        Some(format!("**{}**: {}", record.verdict, record.detail)),
        recovery.map(|(_, measured)| measured.to_owned()),
        Some(format!("seed {}", record.seed)),
    ];
    lines.into_iter().flatten().collect::<Vec<_>>().join("<br>")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(fault: &str, workloads: &str, verdict: &str) -> Record {
        Record {
            name: format!("{workloads}: {fault}"),
            workloads: workloads.into(),
            fault: fault.into(),
            seed: 7,
            version: "0.1.0".into(),
            verdict: verdict.into(),
            detail: "12 rows, 3 faults".into(),
            took_ms: 90_000,
            faults: 3,
            says: [(
                "recovery".to_owned(),
                "4 faults and healings, well again after 4.2 s".to_owned(),
            )]
            .into(),
            times: [("well again after".to_owned(), vec![900, 4_200])].into(),
        }
    }

    #[test]
    fn a_cell_that_is_run_again_takes_the_place_of_what_was_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("matrix.jsonl");
        assert_eq!(read(&path).unwrap(), []);
        keep(&path, record("kill", "counter + transactions", "unknown")).unwrap();
        keep(&path, record("kill", "growth", "passed")).unwrap();
        keep(&path, record("cut", "growth", "passed")).unwrap();
        keep(&path, record("kill", "counter + transactions", "passed")).unwrap();
        let kept = read(&path).unwrap();
        assert_eq!(kept.len(), 3);
        assert!(kept[0].is_of(&["counter", "transactions"], "kill") && kept[0].verdict == "passed");
        let page = std::fs::read_to_string(folder.path().join("matrix.md")).unwrap();
        assert!(
            page.contains("3 cells: 3 passed, 0 failed, 0 unknown. 9 faults in 4 min 30 s."),
            "{page}"
        );
        assert!(page.contains("Builds: 3 of 0.1.0."), "{page}");
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with('|')).collect();
        assert_eq!(
            rows,
            [
                "| | counter + transactions | growth |",
                "| --- | --- | --- |",
                "| kill | **passed**: 12 rows, 3 faults<br>well again after 4.2 s<br>seed 7 | **passed**: 12 rows, 3 faults<br>well again after 4.2 s<br>seed 7 |",
                "| cut | – | **passed**: 12 rows, 3 faults<br>well again after 4.2 s<br>seed 7 |",
                "| | well again after |",
                "| --- | --- |",
                "| cut | 2: 900, 4200, 4200 |",
                "| kill | 4: 900, 4200, 4200 |",
            ]
        );
    }

    #[test]
    fn what_is_no_record_is_named_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("matrix.jsonl");
        keep(&path, record("kill", "growth", "passed")).unwrap();
        let text = std::fs::read_to_string(&path).unwrap() + "{}\n";
        std::fs::write(&path, text).unwrap();
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(error.contains("matrix.jsonl:2 is no record"), "{error}");
    }
}
