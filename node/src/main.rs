//! The `tidemill` binary: a node, and the tools that talk to one.

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use tidemill_node::allocator;
use tidemill_node::cli::{check, dev, init, join, node, sql, status, write};
use tidemill_node::config::{self, NodeConfig};
use tidemill_node::server;

/// Streams in, exactly once; columnar tables out, a second later.
#[derive(Parser)]
#[command(name = "tidemill", version, about, long_about = None)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node, or say what becomes of one
    #[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
    Node {
        #[command(subcommand)]
        command: Option<NodeCommand>,
        /// The configuration of the node to run
        #[arg(long, value_name = "FILE", required = true)]
        config: Option<PathBuf>,
    },
    /// Write configurations for a new cluster, or for a node that joins one
    Init(init::Args),
    /// Run SQL, in a shell or from the command line
    Sql(sql::Args),
    /// Write rows from the standard input into a table
    Write(write::Args),
    /// Hold the ledgers against the files
    Check(check::Args),
    /// Look at the cluster
    Cluster {
        #[command(subcommand)]
        command: ClusterCommand,
    },
    /// Helpers for trying Tidemill out
    Dev {
        #[command(subcommand)]
        command: dev::Command,
    },
    /// Print the reference of all settings of node.toml, in Markdown
    ConfigReference,
}

#[derive(Subcommand)]
enum NodeCommand {
    /// Run a node that joins a cluster; the first time this writes its configuration
    Join(join::Args),
    #[command(flatten)]
    Other(node::Command),
}

#[derive(Subcommand)]
enum ClusterCommand {
    /// Show nodes, shards and who leads
    Status(status::Args),
}

fn main() -> ExitCode {
    allocator::set_up();
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Command::Node {
            command: Some(NodeCommand::Join(args)),
            ..
        } => on_runtime(join::configuration(args)).and_then(run_node),
        Command::Node {
            command: Some(NodeCommand::Other(command)),
            ..
        } => on_runtime(node::run(command)),
        Command::Node { config, .. } => config.map_or_else(|| Ok(ExitCode::FAILURE), run_node),
        Command::Init(args) => on_runtime(init::run(args)),
        Command::Sql(args) => on_runtime(sql::run(args)),
        Command::Write(args) => on_runtime(write::run(args)),
        Command::Check(args) => on_runtime(check::run(args)),
        Command::Cluster {
            command: ClusterCommand::Status(args),
        } => on_runtime(status::run(args)),
        Command::Dev { command } => on_runtime(dev::run(command)),
        Command::ConfigReference => {
            print!("{}", config::reference());
            Ok(ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|error| {
        let cause = error.root_cause().downcast_ref::<std::io::Error>();
        if cause.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
            // Whoever read the output has seen enough, as `head` does.
            return ExitCode::SUCCESS;
        }
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run_node(file: PathBuf) -> anyhow::Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,openraft=error"));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(ansi)
        .with_writer(std::io::stderr)
        .init();
    server::run(NodeConfig::load(&file)?)?;
    Ok(ExitCode::SUCCESS)
}

fn on_runtime<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}
