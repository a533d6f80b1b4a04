//! From a poll to chunks, and those into the memtable: a run is gathered, gaps are measured, records decoded, the span counted.
//!
//! Two of the ledger's terms are counted here, apart from each other: *delivered* by the records that the client gave,
//! *absent* by the gaps between their offsets. What the decoder says of them comes third; the memtable refuses a chunk
//! whose terms do not add up.

use super::assignment::{Assigned, Start};
use super::consumer::ConsumerOptions;
use super::native::{Fault, Polled, Reader, Record};
use crate::decode::{Decoded, JsonDecoder, SourceRecord, first_rejected};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tidemill_core::catalog::OnError;
use tidemill_core::stop::StopReason;
use tidemill_core::wait::Wait;
use tidemill_core::{Counts, Offset, Span, SpanKey, TopicId};
use tidemill_storage::memtable::{AppendError, Chunk};
use tracing::error;

/// The most records that one run may have.
const RUN_RECORDS: usize = 16_384;
/// The most payload bytes that one run may have, however much memory there is.
const RUN_BYTES: u64 = 8 << 20;
/// The longest that a run may gather; what bounds the wait of its first record.
const RUN_TIME: Duration = Duration::from_millis(20);

/// How many records `max_rejected_ratio` looks back at, and how many there must be before it says anything.
const RATIO_WINDOW: u64 = 1_000;
const RATIO_LEAST: u64 = 100;

/// What a poll took from the source.
pub(super) enum Taken<'r> {
    /// A record.
    Record(Record<'r>),
    /// Below `offset` nothing is left to be given.
    End {
        /// The partition.
        partition: i32,
        /// One past the last offset that there is.
        offset: i64,
    },
}

impl Taken<'_> {
    pub fn partition(&self) -> i32 {
        match self {
            Taken::Record(record) => record.partition(),
            Taken::End { partition, .. } => *partition,
        }
    }

    /// Bytes of key and payload.
    pub fn bytes(&self) -> u64 {
        match self {
            Taken::Record(record) => {
                let length = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len) as u64;
                length(record.key()) + length(record.payload())
            }
            Taken::End { .. } => 0,
        }
    }

    /// The time of the record, milliseconds since 1970.
    pub fn timestamp_ms(&self) -> Option<i64> {
        match self {
            Taken::Record(record) => record.timestamp_ms(),
            Taken::End { .. } => None,
        }
    }
}

/// Waits for a first record and gathers a run of at most `most_bytes`. A fault behind it is given with it: the client
/// reports some faults only once.
pub(super) fn poll_run(reader: &Reader, wait: Duration, most_bytes: u64) -> (Vec<Taken<'_>>, Option<Fault>) {
    let mut run = Vec::new();
    let mut bytes = 0;
    let mut next = reader.poll(wait);
    let began = Instant::now();
    loop {
        match next {
            Polled::Nothing => return (run, None),
            Polled::Fault(fault) => return (run, Some(fault)),
            Polled::End { partition, offset } => run.push(Taken::End { partition, offset }),
            Polled::Record(record) => {
                bytes += record.payload().map_or(0, <[u8]>::len) as u64;
                run.push(Taken::Record(record));
            }
        }
        if run.len() >= RUN_RECORDS || bytes >= most_bytes.min(RUN_BYTES) || began.elapsed() >= RUN_TIME {
            return (run, None);
        }
        next = reader.poll(Duration::ZERO);
    }
}

/// Where a partition is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub key: SpanKey,
    /// The next offset.
    pub next: i64,
    /// Leader epoch of the record before it, if known.
    pub source_epoch: Option<i32>,
    /// The topic that the offsets belong to, if known.
    pub topic: Option<TopicId>,
    until: Option<i64>,
    recent: Recent,
}

impl Place {
    pub fn begin(assigned: &Assigned, start: Start) -> Self {
        Self {
            key: assigned.key,
            next: start.offset.0 as i64,
            source_epoch: start.source_epoch,
            topic: assigned.topic,
            until: assigned.until.map(|until| until.0 as i64),
            recent: Recent::default(),
        }
    }

    /// Whether everything that it shall read is read.
    pub fn is_complete(&self) -> bool {
        self.until.is_some_and(|until| self.next >= until)
    }
}

/// Why a partition does not go on.
pub(super) enum Halt {
    /// It stops until an operator says how it goes on.
    Stop(StopReason),
    /// It waits; the task sets it going again.
    Wait(Wait),
}

