//! The ledger balances, and agrees with what is there.
//!
//! passed = delivered + absent + lost, delivered = stored + rejected + filtered; and over all lives of a partition: what was passed
//! reaches the end of its log, what was stored is in the table, what was rejected is set aside. Where operators moved a partition or
//! the harness destroyed its log, only what must hold all the same is asked. Of the rows that programs wrote themselves, what was stored
//! is in the table; what was lost is the matter of `acknowledged`. What `tidemill check` finds in the files counts, too.

use super::decode::{DIRECT, Ledger};
use super::operator::Statement;
use super::{Outcome, Run};
use std::collections::BTreeMap;

/// The sums over all lives of a partition, or of all that programs wrote to a table.
#[derive(Default)]
pub(super) struct Sums {
    passed: u64,
    delivered: u64,
    pub lost: u64,
    stored: u64,
    rejected: u64,
    pub entries: Vec<usize>,
}

impl Sums {
    fn add(&mut self, at: usize, ledger: &Ledger) {
        self.passed += ledger.passed;
        self.delivered += ledger.delivered;
        self.lost += ledger.lost;
        self.stored += ledger.stored;
        self.rejected += ledger.rejected;
        self.entries.push(at);
    }
}

/// What the ledger says of the rows that programs wrote themselves to a table, if it says anything.
pub(super) fn of_direct(run: &Run, table: &str) -> Option<Sums> {
    let mut sums = Sums::default();
    let is_of = |l: &Ledger| l.table.as_deref() == Some(table) && is_direct(l);
    for (at, ledger) in run.facts.ledgers.iter().filter(|(_, ledger)| is_of(ledger)) {
        sums.add(*at, ledger);
    }
    (!sums.entries.is_empty()).then_some(sums)
}

fn is_direct(ledger: &Ledger) -> bool {
    ledger.topic.as_deref() == Some(DIRECT)
}

/// See the module's page.
pub fn check(run: &Run) -> Outcome {
    let mut outcome = Outcome::new("ledger");
    let mut sums: BTreeMap<(String, String, u32), Sums> = BTreeMap::new();
    for (at, ledger) in &run.facts.ledgers {
        balanced(&mut outcome, *at, ledger);
        if is_direct(ledger) {
            continue;
        }
        let Some((table, topic)) = run.facts.fills(&ledger.pipe) else {
            outcome.doubt(format!("nobody says which table pipe {} fills", ledger.pipe));
            continue;
        };
        let place = (table, topic, ledger.partition);
        sums.entry(place).or_default().add(*at, ledger);
    }
    for ((table, topic, partition), sums) in &sums {
        against_rows(run, &mut outcome, (table, topic, *partition), sums);
        against_log(run, &mut outcome, (table, topic, *partition), sums);
    }
    against_direct(run, &mut outcome);
    for (at, checked) in run.facts.checks.iter().filter(|(_, checked)| !checked.ok) {
        outcome.find(&[*at], format!("`tidemill check` finds: {}", checked.said));
    }
    if !sums.is_empty() {
        without(run, &mut outcome, &sums);
    }
    outcome.looked(run.facts.ledgers.len(), "lines of the ledger");
    outcome.looked(sums.len(), "partitions");
    outcome.looked(
        sums.values().map(|s| s.lost as usize).sum(),
        "offsets that it counts as lost",
    );
    outcome
}

/// What one line says of itself.
fn balanced(outcome: &mut Outcome, at: usize, l: &Ledger) {
    let life = l.incarnation.as_deref().unwrap_or("?");
    let of = format!("the ledger of pipe {}, partition {}, life {life},", l.pipe, l.partition);
    if l.passed != l.delivered + l.absent + l.lost {
        let text = format!(
            "{of} passed {} offsets, {} delivered, {} absent and {} lost",
            l.passed, l.delivered, l.absent, l.lost
        );
        outcome.find(&[at], text);
    } else if l.delivered != l.stored + l.rejected + l.filtered {
        let text = format!(
            "{of} delivered {} records, {} stored, {} rejected and {} filtered",
            l.delivered, l.stored, l.rejected, l.filtered
        );
        outcome.find(&[at], text);
    } else if !l.balanced {
        outcome.find(&[at], format!("{of} says itself that it does not balance"));
    }
}

/// Whether an act of a kind may have touched a partition.
fn acted(run: &Run, (table, topic, partition): (&str, &str, u32), kind: fn(&Statement) -> bool) -> bool {
    run.facts
        .acts_on(table, topic, Some(partition))
        .any(|act| kind(&act.statement))
}

