//! What the client calls back: statistics, logs, errors.

use super::consumer::{Shared, lock};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::statistics::{Partition, Statistics};
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// Takes what the client of one consumer thread calls back.
pub(super) struct Context {
    pub shared: Arc<Shared>,
    /// The topic that is read.
    pub topic: String,
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        let Some(topic) = statistics.topics.get(&self.topic) else {
            return;
        };
        let mut ends = lock(&self.shared.ends);
        for (partition, p) in &topic.partitions {
            // A reader of committed records sees up to the last stable offset.
            let stable = if p.ls_offset >= 0 { p.ls_offset } else { p.hi_offset };
            let ends = ends.entry(*partition).or_default();
            if stable >= 0 {
                ends.observe(stable, p.hi_offset);
            }
            ends.hear(heard(&statistics, p));
        }
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                warn!(topic = %self.topic, facility, "{message}");
            }
            _ => info!(topic = %self.topic, facility, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        info!(topic = %self.topic, %error, "{reason}");
    }
}

impl ConsumerContext for Context {}

/// How long ago the broker that leads the partition was heard. A reader that has nothing left in its queue asks for more all the
/// time, and is answered after `fetch.wait.max.ms` even if there is none; one that has does not need an answer.
fn heard(statistics: &Statistics, partition: &Partition) -> Option<Duration> {
    if partition.fetchq_cnt > 0 {
        return Some(Duration::ZERO);
    }
    // Nobody leads it: -1, which is also the number of brokers that were only configured.
    let of_leader = |nodeid: i32| nodeid >= 0 && nodeid == partition.leader;
    let leader = statistics.brokers.values().find(|broker| of_leader(broker.nodeid))?;
    // It is -1 where nothing was heard since the client connected.
    let micros = u64::try_from(leader.rxidle).ok()?;
    (leader.state == "UP").then_some(Duration::from_micros(micros))
}
