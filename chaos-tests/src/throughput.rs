//! How fast a backlog is read, and what it costs: rows per second, CPU seconds, peak memory. On request with little memory,
//! and with heavy queries beside.

use crate::events::{Acknowledged, Events, Plan};
use crate::reader::{number, rows};
use crate::scenario::{TABLE, statements, wait_until_read};
use crate::world::World;
use anyhow::{Context, ensure};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tidemill_client::{Answer, Client};
use tokio::task::JoinHandle;

/// What to read, and with what.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Events to produce first
    #[arg(long, default_value_t = 3_000_000)]
    pub rows: u64,
    /// Nodes that read them
    #[arg(long, default_value_t = 3)]
    pub nodes: u16,
    /// The limit for the memory of each node, such as 512MiB [default: that of a node]
    #[arg(long)]
    pub memory: Option<String>,
    /// Run heavy queries meanwhile
    #[arg(long)]
    pub queries: bool,
}

/// What was measured.
#[derive(Debug)]
pub struct Throughput {
    /// Rows read.
    pub rows: u64,
    /// GiB of JSON read.
    pub gib: f64,
    /// From `CREATE PIPE` until everything was committed.
    pub took: Duration,
    /// CPU seconds of all nodes together in that time.
    pub cpu_seconds: f64,
    /// The most memory that any one node had, in MiB, code among it.
    pub peak_mib: u64,
    /// The most that any one node had counted, in MiB, looked at now and then.
    pub counted_mib: u64,
    /// Parts that were committed.
    pub parts: i64,
    /// What came of the queries.
    pub queries: Queries,
}

/// What came of queries.
#[derive(Debug, Default)]
pub struct Queries {
    /// Those with an answer.
    pub answered: u64,
    /// Those that got no memory, and said so.
    pub refused: u64,
    /// The others, with what they said.
    pub failed: Vec<String>,
}

impl Queries {
    /// Takes what came of others.
    pub fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.refused += other.refused;
        self.failed.extend(other.failed);
    }
}

/// Produces the rows first, then reads them.
pub async fn measure(options: &Options) -> anyhow::Result<Throughput> {
    let mut world = World::with_broker()?;
    if let Some(limit) = &options.memory {
        world.settings = format!("[memory]\nlimit = \"{limit}\"\n");
    }
    world.start_cluster(options.nodes).await?;
    let measured = measure_in(&mut world, options).await;
    if measured.is_err() {
        eprintln!("the world is kept in {}", world.keep().display());
    }
    measured
}

async fn measure_in(world: &mut World, options: &Options) -> anyhow::Result<Throughput> {
    let plan = Plan {
        topic: TABLE.into(),
        partitions: 8,
        count: options.rows,
        bad: 0,
        rate: None,
        seed: 1,
    };
    let produced = Events::start(world.folder(), &world.brokers, &plan)?.finish().await?;
    let [table, pipe] = statements(&world.brokers, TABLE, 10_000);
    world.run(&table).await?;
    let before = cpu_seconds(world)?;
    let began = Instant::now();
    world.run(&pipe).await?;
    let querying = match options.queries {
        true => Some(Querying::start(world.client_without(world.node_count())?)),
        false => None,
    };
    let counted_mib = watch_until_read(world, &produced).await?;
    let took = began.elapsed();
    let cpu_seconds = cpu_seconds(world)? - before;
    let queries = match querying {
        Some(querying) => querying.finish().await?,
        None => Queries::default(),
    };
    world.all_alive()?;
    check(world, &produced).await?;
    Ok(Throughput {
        rows: options.rows,
        gib: produced.mb * 1e6 / f64::from(1 << 30),
        took,
        cpu_seconds,
        peak_mib: peak_mib(world)?,
        counted_mib,
        parts: world.ask("SELECT count(*) FROM system.parts").await?,
        queries,
    })
}

