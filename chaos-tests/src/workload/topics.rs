//! Workloads that produce into a topic from which a pipe fills a table of the same name.

use super::acked::{Acked, Said};
use super::readers::{self, Floor};
use super::stage::Stage;
use super::{Work, clerk};
use futures::future::join_all;
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// A topic with its table and pipe, all of one name.
#[derive(Clone, Copy, Debug)]
pub struct Topic {
    /// The name of topic, table and pipe.
    pub name: &'static str,
    /// Partitions that it begins with.
    pub partitions: u32,
    /// Settings of the topic.
    config: &'static [&'static str],
    /// Further options of the pipe.
    pipe: &'static str,
    /// Further settings of the table.
    table: &'static str,
}

const PLAIN: Topic = Topic {
    name: "counter",
    partitions: 6,
    config: &[],
    pipe: "",
    table: "",
};

pub const COUNTER: Topic = PLAIN;
pub const TRANSACTIONS: Topic = Topic {
    name: "transactions",
    partitions: 4,
    pipe: ", gaps = 'expect'",
    table: ", wal = 'local'",
    ..PLAIN
};
pub const COMPACTED: Topic = Topic {
    name: "compacted",
    partitions: 3,
    config: &[
        "cleanup.policy=compact",
        "segment.ms=2000",
        "min.cleanable.dirty.ratio=0.01",
        "delete.retention.ms=1000",
        "max.compaction.lag.ms=3000",
    ],
    pipe: ", gaps = 'expect', standby = 'hot'",
    ..PLAIN
};
pub const GROWING: Topic = Topic {
    name: "growing",
    partitions: 2,
    pipe: ", standby = 'hot'",
    ..PLAIN
};
pub const OPERATED: Topic = Topic {
    name: "operated",
    partitions: 4,
    ..PLAIN
};

impl Topic {
    /// The partitions into which clients write: those that it begins with, and those that a fault has added.
    fn partitions_now(self, stage: &Stage) -> Vec<u32> {
        (0..self.partitions).chain(stage.added(self.name)).collect()
    }

    /// One of them.
    pub fn any_partition(self, stage: &Stage, chance: &mut StdRng) -> u32 {
        let partitions = self.partitions_now(stage);
        partitions[chance.random_range(0..partitions.len())]
    }
}

/// Creates topic, table and pipe.
pub async fn prepare(stage: &Stage, topic: Topic) -> anyhow::Result<()> {
    let Topic { name, table, pipe, .. } = topic;
    let (partitions, replication) = (topic.partitions.to_string(), stage.replication.to_string());
    let mut create = vec!["topic", "create", name, "--partitions", &partitions];
    create.extend(["--replication", &replication]);
    create.extend(topic.config.iter().flat_map(|setting| ["--config", setting]));
    stage.kafka(&create).await?;
    create_table(stage, name, table).await?;
    create_pipe(stage, name, pipe).await
}

/// Creates the pipe from a topic that is new: for a moment, some brokers do not know it yet.
pub async fn create_pipe(stage: &Stage, name: &str, options: &str) -> anyhow::Result<()> {
    let brokers = &stage.brokers;
    let create =
        format!("CREATE PIPE {name} INTO {name} FROM KAFKA (brokers = '{brokers}', topic = '{name}'{options})");
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match stage.run(&create).await {
            Err(error) if format!("{error:#}").contains("has no topic") && Instant::now() < until => {
                sleep(Duration::from_millis(500)).await;
            }
            done => return done,
        }
    }
}

/// Creates a table for the records that all workloads produce.
pub async fn create_table(stage: &Stage, name: &str, settings: &str) -> anyhow::Result<()> {
    let columns = "id BIGINT NOT NULL, k VARCHAR, seq BIGINT";
    stage
        .run(&format!(
            "CREATE TABLE {name} ({columns}) ORDER BY (id) WITH (shards = 3, flush_age = '1s'{settings})"
        ))
        .await
}

fn record(key: &str, id: u64, seq: u64) -> String {
    json!({ "id": id, "k": key, "seq": seq }).to_string()
}

