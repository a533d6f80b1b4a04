//! Records that the log has and the table does not.
//!
//! A record may be missing where the harness destroyed the log, and where an operator skipped records and the ledger says how many
//! are lost. A record that was set aside is not lost, unless its producer says that it can be decoded.

use super::operator::Statement;
use super::sources::{Fate, PartitionLog};
use super::tables::Filled;
use super::{Outcome, Run};

/// See the module's page.
pub fn check(run: &Run) -> Outcome {
    let mut outcome = Outcome::new("lost");
    let (mut records, mut destroyed, mut skipped) = (0, 0, 0);
    for ((table, topic), filled) in &run.facts.tables.filled {
        for ((of, partition), log) in &run.facts.sources.logs {
            if of != topic {
                continue;
            }
            records += log.records.len();
            let missing = missing(filled, *partition, log, &mut destroyed);
            let may_skip = run.facts.acts_on(table, topic, Some(*partition)).any(|act| {
                let forward = |s: &Statement| {
                    matches!(
                        s,
                        Statement::Skip { .. } | Statement::DeleteRows { .. } | Statement::DropPipe { .. }
                    )
                };
                forward(&act.statement)
            });
            if may_skip && missing.len() as u64 <= counted_as_lost(run, table, topic, *partition) {
                skipped += missing.len();
                continue;
            }
            for (offset, id, entry) in missing {
                tell(run, &mut outcome, (table, topic, *partition), (*offset, *id, *entry));
            }
            set_aside(run, &mut outcome, (table, topic, *partition), filled, log);
        }
    }
    for (topic, partition) in run.facts.sources.logs.keys() {
        if !run.facts.tables.filled.keys().any(|(_, of)| of == topic) {
            outcome.doubt(format!(
                "nobody told the rows of a table that {topic}/{partition} goes to"
            ));
        }
    }
    outcome.looked(records, "records");
    outcome.looked(destroyed, "missing where the log was destroyed");
    outcome.looked(skipped, "skipped by an operator");
    outcome
}

type Record = (u64, Option<u64>, usize);

fn missing<'l>(filled: &Filled, partition: u32, log: &'l PartitionLog, destroyed: &mut usize) -> Vec<&'l Record> {
    let mut missing = Vec::new();
    for record in &log.records {
        let (offset, id, _) = record;
        let there = filled.at(partition, *offset).iter().any(|row| row.id == *id);
        if there || filled.rejected(partition, *offset).is_some() {
            continue;
        }
        match log.is_destroyed(*offset) {
            true => *destroyed += 1,
            false => missing.push(record),
        }
    }
    missing
}

fn tell(run: &Run, outcome: &mut Outcome, (table, topic, partition): (&str, &str, u32), (offset, id, entry): Record) {
    let sent = id.and_then(|id| run.facts.sources.sent.get(&id));
    let known = match sent.map(|sent| sent.fate) {
        Some(Fate::Acknowledged(_)) => "acknowledged and ",
        _ => "",
    };
    let id = id.map_or("without an id".to_owned(), |id| format!("id {id}"));
    let entries: Vec<usize> = sent.map(|sent| sent.entry).into_iter().chain([entry]).collect();
    outcome.find(
        &entries,
        format!("{topic}/{partition} has a record at offset {offset} ({id}), {known}in the log, which table {table} does not have"),
    );
}

/// Records that were set aside although they can be decoded.
fn set_aside(
    run: &Run,
    outcome: &mut Outcome,
    (table, topic, partition): (&str, &str, u32),
    filled: &Filled,
    log: &PartitionLog,
) {
    // Where there may have been another record, it may be that one.
    let once = |(offset, _): &&(u64, usize)| log.lives(*offset) == 1;
    for (offset, entry) in filled.rejects.get(&partition).into_iter().flatten().filter(once) {
        let sent = log
            .at(*offset)
            .and_then(|(_, id, _)| run.facts.sources.sent.get(&(*id)?));
        if let Some(sent) = sent.filter(|sent| sent.bad == Some(false)) {
            outcome.find(
                &[sent.entry, *entry],
                format!("{topic}/{partition} has a record at offset {offset} that can be decoded, and table {table} has set it aside"),
            );
        }
    }
}

fn counted_as_lost(run: &Run, table: &str, topic: &str, partition: u32) -> u64 {
    let of = |pipe: &str| run.facts.fills(pipe).is_some_and(|(t, of)| t == table && of == topic);
    let ledgers = run.facts.ledgers.iter().map(|(_, ledger)| ledger);
    ledgers
        .filter(|l| l.partition == partition && of(&l.pipe))
        .map(|l| l.lost)
        .sum()
}
