//! How long it took until everything went on: after each fault began and after all was healed.
//!
//! Measured are the time until a read that was asked for after that was answered; the longest time, of all records acknowledged from then
//! on, until a fresh read showed what they came to; and the time until the lag was back to what it was before the first fault. What
//! operators, or whoever destroyed a part of a log, may have kept a reader from seeing is left out, and so are the first records of a
//! partition that was added. Bounds of the run, all in milliseconds and each asked only if it is there:
//!
//! | bound | the most that may pass |
//! |---|---|
//! | `recovery_ms` | from the beginning of a fault, and from `healed`, until a read is answered |
//! | `visible_ms` | from the acknowledgement of a record until a fresh read shows it |
//! | `lag_ms` | from the beginning of a fault until the lag is normal |
//! | `healed_ms` | from `healed` until the lag is normal |
//! | `caught_up_ms` | from `healed` until `caught-up` |
//!
//! `normal_lag`, in records, says what lag is normal. A fault during which another one begins before all is well is measured up to
//! there only: what comes then has two causes.

use super::operator::{Act, Statement};
use super::outcome::percentile;
use super::sources::Fate;
use super::{Outcome, Run};
use std::collections::BTreeMap;

/// Lag that is normal however little there was before the first fault.
const LEAST_NORMAL_LAG: f64 = 100.0;

/// What is measured.
const READS: &str = "reads answered again after";
const VISIBLE: &str = "records visible after at most";
const LAG: &str = "lag normal again after";

/// Something from which time is counted.
struct Mark {
    what: String,
    entry: usize,
    /// The entry at which something else begins.
    until: Option<usize>,
    healed: bool,
}

/// A time that was measured, or why it was not.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Took {
    /// Milliseconds, up to this entry.
    Ms(u64, usize),
    /// Something else began before, after so many milliseconds.
    Overtaken(u64),
    /// It never did until the history ends.
    Never(u64),
    /// Nobody looked.
    NotSeen,
}

/// See the module's page.
pub fn check(run: &Run) -> Outcome {
    let mut outcome = Outcome::new("recovery");
    let marks = marks(run);
    let normal = normal_lag(run);
    let bound = |name: &str| run.meta.bounds.get(name).map(|ms| (name.to_owned(), *ms));
    let views = views(run);
    let mut overtaken = 0;
    for mark in &marks {
        if let Some((ms, acknowledged, seen)) = until_visible(run, mark, &views) {
            outcome.times.entry(VISIBLE).or_default().push(ms);
            if let Some((name, bound)) = bound("visible_ms").filter(|(_, bound)| ms as f64 > *bound) {
                let text = format!(
                    "after {}, a record that was acknowledged was not seen for {ms} ms; {name} is {bound}",
                    mark.what
                );
                outcome.find(&[mark.entry, acknowledged, seen], text);
            }
        }
        let lag_bound = if mark.healed { "healed_ms" } else { "lag_ms" };
        for (took, bound, measured, what) in [
            (
                until_read(run, mark),
                bound("recovery_ms"),
                READS,
                "a read was answered",
            ),
            (
                until_normal(run, mark, normal),
                bound(lag_bound),
                LAG,
                "the lag was normal again",
            ),
        ] {
            match took {
                Took::Ms(ms, _) => outcome.times.entry(measured).or_default().push(ms),
                Took::Overtaken(_) => overtaken += 1,
                Took::Never(_) | Took::NotSeen => {}
            }
            against(&mut outcome, mark, took, bound, what);
        }
    }
    caught_up(run, &mut outcome);
    outcome.looked(marks.len(), "faults and healings");
    outcome.looked(overtaken, "times cut short by the next fault");
    for what in [READS, VISIBLE, LAG] {
        let Some(times) = outcome.times.get_mut(what) else {
            continue;
        };
        times.sort_unstable();
        if let (Some(middle), Some(most)) = (percentile(times, 50), times.last()) {
            outcome.measured.push(format!("{what} p50 {middle} ms, max {most} ms"));
        }
    }
    outcome
}

