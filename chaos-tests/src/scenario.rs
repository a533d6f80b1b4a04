//! Exactly once while nodes are killed: the scenario that everything else stands on.

use crate::events::{Acknowledged, Events, Plan};
use crate::failover::Standby;
use crate::reader::{Counted, Findings, Reader, count, number, rows};
use crate::world::World;
use anyhow::{Context, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::{Duration, Instant};

/// Name of the table and of the pipe.
pub const TABLE: &str = "events";

/// How to run the scenario.
#[derive(Clone, Debug)]
pub struct Options {
    /// Decides rows, and when which node is killed.
    pub seed: u64,
    /// Events to produce.
    pub rows: u64,
    /// Undecodable records among them.
    pub bad: u64,
    /// Events per second; `None` for as fast as possible.
    pub rate: Option<u64>,
    /// How often each node is killed.
    pub kills_per_node: u32,
    /// Age at which memtables are flushed.
    pub flush_age_ms: u64,
    /// Who is ready to take over.
    pub standby: Standby,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// What Kafka acknowledged.
    pub produced: Acknowledged,
    /// What the table holds.
    pub counted: Counted,
    /// What the reader saw.
    pub findings: Findings,
    /// For each kill: from the signal until a fresh count of the whole table was answered again.
    pub recoveries: Vec<Duration>,
    /// From the start of the producer until everything was in the table.
    pub took: Duration,
}

/// The statements that create table and pipe for `scripts/events`.
pub fn statements(brokers: &str, topic: &str, flush_age_ms: u64) -> [String; 2] {
    statements_for(TABLE, brokers, topic, flush_age_ms)
}

/// The same for another table, which gives its name to the pipe too.
pub fn statements_for(table: &str, brokers: &str, topic: &str, flush_age_ms: u64) -> [String; 2] {
    [
        format!(
            "CREATE TABLE {table} (event_id BIGINT NOT NULL, ts TIMESTAMP, user_id BIGINT, country TEXT, device TEXT, \
             url TEXT, event_type TEXT, amount BIGINT, price DOUBLE, session TEXT, note TEXT) \
             ORDER BY (event_type, ts) WITH (shards = 4, flush_age_ms = {flush_age_ms})"
        ),
        format!(
            "CREATE PIPE {table} INTO {table} FROM KAFKA (brokers = '{brokers}', topic = '{topic}', \
             format = 'json', start = 'earliest')"
        ),
    ]
}

/// Creates the topic of `plan`, and the table and the pipe that take it in.
pub async fn create(world: &World, plan: &Plan, flush_age_ms: u64) -> anyhow::Result<()> {
    Events::create_topic(&world.brokers, plan)?;
    for sql in statements(&world.brokers, &plan.topic, flush_age_ms) {
        world.run(&sql).await?;
    }
    Ok(())
}

/// Runs it: three nodes, eight partitions, each node killed in turn while events flow and a reader asks.
pub async fn exactly_once(options: &Options) -> anyhow::Result<Outcome> {
    let mut world = World::start(3).await?;
    let done = run(&mut world, options).await;
    if done.is_err() {
        eprintln!("seed {}: the world is kept in {}", options.seed, world.keep().display());
    }
    done
}

async fn run(world: &mut World, options: &Options) -> anyhow::Result<Outcome> {
    let plan = Plan {
        topic: TABLE.into(),
        partitions: 8,
        count: options.rows,
        bad: options.bad,
        rate: options.rate,
        seed: options.seed,
    };
    create(world, &plan, options.flush_age_ms).await?;
    world.run(&options.standby.statement()).await?;
    let reader = Reader::start(world.client()?, TABLE.into());
    let began = Instant::now();
    let events = Events::start(world.folder(), &world.brokers, &plan)?;
    let recoveries = kill_in_turn(world, options).await?;
    let produced = events.finish().await?;
    wait_until_read(world, &produced).await?;
    let took = began.elapsed();
    let findings = reader.finish().await?;
    world.all_alive()?;
    let counted = count(&world.client()?, TABLE).await?;
    check(world, &produced, &counted, &findings).await?;
    Ok(Outcome {
        produced,
        counted,
        findings,
        recoveries,
        took,
    })
}

/// Kills each node in turn, in an order by the seed, and starts it again.
async fn kill_in_turn(world: &mut World, options: &Options) -> anyhow::Result<Vec<Duration>> {
    let mut rng = StdRng::seed_from_u64(options.seed);
    let mut recoveries = Vec::new();
    for round in 0..options.kills_per_node {
        let mut order: Vec<usize> = (0..world.node_count()).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, rng.random_range(0..=i));
        }
        for node in order {
            tokio::time::sleep(Duration::from_millis(rng.random_range(500..2500))).await;
            let downtime = Duration::from_millis(rng.random_range(0..3000));
            eprintln!(
                "round {round}: kill -9 of n{}, down for {downtime:?} at least",
                node + 1
            );
            let client = world.client()?;
            let before = count(&client, TABLE).await?;
            let killed = Instant::now();
            world.kill_node(node)?;
            // Recovered when a fresh count of all shards is answered, with everything that was seen before.
            loop {
                match count(&client, TABLE).await {
                    Ok(now) if now.rows >= before.rows => break,
                    Ok(_) if killed.elapsed() < Duration::from_secs(30) => {}
                    Ok(now) => bail!("30 s after the kill, rows that were seen are missing: {before:?}, then {now:?}"),
                    Err(error) if killed.elapsed() < Duration::from_secs(60) => drop(error),
                    Err(error) => return Err(error).context("no answer for 60 s after a kill"),
                }
            }
            recoveries.push(killed.elapsed());
            tokio::time::sleep(downtime.saturating_sub(killed.elapsed())).await;
            world.start_node(node)?;
            world.all_ready().await?;
        }
    }
    Ok(recoveries)
}

/// Waits until all that was produced is committed.
pub async fn wait_until_read(world: &World, produced: &Acknowledged) -> anyhow::Result<()> {
    let all = (produced.count + produced.bad) as i64;
    let done = world.wait_for("everything to be committed", Duration::from_secs(300), async |world| {
        let sql = "SELECT coalesce(sum(stored), 0) + coalesce(sum(rejected), 0) FROM system.partitions";
        Ok(world.ask(sql).await? >= all)
    });
    done.await
}

/// Checks that the table holds what was produced, each event once, and that no reader saw anything else.
pub async fn check(
    world: &World,
    produced: &Acknowledged,
    counted: &Counted,
    findings: &Findings,
) -> anyhow::Result<()> {
    let expected = Counted::expected(produced);
    ensure!(
        *counted == expected,
        "the table holds {counted:?}, produced were {expected:?}"
    );
    ensure!(
        findings.violations.is_empty(),
        "the reader saw: {:#?}",
        findings.violations
    );
    ensure!(
        findings.answered > 0,
        "the reader never had an answer: {}",
        findings.failed.1
    );
    let client = world.client()?;
    let rejected = number(&rows(&client, "SELECT count(*) FROM system.rejected").await?, 0)?;
    ensure!(
        rejected == produced.bad as i64,
        "{rejected} records are rejected, {} were bad",
        produced.bad
    );
    let unaccounted = "SELECT coalesce(sum(committed - start - stored - rejected), 0) FROM system.partitions";
    let absent = number(&rows(&client, unaccounted).await?, 0)?;
    ensure!(absent == 0, "{absent} offsets of a plain topic are unaccounted for");
    Ok(())
}
