//! The interactive shell: reads statements and backslash commands with history and runs them.
//! Ctrl-C ends what runs, never the shell. The keyboard is read on a thread of its own, so that
//! connections live on while nobody types.

use super::fault;
use super::meta::{self, HELP, Meta};
use super::output::Format;
use super::sql::{Report, Runner, Trouble};
use anyhow::Context as _;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Editor};
use std::ffi::OsString;
use std::io::{self, BufWriter};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tidemill_client::sql as text;

const PROMPT: &str = "tidemill> ";
const HISTORY_ENTRIES: usize = 10_000;

/// Runs until the user leaves.
///
/// # Errors
/// When the terminal cannot be used.
pub async fn run(runner: Runner) -> anyhow::Result<ExitCode> {
    let mut keyboard = Keyboard::open()?;
    let mut shell = Shell { runner, last: None };
    loop {
        // The editor blocks until a line is there.
        let (back, line) = tokio::task::spawn_blocking(move || {
            let line = keyboard.read();
            (keyboard, line)
        })
        .await
        .context("the keyboard's thread failed")?;
        keyboard = back;
        match line {
            Ok(line) if line.trim().is_empty() => {}
            Ok(line) => {
                if !shell.line(&line).await {
                    break;
                }
            }
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error).context("cannot read from the terminal"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

struct Shell {
    runner: Runner,
    /// What \watch repeats.
    last: Option<String>,
}

impl Shell {
    /// Does what the line says. Returns false to leave.
    async fn line(&mut self, line: &str) -> bool {
        if !meta::is_meta(line) {
            for statement in text::split(line) {
                self.last = Some(statement.text.to_owned());
                if !self.statement(statement.text).await {
                    break;
                }
            }
            return true;
        }
        match meta::parse(line) {
            Ok(Meta::Quit) => return false,
            Ok(Meta::Help) => print!("{HELP}"),
            Ok(Meta::Run(sql)) => {
                self.statement(&sql).await;
            }
            Ok(Meta::Timing) => {
                self.runner.timing = !self.runner.timing;
                println!("timing is {}", if self.runner.timing { "on" } else { "off" });
            }
            Ok(Meta::Format(format)) => self.runner.format = format,
            Ok(Meta::Watch(pause)) => self.watch(pause).await,
            Err(error) => eprintln!("error: {error}"),
        }
        true
    }

    /// Runs a statement and shows how it ended. Returns false if it failed or was cancelled.
    async fn statement(&self, sql: &str) -> bool {
        let mut out = BufWriter::new(io::stdout());
        let ended = tokio::select! {
            ended = self.runner.run(sql, &mut out) => ended,
            _ = tokio::signal::ctrl_c() => {
                let effect = if text::reads(sql) { "" } else { "; it may or may not have taken effect" };
                eprintln!("cancelled{effect}");
                return false;
            }
        };
        self.show(sql, &ended);
        ended.is_ok()
    }

    fn show(&self, sql: &str, ended: &Result<Report, Trouble>) {
        match ended {
            Ok(report) => report.show(self.runner.format != Format::Json, self.runner.timing),
            Err(Trouble::Client(error)) => eprint!("{}", fault::render(error, sql, None)),
            Err(Trouble::Output(error)) => eprintln!("error: cannot write the rows: {error}"),
        }
    }

    async fn watch(&self, pause: Duration) {
        let Some(sql) = &self.last else {
            eprintln!("error: there is no statement to repeat yet");
            return;
        };
        while self.statement(sql).await {
            tokio::select! {
                () = tokio::time::sleep(pause) => println!(),
                _ = tokio::signal::ctrl_c() => return,
            }
        }
    }
}

/// The line editor with its history.
struct Keyboard {
    editor: Editor<Statements, FileHistory>,
    history: Option<PathBuf>,
}

impl Keyboard {
    fn open() -> anyhow::Result<Self> {
        let config = Config::builder()
            .max_history_size(HISTORY_ENTRIES)?
            .history_ignore_space(true)
            .build();
        let mut editor = Editor::with_config(config).context("cannot use the terminal")?;
        editor.set_helper(Some(Statements));
        let history = history_file(std::env::var_os("XDG_STATE_HOME"), std::env::var_os("HOME"));
        // A shell without history is better than none: the first start has no file, and the folder
        // may not be writable.
        let history = history.filter(|path| path.parent().is_some_and(|dir| std::fs::create_dir_all(dir).is_ok()));
        if let Some(path) = &history {
            let _ = editor.load_history(path);
        }
        Ok(Self { editor, history })
    }

    fn read(&mut self) -> rustyline::Result<String> {
        let line = self.editor.readline(PROMPT)?;
        if !line.trim().is_empty() && self.editor.add_history_entry(line.as_str())? {
            // Written at once, so that a crash loses nothing; not being able to is no error.
            if let Some(path) = &self.history {
                let _ = self.editor.append_history(path);
            }
        }
        Ok(line)
    }
}

/// Where the history is kept: `tidemill/history` in the folder for state (XDG base directories).
fn history_file(state: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let given = |value: Option<OsString>| value.map(PathBuf::from).filter(|path| path.is_absolute());
    let state = given(state).or_else(|| given(home).map(|home| home.join(".local/state")))?;
    Some(state.join("tidemill/history"))
}

/// Tells the editor when a statement is complete; completes and colours nothing.
struct Statements;

impl Validator for Statements {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let input = context.input();
        Ok(if meta::is_meta(input) || !text::is_open(input) {
            ValidationResult::Valid(None)
        } else {
            ValidationResult::Incomplete
        })
    }
}

impl rustyline::completion::Completer for Statements {
    type Candidate = String;
}

impl rustyline::hint::Hinter for Statements {
    type Hint = String;
}

impl rustyline::highlight::Highlighter for Statements {}

impl rustyline::Helper for Statements {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_follows_xdg() {
        let some = |text: &str| Some(OsString::from(text));
        assert_eq!(
            history_file(some("/s"), some("/h")),
            Some(PathBuf::from("/s/tidemill/history"))
        );
        assert_eq!(
            history_file(None, some("/h")),
            Some(PathBuf::from("/h/.local/state/tidemill/history"))
        );
        assert_eq!(history_file(some("relative"), None), None);
    }
}
