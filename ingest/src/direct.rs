//! Rows that programs write themselves.
//!
//! A writer numbers its rows within each shard; the numbers are offsets of a source partition of its own. So what is taken
//! here goes the way of all rows: a chunk of the memtable, a cut, a commit with its span. Three things are special.
//!
//! - *A row that is sent again.* The history of the partition says how far the rows are here: what is below is not taken a
//!   second time, what is beyond is a gap and refused. After a change of leader the history begins where the commits end,
//!   so that whatever was not committed is taken anew, and the old leader's rows cannot be committed any more.
//! - *Acknowledging.* With `acks = leader` a row is acknowledged when it is in the write-ahead log. With `acks = all` it is
//!   acknowledged when the commit with it is known to be applied, and not shown before: it could still go away.
//! - *Refusing.* Nothing is rejected later: rows that are none of the table are refused at once, with the number of the
//!   first that is wrong, and nothing of the request is taken.

use crate::budget::Account;
use crate::decode::{JsonDecoder, SourceRecord, first_rejected};
use crate::log::ShardLog;
use arrow::array::{
    ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, new_null_array,
};
use arrow::compute::{CastOptions, cast_with_options, concat_batches};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::ipc::reader::StreamReader;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use thiserror::Error;
use tidemill_core::catalog::{Acks, DIRECT, Table, Writer};
use tidemill_core::format::{JsonFormat, OnUnknownField};
use tidemill_core::{Counts, Offset, PartitionId, ShardId, Span};
use tidemill_storage::memtable::{AppendError, Chunk, History, Memtable};
use tidemill_storage::schema::{arrow_schema, declared_schema};
use tokio::sync::{Notify, watch};

/// How long a writer that has just been opened waits until this task knows of it.
const KNOWN: Duration = Duration::from_secs(2);
/// How long rows wait for memory before they are refused.
const MEMORY: Duration = Duration::from_secs(5);
/// How often what is waited for is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Rows on their way in.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// The number of the first.
    pub sequence: Offset,
    /// How many there are.
    pub rows: u32,
    /// The rows.
    pub body: Body,
}

/// How rows are written down.
#[derive(Clone, Debug)]
pub enum Body {
    /// One JSON object in each line.
    JsonLines(Bytes),
    /// An Arrow IPC stream.
    Arrow(Bytes),
}

/// Why rows were not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WriteError {
    /// Not now: nothing was taken, and the same may be taken a moment later, here or by another leader.
    #[error("{0}")]
    Retry(String),
    /// A row is none of the table.
    #[error("{why}")]
    Invalid {
        /// Which, counted from 0; `None` if the request as a whole cannot be read.
        row: Option<u32>,
        /// What is wrong with it.
        why: String,
    },
    /// Rows before these are missing.
    #[error("the next row of this writer is number {expected}, not {given}: rows before that are not here")]
    Gap {
        /// The next number.
        expected: Offset,
        /// The number of the first row that was sent.
        given: Offset,
    },
}

/// The door for direct rows of one task.
#[derive(Clone)]
pub(crate) struct Door {
    pub shard: ShardId,
    pub table: watch::Receiver<Arc<Table>>,
    pub memtable: Arc<Memtable>,
    pub account: Account,
    pub log: ShardLog,
    /// Wakes the writer of the task.
    pub wake: Arc<Notify>,
    /// Has the writer commit everything soon.
    pub barrier: Arc<AtomicBool>,
    /// Is told whenever what is committed, or open, has changed.
    pub settled: watch::Receiver<()>,
}

