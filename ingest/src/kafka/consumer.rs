//! The consumer thread of a task: polls its partitions, decodes each run of records and appends the
//! chunk to the memtable.
//!
//! The end of a span is the offset behind the last record that was seen, never the client's `position()`,
//! which can be one too far at a partition's end (librdkafka#4844). A new assignment gets a new client: what the
//! old one had fetched goes with it, so no record of an earlier life can slip into a later one. The
//! memtable checks every chunk once more and takes only what continues a history.

use super::client_config;
use crate::budget::Account;
use crate::decode::{Decoded, JsonDecoder, SourceRecord};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tidemill_core::catalog::Pipe;
use tidemill_core::{Offset, Span, SpanKey};
use tidemill_storage::memtable::{AppendError, Chunk, Memtable};
use tokio::sync::Notify;
use tracing::{error, info, warn};

/// The most records that one run may have.
const RUN_RECORDS: usize = 16_384;
/// The most payload bytes that one run may have.
const RUN_BYTES: usize = 8 << 20;
/// The longest that a run may gather; what bounds the wait of its first record.
const RUN_TIME: Duration = Duration::from_millis(20);
/// How long an empty poll waits, and so how soon a control message is seen.
const POLL: Duration = Duration::from_millis(20);

/// How long a passing trouble is shown after it was last heard of.
const TROUBLE: Duration = Duration::from_secs(3);
/// How long to wait before a client that could not be set up is tried again.
const CONNECT_AGAIN: Duration = Duration::from_secs(1);

/// The partitions that a consumer reads. `Some(offset)` begins there; `None` goes on where the thread is.
pub type Assignment = Vec<(SpanKey, Option<Offset>)>;

/// What a consumer thread needs.
pub struct ConsumerOptions {
    /// The cluster's name, for the group under which the client shows itself to the broker.
    pub cluster: String,
    /// The pipe that it reads.
    pub pipe: Pipe,
    /// Turns records into columns.
    pub decoder: JsonDecoder,
    /// Takes the chunks.
    pub memtable: Arc<Memtable>,
    /// Says when to wait, and is told what the memtable holds.
    pub account: Account,
    /// Is notified when rows arrived, memory is short, or a partition has to be opened again.
    pub wake: Arc<Notify>,
}

/// How far a partition is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionStatus {
    /// The partition and its life.
    pub key: SpanKey,
    /// One past the newest record that a reader may see, if the broker has said.
    pub end: Option<Offset>,
    /// What keeps it from going on; empty if nothing does.
    pub waiting_for: String,
}

/// A running consumer thread. Dropping it tells the thread to end; it does not wait for it.
#[derive(Debug)]
pub struct Consumer {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    wanted: Mutex<Option<Assignment>>,
    ends: Mutex<BTreeMap<i32, i64>>,
    waits: Mutex<BTreeMap<SpanKey, String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The data under these locks is whole after every statement, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Consumer {
    /// Starts the thread, without any partition.
    pub fn start(options: ConsumerOptions) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let thread = ConsumerThread {
            options,
            shared: shared.clone(),
            positions: BTreeMap::new(),
            client: None,
            troubled: None,
        };
        let name = format!("kafka-{}", thread.options.pipe.name);
        std::thread::Builder::new().name(name).spawn(move || thread.run())?;
        Ok(Self { shared })
    }

    /// Replaces the set of partitions.
    pub fn assign(&self, partitions: Assignment) {
        *lock(&self.shared.wanted) = Some(partitions);
    }

