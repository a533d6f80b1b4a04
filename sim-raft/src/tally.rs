//! What is counted in a history, and what must be there in many.

use crate::nemesis::{ACTS, FAULTS, OTHERS};
use std::fmt;
use std::time::Duration;
use tidemill_sim::seeds::{self, Counts, add_counts, list};

/// What must happen in many histories, or they prove nothing.
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

/// What came of a history, or of many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Simulated nanoseconds.
    pub time: u64,
    /// How often tasks of nodes were run.
    pub steps: u64,
    /// Entries that were committed.
    pub entries: u64,
    /// Elections that were won.
    pub elections: u64,
    /// Proposals that were acknowledged, with *yes* or *no*.
    pub acknowledged: u64,
    /// Proposals of which nobody knows the fate.
    pub unknown: u64,
    /// Linearizable reads that were answered.
    pub reads: u64,
    /// Other things that must happen for a run to prove something.
    pub events: Counts,
    /// Faults by name.
    pub faults: Counts,
    /// Changes of membership by name.
    pub acts: Counts,
    /// Hash of all that happened.
    pub digest: u64,
}

impl seeds::Tally for Tally {
    fn add(&mut self, other: &Self) {
        self.time += other.time;
        self.steps += other.steps;
        self.entries += other.entries;
        self.elections += other.elections;
        self.acknowledged += other.acknowledged;
        self.unknown += other.unknown;
        self.reads += other.reads;
        add_counts(&mut self.events, &other.events);
        add_counts(&mut self.faults, &other.faults);
        add_counts(&mut self.acts, &other.acts);
    }

    fn lacks(&self) -> Vec<&'static str> {
        let numbers = [
            ("acknowledged proposals", self.acknowledged),
            ("proposals of unknown fate", self.unknown),
            ("linearizable reads", self.reads),
        ];
        let none = numbers.into_iter().filter(|(_, count)| *count == 0);
        let faults = FAULTS.into_iter().chain(OTHERS);
        let faults = faults.filter(|fault| !self.faults.contains_key(fault));
        let acts = ACTS.into_iter().filter(|act| !self.acts.contains_key(act));
        let events = EVENTS.into_iter().filter(|event| !self.events.contains_key(event));
        none.map(|(name, _)| name)
            .chain(faults)
            .chain(acts)
            .chain(events)
            .collect()
    }

    fn time(&self) -> Duration {
        Duration::from_nanos(self.time)
    }

    fn steps(&self) -> u64 {
        self.steps
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} entries committed, {} elections; {} proposals acknowledged, {} of unknown fate; {} linearizable reads",
            self.entries, self.elections, self.acknowledged, self.unknown, self.reads
        )?;
        writeln!(f, "faults: {}", list(&self.faults))?;
        writeln!(f, "operators: {}", list(&self.acts))?;
        write!(f, "besides: {}", list(&self.events))
    }
}
