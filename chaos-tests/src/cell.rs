//! One cell of the matrix: a cluster, some workloads, one kind of fault again and again, then everything mended, and a look at
//! what is there. It leaves a folder with `run.json` and the history; checkers say what came of it.

use crate::fault::{self, Fault, Needs, Plan};
use crate::history::{History, Requires, RunMeta};
use crate::matrix;
use crate::monitor;
use crate::report::command;
use crate::workload::operators::Operator;
use crate::workload::stage::Stage;
use crate::workload::{Work, Workload, operators};
use crate::world::{World, output};
use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Nodes of every cell.
const NODES: u16 = 3;
/// How long everything may take until it is well again once nothing breaks any more.
const RECOVERY: Duration = Duration::from_secs(90);
/// How long clients may take for their last operation.
const LAST_WORDS: Duration = Duration::from_secs(60);

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Workloads, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', default_value = "counter")]
    pub workloads: Vec<Workload>,
    /// What breaks, again and again; nothing by default
    #[arg(long)]
    pub fault: Option<Fault>,
    /// Lets the seed decide which workloads and which fault
    #[arg(long, conflicts_with_all = ["workloads", "fault"])]
    pub random: bool,
    /// Decides what clients do, and what breaks when
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// For how long things break
    #[arg(long, default_value_t = 40)]
    pub seconds: u64,
    /// The folder for the history
    #[arg(long)]
    pub out: PathBuf,
}

/// Runs it and judges it; gives how the program has to end, as `chaos check` does.
///
/// # Errors
/// If the folder cannot be written.
pub fn judged(options: &Options) -> anyhow::Result<i32> {
    let mut options = options.clone();
    if options.random {
        let cell = matrix::random(options.seed);
        (options.workloads, options.fault) = (cell.workloads.to_vec(), Some(cell.fault));
        println!("seed {}: {}", options.seed, cell.name());
    }
    run(&options)?;
    command::one(&options.out)
}

/// Runs it. What goes wrong in what is tested stands in the history, not in the result.
///
/// # Errors
/// If the folder cannot be written.
pub fn run(options: &Options) -> anyhow::Result<()> {
    std::fs::create_dir_all(&options.out).with_context(|| format!("cannot make {}", options.out.display()))?;
    let history = History::create(&options.out)?;
    describe(options).write(&options.out)?;
    let plan = Plan {
        nodes: NODES,
        // Nodes and brokers are in namespaces of their own where there are any, also if nothing is to be cut.
        needs: Needs {
            network: true,
            ..options.fault.map(Fault::needs).unwrap_or_default()
        },
        ..Plan::default()
    };
    let told = history.clone();
    let done = fault::stage(&plan, async move |world| {
        let done = in_world(options, world, &told).await;
        if done.is_err() {
            keep_logs(world, &options.out);
        }
        done
    });
    if let Err(error) = done {
        history.note("monitor", "failed", json!({ "why": format!("{error:#}") }));
    }
    history.finish()
}

/// What a checker has to know of a run beside its history.
fn describe(options: &Options) -> RunMeta {
    let names: Vec<String> = options.workloads.iter().map(|w| w.name().to_owned()).collect();
    let ok: BTreeSet<&str> = options.workloads.iter().flat_map(|w| w.requires()).copied().collect();
    let ok_when_healed: BTreeSet<&str> = options.workloads.iter().flat_map(|w| w.goes_on()).collect();
    let fault = options.fault.map_or("nothing", Fault::name);
    RunMeta {
        name: format!("{}: {fault}", names.join(", ")),
        seed: options.seed,
        workloads: names,
        fault: fault.to_owned(),
        nodes: (1..=NODES).map(|i| format!("n{i}")).collect(),
        requires: Requires {
            faults: options
                .fault
                .map(|fault| required(fault, &options.workloads))
                .unwrap_or_default(),
            ok: ok.into_iter().map(str::to_owned).collect(),
            ok_when_healed: ok_when_healed.into_iter().map(str::to_owned).collect(),
        },
        bounds: options.fault.map(bounds).unwrap_or_default(),
        version: commit(),
    }
}

/// A fault that harms topics has to harm each of them.
fn required(fault: Fault, workloads: &[Workload]) -> Vec<String> {
    let name = fault.name();
    let each: Vec<String> = topics(workloads).map(|topic| format!("{name} {topic}")).collect();
    match fault.harms_a_topic() && !each.is_empty() {
        true => each,
        false => vec![name.to_owned()],
    }
}

