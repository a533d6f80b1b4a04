//! A history taken apart once, so that checkers need not: operations with both of their ends, what the sources and the tables
//! hold, what operators did, when what was broken.
//!
//! What does not fit together (an end without a beginning, a value of another form, a clock that goes back) is a problem of the
//! history, which makes the run unknown.

use super::decode::{
    Checked, Claim, Digest, Ledger, Log, LogLost, Produce, Read, Rejects, Rows, Sample, Struck, Transaction, Write,
};
use super::operator::{Act, Statement};
use super::sources::Sources;
use super::tables::Tables;
use crate::history::{Entry, Kind, Who};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

/// Problems that are kept.
const KEPT: usize = 20;

/// An operation of a client.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// The entry that begins it.
    pub invoke: usize,
    /// The entry that ends it.
    pub end: Option<usize>,
    /// How it ended; `Info` if it never did.
    pub kind: Kind,
}

/// Something was broken from here to there.
#[derive(Clone, Debug)]
pub struct FaultSpan {
    /// What it is.
    pub fault: String,
    /// Of what, in words.
    pub target: String,
    /// The entry that begins it.
    pub begin: usize,
    /// The entry that ends it.
    pub end: Option<usize>,
}

/// See the module's page.
#[derive(Default)]
pub struct Facts {
    /// All operations, in the order in which they were invoked.
    pub operations: Vec<Operation>,
    /// What was broken, in order.
    pub faults: Vec<FaultSpan>,
    /// What the monitor saw, with the entry.
    pub samples: Vec<(usize, Sample)>,
    pub(super) sources: Sources,
    pub(super) tables: Tables,
    pub(super) acts: Vec<Act>,
    pub(super) reads: Vec<(Operation, Read)>,
    pub(super) writes: Vec<(Operation, Write)>,
    pub(super) ledgers: Vec<(usize, Ledger)>,
    pub(super) digests: Vec<(usize, Digest)>,
    pub(super) claims: Vec<(usize, Claim)>,
    pub(super) checks: Vec<(usize, Checked)>,
    pub(super) struck: Vec<Struck>,
    pub(super) healed: Vec<usize>,
    pub(super) caught_up: Vec<usize>,
    pub(super) gave_up: Vec<usize>,
    pub(super) problems: Vec<String>,
}

impl Facts {
    pub(super) fn of(entries: &[Entry]) -> Self {
        let mut facts = Self::default();
        facts.pair(entries);
        for at in 0..facts.operations.len() {
            facts.operation(entries, facts.operations[at]);
        }
        for (at, entry) in entries.iter().enumerate() {
            match &entry.process {
                Who::Named(name) if name == "nemesis" => facts.nemesis(at, entry),
                Who::Named(_) => facts.note(at, entry),
                Who::Process(_) => {}
            }
        }
        let problems = facts.sources.finish().into_iter().chain(facts.tables.finish());
        for problem in problems.collect::<Vec<_>>() {
            facts.problem(problem);
        }
        facts
    }

    /// Finds the end of every operation.
    fn pair(&mut self, entries: &[Entry]) {
        let mut open: BTreeMap<u64, usize> = BTreeMap::new();
        let mut before = 0;
        for (at, entry) in entries.iter().enumerate() {
            if entry.index != at as u64 {
                self.problem(format!("entry {at} says that it is entry {}", entry.index));
            }
            if entry.time < before {
                self.problem(format!("the clock of entry {at} is behind the one before it"));
            }
            before = before.max(entry.time);
            let Who::Process(process) = entry.process else { continue };
            if entry.kind == Kind::Invoke {
                let operation = self.operations.len();
                self.operations.push(Operation {
                    invoke: at,
                    end: None,
                    kind: Kind::Info,
                });
                if open.insert(process, operation).is_some() {
                    self.problem(format!("entry {at}: process {process} begins before it has ended"));
                }
                continue;
            }
            match open.remove(&process).and_then(|o| self.operations.get_mut(o)) {
                Some(operation) if entries[operation.invoke].f == entry.f => {
                    operation.end = Some(at);
                    operation.kind = entry.kind;
                }
                _ => self.problem(format!(
                    "entry {at} ends a {} of process {process} that never began",
                    entry.f
                )),
            }
        }
    }

