//! Records that a table has more than once: the same offset twice, an offset both as a row and set aside, or an id that the log has
//! once and the table at two offsets.
//!
//! An operator who rereads and keeps the rows (`RESET … KEEP ROWS`, a pipe created again) asks for one more copy each time. Where a
//! log was destroyed, an offset may have had two records, with two ids.

use super::operator::Statement;
use super::tables::{Filled, Row};
use super::{Outcome, Run};
use std::collections::HashMap;

/// See the module's page.
pub fn check(run: &Run) -> Outcome {
    let mut outcome = Outcome::new("duplicated");
    let (mut rows, mut rejects, mut wanted) = (0, 0, 0);
    for ((table, topic), filled) in &run.facts.tables.filled {
        for (partition, of) in &filled.rows {
            let copies = copies(run, table, topic, *partition);
            wanted += copies - 1;
            rows += of.len();
            offsets(run, &mut outcome, (table, topic, *partition), of, copies);
        }
        for (partition, of) in &filled.rejects {
            rejects += of.len();
            let copies = copies(run, table, topic, *partition);
            set_aside(run, &mut outcome, (table, topic, *partition), filled, of, copies);
        }
        ids(run, &mut outcome, table, topic, filled);
    }
    for ((table, writer), of) in &run.facts.tables.direct {
        rows += of.len();
        for pair in of.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            outcome.find(
                &[pair[0].1, pair[1].1],
                format!("table {table} has row {} of writer {writer} twice", pair[0].0),
            );
        }
    }
    outcome.looked(rows, "rows");
    outcome.looked(rejects, "records set aside");
    outcome.looked(wanted, "rereads that operators asked for");
    outcome
}

/// How often a row may be there.
fn copies(run: &Run, table: &str, topic: &str, partition: u32) -> usize {
    let acts = || run.facts.acts_on(table, topic, Some(partition));
    let rereads = acts()
        .filter(|a| matches!(a.statement, Statement::Reread { .. }))
        .count();
    let created = acts()
        .filter(|a| matches!(a.statement, Statement::CreatePipe { .. }))
        .count();
    1 + rereads + created.saturating_sub(1)
}

fn offsets(
    run: &Run,
    outcome: &mut Outcome,
    (table, topic, partition): (&str, &str, u32),
    rows: &[Row],
    copies: usize,
) {
    let log = run.facts.sources.logs.get(&(topic.to_owned(), partition));
    for same in rows
        .chunk_by(|a, b| a.offset == b.offset)
        .filter(|same| same.len() > copies)
    {
        let offset = same[0].offset;
        let most = same.chunk_by(|a, b| a.id == b.id).map(<[Row]>::len).max().unwrap_or(0);
        if log.is_some_and(|log| log.lives(offset) > 1) && most <= copies {
            continue;
        }
        let entries: Vec<usize> = same.iter().map(|row| row.entry).collect();
        let text = format!(
            "table {table} has {topic}/{partition}, offset {offset}, {} times",
            same.len()
        );
        outcome.find(&entries, text);
    }
}

fn set_aside(
    run: &Run,
    outcome: &mut Outcome,
    (table, topic, partition): (&str, &str, u32),
    filled: &Filled,
    rejects: &[(u64, usize)],
    copies: usize,
) {
    let log = run.facts.sources.logs.get(&(topic.to_owned(), partition));
    for same in rejects.chunk_by(|a, b| a.0 == b.0) {
        let (offset, entry) = same[0];
        let lives = log.map_or(1, |log| log.lives(offset));
        if same.len() > copies * lives {
            let text = format!(
                "table {table} has set {topic}/{partition}, offset {offset}, aside {} times",
                same.len()
            );
            outcome.find(&[entry, same[same.len() - 1].1], text);
        }
        if let Some(row) = filled.at(partition, offset).first()
            && lives == 1
        {
            let text = format!("table {table} has {topic}/{partition}, offset {offset}, as a row and set aside");
            outcome.find(&[row.entry, entry], text);
        }
    }
}

/// Ids that are at more offsets of the table than of the log.
fn ids(run: &Run, outcome: &mut Outcome, table: &str, topic: &str, filled: &Filled) {
    let mut places: HashMap<u64, Vec<(u32, Row)>> = HashMap::new();
    for (partition, rows) in &filled.rows {
        for same in rows.chunk_by(|a, b| (a.offset, a.id) == (b.offset, b.id)) {
            if let Some(id) = same[0].id {
                places.entry(id).or_default().push((*partition, same[0]));
            }
        }
    }
    let mut twice: Vec<_> = places.into_iter().filter(|(_, of)| of.len() > 1).collect();
    twice.sort_unstable_by_key(|(id, _)| *id);
    for (id, of) in twice {
        let logged = |(partition, row): &&(u32, Row)| {
            let log = run.facts.sources.logs.get(&(topic.to_owned(), *partition));
            log.and_then(|log| log.at(row.offset))
                .is_some_and(|(_, known, _)| *known == Some(id))
        };
        if of.iter().all(|place| logged(&place)) {
            continue;
        }
        let at: Vec<String> = of.iter().map(|(p, row)| format!("{p}/{}", row.offset)).collect();
        let entries: Vec<usize> = of.iter().map(|(_, row)| row.entry).collect();
        outcome.find(
            &entries,
            format!("table {table} has id {id} of {topic} at {}", at.join(" and ")),
        );
    }
}
