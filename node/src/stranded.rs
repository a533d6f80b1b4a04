//! Rows in the write-ahead log of a node that does not lead their shard any more, and that nobody else has.
//!
//! - Those of writers: with `acks = leader` they were acknowledged. They are offered to whoever leads the shard now, under their
//!   numbers, as their writer would send them again: what is there already is passed over, the rest is taken. What
//!   cannot be taken, because the writer has passed over it or was closed before this node came back, was written
//!   down as lost then.
//! - Those of a source that has deleted them since, so that their partition has stopped as expired. Their chunks are offered as
//!   they are. What is not there when an operator repairs the partition is written down as lost. Rows that the source still
//!   has are not offered: the leader reads them again.

use crate::adapters::Connections;
use crate::supervisor::Supervisor;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tidemill_core::catalog::{Node, Shard, SourcePartition, Table, Writer};
use tidemill_core::view::CatalogRead;
use tidemill_core::{NodeId, ShardId, Version};
use tidemill_proto::api::stranded_client::StrandedClient;
use tidemill_proto::api::write_request::Body;
use tidemill_proto::api::writes_client::WritesClient;
use tidemill_proto::api::{AdoptRequest, WriteRequest};
use tidemill_raft::Catalog;
use tidemill_storage::memtable::Chunk;
use tidemill_storage::schema::declared_schema;
use tidemill_storage::wal::encode_chunk;
use tonic::transport::Channel;
use tracing::{debug, info, warn};

/// How often it is looked for.
const LOOK: Duration = Duration::from_secs(1);
/// About how many bytes are sent at a time; a leader takes four times as much.
const PIECE: usize = 4 << 20;
/// How long a leader may take.
const ANSWER: Duration = Duration::from_secs(10);

/// Whether the log of this node has something to give, so that the node must not be removed yet.
#[derive(Debug, Default)]
pub struct HandOver(Mutex<Option<Version>>);

impl HandOver {
    fn know(&self, by: Option<Version>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = by;
    }

    /// The version of the catalog by which this node led nothing, if all was handed over at a look after that. Once it is to
    /// leave it is given no shard any more: if that was so by this version, nothing has been acknowledged here since.
    pub fn by(&self) -> Option<Version> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Offers what is stranded here, forever.
pub async fn run(
    node: NodeId,
    catalog: Catalog,
    supervisor: Arc<Supervisor>,
    connections: Arc<Connections>,
    hand_over: Arc<HandOver>,
) {
    loop {
        tokio::time::sleep(LOOK).await;
        // In this order: what is acknowledged here was logged before, and its writer is in the catalog by which nothing is led.
        let leads_nothing_by = supervisor.leads_nothing_by();
        let lanes = supervisor.wal().lanes();
        let looked = offer(node, &catalog, &supervisor, &connections, &lanes).await;
        let has_nothing = matches!(looked, Ok(Left::Nothing));
        hand_over.know(leads_nothing_by.filter(|_| has_nothing));
        if let Err(error) = looked {
            warn!("rows that are stranded in the write-ahead log are not offered yet: {error:#}");
        }
    }
}

/// What a log has that others shall have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// All of it is in the catalog, or can never be.
    Nothing,
    /// It may have rows that are committed nowhere.
    Rows,
}