/// The topics that faults may harm: those that only one workload needs whole are not among them.
fn topics(workloads: &[Workload]) -> impl Iterator<Item = &'static str> {
    workloads.iter().filter_map(|workload| workload.topic())
}

/// How long recovery may take, in milliseconds. Cores are shared with three brokers and all clients, so these are wider than what is
/// measured undisturbed (docs/benchmarks.md): they tell recovery from none.
fn bounds(fault: Fault) -> BTreeMap<String, f64> {
    // Records wait for brokers: until others have expired, or until transactions time out whose end an election has taken away.
    if matches!(fault, Fault::Retention | Fault::UncleanElection) {
        return bounds_of([("recovery_ms", 10_000.0), ("caught_up_ms", RECOVERY.as_millis() as f64)]);
    }
    // Every node is struck, or one answers, and late.
    let slow = matches!(
        fault,
        Fault::KillAll | Fault::Combined | Fault::HalfOpen | Fault::Jitter | Fault::Delay
    );
    // While one node is gone or slow, the others answer, and lead what it led.
    let others_lead = matches!(
        fault,
        Fault::Kill
            | Fault::Pause
            | Fault::Terminate
            | Fault::Isolate
            | Fault::IsolateOneWay
            | Fault::Split
            | Fault::Ring
            | Fault::Resets
            | Fault::Duplication
            | Fault::SlowSync
            | Fault::FailingSync
            | Fault::FailingSyncs
            | Fault::PowerCut
            | Fault::ReadErrors
            | Fault::CorruptParts
            | Fault::TruncateParts
            | Fault::CorruptWal
            | Fault::ClockJump
            | Fault::ClockDrift
    );
    let within = |so: bool| if so { 10_000.0 } else { 30_000.0 };
    bounds_of([
        ("recovery_ms", within(!slow)),
        ("visible_ms", within(others_lead)),
        // An operator may have had everything read anew right before.
        ("caught_up_ms", if slow { 60_000.0 } else { 30_000.0 }),
    ])
}

fn bounds_of<const N: usize>(bounds: [(&str, f64); N]) -> BTreeMap<String, f64> {
    bounds.map(|(name, ms)| (name.to_owned(), ms)).into()
}

async fn in_world(options: &Options, world: &mut World, history: &History) -> anyhow::Result<()> {
    let stage = Stage::new(world, history.clone(), options.seed);
    world.topics = topics(&options.workloads).map(str::to_owned).collect();
    for workload in &options.workloads {
        let what = || format!("{} cannot begin", workload.name());
        workload.prepare(&stage).await.with_context(what)?;
    }
    let mut clients: Vec<Work> = vec![
        Box::pin(monitor::watch(stage.clone())),
        Box::pin(operators::look_after_stops(stage.clone())),
    ];
    for workload in &options.workloads {
        clients.extend(workload.start(&stage).await?);
    }
    let clients: Vec<_> = clients.into_iter().map(tokio::spawn).collect();
    let broken = break_things(options, &stage, world).await;
    history.note("monitor", "healed", json!({}));
    let healed = Instant::now();
    // Whoever looks after stopped partitions, and the clients, go on for a while: recovery is what they see.
    let recovered = match &broken {
        Ok(()) => recover(&stage, world, healed).await,
        Err(_) => Ok(()),
    };
    stage.end();
    for client in clients {
        let ended = tokio::time::timeout(LAST_WORDS, client).await;
        ended.context("a client does not end")???;
    }
    broken?;
    recovered?;
    collect(options, &stage, world).await
}

/// Breaks things until it is time to stop, and mends everything.
async fn break_things(options: &Options, stage: &Stage, world: &mut World) -> anyhow::Result<()> {
    let mut rng = StdRng::seed_from_u64(options.seed);
    // Clients need a moment until all of them are at work.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let until = Instant::now() + Duration::from_secs(options.seconds);
    let spared = |world: &World| {
        let harms = options.fault.is_some_and(Fault::harms_a_topic);
        harms && world.topics.iter().any(|topic| !world.harmed.contains_key(topic))
    };
    while Instant::now() < until || spared(world) {
        if let Some(fault) = options.fault {
            let running = fault.begin(world, &mut rng, &stage.history).await?;
            stage.look_around(world);
            tokio::time::sleep(Duration::from_millis(rng.random_range(3_000..9_000))).await;
            let ended = running.end(world).await;
            ended.with_context(|| format!("{} cannot be mended", fault.name()))?;
            stage.look_around(world);
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(4_000..8_000))).await;
    }
    Ok(())
}

