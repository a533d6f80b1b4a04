//! How fast a backlog is read, and what it costs: rows per second, CPU seconds, peak memory.

use crate::events::{Events, Plan};
use crate::reader::{Counted, count};
use crate::scenario::{TABLE, statements, wait_until_read};
use crate::world::World;
use anyhow::{Context, ensure};
use std::time::{Duration, Instant};

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
    /// The most memory that any one node had, in MiB.
    pub peak_mib: u64,
}

/// Produces `rows` rows first, then reads them with `nodes` nodes.
pub async fn measure(rows: u64, nodes: u16) -> anyhow::Result<Throughput> {
    let world = World::start(nodes).await?;
    let plan = Plan {
        topic: TABLE.into(),
        partitions: 8,
        count: rows,
        bad: 0,
        rate: None,
        seed: 1,
    };
    let produced = Events::start(world.folder(), &world.brokers, &plan)?.finish().await?;
    let [table, pipe] = statements(&world.brokers, TABLE, 10_000);
    world.run(&table).await?;
    let before = cpu_seconds(&world)?;
    let began = Instant::now();
    world.run(&pipe).await?;
    wait_until_read(&world, &produced).await?;
    let took = began.elapsed();
    let cpu_seconds = cpu_seconds(&world)? - before;
    let Counted {
        rows: counted,
        distinct,
        ..
    } = count(&world.client()?, TABLE).await?;
    ensure!(
        (counted, distinct) == (rows as i64, rows as i64),
        "{counted} rows, {distinct} distinct, {rows} produced"
    );
    Ok(Throughput {
        rows,
        gib: produced.mb * 1e6 / f64::from(1 << 30),
        took,
        cpu_seconds,
        peak_mib: peak_mib(&world)?,
    })
}

/// CPU time that the nodes have used so far (utime and stime of proc(5), in ticks of 10 ms).
fn cpu_seconds(world: &World) -> anyhow::Result<f64> {
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