fn marks(run: &Run) -> Vec<Mark> {
    let faults = run.facts.faults.iter().map(|fault| {
        (
            format!("{} {}", fault.fault, fault.target).trim().to_owned(),
            fault.begin,
            false,
        )
    });
    let healed = run
        .facts
        .healed
        .iter()
        .map(|entry| ("all was healed".to_owned(), *entry, true));
    let mut marks: Vec<(String, usize, bool)> = faults.chain(healed).collect();
    marks.sort_by_key(|(_, entry, _)| *entry);
    let next: Vec<Option<usize>> = marks
        .iter()
        .skip(1)
        .map(|(_, entry, _)| Some(*entry))
        .chain([None])
        .collect();
    let mark = |((what, entry, healed), until)| Mark {
        what,
        entry,
        until,
        healed,
    };
    marks.into_iter().zip(next).map(mark).collect()
}

/// What fresh reads saw of a partition of a topic: how far, in which entry, in order.
type Views = BTreeMap<(String, u32), Vec<(usize, i64)>>;

fn views(run: &Run) -> Views {
    let mut views = Views::new();
    let fresh = run.facts.reads.iter().filter(|(_, read)| read.consistency == "fresh");
    for (operation, read) in fresh {
        let Some(end) = operation.end else { continue };
        let tables = run.facts.tables.filled.keys();
        for (table, topic) in tables.filter(|(table, _)| *table == read.table) {
            for (partition, seen) in &read.partitions {
                let Some((partition, offset)) = partition.parse::<u32>().ok().zip(seen.max_offset) else {
                    continue;
                };
                let place = (topic.clone(), partition);
                let log = run.facts.sources.logs.get(&place);
                let is_whole = log.is_some_and(|log| log.destroyed.is_empty() && log.former.is_empty());
                // A pipe of which nobody knows what it filled was one that is gone, with its table.
                let bears = |act: &&Act| match &act.statement {
                    Statement::DropPipe { pipe } => run.facts.fills(pipe).is_some(),
                    _ => true,
                };
                let mut acts = run.facts.acts_on(table, topic, Some(partition)).filter(bears);
                if is_whole && acts.next().is_none() {
                    views.entry(place).or_default().push((end, offset));
                }
            }
        }
    }
    views.values_mut().for_each(|seen| seen.sort_unstable());
    views
}

/// Of the records that were acknowledged between a mark and the next one, that which was seen last after its acknowledgement: how many
/// milliseconds later, and the entries of both.
fn until_visible(run: &Run, mark: &Mark, views: &Views) -> Option<(u64, usize, usize)> {
    let within = |entry: usize| entry > mark.entry && mark.until.is_none_or(|until| entry < until);
    let sent = run.facts.sources.sent.values();
    let times = sent.filter_map(|sent| {
        let Fate::Acknowledged(Some(offset)) = sent.fate else {
            return None;
        };
        if sent.bad == Some(true) || !within(sent.entry) {
            return None;
        }
        let seen = views.get(&(sent.topic.clone()?, sent.partition))?;
        let from = seen.partition_point(|(end, _)| *end < sent.entry);
        // A partition that nobody has seen anything of may be one that was added and is not known yet.
        let later = seen.get(from..).filter(|_| from > 0)?;
        let found = later.iter().find(|(_, reached)| *reached >= offset as i64);
        // At least until the last read that did not show it, and until the next fault at most: what comes then has two causes.
        let (end, _) = found.or(later.last())?;
        let end = mark.until.map_or(*end, |until| until.min(*end));
        Some((run.ms(end) - run.ms(sent.entry), sent.entry, end))
    });
    times.max()
}

/// From a mark until a read that was asked for after it was answered.
fn until_read(run: &Run, mark: &Mark) -> Took {
    if run.facts.reads.is_empty() {
        return Took::NotSeen;
    }
    let began = run.ms(mark.entry);
    let answered = run
        .facts
        .reads
        .iter()
        .filter(|(o, _)| o.invoke > mark.entry)
        .filter_map(|(o, _)| o.end)
        .min();
    match (answered, mark.until) {
        (Some(end), until) if until.is_none_or(|until| end < until) => Took::Ms(run.ms(end) - began, end),
        (_, Some(until)) => Took::Overtaken(run.ms(until) - began),
        _ => Took::Never(run.entries.last().map_or(0, |e| e.time / 1_000_000) - began),
    }
}

