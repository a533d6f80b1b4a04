//! Queries all the time, at every node, and what those who ask notice: how long an answer takes, whether one is missing or
//! wrong, and for how long no new rows are seen.
//!
//! Everything is written down with its time, so that any stretch of it can be looked at afterwards.

use crate::failover::percentiles;
use crate::reader::{committed, number, rows};
use crate::world::World;
use anyhow::{Context, anyhow, ensure};
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tidemill_client::{Client, ClientConfig};
use tokio::task::JoinHandle;

/// Between two queries of one asker.
const PAUSE: Duration = Duration::from_millis(100);
/// Of so many queries one is an aggregate.
const ROUND: usize = 5;
/// After so many queries an asker connects anew, to its own node first.
const CONNECTION: usize = 20;
/// Between two looks at the newest rows.
const LOOK: Duration = Duration::from_millis(30);

/// A table into which rows flow, and one that has all of its rows.
#[derive(Clone, Debug)]
pub struct Tables {
    /// Rows flow into it.
    pub growing: String,
    /// It has all of its rows.
    pub still: String,
    /// As many as these.
    pub still_rows: i64,
}

/// What kind of query it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The number of rows, or of those that are committed.
    Light,
    /// Groups and sums over everything.
    Aggregate,
}

#[derive(Debug)]
enum Outcome {
    Answered,
    /// It failed, and the same query was answered when it was asked again.
    Repeated(String),
    Failed(String),
}

#[derive(Debug)]
struct Sample {
    at: Instant,
    took: Duration,
    kind: Kind,
    outcome: Outcome,
}

#[derive(Debug, Default)]
struct Log {
    samples: Vec<Sample>,
    /// The newest offset of each partition.
    newest: BTreeMap<i32, i64>,
    /// For each partition: from when until when nothing new was seen. The last stretch is not over.
    gaps: BTreeMap<i32, Vec<(Instant, Instant)>>,
    violations: Vec<String>,
}

/// What was noticed in one stretch of time.
#[derive(Clone, Debug, Default)]
pub struct Noticed {
    /// How long the stretch was.
    pub lasted: Duration,
    /// Queries that were answered.
    pub answered: usize,
    /// Queries that failed and were answered when they were asked again, with what each said first.
    pub repeated: Vec<String>,
    /// Queries that failed twice.
    pub failed: Vec<String>,
    /// The longest time in which no new row of some partition was seen.
    pub pause: Duration,
    /// Half of the light queries, and 99 of 100, took no longer.
    pub light: (Duration, Duration),
    /// The same for aggregates.
    pub aggregate: (Duration, Duration),
}

/// Queries under way.
pub struct Load {
    tables: Arc<Tables>,
    log: Arc<Mutex<Log>>,
    stop: Arc<AtomicBool>,
    /// By node.
    askers: BTreeMap<usize, Arc<AtomicBool>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    /// Begins to look at the newest rows. Nobody asks yet.
    pub fn start(world: &World, tables: Tables) -> anyhow::Result<Self> {
        let load = Self {
            tables: Arc::new(tables),
            log: Arc::default(),
            stop: Arc::default(),
            askers: BTreeMap::new(),
            tasks: vec![],
        };
        let watching = watch(
            world.client()?,
            load.tables.clone(),
            load.log.clone(),
            load.stop.clone(),
        );
        Ok(Self {
            tasks: vec![tokio::spawn(watching)],
            ..load
        })
    }

    /// From now on node `i` is asked, too.
    pub fn ask_at(&mut self, world: &World, i: usize) {
        let stop = Arc::new(AtomicBool::new(false));
        let asker = Asker {
            own: world.beginning_at(i),
            // Nodes that are gone are passed over.
            others: world.beginning_at((i + 1) % world.node_count()),
            tables: self.tables.clone(),
            log: self.log.clone(),
            committed: 0,
        };
        self.askers.insert(i, stop.clone());
        self.tasks.push(tokio::spawn(asker.run(stop)));
    }

    /// Node `i` is not asked any more.
    pub fn leave(&mut self, i: usize) {
        if let Some(stop) = self.askers.remove(&i) {
            stop.store(true, Ordering::Release);
        }
    }

