//! Whether the run shows anything: what it was made for has happened, everything was mended and caught up, the history is whole, and
//! somebody looked at the end. It finds no violations; it says why a run proves nothing.

use super::facts::{FaultSpan, Operation};
use super::sources::Fate;
use super::{Outcome, Run};
use crate::history::Kind;
use serde_json::Value;
use std::collections::BTreeMap;

/// See the module's page.
pub fn check(run: &Run) -> Outcome {
    let mut outcome = Outcome::new("coverage");
    let facts = &run.facts;
    let mut ended: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    for operation in &facts.operations {
        let of = ended.entry(&run.entries[operation.invoke].f).or_default();
        match operation.kind {
            Kind::Ok => of[0] += 1,
            Kind::Fail => of[1] += 1,
            Kind::Info | Kind::Invoke => of[2] += 1,
        }
    }
    faults(run, &mut outcome);
    let healed = facts.healed.last().copied().unwrap_or_default();
    for required in &run.meta.requires.ok {
        if !ended_well(run, required, 0) {
            outcome.doubt(format!("no {required} ended well"));
        }
    }
    for required in &run.meta.requires.ok_when_healed {
        if !ended_well(run, required, healed) {
            outcome.doubt(format!("no {required} ended well after all was healed"));
        }
    }
    mended(run, &mut outcome);
    looked_at(run, &mut outcome, &ended);
    for problem in &facts.problems {
        outcome.doubt(problem.clone());
    }
    let sum = |at: usize| ended.values().map(|of| of[at]).sum();
    outcome.looked(sum(0), "operations ended well");
    outcome.looked(sum(1), "failed");
    outcome.looked(sum(2), "of which nobody knows");
    outcome.looked(facts.faults.len(), "faults");
    outcome
}

/// Whether an operation that is what is required ended well, at some entry or later.
fn ended_well(run: &Run, required: &str, from: usize) -> bool {
    let mut words = required.split(' ');
    let f = words.next().unwrap_or_default();
    let fits = |o: &&Operation| {
        let asked = &run.entries[o.invoke];
        o.kind == Kind::Ok && o.end.is_some_and(|end| end >= from) && asked.f == f
    };
    let mut ended = run.facts.operations.iter().filter(fits);
    ended.any(|o| words.clone().all(|word| is_of(&run.entries[o.invoke].value, word)))
}

/// Whether an operation was done to a topic, a table, a register or a pipe of which the name begins so, or with a statement that has
/// such a word; or whether it was asked with `field=value`.
fn is_of(asked: &Value, word: &str) -> bool {
    if let Some((field, value)) = word.split_once('=') {
        return asked.get(field).map(Value::to_string).as_deref() == Some(value);
    }
    let mut words = text(asked, "sql").split_whitespace();
    ["topic", "table", "key"]
        .iter()
        .any(|field| text(asked, field).starts_with(word))
        || words.any(|of| of.starts_with(word))
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// Whether what the run is about was broken, and somebody felt it.
fn faults(run: &Run, outcome: &mut Outcome) {
    for required in &run.meta.requires.faults {
        let (fault, topic) = required.split_once(' ').unwrap_or((required, ""));
        let happened = |span: &&FaultSpan| {
            span.fault == fault && (topic.is_empty() || text(&run.entries[span.begin].value, "topic") == topic)
        };
        let Some(span) = run.facts.faults.iter().find(happened) else {
            outcome.doubt(format!("the fault {required} never happened"));
            continue;
        };
        let mut struck = run
            .facts
            .struck
            .iter()
            .filter(|struck| struck.fault == fault)
            .peekable();
        if struck.peek().is_some() && struck.all(|struck| struck.times == 0) {
            outcome.doubt(format!("{fault} never struck whoever it was meant for"));
        }
        match fault {
            "grow-topic" if !is_written(run, span) => {
                outcome.doubt(format!("nobody wrote into the partitions that {required} had added"));
            }
            "unclean-election" if !has_grown_again(run, topic) => {
                outcome.doubt(format!(
                    "no offset that {required} had taken was given to another record"
                ));
            }
            _ => {}
        }
    }
}

/// Whether a record was acknowledged in a partition that a topic got.
fn is_written(run: &Run, span: &FaultSpan) -> bool {
    let target = &run.entries[span.begin].value;
    let number = |field: &str| target.get(field).and_then(Value::as_u64).unwrap_or_default();
    let added = number("from")..number("to");
    let topic = text(target, "topic");
    let mut sent = run.facts.sources.sent.values();
    sent.any(|sent| {
        matches!(sent.fate, Fate::Acknowledged(_))
            && sent.topic.as_deref() == Some(topic)
            && added.contains(&sent.partition.into())
    })
}

/// Whether a log of a topic, or of any, has a record at an offset that it had lost.
fn has_grown_again(run: &Run, topic: &str) -> bool {
    let mut logs = run
        .facts
        .sources
        .logs
        .iter()
        .filter(|((of, _), _)| topic.is_empty() || of == topic);
    logs.any(|(_, log)| {
        log.destroyed
            .iter()
            .any(|(from, _)| *from >= log.low && *from < log.high)
    })
}

fn mended(run: &Run, outcome: &mut Outcome) {
    let facts = &run.facts;
    for entry in &facts.gave_up {
        let why = run.entries[*entry]
            .value
            .get("why")
            .map_or(String::new(), ToString::to_string);
        outcome.doubt(format!("entry {entry}: the harness gave up: {why}"));
    }
    let Some(healed) = facts.healed.last() else {
        outcome.doubt("nothing says that all was healed".to_owned());
        return;
    };
    if !facts.caught_up.iter().any(|entry| entry > healed) {
        outcome.doubt("nothing says that everything was caught up after it was healed".to_owned());
    }
    for fault in facts
        .faults
        .iter()
        .filter(|f| f.begin > *healed || f.end.is_none_or(|end| end > *healed))
    {
        outcome.doubt(format!(
            "{} of entry {} was not over when all was said to be healed",
            fault.fault, fault.begin
        ));
    }
}

/// Whatever succeeded must have been looked at in the end.
fn looked_at(run: &Run, outcome: &mut Outcome, ended: &BTreeMap<&str, [usize; 3]>) {
    let facts = &run.facts;
    let done = |f: &str| ended.get(f).is_some_and(|of| of[0] > 0);
    if run.entries.is_empty() || facts.operations.is_empty() {
        outcome.doubt("the history has no operation".to_owned());
    }
    if (done("produce") || done("transaction")) && facts.tables.filled.is_empty() {
        outcome.doubt("records were produced, and nobody told the rows of a table".to_owned());
    }
    if (done("produce") || done("transaction")) && facts.sources.logs.is_empty() {
        outcome.doubt("records were produced, and nobody read the log".to_owned());
    }
    let after_caught_up = |entry: usize| facts.caught_up.last().is_none_or(|caught_up| entry > *caught_up);
    let rows = facts
        .tables
        .filled
        .values()
        .flat_map(|of| of.rows.values().flatten())
        .map(|row| row.entry);
    let direct = facts.tables.direct.values().flatten().map(|(_, entry)| *entry);
    if let Some(early) = rows.chain(direct).find(|entry| !after_caught_up(*entry)) {
        outcome.doubt(format!(
            "entry {early} tells the rows of a table before everything was caught up"
        ));
    }
}
