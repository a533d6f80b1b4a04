//! What readers saw while the run went on.
//!
//! No read may show fewer rows of a partition than were committed before it was asked for, nor a row twice, nor an offset that the
//! log never reached. What a reader of committed rows has seen never goes back; a reader of fresh rows may lose sight of rows that
//! were not committed, and never of those that were. Where an operator may have deleted rows between two reads, they are not compared.
//! Of whatever level and by whomever, a read is of no older version of the catalog than any read that ended before it was asked for.

use super::decode::{PartitionRead, Read};
use super::facts::Operation;
use super::operator::Statement;
use super::{Outcome, Run};
use crate::history::Who;
use std::collections::BTreeMap;

/// What one reader has to see at least, of one table at one level.
#[derive(Default)]
struct Session {
    /// Rows by partition that must not go away again, and the entry that says so.
    floor: BTreeMap<String, (u64, usize)>,
    /// The greatest offset seen, by partition.
    offset: BTreeMap<String, (i64, usize)>,
    /// The end of the last read.
    last: usize,
}

/// See the module's page.
pub fn check(run: &Run) -> Outcome {
    let mut outcome = Outcome::new("reads");
    let mut sessions: BTreeMap<(String, &str, &str), Session> = BTreeMap::new();
    let (mut fresh, mut committed, mut after_delete) = (0, 0, 0);
    for (operation, read) in &run.facts.reads {
        let end = operation.end.unwrap_or(operation.invoke);
        match read.consistency.as_str() {
            "committed" => committed += 1,
            _ => fresh += 1,
        }
        let reader = read
            .reader
            .clone()
            .unwrap_or_else(|| match &run.entries[operation.invoke].process {
                Who::Process(number) => format!("process {number}"),
                Who::Named(name) => name.clone(),
            });
        let session = sessions.entry((reader, &read.table, &read.consistency)).or_default();
        once(run, &mut outcome, operation, read);
        within_log(run, &mut outcome, operation, read);
        if may_have_deleted(run, &read.table, session.last, end) {
            after_delete += 1;
            session.floor.clear();
            session.offset.clear();
            session.last = end;
            // Its floor may be from before. What it saw is from after, unless the rows may have gone while it was answered.
            if !may_have_deleted(run, &read.table, operation.invoke, end) {
                remember_seen(operation, read, session);
            }
            continue;
        }
        at_least_floor(&mut outcome, operation, read, session);
        if read.consistency == "committed" {
            never_back(&mut outcome, operation, read, session);
        }
        remember(operation, read, session);
    }
    versions_grow(run, &mut outcome);
    outcome.looked(fresh, "fresh reads");
    outcome.looked(committed, "committed reads");
    outcome.looked(sessions.len(), "sessions");
    outcome.looked(after_delete, "reads not compared since rows may have been deleted");
    outcome
}

/// A read is of the version that was the newest when it was asked for, or of a later one.
fn versions_grow(run: &Run, outcome: &mut Outcome) {
    let reads = || run.facts.reads.iter();
    let mut ended: Vec<(usize, u64)> = reads().filter_map(|(o, read)| Some((o.end?, read.version?))).collect();
    ended.sort_unstable();
    let mut ended = ended.into_iter().peekable();
    let mut newest: Option<(u64, usize)> = None;
    // In the order in which they were asked for.
    for (operation, read) in reads() {
        while let Some((end, version)) = ended.next_if(|(end, _)| *end < operation.invoke) {
            newest = newest.max(Some((version, end)));
        }
        if let (Some((before, entry)), Some(version)) = (newest, read.version)
            && version < before
        {
            let text = format!(
                "a {} read of {} had version {version} of the catalog, and another had been answered from version {before}",
                read.consistency, read.table
            );
            outcome.find(&[entry, operation.end.unwrap_or(operation.invoke)], text);
        }
    }
}

fn of<'r>(read: &'r Read, partition: &str) -> Option<&'r PartitionRead> {
    read.partitions.get(partition)
}

/// No row twice.
fn once(run: &Run, outcome: &mut Outcome, operation: &Operation, read: &Read) {
    let end = operation.end.unwrap_or(operation.invoke);
    let reread = run.facts.acts.iter().any(|act| {
        let again = matches!(act.statement, Statement::Reread { .. } | Statement::CreatePipe { .. });
        again && act.may_have && act.invoke <= end
    });
    for (partition, seen) in &read.partitions {
        let twice = seen.rows.saturating_sub(seen.distinct);
        if seen.rows != seen.distinct && !(reread && twice > 0) && twice > destroyed(run, &read.table, partition) {
            let text = format!(
                "a {} read saw {} rows of {}/{partition}, {} distinct ones",
                read.consistency, seen.rows, read.table, seen.distinct
            );
            outcome.find(&[end], text);
        }
        if seen.distinct > seen.rows {
            let text = format!(
                "a {} read counted {} rows of {}/{partition} and more distinct ones: {}",
                read.consistency, seen.rows, read.table, seen.distinct
            );
            outcome.find(&[end], text);
        }
    }
}

