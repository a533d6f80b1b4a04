//! Forged rows of programs that write themselves.

use super::super::forge::{At, Forge};
use crate::history::Kind;
use serde_json::{Value, json};

/// Rows that are there, of writes at a level that ended well. Those at `leader` only where no disk was lost.
pub fn written_at(f: &Forge<'_>, acks: &str) -> Vec<At> {
    if acks == "leader" && f.happened("begin lose-disk", "") {
        return Vec::new();
    }
    let ok: Vec<&Value> = f
        .all("write", Kind::Ok)
        .into_iter()
        .map(|at| &f.entries[at].value)
        .collect();
    let is = |at: &At| {
        let (writer, row) = f.written(*at);
        let has = |v: &&&Value| {
            v["writer"] == writer.as_str() && v["rows"].as_array().is_some_and(|rows| rows.contains(&json!(row)))
        };
        ok.iter()
            .find(has)
            .is_some_and(|v| acks.is_empty() || v["acks"] == acks)
    };
    f.rows(true).into_iter().filter(is).collect()
}

pub fn drop_written(f: &mut Forge<'_>, acks: &str) -> Option<()> {
    let row = f.one(&written_at(f, acks))?;
    f.remove(row);
    Some(())
}

pub fn double_written(f: &mut Forge<'_>, acks: &str) -> Option<()> {
    let row = f.one(&written_at(f, acks))?;
    let copy = f.row(row).clone();
    f.add(row.entry, copy);
    Some(())
}

/// A note that tells rows of a writer.
pub fn note_of(f: &mut Forge<'_>, writer: &Value) -> Option<usize> {
    let notes: Vec<usize> = f
        .all("rows", Kind::Info)
        .into_iter()
        .filter(|at| f.entries[*at].value["writer"] == *writer)
        .collect();
    f.one(&notes)
}

pub fn show_refused(f: &mut Forge<'_>) -> Option<()> {
    let refused = f.one(&f.all("write", Kind::Fail))?;
    let write = f.value(refused).clone();
    let note = note_of(f, &write["writer"])?;
    f.add(note, write["rows"][0].clone());
    Some(())
}

pub fn invent_written(f: &mut Forge<'_>) -> Option<()> {
    let note = note_of(f, &json!("w0"))?;
    let row = json!(1_000_000 + f.up_to(1_000));
    f.add(note, row);
    Some(())
}

pub fn double_unknown(f: &mut Forge<'_>) -> Option<()> {
    let unknown = f.one(&f.all("write", Kind::Info))?;
    let write = f.value(unknown).clone();
    let row = write["rows"][0].clone();
    let note = note_of(f, &write["writer"])?;
    f.add(note, row.clone());
    f.add(note, row);
    Some(())
}
