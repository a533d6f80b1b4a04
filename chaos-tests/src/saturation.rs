//! Three nodes with nothing to spare: a backlog is read, more is produced as fast as it goes, and heavy queries run, so that
//! all cores are full. Whoever falls silent then without being gone is taken for down: that must not happen, and no election.

use crate::events::{Events, Plan};
use crate::reader::count;
use crate::scenario::{TABLE, statements, wait_until_read};
use crate::throughput::{Queries, Querying, cpu_seconds};
use crate::world::World;
use anyhow::{Context, ensure};
use std::time::{Duration, Instant};

/// What was seen.
#[derive(Debug)]
pub struct Saturation {
    /// How long all was busy.
    pub took: Duration,
    /// How much of the time of all cores was used, by anybody.
    pub busy: f64,
    /// How much of it the nodes used.
    pub busy_nodes: f64,
    /// Rows read meanwhile.
    pub rows: i64,
    /// What came of the queries.
    pub queries: Queries,
    /// By how much the term of the Raft group grew.
    pub elections: u64,
    /// How often a node was taken for down.
    pub downs: i64,
    /// How often a shard got another leader.
    pub moves: i64,
}

impl Saturation {
    /// Fails if anybody was taken for gone, if a query failed, or if none was answered. That some are refused for lack of memory is as it
    /// should be.
    ///
    /// # Errors
    /// Says what was seen.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(
            (self.elections, self.downs, self.moves) == (0, 0, 0)
                && self.queries.failed.is_empty()
                && self.queries.answered > 0,
            "nobody was gone, and all was asked of nodes that run: {self:#?}"
        );
        Ok(())
    }
}

/// Keeps everything busy for `seconds`, and counts.
pub async fn measure(seconds: u64) -> anyhow::Result<Saturation> {
    let mut world = World::start(3).await?;
    let plan = |count, seed| Plan {
        topic: TABLE.into(),
        partitions: 8,
        count,
        bad: 0,
        rate: None,
        seed,
    };
    let backlog = Events::start(world.folder(), &world.brokers, &plan(1_000_000, 1))?
        .finish()
        .await?;
    for sql in statements(&world.brokers, TABLE, 10_000) {
        world.run(&sql).await?;
    }
    settle(&world).await?;
    let before = Seen::of(&world).await?;
    let began = Instant::now();
    // Far more than can be produced in the time.
    let mut events = Events::start(world.folder(), &world.brokers, &plan(1_000_000 * seconds, 2))?;
    let querying = [(); 3].map(|()| world.client_without(world.node_count()).map(Querying::start));
    while began.elapsed() < Duration::from_secs(seconds) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        world.all_alive()?;
        ensure!(!events.has_ended()?, "the producer has ended too early");
    }
    let after = Seen::of(&world).await?;
    let took = began.elapsed();
    let mut queries = Queries::default();
    for querying in querying {
        queries.add(querying?.finish().await?);
    }
    let produced = events.stop().await?;
    let rows = (backlog.count + produced.count) as i64;
    let both = crate::events::Acknowledged {
        count: rows as u64,
        ..produced
    };
    wait_until_read(&world, &both).await?;
    let counted = count(&world.client()?, TABLE).await?;
    ensure!(
        (counted.rows, counted.distinct) == (rows, rows),
        "{counted:?}, {rows} were produced"
    );
    let cores = std::thread::available_parallelism()?.get() as f64;
    let found = Saturation {
        took,
        busy: (after.machine - before.machine) / took.as_secs_f64() / cores,
        busy_nodes: (after.nodes - before.nodes) / took.as_secs_f64() / cores,
        rows,
        queries,
        elections: after.term - before.term,
        downs: after.downs - before.downs,
        moves: after.epochs - before.epochs,
    };
    if found.check().is_err() {
        eprintln!("the world is kept in {}", world.keep().display());
    }
    Ok(found)
}

/// Waits until every node leads a shard and moves for the sake of balance are over.
async fn settle(world: &World) -> anyhow::Result<()> {
    world.all_lead(Duration::from_secs(60)).await?;
    tokio::time::sleep(Duration::from_secs(6)).await;
    Ok(())
}

/// What is counted, at one moment.
struct Seen {
    term: u64,
    downs: i64,
    epochs: i64,
    /// CPU seconds of all nodes, and of everything on this machine.
    nodes: f64,
    machine: f64,
}

impl Seen {
    async fn of(world: &World) -> anyhow::Result<Self> {
        let mut term = 0;
        for node in 0..world.node_count() {
            term = term.max(world.metric(node, "tidemill_raft_term")? as u64);
        }
        Ok(Self {
            term,
            downs: world
                .ask("SELECT count(*) FROM system.events WHERE kind = 'down'")
                .await?,
            epochs: world.ask("SELECT sum(epoch) FROM system.shards").await?,
            nodes: cpu_seconds(world)?,
            machine: machine_seconds()?,
        })
    }
}

/// CPU seconds that were not idle since the machine was started (proc(5), in ticks of 10 ms).
fn machine_seconds() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    let busy = ticks.iter().take(8).sum::<f64>() - ticks.get(3..5).context("too few numbers")?.iter().sum::<f64>();
    Ok(busy / 100.0)
}
