//! `tidemill dev`: what helps to try Tidemill out and serves nothing else. So far a broker, for machines
//! without a Kafka. It runs in the foreground until it is told to end and leaves nothing behind.

use anyhow::Context;
use std::io::{self, Write};
use std::process::ExitCode;
use tidemill_ingest::kafka::MockBroker;
use tokio::signal::unix::{SignalKind, signal};

/// What to run.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Serve a small Kafka from memory, for trying out only
    Broker(BrokerArgs),
}

/// Serves a small Kafka from memory (librdkafka's mock cluster) until SIGINT or SIGTERM. The first line on
/// the standard output is the bootstrap string; the ports are the system's choice, on loopback
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "For trying out, never for data that matters. Everything is in memory and gone when it ends. \
    Of each partition only the last 5 MB or 100,000 messages are kept: a reader that falls behind further \
    loses messages. It cannot look up offsets by timestamp, answers no CreateTopics (a topic that is asked \
    for is created with 4 partitions; --topic creates one with as many as wanted), and does not hide aborted \
    transactions."
)]
pub struct BrokerArgs {
    /// How many brokers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=9))]
    brokers: u16,
    /// Create this topic; may be repeated
    #[arg(long = "topic", value_name = "NAME")]
    topics: Vec<String>,
    /// Partitions of each topic that is created
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    partitions: u16,
}

/// Runs it.
///
/// # Errors
/// When the broker cannot start, a topic cannot be created, or the bootstrap string cannot be written.
pub async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Broker(args) => broker(args).await,
    }
}

async fn broker(args: BrokerArgs) -> anyhow::Result<ExitCode> {
    // Before anything is said: who reads the first line may end us at once.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let broker = MockBroker::start(args.brokers)?;
    for topic in &args.topics {
        broker.create_topic(topic, args.partitions)?;
    }
    let mut out = io::stdout();
    writeln!(out, "{}", broker.bootstrap())
        .and_then(|()| out.flush())
        .context("cannot write the bootstrap string")?;
    eprintln!("A mock Kafka in memory, for trying out only: 5 MB or 100,000 messages are kept per partition.");
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(ExitCode::SUCCESS)
}