    fn operation(&mut self, entries: &[Entry], o: Operation) {
        let asked = &entries[o.invoke];
        let answered = o.end.filter(|_| o.kind == Kind::Ok).map(|end| &entries[end]);
        match asked.f.as_str() {
            "produce" => {
                let Some(produce) = self.decode::<Produce>(o.invoke, asked) else {
                    return;
                };
                let answer = answered.and_then(|e| self.decode::<Produce>(o.end.unwrap_or(o.invoke), e));
                self.sources.produce(o, produce, answer);
            }
            "transaction" => {
                let Some(asked) = self.decode::<Transaction>(o.invoke, asked) else {
                    return;
                };
                let answer = answered.and_then(|e| self.decode::<Transaction>(o.end.unwrap_or(o.invoke), e));
                self.sources.transaction(o, &asked, answer.as_ref());
            }
            "write" => {
                if let Some(mut write) = self.decode::<Write>(o.invoke, asked) {
                    write.shard = answered.and_then(|e| e.value.get("shard")?.as_u64());
                    self.writes.push((o, write));
                }
            }
            "read" => {
                if let Some(mut read) = answered.and_then(|e| self.decode::<Read>(o.end.unwrap_or(o.invoke), e)) {
                    let reader = || asked.value.get("reader").map(ToString::to_string);
                    read.reader = read.reader.take().or_else(reader);
                    self.reads.push((o, read));
                }
            }
            "operate" => match asked.value.get("sql").and_then(|sql| sql.as_str()) {
                Some(sql) => self.acts.push(Act::new(o, Statement::parse(sql))),
                None => self.problem(format!("entry {} operates without a statement", o.invoke)),
            },
            // Registers have a checker that decodes them; what has none is counted by name.
            _ => {}
        }
    }

    fn nemesis(&mut self, at: usize, entry: &Entry) {
        if let Some(fault) = entry.f.strip_prefix("begin ") {
            self.faults.push(FaultSpan {
                fault: fault.to_owned(),
                target: target(&entry.value),
                begin: at,
                end: None,
            });
        } else if let Some(fault) = entry.f.strip_prefix("end ") {
            let target = target(&entry.value);
            let mut open = self.faults.iter_mut().filter(|f| f.end.is_none() && f.fault == fault);
            // The one with this target, or else the last of the kind.
            match open.by_ref().find(|f| f.target == target) {
                Some(fault) => fault.end = Some(at),
                None => match self.faults.iter_mut().rfind(|f| f.end.is_none() && f.fault == fault) {
                    Some(fault) => fault.end = Some(at),
                    None => self.problem(format!("entry {at} ends a fault {fault} that never began")),
                },
            }
        } else {
            self.note(at, entry);
        }
    }

    fn note(&mut self, at: usize, entry: &Entry) {
        match entry.f.as_str() {
            "log" => self.with(at, entry, |facts, log: Log| facts.sources.log(at, log)),
            "log-lost" => self.with(at, entry, |facts, lost: LogLost| facts.sources.lost(lost)),
            "rows" => self.with(at, entry, |facts, rows: Rows| facts.tables.rows(at, rows)),
            "rejects" => self.with(at, entry, |facts, rejects: Rejects| facts.tables.rejects(at, rejects)),
            "ledger" => self.with(at, entry, |facts, ledger: Ledger| facts.ledgers.push((at, ledger))),
            "sample" => self.with(at, entry, |facts, sample: Sample| facts.samples.push((at, sample))),
            "digest" => self.with(at, entry, |facts, digest: Digest| facts.digests.push((at, digest))),
            "claim" => self.with(at, entry, |facts, claim: Claim| facts.claims.push((at, claim))),
            "check" => self.with(at, entry, |facts, checked: Checked| facts.checks.push((at, checked))),
            "struck" => self.with(at, entry, |facts, struck: Struck| facts.struck.push(struck)),
            "healed" => self.healed.push(at),
            "caught-up" => self.caught_up.push(at),
            "failed" => self.gave_up.push(at),
            _ => {}
        }
    }

