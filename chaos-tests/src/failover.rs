//! How long it takes until another node has taken over, step by step, and whether every row is there, once, after each time.
//!
//! Events flow all the time. In each round one node is hit, and from then on four things are asked for over and over, of
//! the other nodes: who leads a shard that it led, when the next part of that was committed, when all shards that others lead
//! have committed again, and when a fresh count of the whole table has caught up with what was seen before. Then the node is
//! made well, and what is in the table is compared with what was read.

use crate::cut::Cut;
use crate::events::{Events, Plan};
use crate::reader::{Counted, busiest_node, count, number, rows, text};
use crate::scenario::{TABLE, create, wait_until_read};
use crate::world::World;
use anyhow::{Context, bail, ensure};
use std::time::{Duration, Instant};
use tidemill_client::Client;

/// How long a round may take until all is well again.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a node is stopped, or cut off.
const ABSENCE: Duration = Duration::from_secs(10);

/// What is done to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// `kill -9` of the node that leads most shards.
    Kill,
    /// `kill -9` of the node that leads the Raft group.
    KillRaft,
    /// SIGSTOP of the node that leads most shards, and SIGCONT 10 s later.
    Pause,
    /// Every packet that the node sends is dropped, for 10 s. Needs root and nft.
    Cut,
}

/// Who is ready to take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Standby {
    /// Nobody in particular.
    Cold,
    /// A node that has read what the leader has read.
    Hot,
}

impl Standby {
    /// The statement that asks for it.
    pub fn statement(self) -> String {
        let standby = format!("{self:?}").to_lowercase();
        format!("ALTER PIPE {TABLE} SET (standby = '{standby}')")
    }
}

/// How often, and how much flows meanwhile.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Options {
    /// What is done to a node
    #[arg(long, value_enum, default_value_t = Fault::Kill)]
    pub fault: Fault,
    /// How often
    #[arg(long, default_value_t = 50)]
    pub rounds: u32,
    /// Events per second
    #[arg(long, default_value_t = 20_000)]
    pub rate: u64,
    /// Age at which memtables are flushed, in milliseconds
    #[arg(long, default_value_t = 500)]
    pub flush_age_ms: u64,
    /// Who is ready to take over
    #[arg(long, value_enum, default_value_t = Standby::Cold)]
    pub standby: Standby,
}

/// What one round took, each from the fault on.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// The shard has lost its leader.
    pub detected: Duration,
    /// It has another one.
    pub led: Duration,
    /// That one has committed a part.
    pub committed: Duration,
    /// So has every shard whose leader was not hit.
    pub others_committed: Duration,
    /// A fresh count shows what was seen before: for so long, fresh rows were not visible.
    pub visible: Duration,
    /// What standbys took over.
    pub takeovers: Takeovers,
}

/// Partitions that standbys took over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Takeovers {
    /// So many go on from what was in memory.
    pub kept: u64,
    /// So many are read again from the committed offset on.
    pub read_again: u64,
}

impl Takeovers {
    /// Of all nodes but one, since their processes began.
    fn of_others(world: &World, victim: usize) -> anyhow::Result<Self> {
        let mut all = Self::default();
        for node in (0..world.node_count()).filter(|node| *node != victim) {
            all.kept += world.metric(node, "tidemill_takeover_kept_partitions")? as u64;
            all.read_again += world.metric(node, "tidemill_takeover_reread_partitions")? as u64;
        }
        Ok(all)
    }
}

/// Runs all rounds.
pub async fn measure(options: &Options) -> anyhow::Result<Vec<Round>> {
    let mut world = World::with_broker()?;
    world.as_users = options.fault == Fault::Cut;
    world.start_cluster(3).await?;
    let plan = Plan {
        topic: TABLE.into(),
        partitions: 8,
        // Far more than are produced before the last round is over.
        count: options.rate * 60 * u64::from(options.rounds.max(1)),
        bad: 0,
        rate: Some(options.rate),
        seed: 3,
    };
    create(&world, &plan, options.flush_age_ms).await?;
    world.run(&options.standby.statement()).await?;
    let mut events = Events::start(world.folder(), &world.brokers, &plan)?;
    let mut done = Vec::new();
    for i in 0..options.rounds {
        settle(&world, options).await?;
        let round = round(&mut world, options).await;
        let round = round.with_context(|| format!("round {i}; the world is kept in {}", world.folder().display()));
        if round.is_err() {
            world.keep();
        }
        let round = round?;
        println!("round {i}: {round:?}");
        done.push(round);
        ensure!(!events.has_ended()?, "the producer has ended too early");
    }
    let produced = events.stop().await?;
    wait_until_read(&world, &produced).await?;
    let counted = count(&world.client()?, TABLE).await?;
    ensure!(
        counted == Counted::expected(&produced),
        "the table holds {counted:?}, produced were {produced:?}"
    );
    println!("{} events, each there once", produced.count);
    Ok(done)
}

/// Waits until all nodes work and lead their share, and everything is read.
async fn settle(world: &World, options: &Options) -> anyhow::Result<()> {
    world.all_lead(PATIENCE).await?;
    world
        .run(&format!("WAIT FOR PIPE {TABLE} CAUGHT UP TIMEOUT '50s'"))
        .await?;
    if options.standby == Standby::Cold {
        return Ok(());
    }
    // Both sides say every 200 ms how far they are, so there is always something between them.
    let near = format!(
        "SELECT count(*) FROM system.shards WHERE standby_behind IS NULL OR standby_behind > {}",
        options.rate / 4
    );
    let ready = async |world: &World| Ok(world.ask(&near).await? == 0);
    world
        .wait_for("every shard to have a standby that is near", PATIENCE, ready)
        .await
}

