//! `tidemill write`: rows from the standard input into a table, one JSON object in each line.

use super::{Connect, exit_code};
use std::io::BufRead;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tidemill_client::{Acks, ClientError, Delivery, WriteError, Writer, WriterOptions};
use tokio::sync::mpsc;

/// Writes rows into a table: one JSON object in each line of the standard input
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Exits with 1 when a row is refused, 2 when no node can be reached, 3 when it is unknown whether rows were \
    written. All other rows are written in any case, each once."
)]
pub struct Args {
    #[command(flatten)]
    connect: Connect,
    /// The table
    #[arg(value_name = "TABLE")]
    table: String,
    /// When a row counts as written
    #[arg(long, value_enum, default_value = "all")]
    acks: AcksArg,
    /// How long a row is tried, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

/// When a row counts as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum AcksArg {
    /// When the leader of its shard has it in memory
    None,
    /// When it is in the write-ahead log of that leader
    Leader,
    /// When it is committed
    All,
}

/// How many deliveries may be outstanding before the oldest is looked at.
const AHEAD: usize = 100_000;

/// What became of the rows.
#[derive(Default)]
struct Count {
    written: u64,
    refused: u64,
    unknown: u64,
}

/// Writes until the input ends.
///
/// # Errors
/// Never; what goes wrong is shown and becomes the exit code.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let options = WriterOptions {
        acks: match args.acks {
            AcksArg::None => Acks::None,
            AcksArg::Leader => Acks::Leader,
            AcksArg::All => Acks::All,
        },
        delivery_timeout: Duration::from_secs(args.timeout),
        ..WriterOptions::default()
    };
    let opened = async { args.connect.client()?.writer(&args.table, options).await };
    let writer: Result<Writer, ClientError> = opened.await;
    let writer = match writer {
        Ok(writer) => writer,
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(exit_code(&error));
        }
    };
    let began = Instant::now();
    let mut count = write(&writer).await;
    // What failed has been counted and shown row by row, and is not told once more.
    if let Err(WriteError::Unknown(why)) = writer.close().await
        && count.unknown == 0
    {
        eprintln!("{why}");
        count.unknown = count.written;
    }
    eprintln!(
        "{} rows written in {:.1} s",
        count.written,
        began.elapsed().as_secs_f64()
    );
    Ok(match count {
        Count { unknown: 1.., .. } => {
            eprintln!(
                "rows of which it is not known whether they were written: {}",
                count.unknown
            );
            ExitCode::from(3)
        }
        Count { refused: 1.., .. } => {
            eprintln!("rows refused: {}", count.refused);
            ExitCode::from(1)
        }
        _ => ExitCode::SUCCESS,
    })
}

/// The lines of the standard input, read on a thread of their own.
fn lines() -> mpsc::Receiver<std::io::Result<Vec<u8>>> {
    let (sender, lines) = mpsc::channel(1024);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().split(b'\n') {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

async fn write(writer: &Writer) -> Count {
    let mut lines = lines();
    let mut count = Count::default();
    let mut waiting: std::collections::VecDeque<(u64, Delivery)> = std::collections::VecDeque::new();
    let mut number = 0;
    while let Some(line) = lines.recv().await {
        number += 1;
        let line = match line {
            Ok(line) => line.trim_ascii_end().to_vec(),
            // What came before is written all the same.
            Err(error) => {
                eprintln!("line {number}: the standard input cannot be read: {error}");
                count.refused += 1;
                break;
            }
        };
        if line.is_empty() {
            continue;
        }
        match writer.write_json(line).await {
            Ok(delivery) => waiting.push_back((number, delivery)),
            Err(error) => count.add(number, Err(error)),
        }
        if waiting.len() > AHEAD
            && let Some((number, delivery)) = waiting.pop_front()
        {
            count.add(number, delivery.await.map(drop));
        }
    }
    for (number, delivery) in waiting {
        count.add(number, delivery.await.map(drop));
    }
    count
}

impl Count {
    fn add(&mut self, line: u64, result: Result<(), WriteError>) {
        let Err(error) = result else {
            self.written += 1;
            return;
        };
        eprintln!("line {line}: {error}");
        match error {
            WriteError::Unknown(_) => self.unknown += 1,
            WriteError::Invalid(_) | WriteError::NotWritten(_) | WriteError::Closed => self.refused += 1,
        }
    }
}
