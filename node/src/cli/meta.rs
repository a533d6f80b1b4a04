//! The shell's own commands, which begin with a backslash: what they are and what they say of
//! themselves. Pure; the shell carries them out.

use super::output::Format;
use clap::ValueEnum;
use std::time::Duration;

/// What `\?` shows.
pub const HELP: &str = r"End a statement with ; to run it. Ctrl-C cancels a statement or clears the line, Ctrl-D leaves.
  \d           tables
  \d NAME      columns of a table
  \format F    table, csv or json
  \timing      show how long statements take, or stop it
  \watch S     repeat the last statement every S seconds (2) until Ctrl-C
  \?           this
  \q           leave
";

/// One command of the shell.
#[derive(Clone, Debug, PartialEq)]
pub enum Meta {
    /// Leave.
    Quit,
    /// Show [`HELP`].
    Help,
    /// Run this statement.
    Run(String),
    /// Switch the timing.
    Timing,
    /// Change the format.
    Format(Format),
    /// Repeat the last statement with this pause.
    Watch(Duration),
}

/// Whether a line is a command of the shell and not SQL.
pub fn is_meta(line: &str) -> bool {
    let line = line.trim();
    line.starts_with('\\') || ["exit", "quit", "exit;", "quit;"].contains(&line)
}

/// Understands a line for which [`is_meta`] holds; the error is for the user.
pub fn parse(line: &str) -> Result<Meta, String> {
    let line = line.trim().trim_end_matches(';');
    let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    match (command, rest) {
        ("\\q" | "exit" | "quit", "") => Ok(Meta::Quit),
        ("\\?" | "\\h", "") => Ok(Meta::Help),
        ("\\d", "") => Ok(Meta::Run("SHOW TABLES".to_owned())),
        ("\\d", table) => Ok(Meta::Run(format!("DESCRIBE {table}"))),
        ("\\timing", "") => Ok(Meta::Timing),
        ("\\format", name) => Format::from_str(name, true)
            .map(Meta::Format)
            .map_err(|_| "the formats are table, csv and json".to_owned()),
        ("\\watch", "") => Ok(Meta::Watch(Duration::from_secs(2))),
        ("\\watch", seconds) => match seconds.parse::<f64>() {
            Ok(seconds) if (0.1..=86_400.0).contains(&seconds) => Ok(Meta::Watch(Duration::from_secs_f64(seconds))),
            _ => Err("\\watch takes seconds, from 0.1".to_owned()),
        },
        _ => Err(format!("there is no command {line}; \\? lists them")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_understood() {
        assert_eq!(parse("\\q"), Ok(Meta::Quit));
        assert_eq!(parse(" quit; "), Ok(Meta::Quit));
        assert_eq!(parse("\\d"), Ok(Meta::Run("SHOW TABLES".to_owned())));
        assert_eq!(
            parse("\\d  system.nodes;"),
            Ok(Meta::Run("DESCRIBE system.nodes".to_owned()))
        );
        assert_eq!(parse("\\format CSV"), Ok(Meta::Format(Format::Csv)));
        assert_eq!(parse("\\watch 0.5"), Ok(Meta::Watch(Duration::from_millis(500))));
        for bad in [
            "\\x",
            "\\format xml",
            "\\watch now",
            "\\watch -1",
            "\\q now",
            "\\watch NaN",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sql_is_not_a_command() {
        for sql in ["SELECT 1;", "exits", "", "SELECT '\\q'"] {
            assert!(!is_meta(sql), "{sql}");
        }
        assert!(is_meta("  \\d") && is_meta("exit"));
    }
}
