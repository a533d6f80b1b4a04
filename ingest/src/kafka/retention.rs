//! How long a source keeps what is still to be read. Blocking; call it off the runtime.

use super::inspect::{PATIENCE, connect, unreachable};
use super::{SourceError, client_config};
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::Consumer as _;
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tidemill_core::catalog::KafkaSource;
use tidemill_core::{Offset, PartitionId};

/// How long records may take to come when only their times are wanted.
const LOOK_AT_RECORDS: Duration = Duration::from_secs(3);

/// What of a partition is still to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// The partition.
    pub partition: PartitionId,
    /// The next offset to be committed.
    pub next: Offset,
    /// The time of the oldest record from there on, milliseconds since 1970, if the source said.
    pub oldest_ms: Option<i64>,
    /// How long the topic keeps records, in milliseconds; `None` if for ever.
    pub retention_ms: Option<i64>,
}

/// The partitions, of those at these next offsets, that have records to be read. Reads one record of each.
pub fn unread(source: &KafkaSource, places: &[(PartitionId, Offset)]) -> Result<Vec<Unread>, SourceError> {
    let consumer = connect(source)?;
    let mut behind = Vec::new();
    for (partition, next) in places {
        let marks = consumer.fetch_watermarks(&source.topic, partition.0 as i32, PATIENCE);
        let (low, high) = marks.map_err(|e| unreachable(source, &e))?;
        if (next.0 as i64) < high {
            behind.push((*partition, *next, low.max(next.0 as i64)));
        }
    }
    if behind.is_empty() {
        return Ok(Vec::new());
    }
    let retention_ms = retention_ms(source)?;
    let mut list = TopicPartitionList::with_capacity(behind.len());
    for (partition, _, from) in &behind {
        list.add_partition_offset(&source.topic, partition.0 as i32, KafkaOffset::Offset(*from))
            .map_err(|e| unreachable(source, &e))?;
    }
    consumer.assign(&list).map_err(|e| unreachable(source, &e))?;
    let mut times: BTreeMap<i32, Option<i64>> = BTreeMap::new();
    let until = Instant::now() + LOOK_AT_RECORDS;
    while times.len() < behind.len() && Instant::now() < until {
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            times
                .entry(message.partition())
                .or_insert(message.timestamp().to_millis());
        }
    }
    let found = behind.into_iter().map(|(partition, next, _)| Unread {
        partition,
        next,
        oldest_ms: times.get(&(partition.0 as i32)).copied().flatten(),
        retention_ms,
    });
    Ok(found.collect())
}

/// How long the topic keeps records.
fn retention_ms(source: &KafkaSource) -> Result<Option<i64>, SourceError> {
    let admin: AdminClient<DefaultClientContext> = client_config(source, "tidemill.inspect")
        .create()
        .map_err(|e| unreachable(source, &e))?;
    let topic = ResourceSpecifier::Topic(&source.topic);
    let options = AdminOptions::new().request_timeout(Some(PATIENCE));
    // On a thread that may block; the answer comes from the client's own thread.
    let asked = tokio::runtime::Handle::current().block_on(admin.describe_configs([&topic], &options));
    let mut retention = None;
    for resource in asked.map_err(|e| unreachable(source, &e))? {
        let config = resource.map_err(|code| unreachable(source, &code))?;
        let value = config.get("retention.ms").and_then(|entry| entry.value.as_deref());
        retention = value.and_then(|value| value.parse::<i64>().ok()).filter(|ms| *ms >= 0);
    }
    Ok(retention)
}