/// Waits until all nodes are ready and no partition has stopped.
async fn recover(stage: &Stage, world: &mut World, healed: Instant) -> anyhow::Result<()> {
    world.all_alive()?;
    let left = || RECOVERY.saturating_sub(healed.elapsed());
    let ready = world.wait_for(
        "every node to be ready, and no partition to have stopped",
        left(),
        async |world| {
            let status = world.client()?.cluster_status().await?;
            let ready = status.nodes.iter().filter(|node| node.state == "Ready").count();
            ensure!(ready >= usize::from(NODES), "{ready} nodes are ready");
            Ok(operators::count_stopped(&world.client()?).await? == 0)
        },
    );
    ready.await?;
    // A stretch in which nothing is broken, so that there is something to compare with.
    tokio::time::sleep(Duration::from_secs(4)).await;
    stage.history.note(
        "monitor",
        "recovered",
        json!({ "after_ms": healed.elapsed().as_millis() as u64 }),
    );
    Ok(())
}

/// Waits until everything is committed, and writes down what there is.
async fn collect(options: &Options, stage: &Stage, world: &World) -> anyhow::Result<()> {
    let until = Instant::now() + RECOVERY;
    // A client of the brokers may find out only now that they are there again, and what they lack.
    let mut on_call = Operator::at(stage, 0)?;
    for pipe in options.workloads.iter().flat_map(|workload| workload.pipes()) {
        // An operator may have left it so.
        drop(stage.run(&format!("ALTER PIPE {pipe} RESUME")).await);
        loop {
            let caught_up = stage
                .run(&format!("WAIT FOR PIPE {pipe} CAUGHT UP TIMEOUT '30s'"))
                .await;
            match caught_up {
                Ok(()) => break,
                Err(error) if Instant::now() > until => {
                    return Err(error).with_context(|| format!("{pipe} does not catch up"));
                }
                Err(_) => {
                    operators::mend_stops(stage, &mut on_call).await?;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
        // Commits what was read.
        stage.run(&format!("ALTER PIPE {pipe} PAUSE")).await?;
    }
    stage.history.note("monitor", "caught-up", json!({}));
    for workload in &options.workloads {
        let what = || format!("what {} left cannot be read", workload.name());
        workload.collect(stage).await.with_context(what)?;
    }
    let checked = world.tidemill(&["check"]);
    let said = checked.as_ref().map_or_else(|error| format!("{error:#}"), Clone::clone);
    stage
        .history
        .note("monitor", "check", json!({ "ok": checked.is_ok(), "said": said }));
    // All nodes have applied the same by now.
    tokio::time::sleep(Duration::from_secs(1)).await;
    monitor::digests(stage).await;
    Ok(())
}

/// What the nodes and the brokers said, for whoever looks for the reason.
fn keep_logs(world: &World, out: &Path) {
    for i in 0..world.node_count() {
        if let Ok(log) = world.log(i) {
            // Without it there is still the history.
            drop(std::fs::write(out.join(format!("{}.log", world.name(i))), log));
        }
    }
    for broker in 1..=world.broker_count() {
        if let Ok(log) = world.kafka(&["log", &broker.to_string()]) {
            drop(std::fs::write(out.join(format!("b{broker}.log")), log));
        }
    }
}

/// The version of the program, and of the last change to what it is made of where there is a checkout.
fn commit() -> String {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    // A matrix writes into docs/ while it runs.
    let sources = ["--", ":/", ":(top,exclude)docs"];
    let git = |arguments: &[&str]| output(Command::new("git").args(arguments).args(sources));
    let commit = git(&["log", "-1", "--format=%h"]);
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    match (commit, changed) {
        (Ok(commit), Ok(changed)) if changed.is_empty() => format!("{version} {}", commit.trim()),
        (Ok(commit), Ok(_)) => format!("{version} {}-dirty", commit.trim()),
        _ => version,
    }
}
