//! Writing rows into a table: batched, bounded, acknowledged, each row once.
//!
//! A [`Writer`] numbers its rows within each shard, and the cluster takes every number once. So a batch whose answer was
//! lost is sent again as it was, to whoever leads the shard by then, for as long as [`WriterOptions::delivery_timeout`];
//! what became of a row its [`Delivery`] says. Memory is bounded: when [`WriterOptions::buffer_bytes`] are on their way,
//! writing waits.
//!
//! ```no_run
//! # async fn example(client: tidemill_client::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use tidemill_client::WriterOptions;
//!
//! let writer = client.writer("orders", WriterOptions::default()).await?;
//! for id in 0..1000 {
//!     writer.write_json(format!(r#"{{"id": {id}, "note": "new"}}"#)).await?;
//! }
//! writer.flush().await?;
//! writer.close().await?;
//! # Ok(())
//! # }
//! ```

mod batch;
mod lane;

use crate::client::Client;
use crate::error::ClientError;
use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use batch::{Item, Payload};
use lane::{Closed, Lane, Place};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use thiserror::Error;
use tidemill_proto::api::Acks;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

/// For how long rows without a key go to the same shard, so that batches are full.
const SAME_SHARD: Duration = Duration::from_secs(1);
/// The longest delivery timeout.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// How many rows of a shard may wait to be put into a batch.
const WAITING_ROWS: usize = 8192;

/// How a writer writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriterOptions {
    /// When a row counts as delivered. Default: [`Acks::All`].
    pub acks: Acks,
    /// How long a row waits for others to share its batch. Default: 5 ms.
    pub linger: Duration,
    /// How large a batch may become, in bytes. Default: 512 KiB; at most 8 MiB.
    pub batch_bytes: usize,
    /// How many bytes may be on their way before writing waits. Default: 32 MiB.
    pub buffer_bytes: usize,
    /// How long a row is tried. Default: 120 s.
    pub delivery_timeout: Duration,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            acks: Acks::All,
            linger: Duration::from_millis(5),
            batch_bytes: 512 << 10,
            buffer_bytes: 32 << 20,
            delivery_timeout: Duration::from_secs(120),
        }
    }
}

impl WriterOptions {
    fn check(&self) -> Result<(), ClientError> {
        let wrong = |message: &str| {
            Err(ClientError::Config {
                message: message.to_owned(),
            })
        };
        if !(1..=8 << 20).contains(&self.batch_bytes) {
            return wrong("batch_bytes is a number from 1 to 8388608");
        }
        if self.delivery_timeout > LONGEST || self.linger > self.delivery_timeout {
            return wrong("delivery_timeout is at most a day, and linger no longer than that");
        }
        if self.buffer_bytes < self.batch_bytes || self.buffer_bytes > u32::MAX as usize {
            return wrong("buffer_bytes is a number from batch_bytes to 4294967295");
        }
        Ok(())
    }
}

/// Why a row was not delivered.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WriteError {
    /// It is no row of the table: it was not written.
    #[error("{0}")]
    Invalid(String),
    /// It was not written within the delivery timeout.
    #[error("not written: {0}")]
    NotWritten(String),
    /// It was sent, and no answer came within the delivery timeout: it may have been written.
    #[error("it is not known whether the row was written: {0}")]
    Unknown(String),
    /// The writer was closed.
    #[error("the writer is closed")]
    Closed,
}

/// Where rows were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// The shard.
    pub shard: u32,
    /// The number of the (first) row in it.
    pub sequence: u64,
}

/// What becomes of rows that were given to a writer. Await it, or drop it: the rows are written all the same.
#[derive(Debug)]
pub struct Delivery(oneshot::Receiver<Result<Delivered, WriteError>>);

impl IntoFuture for Delivery {
    type Output = Result<Delivered, WriteError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.0.await.unwrap_or(Err(WriteError::Closed)) })
    }
}

/// What all lanes of a writer share.
struct Shared {
    client: Client,
    table_name: String,
    table: u64,
    options: WriterOptions,
    /// What went wrong first since the last flush.
    failed: Mutex<Option<WriteError>>,
}

impl Shared {
    fn failed(&self) -> std::sync::MutexGuard<'_, Option<WriteError>> {
        // The lock is held for a store only.
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes rows into one table. Share it by reference; all its methods take `&self`.
pub struct Writer {
    shared: Arc<Shared>,
    lanes: Vec<(mpsc::Sender<Item>, JoinHandle<Vec<Closed>>)>,
    room: Arc<Semaphore>,
    turn: Mutex<Turn>,
}

/// Which shard rows without a key go to.
struct Turn {
    shard: usize,
    bytes: usize,
    since: Instant,
}

impl Client {
    /// Opens a writer for `table`.
    ///
    /// # Errors
    /// [`ClientError::Server`] when there is no such table or it has too many writers.
    pub async fn writer(&self, table: &str, options: WriterOptions) -> Result<Writer, ClientError> {
        options.check()?;
        let opened = self.open_writer(table, options.acks, rand::random()).await?;
        let shared = Arc::new(Shared {
            client: self.clone(),
            table_name: table.to_owned(),
            table: opened.table,
            failed: Mutex::default(),
            options,
        });
        let lanes = (0..opened.shards).map(|shard| {
            let (items, rows) = mpsc::channel(WAITING_ROWS);
            let place = Place {
                shard,
                writer: opened.writer,
            };
            (items, tokio::spawn(Lane::new(shared.clone(), place, rows).run()))
        });
        Ok(Writer {
            lanes: lanes.collect(),
            room: Arc::new(Semaphore::new(shared.options.buffer_bytes)),
            turn: Mutex::new(Turn {
                shard: opened.writer as usize % opened.shards.max(1) as usize,
                bytes: 0,
                since: Instant::now(),
            }),
            shared,
        })
    }
}

impl Writer {
    /// Writes a row: one JSON object with the names of columns, in one line. Waits while the buffer is full.
    ///
    /// # Errors
    /// [`WriteError::Invalid`] when it has several lines or is larger than a batch; [`WriteError::Closed`].
    pub async fn write_json(&self, row: impl Into<Vec<u8>>) -> Result<Delivery, WriteError> {
        self.json(None, row.into()).await
    }