    fn with<T: DeserializeOwned>(&mut self, at: usize, entry: &Entry, take: impl FnOnce(&mut Self, T)) {
        if let Some(value) = self.decode::<T>(at, entry) {
            take(self, value);
        }
    }

    fn decode<T: DeserializeOwned>(&mut self, at: usize, entry: &Entry) -> Option<T> {
        match T::deserialize(&entry.value) {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(format!("entry {at}, {}: {error}", entry.f));
                None
            }
        }
    }

    /// Entries that say that everything is mended.
    pub fn healed(&self) -> &[usize] {
        &self.healed
    }

    /// Entries that say that everything produced is committed.
    pub fn caught_up(&self) -> &[usize] {
        &self.caught_up
    }

    /// How many rows the tables have in the end.
    pub fn rows(&self) -> usize {
        let of_topics = self.tables.filled.values().flat_map(|filled| filled.rows.values());
        of_topics.map(Vec::len).sum::<usize>() + self.tables.direct.values().map(Vec::len).sum::<usize>()
    }

    /// Which table a pipe fills, and from which topic, as far as the history says.
    pub(super) fn fills(&self, pipe: &str) -> Option<(String, String)> {
        let filled = &self.tables.filled;
        let known = |table: &str, topic: &str| filled.keys().find(|(t, of)| t == table && of == topic).cloned();
        let created = self.acts.iter().rev().find_map(|act| match &act.statement {
            Statement::CreatePipe { pipe: p, table, topic } if p == pipe => known(table, topic),
            _ => None,
        });
        let told = || {
            let (_, ledger) = self.ledgers.iter().find(|(_, l)| l.pipe == pipe && l.table.is_some())?;
            let table = ledger.table.as_deref()?;
            let mut of = filled.keys().filter(|(t, _)| t == table);
            match &ledger.topic {
                Some(topic) => known(table, topic),
                None => of.next().filter(|_| of.next().is_none()).cloned(),
            }
        };
        let named = || {
            let mut of = filled.keys().filter(|(table, topic)| table == pipe || topic == pipe);
            of.next().filter(|_| of.next().is_none()).cloned()
        };
        let only = || filled.keys().next().filter(|_| filled.len() == 1).cloned();
        created.or_else(told).or_else(named).or_else(only)
    }

    /// What operators may have done to rows of a partition of a table; `None` of the partition means any.
    pub(super) fn acts_on<'f>(
        &'f self,
        table: &'f str,
        topic: &'f str,
        partition: Option<u32>,
    ) -> impl Iterator<Item = &'f Act> {
        let fills = move |pipe: &str| self.fills(pipe).is_none_or(|(t, of)| t == table && of == topic);
        let names = move |named: &[u32]| named.is_empty() || partition.is_none_or(|p| named.contains(&p));
        self.acts.iter().filter(move |act| {
            act.may_have
                && match &act.statement {
                    Statement::Reread { pipe, partitions }
                    | Statement::DeleteRows { pipe, partitions }
                    | Statement::Skip { pipe, partitions } => fills(pipe) && names(partitions),
                    Statement::Backfill { pipe } | Statement::DropPipe { pipe } => fills(pipe),
                    Statement::CreatePipe {
                        table: t, topic: of, ..
                    } => t == table && of == topic,
                    Statement::DropTable { table: dropped } => dropped == table,
                    Statement::Other => false,
                }
        })
    }

    fn problem(&mut self, text: String) {
        if self.problems.len() < KEPT {
            self.problems.push(text);
        }
    }
}

/// What a fault hits, in words.
fn target(value: &serde_json::Value) -> String {
    use serde_json::Value;
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(target).collect::<Vec<_>>().join(" "),
        Value::Object(fields) => {
            let of = |(name, value): (&String, &Value)| format!("{name} {}", target(value));
            fields.iter().map(of).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}
