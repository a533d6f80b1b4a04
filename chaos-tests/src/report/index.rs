//! The page over many runs: a matrix of workloads and faults, and a line for each run.

use super::record::Record;
use super::svg::escape;
use super::{PAGE, document, duration};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

/// What the index says of a run.
#[derive(Clone, Debug)]
pub struct Line {
    /// What came of it.
    pub record: Record,
    /// Where its page is, as seen from the index.
    pub link: String,
}

impl Line {
    /// What the index in `folder` says of the run in `run`.
    pub fn new(record: Record, run: &Path, folder: &Path) -> Self {
        let page = run.join(PAGE);
        let link = page.strip_prefix(folder).unwrap_or(&page);
        Self {
            record,
            link: link.to_string_lossy().into_owned(),
        }
    }
}

/// How many runs have a verdict.
fn count(runs: &[Line], verdict: &str) -> usize {
    runs.iter().filter(|run| run.record.verdict == verdict).count()
}

fn sorted(runs: &[Line], of: fn(&Line) -> &String) -> Vec<&String> {
    runs.iter().map(of).collect::<BTreeSet<_>>().into_iter().collect()
}

fn cell<'r>(runs: &'r [Line], workloads: &str, fault: &str) -> impl Iterator<Item = &'r Line> {
    runs.iter()
        .filter(move |run| run.record.workloads == workloads && run.record.fault == fault)
}

/// The page.
pub fn html(runs: &[Line]) -> String {
    let word = match (count(runs, "failed"), count(runs, "unknown")) {
        (1.., _) => "failed",
        (0, 1..) => "unknown",
        _ => "passed",
    };
    let total: u64 = runs.iter().map(|run| run.record.took_ms).sum();
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
            .position(|word| *word == run.record.verdict)
    };
    let mut lines: Vec<&Line> = runs.iter().collect();
    lines.sort_by_key(|run| (rank(run), run.record.name.clone()));
    for run in lines {
        _ = writeln!(
            out,
            "<tr><td><a href=\"{}\"><b>{}</b></a></td><td><span class=\"pill {}\">{}</span></td><td>{}</td><td>{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td>{}</td></tr>",
            escape(&run.link),
            escape(&run.record.name),
            run.record.verdict,
            run.record.verdict,
            escape(&run.record.workloads),
            escape(&run.record.fault),
            run.record.seed,
            duration(run.record.took_ms),
            escape(&run.record.detail)
        );
    }
    out += "</table></div>\n";
    document("Fault tests", &out)
}

fn matrix(out: &mut String, runs: &[Line]) {
    let faults = sorted(runs, |run| &run.record.fault);
    *out += "<h2>Workloads and faults</h2>\n<div class=\"card fit\"><table class=\"matrix\">\n<tr><th></th>";
    for fault in &faults {
        _ = write!(out, "<th class=\"fault\">{}</th>", escape(fault));
    }
    *out += "</tr>\n";
    for workloads in sorted(runs, |run| &run.record.workloads) {
        _ = write!(out, "<tr><th>{}</th>", escape(workloads));
        for fault in &faults {
            *out += "<td>";
            let mut some = false;
            for run in cell(runs, workloads, fault) {
                some = true;
                _ = write!(
                    out,
                    "<a class=\"cell {}\" href=\"{}\" title=\"{}\">{}<small>{}</small></a>",
                    run.record.verdict,
                    escape(&run.link),
                    escape(&run.record.detail),
                    run.record.verdict,
                    duration(run.record.took_ms)
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
    let faults = sorted(runs, |run| &run.record.fault);
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
    for workloads in sorted(runs, |run| &run.record.workloads) {
        _ = write!(out, "| {} |", plain(workloads));
        for fault in &faults {
            let of = cell(runs, workloads, fault).map(|run| format!("[{}]({})", run.record.verdict, run.link));
            _ = write!(out, " {} |", of.collect::<Vec<_>>().join(" "));
        }
        out += "\n";
    }
    let notable: Vec<&Line> = runs.iter().filter(|run| run.record.verdict != "passed").collect();
    if !notable.is_empty() {
        out += "\n";
    }
    for run in notable {
        _ = writeln!(
            out,
            "- {} ([{}]({}), seed {}): {}",
            run.record.name, run.record.verdict, run.link, run.record.seed, run.record.detail
        );
    }
    out
}