/// Appends runs for one pipe.
pub(super) struct Runs {
    decoder: JsonDecoder,
}

impl Runs {
    pub fn new(options: &ConsumerOptions) -> Self {
        Self {
            decoder: JsonDecoder::new(&options.table, &options.pipe.format, options.pipe.source.topic()),
        }
    }

    /// Makes chunks of what was taken of one partition, in its order, and moves `place` behind them. What comes before
    /// a halt is among them.
    pub fn decode(
        &self,
        options: &ConsumerOptions,
        place: &mut Place,
        taken: &[Taken<'_>],
        chunks: &mut Vec<Chunk>,
    ) -> Result<(), Halt> {
        let limit = place.until.unwrap_or(i64::MAX);
        let mut records: Vec<&Record<'_>> = Vec::with_capacity(taken.len());
        let mut end = place.next;
        for item in taken {
            match item {
                // Seen before: the client gives records again after a fetch was cut short.
                Taken::Record(record) if record.offset() < place.next => {}
                Taken::Record(record) if record.offset() < end => {
                    let at = record.offset();
                    let why = format!("the client gave records out of order near offset {at}");
                    return Err(Halt::Wait(Wait::Assignment(why)));
                }
                // Behind the end of a backfill: its last offsets held no record.
                Taken::Record(record) if record.offset() >= limit => end = limit,
                Taken::Record(record) => {
                    end = record.offset() + 1;
                    records.push(record);
                }
                Taken::End { offset, .. } => end = end.max((*offset).min(limit)),
            }
        }
        if end == place.next {
            return Ok(());
        }
        let headers: Vec<Option<String>> = records.iter().map(|record| headers_text(record)).collect();
        let sources: Vec<SourceRecord<'_>> = records
            .iter()
            .zip(&headers)
            .map(|(record, headers)| SourceRecord {
                offset: record.offset(),
                timestamp_ms: record.timestamp_ms(),
                key: record.key(),
                payload: record.payload(),
                headers: headers.as_deref(),
            })
            .collect();
        self.decode_records(options, place, &records, &sources, end, chunks)
    }

    /// Makes of `sources` the offsets from the place up to `end`: one chunk, or more if they do not fit into one.
    fn decode_records(
        &self,
        options: &ConsumerOptions,
        place: &mut Place,
        records: &[&Record<'_>],
        sources: &[SourceRecord<'_>],
        end: i64,
        chunks: &mut Vec<Chunk>,
    ) -> Result<(), Halt> {
        let partition = place.key.partition.0 as i32;
        let mut done = 0;
        loop {
            let (records, sources) = (&records[done..], &sources[done..]);
            let (decoded, taken) = self.decoder.decode_some(partition, sources).map_err(|e| {
                let from = place.next;
                let why = format!("a run of records from offset {from} cannot be put into columns: {e}");
                Halt::Wait(Wait::Assignment(why))
            })?;
            if options.pipe.settings.on_error == OnError::Halt
                && let Some((offset, error)) = first_rejected(&decoded)
            {
                // What comes before it is taken, and nothing else: the partition stops in front of it.
                let good = sources.partition_point(|source| source.offset < offset);
                if offset > place.next {
                    self.decode_records(options, place, &records[..good], &sources[..good], offset, chunks)?;
                }
                let offset = Offset(offset as u64);
                return Err(Halt::Stop(StopReason::BadRecord { offset, error }));
            }
            let last = taken == sources.len();
            let chunk_end = if last { end } else { sources[taken - 1].offset + 1 };
            let (records, sources) = (&records[..taken], &sources[..taken]);
            chunks.push(chunk(place, records, sources, chunk_end, decoded));
            check_rejected(options, place)?;
            if last {
                return Ok(());
            }
            done += taken;
        }
    }
}

/// The headers of a record as a JSON object in text, if it has any.
fn headers_text(record: &Record<'_>) -> Option<String> {
    let headers = record.headers();
    if headers.is_empty() {
        return None;
    }
    let pairs = headers.into_iter().map(|(name, value)| {
        let value = value.map(|v| serde_json::Value::String(String::from_utf8_lossy(v).into_owned()));
        (name, value.unwrap_or(serde_json::Value::Null))
    });
    Some(serde_json::Value::Object(pairs.collect()).to_string())
}

/// What `sources` became, as the offsets from the place up to `end`; moves the place there.
fn chunk(
    place: &mut Place,
    records: &[&Record<'_>],
    sources: &[SourceRecord<'_>],
    end: i64,
    decoded: Decoded,
) -> Chunk {
    let key = place.key;
    let counts = Counts {
        delivered: sources.len() as u64,
        absent: absent(place.next, sources, end),
        stored: decoded.stored(),
        rejected: decoded.rejected(),
        filtered: decoded.filtered(),
        rows: decoded.rows_count(),
    };
    let source_epoch = records.iter().rev().find_map(|record| record.leader_epoch());
    let span = Span {
        key,
        start: Offset(place.next as u64),
        end: Offset(end as u64),
        counts,
        topic: place.topic,
        source_epoch,
    };
    place.next = end;
    place.source_epoch = source_epoch.or(place.source_epoch);
    place.recent.add(counts.delivered, counts.rejected);
    Chunk {
        span,
        rows: decoded.rows,
        rejects: decoded.rejects,
    }
}

fn check_rejected(options: &ConsumerOptions, place: &Place) -> Result<(), Halt> {
    match options.pipe.settings.max_rejected_permille {
        Some(permille) if place.recent.exceeds(permille) => Err(Halt::Stop(StopReason::TooManyRejected {
            rejected: place.recent.rejected,
            of: place.recent.records,
        })),
        _ => Ok(()),
    }
}

/// Puts the chunks of one partition into the memtable; from here on queries see them.
pub(super) fn show(options: &ConsumerOptions, chunks: Vec<Chunk>) -> Result<(), Halt> {
    for chunk in chunks {
        let key = chunk.span.key;
        match options.memtable.append(chunk) {
            Ok(()) => {}
            Err(AppendError::Closed | AppendError::NotOpen | AppendError::OtherIncarnation) => {
                return Err(Halt::Wait(Wait::Assignment("being assigned anew".into())));
            }
            Err(other) => {
                error!(pipe = %options.pipe.name, partition = %key.partition, error = %other, "the memtable refused a chunk");
                options.memtable.close_partition(key.pipe, key.partition);
                return Err(Halt::Wait(Wait::Assignment(other.to_string())));
            }
        }
    }
    Ok(())
}

/// How many of the offsets from `start` up to `end` hold no record, measured by the gaps between the records.
fn absent(start: i64, sources: &[SourceRecord<'_>], end: i64) -> u64 {
    let mut expected = start;
    let mut gaps = 0;
    for source in sources {
        gaps += source.offset - expected;
        expected = source.offset + 1;
    }
    gaps += end - expected;
    gaps.max(0) as u64
}

/// How many of the last records were rejected.
#[derive(Clone, Debug, Default)]
struct Recent {
    runs: VecDeque<(u64, u64)>,
    records: u64,
    rejected: u64,
}

impl Recent {
    fn add(&mut self, records: u64, rejected: u64) {
        self.runs.push_back((records, rejected));
        self.records += records;
        self.rejected += rejected;
        while let Some((old, bad)) = self.runs.front().copied()
            && self.records - old >= RATIO_WINDOW
        {
            self.runs.pop_front();
            self.records -= old;
            self.rejected -= bad;
        }
    }

    fn exceeds(&self, permille: u16) -> bool {
        self.records >= RATIO_LEAST && self.rejected * 1000 > self.records * u64::from(permille)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: i64) -> SourceRecord<'static> {
        SourceRecord {
            offset,
            timestamp_ms: None,
            key: None,
            payload: None,
            headers: None,
        }
    }

    #[test]
    fn gaps_are_measured_in_front_between_and_behind() {
        assert_eq!(absent(5, &[at(5), at(6)], 7), 0);
        assert_eq!(absent(5, &[at(7), at(10)], 15), 2 + 2 + 4);
        assert_eq!(absent(5, &[], 9), 4);
    }

    #[test]
    fn the_ratio_looks_at_the_last_records_only() {
        let mut recent = Recent::default();
        recent.add(50, 50);
        assert!(!recent.exceeds(10), "too few to say anything");
        recent.add(50, 0);
        assert!(recent.exceeds(499) && !recent.exceeds(500));
        for _ in 0..30 {
            recent.add(100, 0);
        }
        assert!(!recent.exceeds(0), "old rejects are forgotten");
    }
}
