//! As much of SQL as a client needs: where statements end, whether one only reads, what a `SET`
//! sets. Knows words, quotes and comments; everything else is the server's business.
//!
//! The lexical rules are those of DataFusion's generic dialect: `'…'` with doubled quotes, `E'…'`
//! with backslashes, `"…"` and `` `…` `` identifiers, `$tag$…$tag$` strings, `--` comments and
//! nested `/* … */` comments.

/// One statement of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statement<'a> {
    /// The statement without the blanks and comments around it and without its `;`.
    pub text: &'a str,
    /// The line of the whole text in which it begins, counted from 1.
    pub line: usize,
    /// Whether a `;` ended it. Only the last statement of a text can be without.
    pub ended: bool,
}

/// The statements of a text, split at each `;` that is not in quotes or a comment. What consists of
/// blanks and comments only is no statement.
#[must_use]
pub fn split(text: &str) -> Vec<Statement<'_>> {
    let mut statements = Vec::new();
    // From the first to behind the last token of the statement at hand.
    let mut range: Option<(usize, usize)> = None;
    let mut flush = |range: &mut Option<(usize, usize)>, ended| {
        if let Some((from, to)) = range.take() {
            let line = 1 + text[..from].matches('\n').count();
            statements.push(Statement {
                text: &text[from..to],
                line,
                ended,
            });
        }
    };
    for token in tokens(text) {
        let end = token.start + token.text.len();
        match token.kind {
            Kind::Blank | Kind::Comment => {}
            Kind::Other if token.text == ";" => flush(&mut range, true),
            Kind::Word | Kind::Quoted | Kind::Other => {
                range = Some((range.map_or(token.start, |(from, _)| from), end));
            }
        }
    }
    flush(&mut range, false);
    statements
}

/// Whether the text ends inside a statement, a quoted string or a comment: more lines belong to it.
#[must_use]
pub fn is_open(text: &str) -> bool {
    tokens(text).last().is_some_and(|last| !last.closed) || split(text).last().is_some_and(|last| !last.ended)
}

/// Whether a statement certainly changes nothing, so that it may be run twice.
#[must_use]
pub fn reads(statement: &str) -> bool {
    let mut words = tokens(statement)
        .filter(|token| token.kind == Kind::Word)
        .map(|token| token.text);
    let Some(first) = words.next() else {
        return false;
    };
    const READS: [&str; 7] = ["SELECT", "WITH", "SHOW", "DESCRIBE", "EXPLAIN", "VALUES", "SET"];
    // These may hide behind WITH or EXPLAIN ANALYZE. A column of such a name costs a retry only.
    const WRITES: [&str; 5] = ["INSERT", "UPDATE", "DELETE", "MERGE", "INTO"];
    let is = |word: &str, list: &[&str]| list.iter().any(|known| word.eq_ignore_ascii_case(known));
    is(first, &READS) && !words.any(|word| is(word, &WRITES))
}

/// The name and value of `SET name = value` or `SET name TO value`; the value is `None` for
/// `DEFAULT`. `None` if the statement is something else.
#[must_use]
pub fn setting(statement: &str) -> Option<(String, Option<String>)> {
    let [statement] = split(statement)[..] else {
        return None;
    };
    let mut tokens = tokens(statement.text)
        .filter(|token| token.kind != Kind::Comment)
        .peekable();
    tokens.next().filter(|token| token.is_word("SET"))?;
    let mut name = String::new();
    for token in tokens.by_ref() {
        match token.kind {
            Kind::Other if token.text == "=" => break,
            Kind::Word if token.is_word("TO") && !name.is_empty() && !name.ends_with('.') => break,
            Kind::Blank => {}
            _ => name.push_str(&token.unquoted()),
        }
    }
    let value: Vec<Token<'_>> = tokens.skip_while(|token| token.kind == Kind::Blank).collect();
    match &value[..] {
        _ if name.is_empty() => None,
        [] => None,
        [word] if word.is_word("DEFAULT") => Some((name, None)),
        _ => Some((name, Some(value.iter().map(Token::unquoted).collect()))),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Blank,
    Comment,
    /// Letters, digits, `_`.
    Word,
    /// A string or a quoted identifier.
    Quoted,
    /// Any other single character.
    Other,
}

#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
    start: usize,
    /// False for a string or comment without its end.
    closed: bool,
}