async fn round(world: &mut World, options: &Options) -> anyhow::Result<Round> {
    let fault = options.fault;
    let client = world.client()?;
    let name = match fault {
        Fault::KillRaft => text(&rows(&client, "SELECT name FROM system.nodes WHERE role = 'leader'").await?)?,
        _ => busiest_node(&client).await?,
    };
    let victim = world
        .index_of(&name)
        .with_context(|| format!("there is no node {name}"))?;
    let shard = format!("SELECT shard FROM system.shards WHERE leader = '{name}' LIMIT 1");
    let shard = world.ask(&shard).await?;
    let led_by_others =
        format!("SELECT string_agg(CAST(shard AS TEXT), ', '), count(*) FROM system.shards WHERE leader <> '{name}'");
    let led_by_others = rows(&client, &led_by_others).await?;
    let (shards, shard_count) = (text(&led_by_others)?, number(&led_by_others, 1)?);
    let others = world.client_without(victim)?;
    let takeovers = Takeovers::of_others(world, victim)?;
    let all = format!("SELECT count(*) FROM {TABLE}");
    let before = number(&rows(&others, &all).await?, 0)?;
    // The last that is asked, so that next to nothing is committed between this and the fault.
    let version = number(&rows(&others, "SELECT max(version) FROM system.parts").await?, 0)?;
    let committed =
        format!("SELECT count(DISTINCT shard) FROM system.parts WHERE version > {version} AND shard IN ({shards})");
    let began = Instant::now();
    let mut cut = None;
    match fault {
        Fault::Kill | Fault::KillRaft => world.kill_node(victim)?,
        Fault::Pause => world.signal(victim, "STOP")?,
        Fault::Cut => cut = Some(Cut::off(world.user(victim))?),
    }
    let watched = tokio::join!(
        takeover(&others, shard, &name, began),
        reached(&others, &committed, shard_count, began),
        reached(&others, &all, before, began)
    );
    let after = Takeovers::of_others(world, victim)?;
    let absence = ABSENCE.saturating_sub(began.elapsed());
    match fault {
        Fault::Kill | Fault::KillRaft => world.start_node(victim)?,
        Fault::Pause => {
            tokio::time::sleep(absence).await;
            world.signal(victim, "CONT")?;
        }
        Fault::Cut => {
            tokio::time::sleep(absence).await;
            drop(cut);
        }
    }
    let ((detected, led, committed), others_committed, visible) = (watched.0?, watched.1?, watched.2?);
    settle(world, options).await?;
    exact(world).await?;
    Ok(Round {
        detected,
        led,
        committed,
        others_committed,
        visible,
        takeovers: Takeovers {
            kept: after.kept - takeovers.kept,
            read_again: after.read_again - takeovers.read_again,
        },
    })
}

/// When the shard has lost its leader, has another one, and that one has committed.
async fn takeover(
    client: &Client,
    shard: i64,
    old: &str,
    began: Instant,
) -> anyhow::Result<(Duration, Duration, Duration)> {
    let leader = format!("SELECT coalesce(leader, '') FROM system.shards WHERE shard = {shard}");
    let parts = format!("SELECT coalesce(max(version), 0) FROM system.parts WHERE shard = {shard}");
    let (mut detected, mut led) = (None, None);
    while began.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(10)).await;
        // A node that does not know the leader of the group for a moment says so; that is part of what is measured.
        let Ok(now) = rows(client, &leader).await.and_then(|found| text(&found)) else {
            continue;
        };
        if now != old {
            detected.get_or_insert(began.elapsed());
        }
        let Ok(version) = rows(client, &parts).await.and_then(|found| number(&found, 0)) else {
            continue;
        };
        if now == old || now.is_empty() {
            continue;
        }
        let (at, known) = *led.get_or_insert((began.elapsed(), version));
        if version > known {
            return Ok((detected.unwrap_or(at), at, began.elapsed()));
        }
    }
    bail!("nobody has taken over shard {shard} from {old} within {PATIENCE:?}: {detected:?}, {led:?}")
}

/// When the number that this query gives is `enough`, or more.
async fn reached(client: &Client, sql: &str, enough: i64, began: Instant) -> anyhow::Result<Duration> {
    let mut last = String::new();
    while began.elapsed() < PATIENCE {
        match rows(client, sql).await.and_then(|found| number(&found, 0)) {
            Ok(now) if now >= enough => return Ok(began.elapsed()),
            Ok(now) => last = now.to_string(),
            Err(error) => last = format!("{error:#}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!("not {enough} within {PATIENCE:?}, but {last}: {sql}")
}

/// Every offset up to the newest is there, once: as many rows as offsets, and none of them twice.
async fn exact(world: &World) -> anyhow::Result<()> {
    let sql = format!(
        "SELECT sum(n), sum(newest + 1), sum(different) FROM (SELECT count(*) AS n, max(_offset) AS newest, \
         count(DISTINCT _offset) AS different FROM {TABLE} GROUP BY _partition)"
    );
    let found = rows(&world.client()?, &sql).await?;
    let (rows, offsets, different) = (number(&found, 0)?, number(&found, 1)?, number(&found, 2)?);
    ensure!(
        rows == offsets && rows == different,
        "{rows} rows, {different} of them different, for {offsets} offsets"
    );
    Ok(())
}

/// Half of all, 99 of 100, and all were done within these times.
pub fn percentiles(times: impl Iterator<Item = Duration>) -> (Duration, Duration, Duration) {
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    let at = |share: f64| {
        let index = (times.len() as f64 * share).ceil() as usize;
        times.get(index.saturating_sub(1)).copied().unwrap_or_default()
    };
    (at(0.5), at(0.99), at(1.0))
}
