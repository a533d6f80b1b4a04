//! Registers in the catalog are linearizable: some order of all operations on a register, in which none is behind one that began
//! after it had ended, explains everything that was read.
//!
//! An operation that failed has not happened. One of which nobody knows may have happened at any time after it was invoked, or never.

mod search;

use super::decode::Register;
use super::{Outcome, Run};
use crate::history::Kind;
use search::{Answer, Call, Effect};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// Register values by number, so that they compare fast.
#[derive(Default)]
struct Values(HashMap<String, u32>);

impl Values {
    fn number(&mut self, value: &Value) -> u32 {
        let next = self.0.len() as u32;
        *self.0.entry(value.to_string()).or_insert(next)
    }
}

/// See the module's page.
pub fn check(run: &Run) -> Outcome {
    let mut outcome = Outcome::new("registers");
    let mut values = Values::default();
    // What a register holds before it is set.
    let empty = values.number(&Value::Null);
    let mut registers: BTreeMap<String, Vec<Call>> = BTreeMap::new();
    let (mut known, mut unknown) = (0, 0);
    for operation in &run.facts.operations {
        let asked = &run.entries[operation.invoke];
        if !matches!(asked.f.as_str(), "set" | "get" | "cas") || operation.kind == Kind::Fail {
            continue;
        }
        let is_known = operation.kind == Kind::Ok;
        let said = if is_known {
            operation.end.unwrap_or(operation.invoke)
        } else {
            operation.invoke
        };
        let (asked_value, said_value) = (
            Register::deserialize(&asked.value),
            Register::deserialize(&run.entries[said].value),
        );
        let (Ok(register), Ok(answer)) = (asked_value, said_value) else {
            outcome.doubt(format!(
                "entry {} has another form than operations on registers",
                operation.invoke
            ));
            continue;
        };
        let effect = match asked.f.as_str() {
            "set" => Effect::Set(values.number(&register.value)),
            "cas" => Effect::Cas(values.number(&register.from), values.number(&register.to)),
            // Whoever read without an answer knows nothing.
            _ if !is_known => continue,
            _ => Effect::Get(values.number(&answer.value)),
        };
        *(if is_known { &mut known } else { &mut unknown }) += 1;
        registers.entry(register.key).or_default().push(Call {
            effect,
            from: operation.invoke,
            to: operation.end.filter(|_| is_known),
        });
    }
    for (key, calls) in &registers {
        match search::linearize(calls, empty) {
            Answer::Linearizable => {}
            Answer::TooLong => outcome.doubt(format!(
                "register {key}: no order was found for its {} operations, and not all were tried",
                calls.len()
            )),
            Answer::Stuck { call, before } => {
                let entry = calls[call].to.unwrap_or(calls[call].from);
                let shown = &run.entries[entry];
                let text = format!(
                    "register {key}: no order of its operations explains {} {} of entry {entry}",
                    shown.f, shown.value
                );
                let entries: Vec<usize> = before
                    .map(|b| calls[b].from)
                    .into_iter()
                    .chain([calls[call].from, entry])
                    .collect();
                outcome.find(&entries, text);
            }
        }
    }
    outcome.looked(known, "operations on registers");
    outcome.looked(unknown, "of which nobody knows");
    outcome.looked(registers.len(), "registers");
    outcome
}