    /// How far each partition is.
    pub fn status(&self) -> Vec<PartitionStatus> {
        let ends = lock(&self.shared.ends);
        let status = |(key, waiting_for): (&SpanKey, &String)| PartitionStatus {
            key: *key,
            end: ends.get(&(key.partition.0 as i32)).map(|end| Offset(*end as u64)),
            waiting_for: waiting_for.clone(),
        };
        lock(&self.shared.waits).iter().map(status).collect()
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

struct ConsumerThread {
    options: ConsumerOptions,
    shared: Arc<Shared>,
    /// Where each partition goes on; a partition that had to stop is not in it.
    positions: BTreeMap<i32, (SpanKey, i64)>,
    client: Option<BaseConsumer<Context>>,
    /// When a passing trouble of all partitions was last told.
    troubled: Option<Instant>,
}

impl ConsumerThread {
    fn run(mut self) {
        while !self.shared.stop.load(Ordering::Acquire) {
            let wanted = lock(&self.shared.wanted).take();
            if let Some(wanted) = wanted {
                self.take_assignment(wanted);
            }
            let Some(client) = self.client.take() else {
                if self.positions.is_empty() {
                    std::thread::sleep(POLL);
                } else {
                    // It could not be set up, and that was told; what kept it may pass.
                    std::thread::sleep(CONNECT_AGAIN);
                    self.connect();
                }
                continue;
            };
            if self.options.account.is_spent() {
                self.troubled = Some(Instant::now());
                self.wait_all("memory: the memtables of this node are at their limit");
                self.options.wake.notify_one();
                std::thread::sleep(POLL / 4);
                self.client = Some(client);
                continue;
            }
            if self.troubled.is_some_and(|at| at.elapsed() > TROUBLE) {
                self.troubled = None;
                self.wait_all("");
            }
            let (run, fault) = poll_run(&client);
            let intact = run.is_empty() || self.take_run(run);
            if fault.is_none_or(|fault| self.take_error(&client, &fault)) && intact {
                self.client = Some(client);
            } else {
                drop(client);
                self.connect();
            }
        }
    }

    fn take_assignment(&mut self, wanted: Assignment) {
        let mut positions = BTreeMap::new();
        let mut waits = BTreeMap::new();
        for (key, start) in wanted {
            let partition = key.partition.0 as i32;
            let current = self
                .positions
                .get(&partition)
                .filter(|(k, _)| *k == key)
                .map(|(_, at)| *at);
            match start.map(|offset| offset.0 as i64).or(current) {
                Some(at) => {
                    positions.insert(partition, (key, at));
                    waits.insert(key, String::new());
                }
                None => {
                    let why = lock(&self.shared.waits).get(&key).cloned();
                    waits.insert(key, why.unwrap_or_else(|| "an offset to begin at".into()));
                }
            }
        }
        self.positions = positions;
        *lock(&self.shared.waits) = waits;
        self.connect();
    }

    /// A new client at the positions.
    fn connect(&mut self) {
        self.client = None;
        if self.positions.is_empty() {
            return;
        }
        let options = &self.options;
        let group = format!("tidemill.{}.{}", options.cluster, options.pipe.name);
        let context = Context {
            shared: self.shared.clone(),
            topic: options.pipe.source.topic.clone(),
        };
        let mut list = TopicPartitionList::new();
        for (partition, (_, at)) in &self.positions {
            let added = list.add_partition_offset(&options.pipe.source.topic, *partition, KafkaOffset::Offset(*at));
            if let Err(error) = added {
                self.wait_all(&format!("the Kafka client: {error}"));
                return;
            }
        }
        let mut config = client_config(&options.pipe.source, &group);
        // Waiting for memory is no reason for the client to give up.
        config.set("max.poll.interval.ms", "86400000");
        let made: Result<BaseConsumer<Context>, _> = config.create_with_context(context);
        match made.and_then(|client| client.assign(&list).map(|()| client)) {
            Ok(client) => self.client = Some(client),
            Err(error) => {
                error!(pipe = %options.pipe.name, %error, "the Kafka client cannot be set up");
                self.wait_all(&format!("the Kafka client: {error}"));
            }
        }
    }

    /// Decodes and appends a run. Returns whether the client may go on.
    fn take_run(&mut self, run: Vec<BorrowedMessage<'_>>) -> bool {
        let mut by_partition: BTreeMap<i32, Vec<BorrowedMessage<'_>>> = BTreeMap::new();
        for message in run {
            by_partition.entry(message.partition()).or_default().push(message);
        }
        let mut intact = true;
        for (partition, messages) in by_partition {
            let Some((key, position)) = self.positions.get(&partition).copied() else {
                continue;
            };
            match self.append(key, position, &messages) {
                Ok(end) => {
                    self.positions.insert(partition, (key, end));
                    self.wait(key, "");
                }
                Err(why) => {
                    // The rest of what the client fetched for it must not follow.
                    self.positions.remove(&partition);
                    self.wait(key, &why);
                    intact = false;
                }
            }
        }
        self.options.account.report(self.options.memtable.stats().bytes);
        self.options.wake.notify_one();
        intact
    }

    /// Appends one partition's records; returns the next position, or why the partition stops.
    fn append(&self, key: SpanKey, position: i64, messages: &[BorrowedMessage<'_>]) -> Result<i64, String> {
        let headers: Vec<Option<String>> = messages.iter().map(headers_text).collect();
        let records: Vec<SourceRecord<'_>> = messages
            .iter()
            .zip(&headers)
            // Seen before: the client gives records again after a fetch was cut short.
            .filter(|(message, _)| message.offset() >= position)
            .map(|(message, headers)| SourceRecord {
                offset: message.offset(),
                timestamp_ms: message.timestamp().to_millis(),
                key: message.key(),
                payload: message.payload(),
                headers: headers.as_deref(),
            })
            .collect();
        if records.windows(2).any(|pair| pair[0].offset >= pair[1].offset) {
            return Err(format!(
                "the client gave records out of order near offset {}",
                records[0].offset
            ));
        }
        let (mut position, mut rest) = (position, records.as_slice());
        while !rest.is_empty() {
            let decoded = self.options.decoder.decode_some(key.partition.0 as i32, rest);
            let (decoded, taken) = decoded
                .map_err(|e| format!("a run of records from offset {position} cannot be put into columns: {e}"))?;
            position = self.append_decoded(key, position, &rest[..taken], decoded)?;
            rest = &rest[taken..];
        }
        Ok(position)
    }

    /// Appends what `records` became; returns the next position, or why the partition stops.
    fn append_decoded(
        &self,
        key: SpanKey,
        position: i64,
        records: &[SourceRecord<'_>],
        decoded: Decoded,
    ) -> Result<i64, String> {
        let end = records.last().map_or(position, |last| last.offset + 1);
        let span = Span {
            key,
            start: Offset(position as u64),
            end: Offset(end as u64),
            stored: decoded.rows_count(),
            rejected: decoded.rejected(),
            source_epoch: None,
        };
        match self.options.memtable.append(Chunk {
            span,
            rows: decoded.rows,
            rejects: decoded.rejects,
        }) {
            Ok(()) => Ok(end),
            Err(AppendError::Closed | AppendError::NotOpen | AppendError::OtherIncarnation) => {
                Err("being assigned anew".into())
            }
            Err(other) => {
                error!(pipe = %self.options.pipe.name, partition = %key.partition, error = %other, "the memtable refused a chunk");
                self.options.memtable.close_partition(key.pipe, key.partition);
                Err(other.to_string())
            }
        }
    }

    /// Returns whether the client may go on.
    fn take_error(&mut self, client: &BaseConsumer<Context>, error: &KafkaError) -> bool {
        let pipe = &self.options.pipe.name;
        match error {
            KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                self.stop_out_of_range(client);
                false
            }
            KafkaError::MessageConsumption(code) if passes_by_itself(*code) => {
                warn!(%pipe, error = %error, "the Kafka client reports a fault and tries on");
                self.troubled = Some(Instant::now());
                self.wait_all(&format!("the broker: {error}"));
                true
            }
            // A batch that fails its checksum or cannot be decompressed is skipped by the client, which goes on
            // behind it. Its records are not known to be absent, so read again from where we are.
            other => {
                error!(%pipe, error = %other, "the Kafka client cannot read on here; it is asked again");
                self.troubled = Some(Instant::now());
                self.wait_all(&format!("records that can be read: {other}"));
                std::thread::sleep(CONNECT_AGAIN);
                false
            }
        }
    }

    /// The client said that an offset is not there, but not of which partition: ask for each.
    fn stop_out_of_range(&mut self, client: &BaseConsumer<Context>) {
        let topic = self.options.pipe.source.topic.clone();
        let mut gone = Vec::new();
        for (partition, (key, at)) in &self.positions {
            match client.fetch_watermarks(&topic, *partition, Duration::from_secs(5)) {
                Ok((low, high)) if *at < low || *at > high => gone.push((*partition, *key, *at, low, high)),
                Ok(_) => {}
                Err(error) => warn!(%topic, partition, %error, "cannot ask for the offsets that the source still has"),
            }
        }
        for (partition, key, at, low, high) in gone {
            let why = format!("the source lost data: the next offset is {at}, the source has {low} to {high}");
            error!(pipe = %self.options.pipe.name, partition, "{why}; the partition stops");
            self.positions.remove(&partition);
            self.wait(key, &why);
        }
    }

    fn wait(&self, key: SpanKey, why: &str) {
        if let Some(wait) = lock(&self.shared.waits).get_mut(&key)
            && wait != why
        {
            why.clone_into(wait);
        }
    }

    /// Says for all partitions that still go on what they wait for.
    fn wait_all(&self, why: &str) {
        for (key, _) in self.positions.values() {
            self.wait(*key, why);
        }
    }
}

/// Whether the client gets over a fault without passing over a record.
fn passes_by_itself(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::AllBrokersDown
            | Code::BrokerTransportFailure
            | Code::BrokerNotAvailable
            | Code::CoordinatorLoadInProgress
            | Code::CoordinatorNotAvailable
            | Code::LeaderNotAvailable
            | Code::NetworkException
            | Code::NotCoordinator
            | Code::NotLeaderForPartition
            | Code::OperationTimedOut
            | Code::ReplicaNotAvailable
            | Code::RequestTimedOut
            | Code::Resolve
            | Code::UnknownPartition
            | Code::UnknownTopic
            | Code::UnknownTopicOrPartition
    )
}

/// Gathers a run. A fault behind it is given with it: the client reports some faults only once.
fn poll_run(client: &BaseConsumer<Context>) -> (Vec<BorrowedMessage<'_>>, Option<KafkaError>) {
    let mut run = Vec::new();
    let mut bytes = 0;
    let mut next = client.poll(POLL);
    let began = Instant::now();
    while let Some(message) = next {
        match message {
            Ok(message) => {
                bytes += message.payload_len();
                run.push(message);
            }
            Err(error) => return (run, Some(error)),
        }
        if run.len() >= RUN_RECORDS || bytes >= RUN_BYTES || began.elapsed() >= RUN_TIME {
            break;
        }
        next = client.poll(Duration::ZERO);
    }
    (run, None)
}

fn headers_text(message: &BorrowedMessage<'_>) -> Option<String> {
    let headers = message.headers()?;
    let pairs = headers.iter().map(|h| {
        let value = h
            .value
            .map(|v| serde_json::Value::String(String::from_utf8_lossy(v).into_owned()));
        (h.key.to_owned(), value.unwrap_or(serde_json::Value::Null))
    });
    Some(serde_json::Value::Object(pairs.collect()).to_string())
}

/// What the client calls back: statistics, logs, errors.
struct Context {
    shared: Arc<Shared>,
    topic: String,
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        let Some(topic) = statistics.topics.get(&self.topic) else {
            return;
        };
        let mut ends = lock(&self.shared.ends);
        for (partition, p) in &topic.partitions {
            // A reader of committed records sees up to the last stable offset.
            let end = if p.ls_offset >= 0 { p.ls_offset } else { p.hi_offset };
            if end >= 0 {
                ends.insert(*partition, end);
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
