//! Whether the run shows anything: what it was made for has happened, everything was mended and caught up, the history is whole, and
//! somebody looked at the end. It finds no violations; it says why a run proves nothing.

use super::facts::Operation;
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
    for fault in &run.meta.requires.faults {
        if !facts.faults.iter().any(|f| f.fault == *fault) {
            outcome.doubt(format!("the fault {fault} never happened"));
        }
    }
    for required in &run.meta.requires.ok {
        let (f, of) = required.split_once(' ').unwrap_or((required, ""));
        let fits = |o: &Operation| {
            let asked = &run.entries[o.invoke];
            o.kind == Kind::Ok && asked.f == f && is_of(&asked.value, of)
        };
        if !facts.operations.iter().any(fits) {
            outcome.doubt(format!("no {required} ended well"));
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

/// Whether an operation was done to a topic, a table, a register or a pipe of which the name begins so.
fn is_of(asked: &Value, name: &str) -> bool {
    let text = |field: &str| asked.get(field).and_then(Value::as_str).unwrap_or_default();
    let mut words = text("sql").split_whitespace();
    ["topic", "table", "key"]
        .iter()
        .any(|field| text(field).starts_with(name))
        || words.any(|word| word.starts_with(name))
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
