//! `chaos`: runs one fault test or measurement and says what came of it. Ends in failure when a check fails.

use clap::{Parser, Subcommand};
use std::time::Duration;
use tidemill_chaos_tests::{
    cell, direct, failover, matrix, replacing, report, saturation, scenario, throughput, visibility,
};
use tidemill_sim::{ControlPlane, command};
use tidemill_sim_raft::ReplicatedCatalog;

/// Fault tests and measurements on real processes.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Measure(Measurement),
    /// Simulate histories of the control plane: many nodes in one thread, faults by seed
    Sim(command::Arguments<tidemill_sim::mutant::Mutant>),
    /// Run some workloads with one kind of fault, and judge their history
    Cell(cell::Options),
    /// Run every workload with every kind of fault, cell by cell; goes on where it was cut off
    Matrix(matrix::Options),
    /// Judge the histories of runs, and write a page for each and one over all
    #[command(
        after_help = "Ends with 0 if every run passed, with 1 if one failed, and with 3 if none failed and one proves nothing."
    )]
    Check(report::command::Arguments),
    /// Simulate histories of the replicated catalog: real openraft, disks and network that fail by seed
    Raft(command::Arguments<tidemill_sim_raft::mutant::Mutant>),
}

/// What is done to one world, and measured there.
#[derive(Subcommand)]
enum Measurement {
    /// Kill every node in turn with kill -9 while events flow, and count every row
    ExactlyOnce {
        /// Decides rows and kills; a fresh one by default
        #[arg(long)]
        seed: Option<u64>,
        /// Events to produce
        #[arg(long, default_value_t = 1_000_000)]
        rows: u64,
        /// Undecodable records among them
        #[arg(long, default_value_t = 100)]
        bad: u64,
        /// Events per second [default: as fast as possible]
        #[arg(long)]
        rate: Option<u64>,
        /// How often each node is killed
        #[arg(long, default_value_t = 1)]
        kills_per_node: u32,
        /// Age at which memtables are flushed, in milliseconds
        #[arg(long, default_value_t = 2000)]
        flush_age_ms: u64,
        /// Who is ready to take over
        #[arg(long, value_enum, default_value_t = failover::Standby::Cold)]
        standby: failover::Standby,
    },
    /// Measure the time from production until a SELECT shows the row
    Visibility {
        /// Events per second
        #[arg(long, default_value_t = 20_000)]
        rate: u64,
        /// How long
        #[arg(long, default_value_t = 30)]
        seconds: u64,
    },
    /// Measure how long it takes until another node has taken over, again and again
    Failover(failover::Options),
    /// Measure how long rows take that programs write themselves
    Writes(direct::Options),
    /// Measure how long it takes to replace nodes under load, disturbed and not, and what others notice
    Replace(replacing::Options),
    /// Measure how fast a backlog is read, and what it costs
    Throughput(throughput::Options),
    /// Keep all cores full, and count who is taken for gone
    Saturation {
        /// How long
        #[arg(default_value_t = 300)]
        seconds: u64,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Measure(measurement) => measure(measurement),
        // Outside of any runtime: cells have one each, and openraft's simulation brings its own, which stands still within another.
        Command::Sim(arguments) => command::run::<ControlPlane>(&arguments).map_err(anyhow::Error::msg),
        Command::Raft(arguments) => command::run::<ReplicatedCatalog>(&arguments).map_err(anyhow::Error::msg),
        Command::Cell(options) => std::process::exit(cell::judged(&options)?),
        Command::Matrix(options) => std::process::exit(matrix::run(&options)?),
        Command::Check(arguments) => std::process::exit(report::command::run(&arguments)?),
    }
}

