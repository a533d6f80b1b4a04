//! Shows an error beside the SQL that caused it: the line, and carets under the offending word.
//! Pure; whoever prints it chooses where.

use super::width;
use std::fmt::Write;
use tidemill_client::ClientError;

/// A line longer than this many characters is shown in part, around the fault.
const WINDOW: usize = 120;
/// How many characters before the fault are shown then.
const BEFORE: usize = 50;

/// Where a statement comes from, for messages about one of many in a file.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The name of the file.
    pub file: &'a str,
    /// The line in which the statement begins, counted from 1.
    pub line: usize,
}

/// The error in lines for a person, each ended by a line feed. `sql` is the text that was sent.
pub fn render(error: &ClientError, sql: &str, origin: Option<Origin<'_>>) -> String {
    let mut text = format!("error: {error}\n");
    let place = match error {
        ClientError::Invalid {
            line: line @ 1..,
            column: column @ 1..,
            length,
            ..
        } => Some((*line as usize, *column as usize, *length as usize)),
        _ => None,
    };
    if let Some(Origin { file, line }) = origin {
        let line = line + place.map_or(0, |(within, ..)| within - 1);
        // Writing to a string cannot fail.
        let _ = writeln!(text, " --> {file}:{line}");
    }
    if let Some((line, column, length)) = place
        && let Some(line) = sql.lines().nth(line - 1)
    {
        text.push_str(&marked(line, column, length));
    }
    text
}

/// The line and, below, carets under `length` characters from `column` (from 1). A fault behind the
/// end of the line gets one caret there.
fn marked(line: &str, column: usize, length: usize) -> String {
    let chars: Vec<char> = line.trim_end().chars().collect();
    let from = (column - 1).min(chars.len());
    let to = from.saturating_add(length.max(1)).min(chars.len()).max(from);
    let (begin, end) = if chars.len() <= WINDOW {
        (0, chars.len())
    } else {
        let begin = from.saturating_sub(BEFORE).min(chars.len() - WINDOW);
        (begin, begin + WINDOW)
    };
    let (shown, carets) = (
        display(&chars[begin..end]),
        width::of(&display(&chars[from..to.min(end).max(from)])),
    );
    let indent = width::of(&display(&chars[begin..from]));
    let (head, tail) = (
        if begin > 0 { "…" } else { "" },
        if end < chars.len() { "…" } else { "" },
    );
    let pad = " ".repeat(indent + width::of(head));
    format!("  {head}{shown}{tail}\n  {pad}{}\n", "^".repeat(carets.max(1)))
}

/// Tabs would shift the carets, and other control characters the screen.
fn display(chars: &[char]) -> String {
    let shown = |c: &char| match c {
        '\t' => "    ".to_owned(),
        c if c.is_control() => "\u{fffd}".to_owned(),
        c => c.to_string(),
    };
    chars.iter().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invalid(line: u32, column: u32, length: u32) -> ClientError {
        let message = "there is no column 'nme'; did you mean 'name'?".to_owned();
        ClientError::Invalid {
            message,
            line,
            column,
            length,
        }
    }

    fn shown(sql: &str, line: u32, column: u32, length: u32) -> String {
        let text = render(&invalid(line, column, length), sql, None);
        text.split_once('\n').unwrap().1.to_owned()
    }

    #[test]
    fn carets_stand_under_the_word() {
        assert_eq!(
            render(&invalid(1, 8, 3), "SELECT nme FROM t", None),
            "error: there is no column 'nme'; did you mean 'name'?\n  SELECT nme FROM t\n         ^^^\n"
        );
    }

    #[test]
    fn the_right_line_is_shown() {
        assert_eq!(shown("SELECT a,\r\n\tnme\r\nFROM t", 2, 2, 3), "      nme\n      ^^^\n");
    }

    #[test]
    fn wide_characters_count_as_the_terminal_shows_them() {
        assert_eq!(
            shown("SELECT '名前', nme", 1, 14, 3),
            "  SELECT '名前', nme\n                 ^^^\n"
        );
        assert_eq!(shown("SELECT 名前", 1, 8, 2), "  SELECT 名前\n         ^^^^\n");
        assert_eq!(
            shown("SELECT 'größe', x", 1, 17, 1),
            "  SELECT 'größe', x\n                  ^\n"
        );
    }

    #[test]
    fn a_fault_behind_the_end_gets_one_caret() {
        assert_eq!(shown("SELECT", 1, 7, 0), "  SELECT\n        ^\n");
        assert_eq!(shown("SELECT", 1, 70, 5), "  SELECT\n        ^\n");
        assert_eq!(shown("SELECT x", 1, 8, 50), "  SELECT x\n         ^\n");
    }

    #[test]
    fn without_a_place_there_is_no_line() {
        assert_eq!(shown("SELECT", 0, 0, 0), "");
        assert_eq!(shown("SELECT", 2, 1, 1), "");
        let server = ClientError::Server {
            message: "disk full".to_owned(),
        };
        assert_eq!(render(&server, "SELECT", None), "error: disk full\n");
    }

    #[test]
    fn long_lines_are_shown_around_the_fault() {
        let sql = format!("SELECT {}nme{}", "x, ".repeat(100), ", y".repeat(100));
        let text = shown(&sql, 1, 308, 3);
        let (line, carets) = text.trim_end().split_once('\n').unwrap();
        assert_eq!(line.chars().count(), 2 + 1 + WINDOW + 1);
        let at = carets.find('^').unwrap();
        let word: String = line.chars().skip(at).take(3).collect();
        assert_eq!((word.as_str(), &carets[at..]), ("nme", "^^^"));
    }

    #[test]
    fn a_file_is_named_with_the_line_in_it() {
        let origin = Origin {
            file: "setup.sql",
            line: 10,
        };
        let text = render(&invalid(2, 1, 3), "SELECT\nnme", Some(origin));
        assert!(text.contains(" --> setup.sql:11\n  nme\n  ^^^\n"), "{text}");
    }
}
