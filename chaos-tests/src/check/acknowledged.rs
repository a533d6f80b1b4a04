//! Rows that programs wrote themselves, by what they were told.
//!
//! `all`: there once, whatever happened. `leader`: may be missing only if the disk or the log of a node that may have led its shard was
//! taken before the row was committed, which a loss of power does not; and then all that it acknowledged behind it is missing too.
//! `none`: may be missing, never twice. Refused: never there. Nobody knows: there once or not. Whatever is missing of what was
//! acknowledged stands in the ledger as lost.

use super::decode::{ShardSample, Write};
use super::facts::Operation;
use super::ledger::{self, Sums};
use super::{Outcome, Run};
use crate::history::Kind;
use std::collections::{BTreeMap, BTreeSet};

/// Words by which a fault says that it takes away what a disk was given. A node with a damaged Raft log may have to be wiped.
const DESTROYS: [&str; 7] = ["wipe", "lose", "lying", "destroy", "replace", "-wal", "raft-log"];
/// After so many milliseconds a row that its leader has acknowledged is committed, whatever happens: ten times the `flush_age` of such
/// a table.
const COMMITTED_MS: u64 = 10_000;

/// What is known of a row, the strongest that any of its writes was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Refused,
    Nothing,
    None,
    Leader,
    All,
}

/// Rows that were written, and when.
type Written = (Operation, Write);

