//! How long a source keeps what is still to be read. Blocking; call it off the runtime.

use super::inspect::{PATIENCE, connect, unreachable};
use super::{SourceError, client_config};
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::Consumer as _;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tidemill_core::catalog::KafkaSource;
use tidemill_core::{Offset, PartitionId};

/// How long records may take to come when only their times are wanted.
const LOOK_AT_RECORDS: Duration = Duration::from_secs(3);
/// Bytes of a batch with one record, but for what is in the record.
const RECORD_OVERHEAD: usize = 70;

/// What of a partition is still to be read.
#[derive(Clone, Debug, PartialEq)]
pub struct Unread {
    /// The partition.
    pub partition: PartitionId,
    /// The next offset to be committed.
    pub next: Offset,
    /// How many offsets there are from the oldest that the source still has on.
    pub records: u64,
    /// Bytes of a record of this partition, on average over those that were looked at: at most so many, uncompressed.
    pub record_bytes: Option<f64>,
    /// The time of the oldest record from there on, milliseconds since 1970, if the source said.
    pub oldest_ms: Option<i64>,
    /// How long the topic keeps records, in milliseconds; `None` if for ever.
    pub retention_ms: Option<i64>,
    /// How many bytes of each partition the topic keeps; `None` if all.
    pub retention_bytes: Option<u64>,
}

/// The partitions, of those at these next offsets, that have records to be read. Reads one record of each.
pub fn unread(source: &KafkaSource, places: &[(PartitionId, Offset)]) -> Result<Vec<Unread>, SourceError> {
    let consumer = connect(source)?;
    let mut behind: BTreeMap<i32, Unread> = BTreeMap::new();
    let mut list = TopicPartitionList::with_capacity(places.len());
    for (partition, next) in places {
        let number = partition.0 as i32;
        let marks = consumer.fetch_watermarks(&source.topic, number, PATIENCE);
        let (low, high) = marks.map_err(|e| unreachable(source, &e))?;
        if (next.0 as i64) >= high {
            continue;
        }
        let from = low.max(next.0 as i64);
        list.add_partition_offset(&source.topic, number, KafkaOffset::Offset(from))
            .map_err(|e| unreachable(source, &e))?;
        let unread = Unread {
            partition: *partition,
            next: *next,
            records: (high - from).unsigned_abs(),
            record_bytes: None,
            oldest_ms: None,
            retention_ms: None,
            retention_bytes: None,
        };
        behind.insert(number, unread);
    }
    if behind.is_empty() {
        return Ok(Vec::new());
    }
    let (retention_ms, retention_bytes) = retention(source)?;
    consumer.assign(&list).map_err(|e| unreachable(source, &e))?;
    // Of each partition, how many records were looked at.
    let mut seen: BTreeMap<i32, f64> = BTreeMap::new();
    let until = Instant::now() + LOOK_AT_RECORDS;
    while seen.len() < behind.len() && Instant::now() < until {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else {
            continue;
        };
        let Some(unread) = behind.get_mut(&message.partition()) else {
            continue;
        };
        let records = seen.entry(message.partition()).or_default();
        if *records == 0.0 {
            unread.oldest_ms = message.timestamp().to_millis();
        }
        *records += 1.0;
        let (bytes, mean) = (bytes_of(&message) as f64, unread.record_bytes.unwrap_or_default());
        unread.record_bytes = Some(mean + (bytes - mean) / *records);
    }
    let found = behind.into_values().map(|unread| Unread {
        retention_ms,
        retention_bytes,
        ..unread
    });
    Ok(found.collect())
}

/// At most so many bytes of the log does a record take, if it is not compressed: it may be alone in its batch.
fn bytes_of(message: &BorrowedMessage<'_>) -> usize {
    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
    let headers = headers.map(|h| h.key.len() + h.value.map_or(0, <[u8]>::len));
    RECORD_OVERHEAD + message.key_len() + message.payload_len() + headers.sum::<usize>()
}

/// How long the topic keeps records, in milliseconds, and how many bytes of each partition.
fn retention(source: &KafkaSource) -> Result<(Option<i64>, Option<u64>), SourceError> {
    let admin: AdminClient<DefaultClientContext> = client_config(source, "tidemill.inspect")
        .create()
        .map_err(|e| unreachable(source, &e))?;
    let topic = ResourceSpecifier::Topic(&source.topic);
    let options = AdminOptions::new().request_timeout(Some(PATIENCE));
    // On a thread that may block; the answer comes from the client's own thread.
    let asked = tokio::runtime::Handle::current().block_on(admin.describe_configs([&topic], &options));
    let mut retention = (None, None);
    for resource in asked.map_err(|e| unreachable(source, &e))? {
        let config = resource.map_err(|code| unreachable(source, &code))?;
        let value = |name: &str| config.get(name).and_then(|entry| entry.value.as_deref());
        // What is only compacted never expires.
        if value("cleanup.policy").is_none_or(|policy| policy.contains("delete")) {
            // -1 is for ever, and all.
            let limit = |name: &str| value(name)?.parse::<i64>().ok().filter(|limit| *limit >= 0);
            retention = (limit("retention.ms"), limit("retention.bytes").map(i64::unsigned_abs));
        }
    }
    Ok(retention)
}
