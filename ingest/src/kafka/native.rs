//! The few things of librdkafka that its Rust wrapper hides, behind a safe face: the offset of an *end of partition*, the
//! partition of a fault, the leader epoch of a record (KIP-320), and the id of a topic (KIP-516).
//!
//! Everything unsafe of this crate is in this file. The rules that it rests on: a message lives as long as the event
//! that brought it, an event and a queue as long as their client; [`Reader`] owns the client and lends everything else.

#![expect(unsafe_code, reason = "calls of librdkafka's C interface")]

use super::context::Context;
use rdkafka::bindings as c;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::time::Duration;
use tidemill_core::TopicId;

/// Where a partition begins to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    /// The partition.
    pub partition: i32,
    /// The next offset.
    pub offset: i64,
    /// Leader epoch of the record before it, if known: the broker is asked whether its log still holds that record.
    pub leader_epoch: Option<i32>,
}

/// What a poll gave.
pub(super) enum Polled<'r> {
    /// Nothing, or something that was dealt with.
    Nothing,
    /// A record.
    Record(Record<'r>),
    /// Every offset of `partition` below `offset` was given, or holds nothing for a reader of committed records.
    End {
        /// The partition.
        partition: i32,
        /// One past the last offset that there is.
        offset: i64,
    },
    /// Something went wrong.
    Fault(Fault),
}

/// Something that went wrong at the source.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    /// What.
    pub code: RDKafkaErrorCode,
    /// With which partition, if with one.
    pub partition: Option<i32>,
    /// What the client says of it.
    pub reason: String,
}

/// Whether the client gets over it without passing over a record: it has to do with the brokers, and would be the same elsewhere.
pub(super) fn passes_by_itself(code: RDKafkaErrorCode) -> bool {
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

/// A client that reads assigned partitions.
pub(super) struct Reader {
    client: BaseConsumer<Context>,
    queue: NonNull<c::rd_kafka_queue_t>,
    replies: NonNull<c::rd_kafka_queue_t>,
}

// The pointers belong to the client, which may be used from any thread; the reader is moved, never shared.
unsafe impl Send for Reader {}

impl Reader {
    /// Takes over `client`, which must have a `group.id` and no assignment yet.
    pub fn new(client: BaseConsumer<Context>) -> KafkaResult<Self> {
        let handle = client.client().native_ptr();
        // Safety: the handle is valid while `client` lives, and the queues are given back before it ends.
        let (queue, replies) = unsafe { (c::rd_kafka_queue_get_consumer(handle), c::rd_kafka_queue_new(handle)) };
        match (NonNull::new(queue), NonNull::new(replies)) {
            (Some(queue), Some(replies)) => Ok(Self { client, queue, replies }),
            _ => Err(KafkaError::ClientCreation(
                "the client has no queue to read from".into(),
            )),
        }
    }

    /// The client, for what the wrapper does well.
    pub fn client(&self) -> &BaseConsumer<Context> {
        &self.client
    }

    /// Reads from `positions`, and from nothing else. Where a leader epoch is known, nothing is given before the broker
    /// has said that its log does not differ; if it does, a fault says so.
    pub fn assign(&self, topic: &str, positions: &[Position], patience: Duration) -> KafkaResult<()> {
        let mut list = TopicPartitionList::with_capacity(positions.len());
        for position in positions {
            list.add_partition_offset(topic, position.partition, KafkaOffset::Offset(position.offset))?;
        }
        self.client.assign(&list)?;
        // An assignment does not check the epoch, a seek does. What an assignment has fetched so far is outdated by
        // the seek and never given.
        let known: Vec<&Position> = positions
            .iter()
            .filter(|p| p.leader_epoch.is_some() && p.offset > 0)
            .collect();
        if known.is_empty() {
            return Ok(());
        }
        let mut list = TopicPartitionList::with_capacity(known.len());
        for position in &known {
            list.add_partition_offset(topic, position.partition, KafkaOffset::Offset(position.offset))?;
        }
        // Safety: the list has as many elements as were added, in the order of adding; the error is given back.
        unsafe {
            let raw = list.ptr();
            for (i, position) in known.iter().enumerate() {
                let epoch = position.leader_epoch.unwrap_or(-1);
                c::rd_kafka_topic_partition_set_leader_epoch((*raw).elems.add(i), epoch);
            }
            let error = c::rd_kafka_seek_partitions(self.client.client().native_ptr(), raw, millis(patience));
            if !error.is_null() {
                let code = c::rd_kafka_error_code(error);
                c::rd_kafka_error_destroy(error);
                return Err(KafkaError::SetPartitionOffset(RDKafkaErrorCode::from(code)));
            }
        }
        Ok(())
    }

    /// Waits for the next record, end or fault.
    pub fn poll(&self, timeout: Duration) -> Polled<'_> {
        // Safety: the queue is valid while the reader lives; the event is owned from here on.
        let event = unsafe { c::rd_kafka_queue_poll(self.queue.as_ptr(), millis(timeout)) };
        let Some(event) = NonNull::new(event).map(Event) else {
            return Polled::Nothing;
        };
        // Safety: the event is valid, and each accessor is called for the type that has it.
        unsafe {
            match c::rd_kafka_event_type(event.0.as_ptr()) {
                c::RD_KAFKA_EVENT_FETCH => {
                    match NonNull::new(c::rd_kafka_event_message_next(event.0.as_ptr()).cast_mut()) {
                        Some(message) => Polled::Record(Record {
                            message,
                            _event: event,
                            reader: PhantomData,
                        }),
                        None => Polled::Nothing,
                    }
                }
                c::RD_KAFKA_EVENT_STATS => {
                    let json = CStr::from_ptr(c::rd_kafka_event_stats(event.0.as_ptr()));
                    self.client.context().stats_raw(json.to_bytes());
                    Polled::Nothing
                }
                c::RD_KAFKA_EVENT_ERROR => fault(&event),
                _ => Polled::Nothing,
            }
        }
    }

    /// Asks the broker for the topic's id; [`Reader::topic_reply`] has the answer some time later.
    pub fn ask_topic(&self, topic: &str, patience: Duration) {
        describe_topic(self.client.client().native_ptr(), topic, patience, self.replies);
    }

    /// The answer to the last question, once: its id or `None` where the broker does not give ids, or why there is none.
    pub fn topic_reply(&self) -> Option<Result<Option<TopicId>, RDKafkaErrorCode>> {
        topic_id(self.replies, Duration::ZERO)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Safety: both were made for this client, which is dropped after this.
        unsafe {
            c::rd_kafka_queue_destroy(self.queue.as_ptr());
            c::rd_kafka_queue_destroy(self.replies.as_ptr());
        }
    }
}

