//! Forged reads.

use super::super::forge::Forge;
use super::ledger::change;
use crate::history::Kind;
use serde_json::{Value, json};

/// Reads of histories in which no operator reset anything: what is wrong there has no excuse.
pub fn plain_reads(f: &Forge<'_>, consistency: &str) -> Vec<usize> {
    if f.happened("operate", "RESET") {
        return Vec::new();
    }
    let is = |at: &usize| consistency.is_empty() || f.entries[*at].value["consistency"] == consistency;
    f.all("read", Kind::Ok).into_iter().filter(is).collect()
}

pub fn show_rows(f: &mut Forge<'_>, read: usize, partition: &str, rows: u64) {
    let seen = &mut f.value(read)["partitions"][partition];
    (seen["rows"], seen["distinct"]) = (json!(rows), json!(rows));
}

pub fn a_partition(f: &mut Forge<'_>) -> String {
    (f.up_to(3) - 1).to_string()
}

pub fn read_below_floor(f: &mut Forge<'_>) -> Option<()> {
    let partition = a_partition(f);
    let reads: Vec<usize> = plain_reads(f, "")
        .into_iter()
        .filter(|at| f.entries[*at].value["floor"][&partition].as_u64() > Some(0))
        .collect();
    let read = f.one(&reads)?;
    let floor = f.entries[read].value["floor"][&partition].as_u64()?;
    let less = floor - f.up_to(floor);
    show_rows(f, read, &partition, less);
    Some(())
}

pub fn read_below_known(f: &mut Forge<'_>) -> Option<()> {
    let partition = a_partition(f);
    let of = |v: &Value| v["floor"][&partition].as_u64();
    let (read, floor) = read_and_before(f, "fresh", of)?;
    let less = floor - f.up_to(floor);
    show_rows(f, read, &partition, less);
    // The read itself claims nothing.
    f.value(read)["floor"] = json!({});
    Some(())
}

pub fn read_twice(f: &mut Forge<'_>) -> Option<()> {
    let partition = a_partition(f);
    let seen = |at: &usize| f.entries[*at].value["partitions"][&partition]["rows"].as_u64() > Some(0);
    let expired = f.entries.iter().any(|e| e.f == "log-lost");
    let reads: Vec<usize> = plain_reads(f, "")
        .into_iter()
        .filter(|at| !expired && seen(at))
        .collect();
    let read = f.one(&reads)?;
    change(&mut f.value(read)["partitions"][&partition]["distinct"], -1);
    Some(())
}

/// A read and the most that an earlier one of its reader said.
pub fn read_and_before(
    f: &mut Forge<'_>,
    consistency: &str,
    of: impl Fn(&Value) -> Option<u64>,
) -> Option<(usize, u64)> {
    let reads = plain_reads(f, consistency);
    let pairs: Vec<(usize, u64)> = reads
        .iter()
        .filter_map(|at| {
            let reader = &f.entries[*at].value["reader"];
            let before = reads
                .iter()
                .filter(|b| *b < at && f.entries[**b].value["reader"] == *reader);
            let most = before.filter_map(|b| of(&f.entries[*b].value)).max()?;
            (most > 0).then_some((*at, most))
        })
        .collect();
    f.one(&pairs)
}

pub fn read_lower_offset(f: &mut Forge<'_>) -> Option<()> {
    let partition = a_partition(f);
    let (read, before) = read_and_before(f, "committed", |v| v["partitions"][&partition]["max_offset"].as_u64())?;
    let lower = before - f.up_to(before);
    f.value(read)["partitions"][&partition]["max_offset"] = json!(lower);
    Some(())
}

pub fn read_older_version(f: &mut Forge<'_>) -> Option<()> {
    let reads = plain_reads(f, "");
    let versions = |at: &usize| Some((*at, f.begin_of(*at)?, f.entries[*at].value["version"].as_u64()?));
    let told: Vec<(usize, usize, u64)> = reads.iter().filter_map(versions).collect();
    // Whoever asked for the one before.
    let before = |begun: usize| told.iter().filter(|(end, ..)| *end < begun).map(|told| told.2).max();
    let pairs: Vec<(usize, u64)> = told
        .iter()
        .filter_map(|(at, begun, _)| Some((*at, before(*begun).filter(|version| *version > 0)?)))
        .collect();
    let (read, before) = f.one(&pairs)?;
    let older = before - f.up_to(before);
    f.value(read)["version"] = json!(older);
    Some(())
}

pub fn read_behind_end(f: &mut Forge<'_>) -> Option<()> {
    let partition = a_partition(f);
    if f.entries
        .iter()
        .any(|e| e.f == "log-lost" && e.value["partition"].as_u64() == partition.parse().ok())
    {
        return None;
    }
    // The last of its reader, or the next one would go back.
    let read = *plain_reads(f, "fresh").last()?;
    f.value(read)["partitions"][&partition]["max_offset"] = json!(50_000 + f.up_to(9));
    Some(())
}

pub fn read_too_distinct(f: &mut Forge<'_>) -> Option<()> {
    let partition = a_partition(f);
    let read = f.one(&plain_reads(f, ""))?;
    change(&mut f.value(read)["partitions"][&partition]["distinct"], 1);
    Some(())
}
