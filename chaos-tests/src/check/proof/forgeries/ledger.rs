//! Forged lines of the ledger.

use super::super::super::decode::DIRECT;
use super::super::forge::Forge;
use crate::history::Kind;
use serde_json::{Value, json};
use std::collections::BTreeSet;

pub fn change(number: &mut Value, by: i64) {
    *number = json!(number.as_i64().unwrap_or_default() + by);
}

/// The line of a partition that has had one life and whose log is whole.
pub fn ledger_of(f: &Forge<'_>, partition: u64) -> Option<usize> {
    let lines: Vec<usize> = f
        .all("ledger", Kind::Info)
        .into_iter()
        .filter(|at| f.entries[*at].value["partition"] == partition && f.entries[*at].value["topic"] != DIRECT)
        .collect();
    let touched = f.happened("operate", &format!("({partition})"))
        || f.entries
            .iter()
            .any(|e| e.f == "log-lost" && e.value["partition"] == partition);
    (lines.len() == 1 && !touched).then(|| lines[0])
}

pub fn a_line(f: &mut Forge<'_>) -> Option<usize> {
    let lines: Vec<usize> = (0..3).filter_map(|partition| ledger_of(f, partition)).collect();
    let enough = |at: &usize| {
        ["stored", "absent"]
            .iter()
            .all(|term| f.entries[*at].value[*term].as_u64() > Some(0))
    };
    let lines: Vec<usize> = lines.into_iter().filter(enough).collect();
    f.one(&lines)
}

pub fn ledger(f: &mut Forge<'_>, by: &[(&str, i64)]) -> Option<()> {
    let line = a_line(f)?;
    change_line(f, line, by)
}

fn change_line(f: &mut Forge<'_>, line: usize, by: &[(&str, i64)]) -> Option<()> {
    for (term, by) in by {
        change(&mut f.value(line)[*term], *by);
    }
    Some(())
}

pub fn ledger_says_no(f: &mut Forge<'_>) -> Option<()> {
    let line = a_line(f)?;
    f.value(line)["balanced"] = json!(false);
    Some(())
}

pub fn ledger_missing(f: &mut Forge<'_>) -> Option<()> {
    let line = a_line(f)?;
    f.cut(line);
    Some(())
}

/// The line of what programs wrote.
fn line_of_direct(f: &Forge<'_>) -> Option<usize> {
    let mut lines = f.all("ledger", Kind::Info).into_iter();
    lines.find(|at| f.entries[*at].value["topic"] == DIRECT)
}

pub fn of_direct(f: &mut Forge<'_>, by: &[(&str, i64)]) -> Option<()> {
    let line = line_of_direct(f)?;
    change_line(f, line, by)
}

/// Only where a row that was acknowledged is not there.
pub fn lost_is_hidden(f: &mut Forge<'_>) -> Option<()> {
    let there: BTreeSet<(String, u64)> = f.rows(true).into_iter().map(|at| f.written(at)).collect();
    let is_missing = |at: usize| {
        let write = &f.entries[at].value;
        let writer = write["writer"].as_str().unwrap_or_default();
        let mut rows = write["rows"].as_array().into_iter().flatten().filter_map(Value::as_u64);
        rows.any(|row| !there.contains(&(writer.to_owned(), row)))
    };
    f.all("write", Kind::Ok).into_iter().any(is_missing).then_some(())?;
    let line = line_of_direct(f)?;
    let lost = f.entries[line].value["lost"].as_i64()?;
    change_line(f, line, &[("passed", -lost), ("lost", -lost)])
}

pub fn files_disagree(f: &mut Forge<'_>) -> Option<()> {
    let checked = *f.all("check", Kind::Info).first()?;
    f.value(checked)["ok"] = json!(false);
    Some(())
}
