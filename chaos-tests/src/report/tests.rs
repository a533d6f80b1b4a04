//! The pages say what came of runs, and need nothing from elsewhere.

use super::record::Record;
use super::{Judged, Line, index, page};
use crate::check::proof::FORGERIES;
use crate::check::synthetic::{Size, history};
use crate::check::{Run, judge};
use crate::history;
use std::path::Path;

/// The run of `seed`, forged so that the checker of this name notices, or not at all.
fn judged(seed: u64, forged: Option<&str>) -> Judged {
    let (mut meta, mut entries) = history(seed, Size::default());
    if let Some(checker) = forged {
        let mut of = FORGERIES.iter().filter(|f| f.by == checker);
        assert!(of.any(|f| f.apply(seed, &mut entries)), "seed {seed} cannot be forged");
    }
    meta.workloads = vec!["counter <&>".to_owned()];
    let run = Run::new(meta, entries);
    let judgement = judge(&run);
    Judged {
        folder: format!("/runs/{seed}").into(),
        run: Some(run),
        judgement,
    }
}

#[test]
fn a_page_shows_every_checker_and_every_fault() {
    let judged = judged(5, None);
    let html = page::html(&judged);
    for outcome in &judged.judgement.outcomes {
        assert!(
            html.contains(&format!("<b>{}</b>", outcome.name)),
            "{} is not shown",
            outcome.name
        );
    }
    let faults = judged.run.as_ref().map_or(0, |run| run.facts.faults.len());
    assert_eq!(html.matches("class=\"fault\"").count(), faults);
    assert!(html.contains("<span class=\"badge passed\">passed</span>"));
    assert!(
        html.contains("counter &lt;&amp;&gt;") && !html.contains("counter <&>"),
        "text is not escaped"
    );
}

#[test]
fn a_page_needs_nothing_from_elsewhere() {
    let html = page::html(&judged(6, None)) + &index::html(&[]);
    let html = html.replace("http://www.w3.org/2000/svg", "");
    for from_elsewhere in ["http:", "https:", "src=", "<script", "<link", "@import", "url("] {
        assert!(!html.contains(from_elsewhere), "the page has {from_elsewhere}");
    }
}

#[test]
fn a_page_says_what_is_wrong_and_where() {
    let judged = judged(7, Some("digests"));
    let html = page::html(&judged);
    let finding = &judged
        .judgement
        .outcomes
        .iter()
        .find(|o| o.name == "digests")
        .unwrap()
        .findings[0];
    assert!(html.contains("<span class=\"badge failed\">failed</span>"));
    assert!(html.contains(&finding.text), "{} is not shown", finding.text);
    assert!(
        html.contains("class=\"finding\""),
        "nothing points to it in the picture"
    );
}

#[test]
fn a_run_that_cannot_be_read_has_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let judged = Judged::read(folder.path());
    judged.write().unwrap();
    let html = std::fs::read_to_string(folder.path().join(super::PAGE)).unwrap();
    assert!(html.contains("<span class=\"badge unknown\">unknown</span>") && html.contains("run.json"));
}

#[test]
fn the_index_counts_and_links_runs() {
    let lines: Vec<Line> = [(5, None), (7, Some("digests")), (8, Some("coverage"))]
        .map(|(seed, forged)| {
            let judged = judged(seed, forged);
            Line::new(Record::of(&judged), &judged.folder, Path::new("/runs"))
        })
        .into();
    let verdicts: Vec<&str> = lines.iter().map(|line| line.record.verdict.as_str()).collect();
    assert_eq!(verdicts, ["passed", "failed", "unknown"]);
    let html = index::html(&lines);
    assert!(html.contains("<span class=\"badge failed\">1 of 3 passed</span>"));
    assert_eq!(
        html.matches("href=\"7/report.html\"").count(),
        2,
        "in the matrix and in the list"
    );
    let markdown = index::markdown(&lines);
    assert!(
        markdown.starts_with("3 runs: 1 passed, 1 failed, 1 unknown\n"),
        "{markdown}"
    );
    assert!(
        markdown.contains("| counter <&> | [passed](5/report.html) [failed](7/report.html) [unknown](8/report.html) |"),
        "{markdown}"
    );
}

#[test]
fn a_history_that_was_written_is_judged_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let (meta, entries) = history(9, Size::default());
    meta.write(folder.path()).unwrap();
    history::write(folder.path(), &entries).unwrap();
    let judged = Judged::read(folder.path());
    assert_eq!(judged.judgement.verdict.word(), "passed");
    assert_eq!(judged.run.unwrap().entries, entries);
}