    /// Writes a row to the shard of `key`: rows of one key keep their order. Otherwise as [`Writer::write_json`].
    ///
    /// # Errors
    /// As [`Writer::write_json`].
    pub async fn write_json_keyed(&self, key: &[u8], row: impl Into<Vec<u8>>) -> Result<Delivery, WriteError> {
        self.json(Some(key), row.into()).await
    }

    /// Writes all rows of a batch, to one shard, or none of them. Columns are found by their names.
    ///
    /// # Errors
    /// [`WriteError::Invalid`] when it is larger than a batch may be; [`WriteError::Closed`].
    pub async fn write_batch(&self, rows: &RecordBatch) -> Result<Delivery, WriteError> {
        let invalid = |error: ArrowError| WriteError::Invalid(error.to_string());
        let count = u32::try_from(rows.num_rows()).ok().filter(|count| *count > 0);
        let count = count.ok_or_else(|| WriteError::Invalid("a batch has 1 to 4294967295 rows".to_owned()))?;
        let mut writer = StreamWriter::try_new(Vec::new(), &rows.schema()).map_err(invalid)?;
        writer.write(rows).map_err(invalid)?;
        let ipc = writer.into_inner().map_err(invalid)?;
        self.give(None, Payload::Arrow(ipc), count).await
    }

    /// Waits until everything that was written so far is delivered.
    ///
    /// # Errors
    /// What went wrong first since the last call, if anything did.
    pub async fn flush(&self) -> Result<(), WriteError> {
        // All room is free when nothing is on its way. Never closed, and never asked for more than there is.
        let all = self.shared.options.buffer_bytes as u32;
        drop(self.room.acquire_many(all).await);
        match self.shared.failed().take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Waits until everything is delivered and committed, and tells the cluster that this writer is done.
    ///
    /// # Errors
    /// What went wrong first since the last flush, if anything did; [`WriteError::Unknown`] when rows that were acknowledged
    /// before they were committed (`acks` other than all) still are not. There is no writer any more in any case.
    pub async fn close(self) -> Result<(), WriteError> {
        let flushed = self.flush().await;
        let mut acknowledged: BTreeMap<u64, BTreeMap<u32, u64>> = BTreeMap::new();
        let mut unsettled = BTreeSet::new();
        for (items, lane) in self.lanes {
            drop(items);
            let closed = lane.await;
            for closed in
                closed.map_err(|error| WriteError::Unknown(format!("a lane of the writer has failed: {error}")))?
            {
                let of_writer = acknowledged.entry(closed.writer).or_default();
                of_writer.insert(closed.shard, closed.acknowledged);
                if !closed.settled {
                    unsettled.insert(closed.writer);
                }
            }
        }
        acknowledged.retain(|writer, _| !unsettled.contains(writer));
        for (writer, acknowledged) in acknowledged {
            // A writer that nobody closes is closed when it has been idle for long.
            if let Err(error) = self.shared.client.close_writer(writer, acknowledged).await {
                tracing::warn!(writer, %error, "the writer is not closed");
            }
        }
        flushed?;
        match unsettled.is_empty() {
            true => Ok(()),
            // Closed, they would count as lost; left open, they are committed when that is possible again.
            false => Err(WriteError::Unknown(
                "rows that were acknowledged could not be committed yet; the cluster goes on trying".to_owned(),
            )),
        }
    }

    async fn json(&self, key: Option<&[u8]>, row: Vec<u8>) -> Result<Delivery, WriteError> {
        if row.contains(&b'\n') {
            let why = "a row is one JSON object in one line, and this has several lines".to_owned();
            return Err(WriteError::Invalid(why));
        }
        self.give(key, Payload::Json(row), 1).await
    }

    async fn give(&self, key: Option<&[u8]>, payload: Payload, rows: u32) -> Result<Delivery, WriteError> {
        let bytes = payload.bytes();
        if bytes > self.shared.options.batch_bytes {
            let most = self.shared.options.batch_bytes;
            let why = format!("it has {bytes} bytes, a batch has {most} at most (batch_bytes)");
            return Err(WriteError::Invalid(why));
        }
        let shard = match key {
            Some(key) => (xxh3_64(key) % self.lanes.len().max(1) as u64) as usize,
            None => self.next_shard(bytes),
        };
        let (lane, _) = self.lanes.get(shard).ok_or(WriteError::Closed)?;
        let room = self.room.clone().acquire_many_owned(bytes as u32).await;
        let (done, delivery) = oneshot::channel();
        let item = Item {
            payload,
            rows,
            since: Instant::now(),
            done,
            _room: room.map_err(|_| WriteError::Closed)?,
        };
        lane.send(item).await.map_err(|_| WriteError::Closed)?;
        Ok(Delivery(delivery))
    }

    fn next_shard(&self, bytes: usize) -> usize {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if turn.bytes + bytes > self.shared.options.batch_bytes || turn.since.elapsed() > SAME_SHARD {
            turn.shard = (turn.shard + 1) % self.lanes.len().max(1);
            (turn.bytes, turn.since) = (0, Instant::now());
        }
        turn.bytes += bytes;
        turn.shard
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("table", &self.shared.table_name)
            .field("options", &self.shared.options)
            .finish_non_exhaustive()
    }
}
