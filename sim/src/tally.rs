//! What is counted in a history, and what must be there in many.

use crate::seeds::{self, Counts, add_counts, list};
use crate::time::Time;
use std::fmt;
use std::time::Duration;

/// What must have happened in a sum that proves something, beside all kinds of faults.
const ACTS: [&str; 19] = [
    "alter pipe",
    "alter table",
    "create pipe",
    "drain or resume a node",
    "drop pipe",
    "log lost with a disk",
    "log replayed",
    "message arrives twice",
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

/// What came of a history, or of many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Events.
    pub events: u64,
    /// Simulated time.
    pub time: Time,
    /// Commands that were committed.
    pub commands: u64,
    /// Commits of parts among them that were taken.
    pub commits: u64,
    /// Commands that were refused.
    pub refusals: u64,
    /// Faults, by name.
    pub faults: Counts,
    /// What operators did, by name.
    pub acts: Counts,
    /// Queries that were answered.
    pub queries: u64,
    /// Records that were produced.
    pub records: u64,
    /// Rows in the table at the end.
    pub rows: u64,
    /// Rows of programs that were acknowledged, by level.
    pub acked: Counts,
    /// A hash of the whole history.
    pub digest: u64,
}

impl seeds::Tally for Tally {
    fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.time += other.time;
        self.commands += other.commands;
        self.commits += other.commits;
        self.refusals += other.refusals;
        self.queries += other.queries;
        self.records += other.records;
        self.rows += other.rows;
        add_counts(&mut self.faults, &other.faults);
        add_counts(&mut self.acts, &other.acts);
        add_counts(&mut self.acked, &other.acked);
    }

    fn lacks(&self) -> Vec<&'static str> {
        let there = [
            ("commits", self.commits > 0),
            ("refusals", self.refusals > 0),
            ("queries", self.queries > 0),
            ("faults of all kinds", self.faults.len() == crate::nemesis::KINDS),
            ("rows acknowledged at every level", self.acked.len() == 3),
        ];
        let missing = there.iter().filter(|(_, is)| !is).map(|(name, _)| *name);
        let acts = ACTS.iter().filter(|act| !self.acts.contains_key(**act)).copied();
        missing.chain(acts).collect()
    }

    fn time(&self) -> Duration {
        Duration::from_micros(self.time)
    }

    fn steps(&self) -> u64 {
        self.events
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} commands, {} commits of parts, {} refused; {} queries; {} records produced, {} rows in the tables at the end",
            self.commands, self.commits, self.refusals, self.queries, self.records, self.rows
        )?;
        writeln!(f, "faults: {}", list(&self.faults))?;
        writeln!(f, "rows of programs acknowledged: {}", list(&self.acked))?;
        write!(f, "acts: {}", list(&self.acts))
    }
}
