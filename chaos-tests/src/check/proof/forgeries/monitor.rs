//! Forged samples, digests and times, and a history that is not whole.

use super::super::forge::Forge;
use crate::history::{Entry, Kind};
use serde_json::{Value, json};

pub fn forge_digest(f: &mut Forge<'_>) -> Option<()> {
    let all = f.all("digest", Kind::Info);
    let shared = |at: &usize| {
        all.iter()
            .any(|b| b != at && f.entries[*b].value["version"] == f.entries[*at].value["version"])
    };
    let digest = f.one(&all.iter().copied().filter(shared).collect::<Vec<_>>())?;
    f.value(digest)["digest"] = json!("0000000000000bad");
    Some(())
}

pub fn second_leader(f: &mut Forge<'_>) -> Option<()> {
    let samples = f.all("sample", Kind::Info);
    let shard = (f.up_to(3) - 1) as usize;
    let epoch = |at: &usize| f.entries[*at].value["shards"][shard]["epoch"].clone();
    let shared: Vec<usize> = samples
        .iter()
        .copied()
        .filter(|at| samples.iter().any(|b| b != at && epoch(b) == epoch(at)))
        .collect();
    let sample = f.one(&shared)?;
    f.value(sample)["shards"][shard]["leader"] = json!("n9");
    Some(())
}

pub fn second_claim(f: &mut Forge<'_>) -> Option<()> {
    let claims = f.all("claim", Kind::Info);
    let leads = |at: &usize| {
        f.entries[*at].value["leading"]
            .as_array()
            .is_some_and(|led| !led.is_empty())
    };
    let claim = f.one(&claims.into_iter().filter(leads).collect::<Vec<_>>())?;
    f.value(claim)["node"] = json!("n9");
    Some(())
}

pub fn epoch_back(f: &mut Forge<'_>) -> Option<()> {
    let samples = f.all("sample", Kind::Info);
    let sample = f.one(samples.get(1..)?)?;
    let shard = &mut f.value(sample)["shards"][0];
    // Nobody led then, so that only the epoch is wrong.
    (shard["leader"], shard["epoch"]) = (Value::Null, json!(0));
    Some(())
}

// Recovery.

/// The next fault behind an entry, or the healing.
fn next_mark(f: &Forge<'_>, from: usize) -> Option<usize> {
    let is_mark = |e: &Entry| e.f.starts_with("begin ") || e.f == "healed";
    (from + 1..f.entries.len()).find(|at| is_mark(&f.entries[*at]))
}

pub fn answer_late(f: &mut Forge<'_>) -> Option<()> {
    let fault = f.one(&f.all("begin kill", Kind::Info))?;
    let answered = (fault + 1..f.entries.len()).find(|at| {
        let e = &f.entries[*at];
        e.f == "read" && e.kind == Kind::Ok && f.begin_of(*at).is_some_and(|begun| begun > fault)
    })?;
    f.delay_behind(answered - 1, 6_000);
    Some(())
}

pub fn seen_late(f: &mut Forge<'_>) -> Option<()> {
    // Nothing that would excuse it.
    if f.happened("operate", "RESET") || f.entries.iter().any(|e| e.f == "log-lost") {
        return None;
    }
    let fault = f.one(&f.all("begin kill", Kind::Info))?;
    let until = next_mark(f, fault)?;
    let acknowledged = (fault..until).find_map(|at| {
        let e = &f.entries[at];
        let is_row = e.f == "produce" && e.kind == Kind::Ok && e.value["bad"] != true;
        is_row.then(|| Some((at, e.value["partition"].to_string(), e.value["offset"].as_i64()?)))?
    });
    let (at, partition, offset) = acknowledged?;
    let sees = |e: &Entry| {
        let is_fresh = e.f == "read" && e.kind == Kind::Ok && e.value["consistency"] == "fresh";
        is_fresh && e.value["partitions"][&partition]["max_offset"].as_i64() >= Some(offset)
    };
    let seen = (at + 1..f.entries.len()).find(|at| sees(&f.entries[*at]))?;
    f.delay_behind(seen - 1, 41_000);
    Some(())
}

pub fn stay_behind(f: &mut Forge<'_>) -> Option<()> {
    let healed = *f.all("healed", Kind::Info).first()?;
    let samples: Vec<usize> = f
        .all("sample", Kind::Info)
        .into_iter()
        .filter(|at| *at > healed)
        .collect();
    for sample in &samples {
        f.value(*sample)["lag"] = json!(100_000);
    }
    f.delay_behind(samples.last()? - 1, 25_000);
    Some(())
}

pub fn catch_up_late(f: &mut Forge<'_>) -> Option<()> {
    let caught_up = *f.all("caught-up", Kind::Info).first()?;
    f.delay_behind(caught_up - 1, 31_000);
    Some(())
}

pub fn never_ok(f: &mut Forge<'_>) -> Option<()> {
    let gets = f.all("get", Kind::Ok);
    for at in &gets {
        f.entries[*at].kind = Kind::Info;
    }
    super::some(gets.len())
}

pub fn silent_when_healed(f: &mut Forge<'_>) -> Option<()> {
    let healed = f.one(&f.all("healed", Kind::Info))?;
    let reads: Vec<usize> = f.all("read", Kind::Ok).into_iter().filter(|at| *at > healed).collect();
    for at in &reads {
        f.entries[*at].kind = Kind::Fail;
    }
    super::some(reads.len())
}

pub fn lose_entry(f: &mut Forge<'_>) -> Option<()> {
    let entry = f.one(&f.all("sample", Kind::Info))?;
    f.entries.remove(entry);
    Some(())
}

pub fn misshapen(f: &mut Forge<'_>) -> Option<()> {
    let entry = f.one(&f.all("sample", Kind::Info))?;
    f.value(entry)["lag"] = json!("much");
    Some(())
}

pub fn lag_after_fault(f: &mut Forge<'_>) -> Option<()> {
    let fault = f.one(&f.all("begin kill", Kind::Info))?;
    let until = next_mark(f, fault)?;
    let samples: Vec<usize> = (fault..until).filter(|at| f.entries[*at].f == "sample").collect();
    for sample in &samples {
        f.value(*sample)["lag"] = json!(100_000);
    }
    f.delay_behind(*samples.last()?, 21_000);
    Some(())
}

pub fn end_without_begin(f: &mut Forge<'_>) -> Option<()> {
    let begun = f.one(&f.all("read", Kind::Invoke))?;
    f.cut(begun);
    Some(())
}

pub fn told_early(f: &mut Forge<'_>) -> Option<()> {
    let caught_up = *f.all("caught-up", Kind::Info).first()?;
    f.cut(caught_up);
    f.note("caught-up", json!({}));
    Some(())
}