impl Door {
    /// Takes rows into the memtable, those that are not there yet; gives the number behind the last of them.
    pub async fn take(&self, writer: &Writer, incoming: Incoming) -> Result<Offset, WriteError> {
        let (given, rows) = (incoming.sequence, u64::from(incoming.rows));
        let end = given.0.checked_add(rows).filter(|end| i64::try_from(*end).is_ok());
        let end = Offset(end.ok_or_else(|| invalid("the sequence number is out of range"))?);
        loop {
            let history = self.history(writer).await?;
            if given > history.to {
                return Err(WriteError::Gap {
                    expected: history.to,
                    given,
                });
            }
            if end > history.to {
                self.wait_for_memory().await?;
            }
            let table = self.table.borrow().clone();
            let body = incoming.body.clone();
            let place = (history.key.partition, given);
            let (log, logs) = (self.log.clone(), writer.acks != Acks::All);
            let prepare = move || {
                // All of it, also what is here already: a request that was refused once must be refused for ever, since the
                // rows behind what was wrong with it have other numbers by now.
                let batch = decode(&table, place, &body, rows as usize)?;
                if end <= history.to {
                    return Ok(None);
                }
                let known = (history.to.0 - given.0) as usize;
                let chunk = chunk(&history, end, batch.slice(known, batch.num_rows() - known));
                if logs {
                    // The order is law: what a query may see, and a writer be told, is in the log before. Rows that wait for
                    // their commit need none: until then nobody is told.
                    let logged = log.append(std::slice::from_ref(&chunk));
                    logged.map_err(|error| WriteError::Retry(format!("the write-ahead log: {error}")))?;
                }
                Ok(Some(chunk))
            };
            let chunk = tokio::task::spawn_blocking(prepare).await;
            let chunk = chunk.map_err(|error| WriteError::Retry(format!("the rows were not read: {error}")))??;
            let Some(chunk) = chunk else {
                return Ok(end);
            };
            match self.memtable.append(chunk) {
                Ok(()) => {
                    self.account.observe(&self.memtable);
                    self.wake.notify_one();
                    return Ok(end);
                }
                // The same rows came in twice at a time, and the other has been faster.
                Err(AppendError::NotNext { .. }) => {}
                Err(AppendError::Unsound(why)) => return Err(invalid(why)),
                Err(AppendError::Closed | AppendError::NotOpen | AppendError::OtherIncarnation) => {
                    return Err(WriteError::Retry(format!(
                        "shard {} is changing its leader",
                        self.shard
                    )));
                }
            }
        }
    }

    /// Returns when everything of `writer` below `end` is committed.
    pub async fn committed(&self, writer: &Writer, end: Offset) -> Result<(), WriteError> {
        let mut settled = self.settled.clone();
        loop {
            settled.mark_unchanged();
            match self
                .place(writer)
                .and_then(|place| self.memtable.history(writer.pipe, place))
            {
                // The next leader's history begins at what is committed, too.
                Some(history) if history.from >= end => return Ok(()),
                Some(history) if history.to >= end => {}
                // They were here, or at the leader before, and are not any more.
                Some(history) => {
                    return Err(WriteError::Gap {
                        expected: history.to,
                        given: end,
                    });
                }
                None => {
                    let why = format!(
                        "shard {} has changed its leader before the rows were committed",
                        self.shard
                    );
                    return Err(WriteError::Retry(why));
                }
            }
            if settled.changed().await.is_err() {
                return Err(WriteError::Retry(format!(
                    "shard {} is not led here any more",
                    self.shard
                )));
            }
        }
    }