fn created_again(run: &Run, (table, topic, partition): (&str, &str, u32)) -> bool {
    let acts = run.facts.acts_on(table, topic, Some(partition));
    acts.filter(|act| matches!(act.statement, Statement::CreatePipe { .. }))
        .count()
        > 1
}

fn against_rows(run: &Run, outcome: &mut Outcome, place: (&str, &str, u32), sums: &Sums) {
    let (table, topic, partition) = place;
    let Some(filled) = run.facts.tables.filled.get(&(table.to_owned(), topic.to_owned())) else {
        return;
    };
    let forgotten = acted(run, place, |s| matches!(s, Statement::DropPipe { .. }));
    let deleted = acted(run, place, |s| {
        matches!(s, Statement::DeleteRows { .. } | Statement::DropTable { .. })
    });
    for (there, counted, what) in [
        (filled.count(partition), sums.stored, "rows"),
        (filled.count_rejected(partition), sums.rejected, "records set aside"),
    ] {
        let may_be = match (forgotten, deleted) {
            (false, false) => there == counted,
            (true, false) => there >= counted,
            (false, true) => there <= counted,
            (true, true) => true,
        };
        if !may_be {
            outcome.find(
                &sums.entries,
                format!("table {table} has {there} {what} of {topic}/{partition}, and the ledger counts {counted}"),
            );
        }
    }
}

fn against_log(run: &Run, outcome: &mut Outcome, place: (&str, &str, u32), sums: &Sums) {
    let (_, topic, partition) = place;
    let Some(log) = run
        .facts
        .sources
        .logs
        .get(&(topic.to_owned(), partition))
        .filter(|log| log.known)
    else {
        return;
    };
    if acted(run, place, |s| matches!(s, Statement::DropPipe { .. })) {
        return;
    }
    let moved = acted(run, place, |s| !matches!(s, Statement::CreatePipe { .. })) || created_again(run, place);
    let destroyed = !log.destroyed.is_empty() || !log.former.is_empty();
    if moved || destroyed {
        if sums.passed < log.high {
            let text = format!(
                "{topic}/{partition} ends at {}, and the ledger passed {} offsets in all its lives",
                log.high, sums.passed
            );
            outcome.find(&sums.entries, text);
        }
        return;
    }
    if sums.passed != log.high {
        let text = format!(
            "{topic}/{partition} ends at {}, and the ledger passed {} offsets",
            log.high, sums.passed
        );
        outcome.find(&sums.entries, text);
    }
    let records = log.records.len() as u64;
    if !log.compacted && sums.delivered != records {
        let text = format!(
            "the log of {topic}/{partition} has {records} records, and the ledger says that {} were delivered",
            sums.delivered
        );
        outcome.find(&sums.entries, text);
    }
    if sums.lost > 0 && !log.compacted {
        let text = format!(
            "the ledger counts {} offsets of {topic}/{partition} as lost, and nobody destroyed or skipped any",
            sums.lost
        );
        outcome.find(&sums.entries, text);
    }
}

/// Rows that programs wrote themselves, by table.
fn against_direct(run: &Run, outcome: &mut Outcome) {
    let mut there: BTreeMap<&str, u64> = BTreeMap::new();
    for ((table, _), rows) in &run.facts.tables.direct {
        *there.entry(table).or_default() += rows.len() as u64;
    }
    for (table, there) in there {
        if let Some(Sums { stored, entries, .. }) = of_direct(run, table).filter(|sums| sums.stored != there) {
            outcome.find(
                &entries,
                format!("table {table} has {there} rows that programs wrote, and the ledger counts {stored}"),
            );
        }
    }
}

/// Partitions that have records and no line.
fn without(run: &Run, outcome: &mut Outcome, sums: &BTreeMap<(String, String, u32), Sums>) {
    for (table, topic) in run.facts.tables.filled.keys() {
        for ((of, partition), log) in &run.facts.sources.logs {
            let there = sums.contains_key(&(table.clone(), topic.clone(), *partition));
            let dropped = acted(run, (table, topic, *partition), |s| {
                matches!(s, Statement::DropPipe { .. })
            });
            if of == topic && !there && !dropped && !log.records.is_empty() {
                let text = format!(
                    "the ledger has no line of {topic}/{partition}, which has {} records",
                    log.records.len()
                );
                outcome.find(&[log.records[0].2], text);
            }
        }
    }
}
