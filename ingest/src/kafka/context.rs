//! What the client calls back: statistics, logs, errors.

use super::consumer::{Shared, lock};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::statistics::Statistics;
use std::sync::Arc;
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
            if stable >= 0 {
                ends.entry(*partition)
                    .or_default()
                    .observe(p.lo_offset, stable, p.hi_offset);
            }
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
