//! Forged registers.

use super::super::forge::Forge;
use crate::history::Kind;
use serde_json::{Value, json};

pub fn read_stale_register(f: &mut Forge<'_>) -> Option<()> {
    let gets = f.all("get", Kind::Ok);
    let set = |at: &usize| !f.entries[*at].value["value"].is_null();
    let stale: Vec<usize> = gets
        .iter()
        .copied()
        .filter(|at| {
            let begun = f.begin_of(*at).unwrap_or_default();
            let key = &f.entries[*at].value["key"];
            gets.iter()
                .any(|b| *b < begun && f.entries[*b].value["key"] == *key && set(b))
        })
        .collect();
    let read = f.one(&stale)?;
    f.value(read)["value"] = Value::Null;
    Some(())
}

pub fn read_foreign_value(f: &mut Forge<'_>) -> Option<()> {
    let read = f.one(&f.all("get", Kind::Ok))?;
    f.value(read)["value"] = json!(-7);
    Some(())
}

pub fn two_winners(f: &mut Forge<'_>) -> Option<()> {
    let all = f.all("cas", Kind::Ok);
    let last = |at: &usize| f.begin_of(*at).unwrap_or_default();
    let pairs: Vec<(usize, usize)> = all
        .iter()
        .flat_map(|a| all.iter().map(move |b| (*a, *b)))
        .filter(|(a, b)| *a < last(b) && f.entries[*a].value["key"] == f.entries[*b].value["key"])
        .collect();
    let (first, second) = f.one(&pairs)?;
    // Values are written once only: what the first one replaced can never be there again.
    let from = f.entries[first].value["from"].clone();
    let begun = f.begin_of(second)?;
    f.value(begun)["from"] = from.clone();
    f.value(second)["from"] = from;
    Some(())
}

/// A set that had ended, and a read that begins after a later set has ended and shows the first one all the same.
pub fn read_overwritten(f: &mut Forge<'_>) -> Option<()> {
    let sets = f.all("set", Kind::Ok);
    let begun = |at: usize| f.begin_of(at).unwrap_or_default();
    let key = |at: usize| &f.entries[at].value["key"];
    let mut pairs = Vec::new();
    for read in f.all("get", Kind::Ok) {
        for later in sets.iter().filter(|set| **set < begun(read) && key(**set) == key(read)) {
            let earlier = sets
                .iter()
                .filter(|set| **set < begun(*later) && key(**set) == key(read));
            pairs.extend(earlier.map(|earlier| (*earlier, read)));
        }
    }
    let (earlier, read) = f.one(&pairs)?;
    let old = f.value(earlier)["value"].clone();
    f.value(read)["value"] = old;
    Some(())
}
