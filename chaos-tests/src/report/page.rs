//! The page of a run.

use super::svg::escape;
use super::{Judged, document, duration, timeline};
use crate::check::outcome::grouped;
use crate::check::{Outcome, Run, Verdict};
use crate::history::Kind;
use std::collections::BTreeMap;
use std::fmt::Write;

/// What is shown of each checker before one has to ask for more.
const FIRST: usize = 3;

/// The whole page.
pub fn html(judged: &Judged) -> String {
    let mut body = head(judged);
    if let Some(run) = &judged.run {
        figures(&mut body, run);
        _ = write!(
            body,
            "<h2>What happened</h2>\n<div class=\"card\">\n{}",
            timeline::draw(run, &judged.judgement)
        );
        legend(&mut body, run);
        body += "</div>\n";
    }
    checkers(&mut body, &judged.judgement.outcomes);
    if let Some(run) = &judged.run {
        operations(&mut body, run);
    }
    body += "<footer>Made of <code>run.json</code> and <code>history.jsonl</code> in this folder. Numbers of entries are the <code>index</code> in \
             the history; <code>history.edn</code> has the same for tools that read EDN.</footer>\n";
    document(
        &format!("{}: {}", judged.name(), judged.judgement.verdict.word()),
        &body,
    )
}

fn head(judged: &Judged) -> String {
    let word = judged.judgement.verdict.word();
    let mut out = format!(
        "<div class=\"head\"><h1>{}</h1><span class=\"badge {word}\">{word}</span></div>\n",
        escape(&judged.name())
    );
    if let Some(run) = &judged.run {
        let meta = &run.meta;
        let last = run.entries.last().map_or(0, |e| e.time / 1_000_000);
        let facts = [
            ("workloads", meta.workloads.join(", ")),
            ("fault", meta.fault.clone()),
            ("nodes", meta.nodes.join(" ")),
            ("seed", meta.seed.to_string()),
            ("took", duration(last)),
            ("version", meta.version.clone()),
        ];
        let facts = facts.into_iter().filter(|(_, value)| !value.is_empty());
        let facts: Vec<String> = facts
            .map(|(name, value)| format!("{name} <b>{}</b>", escape(&value)))
            .collect();
        _ = writeln!(out, "<p class=\"about\">{}</p>", facts.join(" · "));
    }
    let (why, reasons): (&str, Vec<String>) = match &judged.judgement.verdict {
        Verdict::Passed => return out,
        Verdict::Failed(findings) => {
            let found: u64 = judged.judgement.outcomes.iter().map(|o| o.found).sum();
            let rest = found.saturating_sub(FIRST as u64);
            let first = findings
                .iter()
                .take(FIRST)
                .map(|f| format!("<b>{}</b>: {}", f.checker, escape(&f.text)));
            let more = (rest > 0).then(|| format!("and {} more", grouped(rest)));
            ("This is wrong:", first.chain(more).collect())
        }
        Verdict::Unknown(reasons) => {
            let first = reasons.iter().take(FIRST).map(|reason| escape(reason));
            let more = (reasons.len() > FIRST).then(|| format!("and {} more", reasons.len() - FIRST));
            (
                "Nothing wrong was found, and that proves nothing:",
                first.chain(more).collect(),
            )
        }
    };
    let reasons: String = reasons.iter().map(|reason| format!("<p>{reason}</p>\n")).collect();
    _ = writeln!(out, "<div class=\"why {word}\"><p><b>{why}</b></p>\n{reasons}</div>");
    out
}

/// The numbers that tell most.
fn figures(out: &mut String, run: &Run) {
    let facts = &run.facts;
    let count = |kind: Kind| facts.operations.iter().filter(|o| o.kind == kind).count() as u64;
    let most = |of: fn(&crate::check::Sample) -> Option<f64>| {
        let values = facts.samples.iter().filter_map(|(_, sample)| of(sample));
        values.reduce(f64::max)
    };
    let mut figures = vec![
        (grouped(count(Kind::Ok)), "operations ended well"),
        (grouped(count(Kind::Fail)), "failed"),
        (grouped(count(Kind::Info)), "of which nobody knows"),
        (grouped(facts.faults.len() as u64), "faults"),
        (grouped(facts.rows() as u64), "rows in the end"),
    ];
    if let Some(lag) = most(|s| s.lag) {
        figures.push((grouped(lag as u64), "records of lag at most"));
    }
    if let Some(ms) = most(|s| s.freshness_ms) {
        figures.push((duration(ms as u64), "behind at most"));
    }
    *out += "<div class=\"figures\">\n";
    for (number, what) in figures {
        _ = writeln!(out, "<div class=\"figure\"><b>{number}</b><span>{what}</span></div>");
    }
    *out += "</div>\n";
}