async fn offer(
    node: NodeId,
    catalog: &Catalog,
    supervisor: &Supervisor,
    connections: &Connections,
    lanes: &[crate::wal::Lane],
) -> anyhow::Result<Left> {
    // As on most nodes most of the time.
    if lanes.is_empty() {
        return Ok(Left::Nothing);
    }
    let state = catalog.snapshot()?;
    let mut left = Left::Nothing;
    let mut writers = BTreeMap::new();
    for writer in state.list::<Writer>(&[])? {
        writers.insert((writer.pipe, writer.number), writer);
    }
    for (id, pipe, partition) in lanes {
        let (Some(shard), Some(table)) = (state.get::<Shard>(id)?, state.get::<Table>(&id.table)?) else {
            continue;
        };
        let Some(place) = state.get::<SourcePartition>(&(*pipe, *partition))? else {
            continue;
        };
        let number = Writer::number_of(*partition, table.shards);
        let writer = writers.get(&(*pipe, number));
        if writer.is_none() && !place.has_expired() {
            continue;
        }
        let leader = shard.leader.filter(|leader| *leader != node);
        let leader = leader.map(|leader| state.get::<Node>(&leader)).transpose()?.flatten();
        let Some(leader) = leader else {
            // It has to wait until somebody else leads.
            left = Left::Rows;
            continue;
        };
        let channel = connections.to(&leader.addresses.api);
        let offered = offer_one(supervisor, channel, *id, &table, writer, &place);
        let taken_by = &leader.name;
        let offered = tokio::time::timeout(ANSWER, offered).await;
        if !matches!(offered, Ok(Ok(0))) {
            // Also what was taken: it counts when it is committed.
            left = Left::Rows;
        }
        match offered {
            Ok(Ok(0)) => {}
            Ok(Ok(rows)) => {
                info!(shard = %id, %pipe, %partition, rows, "stranded rows were taken by node '{taken_by}'")
            }
            // It is tried again, until the catalog says that they are committed or can never be.
            Ok(Err(why)) => debug!(shard = %id, %pipe, %partition, "stranded rows are not taken: {why:#}"),
            Err(_) => debug!(shard = %id, %pipe, %partition, "no answer about stranded rows"),
        }
    }
    Ok(left)
}

/// Gives how many rows the leader has taken, or has already.
async fn offer_one(
    supervisor: &Supervisor,
    channel: Result<Channel, String>,
    shard: ShardId,
    table: &Table,
    writer: Option<&Writer>,
    place: &SourcePartition,
) -> anyhow::Result<u64> {
    let (wal, key, offset) = (supervisor.wal().clone(), place.key(), place.offset);
    let recovered = tokio::task::spawn_blocking(move || wal.recover(shard, key, offset)).await??;
    if recovered.chunks.is_empty() {
        return Ok(0);
    }
    let channel = channel.map_err(anyhow::Error::msg)?;
    match writer {
        Some(writer) => send(channel, shard, table, writer, recovered.chunks).await,
        None => give(channel, shard, recovered.chunks).await,
    }
}

/// Gives chunks of a source to the leader, one after the other: each continues the one before.
async fn give(channel: Channel, shard: ShardId, chunks: Vec<Chunk>) -> anyhow::Result<u64> {
    let mut client = StrandedClient::new(channel);
    let mut rows = 0;
    for chunk in chunks {
        rows += chunk.span.counts.rows;
        let request = AdoptRequest {
            table: shard.table.0,
            shard: shard.index,
            chunk: encode_chunk(&chunk)?.into(),
        };
        client.adopt(request).await?;
    }
    Ok(rows)
}

async fn send(
    channel: Channel,
    shard: ShardId,
    table: &Table,
    writer: &Writer,
    chunks: Vec<Chunk>,
) -> anyhow::Result<u64> {
    let declared = declared_schema(table);
    let mut requests = Vec::with_capacity(chunks.len());
    let mut rows = 0;
    for chunk in &chunks {
        let Some(batch) = &chunk.rows else { continue };
        rows += batch.num_rows() as u64;
        let pieces = batch.get_array_memory_size().div_ceil(PIECE).max(1);
        let rows_of_piece = batch.num_rows().div_ceil(pieces).max(1);
        for from in (0..batch.num_rows()).step_by(rows_of_piece) {
            let piece = batch.slice(from, rows_of_piece.min(batch.num_rows() - from));
            requests.push(WriteRequest {
                writer: writer.id.0,
                shard: shard.index,
                // Each row of a writer is one offset.
                sequence: chunk.span.start.0 + from as u64,
                rows: piece.num_rows() as u32,
                body: Some(Body::ArrowIpc(encode(&declared, &piece)?.into())),
            });
        }
    }
    let count = requests.len();
    let mut client = WritesClient::new(channel);
    let mut replies = client.write(tokio_stream::iter(requests)).await?.into_inner();
    for _ in 0..count {
        anyhow::ensure!(replies.message().await?.is_some(), "the stream has ended");
    }
    Ok(rows)
}

/// The columns that the writer gave; the others are of the leader that took them.
fn encode(declared: &SchemaRef, rows: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), declared)?;
    let own: Vec<usize> = (0..declared.fields().len()).collect();
    writer.write(&rows.project(&own)?)?;
    writer.into_inner()
}
