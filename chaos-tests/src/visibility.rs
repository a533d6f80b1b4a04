//! How long a row takes from its production until a `SELECT` shows it.
//!
//! A poller asks for the newest offset of every partition, over and over; a row counts as visible when the
//! first answer that includes it has *arrived*. Its production is the time that the producer gave it
//! (Kafka's CreateTime). So the figure contains the producer's batching, Kafka, ingestion, the poller's
//! pause and the query itself.

use crate::events::{Events, Plan};
use crate::reader::rows;
use crate::scenario::{TABLE, create};
use crate::world::World;
use anyhow::Context;
use arrow::array::AsArray;
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What was measured.
#[derive(Debug)]
pub struct Visibility {
    /// Rows measured.
    pub rows: usize,
    /// Half of the rows were visible within this, in milliseconds.
    pub p50_ms: i64,
    /// 99 of 100 were.
    pub p99_ms: i64,
    /// All were.
    pub max_ms: i64,
    /// Answers that the poller had.
    pub polls: usize,
}

/// Measures at `rate` rows per second for `seconds`, on three nodes.
pub async fn measure(rate: u64, seconds: u64) -> anyhow::Result<Visibility> {
    let world = World::start(3).await?;
    let count = rate * seconds;
    let plan = Plan {
        topic: TABLE.into(),
        partitions: 8,
        count,
        bad: 0,
        rate: Some(rate),
        seed: 1,
    };
    create(&world, &plan, 10_000).await?;
    let mut events = Events::start(world.folder(), &world.brokers, &plan)?;
    let client = world.client()?;
    // For each partition: when which offset was first seen, in order.
    let mut seen: BTreeMap<i32, Vec<(i64, i64)>> = BTreeMap::new();
    let mut polls = 0;
    let mut total = 0;
    while !events.has_ended()? || total < count as i64 {
        let newest = format!("SELECT _partition, max(_offset) FROM {TABLE} GROUP BY _partition");
        let answer = rows(&client, &newest).await?;
        let now = now_ms()?;
        polls += 1;
        total = 0;
        for batch in &answer {
            let partitions = batch.column(0).as_primitive::<Int32Type>();
            let offsets = batch.column(1).as_primitive::<Int64Type>();
            for (partition, offset) in partitions.values().iter().zip(offsets.values()) {
                total += offset + 1;
                let history = seen.entry(*partition).or_default();
                if history.last().is_none_or(|(newest, _)| newest < offset) {
                    history.push((*offset, now));
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let produced = events.finish().await?;
    crate::scenario::wait_until_read(&world, &produced).await?;
    let all = rows(&client, &format!("SELECT _partition, _offset, _timestamp FROM {TABLE}")).await?;
    let mut delays = Vec::with_capacity(count as usize);
    for batch in &all {
        let partitions = batch.column(0).as_primitive::<Int32Type>().values();
        let offsets = batch.column(1).as_primitive::<Int64Type>().values();
        let times = batch.column(2).as_primitive::<TimestampMicrosecondType>().values();
        for ((partition, offset), time) in partitions.iter().zip(offsets).zip(times) {
            let history = seen.get(partition).context("a partition was never seen")?;
            let first = history.partition_point(|(newest, _)| newest < offset);
            let (_, visible) = history.get(first).context("a row was never seen")?;
            delays.push(visible - time / 1000);
        }
    }
    delays.sort_unstable();
    let at = |share: f64| delays[((delays.len() - 1) as f64 * share) as usize];
    Ok(Visibility {
        rows: delays.len(),
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        max_ms: at(1.0),
        polls,
    })
}

fn now_ms() -> anyhow::Result<i64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64)
}
