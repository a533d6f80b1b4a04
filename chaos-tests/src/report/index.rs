//! The page over many runs: a matrix of workloads and faults, and a line for each run.

use super::svg::escape;
use super::{Judged, PAGE, document, duration};
use crate::check::outcome::grouped;
use crate::check::{Outcome, Verdict};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

/// What the index says of a run.
#[derive(Clone, Debug)]
pub struct Line {
    /// What people call it.
    pub name: String,
    /// Its row of the matrix.
    pub workloads: String,
    /// Its column.
    pub fault: String,
    /// Decides what was left to chance.
    pub seed: u64,
    /// In one word.
    pub verdict: &'static str,
    /// What is wrong or unknown, in short; or what was looked at.
    pub detail: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// Where its page is, as seen from the index.
    pub link: String,
}

impl Line {
    /// What the index in `folder` says of a run.
    pub fn of(judged: &Judged, folder: &Path) -> Self {
        let meta = judged.run.as_ref().map(|run| run.meta.clone()).unwrap_or_default();
        let or_unknown = |text: String| if text.is_empty() { "?".to_owned() } else { text };
        let page = judged.folder.join(PAGE);
        Self {
            name: judged.name(),
            workloads: or_unknown(meta.workloads.join(" + ")),
            fault: or_unknown(meta.fault),
            seed: meta.seed,
            verdict: judged.judgement.verdict.word(),
            detail: detail(judged),
            took_ms: judged
                .run
                .as_ref()
                .and_then(|run| run.entries.last())
                .map_or(0, |e| e.time / 1_000_000),
            link: page
                .strip_prefix(folder)
                .unwrap_or(&page)
                .to_string_lossy()
                .into_owned(),
        }
    }
}

fn detail(judged: &Judged) -> String {
    let wrong = |o: &Outcome| format!("{} {}", o.name, grouped(o.found));
    match &judged.judgement.verdict {
        Verdict::Failed(_) => {
            let failed = judged.judgement.outcomes.iter().filter(|o| o.found > 0);
            failed.map(wrong).collect::<Vec<_>>().join(", ")
        }
        Verdict::Unknown(reasons) => reasons.first().cloned().unwrap_or_default(),
        Verdict::Passed => judged.run.as_ref().map_or(String::new(), |run| {
            format!(
                "{} rows, {} faults",
                grouped(run.facts.rows() as u64),
                run.facts.faults.len()
            )
        }),
    }
}

/// How many runs have a verdict.
fn count(runs: &[Line], verdict: &str) -> usize {
    runs.iter().filter(|run| run.verdict == verdict).count()
}

fn sorted(runs: &[Line], of: fn(&Line) -> &String) -> Vec<&String> {
    runs.iter().map(of).collect::<BTreeSet<_>>().into_iter().collect()
}

fn cell<'r>(runs: &'r [Line], workloads: &str, fault: &str) -> impl Iterator<Item = &'r Line> {
    runs.iter()
        .filter(move |run| run.workloads == workloads && run.fault == fault)
}

/// The page.
pub fn html(runs: &[Line]) -> String {
    let word = match (count(runs, "failed"), count(runs, "unknown")) {
        (1.., _) => "failed",
        (0, 1..) => "unknown",
        _ => "passed",
    };
    let total: u64 = runs.iter().map(|run| run.took_ms).sum();
    let mut out = format!(
        "<div class=\"head\"><h1>Fault tests</h1><span class=\"badge {word}\">{} of {} passed</span></div>\n<p class=\"about\">{} runs · \
         <b>{}</b> passed · <b>{}</b> failed · <b>{}</b> unknown · {} in all</p>\n",
        count(runs, "passed"),
        runs.len(),
        runs.len(),
        count(runs, "passed"),
        count(runs, "failed"),
        count(runs, "unknown"),
        duration(total)
    );
    matrix(&mut out, runs);
    out += "<h2>Runs</h2>\n<div class=\"card\"><table>\n<tr><th>run</th><th></th><th>workloads</th><th>fault</th><th class=\"n\">seed</th>\
            <th class=\"n\">took</th><th></th></tr>\n";
    // What needs a look comes first.
    let rank = |run: &&Line| {
        ["failed", "unknown", "passed"]
            .iter()
            .position(|word| *word == run.verdict)
    };
    let mut lines: Vec<&Line> = runs.iter().collect();
    lines.sort_by_key(|run| (rank(run), run.name.clone()));
    for run in lines {
        _ = writeln!(
            out,
            "<tr><td><a href=\"{}\"><b>{}</b></a></td><td><span class=\"pill {}\">{}</span></td><td>{}</td><td>{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td>{}</td></tr>",
            escape(&run.link),
            escape(&run.name),
            run.verdict,
            run.verdict,
            escape(&run.workloads),
            escape(&run.fault),
            run.seed,
            duration(run.took_ms),
            escape(&run.detail)
        );
    }
    out += "</table></div>\n";
    document("Fault tests", &out)
}

fn matrix(out: &mut String, runs: &[Line]) {
    let faults = sorted(runs, |run| &run.fault);
    *out += "<h2>Workloads and faults</h2>\n<div class=\"card fit\"><table class=\"matrix\">\n<tr><th></th>";
    for fault in &faults {
        _ = write!(out, "<th class=\"fault\">{}</th>", escape(fault));
    }
    *out += "</tr>\n";
    for workloads in sorted(runs, |run| &run.workloads) {
        _ = write!(out, "<tr><th>{}</th>", escape(workloads));
        for fault in &faults {
            *out += "<td>";
            let mut some = false;
            for run in cell(runs, workloads, fault) {
                some = true;
                _ = write!(
                    out,
                    "<a class=\"cell {}\" href=\"{}\" title=\"{}\">{}<small>{}</small></a>",
                    run.verdict,
                    escape(&run.link),
                    escape(&run.detail),
                    run.verdict,
                    duration(run.took_ms)
                );
            }
            *out += if some {
                "</td>"
            } else {
                "<span class=\"empty\">–</span></td>"
            };
        }
        *out += "</tr>\n";
    }
    *out += "</table></div>\n";
}

/// The matrix in Markdown: verdicts, and how many of several runs, with links.
pub fn markdown(runs: &[Line]) -> String {
    let faults = sorted(runs, |run| &run.fault);
    let plain = |text: &str| text.replace('|', "\\|");
    let mut out = format!(
        "{} runs: {} passed, {} failed, {} unknown\n\n| |",
        runs.len(),
        count(runs, "passed"),
        count(runs, "failed"),
        count(runs, "unknown")
    );
    for fault in &faults {
        _ = write!(out, " {} |", plain(fault));
    }
    out += "\n|---|";
    out += &"---|".repeat(faults.len());
    out += "\n";
    for workloads in sorted(runs, |run| &run.workloads) {
        _ = write!(out, "| {} |", plain(workloads));
        for fault in &faults {
            let of = cell(runs, workloads, fault).map(|run| format!("[{}]({})", run.verdict, run.link));
            _ = write!(out, " {} |", of.collect::<Vec<_>>().join(" "));
        }
        out += "\n";
    }
    let notable: Vec<&Line> = runs.iter().filter(|run| run.verdict != "passed").collect();
    if !notable.is_empty() {
        out += "\n";
    }
    for run in notable {
        _ = writeln!(
            out,
            "- {} ([{}]({}), seed {}): {}",
            run.name, run.verdict, run.link, run.seed, run.detail
        );
    }
    out
}