/// From a mark until the lag is normal and stays so for two samples; 0 if it always was.
fn until_normal(run: &Run, mark: &Mark, normal: f64) -> Took {
    let samples = run
        .facts
        .samples
        .iter()
        .filter(|(at, _)| *at > mark.entry && mark.until.is_none_or(|until| *at < until));
    let samples: Vec<(usize, bool)> = samples
        .map(|(at, s)| (*at, s.lag.is_some_and(|lag| lag <= normal)))
        .collect();
    let began = run.ms(mark.entry);
    let Some((last, _)) = samples.last() else {
        return mark
            .until
            .map_or(Took::NotSeen, |until| Took::Overtaken(run.ms(until) - began));
    };
    let Some(disturbed) = samples.iter().position(|(_, normal)| !normal) else {
        return Took::Ms(0, mark.entry);
    };
    let calm =
        (disturbed..samples.len()).find(|at| samples[*at].1 && samples.get(at + 1).is_none_or(|(_, normal)| *normal));
    match (calm, mark.until) {
        (Some(at), _) => Took::Ms(run.ms(samples[at].0) - began, samples[at].0),
        (None, Some(until)) => Took::Overtaken(run.ms(until) - began),
        (None, None) => Took::Never(run.ms(*last) - began),
    }
}

fn normal_lag(run: &Run) -> f64 {
    let first = run.facts.faults.first().map_or(usize::MAX, |fault| fault.begin);
    let before = run
        .facts
        .samples
        .iter()
        .take_while(|(at, _)| *at < first)
        .filter_map(|(_, sample)| sample.lag);
    let most = before.fold(0.0, f64::max);
    let said = run.meta.bounds.get("normal_lag").copied();
    said.unwrap_or(most.max(LEAST_NORMAL_LAG))
}

fn against(outcome: &mut Outcome, mark: &Mark, took: Took, bound: Option<(String, f64)>, what: &str) {
    let Some((name, bound)) = bound else { return };
    match took {
        Took::Ms(ms, entry) if ms as f64 > bound => {
            outcome.find(
                &[mark.entry, entry],
                format!("after {}, {what} only after {ms} ms; {name} is {bound}", mark.what),
            );
        }
        Took::Overtaken(ms) if ms as f64 > bound => {
            outcome.find(
                &[mark.entry],
                format!(
                    "after {}, it was not so that {what} until the next fault, for {ms} ms; {name} is {bound}",
                    mark.what
                ),
            );
        }
        Took::Never(ms) if ms as f64 > bound => {
            outcome.find(
                &[mark.entry],
                format!(
                    "after {}, it was never so that {what}, for {ms} ms; {name} is {bound}",
                    mark.what
                ),
            );
        }
        Took::Never(_) => outcome.doubt(format!("after {}, the history ends before {what}", mark.what)),
        Took::NotSeen => outcome.doubt(format!(
            "{name} is asked for, and nothing shows when, after {}, {what}",
            mark.what
        )),
        _ => {}
    }
}

fn caught_up(run: &Run, outcome: &mut Outcome) {
    let (Some(healed), Some(caught_up)) = (run.facts.healed.last(), run.facts.caught_up.last()) else {
        return;
    };
    let ms = run.ms(*caught_up).saturating_sub(run.ms(*healed));
    outcome.measured.push(format!("caught up {ms} ms after all was healed"));
    if let Some(bound) = run.meta.bounds.get("caught_up_ms").filter(|bound| ms as f64 > **bound) {
        outcome.find(
            &[*healed, *caught_up],
            format!("everything was caught up only {ms} ms after all was healed; caught_up_ms is {bound}"),
        );
    }
}
