//! What operators did, as far as it bears on what a table may hold: statements by their words, and nothing else of SQL.

use super::facts::Operation;
use crate::history::Kind;

/// What a statement does to rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// `RESET OFFSETS … KEEP ROWS`: rows may be there once more.
    Reread { pipe: String, partitions: Vec<u32> },
    /// `RESET OFFSETS … DELETE ROWS`: rows may go.
    DeleteRows { pipe: String, partitions: Vec<u32> },
    /// `RESET OFFSETS` forward, or `SKIP TO LATEST`: records may be left out.
    Skip { pipe: String, partitions: Vec<u32> },
    /// `BACKFILL`.
    Backfill { pipe: String },
    /// `CREATE PIPE pipe INTO table FROM KAFKA (… topic = 'topic' …)`.
    CreatePipe { pipe: String, table: String, topic: String },
    /// `DROP PIPE`: its ledger goes.
    DropPipe { pipe: String },
    /// `DROP TABLE`: its rows go.
    DropTable { table: String },
    /// Nothing that bears on rows.
    Other,
}

/// A statement, and when.
#[derive(Clone, Debug)]
pub struct Act {
    pub statement: Statement,
    pub invoke: usize,
    /// The entry until which it may have happened; without end if nobody knows.
    pub until: usize,
    /// False if it surely never happened.
    pub may_have: bool,
}

impl Act {
    pub fn new(o: Operation, statement: Statement) -> Self {
        let until = match o.kind {
            Kind::Ok | Kind::Fail => o.end.unwrap_or(usize::MAX),
            Kind::Info | Kind::Invoke => usize::MAX,
        };
        Self {
            statement,
            invoke: o.invoke,
            until,
            may_have: o.kind != Kind::Fail,
        }
    }

    /// True if it may have happened between two entries.
    pub fn within(&self, from: usize, to: usize) -> bool {
        self.may_have && self.invoke <= to && self.until >= from
    }
}

impl Statement {
    /// Reads a statement.
    pub fn parse(sql: &str) -> Self {
        let spaced: String = sql
            .chars()
            .flat_map(|c| {
                if "(),;=".contains(c) {
                    vec![' ', c, ' ']
                } else {
                    vec![c]
                }
            })
            .collect();
        let words: Vec<&str> = spaced.split_whitespace().filter(|w| *w != ";").collect();
        let is = |at: usize, word: &str| words.get(at).is_some_and(|w| w.eq_ignore_ascii_case(word));
        let name = |at: usize| {
            words
                .get(at)
                .map_or(String::new(), |w| w.trim_matches(['"', '\'']).to_lowercase())
        };
        let has = |word: &str| words.iter().any(|w| w.eq_ignore_ascii_case(word));
        let object = if is(2, "IF") { 4 } else { 2 };
        match () {
            () if is(0, "DROP") && is(1, "PIPE") => Self::DropPipe { pipe: name(object) },
            () if is(0, "DROP") && is(1, "TABLE") => Self::DropTable { table: name(object) },
            () if is(0, "CREATE") && is(1, "PIPE") => {
                let at = |word: &str| words.iter().position(|w| w.eq_ignore_ascii_case(word));
                Self::CreatePipe {
                    pipe: words
                        .iter()
                        .skip(2)
                        .find(|w| !["IF", "NOT", "EXISTS"].contains(&w.to_uppercase().as_str()))
                        .map_or(String::new(), |w| w.to_lowercase()),
                    table: at("INTO").map_or(String::new(), |into| name(into + 1)),
                    topic: at("topic").map_or(String::new(), |topic| {
                        words.get(topic + 2).map_or("", |w| w.trim_matches('\'')).to_owned()
                    }),
                }
            }
            () if !(is(0, "ALTER") && is(1, "PIPE")) => Self::Other,
            () => {
                let (pipe, partitions) = (name(2), partitions(&words));
                match () {
                    () if is(3, "RESET") && has("DELETE") => Self::DeleteRows { pipe, partitions },
                    () if is(3, "RESET") && has("KEEP") => Self::Reread { pipe, partitions },
                    () if is(3, "RESET") || is(3, "SKIP") => Self::Skip { pipe, partitions },
                    () if is(3, "BACKFILL") => Self::Backfill { pipe },
                    () => Self::Other,
                }
            }
        }
    }
}

/// The partitions that a reset names; none means all.
fn partitions(words: &[&str]) -> Vec<u32> {
    let after = |word: &str| words.iter().position(|w| w.eq_ignore_ascii_case(word));
    let list = |from: usize| {
        words
            .iter()
            .skip(from)
            .skip_while(|w| **w != "(")
            .skip(1)
            .take_while(|w| **w != ")")
    };
    match (after("PARTITION"), after("TO")) {
        (Some(at), _) => list(at).filter_map(|w| w.parse().ok()).collect(),
        (None, Some(at)) if words.get(at + 1) == Some(&"(") => {
            let inside: Vec<&&str> = list(at).collect();
            let named = inside.windows(2).filter(|pair| *pair[1] == "=");
            named.filter_map(|pair| pair[0].parse().ok()).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_known_by_what_they_do_to_rows() {
        let pipe = || "events".to_owned();
        let cases = [
            ("ALTER PIPE events PAUSE", Statement::Other),
            ("ALTER PIPE events REPAIR PARTITION (1)", Statement::Other),
            (
                "alter pipe events reset offsets to earliest partition (0, 3) keep rows;",
                Statement::Reread {
                    pipe: pipe(),
                    partitions: vec![0, 3],
                },
            ),
            (
                "ALTER PIPE events RESET OFFSETS TO (1 = 500, 2=7) DELETE ROWS",
                Statement::DeleteRows {
                    pipe: pipe(),
                    partitions: vec![1, 2],
                },
            ),
            (
                "ALTER PIPE events RESET OFFSETS TO LATEST",
                Statement::Skip {
                    pipe: pipe(),
                    partitions: vec![],
                },
            ),
            (
                "ALTER PIPE events SKIP TO LATEST PARTITION (2)",
                Statement::Skip {
                    pipe: pipe(),
                    partitions: vec![2],
                },
            ),
            ("ALTER PIPE events BACKFILL", Statement::Backfill { pipe: pipe() }),
            ("DROP PIPE IF EXISTS events", Statement::DropPipe { pipe: pipe() }),
            ("DROP TABLE t", Statement::DropTable { table: "t".into() }),
            (
                "CREATE PIPE p INTO t FROM KAFKA (brokers = 'h:1', topic = 'source', start = 'earliest')",
                Statement::CreatePipe {
                    pipe: "p".into(),
                    table: "t".into(),
                    topic: "source".into(),
                },
            ),
        ];
        for (sql, expected) in cases {
            assert_eq!(Statement::parse(sql), expected, "{sql}");
        }
    }

    #[test]
    fn what_nobody_knows_may_happen_at_any_time_later() {
        let operation = |kind, end| Operation { invoke: 5, end, kind };
        let known = Act::new(operation(Kind::Ok, Some(8)), Statement::Other);
        assert!(known.within(8, 20) && known.within(0, 5) && !known.within(9, 20) && !known.within(0, 4));
        let unknown = Act::new(operation(Kind::Info, Some(8)), Statement::Other);
        assert!(unknown.within(900, 901) && !unknown.within(0, 4));
        assert!(!Act::new(operation(Kind::Fail, Some(8)), Statement::Other).within(0, 99));
    }
}
