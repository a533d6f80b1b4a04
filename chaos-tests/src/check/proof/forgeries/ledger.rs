//! Forged lines of the ledger.

use super::super::forge::Forge;
use crate::history::Kind;
use serde_json::{Value, json};

pub fn change(number: &mut Value, by: i64) {
    *number = json!(number.as_i64().unwrap_or_default() + by);
}

/// The line of a partition that has had one life and whose log is whole.
pub fn ledger_of(f: &Forge<'_>, partition: u64) -> Option<usize> {
    let lines: Vec<usize> = f
        .all("ledger", Kind::Info)
        .into_iter()
        .filter(|at| f.entries[*at].value["partition"] == partition)
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