/// Every event is there, and every offset once, by their numbers and sums: to count different ones takes more memory than some
/// nodes here have for all queries.
async fn check(world: &World, produced: &Acknowledged) -> anyhow::Result<()> {
    let client = world.client()?;
    let sums = rows(
        &client,
        &format!("SELECT count(*), sum(amount), sum(event_id) FROM {TABLE}"),
    )
    .await?;
    let sums = (number(&sums, 0)?, number(&sums, 1)?, number(&sums, 2)?);
    let expected = (produced.count as i64, produced.sum_amount, produced.sum_event_id);
    ensure!(sums == expected, "the table holds {sums:?}, produced were {expected:?}");
    let odd = format!(
        "SELECT count(*) FROM (SELECT count(*) AS n, max(_offset) AS newest, sum(_offset) AS total FROM {TABLE} \
         GROUP BY _partition) WHERE newest <> n - 1 OR total <> n * (n - 1) / 2"
    );
    let odd = number(&rows(&client, &odd).await?, 0)?;
    ensure!(odd == 0, "{odd} partitions do not have each of their offsets once");
    Ok(())
}

/// Waits until everything is committed. The most that any one node counted meanwhile, in MiB.
async fn watch_until_read(world: &World, produced: &Acknowledged) -> anyhow::Result<u64> {
    let mut most = 0;
    let reading = wait_until_read(world, produced);
    tokio::pin!(reading);
    loop {
        tokio::select! {
            read = &mut reading => return read.map(|()| most),
            () = tokio::time::sleep(Duration::from_millis(250)) => most = most.max(counted(world)?),
        }
    }
}

/// Heavy queries, one after the other, in the background.
pub struct Querying {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Queries>,
}

impl Querying {
    /// Starts them; `client` should ask but once.
    pub fn start(client: Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(query(client, stop.clone()));
        Self { stop, task }
    }

    /// Ends them, and tells.
    pub async fn finish(self) -> anyhow::Result<Queries> {
        self.stop.store(true, Ordering::Release);
        Ok(self.task.await?)
    }
}

/// An aggregate over few groups, one over many, a sort of all columns, and a join, each over everything.
fn heavy() -> [String; 4] {
    [
        format!(
            "SELECT event_type, country, count(*), sum(amount), avg(price) FROM {TABLE} GROUP BY event_type, country"
        ),
        format!("SELECT session, count(*) AS n FROM {TABLE} GROUP BY session ORDER BY n DESC, session LIMIT 5"),
        format!("SELECT * FROM {TABLE} ORDER BY url, session LIMIT 1000"),
        format!("SELECT count(*) FROM {TABLE} a JOIN {TABLE} b ON a.event_id = b.event_id"),
    ]
}

async fn query(client: Client, stop: Arc<AtomicBool>) -> Queries {
    let mut queries = Queries::default();
    for sql in heavy().iter().cycle() {
        if stop.load(Ordering::Acquire) {
            break;
        }
        let answer = async {
            match client.query(sql).await? {
                Answer::Rows(rows) => rows.collect().await.map(drop),
                Answer::Message(_) => Ok(()),
            }
        };
        match answer.await {
            Ok(()) => queries.answered += 1,
            Err(error) if error.to_string().contains("needs more memory than queries have here") => {
                queries.refused += 1;
            }
            Err(error) => queries.failed.push(format!("{sql}: {error}")),
        }
    }
    queries
}

/// CPU time that the nodes have used so far (utime and stime of proc(5), in ticks of 10 ms).
pub fn cpu_seconds(world: &World) -> anyhow::Result<f64> {
    let mut ticks = 0;
    for pid in (0..world.node_count()).filter_map(|i| world.pid(i)) {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in parentheses, may hold blanks; the fields are counted behind it.
        let fields: Vec<&str> = stat.rsplit(')').next().context("no stat")?.split_whitespace().collect();
        ticks += fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    }
    Ok(ticks as f64 / 100.0)
}

fn peak_mib(world: &World) -> anyhow::Result<u64> {
    let mut peak = 0;
    for pid in (0..world.node_count()).filter_map(|i| world.pid(i)) {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find(|l| l.starts_with("VmHWM:")).context("no VmHWM")?;
        let kib: u64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
        peak = peak.max(kib / 1024);
    }
    Ok(peak)
}

/// The most that any one node counts now, in MiB.
fn counted(world: &World) -> anyhow::Result<u64> {
    let mut most = 0.0_f64;
    for i in 0..world.node_count() {
        most = most.max(world.metric(i, "tidemill_memory_used_bytes")?);
    }
    Ok(most as u64 >> 20)
}