#[tokio::main]
async fn measure(measurement: Measurement) -> anyhow::Result<()> {
    match measurement {
        Measurement::ExactlyOnce {
            seed,
            rows,
            bad,
            rate,
            kills_per_node,
            flush_age_ms,
            standby,
        } => {
            let seed = seed.unwrap_or_else(|| rand::random_range(0..1_000_000));
            println!("seed {seed}");
            let options = scenario::Options {
                seed,
                rows,
                bad,
                rate,
                kills_per_node,
                flush_age_ms,
                standby,
            };
            tell(&scenario::exactly_once(&options).await?);
        }
        Measurement::Visibility { rate, seconds } => {
            let v = visibility::measure(rate, seconds).await?;
            println!(
                "{} rows at {rate}/s: visible after p50 {} ms, p99 {} ms, max {} ms ({} polls)",
                v.rows, v.p50_ms, v.p99_ms, v.max_ms, v.polls
            );
        }
        Measurement::Failover(options) => {
            let rounds = failover::measure(&options).await?;
            println!(
                "{} rounds of {:?}, {} events/s, {:?} standby:",
                rounds.len(),
                options.fault,
                options.rate,
                options.standby
            );
            let line = |what: &str, of: fn(&failover::Round) -> Duration| {
                let (p50, p99, max) = failover::percentiles(rounds.iter().map(of));
                println!("{what:<40} p50 {p50:.2?}, p99 {p99:.2?}, max {max:.2?}");
            };
            line("the shard's leader is taken for lost", |r| r.detected);
            line("another node leads it", |r| r.led);
            line("that one has committed", |r| r.committed);
            line("all that others lead have committed", |r| r.others_committed);
            line("a fresh count shows all again", |r| r.visible);
            let sum = |of: fn(&failover::Round) -> u64| rounds.iter().map(of).sum::<u64>();
            println!(
                "standbys took over {} partitions; {} were read again",
                sum(|r| r.takeovers.kept),
                sum(|r| r.takeovers.read_again)
            );
        }
        Measurement::Writes(options) => direct::measure(&options).await?,
        Measurement::Replace(options) => println!("{}", replacing::table(&replacing::measure(&options).await?)),
        Measurement::Saturation { seconds } => {
            let s = saturation::measure(seconds).await?;
            let percent = |share: f64| share * 100.0;
            println!(
                "{:.0} s with the cores {:.0} % busy, {:.0} % by nodes; {} rows read, {} queries answered, {} refused",
                s.took.as_secs_f64(),
                percent(s.busy),
                percent(s.busy_nodes),
                s.rows,
                s.queries.answered,
                s.queries.refused
            );
            println!(
                "{} elections, {} nodes taken for down, {} shards moved",
                s.elections, s.downs, s.moves
            );
            s.check()?;
        }
        Measurement::Throughput(options) => {
            let t = throughput::measure(&options).await?;
            let seconds = t.took.as_secs_f64();
            println!(
                "{} rows ({:.2} GiB) on {} nodes in {seconds:.1} s: {:.0} rows/s, {:.1} CPU-s/GiB, {} parts",
                t.rows,
                t.gib,
                options.nodes,
                t.rows as f64 / seconds,
                t.cpu_seconds / t.gib,
                t.parts
            );
            println!(
                "memory of a node: peak {} MiB, of which {} MiB were counted",
                t.peak_mib, t.counted_mib
            );
            if options.queries {
                let q = &t.queries;
                println!(
                    "queries: {} answered, {} refused for lack of memory, {} failed",
                    q.answered,
                    q.refused,
                    q.failed.len()
                );
                anyhow::ensure!(q.failed.is_empty(), "queries failed: {:#?}", q.failed);
            }
        }
    }
    Ok(())
}

fn tell(outcome: &scenario::Outcome) {
    let seconds = |d: &Duration| format!("{:.2} s", d.as_secs_f64());
    println!(
        "produced  {} events, {} bad records",
        outcome.produced.count, outcome.produced.bad
    );
    println!("counted   {:?}", outcome.counted);
    println!(
        "reader    {} answers, {} failed questions, no violation; longest time between answers {}",
        outcome.findings.answered,
        outcome.findings.failed.0,
        seconds(&outcome.findings.longest_gap)
    );
    let mut recoveries = outcome.recoveries.clone();
    recoveries.sort();
    if let (Some(middle), Some(last)) = (recoveries.get(recoveries.len() / 2), recoveries.last()) {
        println!(
            "recovered after {} kills: p50 {}, max {}",
            recoveries.len(),
            seconds(middle),
            seconds(last)
        );
    }
    println!(
        "all rows in the table after {}: {:.0} rows/s",
        seconds(&outcome.took),
        outcome.produced.count as f64 / outcome.took.as_secs_f64()
    );
    println!("exactly once: yes");
}
