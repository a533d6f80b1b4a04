//! The consumer thread of a task: polls its partitions and hands each run of records on to be appended.
//!
//! The end of a span is the offset behind the last record that was seen, or the offset of an *end of partition* event,
//! below which nothing is left to be given; never the client's `position()`, which can be one too far at a partition's
//! end (librdkafka#4844). A new assignment gets a new client: what the old one had fetched goes with it, so no record
//! of an earlier life can slip into a later one. The memtable checks every chunk once more and takes only what
//! continues a history.
//!
//! When the source is not what it was, the partition stops here at once, and the reason is handed to the task, which
//! writes it into the catalog. The thread decides nothing about where to go on.

use super::assignment::Assignment;
use super::context::Context;
use super::native::{Fault, Position, Reader, passes_by_itself};
use super::run::{self, Halt, Place, Runs, Taken, poll_run};
use super::status::{Ends, PartitionStatus, Read, Waits};
use super::topic::TopicCheck;
use super::{client_config, loss};
use crate::budget::{Account, Fetching};
use crate::freshness::Freshness;
use crate::log::ShardLog;
use crate::priority::{Claim, Priority};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tidemill_core::catalog::{Pipe, Table};
use tidemill_core::stop::StopReason;
use tidemill_core::wait::Wait;
use tidemill_core::{Offset, PartitionId, SpanKey, TopicId};
use tidemill_storage::memtable::{Chunk, Memtable};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{debug, error, warn};

/// How long an empty poll waits, and so how soon a control message is seen.
const POLL: Duration = Duration::from_millis(20);

/// How long a passing trouble is shown after it was last heard of.
const TROUBLE: Duration = Duration::from_secs(3);
/// How long to wait before a client that could not be set up is tried again.
const CONNECT_AGAIN: Duration = Duration::from_secs(1);
/// How often Kafka is told what is committed.
const TELL_GROUP: Duration = Duration::from_secs(1);
/// How long the broker may take to compare leader epochs when an assignment begins.
const SEEK: Duration = Duration::from_secs(5);

/// What a consumer thread needs.
pub struct ConsumerOptions {
    /// The cluster's name, for the group under which the client shows itself to the broker.
    pub cluster: String,
    /// The table that it fills.
    pub table: Arc<Table>,
    /// The pipe that it reads.
    pub pipe: Pipe,
    /// Takes the chunks.
    pub memtable: Arc<Memtable>,
    /// Takes them before, if the table asks for it.
    pub log: ShardLog,
    /// Says when to wait, and is told what the memtable holds.
    pub account: Account,
    /// Says who reads first.
    pub priority: Arc<Priority>,
    /// Is notified when rows arrived, memory is short, or a partition has to be opened again.
    pub wake: Arc<Notify>,
    /// Is told how old records are when they can be queried.
    pub freshness: Arc<Freshness>,
    /// Takes the partitions that had to stop, and why.
    pub stops: UnboundedSender<(SpanKey, StopReason)>,
    /// Whether it reads for a standby: then it stops no partition and gives way to those that read for leaders.
    pub standby: Arc<AtomicBool>,
}

/// A running consumer thread. Dropping it tells the thread to end; it does not wait for it.
#[derive(Debug)]
pub struct Consumer {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    stop: AtomicBool,
    quiet: AtomicBool,
    wanted: Mutex<Option<(Pipe, Assignment)>>,
    pub ends: Mutex<BTreeMap<i32, Ends>>,
    pub read: Mutex<BTreeMap<i32, Read>>,
    /// Committed offsets that Kafka has not been told yet.
    committed: Mutex<BTreeMap<i32, i64>>,
    pub waits: Waits,
    pub topic: Arc<TopicCheck>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The data under these locks is whole after every statement, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Consumer {
    /// Starts the thread, without any partition.
    pub fn start(options: ConsumerOptions) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let thread = ConsumerThread {
            fetching: options.account.fetch(),
            runs: Runs::new(&options),
            claim: options.priority.claim(),
            standby: options.standby.load(Ordering::Acquire),
            options,
            shared: shared.clone(),
            places: BTreeMap::new(),
            reader: None,
            troubled: None,
            told: BTreeMap::new(),
            told_at: Instant::now(),
        };
        let name = format!("kafka-{}", thread.options.pipe.name);
        std::thread::Builder::new().name(name).spawn(move || thread.run())?;
        Ok(Self { shared })
    }

