//! What a checker has to say, and what follows for the run.

use std::collections::BTreeMap;
use std::fmt;

/// Findings that are kept of one checker; more are counted only.
const KEPT: usize = 50;

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Who found it.
    pub checker: &'static str,
    /// The entries of the history that show it, by index.
    pub entries: Vec<u64>,
    /// What is wrong, in a sentence.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries: Vec<String> = self.entries.iter().map(u64::to_string).collect();
        write!(f, "{}: {} (entries {})", self.checker, self.text, entries.join(", "))
    }
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything was looked at, and nothing is wrong.
    Passed,
    /// This is wrong.
    Failed(Vec<Finding>),
    /// Nothing wrong was found, and this is why that proves nothing.
    Unknown(Vec<String>),
}

impl Verdict {
    /// What follows from what the checkers say: what is wrong weighs more than what nobody knows.
    pub fn of(outcomes: &[Outcome]) -> Self {
        let findings: Vec<Finding> = outcomes.iter().flat_map(|o| o.findings.clone()).collect();
        let doubts: Vec<String> = outcomes.iter().flat_map(|o| o.doubts.clone()).collect();
        match (findings.is_empty(), doubts.is_empty()) {
            (false, _) => Self::Failed(findings),
            (true, false) => Self::Unknown(doubts),
            (true, true) => Self::Passed,
        }
    }

    /// In one word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "failed",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// What one checker says of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The checker.
    pub name: &'static str,
    /// How much of what it has looked at.
    pub looked: Vec<(u64, &'static str)>,
    /// What it measured, in words.
    pub measured: Vec<String>,
    /// How long things took, in milliseconds, by what it is; in order.
    pub times: BTreeMap<&'static str, Vec<u64>>,
    /// What is wrong, the first of it.
    pub findings: Vec<Finding>,
    /// How much is wrong.
    pub found: u64,
    /// Why it cannot say that all is well.
    pub doubts: Vec<String>,
}

impl Outcome {
    /// Nothing said yet.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            looked: Vec::new(),
            measured: Vec::new(),
            times: BTreeMap::new(),
            findings: Vec::new(),
            found: 0,
            doubts: Vec::new(),
        }
    }

    /// It has looked at `count` of `what`.
    pub fn looked(&mut self, count: usize, what: &'static str) {
        self.looked.push((count as u64, what));
    }

    /// It has found something, which these entries show.
    pub fn find(&mut self, entries: &[usize], text: String) {
        self.found += 1;
        if self.findings.len() < KEPT {
            let mut entries: Vec<u64> = entries.iter().map(|e| *e as u64).collect();
            entries.sort_unstable();
            entries.dedup();
            self.findings.push(Finding {
                checker: self.name,
                entries,
                text,
            });
        }
    }

    /// It cannot say that all is well.
    pub fn doubt(&mut self, why: String) {
        if self.doubts.len() < KEPT {
            self.doubts.push(why);
        }
    }

    /// True if there was something to look at.
    pub fn saw_something(&self) -> bool {
        self.looked.iter().any(|(count, _)| *count > 0)
    }

    /// In one word: `passed`, `failed`, `unknown`, or `nothing` where the run has nothing for this checker.
    pub fn word(&self) -> &'static str {
        match (self.findings.is_empty(), self.doubts.is_empty()) {
            (false, _) => "failed",
            (true, false) => "unknown",
            (true, true) if self.saw_something() => "passed",
            (true, true) => "nothing",
        }
    }

    /// What it has looked at and measured, as a line.
    pub fn summary(&self) -> String {
        let looked = self.looked.iter().filter(|(count, _)| *count > 0);
        let mut parts: Vec<String> = looked
            .map(|(count, what)| format!("{} {what}", grouped(*count)))
            .collect();
        parts.extend(self.measured.iter().cloned());
        match parts.is_empty() {
            true => "nothing of this in the run".to_owned(),
            false => parts.join(", "),
        }
    }
}

/// The least of `sorted` that `percent` of them do not exceed; none of none.
pub fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// A number with its thousands apart: `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_weighs_more_than_a_doubt() {
        let mut doubtful = Outcome::new("coverage");
        doubtful.doubt("it never healed".to_owned());
        let mut failed = Outcome::new("lost");
        failed.find(&[3, 1, 3], "a record is missing".to_owned());
        let passed = Outcome::new("reads");
        let of = |outcomes: &[&Outcome]| Verdict::of(&outcomes.iter().map(|o| (*o).clone()).collect::<Vec<_>>());
        assert_eq!(of(&[&passed]).word(), "passed");
        assert_eq!(of(&[&passed, &doubtful]).word(), "unknown");
        assert_eq!(of(&[&passed, &doubtful, &failed]).word(), "failed");
        assert_eq!(failed.findings[0].entries, [1, 3]);
    }

    #[test]
    fn findings_beyond_the_first_are_counted() {
        let mut outcome = Outcome::new("lost");
        for _ in 0..1_234 {
            outcome.find(&[1], String::new());
        }
        assert_eq!((outcome.findings.len(), outcome.found), (KEPT, 1_234));
        assert_eq!(grouped(outcome.found), "1,234");
        assert_eq!(
            (grouped(7), grouped(1_000_000)),
            ("7".to_owned(), "1,000,000".to_owned())
        );
    }
}
