//! Forged rows, rejects and records.

use super::super::forge::{At, Forge};
use super::ledger::{change, ledger_of};
use crate::history::Kind;
use serde_json::{Value, json};

/// Rows that no operator had a hand in and whose log was not destroyed: what is wrong there has no excuse.
pub fn plain_rows(f: &Forge<'_>) -> Vec<At> {
    f.rows(false)
        .into_iter()
        .filter(|at| is_plain(f, f.field(*at, 0)))
        .collect()
}

/// The same of a partition.
fn is_plain(f: &Forge<'_>, partition: u64) -> bool {
    let destroyed = f
        .entries
        .iter()
        .any(|e| e.f == "log-lost" && e.value["partition"] == partition);
    !destroyed && !f.happened("operate", &format!("({partition})"))
}

/// Those of them that a producer was told are there.
fn produced_rows(f: &Forge<'_>) -> Vec<At> {
    let produced: Vec<u64> = f
        .all("produce", Kind::Ok)
        .iter()
        .filter_map(|at| f.entries[*at].value["id"].as_u64())
        .collect();
    let rows = plain_rows(f).into_iter();
    rows.filter(|at| produced.contains(&f.field(*at, 2))).collect()
}

pub fn drop_row(f: &mut Forge<'_>) -> Option<()> {
    let row = f.one(&plain_rows(f))?;
    f.remove(row);
    Some(())
}

pub fn replace_row(f: &mut Forge<'_>) -> Option<()> {
    let rows = plain_rows(f);
    let (row, other) = (f.one(&rows)?, f.one(&rows)?);
    let id = f.field(other, 2);
    if f.field(row, 2) == id {
        return None;
    }
    f.row(row)[2] = json!(id);
    Some(())
}

pub fn reject_note(f: &mut Forge<'_>) -> Option<usize> {
    f.all("rejects", Kind::Info).first().copied()
}

pub fn set_aside(f: &mut Forge<'_>) -> Option<()> {
    let (row, note) = (f.one(&produced_rows(f))?, reject_note(f)?);
    let place = json!([f.field(row, 0), f.field(row, 1)]);
    f.remove(row);
    f.add(note, place);
    Some(())
}

pub fn row_and_reject(f: &mut Forge<'_>) -> Option<()> {
    let (row, note) = (f.one(&plain_rows(f))?, reject_note(f)?);
    let place = json!([f.field(row, 0), f.field(row, 1)]);
    f.add(note, place);
    Some(())
}

/// The log forgets a record, and the table and the ledger as well: nothing but the producer knows of it.
pub fn forget_record(f: &mut Forge<'_>) -> Option<()> {
    let row = f.one(&produced_rows(f))?;
    let (partition, offset) = (f.field(row, 0), f.field(row, 1));
    for at in f.all("log", Kind::Info) {
        let value = f.value(at);
        if value["partition"] == partition
            && let Some(records) = value["records"].as_array_mut()
        {
            records.retain(|record| record[0] != offset);
        }
    }
    f.remove(row);
    let line = ledger_of(f, partition)?;
    for (term, by) in [("stored", -1), ("delivered", -1), ("absent", 1)] {
        change(&mut f.value(line)[term], by);
    }
    Some(())
}

pub fn double_row(f: &mut Forge<'_>) -> Option<()> {
    let row = f.one(&plain_rows(f))?;
    let copy = f.row(row).clone();
    let note = f.one(
        &f.all("rows", Kind::Info)
            .into_iter()
            .filter(|at| f.entries[*at].value.get("topic").is_some())
            .collect::<Vec<_>>(),
    )?;
    f.add(note, copy);
    Some(())
}

pub fn copy_row(f: &mut Forge<'_>) -> Option<()> {
    let row = f.one(&plain_rows(f))?;
    let mut copy = f.row(row).clone();
    copy[1] = json!(f.field(row, 1) + f.up_to(1_000));
    f.add(row.entry, copy);
    Some(())
}