    /// Replaces the set of partitions and what is known of the pipe.
    pub fn assign(&self, pipe: Pipe, partitions: Assignment) {
        *lock(&self.shared.wanted) = Some((pipe, partitions));
    }

    /// Reads no further, or reads on. Quiet, it still answers whether the topic is what it was.
    pub fn set_quiet(&self, quiet: bool) {
        self.shared.quiet.store(quiet, Ordering::Release);
    }

    /// Tells Kafka some time that everything below `offset` is committed, for tools that look at groups. Nothing waits
    /// for it and nothing is ever read back.
    pub fn show_committed(&self, partition: PartitionId, offset: Offset) {
        lock(&self.shared.committed).insert(partition.0 as i32, offset.0 as i64);
    }

    /// Whether the topic is still what it was.
    pub fn topic(&self) -> &Arc<TopicCheck> {
        &self.shared.topic
    }

    /// How far each partition is.
    pub fn status(&self) -> Vec<PartitionStatus> {
        let reading = !self.shared.quiet.load(Ordering::Acquire);
        let ends = lock(&self.shared.ends).clone();
        let read = lock(&self.shared.read).clone();
        self.shared.waits.status(&ends, &read, reading)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

struct ConsumerThread {
    options: ConsumerOptions,
    runs: Runs,
    /// How much the client may fetch.
    fetching: Fetching,
    claim: Claim,
    shared: Arc<Shared>,
    /// Whether what is found now is found by a standby.
    standby: bool,
    /// Where each partition goes on; a partition that had to stop is not in it.
    places: BTreeMap<i32, Place>,
    reader: Option<Reader>,
    /// When a passing trouble of all partitions was last told.
    troubled: Option<Instant>,
    /// What Kafka was told of the group, and when.
    told: BTreeMap<i32, i64>,
    told_at: Instant,
}

impl ConsumerThread {
    fn run(mut self) {
        while !self.shared.stop.load(Ordering::Acquire) {
            // Before the assignment: once it reads for a leader, it has the places that the leader gave it.
            self.standby = self.options.standby.load(Ordering::Acquire);
            let wanted = lock(&self.shared.wanted).take();
            if let Some((pipe, wanted)) = wanted {
                self.take_assignment(pipe, wanted);
            }
            let Some(reader) = self.reader.take() else {
                if self.places.is_empty() {
                    std::thread::sleep(POLL);
                } else {
                    // It could not be set up, and that was told; what kept it may pass.
                    std::thread::sleep(CONNECT_AGAIN);
                    self.connect();
                }
                continue;
            };
            if self.look(&reader) {
                self.reader = Some(reader);
            } else {
                drop(reader);
                self.connect();
            }
        }
    }

    /// One look at the source. Returns whether the client may go on.
    fn look(&mut self, reader: &Reader) -> bool {
        if !self.check_topic(reader) {
            return false;
        }
        self.tell_group(reader);
        if self.shared.quiet.load(Ordering::Acquire) {
            std::thread::sleep(POLL);
            return true;
        }
        if self.standby {
            if self.claim.gives_way_to_leaders() || self.options.account.must_yield() {
                std::thread::sleep(POLL / 4);
                return true;
            }
        } else if !self.behind().is_empty() {
            self.claim.lead();
        }
        self.claim.hold(!self.standby && self.is_urgent());
        if self.claim.gives_way() {
            self.wait_for_turn();
            std::thread::sleep(POLL / 4);
            return true;
        }
        if self.options.account.is_spent() {
            self.claim.progressed();
            self.troubled = Some(Instant::now());
            self.wait_all(Some(Wait::Memory));
            self.options.wake.notify_one();
            std::thread::sleep(POLL / 4);
            return true;
        }
        if self.troubled.is_some_and(|at| at.elapsed() > TROUBLE) {
            self.troubled = None;
            self.wait_all(None);
        }
        let (run, fault) = poll_run(reader, POLL, self.fetching.payload());
        let mut intact = true;
        if !run.is_empty() {
            self.claim.progressed();
            intact = self.take_run(run);
        }
        fault.is_none_or(|fault| self.take_fault(reader, &fault)) && intact
    }

    /// The partitions in which there is something to be read, as far as is known.
    fn behind(&self) -> Vec<&Place> {
        let ends = lock(&self.shared.ends);
        let is_behind =
            |(n, place): &(&i32, &Place)| ends.get(n).is_none_or(|ends| !ends.known || place.next < ends.stable);
        self.places.iter().filter(is_behind).map(|(_, place)| place).collect()
    }

    /// Whether there is something to be read that expires soon.
    fn is_urgent(&self) -> bool {
        let urgent = self.options.priority.urgent();
        // Most of the time nothing is, and this is asked before every run.
        let is_urgent = |place: &&Place| urgent.contains(&(place.key.pipe, place.key.partition));
        !urgent.is_empty() && self.behind().iter().any(is_urgent)
    }

    /// Says so where nothing else is in the way.
    fn wait_for_turn(&mut self) {
        let mut waits = false;
        for place in self.behind() {
            if self.shared.waits.of(&place.key).is_none() {
                self.shared.waits.set(place.key, Some(Wait::Turn));
                waits = true;
            }
        }
        if waits {
            self.troubled = Some(Instant::now());
        }
    }

    fn tell_group(&mut self, reader: &Reader) {
        if self.told_at.elapsed() < TELL_GROUP || !self.options.pipe.settings.commit_to_group {
            return;
        }
        self.told_at = Instant::now();
        let mut committed = std::mem::take(&mut *lock(&self.shared.committed));
        committed.retain(|partition, offset| self.told.get(partition) != Some(offset));
        if committed.is_empty() {
            return;
        }
        self.told.extend(&committed);
        let mut list = TopicPartitionList::with_capacity(committed.len());
        for (partition, offset) in committed {
            // A list that does not take an offset is none that Kafka could be told.
            _ = list.add_partition_offset(self.options.pipe.source.topic(), partition, KafkaOffset::Offset(offset));
        }
        if let Err(error) = reader.client().commit(&list, CommitMode::Async) {
            debug!(pipe = %self.options.pipe.name, %error, "Kafka does not take the group's offsets");
        }
    }

    fn take_assignment(&mut self, pipe: Pipe, wanted: Assignment) {
        let mut places = BTreeMap::new();
        let mut waits = BTreeMap::new();
        for assigned in wanted {
            let partition = assigned.key.partition.0 as i32;
            let current = self.places.remove(&partition).filter(|place| place.key == assigned.key);
            match (assigned.start, current) {
                (None, Some(current)) => {
                    places.insert(partition, current);
                    waits.insert(assigned.key, None);
                }
                (Some(start), _) => {
                    places.insert(partition, Place::begin(&assigned, start));
                    waits.insert(assigned.key, None);
                }
                (None, None) => {
                    let before = self.shared.waits.of(&assigned.key);
                    let wait = before.unwrap_or_else(|| Wait::Assignment("an offset to begin at".into()));
                    waits.insert(assigned.key, Some(wait));
                }
            }
        }
        self.places = places;
        self.shared.waits.replace(waits);
        self.options.pipe = pipe;
        self.runs = Runs::new(&self.options);
        self.shared.topic.forget();
        self.connect();
    }

    /// A new client at the places.
    fn connect(&mut self) {
        self.reader = None;
        if self.places.is_empty() {
            return;
        }
        match self.try_connect() {
            Ok(reader) => self.reader = Some(reader),
            Err(error) => {
                error!(pipe = %self.options.pipe.name, %error, "the Kafka client cannot be set up");
                // While no broker answers, another node could not set it up either.
                let passes = error.rdkafka_error_code().is_some_and(passes_by_itself);
                let wait = if passes { Wait::Broker } else { Wait::Client };
                self.wait_all(Some(wait(error.to_string())));
            }
        }
    }

    fn try_connect(&self) -> Result<Reader, KafkaError> {
        let options = &self.options;
        let context = Context {
            shared: self.shared.clone(),
            topic: options.pipe.source.topic().to_owned(),
        };
        let source = options.pipe.source.kafka();
        let source = source.ok_or_else(|| KafkaError::ClientCreation("the pipe reads no topic".to_owned()))?;
        let mut config = client_config(source, &super::group_of(&options.cluster, &options.pipe.name));
        super::limit_fetching(&mut config, self.fetching.payload());
        // Waiting for memory is no reason for the client to give up.
        config.set("max.poll.interval.ms", "86400000");
        let client: BaseConsumer<Context> = config.create_with_context(context)?;
        let reader = Reader::new(client)?;
        let position = |(partition, place): (&i32, &Place)| Position {
            partition: *partition,
            offset: place.next,
            leader_epoch: place.source_epoch,
        };
        let positions: Vec<Position> = self.places.iter().map(position).collect();
        reader.assign(options.pipe.source.topic(), &positions, SEEK)?;
        self.shared.topic.ask_anew();
        Ok(reader)
    }

    /// Decodes and appends a run. Returns whether the client may go on.
    fn take_run(&mut self, run: Vec<Taken<'_>>) -> bool {
        let mut by_partition: BTreeMap<i32, Vec<Taken<'_>>> = BTreeMap::new();
        for taken in run {
            by_partition.entry(taken.partition()).or_default().push(taken);
        }
        let (mut chunks, mut decoded) = (Vec::new(), Vec::new());
        for (partition, taken) in by_partition {
            let Some(place) = self.places.get_mut(&partition) else {
                continue;
            };
            let bytes: u64 = taken.iter().map(Taken::bytes).sum();
            let records = taken.iter().filter(|t| matches!(t, Taken::Record(_))).count() as u64;
            let to_ms = taken.iter().rev().find_map(Taken::timestamp_ms);
            lock(&self.shared.read)
                .entry(partition)
                .or_default()
                .observe(records, bytes, to_ms);
            let before = chunks.len();
            let done = self.runs.decode(&self.options, place, &taken, &mut chunks);
            decoded.push((partition, taken, chunks.len() - before, done));
        }
        // All of the run at once: its partitions share the wait for the disk. Nothing is shown that could be forgotten.
        // What was read for a standby is not, although it may lead by now: the log knows only what leaders have read.
        let to_log = if self.standby { &[][..] } else { &chunks };
        let logged = self.options.log.append(to_log).map_err(|error| {
            error!(pipe = %self.options.pipe.name, %error, "a run cannot be logged");
            // They begin anew, at the latest in the next process.
            for key in chunks.iter().map(|chunk| chunk.span.key) {
                self.options.memtable.close_partition(key.pipe, key.partition);
            }
            Wait::Assignment(format!("the write-ahead log: {error}"))
        });
        let (mut chunks, mut intact) = (chunks.into_iter(), true);
        for (partition, taken, count, done) in decoded {
            let own: Vec<Chunk> = chunks.by_ref().take(count).collect();
            let shown = match &logged {
                Ok(()) => run::show(&self.options, own),
                Err(why) => Err(Halt::Wait(why.clone())),
            };
            // What a standby reads cannot be queried.
            if shown.is_ok() && done.is_ok() && !self.standby {
                let times = taken.iter().filter_map(Taken::timestamp_ms);
                self.options.freshness.observe(times);
            }
            intact &= self.went_on(partition, shown.and(done));
        }
        self.options.account.observe(&self.options.memtable);
        self.options.wake.notify_one();
        intact
    }

    /// Takes note of how a run of a partition ended. Returns whether the client may go on.
    fn went_on(&mut self, partition: i32, done: Result<(), Halt>) -> bool {
        let Some(place) = self.places.get(&partition) else {
            return false;
        };
        let key = place.key;
        match done {
            Ok(()) if place.is_complete() => {
                self.places.remove(&partition);
                self.shared.waits.set(key, Some(Wait::Done));
            }
            Ok(()) => {
                self.shared.waits.set(key, None);
                return true;
            }
            Err(Halt::Stop(reason)) => self.stop(partition, reason),
            Err(Halt::Wait(wait)) => {
                self.places.remove(&partition);
                if self.standby {
                    // What it does not read on must not be taken over.
                    self.options.memtable.close_partition(key.pipe, key.partition);
                }
                self.shared.waits.set(key, Some(wait));
            }
        }
        // The rest of what the client fetched for it must not follow, and it would go on fetching it.
        false
    }

    /// Returns whether the client may go on.
    fn take_fault(&mut self, reader: &Reader, fault: &Fault) -> bool {
        let pipe = &self.options.pipe.name;
        match fault.code {
            RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange => {
                self.find_loss(reader, fault);
                false
            }
            // Who may not use groups reads on; only tools that look at groups see nothing.
            RDKafkaErrorCode::GroupAuthorizationFailed => {
                debug!(%pipe, error = %fault.reason, "Kafka does not take the group's offsets");
                true
            }
            code if passes_by_itself(code) => {
                warn!(%pipe, error = %fault.reason, "the Kafka client reports a fault and tries on");
                self.troubled = Some(Instant::now());
                self.wait_all(Some(Wait::Broker(fault.reason.clone())));
                true
            }
            // A batch that fails its checksum or cannot be decompressed is skipped by the client, which goes on
            // behind it. Its records are not known to be absent, so read again from where we are.
            _ => {
                error!(%pipe, error = %fault.reason, "the Kafka client cannot read on here; it is asked again");
                self.troubled = Some(Instant::now());
                self.wait_all(Some(Wait::Client(fault.reason.clone())));
                std::thread::sleep(CONNECT_AGAIN);
                false
            }
        }
    }

    /// The client said that an offset is not there, or that the log was cut: find out what happened.
    fn find_loss(&mut self, reader: &Reader, fault: &Fault) {
        // A recreated topic looks like any of the others; ask for that first.
        let topic = self.options.pipe.source.topic();
        if self
            .shared
            .topic
            .ask_and_wait(reader, topic, &self.expected_topics(), || self.highs())
        {
            self.stop_recreated();
        }
        let concerned: Vec<Place> = match fault.partition {
            Some(partition) => self.places.get(&partition).cloned().into_iter().collect(),
            None => self.places.values().cloned().collect(),
        };
        for place in concerned {
            match loss::find(reader.client(), self.options.pipe.source.topic(), &place, fault) {
                Some(reason) => self.stop(place.key.partition.0 as i32, reason),
                None => {
                    warn!(partition = %place.key.partition, reason = %fault.reason, "cannot tell what the source lost; it is asked again");
                    let wait = Wait::Broker(fault.reason.clone());
                    self.shared.waits.set(place.key, Some(wait));
                    std::thread::sleep(CONNECT_AGAIN);
                }
            }
        }
    }

    /// Takes the broker's word on which topic this is. Returns whether the client may go on.
    fn check_topic(&mut self, reader: &Reader) -> bool {
        let topic = self.options.pipe.source.topic();
        self.shared
            .topic
            .serve(reader, topic, &self.expected_topics(), || self.highs());
        if self.shared.topic.is_other() {
            self.stop_recreated();
            return false;
        }
        true
    }

    fn expected_topics(&self) -> Vec<TopicId> {
        self.places.values().filter_map(|place| place.topic).collect()
    }

    fn highs(&self) -> BTreeMap<i32, i64> {
        lock(&self.shared.ends)
            .iter()
            .filter(|(_, ends)| ends.known)
            .map(|(p, ends)| (*p, ends.high))
            .collect()
    }

    fn stop_recreated(&mut self) {
        let Some((topic, known_ends)) = self.shared.topic.other() else {
            return;
        };
        let concerned = |place: &Place| place.topic.is_some_and(|known| known != topic);
        let gone: Vec<i32> = self
            .places
            .iter()
            .filter(|(_, p)| concerned(p))
            .map(|(n, _)| *n)
            .collect();
        for partition in gone {
            let known_end = known_ends.get(&partition).map(|end| Offset((*end).max(0) as u64));
            self.stop(partition, StopReason::TopicRecreated { topic, known_end });
        }
    }

    /// Reads a partition no further, and tells the task why.
    fn stop(&mut self, partition: i32, reason: StopReason) {
        let Some(Place { key, next, .. }) = self.places.remove(&partition) else {
            return;
        };
        let why = reason.explain(&self.options.pipe.name, key.partition, Offset(next as u64));
        if self.standby {
            // Its place is not the leader's. Whoever leads finds what is to be found at the committed offset.
            debug!(pipe = %self.options.pipe.name, partition = %key.partition, "{why}; the standby does not go on");
            self.options.memtable.close_partition(key.pipe, key.partition);
            return self.shared.waits.set(key, Some(Wait::Assignment(why)));
        }
        error!(pipe = %self.options.pipe.name, partition = %key.partition, "{why}; the partition stops");
        if reason.drops_what_was_read() {
            // On which side of the break these rows lie is not known: they are read again, if they are there.
            self.options.memtable.close_partition(key.pipe, key.partition);
        }
        self.shared.waits.set(key, Some(Wait::Operator(why)));
        // Nobody listens any more when the task has ended; the next one finds the same.
        _ = self.options.stops.send((key, reason));
        self.options.wake.notify_one();
    }

    /// Says for all partitions that still go on what they wait for.
    fn wait_all(&self, wait: Option<Wait>) {
        for place in self.places.values() {
            self.shared.waits.set(place.key, wait.clone());
        }
    }
}
