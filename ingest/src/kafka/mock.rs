//! A Kafka for trying things out: librdkafka's mock cluster, behind an API without pointers.
//!
//! It speaks Kafka's protocol over TCP on loopback, so other processes can use it like any broker, but it
//! keeps everything in memory and only the last 5 MB or 100,000 messages of each partition; what is older
//! is gone. It knows no CreateTopics (topics are created here, or by being asked for), no offsets by
//! timestamp, and hides no aborted transactions. No test of exactly-once and no data that matters belongs
//! on it.

use super::SourceError;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

/// What the mock cluster keeps of each partition, in bytes; older messages are dropped.
pub const MOCK_PARTITION_BYTES: u64 = 5 << 20;
/// What the mock cluster keeps of each partition, in messages; older ones are dropped.
pub const MOCK_PARTITION_MESSAGES: u64 = 100_000;

/// A running mock cluster. It serves from threads of its own and ends when dropped.
pub struct MockBroker {
    cluster: MockCluster<'static, DefaultProducerContext>,
    brokers: u16,
}

impl MockBroker {
    /// Starts `brokers` brokers on loopback ports of the system's choice.
    ///
    /// # Errors
    /// When the ports or threads cannot be had.
    pub fn start(brokers: u16) -> Result<Self, SourceError> {
        let cluster = MockCluster::new(brokers.into())
            .map_err(|error| SourceError(format!("the mock cluster did not start: {error}")))?;
        Ok(Self { cluster, brokers })
    }

    /// Creates a topic, with as many copies as there are brokers, three at most.
    ///
    /// # Errors
    /// When the topic is there already, or its name cannot be one.
    pub fn create_topic(&self, name: &str, partitions: u16) -> Result<(), SourceError> {
        let copies = self.brokers.min(3);
        self.cluster
            .create_topic(name, partitions.into(), copies.into())
            .map_err(|error| SourceError(format!("topic '{name}' could not be created: {error}")))
    }

    /// The bootstrap servers: `host:port`, separated by commas.
    pub fn bootstrap(&self) -> String {
        self.cluster.bootstrap_servers()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::ClientConfig;
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use std::time::Duration;

    #[test]
    fn another_client_finds_the_topic() {
        let broker = MockBroker::start(2).unwrap();
        broker.create_topic("events", 3).unwrap();
        assert!(broker.create_topic("events", 3).is_err());
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", broker.bootstrap());
        let client: BaseConsumer = config.create().unwrap();
        let known = client.fetch_metadata(Some("events"), Duration::from_secs(10)).unwrap();
        assert_eq!(known.brokers().len(), 2);
        assert_eq!(known.topics()[0].partitions().len(), 3);
    }
}
