//! The forgeries.

use super::Forgery;
use super::forge::{At, Forge};
use crate::history::Kind;
use serde_json::{Value, json};

const fn wrong(what: &'static str, by: &'static str, act: fn(&mut Forge<'_>) -> Option<()>) -> Forgery {
    Forgery {
        what,
        by,
        verdict: "failed",
        act,
    }
}

const fn doubtful(what: &'static str, by: &'static str, act: fn(&mut Forge<'_>) -> Option<()>) -> Forgery {
    Forgery {
        what,
        by,
        verdict: "unknown",
        act,
    }
}

/// All of them.
pub const FORGERIES: &[Forgery] = &[
    wrong("A row is dropped from the table.", "lost", drop_row),
    wrong(
        "A row has the id of a record that was sent elsewhere.",
        "lost",
        replace_row,
    ),
    wrong("A record that can be decoded is set aside.", "lost", set_aside),
    doubtful(
        "The log does not have what Kafka acknowledged.",
        "coverage",
        forget_record,
    ),
    wrong("A row is there twice.", "duplicated", double_row),
    wrong("A row is there at another offset as well.", "duplicated", copy_row),
    wrong("A record is a row and set aside.", "duplicated", row_and_reject),
    wrong("A row of a direct writer is there twice.", "duplicated", |f| {
        double_written(f, "")
    }),
    wrong("A row that nobody sent is invented.", "phantom", invent_row),
    wrong("A row of an aborted transaction is there.", "phantom", show_aborted),
    wrong("A row stands behind the end of the log.", "phantom", row_behind_end),
    wrong("A direct row that nobody wrote is invented.", "phantom", invent_written),
    wrong("Two rows of one key are exchanged.", "reordered", swap_rows),
    wrong(
        "A read shows fewer rows than were committed before.",
        "reads",
        read_below_floor,
    ),
    wrong(
        "A fresh read shows less than its reader knew to be committed.",
        "reads",
        read_below_known,
    ),
    wrong("A read shows a row twice.", "reads", read_twice),
    wrong(
        "A committed read goes back to a lower offset.",
        "reads",
        read_lower_offset,
    ),
    wrong(
        "A committed read has an older version of the catalog.",
        "reads",
        read_older_version,
    ),
    wrong(
        "A read shows an offset that the log never had.",
        "reads",
        read_behind_end,
    ),
    wrong("One record more is counted as stored.", "ledger", |f| {
        ledger(f, &[("stored", 1)])
    }),
    wrong("The ledger says that it does not balance.", "ledger", ledger_says_no),
    wrong("A record that was stored is counted as filtered.", "ledger", |f| {
        ledger(f, &[("stored", -1), ("filtered", 1)])
    }),
    wrong("The ledger does not reach the end of the log.", "ledger", |f| {
        ledger(f, &[("passed", -1), ("absent", -1)])
    }),
    wrong("A record that was delivered is counted as lost.", "ledger", |f| {
        ledger(f, &[("lost", 1), ("delivered", -1), ("stored", -1)])
    }),
    wrong("The ledger of a partition is missing.", "ledger", ledger_missing),
    wrong("A row acknowledged by all is not there.", "acknowledged", |f| {
        drop_written(f, "all")
    }),
    wrong(
        "A row acknowledged by its leader is gone without a reason.",
        "acknowledged",
        |f| drop_written(f, "leader"),
    ),
    wrong(
        "A row that was sent without waiting is there twice.",
        "acknowledged",
        |f| double_written(f, "none"),
    ),
    wrong("A row that was refused is there.", "acknowledged", show_refused),
    wrong("A register is read as it was before.", "registers", read_stale_register),
    wrong("A register holds what nobody wrote.", "registers", read_foreign_value),
    wrong(
        "Two comparisons with the same value both succeed.",
        "registers",
        two_winners,
    ),
    wrong("A node has another state at the same version.", "digests", forge_digest),
    wrong("A second node leads in the same epoch.", "leadership", second_leader),
    wrong("An epoch goes back.", "leadership", epoch_back),
    wrong(
        "No read is answered for a long time after a fault.",
        "recovery",
        answer_late,
    ),
    wrong(
        "The lag never comes down after all was healed.",
        "recovery",
        stay_behind,
    ),
    wrong("Everything is caught up too late.", "recovery", catch_up_late),
    doubtful("The fault that the run is about never happened.", "coverage", |f| {
        some(f.cut_all(|e| e.f.ends_with(" kill")))
    }),
    doubtful(
        "No operation of a kind that the run needs succeeded.",
        "coverage",
        never_ok,
    ),
    doubtful("Nothing says that all was healed.", "coverage", |f| {
        some(f.cut_all(|e| e.f == "healed"))
    }),
    doubtful("Nothing says that all was caught up.", "coverage", |f| {
        some(f.cut_all(|e| e.f == "caught-up"))
    }),
    doubtful("A fault is not over when all is said to be healed.", "coverage", |f| {
        some(f.cut_all(|e| e.f == "end kill"))
    }),
    doubtful("The harness gives up.", "coverage", |f| {
        f.note("failed", json!({ "why": "no port was free" }));
        Some(())
    }),
    doubtful("An entry is cut out.", "coverage", lose_entry),
    doubtful("An entry has another form.", "coverage", misshapen),
    doubtful("Nobody looked at the table in the end.", "coverage", |f| {
        some(f.cut_all(|e| matches!(e.f.as_str(), "rows" | "rejects" | "ledger" | "log")))
    }),
];

fn some(count: usize) -> Option<()> {
    (count > 0).then_some(())
}

/// Rows that no operator had a hand in and whose log was not destroyed: what is wrong there has no excuse.
fn plain_rows(f: &Forge<'_>) -> Vec<At> {
    let may = |at: &At| {
        let partition = f.field(*at, 0);
        let destroyed = f
            .entries
            .iter()
            .any(|e| e.f == "log-lost" && e.value["partition"] == partition);
        !destroyed && !f.happened("operate", &format!("({partition})"))
    };
    f.rows(false).into_iter().filter(may).collect()
}

fn drop_row(f: &mut Forge<'_>) -> Option<()> {
    let row = f.one(&plain_rows(f))?;
    f.remove(row);
    Some(())
}

fn replace_row(f: &mut Forge<'_>) -> Option<()> {
    let rows = plain_rows(f);
    let (row, other) = (f.one(&rows)?, f.one(&rows)?);
    let id = f.field(other, 2);
    if f.field(row, 2) == id {
        return None;
    }
    f.row(row)[2] = json!(id);
    Some(())
}

fn reject_note(f: &mut Forge<'_>) -> Option<usize> {
    f.all("rejects", Kind::Info).first().copied()
}

fn set_aside(f: &mut Forge<'_>) -> Option<()> {
    let produced: Vec<u64> = f
        .all("produce", Kind::Ok)
        .iter()
        .filter_map(|at| f.entries[*at].value["id"].as_u64())
        .collect();
    let rows: Vec<At> = plain_rows(f)
        .into_iter()
        .filter(|at| produced.contains(&f.field(*at, 2)))
        .collect();
    let (row, note) = (f.one(&rows)?, reject_note(f)?);
    let place = json!([f.field(row, 0), f.field(row, 1)]);
    f.remove(row);
    f.add(note, place);
    Some(())
}

fn row_and_reject(f: &mut Forge<'_>) -> Option<()> {
    let (row, note) = (f.one(&plain_rows(f))?, reject_note(f)?);
    let place = json!([f.field(row, 0), f.field(row, 1)]);
    f.add(note, place);
    Some(())
}

/// The log forgets a record, and the table and the ledger as well: nothing but the producer knows of it.
fn forget_record(f: &mut Forge<'_>) -> Option<()> {
    let produced: Vec<u64> = f
        .all("produce", Kind::Ok)
        .iter()
        .filter_map(|at| f.entries[*at].value["id"].as_u64())
        .collect();
    let rows: Vec<At> = plain_rows(f)
        .into_iter()
        .filter(|at| produced.contains(&f.field(*at, 2)))
        .collect();
    let row = f.one(&rows)?;
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

fn double_row(f: &mut Forge<'_>) -> Option<()> {
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

fn copy_row(f: &mut Forge<'_>) -> Option<()> {
    let row = f.one(&plain_rows(f))?;
    let mut copy = f.row(row).clone();
    copy[1] = json!(f.field(row, 1) + f.up_to(1_000));
    f.add(row.entry, copy);
    Some(())
}

fn invent_row(f: &mut Forge<'_>) -> Option<()> {
    let row = f.one(&plain_rows(f))?;
    let holes = holes(f, f.field(row, 0));
    let (offset, id) = (f.one(&holes)?, 1_000_000 + f.up_to(1_000));
    let invented = json!([f.field(row, 0), offset, id]);
    f.add(row.entry, invented);
    Some(())
}

/// Offsets of a partition that hold no record.
fn holes(f: &Forge<'_>, partition: u64) -> Vec<u64> {
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

fn row_behind_end(f: &mut Forge<'_>) -> Option<()> {
    let row = f.one(&plain_rows(f))?;
    let id = f
        .all("produce", Kind::Info)
        .iter()
        .find_map(|at| f.entries[*at].value["id"].as_u64())?;
    let behind = json!([f.field(row, 0), 100_000, id]);
    f.add(row.entry, behind);
    Some(())
}

fn show_aborted(f: &mut Forge<'_>) -> Option<()> {
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

fn swap_rows(f: &mut Forge<'_>) -> Option<()> {
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

// Reads.

/// Reads of histories in which no operator reset anything: what is wrong there has no excuse.
fn plain_reads(f: &Forge<'_>, consistency: &str) -> Vec<usize> {
    if f.happened("operate", "RESET") {
        return Vec::new();
    }
    let is = |at: &usize| consistency.is_empty() || f.entries[*at].value["consistency"] == consistency;
    f.all("read", Kind::Ok).into_iter().filter(is).collect()
}

fn show_rows(f: &mut Forge<'_>, read: usize, partition: &str, rows: u64) {
    let seen = &mut f.value(read)["partitions"][partition];
    (seen["rows"], seen["distinct"]) = (json!(rows), json!(rows));
}

fn a_partition(f: &mut Forge<'_>) -> String {
    (f.up_to(3) - 1).to_string()
}

fn read_below_floor(f: &mut Forge<'_>) -> Option<()> {
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

fn read_below_known(f: &mut Forge<'_>) -> Option<()> {
    let partition = a_partition(f);
    let reads = plain_reads(f, "fresh");
    let known: Vec<(usize, u64)> = reads
        .iter()
        .filter_map(|at| {
            let reader = &f.entries[*at].value["reader"];
            let before = reads
                .iter()
                .filter(|b| *b < at && f.entries[**b].value["reader"] == *reader);
            let floor = before
                .filter_map(|b| f.entries[*b].value["floor"][&partition].as_u64())
                .max()?;
            (floor > 0).then_some((*at, floor))
        })
        .collect();
    let (read, floor) = f.one(&known)?;
    let less = floor - f.up_to(floor);
    show_rows(f, read, &partition, less);
    // The read itself claims nothing.
    f.value(read)["floor"] = json!({});
    Some(())
}

fn read_twice(f: &mut Forge<'_>) -> Option<()> {
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

/// A committed read and what an earlier one of its reader said.
fn read_and_before(f: &mut Forge<'_>, of: impl Fn(&Value) -> Option<u64>) -> Option<(usize, u64)> {
    let reads = plain_reads(f, "committed");
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

fn read_lower_offset(f: &mut Forge<'_>) -> Option<()> {
    let partition = a_partition(f);
    let (read, before) = read_and_before(f, |v| v["partitions"][&partition]["max_offset"].as_u64())?;
    let lower = before - f.up_to(before);
    f.value(read)["partitions"][&partition]["max_offset"] = json!(lower);
    Some(())
}

fn read_older_version(f: &mut Forge<'_>) -> Option<()> {
    let (read, before) = read_and_before(f, |v| v["version"].as_u64())?;
    let older = before - f.up_to(before);
    f.value(read)["version"] = json!(older);
    Some(())
}

fn read_behind_end(f: &mut Forge<'_>) -> Option<()> {
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

// The ledger.

fn change(number: &mut Value, by: i64) {
    *number = json!(number.as_i64().unwrap_or_default() + by);
}

/// The line of a partition that has had one life and whose log is whole.
fn ledger_of(f: &Forge<'_>, partition: u64) -> Option<usize> {
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

fn a_line(f: &mut Forge<'_>) -> Option<usize> {
    let lines: Vec<usize> = (0..3).filter_map(|partition| ledger_of(f, partition)).collect();
    let enough = |at: &usize| {
        ["stored", "absent"]
            .iter()
            .all(|term| f.entries[*at].value[*term].as_u64() > Some(0))
    };
    let lines: Vec<usize> = lines.into_iter().filter(enough).collect();
    f.one(&lines)
}

fn ledger(f: &mut Forge<'_>, by: &[(&str, i64)]) -> Option<()> {
    let line = a_line(f)?;
    for (term, by) in by {
        change(&mut f.value(line)[*term], *by);
    }
    Some(())
}

fn ledger_says_no(f: &mut Forge<'_>) -> Option<()> {
    let line = a_line(f)?;
    f.value(line)["balanced"] = json!(false);
    Some(())
}

fn ledger_missing(f: &mut Forge<'_>) -> Option<()> {
    let line = a_line(f)?;
    f.cut(line);
    Some(())
}

// Direct writes.

/// Rows that are there, of writes at a level that ended well. Those at `leader` only where no disk was lost.
fn written_at(f: &Forge<'_>, acks: &str) -> Vec<At> {
    if acks == "leader" && f.happened("begin power", "") {
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

fn drop_written(f: &mut Forge<'_>, acks: &str) -> Option<()> {
    let row = f.one(&written_at(f, acks))?;
    f.remove(row);
    Some(())
}

fn double_written(f: &mut Forge<'_>, acks: &str) -> Option<()> {
    let row = f.one(&written_at(f, acks))?;
    let copy = f.row(row).clone();
    f.add(row.entry, copy);
    Some(())
}

/// A note that tells rows of a writer.
fn note_of(f: &mut Forge<'_>, writer: &Value) -> Option<usize> {
    let notes: Vec<usize> = f
        .all("rows", Kind::Info)
        .into_iter()
        .filter(|at| f.entries[*at].value["writer"] == *writer)
        .collect();
    f.one(&notes)
}

fn show_refused(f: &mut Forge<'_>) -> Option<()> {
    let refused = f.one(&f.all("write", Kind::Fail))?;
    let write = f.value(refused).clone();
    let note = note_of(f, &write["writer"])?;
    f.add(note, write["rows"][0].clone());
    Some(())
}

fn invent_written(f: &mut Forge<'_>) -> Option<()> {
    let note = note_of(f, &json!("w0"))?;
    let row = json!(1_000_000 + f.up_to(1_000));
    f.add(note, row);
    Some(())
}

// Registers.

fn read_stale_register(f: &mut Forge<'_>) -> Option<()> {
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

fn read_foreign_value(f: &mut Forge<'_>) -> Option<()> {
    let read = f.one(&f.all("get", Kind::Ok))?;
    f.value(read)["value"] = json!(-7);
    Some(())
}

fn two_winners(f: &mut Forge<'_>) -> Option<()> {
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

// What the monitor saw.

fn forge_digest(f: &mut Forge<'_>) -> Option<()> {
    let all = f.all("digest", Kind::Info);
    let shared = |at: &usize| {
        all.iter()
            .any(|b| b != at && f.entries[*b].value["version"] == f.entries[*at].value["version"])
    };
    let digest = f.one(&all.iter().copied().filter(shared).collect::<Vec<_>>())?;
    f.value(digest)["digest"] = json!("0000000000000bad");
    Some(())
}

fn second_leader(f: &mut Forge<'_>) -> Option<()> {
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

fn epoch_back(f: &mut Forge<'_>) -> Option<()> {
    let samples = f.all("sample", Kind::Info);
    let sample = f.one(samples.get(1..)?)?;
    let shard = &mut f.value(sample)["shards"][0];
    // Nobody led then, so that only the epoch is wrong.
    (shard["leader"], shard["epoch"]) = (Value::Null, json!(0));
    Some(())
}

// Recovery.

fn answer_late(f: &mut Forge<'_>) -> Option<()> {
    let fault = f.one(&f.all("begin kill", Kind::Info))?;
    let answered = (fault + 1..f.entries.len()).find(|at| {
        let e = &f.entries[*at];
        e.f == "read" && e.kind == Kind::Ok && f.begin_of(*at).is_some_and(|begun| begun > fault)
    })?;
    f.delay_behind(answered - 1, 6_000);
    Some(())
}

fn stay_behind(f: &mut Forge<'_>) -> Option<()> {
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

fn catch_up_late(f: &mut Forge<'_>) -> Option<()> {
    let caught_up = *f.all("caught-up", Kind::Info).first()?;
    f.delay_behind(caught_up - 1, 31_000);
    Some(())
}

// The history itself.

fn never_ok(f: &mut Forge<'_>) -> Option<()> {
    let gets = f.all("get", Kind::Ok);
    for at in &gets {
        f.entries[*at].kind = Kind::Info;
    }
    some(gets.len())
}

fn lose_entry(f: &mut Forge<'_>) -> Option<()> {
    let entry = f.one(&f.all("sample", Kind::Info))?;
    f.entries.remove(entry);
    Some(())
}

fn misshapen(f: &mut Forge<'_>) -> Option<()> {
    let entry = f.one(&f.all("sample", Kind::Info))?;
    f.value(entry)["lag"] = json!("much");
    Some(())
}