/// Offsets of a partition whose log was destroyed: each may have had two records.
fn destroyed(run: &Run, table: &str, partition: &str) -> u64 {
    let topics = run
        .facts
        .tables
        .filled
        .keys()
        .filter(|(t, _)| t == table)
        .map(|(_, topic)| topic);
    let logs = topics.filter_map(|topic| run.facts.sources.logs.get(&(topic.clone(), partition.parse().ok()?)));
    logs.map(|log| {
        log.destroyed
            .iter()
            .map(|(from, to)| to.saturating_sub(*from))
            .sum::<u64>()
            + log.former.len() as u64
    })
    .sum()
}

/// No offset that the log does not reach.
fn within_log(run: &Run, outcome: &mut Outcome, operation: &Operation, read: &Read) {
    let mut topics = run.facts.tables.filled.keys().filter(|(table, _)| *table == read.table);
    let (Some((_, topic)), None) = (topics.next(), topics.next()) else {
        return;
    };
    for (partition, seen) in &read.partitions {
        let place = partition.parse().ok().map(|p| (topic.clone(), p));
        let Some(log) = place.and_then(|place| run.facts.sources.logs.get(&place)) else {
            continue;
        };
        let offset = seen.max_offset.unwrap_or(-1);
        if log.known && log.destroyed.is_empty() && log.former.is_empty() && offset >= log.high as i64 {
            outcome.find(
                &[operation.end.unwrap_or(operation.invoke)],
                format!(
                    "a {} read of {} saw offset {offset} of {topic}/{partition}, whose log ends at {}",
                    read.consistency, read.table, log.high
                ),
            );
        }
    }
}

fn may_have_deleted(run: &Run, table: &str, from: usize, to: usize) -> bool {
    run.facts.acts.iter().any(|act| {
        let deletes = match &act.statement {
            Statement::DeleteRows { pipe, .. } => run.facts.fills(pipe).is_none_or(|(t, _)| t == table),
            Statement::DropTable { table: dropped } => dropped == table,
            _ => false,
        };
        deletes && act.within(from, to)
    })
}

/// Not less than was committed before this read, or an earlier one of the session, was asked for.
fn at_least_floor(outcome: &mut Outcome, operation: &Operation, read: &Read, session: &Session) {
    let end = operation.end.unwrap_or(operation.invoke);
    let rows = |partition: &str| of(read, partition).map_or(0, |p| p.rows);
    for (partition, floor) in &read.floor {
        if rows(partition) < *floor {
            let text = format!(
                "a {} read saw {} rows of {}/{partition}, and {floor} had been committed before it was asked for",
                read.consistency,
                rows(partition),
                read.table
            );
            outcome.find(&[operation.invoke, end], text);
        }
    }
    for (partition, (floor, entry)) in &session.floor {
        // What its own floor says is said already.
        if rows(partition) < *floor && rows(partition) >= read.floor.get(partition).copied().unwrap_or(0) {
            let text = format!(
                "a {} read saw {} rows of {}/{partition}, and its reader knew of {floor} committed ones",
                read.consistency,
                rows(partition),
                read.table
            );
            outcome.find(&[*entry, end], text);
        }
    }
}

/// Offsets do not go back.
fn never_back(outcome: &mut Outcome, operation: &Operation, read: &Read, session: &Session) {
    let end = operation.end.unwrap_or(operation.invoke);
    for (partition, (before, entry)) in &session.offset {
        let offset = of(read, partition).and_then(|p| p.max_offset).unwrap_or(-1);
        if offset < *before {
            let text = format!(
                "a committed read of {} saw offsets up to {offset} of partition {partition}, its reader had seen {before}",
                read.table
            );
            outcome.find(&[*entry, end], text);
        }
    }
}

fn remember(operation: &Operation, read: &Read, session: &mut Session) {
    session.last = operation.end.unwrap_or(operation.invoke);
    for (partition, floor) in &read.floor {
        session.raise(partition, *floor);
    }
    remember_seen(operation, read, session);
}

/// What a committed read saw, its reader must see from now on.
fn remember_seen(operation: &Operation, read: &Read, session: &mut Session) {
    if read.consistency != "committed" {
        return;
    }
    let end = operation.end.unwrap_or(operation.invoke);
    for (partition, seen) in &read.partitions {
        session.raise(partition, seen.rows);
        let offset = session.offset.entry(partition.clone()).or_insert((-1, end));
        if seen.max_offset.unwrap_or(-1) > offset.0 {
            *offset = (seen.max_offset.unwrap_or(-1), end);
        }
    }
}

impl Session {
    /// At least so many rows from now on, as the last read says.
    fn raise(&mut self, partition: &str, rows: u64) {
        let floor = self.floor.entry(partition.to_owned()).or_insert((rows, self.last));
        if rows > floor.0 {
            *floor = (rows, self.last);
        }
    }
}
