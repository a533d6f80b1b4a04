//! Programs that write rows themselves, and what was promised to each of their rows.
//!
//! Every row is (writer, number). A row that was acknowledged must be there once, one that was refused not at all, and one
//! of which nothing is known once or not at all.

use crate::failover::percentiles;
use crate::reader::{number, rows};
use crate::world::World;
use anyhow::ensure;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tidemill_client::{Client, Delivery, WriteError, WriterOptions};
use tokio::task::JoinHandle;

/// The table that they write to.
pub const TABLE: &str = "written";

/// The statement that makes it.
pub fn create(settings: &str) -> String {
    format!(
        "CREATE TABLE {TABLE} (writer BIGINT NOT NULL, n BIGINT NOT NULL, note VARCHAR) ORDER BY (writer, n) WITH ({settings})"
    )
}

/// What one writer was told.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Rows that are there.
    pub acknowledged: Vec<u64>,
    /// Rows that may be there.
    pub unknown: Vec<u64>,
    /// Rows that are not there.
    pub refused: Vec<u64>,
    /// From giving a row to its acknowledgement.
    pub latencies: Vec<Duration>,
}

/// Writers at work.
pub struct Writers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<anyhow::Result<Told>>>,
}

impl Writers {
    /// `count` writers, each with `ahead` rows on their way at a time and with `pause` between two of them.
    pub async fn start(
        client: &Client,
        count: u64,
        ahead: usize,
        pause: Duration,
        options: WriterOptions,
    ) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for id in 0..count {
            let writer = client.writer(TABLE, options.clone()).await?;
            let stop = stop.clone();
            tasks.push(tokio::spawn(async move {
                let mut told = Told::default();
                let mut waiting: std::collections::VecDeque<(u64, Instant, Delivery)> = Default::default();
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    let row = format!(r#"{{"writer": {id}, "n": {n}, "note": "row {n} of {id}"}}"#);
                    let began = Instant::now();
                    let delivery = writer.write_json(row).await?;
                    waiting.push_back((n, began, delivery));
                    n += 1;
                    if waiting.len() >= ahead {
                        told.next(&mut waiting).await;
                    }
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                }
                while !waiting.is_empty() {
                    told.next(&mut waiting).await;
                }
                // What went wrong was told row by row.
                _ = writer.close().await;
                Ok(told)
            }));
        }
        Ok(Self { stop, tasks })
    }

    /// No more rows; what each writer was told.
    pub async fn finish(self) -> anyhow::Result<Vec<Told>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for task in self.tasks {
            all.push(task.await??);
        }
        Ok(all)
    }
}

impl Told {
    async fn next(&mut self, waiting: &mut std::collections::VecDeque<(u64, Instant, Delivery)>) {
        let Some((n, began, delivery)) = waiting.pop_front() else {
            return;
        };
        match delivery.await {
            Ok(_) => {
                self.acknowledged.push(n);
                self.latencies.push(began.elapsed());
            }
            Err(WriteError::Unknown(_)) => self.unknown.push(n),
            Err(_) => self.refused.push(n),
        }
    }
}

/// Holds the table against what was promised, row by row. Gives how many acknowledged rows are missing: none may be, unless
/// they were acknowledged before they were safe.
pub async fn check(client: &Client, told: &[Told]) -> anyhow::Result<u64> {
    let mut missing = 0;
    for (id, told) in told.iter().enumerate() {
        let found = rows(client, &format!("SELECT n FROM {TABLE} WHERE writer = {id} ORDER BY n")).await?;
        let mut there: Vec<u64> = Vec::new();
        for batch in &found {
            use arrow::array::AsArray;
            let column = batch.column(0).as_primitive::<arrow::datatypes::Int64Type>();
            there.extend(column.values().iter().map(|n| *n as u64));
        }
        if let Some(twice) = there.windows(2).find(|pair| pair[0] == pair[1]) {
            anyhow::bail!("row {} of writer {id} is there twice", twice[0]);
        }
        let is_there = |n: &u64| there.binary_search(n).is_ok();
        missing += told.acknowledged.iter().filter(|n| !is_there(n)).count() as u64;
        if let Some(phantom) = told.refused.iter().find(|n| is_there(n)) {
            anyhow::bail!("row {phantom} of writer {id} was refused and is there");
        }
        let may_be = told.acknowledged.len() + told.unknown.len();
        ensure!(
            there.len() <= may_be,
            "writer {id} has {} rows, {may_be} can be there",
            there.len()
        );
    }
    Ok(missing)
}

/// What writing costs.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// How many writers at a time
    #[arg(long, value_delimiter = ',', default_value = "1,16,64")]
    pub writers: Vec<u64>,
    /// When a row counts as written: all, leader or none
    #[arg(long, value_delimiter = ',', default_value = "all,leader,none")]
    pub acks: Vec<String>,
    /// Rows of a writer that are on their way at a time
    #[arg(long, value_delimiter = ',', default_value = "1,1000")]
    pub ahead: Vec<usize>,
    /// How long each
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
}

/// Writes in all these ways, one after the other, and prints what was seen.
pub async fn measure(options: &Options) -> anyhow::Result<()> {
    use tidemill_client::Acks;
    let mut world = World::without_broker()?;
    world.start_cluster(3).await?;
    for acks in &options.acks {
        let level = match acks.as_str() {
            "all" => Acks::All,
            "leader" => Acks::Leader,
            "none" => Acks::None,
            other => anyhow::bail!("acks is all, leader or none, not '{other}'"),
        };
        for writers in &options.writers {
            for ahead in &options.ahead {
                let settings = match level {
                    Acks::Leader => "shards = 3, wal = 'local'",
                    _ => "shards = 3",
                };
                world.run(&create(settings)).await?;
                let client = world.client()?;
                let writer_options = WriterOptions {
                    acks: level,
                    ..WriterOptions::default()
                };
                let began = Instant::now();
                let running = Writers::start(&client, *writers, *ahead, Duration::ZERO, writer_options).await?;
                tokio::time::sleep(Duration::from_secs(options.seconds)).await;
                let told = running.finish().await?;
                let took = began.elapsed();
                ensure!(check(&client, &told).await? == 0, "rows are missing");
                let count: usize = told.iter().map(|told| told.acknowledged.len()).sum();
                let parts = number(&rows(&client, "SELECT count(*) FROM system.parts").await?, 0)?;
                let (p50, p99, max) = percentiles(told.into_iter().flat_map(|told| told.latencies));
                println!(
                    "acks = {acks}, {writers} writers, {ahead} rows ahead: {:.0} rows/s, p50 {p50:.1?}, p99 {p99:.1?}, \
                     max {max:.1?}; {parts} parts",
                    count as f64 / took.as_secs_f64()
                );
                world.run(&format!("DROP TABLE {TABLE}")).await?;
            }
        }
    }
    Ok(())
}
