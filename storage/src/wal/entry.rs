//! An entry of the log as bytes: the span in front, in a fixed layout, so that it can be read without the rows; then rows
//! and rejects as Arrow IPC streams (LZ4). A chunk comes back exactly as it was given.
//!
//! ```text
//! version: u8, flags: u8, pipe: u64, partition: u32, incarnation: u64, start: u64, end: u64,
//! delivered, absent, stored, rejected, filtered, rows: u64, topic: u128, source_epoch: i32, length of rows: u64,
//! rows, rejects
//! ```
//! All numbers are little-endian. RocksDB keeps a checksum of every entry.

use crate::memtable::Chunk;
use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::ipc::CompressionType;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use tidemill_core::{Counts, Incarnation, Offset, PartitionId, PipeId, Span, SpanKey, TopicId};

const VERSION: u8 = 1;

const HAS_TOPIC: u8 = 1;
const HAS_EPOCH: u8 = 2;
const HAS_ROWS: u8 = 4;
const HAS_REJECTS: u8 = 8;

/// The bytes of `chunk`.
///
/// # Errors
/// Columns that Arrow cannot write.
pub fn encode(chunk: &Chunk) -> Result<Vec<u8>, ArrowError> {
    let Chunk { span, rows, rejects } = chunk;
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    let flags = flag(span.topic.is_some(), HAS_TOPIC)
        | flag(span.source_epoch.is_some(), HAS_EPOCH)
        | flag(rows.is_some(), HAS_ROWS)
        | flag(rejects.is_some(), HAS_REJECTS);
    let rows = rows.as_ref().map(to_ipc).transpose()?.unwrap_or_default();
    let rejects = rejects.as_ref().map(to_ipc).transpose()?.unwrap_or_default();
    let mut out = Vec::with_capacity(256 + rows.len() + rejects.len());
    out.extend([VERSION, flags]);
    out.extend(span.key.pipe.0.to_le_bytes());
    out.extend(span.key.partition.0.to_le_bytes());
    let Counts {
        delivered,
        absent,
        stored,
        rejected,
        filtered,
        rows: rows_counted,
    } = span.counts;
    let numbers = [
        span.key.incarnation.0,
        span.start.0,
        span.end.0,
        delivered,
        absent,
        stored,
        rejected,
        filtered,
        rows_counted,
    ];
    numbers.iter().for_each(|n| out.extend(n.to_le_bytes()));
    out.extend(span.topic.map_or(0, |topic| topic.0).to_le_bytes());
    out.extend(span.source_epoch.unwrap_or_default().to_le_bytes());
    out.extend((rows.len() as u64).to_le_bytes());
    out.extend(rows);
    out.extend(rejects);
    Ok(out)
}

/// The chunk that `bytes` were made of.
///
/// # Errors
/// Says what is wrong with them if they were made of none.
pub fn decode(bytes: &[u8]) -> Result<Chunk, String> {
    let mut reader = Reader { rest: bytes };
    let (flags, span) = reader.span()?;
    let length = reader.u64()? as usize;
    if length > reader.rest.len() {
        return Err("it ends within its rows".into());
    }
    let (rows, rejects) = reader.rest.split_at(length);
    let batch = |flag: u8, bytes: &[u8]| match flags & flag {
        0 => Ok(None),
        _ => from_ipc(bytes).map(Some),
    };
    Ok(Chunk {
        span,
        rows: batch(HAS_ROWS, rows)?,
        rejects: batch(HAS_REJECTS, rejects)?,
    })
}

/// The span in front.
pub(super) fn decode_span(bytes: &[u8]) -> Result<Span, String> {
    Reader { rest: bytes }.span().map(|(_, span)| span)
}

struct Reader<'b> {
    rest: &'b [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (front, rest) = self.rest.split_first_chunk::<N>().ok_or("it ends within its span")?;
        self.rest = rest;
        Ok(*front)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.take().map(u64::from_le_bytes)
    }

    fn span(&mut self) -> Result<(u8, Span), String> {
        let [version, flags] = self.take()?;
        if version != VERSION {
            return Err(format!(
                "its format has version {version}, this program knows {VERSION}"
            ));
        }
        let key = SpanKey {
            pipe: PipeId(self.u64()?),
            partition: PartitionId(u32::from_le_bytes(self.take()?)),
            incarnation: Incarnation(self.u64()?),
        };
        let (start, end) = (Offset(self.u64()?), Offset(self.u64()?));
        let counts = Counts {
            delivered: self.u64()?,
            absent: self.u64()?,
            stored: self.u64()?,
            rejected: self.u64()?,
            filtered: self.u64()?,
            rows: self.u64()?,
        };
        let topic = TopicId(u128::from_le_bytes(self.take()?));
        let source_epoch = i32::from_le_bytes(self.take()?);
        let span = Span {
            key,
            start,
            end,
            counts,
            topic: (flags & HAS_TOPIC != 0).then_some(topic),
            source_epoch: (flags & HAS_EPOCH != 0).then_some(source_epoch),
        };
        Ok((flags, span))
    }
}

fn to_ipc(batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME))?;
    let mut writer = StreamWriter::try_new_with_options(Vec::new(), &batch.schema(), options)?;
    writer.write(batch)?;
    writer.into_inner()
}

fn from_ipc(bytes: &[u8]) -> Result<RecordBatch, String> {
    let mut reader = StreamReader::try_new(bytes, None).map_err(|e| e.to_string())?;
    let batch = reader.next().ok_or("a batch is missing")?;
    batch.map_err(|e| e.to_string())
}