pub fn invent_row(f: &mut Forge<'_>) -> Option<()> {
    let row = f.one(&plain_rows(f))?;
    let holes = holes(f, f.field(row, 0));
    let (offset, id) = (f.one(&holes)?, 1_000_000 + f.up_to(1_000));
    let invented = json!([f.field(row, 0), offset, id]);
    f.add(row.entry, invented);
    Some(())
}

/// Offsets of a partition that hold no record.
pub fn holes(f: &Forge<'_>, partition: u64) -> Vec<u64> {
    let logs: Vec<&Value> = f
        .all("log", Kind::Info)
        .into_iter()
        .map(|at| &f.entries[at].value)
        .filter(|v| v["partition"] == partition)
        .collect();
    let taken: Vec<u64> = logs
        .iter()
        .flat_map(|v| v["records"].as_array().into_iter().flatten())
        .filter_map(|r| r[0].as_u64())
        .collect();
    let high = logs.first().and_then(|v| v["high"].as_u64()).unwrap_or_default();
    (0..high).filter(|offset| !taken.contains(offset)).collect()
}

pub fn row_behind_end(f: &mut Forge<'_>) -> Option<()> {
    let row = f.one(&plain_rows(f))?;
    let id = f
        .all("produce", Kind::Info)
        .iter()
        .find_map(|at| f.entries[*at].value["id"].as_u64())?;
    let behind = json!([f.field(row, 0), 100_000, id]);
    f.add(row.entry, behind);
    Some(())
}

pub fn show_aborted(f: &mut Forge<'_>) -> Option<()> {
    let aborted: Vec<Value> = f
        .all("transaction", Kind::Ok)
        .into_iter()
        .map(|at| &f.entries[at].value)
        .filter(|v| v["commit"] == false)
        .flat_map(|v| v["records"].as_array().cloned().unwrap_or_default())
        .collect();
    let (row, note) = (f.one(&aborted)?, f.one(&f.rows(false))?.entry);
    f.add(note, row);
    Some(())
}

pub fn swap_rows(f: &mut Forge<'_>) -> Option<()> {
    let keys: std::collections::BTreeMap<u64, String> = f
        .all("produce", Kind::Ok)
        .into_iter()
        .map(|at| &f.entries[at].value)
        .filter_map(|v| Some((v["id"].as_u64()?, v["key"].to_string())))
        .collect();
    let rows: Vec<At> = plain_rows(f)
        .into_iter()
        .filter(|at| keys.contains_key(&f.field(*at, 2)))
        .collect();
    let one = f.one(&rows)?;
    let same: Vec<At> = rows
        .into_iter()
        .filter(|at| keys.get(&f.field(*at, 2)) == keys.get(&f.field(one, 2)))
        .collect();
    let other = f.one(&same)?;
    let (first, second) = (f.field(one, 2), f.field(other, 2));
    if first == second {
        return None;
    }
    f.row(one)[2] = json!(second);
    f.row(other)[2] = json!(first);
    Some(())
}

pub fn reject_twice(f: &mut Forge<'_>) -> Option<()> {
    let notes = f.all("rejects", Kind::Info);
    let once = |at: &usize| {
        let first = &f.entries[*at].value["rows"][0];
        first[0].as_u64().is_some_and(|partition| is_plain(f, partition))
    };
    let note = f.one(&notes.into_iter().filter(once).collect::<Vec<_>>())?;
    let again = f.value(note)["rows"][0].clone();
    f.add(note, again);
    Some(())
}

pub fn reject_nothing(f: &mut Forge<'_>) -> Option<()> {
    let row = f.one(&plain_rows(f))?;
    let partition = f.field(row, 0);
    let (offset, note) = (f.one(&holes(f, partition))?, reject_note(f)?);
    f.add(note, json!([partition, offset]));
    Some(())
}

pub fn show_refused(f: &mut Forge<'_>) -> Option<()> {
    let refused = f.one(&f.all("produce", Kind::Fail))?;
    let id = f.value(refused)["id"].clone();
    let row = f.one(&plain_rows(f))?;
    let partition = f.field(row, 0);
    let offset = f.one(&holes(f, partition))?;
    f.add(row.entry, json!([partition, offset, id]));
    Some(())
}
