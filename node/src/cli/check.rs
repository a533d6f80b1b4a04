//! `tidemill check`: holds the ledgers against the files, and says with its exit code whether they agree.

use super::output::{Format, Output};
use super::{Connect, exit_code};
use anyhow::Context;
use arrow::array::AsArray;
use std::io;
use std::process::ExitCode;
use tidemill_client::{Answer, ClientError, Rows};

/// Every source partition whose rows are here; those that do not agree come first.
const CHECK: &str = "SELECT * FROM system.check ORDER BY ok, \"table\", topic, \"partition\"";

/// Counts the rows of every part anew, from the footers of the files, and compares them with the ledgers
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Exits with 1 when something does not agree, 2 when no node can be reached.")]
pub struct Args {
    #[command(flatten)]
    connect: Connect,
    /// How to write what was found
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Checks and prints what was found.
///
/// # Errors
/// When the output cannot be written.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let rows = match ask(&args).await {
        Ok(rows) => rows.context("the node answered the check with a message")?,
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(exit_code(&error));
        }
    };
    let mut out = io::stdout().lock();
    let mut output = Output::begin(args.format, rows.schema(), &mut out)?;
    let mut agree = true;
    for batch in rows.collect().await? {
        let ok = batch.column_by_name("ok").and_then(|column| column.as_boolean_opt());
        agree &= ok
            .context("system.check has no column ok")?
            .iter()
            .all(|ok| ok == Some(true));
        output.batch(&batch, &mut out)?;
    }
    output.end(&mut out)?;
    if agree {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("error: the ledgers and the files do not agree; the lines that are not ok say where");
    Ok(ExitCode::from(1))
}

async fn ask(args: &Args) -> Result<Option<Rows>, ClientError> {
    match args.connect.client()?.query(CHECK).await? {
        Answer::Rows(rows) => Ok(Some(rows)),
        Answer::Message(_) => Ok(None),
    }
}