/// See the module's page.
pub fn check(run: &Run) -> Outcome {
    let mut outcome = Outcome::new("acknowledged");
    let mut rows: BTreeMap<(&str, &str, u64), (Told, &Written)> = BTreeMap::new();
    for written in &run.facts.writes {
        let (operation, write) = written;
        let told = told(operation, write);
        for row in &write.rows {
            let of = rows
                .entry((&write.table, &write.writer, *row))
                .or_insert((told, written));
            if told > of.0 {
                *of = (told, written);
            }
        }
    }
    let nodes = nodes(run);
    let mut missing: BTreeMap<&str, Missing> = BTreeMap::new();
    let mut unread = BTreeSet::new();
    let mut excused = 0;
    // The last row that its leader lost, and the fault that excuses it.
    let mut lost: Option<(&Written, usize)> = None;
    for ((table, writer, row), (told, written)) in &rows {
        let operation = &written.0;
        let of = missing.entry(table).or_default();
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
        if entries.is_empty() {
            match told {
                Told::Refused | Told::Nothing => of.others += 1,
                Told::None | Told::Leader | Told::All => of.acknowledged += 1,
            }
        }
        match verdict(run, &nodes, *told, written, entries.len()) {
            Fit::Fits => {
                let hole =
                    lost.filter(|(before, fault)| *told == Told::Leader && outlived(run, before, written, *fault));
                if let Some((before, fault)) = hole {
                    outcome.find(
                        &[before.0.invoke, operation.invoke, fault],
                        format!(
                            "row {row} of writer {writer} to {table} is there, and row {} that the same leader had acknowledged before it \
                             is not: what a leader loses is the end of its log",
                            before.1.rows.first().copied().unwrap_or_default()
                        ),
                    );
                }
            }
            Fit::Excused(fault) => {
                excused += 1;
                lost = Some((*written, fault));
            }
            Fit::Wrong(why) => {
                let shown: Vec<usize> = [operation.invoke, operation.end.unwrap_or(operation.invoke)]
                    .into_iter()
                    .chain(entries)
                    .collect();
                outcome.find(&shown, format!("row {row} of writer {writer} to {table} {why}"));
            }
        }
    }
    for (table, missing) in missing {
        written_down(run, &mut outcome, table, missing);
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

/// Rows of a table that are not there.
#[derive(Default)]
struct Missing {
    acknowledged: u64,
    /// Those that were refused, or of which nobody knows.
    others: u64,
}

/// The ledger counts every acknowledged row that is missing as lost, and none that is there.
fn written_down(run: &Run, outcome: &mut Outcome, table: &str, missing: Missing) {
    let fits = missing.acknowledged..=missing.acknowledged + missing.others;
    let sums = ledger::of_direct(run, table);
    if let Some(Sums { lost, entries, .. }) = sums.filter(|sums| !fits.contains(&sums.lost)) {
        outcome.find(
            &entries,
            format!(
                "table {table} lacks {} rows that were acknowledged and {} others, and the ledger counts {lost} as lost",
                missing.acknowledged, missing.others
            ),
        );
    }
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
    /// By the fault that begins at this entry.
    Excused(usize),
    Wrong(String),
}

fn verdict(run: &Run, nodes: &BTreeSet<&str>, told: Told, written: &Written, there: usize) -> Fit {
    match (told, there) {
        (_, 2..) => Fit::Wrong(format!("is there {there} times")),
        (Told::Refused, 1) => Fit::Wrong("was refused and is there".to_owned()),
        (Told::All, 0) => Fit::Wrong("was acknowledged by all and is not there".to_owned()),
        (Told::Leader, 0) => match leader_may_have_lost(run, nodes, written) {
            Some(fault) => Fit::Excused(fault),
            None => Fit::Wrong(
                "was acknowledged by its leader and is not there, and no fault took the disk or the log of a node that may have led it before it was committed".to_owned(),
            ),
        },
        _ => Fit::Fits,
    }
}

/// The beginning of the first fault that took what the leader's disk was given before the row was committed.
fn leader_may_have_lost(run: &Run, nodes: &BTreeSet<&str>, (operation, write): &Written) -> Option<usize> {
    let destroys = |fault: &str| DESTROYS.iter().any(|word| fault.contains(word));
    let written = operation.end.unwrap_or(operation.invoke);
    let mut faults = run.facts.faults.iter().filter(|f| destroys(&f.fault));
    let first = faults.find(|fault| {
        let over = fault.end.is_some_and(|end| end < operation.invoke);
        if over || run.ms(fault.begin) > run.ms(written) + COMMITTED_MS {
            return false;
        }
        let named: Vec<&str> = fault
            .target
            .split(|c: char| !c.is_alphanumeric() && c != '-')
            .filter(|word| nodes.contains(word))
            .collect();
        let led = may_have_led(run, operation, write, fault.begin);
        named.is_empty() || led.is_empty() || led.iter().any(|node| named.contains(node))
    });
    first.map(|fault| fault.begin)
}

/// Whether a row was acknowledged behind another one of its writer by the same leader, in the same epoch and shard, both before a fault
/// began. Where no sample shows the leader, it is not known.
fn outlived(run: &Run, (lost, of): &Written, (kept, behind): &Written, fault: usize) -> bool {
    let (Some(acknowledged), Some(end)) = (lost.end, kept.end) else {
        return false;
    };
    let Some(name) = shard_of(of) else { return false };
    if of.writer != behind.writer
        || shard_of(behind).as_ref() != Some(&name)
        || kept.invoke < acknowledged
        || end > fault
    {
        return false;
    }
    let samples = &run.facts.samples;
    let from = samples.partition_point(|(at, _)| *at < lost.invoke).checked_sub(1);
    let to = samples.partition_point(|(at, _)| *at <= end);
    let seen = from.and_then(|from| samples.get(from..=to));
    let Some(seen) = seen.filter(|seen| seen.last().is_some_and(|(at, _)| *at <= fault)) else {
        return false;
    };
    let mut led = seen.iter().map(|(_, sample)| {
        let shard = sample.shards.iter().find(|shard| shard.name() == name)?;
        Some((shard.leader.as_deref()?, shard.epoch?))
    });
    let first = led.next().flatten();
    first.is_some() && led.all(|led| led == first)
}

/// The names of all nodes, those that came later too.
fn nodes(run: &Run) -> BTreeSet<&str> {
    let samples = run.facts.samples.iter();
    let later = samples.flat_map(|(_, sample)| sample.nodes.keys());
    run.meta.nodes.iter().chain(later).map(String::as_str).collect()
}

/// The name of the shard that took a write, where that is known.
fn shard_of(write: &Write) -> Option<String> {
    Some(format!("{}/{}", write.table, write.shard?))
}

/// The nodes that led the shard from the last sample before a write to the first one after the fault; if nobody knows the shard, one of
/// the table; and the node that answered it.
fn may_have_led<'r>(run: &'r Run, operation: &Operation, write: &Write, until: usize) -> BTreeSet<&'r str> {
    let samples = &run.facts.samples;
    let from = samples
        .partition_point(|(at, _)| *at < operation.invoke)
        .saturating_sub(1);
    let to = (samples.partition_point(|(at, _)| *at < until) + 1).min(samples.len());
    let name = shard_of(write);
    let of_table = format!("{}/", write.table);
    let is_its = |shard: &&ShardSample| match &name {
        Some(name) => shard.name() == *name,
        None => shard.name().starts_with(&of_table),
    };
    let led = samples.get(from..to.max(from)).unwrap_or_default().iter();
    led.flat_map(|(_, sample)| sample.shards.iter().filter(is_its).filter_map(|s| s.leader.as_deref()))
        .chain(operation.end.and_then(|end| run.entries[end].node.as_deref()))
        .collect()
}