/// The id of a topic, asked of any client; `None` where the broker does not give ids.
pub(super) fn ask_topic_id(
    client: &BaseConsumer,
    topic: &str,
    patience: Duration,
) -> Result<Option<TopicId>, RDKafkaErrorCode> {
    let handle = client.client().native_ptr();
    // Safety: the handle is valid while `client` is borrowed; the queue is given back below.
    let Some(replies) = NonNull::new(unsafe { c::rd_kafka_queue_new(handle) }) else {
        return Err(RDKafkaErrorCode::Fail);
    };
    describe_topic(handle, topic, patience, replies);
    let reply = topic_id(replies, patience).unwrap_or(Err(RDKafkaErrorCode::OperationTimedOut));
    // Safety: as above.
    unsafe { c::rd_kafka_queue_destroy(replies.as_ptr()) };
    reply
}

fn describe_topic(handle: *mut c::rd_kafka_t, topic: &str, patience: Duration, replies: NonNull<c::rd_kafka_queue_t>) {
    // A name with a NUL in it is no topic's; its question is never answered.
    let Ok(name) = CString::new(topic) else { return };
    let mut names: [*const c_char; 1] = [name.as_ptr()];
    let mut text = [0 as c_char; 256];
    // Safety: everything made here is given back here; the request copies what it needs.
    unsafe {
        let options = c::rd_kafka_AdminOptions_new(handle, c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        c::rd_kafka_AdminOptions_set_request_timeout(options, millis(patience), text.as_mut_ptr(), text.len());
        let topics = c::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        c::rd_kafka_DescribeTopics(handle, topics, options, replies.as_ptr());
        c::rd_kafka_TopicCollection_destroy(topics);
        c::rd_kafka_AdminOptions_destroy(options);
    }
}

fn topic_id(
    replies: NonNull<c::rd_kafka_queue_t>,
    wait: Duration,
) -> Option<Result<Option<TopicId>, RDKafkaErrorCode>> {
    // Safety: the queue is valid; the event owns all that is read from it.
    unsafe {
        let event = Event(NonNull::new(c::rd_kafka_queue_poll(replies.as_ptr(), millis(wait)))?);
        let code = c::rd_kafka_event_error(event.0.as_ptr());
        if code != c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Some(Err(code.into()));
        }
        let result = c::rd_kafka_event_DescribeTopics_result(event.0.as_ptr());
        if result.is_null() {
            return None;
        }
        let mut count = 0;
        let topics = c::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        if topics.is_null() || count == 0 {
            return Some(Err(RDKafkaErrorCode::UnknownTopicOrPartition));
        }
        let error = c::rd_kafka_TopicDescription_error(*topics);
        if !error.is_null() {
            return Some(Err(c::rd_kafka_error_code(error).into()));
        }
        let uuid = c::rd_kafka_TopicDescription_topic_id(*topics);
        if uuid.is_null() {
            return Some(Ok(None));
        }
        let high = c::rd_kafka_Uuid_most_significant_bits(uuid) as u64;
        let low = c::rd_kafka_Uuid_least_significant_bits(uuid) as u64;
        let id = (u128::from(high) << 64) | u128::from(low);
        Some(Ok((id != 0).then_some(TopicId(id))))
    }
}

