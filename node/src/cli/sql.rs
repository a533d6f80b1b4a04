//! `tidemill sql`: runs statements from the command line, a file or the standard input, or hands
//! over to the `shell`. Rows go to the standard output and everything else to
//! the standard error, so that a script reads nothing but rows.

use super::fault::{self, Origin};
use super::output::{Format, Output, Written, footer};
use super::{Connect, exit_code, shell};
use anyhow::Context;
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use thiserror::Error;
use tidemill_client::{Answer, Client, ClientError, sql as text};

/// Runs SQL; a shell when neither -c nor -f is given
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Exits with 1 when a statement fails, 2 when no node can be reached, 3 when it is \
    unknown whether a statement took effect."
)]
pub struct Args {
    #[command(flatten)]
    connect: Connect,
    /// Run these statements and end; may be repeated
    #[arg(short = 'c', long = "command", value_name = "SQL")]
    commands: Vec<String>,
    /// Run the statements of a file and end; - is the standard input
    #[arg(short = 'f', long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// How to write rows [default: table on a terminal, else csv]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Whether queries see rows that are not committed yet [default: the server's]
    #[arg(long, value_enum)]
    consistency: Option<Consistency>,
    /// Say how long each statement takes
    #[arg(long)]
    timing: bool,
}

/// Which rows a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Consistency {
    /// All rows up to now
    Fresh,
    /// Committed rows only
    Committed,
}

/// Runs what is asked for.
///
/// # Errors
/// When a file cannot be read or the output not be written. A statement that fails is shown here and
/// becomes the exit code.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let client = match args.connect.client() {
        Ok(client) => client,
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(exit_code(&error));
        }
    };
    if let Some(consistency) = args.consistency {
        let value = match consistency {
            Consistency::Fresh => "fresh",
            Consistency::Committed => "committed",
        };
        client.set("tidemill.consistency", Some(value.to_owned()));
    }
    let terminal = io::stdout().is_terminal();
    let format = args
        .format
        .unwrap_or(if terminal { Format::Table } else { Format::Csv });
    let runner = Runner {
        client,
        format,
        timing: args.timing,
    };
    let interactive = args.commands.is_empty() && args.file.is_none() && io::stdin().is_terminal();
    if interactive {
        match args.connect.status().await {
            Ok(status) => {
                println!(
                    "Cluster {} through node {}. \\? shows help, \\q leaves.",
                    status.cluster, status.node
                );
            }
            Err(error) => {
                eprintln!("error: {error}");
                return Ok(exit_code(&error));
            }
        }
        return shell::run(runner).await;
    }
    let ended = script(&runner, &sources(&args)?).await;
    match ended {
        Err(Trouble::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(Trouble::Output(error)) => Err(error).context("cannot write the rows"),
        // The statement was shown where it failed.
        Err(Trouble::Client(error)) => Ok(exit_code(&error)),
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}

/// A text with statements, and its name if it is a file.
struct Source {
    name: Option<String>,
    text: String,
}

/// All texts, in the order in which they run: -c before -f; the standard input if there is neither.
fn sources(args: &Args) -> anyhow::Result<Vec<Source>> {
    let mut sources: Vec<Source> = args
        .commands
        .iter()
        .map(|text| Source {
            name: None,
            text: text.clone(),
        })
        .collect();
    let stdin = PathBuf::from("-");
    let file = args
        .file
        .as_ref()
        .or(if sources.is_empty() { Some(&stdin) } else { None });
    if let Some(path) = file {
        let mut text = String::new();
        let name = if *path == stdin {
            io::stdin()
                .read_to_string(&mut text)
                .context("cannot read the standard input")?;
            "stdin".to_owned()
        } else {
            text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            path.display().to_string()
        };
        sources.push(Source { name: Some(name), text });
    }
    Ok(sources)
}

async fn script(runner: &Runner, sources: &[Source]) -> Result<(), Trouble> {
    let mut out = BufWriter::new(io::stdout());
    for source in sources {
        for statement in text::split(&source.text) {
            let ended = runner.run(statement.text, &mut out).await;
            if let Err(Trouble::Client(error)) = &ended {
                let origin = source.name.as_deref().map(|file| Origin {
                    file,
                    line: statement.line,
                });
                eprint!("{}", fault::render(error, statement.text, origin));
            }
            let report = ended?;
            report.show(runner.format == Format::Table, runner.timing);
        }
    }
    Ok(())
}

/// Runs statements one by one and writes their rows.
pub(super) struct Runner {
    /// The connection with its session.
    pub client: Client,
    /// How rows are written.
    pub format: Format,
    /// Whether times are shown.
    pub timing: bool,
}

/// Why a statement did not run to its end.
#[derive(Debug, Error)]
pub(super) enum Trouble {
    /// It failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Its rows could not be written.
    #[error(transparent)]
    Output(#[from] io::Error),
}

/// What a statement did.
pub(super) struct Report {
    rows: Option<Written>,
    message: Option<String>,
    took: std::time::Duration,
}

impl Runner {
    /// Runs one statement and writes its rows. Dropping the future cancels it.
    pub async fn run(&self, sql: &str, out: &mut impl Write) -> Result<Report, Trouble> {
        let begun = Instant::now();
        let mut rows = match self.client.query(sql).await? {
            Answer::Message(message) => {
                return Ok(Report {
                    rows: None,
                    message: Some(message),
                    took: begun.elapsed(),
                });
            }
            Answer::Rows(rows) => rows,
        };
        let mut output = Output::begin(self.format, rows.schema(), out)?;
        while let Some(batch) = rows.next().await? {
            if !output.batch(&batch, out)? {
                break;
            }
        }
        let took = begun.elapsed();
        Ok(Report {
            rows: Some(output.end(out)?),
            message: None,
            took,
        })
    }
}

impl Report {
    /// Prints the message and the line under the rows, both on the standard error.
    pub fn show(&self, count: bool, timing: bool) {
        if let Some(message) = &self.message {
            eprintln!("{message}");
        }
        let cut = self.rows.is_some_and(|rows| rows.cut);
        let line = footer(self.rows.filter(|_| count || cut), timing.then_some(self.took));
        if let Some(line) = line {
            eprintln!("{line}");
        }
    }
}