    /// What was noticed between two moments, the later of which is over.
    pub fn between(&self, from: Instant, until: Instant) -> Noticed {
        lock(&self.log).between(from, until)
    }

    /// Ends all, and fails if an answer was wrong.
    pub async fn finish(mut self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Release);
        for asker in self.askers.values() {
            asker.store(true, Ordering::Release);
        }
        for task in std::mem::take(&mut self.tasks) {
            task.await?;
        }
        let log = lock(&self.log);
        ensure!(log.violations.is_empty(), "wrong answers: {:#?}", log.violations);
        Ok(())
    }
}

impl Log {
    /// Takes partitions and their newest offsets, as they are seen now.
    fn grow(&mut self, found: &[RecordBatch], now: Instant) {
        // A partition that is in no answer does not grow either.
        for (_, until) in self.gaps.values_mut().filter_map(|gaps| gaps.last_mut()) {
            *until = now;
        }
        for (partition, offset) in found.iter().flat_map(pairs) {
            // What is not committed may go for a moment when another node leads: it is new when it is more than before.
            if self.newest.get(&partition).is_none_or(|newest| *newest < offset) {
                self.newest.insert(partition, offset);
                self.gaps.entry(partition).or_default().push((now, now));
            }
        }
    }

    fn between(&self, from: Instant, until: Instant) -> Noticed {
        let mut noticed = Noticed {
            lasted: until - from,
            ..Noticed::default()
        };
        let (mut light, mut aggregate) = (vec![], vec![]);
        // A query that was under way at the beginning counts, too.
        for sample in self.samples.iter().filter(|s| s.at + s.took >= from && s.at <= until) {
            match &sample.outcome {
                Outcome::Answered => noticed.answered += 1,
                Outcome::Repeated(why) => noticed.repeated.push(why.clone()),
                Outcome::Failed(why) => noticed.failed.push(why.clone()),
            }
            match sample.kind {
                Kind::Light => light.push(sample.took),
                Kind::Aggregate => aggregate.push(sample.took),
            }
        }
        let gaps = self.gaps.values().flatten();
        let within = gaps.filter(|(began, ended)| *ended >= from && *began <= until);
        noticed.pause = within.map(|(began, ended)| *ended - *began).max().unwrap_or_default();
        let two = |times: Vec<Duration>| {
            let (half, most, _) = percentiles(times.into_iter());
            (half, most)
        };
        (noticed.light, noticed.aggregate) = (two(light), two(aggregate));
        noticed
    }
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    // A panic in between leaves whole entries.
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes for each partition when its newest offset was seen to grow.
async fn watch(client: Client, tables: Arc<Tables>, log: Arc<Mutex<Log>>, stop: Arc<AtomicBool>) {
    let newest = format!(
        "SELECT _partition, max(_offset) FROM {} GROUP BY _partition",
        tables.growing
    );
    while !stop.load(Ordering::Acquire) {
        // An answer that is missing is noticed as a pause.
        let found = rows(&client, &newest).await.unwrap_or_default();
        lock(&log).grow(&found, Instant::now());
        tokio::time::sleep(LOOK).await;
    }
}

fn pairs(batch: &RecordBatch) -> impl Iterator<Item = (i32, i64)> {
    let partitions = batch.column(0).as_primitive::<Int32Type>().values();
    let offsets = batch.column(1).as_primitive::<Int64Type>().values();
    partitions.iter().copied().zip(offsets.iter().copied())
}

/// Asks one node first, and others when that does not answer.
struct Asker {
    own: ClientConfig,
    others: ClientConfig,
    tables: Arc<Tables>,
    log: Arc<Mutex<Log>>,
    /// Rows that were committed when it last asked.
    committed: i64,
}

impl Asker {
    async fn run(mut self, stop: Arc<AtomicBool>) {
        let mut client = Err(anyhow!("not connected"));
        for turn in 0.. {
            if stop.load(Ordering::Acquire) {
                return;
            }
            if turn % CONNECTION == 0 {
                client = Client::new(self.own.clone()).map_err(Into::into);
            }
            let kind = match turn % ROUND {
                0 => Kind::Aggregate,
                _ => Kind::Light,
            };
            let at = Instant::now();
            let outcome = match self.ask(client.as_ref().ok(), kind, turn).await {
                Ok(()) => Outcome::Answered,
                Err(first) => {
                    let other = Client::new(self.others.clone()).ok();
                    match self.ask(other.as_ref(), kind, turn).await {
                        Ok(()) => Outcome::Repeated(format!("{first:#}")),
                        Err(second) => Outcome::Failed(format!("{first:#}; then: {second:#}")),
                    }
                }
            };
            let took = at.elapsed();
            lock(&self.log).samples.push(Sample {
                at,
                took,
                kind,
                outcome,
            });
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Asks, and believes nothing. Light queries are by turns for the rows that are committed and for all, aggregates
    /// over the one table and the other.
    async fn ask(&mut self, client: Option<&Client>, kind: Kind, turn: usize) -> anyhow::Result<()> {
        let client = client.context("no address of a node is valid")?;
        let tables = self.tables.clone();
        let growing = &tables.growing;
        match (kind, turn % 2) {
            (Kind::Light, 0) => self.committed = committed(client, growing).await?,
            (Kind::Light, _) => {
                let found = rows(client, &format!("SELECT count(*) FROM {growing}")).await?;
                self.has_seen(number(&found, 0)?);
            }
            (Kind::Aggregate, 0) => {
                let groups = format!(
                    "SELECT country, device, count(*) AS n, sum(amount), avg(price), max(session) FROM {} \
                     GROUP BY country, device ORDER BY n DESC",
                    tables.still
                );
                let found = rows(client, &groups).await?;
                let all: i64 = found
                    .iter()
                    .map(|batch| batch.column(2).as_primitive::<Int64Type>().values().iter().sum::<i64>())
                    .sum();
                if all != tables.still_rows {
                    self.violation(format!("{all} rows of {} were seen in {tables:?}", tables.still));
                }
            }
            (Kind::Aggregate, _) => {
                let offsets = format!(
                    "SELECT sum(n), sum(newest + 1 - n), sum(abs(2 * total - n * (n - 1))) FROM (SELECT count(*) AS n, \
                     max(_offset) AS newest, sum(_offset) AS total FROM {growing} GROUP BY _partition)"
                );
                let found = rows(client, &offsets).await?;
                let (all, missing, odd) = (number(&found, 0)?, number(&found, 1)?, number(&found, 2)?);
                self.has_seen(all);
                if (missing, odd) != (0, 0) {
                    self.violation(format!(
                        "of {all} rows {missing} were missing, or there more than once if below 0 ({odd})"
                    ));
                }
            }
        }
        Ok(())
    }

    fn has_seen(&self, now: i64) {
        if now < self.committed {
            self.violation(format!(
                "{now} rows were seen, {} were committed before",
                self.committed
            ));
        }
    }

    fn violation(&self, what: String) {
        lock(&self.log).violations.push(what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_touches_the_stretch_counts() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let sample = |from: u64, took: u64, outcome| Sample {
            at: at(from),
            took: Duration::from_secs(took),
            kind: Kind::Light,
            outcome,
        };
        let log = Log {
            samples: vec![
                sample(0, 1, Outcome::Failed("too early".into())),
                sample(8, 4, Outcome::Answered),
                sample(12, 1, Outcome::Repeated("killed".into())),
                sample(21, 1, Outcome::Failed("too late".into())),
            ],
            gaps: BTreeMap::from([
                (0, vec![(at(0), at(9)), (at(9), at(12)), (at(12), at(13))]),
                (1, vec![(at(19), at(24))]),
            ]),
            ..Log::default()
        };
        let noticed = log.between(at(10), at(20));
        assert_eq!(
            (noticed.answered, noticed.repeated.len(), noticed.failed.len()),
            (1, 1, 0)
        );
        assert_eq!(noticed.light, (Duration::from_secs(1), Duration::from_secs(4)));
        // The pause that was not over at the end counts as a whole.
        assert_eq!(noticed.pause, Duration::from_secs(5));
        assert_eq!(log.between(at(10), at(18)).pause, Duration::from_secs(3));
    }
}