fn legend(out: &mut String, run: &Run) {
    *out += "<div class=\"legend\">";
    let leaders = timeline::colors(run)
        .into_iter()
        .map(|(node, color)| (format!("led by {}", escape(&node)), color.to_owned()));
    let fixed = [
        ("ended well", "rate"),
        ("failed", "unknown"),
        ("nobody knows", "info"),
        ("broken", "fault"),
    ];
    let fixed = fixed.map(|(what, color)| (what.to_owned(), format!("var(--{color})")));
    for (what, color) in leaders.chain(fixed) {
        _ = write!(out, "<span><i style=\"background:{color}\"></i>{what}</span>");
    }
    *out += "</div>\n";
}

fn checkers(out: &mut String, outcomes: &[Outcome]) {
    *out += "<h2>What the checkers say</h2>\n<div class=\"card\"><table>\n<tr><th>checker</th><th></th><th>what it looked at, and what it found</th></tr>\n";
    for outcome in outcomes {
        let word = outcome.word();
        let pill = match word {
            "failed" => format!("{} wrong", grouped(outcome.found)),
            other => other.to_owned(),
        };
        _ = write!(
            out,
            "<tr><td><b>{}</b></td><td><span class=\"pill {word}\">{pill}</span></td><td>{}",
            outcome.name,
            escape(&outcome.summary())
        );
        let findings = outcome.findings.iter().map(|f| {
            let entries: Vec<String> = f.entries.iter().map(u64::to_string).collect();
            format!(
                "<li>{} <span class=\"entries\">entries {}</span></li>\n",
                escape(&f.text),
                entries.join(", ")
            )
        });
        list(out, &findings.collect::<Vec<_>>());
        list(
            out,
            &outcome
                .doubts
                .iter()
                .map(|doubt| format!("<li>{}</li>\n", escape(doubt)))
                .collect::<Vec<_>>(),
        );
        *out += "</td></tr>\n";
    }
    *out += "</table></div>\n";
}

/// The first of them, and the rest when asked for.
fn list(out: &mut String, items: &[String]) {
    if items.is_empty() {
        return;
    }
    let (first, rest) = items.split_at(items.len().min(FIRST));
    _ = writeln!(out, "<ul>{}</ul>", first.concat());
    if !rest.is_empty() {
        _ = writeln!(
            out,
            "<details><summary>{} more</summary><ul>{}</ul></details>",
            rest.len(),
            rest.concat()
        );
    }
}

/// How operations of each kind ended, and how long they took.
fn operations(out: &mut String, run: &Run) {
    let mut kinds: BTreeMap<&str, ([u64; 3], Vec<u64>)> = BTreeMap::new();
    for operation in &run.facts.operations {
        let (counts, times) = kinds.entry(&run.entries[operation.invoke].f).or_default();
        match (operation.kind, operation.end) {
            (Kind::Ok, Some(end)) => {
                counts[0] += 1;
                times.push(run.entries[end].time.saturating_sub(run.entries[operation.invoke].time) / 1_000);
            }
            (Kind::Fail, _) => counts[1] += 1,
            _ => counts[2] += 1,
        }
    }
    *out += "<h2>Operations</h2>\n<div class=\"card\"><table>\n<tr><th>operation</th><th class=\"n\">ended well</th><th class=\"n\">failed</th>\
             <th class=\"n\">nobody knows</th><th class=\"n\">p50</th><th class=\"n\">p99</th><th class=\"n\">max</th></tr>\n";
    for (f, ([ok, fail, info], mut times)) in kinds {
        times.sort_unstable();
        let at = |share: f64| times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1)));
        let ms = |us: Option<&u64>| us.map_or("–".to_owned(), |us| format!("{:.1} ms", *us as f64 / 1_000.0));
        let numbers = [
            grouped(ok),
            grouped(fail),
            grouped(info),
            ms(at(0.5)),
            ms(at(0.99)),
            ms(times.last()),
        ];
        let numbers: String = numbers.iter().map(|n| format!("<td class=\"n\">{n}</td>")).collect();
        _ = writeln!(out, "<tr><td>{}</td>{numbers}</tr>", escape(f));
    }
    *out += "</table></div>\n";
}
