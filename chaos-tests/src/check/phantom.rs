//! Rows that should not be there: what the log does not have, what an aborted transaction sent, what was refused or never sent.
//!
//! A row whose record is gone from the log (compaction, retention, a log that the harness destroyed) is none, if somebody sent it.

use super::sources::{Fate, PartitionLog, Sent};
use super::tables::Row;
use super::{Outcome, Run};
use crate::history::Kind;
use std::collections::BTreeMap;

/// See the module's page.
pub fn check(run: &Run) -> Outcome {
    let mut outcome = Outcome::new("phantom");
    let (mut rows, mut gone) = (0, 0);
    let nothing = PartitionLog::default();
    for ((table, topic), filled) in &run.facts.tables.filled {
        let log_of = |partition: u32| {
            run.facts
                .sources
                .logs
                .get(&(topic.clone(), partition))
                .unwrap_or(&nothing)
        };
        for (partition, of) in &filled.rows {
            let log = log_of(*partition);
            rows += of.len();
            for row in of {
                match wrong(run, log, row) {
                    Ok(Seen::InLog) => {}
                    Ok(Seen::Gone) => gone += 1,
                    Err(why) => {
                        let sent = row.id.and_then(|id| run.facts.sources.sent.get(&id));
                        let entries: Vec<usize> = sent.map(|s| s.entry).into_iter().chain([row.entry]).collect();
                        let id = row.id.map_or("no id".to_owned(), |id| format!("id {id}"));
                        let text = format!(
                            "table {table} has a row of {topic}/{partition} at offset {} ({id}), {why}",
                            row.offset
                        );
                        outcome.find(&entries, text);
                    }
                }
            }
        }
        for (partition, of) in &filled.rejects {
            let log = log_of(*partition);
            for (offset, entry) in of {
                if log.at(*offset).is_none() && !log.may_have_held(*offset) && log.former.is_empty() {
                    let text = format!(
                        "table {table} has set aside {topic}/{partition} at offset {offset}, which the log does not have"
                    );
                    outcome.find(&[*entry], text);
                }
            }
        }
    }
    rows += direct(run, &mut outcome);
    outcome.looked(rows, "rows");
    outcome.looked(gone, "rows whose records are gone from the log");
    outcome
}

enum Seen {
    InLog,
    Gone,
}

fn wrong(run: &Run, log: &PartitionLog, row: &Row) -> Result<Seen, String> {
    let there = log.at(row.offset);
    if there.is_some_and(|(_, id, _)| *id == row.id) {
        return Ok(Seen::InLog);
    }
    let sent: Option<&Sent> = row.id.and_then(|id| run.facts.sources.sent.get(&id));
    match sent.map(|sent| sent.fate) {
        Some(Fate::Aborted) => return Err("of a transaction that was aborted".to_owned()),
        Some(Fate::Refused) => return Err("which was refused".to_owned()),
        _ => {}
    }
    if log.former.binary_search(&(row.offset, row.id)).is_ok() {
        return Ok(Seen::Gone);
    }
    if log.may_have_held(row.offset) || !log.former.is_empty() {
        // Compaction takes records away and never puts others in their place.
        let another = there.is_some() && log.lives(row.offset) == 1;
        match sent {
            _ if another => {}
            Some(_) => return Ok(Seen::Gone),
            None => return Err("which nobody sent".to_owned()),
        }
    }
    Err(match there {
        Some((_, Some(id), _)) => format!("where the log has id {id}"),
        Some((_, None, _)) => "where the log has a record without an id".to_owned(),
        None if row.offset >= log.high => format!("behind the end of the log, which is {}", log.high),
        None => "where the log has nothing".to_owned(),
    })
}

/// Rows of programs that write themselves.
fn direct(run: &Run, outcome: &mut Outcome) -> usize {
    let mut known: BTreeMap<(&str, &str, u64), (bool, usize)> = BTreeMap::new();
    for (operation, write) in &run.facts.writes {
        for row in &write.rows {
            let of = known
                .entry((&write.table, &write.writer, *row))
                .or_insert((false, operation.invoke));
            of.0 |= operation.kind != Kind::Fail;
            of.1 = operation.end.unwrap_or(operation.invoke);
        }
    }
    let mut rows = 0;
    for ((table, writer), of) in &run.facts.tables.direct {
        rows += of.len();
        for (row, entry) in of {
            match known.get(&(table, writer, *row)) {
                Some((true, _)) => {}
                Some((false, end)) => {
                    outcome.find(
                        &[*end, *entry],
                        format!("table {table} has row {row} of writer {writer}, which was refused"),
                    );
                }
                None => outcome.find(
                    &[*entry],
                    format!("table {table} has row {row} of writer {writer}, which it never wrote"),
                ),
            }
        }
    }
    rows
}
