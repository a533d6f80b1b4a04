//! Rows that programs wrote themselves, by what they were told.
//!
//! `all`: there once, whatever happened. `leader`: may be missing only if, after it was written, a fault took the disk or the log of
//! a node that may have led its shard, which a loss of power does not. `none`: may be missing, never twice. Refused: never there.
//! Nobody knows: there once or not.

use super::decode::Write;
use super::facts::Operation;
use super::{Outcome, Run};
use crate::history::Kind;
use std::collections::BTreeMap;

/// Words by which a fault says that it takes away what a disk was given.
const DESTROYS: [&str; 6] = ["wipe", "lose", "lying", "destroy", "replace", "-wal"];

/// What is known of a row, the strongest that any of its writes was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Refused,
    Nothing,
    None,
    Leader,
    All,
}

/// See the module's page.
pub fn check(run: &Run) -> Outcome {
    let mut outcome = Outcome::new("acknowledged");
    let mut rows: BTreeMap<(&str, &str, u64), (Told, Operation)> = BTreeMap::new();
    for (operation, write) in &run.facts.writes {
        let told = told(operation, write);
        for row in &write.rows {
            let of = rows
                .entry((&write.table, &write.writer, *row))
                .or_insert((told, *operation));
            if told > of.0 {
                *of = (told, *operation);
            }
        }
    }
    let mut unread = std::collections::BTreeSet::new();
    let mut excused = 0;
    for ((table, writer, row), (told, operation)) in &rows {
        let Some(there) = run
            .facts
            .tables
            .direct
            .get(&((*table).to_owned(), (*writer).to_owned()))
        else {
            unread.insert((*table, *writer));
            continue;
        };
        let from = there.partition_point(|(n, _)| n < row);
        let entries: Vec<usize> = there[from..]
            .iter()
            .take_while(|(n, _)| n == row)
            .map(|(_, entry)| *entry)
            .collect();
        match verdict(run, *told, operation, entries.len()) {
            Fit::Fits => {}
            Fit::Excused => excused += 1,
            Fit::Wrong(why) => {
                let shown: Vec<usize> = [operation.invoke, operation.end.unwrap_or(operation.invoke)]
                    .into_iter()
                    .chain(entries)
                    .collect();
                outcome.find(&shown, format!("row {row} of writer {writer} to {table} {why}"));
            }
        }
    }
    for (table, writer) in unread {
        outcome.doubt(format!("nobody told the rows of {table} that writer {writer} wrote"));
    }
    let count = |of: Told| rows.values().filter(|(told, _)| *told == of).count();
    outcome.looked(count(Told::All), "rows acknowledged by all");
    outcome.looked(count(Told::Leader), "by the leader");
    outcome.looked(count(Told::None), "sent without waiting");
    outcome.looked(count(Told::Nothing), "of which nobody knows");
    outcome.looked(count(Told::Refused), "refused");
    outcome.looked(excused, "missing that a leader lost with its disk or log");
    outcome
}

fn told(operation: &Operation, write: &Write) -> Told {
    match (operation.kind, write.acks.as_deref()) {
        (Kind::Ok, Some("none")) => Told::None,
        (Kind::Ok, Some("leader")) => Told::Leader,
        (Kind::Ok, _) => Told::All,
        (Kind::Fail, _) => Told::Refused,
        (Kind::Info | Kind::Invoke, _) => Told::Nothing,
    }
}

enum Fit {
    Fits,
    Excused,
    Wrong(String),
}

fn verdict(run: &Run, told: Told, operation: &Operation, there: usize) -> Fit {
    match (told, there) {
        (_, 2..) => Fit::Wrong(format!("is there {there} times")),
        (Told::Refused, 1) => Fit::Wrong("was refused and is there".to_owned()),
        (Told::All, 0) => Fit::Wrong("was acknowledged by all and is not there".to_owned()),
        (Told::Leader, 0) if leader_may_have_lost(run, operation) => Fit::Excused,
        (Told::Leader, 0) => Fit::Wrong(
            "was acknowledged by its leader and is not there, and no fault took the disk or the log of a node that may have led it".to_owned(),
        ),
        _ => Fit::Fits,
    }
}

/// True if after the write a fault took what its leader's disk was given.
fn leader_may_have_lost(run: &Run, operation: &Operation) -> bool {
    let destroys = |fault: &str| DESTROYS.iter().any(|word| fault.contains(word));
    run.facts.faults.iter().filter(|f| destroys(&f.fault)).any(|fault| {
        if fault.end.unwrap_or(usize::MAX) < operation.invoke {
            return false;
        }
        let nodes = may_have_led(run, operation, fault.begin);
        let hit = |node: &String| {
            fault
                .target
                .split(|c: char| !c.is_alphanumeric() && c != '-')
                .any(|word| word == node)
        };
        let names_a_node = run.meta.nodes.iter().any(hit);
        nodes.is_empty() || !names_a_node || nodes.iter().any(hit)
    })
}

/// The nodes that led a shard from the last sample before a write to the first one after the fault, and the node that answered it.
fn may_have_led(run: &Run, operation: &Operation, until: usize) -> Vec<String> {
    let samples = &run.facts.samples;
    let from = samples
        .partition_point(|(at, _)| *at < operation.invoke)
        .saturating_sub(1);
    let to = (samples.partition_point(|(at, _)| *at < until) + 1).min(samples.len());
    let led = samples.get(from..to.max(from)).unwrap_or_default().iter();
    let mut nodes: Vec<String> = led
        .flat_map(|(_, sample)| sample.shards.iter().filter_map(|s| s.leader.clone()))
        .collect();
    nodes.extend(operation.end.and_then(|end| run.entries[end].node.clone()));
    nodes.sort();
    nodes.dedup();
    nodes
}
