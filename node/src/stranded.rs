//! Rows of writers in the write-ahead log of a node that does not lead their shard any more.
//!
//! With `acks = leader` they were acknowledged, and nobody else has them. So they are offered to whoever leads the shard now,
//! under their numbers, as their writer would send them again: what is there already is passed over, the rest is taken. What
//! cannot be taken, because the writer has passed over it or was closed before this node came back, was written down as lost then.

use crate::adapters::Connections;
use crate::supervisor::Supervisor;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tidemill_core::catalog::{Node, Shard, SourcePartition, Table, Writer};
use tidemill_core::view::{CatalogRead, CatalogSnapshot};
use tidemill_core::{NodeId, ShardId};
use tidemill_proto::api::WriteRequest;
use tidemill_proto::api::write_request::Body;
use tidemill_proto::api::writes_client::WritesClient;
use tidemill_raft::Catalog;
use tidemill_storage::memtable::Chunk;
use tidemill_storage::schema::declared_schema;
use tonic::transport::Channel;
use tracing::{debug, info, warn};

/// How often it is looked for.
const LOOK: Duration = Duration::from_secs(1);
/// About how many bytes are sent at a time; a leader takes four times as much.
const PIECE: usize = 4 << 20;
/// How long a leader may take.
const ANSWER: Duration = Duration::from_secs(10);

/// Offers what is stranded here, forever.
pub async fn run(node: NodeId, catalog: Catalog, supervisor: Arc<Supervisor>, connections: Arc<Connections>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let lanes = supervisor.wal().lanes();
        if lanes.is_empty() {
            continue;
        }
        let looked = match catalog.snapshot() {
            Ok(state) => offer(node, &*state, &supervisor, &connections, &lanes).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = looked {
            warn!("rows that are stranded in the write-ahead log are not offered yet: {error:#}");
        }
    }
}

async fn offer(
    node: NodeId,
    state: &dyn CatalogSnapshot,
    supervisor: &Supervisor,
    connections: &Connections,
    lanes: &[crate::wal::Lane],
) -> anyhow::Result<()> {
    let mut writers = BTreeMap::new();
    for writer in state.list::<Writer>(&[])? {
        writers.insert((writer.pipe, writer.number), writer);
    }
    for (id, pipe, partition) in lanes {
        let (Some(shard), Some(table)) = (state.get::<Shard>(id)?, state.get::<Table>(&id.table)?) else {
            continue;
        };
        let place = state.get::<SourcePartition>(&(*pipe, *partition))?;
        let number = Writer::number_of(*partition, table.shards);
        let (Some(writer), Some(place)) = (writers.get(&(*pipe, number)), place) else {
            continue;
        };
        let Some(leader) = shard.leader.filter(|leader| *leader != node) else {
            continue;
        };
        let Some(leader) = state.get::<Node>(&leader)? else {
            continue;
        };
        let channel = connections.to(&leader.addresses.api);
        let offered = offer_one(supervisor, channel, *id, &table, writer, &place);
        match tokio::time::timeout(ANSWER, offered).await {
            Ok(Ok(0)) => {}
            Ok(Ok(rows)) => {
                info!(shard = %id, writer = %writer.id, rows, "stranded rows were taken by node '{}'", leader.name);
            }
            // It is tried again, until the catalog says that they are committed or can never be.
            Ok(Err(why)) => debug!(shard = %id, writer = %writer.id, "stranded rows are not taken: {why:#}"),
            Err(_) => debug!(shard = %id, writer = %writer.id, "no answer about stranded rows"),
        }
    }
    Ok(())
}

/// Gives how many rows the leader has taken, or has already.
async fn offer_one(
    supervisor: &Supervisor,
    channel: Result<Channel, String>,
    shard: ShardId,
    table: &Table,
    writer: &Writer,
    place: &SourcePartition,
) -> anyhow::Result<u64> {
    let (wal, key, offset) = (supervisor.wal().clone(), place.key(), place.offset);
    let recovered = tokio::task::spawn_blocking(move || wal.recover(shard, key, offset)).await??;
    match recovered.chunks.is_empty() {
        true => Ok(0),
        false => {
            send(
                channel.map_err(anyhow::Error::msg)?,
                shard,
                table,
                writer,
                recovered.chunks,
            )
            .await
        }
    }
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