/// A record, as long as its reader lives.
pub(super) struct Record<'r> {
    message: NonNull<c::rd_kafka_message_t>,
    _event: Event,
    reader: PhantomData<&'r Reader>,
}

impl Record<'_> {
    fn raw(&self) -> &c::rd_kafka_message_t {
        // Safety: the message lives as long as the event beside it.
        unsafe { self.message.as_ref() }
    }

    /// Its partition.
    pub fn partition(&self) -> i32 {
        self.raw().partition
    }

    /// Its offset.
    pub fn offset(&self) -> i64 {
        self.raw().offset
    }

    /// Its key, if it has one.
    pub fn key(&self) -> Option<&[u8]> {
        // Safety: librdkafka gives the length of what it points to.
        unsafe { bytes(self.raw().key, self.raw().key_len) }
    }

    /// Its payload, if it has one.
    pub fn payload(&self) -> Option<&[u8]> {
        // Safety: as above.
        unsafe { bytes(self.raw().payload, self.raw().len) }
    }

    /// Its time, milliseconds since 1970, if it has one.
    pub fn timestamp_ms(&self) -> Option<i64> {
        let mut kind = c::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // Safety: the message is valid.
        let ms = unsafe { c::rd_kafka_message_timestamp(self.message.as_ptr(), &mut kind) };
        (kind != c::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE && ms >= 0).then_some(ms)
    }

    /// The leader epoch under which it was written, if the broker says.
    pub fn leader_epoch(&self) -> Option<i32> {
        // Safety: the message is valid.
        let epoch = unsafe { c::rd_kafka_message_leader_epoch(self.message.as_ptr()) };
        (epoch >= 0).then_some(epoch)
    }

    /// Its headers in their order; a name may come more than once.
    pub fn headers(&self) -> Vec<(String, Option<&[u8]>)> {
        let mut found = Vec::new();
        // Safety: headers and what they point to belong to the message.
        unsafe {
            let mut headers = ptr::null_mut();
            let code = c::rd_kafka_message_headers(self.message.as_ptr(), &mut headers);
            if code != c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || headers.is_null() {
                return found;
            }
            let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
            while c::rd_kafka_header_get_all(headers, found.len(), &mut name, &mut value, &mut size)
                == c::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
            {
                found.push((CStr::from_ptr(name).to_string_lossy().into_owned(), bytes(value, size)));
            }
        }
        found
    }
}

/// An event that is given back when it is dropped.
struct Event(NonNull<c::rd_kafka_event_t>);

impl Drop for Event {
    fn drop(&mut self) {
        // Safety: it came from a queue and is given back once.
        unsafe { c::rd_kafka_event_destroy(self.0.as_ptr()) };
    }
}

/// # Safety
/// `event` must be of the type for errors.
unsafe fn fault(event: &Event) -> Polled<'static> {
    // Safety: the accessors are those of this type; the partition is given back.
    unsafe {
        let raw = event.0.as_ptr();
        let code = RDKafkaErrorCode::from(c::rd_kafka_event_error(raw));
        let place = c::rd_kafka_event_topic_partition(raw);
        let mut partition = None;
        if !place.is_null() {
            let (number, offset) = ((*place).partition, (*place).offset);
            c::rd_kafka_topic_partition_destroy(place);
            partition = (number >= 0).then_some(number);
            if code == RDKafkaErrorCode::PartitionEOF {
                return Polled::End {
                    partition: number,
                    offset,
                };
            }
        }
        let reason = c::rd_kafka_event_error_string(raw);
        let reason = match reason.is_null() {
            true => code.to_string(),
            false => CStr::from_ptr(reason).to_string_lossy().into_owned(),
        };
        Polled::Fault(Fault {
            code,
            partition,
            reason,
        })
    }
}

/// # Safety
/// `at` must be null or point to `length` bytes that live as long as `'b`.
unsafe fn bytes<'b>(at: *const c_void, length: usize) -> Option<&'b [u8]> {
    // Safety: as the caller promises.
    (!at.is_null()).then(|| unsafe { std::slice::from_raw_parts(at.cast(), length) })
}

fn millis(time: Duration) -> c_int {
    c_int::try_from(time.as_millis()).unwrap_or(c_int::MAX)
}