    /// Has everything committed soon, whatever the table's flush policy.
    pub fn hurry(&self) {
        self.barrier.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    fn place(&self, writer: &Writer) -> Option<PartitionId> {
        writer.partition(&self.table.borrow(), self.shard.index)
    }

    async fn history(&self, writer: &Writer) -> Result<History, WriteError> {
        let place = self
            .place(writer)
            .ok_or_else(|| invalid("the table has no such shard"))?;
        let until = Instant::now() + KNOWN;
        loop {
            if let Some(history) = self.memtable.history(writer.pipe, place) {
                return Ok(history);
            }
            if Instant::now() >= until {
                let why = format!(
                    "the leader of shard {} does not know writer {} yet",
                    self.shard, writer.id
                );
                return Err(WriteError::Retry(why));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn wait_for_memory(&self) -> Result<(), WriteError> {
        let until = Instant::now() + MEMORY;
        while self.account.is_spent() {
            if Instant::now() >= until {
                return Err(WriteError::Retry(
                    "memory: the memtables of this node are at their limit".to_owned(),
                ));
            }
            self.wake.notify_one();
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

fn invalid(why: &str) -> WriteError {
    WriteError::Invalid {
        row: None,
        why: why.to_owned(),
    }
}

fn chunk(history: &History, end: Offset, batch: RecordBatch) -> Chunk {
    Chunk {
        span: Span {
            key: history.key,
            start: history.to,
            end,
            counts: Counts::stored(batch.num_rows() as u64),
            topic: None,
            source_epoch: None,
        },
        rows: Some(batch),
        rejects: None,
    }
}

/// The rows of a request that says it has `rows`, as rows of the table; `place` has the number of the first.
fn decode(table: &Table, place: (PartitionId, Offset), body: &Body, rows: usize) -> Result<RecordBatch, WriteError> {
    let (partition, from) = (place.0.0 as i32, place.1.0 as i64);
    match body {
        Body::JsonLines(text) => {
            // What ends the last line begins no other.
            let text = text.strip_suffix(b"\n").unwrap_or(text);
            let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
            check_count(rows, lines.len())?;
            decode_json(table, partition, from, &lines)
        }
        Body::Arrow(ipc) => {
            let batch = read_ipc(ipc)?;
            check_count(rows, batch.num_rows())?;
            convert(table, partition, from, &batch)
        }
    }
}

fn check_count(said: usize, there: usize) -> Result<(), WriteError> {
    match said == there {
        true => Ok(()),
        false => Err(invalid(&format!(
            "the request says that it has {said} rows, there are {there}"
        ))),
    }
}

fn decode_json(table: &Table, partition: i32, from: i64, lines: &[&[u8]]) -> Result<RecordBatch, WriteError> {
    let format = JsonFormat {
        // Whoever writes to a table knows its columns: a field of another name is a mistake.
        on_unknown_field: OnUnknownField::Reject,
        ..JsonFormat::default()
    };
    let now_ms = now_ms();
    let mut records = Vec::with_capacity(lines.len());
    for (offset, line) in (from..).zip(lines) {
        records.push(SourceRecord {
            offset,
            timestamp_ms: Some(now_ms),
            key: None,
            payload: Some(line),
            headers: None,
        });
    }
    let decoded = JsonDecoder::new(table, &format, DIRECT).decode(partition, &records);
    let decoded = decoded.map_err(|error| invalid(&error.to_string()))?;
    if let Some((offset, why)) = first_rejected(&decoded) {
        return Err(WriteError::Invalid {
            row: u32::try_from(offset - from).ok(),
            why,
        });
    }
    decoded.rows.ok_or_else(|| invalid("the request has no rows"))
}

fn read_ipc(ipc: &Bytes) -> Result<RecordBatch, WriteError> {
    let unreadable = |error: arrow::error::ArrowError| invalid(&format!("not an Arrow IPC stream: {error}"));
    let reader = StreamReader::try_new(ipc.as_ref(), None).map_err(unreadable)?;
    let schema = reader.schema();
    let batches: Vec<RecordBatch> = reader.collect::<Result<_, _>>().map_err(unreadable)?;
    concat_batches(&schema, &batches).map_err(unreadable)
}

/// Brings columns by name into the table's order and types; nothing is cut off or rounded on the way.
fn convert(table: &Table, partition: i32, from: i64, batch: &RecordBatch) -> Result<RecordBatch, WriteError> {
    let (given, declared) = (batch.schema(), declared_schema(table));
    if let Some(unknown) = given
        .fields()
        .iter()
        .find(|field| declared.index_of(field.name()).is_err())
    {
        return Err(invalid(&format!(
            "table '{}' has no column '{}'",
            table.name,
            unknown.name()
        )));
    }
    let rows = batch.num_rows();
    let exact = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(declared.fields().len() + 5);
    for (field, column) in declared.fields().iter().zip(&table.columns) {
        let Some(values) = batch.column_by_name(field.name()) else {
            // Defaults are for JSON, where a field may be left out; who sends columns can send these.
            if !column.nullable {
                return Err(invalid(&format!(
                    "column '{}' is missing, and may not be null",
                    column.name
                )));
            }
            columns.push(new_null_array(field.data_type(), rows));
            continue;
        };
        let wrong = |why: String| invalid(&format!("column '{}': {why}", column.name));
        if !column.nullable && values.null_count() > 0 {
            let row = (0..rows)
                .find(|row| values.is_null(*row))
                .and_then(|row| u32::try_from(row).ok());
            let why = format!("column '{}' may not be null", column.name);
            return Err(WriteError::Invalid { row, why });
        }
        if !is_exact(values.data_type(), field.data_type()) {
            let (given, wanted) = (values.data_type(), &column.data_type);
            return Err(wrong(format!("values of {given} are none of {wanted}")));
        }
        columns.push(cast_with_options(values, field.data_type(), &exact).map_err(|error| wrong(error.to_string()))?);
    }
    let times = TimestampMicrosecondArray::from_value(now_ms().saturating_mul(1000), rows);
    let offsets = Int64Array::from_iter_values((0..rows as i64).map(|row| from + row));
    columns.push(Arc::new(StringArray::new_repeated(DIRECT, rows)));
    columns.push(Arc::new(Int32Array::from_value(partition, rows)));
    columns.push(Arc::new(offsets));
    columns.push(Arc::new(times));
    columns.push(new_null_array(&DataType::Utf8, rows));
    let schema: SchemaRef = arrow_schema(table);
    RecordBatch::try_new(schema, columns).map_err(|error| invalid(&error.to_string()))
}

/// Whether a cast keeps every value as it is, or fails.
fn is_exact(from: &DataType, to: &DataType) -> bool {
    use DataType::{Float32, Float64, LargeUtf8, Timestamp, Utf8, Utf8View};
    use arrow::datatypes::TimeUnit::{Millisecond, Second};
    from == to
        || (from.is_integer() && to.is_integer())
        || matches!((from, to), (Float32, Float64) | (LargeUtf8 | Utf8View, Utf8))
        || matches!((from, to), (Timestamp(Second | Millisecond, None), Timestamp(_, None)))
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::testing;
    use std::sync::OnceLock;
    use tidemill_core::schema::{Column, ColumnType};
    use tidemill_core::{Epoch, Incarnation, PipeId, SpanKey, TableId, WriterId, WriterToken};
    use tidemill_storage::memtable::Show;
    use tidemill_storage::wal::{Wal, WalOptions};

    const SHARD: ShardId = ShardId {
        table: TableId(1),
        index: 0,
    };

    fn table() -> Table {
        testing::table(vec![Column {
            name: "n".into(),
            data_type: ColumnType::Int64,
            nullable: false,
            default: None,
        }])
    }

    fn writer() -> Writer {
        Writer {
            id: WriterId(1),
            table: TableId(1),
            pipe: PipeId(1),
            number: 0,
            acks: Acks::All,
            token: WriterToken(1),
            opened_at_ms: 0,
        }
    }

    fn lines(sequence: u64, rows: &[&str]) -> Incoming {
        Incoming {
            sequence: Offset(sequence),
            rows: rows.len() as u32,
            body: Body::JsonLines(rows.join("\n").into_bytes().into()),
        }
    }

    #[tokio::test]
    async fn what_was_refused_once_is_refused_for_ever_and_what_is_here_is_not_taken_again() {
        let folder = tempfile::tempdir().unwrap();
        let wal = Arc::new(Wal::open(folder.path(), WalOptions::default()).unwrap());
        let (_table, known) = watch::channel(Arc::new(table()));
        let (_settled, settled) = watch::channel(());
        let memtable = Arc::new(Memtable::new(SHARD, Epoch(1)));
        let key = SpanKey {
            pipe: PipeId(1),
            partition: PartitionId(0),
            incarnation: Incarnation(1),
        };
        memtable.open(key, Show::WhenCommitted, Offset(0), None);
        let door = Door {
            shard: SHARD,
            table: known.clone(),
            memtable: memtable.clone(),
            account: Arc::new(Budget::new(1 << 20, 0)).open(),
            log: ShardLog::new(wal, SHARD, Arc::new(OnceLock::from(Epoch(1))), known),
            wake: Arc::default(),
            barrier: Arc::default(),
            settled,
        };
        let bad = lines(0, &[r#"{"n": 1}"#, r#"{"n": "x"}"#, r#"{"n": 3}"#]);
        let is_refused = |taken: Result<Offset, WriteError>| {
            assert!(
                matches!(taken, Err(WriteError::Invalid { row: Some(1), .. })),
                "{taken:?}"
            );
        };
        is_refused(door.take(&writer(), bad.clone()).await);
        // Without the bad row the others have the numbers 0 and 1. A late copy of the first request has them, too, for others.
        let good = lines(0, &[r#"{"n": 1}"#, r#"{"n": 3}"#]);
        assert_eq!(door.take(&writer(), good.clone()).await, Ok(Offset(2)));
        is_refused(door.take(&writer(), bad.clone()).await);
        assert_eq!(door.take(&writer(), good).await, Ok(Offset(2)));
        assert_eq!(
            door.take(&writer(), lines(1, &[r#"{"n": 3}"#, r#"{"n": 4}"#])).await,
            Ok(Offset(3))
        );
        is_refused(door.take(&writer(), bad).await);
        assert_eq!(memtable.stats().rows, 3);
        let gap = door.take(&writer(), lines(9, &[r#"{"n": 9}"#])).await;
        assert!(
            matches!(
                gap,
                Err(WriteError::Gap {
                    expected: Offset(3),
                    ..
                })
            ),
            "{gap:?}"
        );
        let miscounted = Incoming {
            rows: 2,
            ..lines(3, &[r#"{"n": 4}"#])
        };
        assert!(matches!(
            door.take(&writer(), miscounted).await,
            Err(WriteError::Invalid { row: None, .. })
        ));
        // It can be closed for passing over a gap only when nothing of it is here.
        assert!(!memtable.close_if_empty_at(PipeId(1), PartitionId(0), Offset(3)));
        memtable.cut().unwrap();
        memtable.commit_cut();
        assert!(!memtable.close_if_empty_at(PipeId(1), PartitionId(0), Offset(2)));
        assert!(memtable.close_if_empty_at(PipeId(1), PartitionId(0), Offset(3)));
        assert!(memtable.history(PipeId(1), PartitionId(0)).is_none());
    }
}
