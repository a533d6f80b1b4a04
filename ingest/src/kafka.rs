//! Kafka as a source: asking it what it has, and reading it.
//!
//! Partitions are assigned by the catalog (`assign`), never by a consumer group (`subscribe`); offsets come
//! from the catalog, never from the broker's store; and no default of the client decides where to
//! read (`auto.offset.reset=error`).

mod assignment;
mod consumer;
mod context;
mod inspect;
mod loss;
mod mock;
mod native;
mod retention;
mod run;
mod status;
mod topic;

pub use assignment::{Assigned, Assignment, Start};
pub use consumer::{Consumer, ConsumerOptions};
pub use inspect::{SourceOffsets, StartPosition, added_partitions, start_offsets};
pub use mock::{MOCK_PARTITION_BYTES, MOCK_PARTITION_MESSAGES, MockBroker};
pub use retention::{Unread, unread};
pub use status::PartitionStatus;
pub use topic::TopicCheck;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use thiserror::Error;
use tidemill_core::catalog::KafkaSource;

/// The source could not be reached or does not have what was asked; the text says what and what to do.
#[derive(Clone, Debug, Error)]
#[error("{0}")]
pub struct SourceError(pub String);

/// The group under which a pipe shows itself to Kafka. Nothing is ever read back from it.
pub fn group_of(cluster: &str, pipe: &str) -> String {
    format!("tidemill.{cluster}.{pipe}")
}

/// Bytes of a client's own that a fetched record takes beside its payload, about.
const NOTE_BYTES: u64 = 512;
/// The most bytes that are fetched of a partition at once.
const FETCH_BYTES: u64 = 1 << 20;
/// What a client takes for the longest message where a pipe says nothing; it refuses to fetch less at once.
const MESSAGE_BYTES: u64 = 1_000_000;

/// Has a client fetch about `payload` bytes ahead, whatever a pipe says: that is a matter of the node's memory. A record that
/// is longer than what is fetched at once is given alone.
fn limit_fetching(config: &mut ClientConfig, payload: u64) {
    let longest = config.get("message.max.bytes").and_then(|bytes| bytes.parse().ok());
    config
        .set("queued.max.messages.kbytes", (payload >> 10).max(1).to_string())
        .set(
            "queued.min.messages",
            (payload / NOTE_BYTES).clamp(1_000, 100_000).to_string(),
        )
        .set("fetch.message.max.bytes", payload.min(FETCH_BYTES).to_string())
        .set(
            "fetch.max.bytes",
            payload.max(longest.unwrap_or(MESSAGE_BYTES)).to_string(),
        );
}

/// The client's settings for `source`. Those that exactly-once depends on cannot be overridden.
fn client_config(source: &KafkaSource, group: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("fetch.wait.max.ms", "50")
        .set("fetch.error.backoff.ms", "100")
        .set("fetch.queue.backoff.ms", "20")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000")
        .set("socket.nagle.disable", "true")
        .set("topic.metadata.refresh.interval.ms", "10000")
        .set("statistics.interval.ms", "500");
    for (name, value) in &source.client {
        config.set(name, value);
    }
    config
        .set("bootstrap.servers", &source.brokers)
        .set("group.id", group)
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "error")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // Says when nothing is left to be given, also behind records that a reader may not see.
        .set("enable.partition.eof", "true")
        .set("check.crcs", "true")
        .set_log_level(RDKafkaLogLevel::Warning);
    config
}