/// `keys` keys, each of which counts in a partition of its own choice, another one when the topic has got more, and readers.
pub async fn count(stage: &Stage, topic: Topic, keys: u32) -> anyhow::Result<Vec<Work>> {
    let mut work = readers::of(stage, topic.name, 3, Floor::Stored)?;
    work.extend(counters(stage, topic, keys)?);
    Ok(work)
}

/// The counters alone.
pub fn counters(stage: &Stage, topic: Topic, keys: u32) -> anyhow::Result<Vec<Work>> {
    let producer = Acked::start(&stage.brokers, topic.name, "")?;
    let counter = |n: u32| -> Work {
        Box::pin(counter(
            stage.clone(),
            producer.clone(),
            topic.name,
            format!("k{n}"),
            move |stage: &Stage| {
                let partitions = topic.partitions_now(stage);
                partitions[n as usize % partitions.len()]
            },
        ))
    };
    Ok((0..keys).map(counter).collect())
}

async fn counter(
    stage: Stage,
    producer: Acked,
    topic: &'static str,
    key: String,
    choose: impl Fn(&Stage) -> u32,
) -> anyhow::Result<()> {
    let mut process = stage.history.process();
    let mut seq = 0;
    while !stage.is_over() {
        let id = stage.id();
        let partition = choose(&stage);
        let asked = json!({ "topic": topic, "partition": partition, "key": key, "id": id, "seq": seq });
        let invoked = process.invoke("produce", asked.clone(), None);
        let said = producer.send(partition, Some(&key), Some(&record(&key, id, seq))).await;
        match said {
            Said::Ok(Some((_, offset))) => invoked.ok(with_offset(asked, offset)),
            Said::Ok(None) => invoked.info("the producer named no offset"),
            Said::Fail(why) => invoked.fail(why),
            Said::Info(why) => invoked.info(why),
        }
        seq += 1;
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

fn with_offset(mut asked: Value, offset: u64) -> Value {
    asked["offset"] = offset.into();
    asked
}

/// So many producers of transactions, and readers.
pub async fn transact(stage: &Stage, producers: u64) -> anyhow::Result<Vec<Work>> {
    let mut work = readers::of(stage, TRANSACTIONS.name, 3, Floor::Stored)?;
    for number in 0..producers {
        let producer = Acked::start(&stage.brokers, TRANSACTIONS.name, &format!("transactions-{number}"))?;
        work.push(Box::pin(transactions(stage.clone(), producer, number)));
    }
    Ok(work)
}

async fn transactions(stage: Stage, producer: Acked, number: u64) -> anyhow::Result<()> {
    let mut process = stage.history.process();
    let mut chance = stage.chance("transactions", number);
    while !stage.is_over() {
        let count = chance.random_range(1..20);
        let commits = chance.random_bool(0.7);
        let records: Vec<(u32, u64)> = (0..count)
            .map(|_| (TRANSACTIONS.any_partition(&stage, &mut chance), stage.id()))
            .collect();
        let topic = TRANSACTIONS.name;
        let asked = json!({ "topic": topic, "records": records, "commit": commits });
        let invoked = process.invoke("transaction", asked, None);
        if let Said::Fail(why) | Said::Info(why) = producer.transact("begin").await {
            invoked.fail(why);
            sleep(Duration::from_millis(200)).await;
            continue;
        }
        let sends = records.iter().map(async |(partition, id)| {
            let said = producer.send(*partition, None, Some(&record("", *id, 0))).await;
            match said {
                Said::Ok(Some((partition, offset))) => Some((partition, offset, *id)),
                _ => None,
            }
        });
        let ends = async {
            // A commit waits for what is under way by itself.
            match commits {
                true => producer.transact("commit").await,
                false => producer.transact("abort").await,
            }
        };
        // The first of both that is polled is the first to be heard: the end comes behind the records.
        let (sent, ended) = tokio::join!(join_all(sends), ends);
        match (ended, commits) {
            (Said::Ok(_), _) if sent.iter().all(Option::is_some) || !commits => {
                let sent: Vec<_> = sent.into_iter().flatten().collect();
                invoked.ok(json!({ "topic": topic, "records": sent, "commit": commits }));
            }
            // Without a commit nobody ever sees the records.
            (Said::Fail(why) | Said::Info(why), false) | (Said::Fail(why), true) => invoked.fail(why),
            (Said::Info(why), true) => invoked.info(why),
            (Said::Ok(_), true) => invoked.info("committed, and a record of it was not acknowledged"),
            (Said::Ok(_), false) => invoked.fail("aborted"),
        }
        sleep(Duration::from_millis(30)).await;
    }
    Ok(())
}

/// A few keys, over and over, with tombstones and records that are no JSON among them.
pub async fn compact(stage: &Stage) -> anyhow::Result<Vec<Work>> {
    let mut work = readers::of(stage, COMPACTED.name, 3, Floor::Stored)?;
    let producer = Acked::start(&stage.brokers, COMPACTED.name, "")?;
    let writer = |n: u64| -> Work { Box::pin(compacted(stage.clone(), producer.clone(), n)) };
    work.extend((0..4).map(writer));
    Ok(work)
}

async fn compacted(stage: Stage, producer: Acked, number: u64) -> anyhow::Result<()> {
    let mut process = stage.history.process();
    let mut chance = stage.chance("compacted", number);
    while !stage.is_over() {
        let key = format!("k{}", chance.random_range(0..10));
        let partition = COMPACTED.any_partition(&stage, &mut chance);
        let id = stage.id();
        let value = match chance.random_range(0..20) {
            0 => None,
            1 => Some(format!("{id} is no JSON")),
            _ => Some(record(&key, id, 0)),
        };
        let (f, bad) = match &value {
            // Nothing comes of it, so nothing can be looked for.
            None => ("tombstone", false),
            Some(value) => ("produce", !value.starts_with('{')),
        };
        let asked = json!({ "topic": COMPACTED.name, "partition": partition, "key": key, "id": id, "bad": bad });
        let invoked = process.invoke(f, asked.clone(), None);
        match producer.send(partition, Some(&key), value.as_deref()).await {
            Said::Ok(Some((_, offset))) => invoked.ok(with_offset(asked, offset)),
            Said::Ok(None) => invoked.info("the producer named no offset"),
            Said::Fail(why) => invoked.fail(why),
            Said::Info(why) => invoked.info(why),
        }
        sleep(Duration::from_millis(15)).await;
    }
    Ok(())
}

/// Counters, and somebody who gives the topic more partitions now and then, into which others count.
pub async fn grow(stage: &Stage) -> anyhow::Result<Vec<Work>> {
    let mut work = readers::of(stage, GROWING.name, 3, Floor::Stored)?;
    work.extend(counters(stage, GROWING, 16)?);
    let stage = stage.clone();
    work.push(Box::pin(async move {
        let mut process = stage.history.process();
        let mut counting = tokio::task::JoinSet::new();
        for partition in GROWING.partitions..GROWING.partitions + 4 {
            clerk::pause(&stage, Duration::from_secs(8)).await;
            if stage.is_over() {
                break;
            }
            let count = (partition + 1).to_string();
            let invoked = process.invoke("grow", json!({ "topic": GROWING.name, "partitions": count }), None);
            match stage.kafka(&["topic", "grow", GROWING.name, &count]).await {
                Ok(_) => invoked.ok(Value::Null),
                Err(error) => {
                    invoked.info(format!("{error:#}"));
                    continue;
                }
            }
            let producer = Acked::start(&stage.brokers, GROWING.name, "")?;
            counting.spawn(counter(
                stage.clone(),
                producer,
                GROWING.name,
                format!("grown{partition}"),
                move |_: &Stage| partition,
            ));
        }
        while let Some(counted) = counting.join_next().await {
            counted??;
        }
        Ok(())
    }));
    Ok(work)
}