impl Token<'_> {
    fn is_word(&self, word: &str) -> bool {
        self.kind == Kind::Word && self.text.eq_ignore_ascii_case(word)
    }

    fn unquoted(&self) -> String {
        let quote = match (self.kind, self.text.chars().next()) {
            (Kind::Quoted, Some(quote @ ('\'' | '"' | '`'))) if self.closed => quote,
            _ => return self.text.to_owned(),
        };
        let inner = &self.text[1..self.text.len() - 1];
        inner.replace(&format!("{quote}{quote}"), &quote.to_string())
    }
}

/// The text as consecutive tokens without gaps.
fn tokens(text: &str) -> impl Iterator<Item = Token<'_>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = &text[start..];
        let first = rest.chars().next()?;
        let (kind, length, closed) = token(rest, first);
        let token = Token {
            kind,
            text: &rest[..length],
            start,
            closed,
        };
        start += length;
        Some(token)
    })
}

/// Kind, length in bytes and completeness of the token that `rest` begins with.
fn token(rest: &str, first: char) -> (Kind, usize, bool) {
    let quoted = |(length, closed)| (Kind::Quoted, length, closed);
    match first {
        '\'' | '"' | '`' => quoted(quoted_length(rest, first, false)),
        '$' => match dollar_quoted(rest) {
            Some(found) => quoted(found),
            None => (Kind::Other, 1, true),
        },
        'e' | 'E' if rest[1..].starts_with('\'') => {
            let (length, closed) = quoted_length(&rest[1..], '\'', true);
            quoted((1 + length, closed))
        }
        '-' if rest.starts_with("--") => (Kind::Comment, rest.find('\n').unwrap_or(rest.len()), true),
        '/' if rest.starts_with("/*") => {
            let (length, closed) = block_comment(rest);
            (Kind::Comment, length, closed)
        }
        _ if first.is_whitespace() => (Kind::Blank, run(rest, char::is_whitespace), true),
        _ if is_word(first) => (Kind::Word, run(rest, is_word), true),
        _ => (Kind::Other, first.len_utf8(), true),
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn run(rest: &str, belongs: impl Fn(char) -> bool) -> usize {
    rest.find(|c| !belongs(c)).unwrap_or(rest.len())
}

/// A doubled quote closes and opens again at once, which comes to the same for finding the end.
fn quoted_length(rest: &str, quote: char, backslash: bool) -> (usize, bool) {
    let mut chars = rest.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if backslash && c == '\\' {
            chars.next();
        } else if c == quote && chars.next_if(|(_, next)| *next == quote).is_none() {
            return (at + 1, true);
        }
    }
    (rest.len(), false)
}

fn dollar_quoted(rest: &str) -> Option<(usize, bool)> {
    let tag = run(&rest[1..], is_word);
    let opening = rest.get(..tag + 2).filter(|opening| opening.ends_with('$'))?;
    // `$1` is a placeholder: a tag does not begin with a digit.
    if opening[1..].starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    Some(match rest[opening.len()..].find(opening) {
        Some(at) => (2 * opening.len() + at, true),
        None => (rest.len(), false),
    })
}

fn block_comment(rest: &str) -> (usize, bool) {
    let mut depth = 0_u32;
    let mut at = 0;
    while at < rest.len() {
        let tail = &rest.as_bytes()[at..];
        if tail.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if tail.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return (at, true);
            }
        } else {
            at += 1;
        }
    }
    (rest.len(), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<&str> {
        split(text).into_iter().map(|statement| statement.text).collect()
    }

    #[test]
    fn statements_end_at_semicolons() {
        assert_eq!(
            texts("SELECT 1; SELECT 2 ;\n SELECT 3"),
            ["SELECT 1", "SELECT 2", "SELECT 3"]
        );
        assert_eq!(texts(" ;; \n; "), Vec::<&str>::new());
        assert_eq!(texts("é;ü"), ["é", "ü"]);
    }

    #[test]
    fn semicolons_in_quotes_do_not_count() {
        for one in [
            "SELECT ';'",
            "SELECT 'it''s; so'",
            r#"SELECT "a;b", `c;d`"#,
            r"SELECT E'it\'s; so'",
            "SELECT $$a;'b$$",
            "SELECT $x$ ; $$ ; $x$",
            "SELECT 1 -- one; two\n + 2",
            "SELECT 1 /* ; /* ; */ ; */ + 2",
        ] {
            assert_eq!(texts(one), [one]);
        }
        assert_eq!(texts(r"SELECT 'a\'; SELECT 2"), [r"SELECT 'a\'", "SELECT 2"]);
        assert_eq!(texts("SELECT $1; SELECT $2$"), ["SELECT $1", "SELECT $2$"]);
        assert_eq!(texts("SELECT de'x;y'"), ["SELECT de'x;y'"]);
    }

    #[test]
    fn comments_around_are_left_out_and_lines_counted() {
        let text = "-- first\nSELECT 1;\n\n/* second */ SELECT\n 2 -- end\n; -- over";
        assert_eq!(
            split(text),
            [
                Statement {
                    text: "SELECT 1",
                    line: 2,
                    ended: true
                },
                Statement {
                    text: "SELECT\n 2",
                    line: 4,
                    ended: true
                },
            ]
        );
    }

    #[test]
    fn open_until_the_semicolon() {
        for open in [
            "SELECT 1",
            "SELECT 1; SELECT",
            "SELECT ';",
            "SELECT $$;",
            "SELECT 1; /* ",
            "SELECT 1 --;",
        ] {
            assert!(is_open(open), "{open}");
        }
        for closed in ["", "  \n", "-- nothing", "SELECT 1;", "SELECT 1; -- done\n"] {
            assert!(!is_open(closed), "{closed}");
        }
    }

    #[test]
    fn reading_statements_are_known() {
        for sql in [
            "select 1",
            " -- hi\n (SELECT 1)",
            "WITH a AS (SELECT 1) SELECT * FROM a",
            "SHOW TABLES",
            "set a = 1",
        ] {
            assert!(reads(sql), "{sql}");
        }
        for sql in [
            "",
            "INSERT INTO t VALUES (1)",
            "CREATE TABLE selected (a INT)",
            "WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a",
            "EXPLAIN ANALYZE DELETE FROM t",
            "SELECT 1 INTO t",
            "/* SELECT */ DROP TABLE t",
            "'SELECT' DROP TABLE t",
        ] {
            assert!(!reads(sql), "{sql}");
        }
    }

    #[test]
    fn settings_are_understood() {
        let some = |name: &str, value: &str| Some((name.to_owned(), Some(value.to_owned())));
        assert_eq!(
            setting("SET tidemill.consistency = committed;"),
            some("tidemill.consistency", "committed")
        );
        assert_eq!(
            setting("set tidemill.consistency TO 'it''s'"),
            some("tidemill.consistency", "it's")
        );
        assert_eq!(setting("SET \"a\".b=-1.5 /* so */"), some("a.b", "-1.5"));
        assert_eq!(setting("SET a = DEFAULT"), Some(("a".to_owned(), None)));
        for other in ["SET a", "SET = 1", "SELECT 1", "SET a =", "SET a = 1; SELECT 1", ""] {
            assert_eq!(setting(other), None, "{other}");
        }
    }
}
