//! Uncommitted rows for the queries of other nodes.

use crate::ipc::PieceWriter;
use crate::supervisor::Supervisor;
use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use tidemill_core::{Epoch, ShardId, TableId};
use tidemill_proto::api::fresh_server::Fresh;
use tidemill_proto::api::pin_reply::Kind;
use tidemill_proto::api::{PinHeader, PinReply, PinRequest, PinnedPartition};
use tidemill_storage::memtable::PinnedShard;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// Pins the shards of this node.
pub struct FreshService {
    /// Its tasks.
    pub supervisor: Arc<Supervisor>,
}

#[tonic::async_trait]
impl Fresh for FreshService {
    type PinStream = Pin<Box<dyn Stream<Item = Result<PinReply, Status>> + Send>>;

    async fn pin(&self, request: Request<PinRequest>) -> Result<Response<Self::PinStream>, Status> {
        let request = request.into_inner();
        let shard = ShardId {
            table: TableId(request.table),
            index: request.shard,
        };
        // No names are all columns; whoever names some needs that of the offsets at least.
        let columns: BTreeSet<String> = request.columns.into_iter().collect();
        let columns = (!columns.is_empty()).then_some(&columns);
        let pinned = self.supervisor.pin(shard, Epoch(request.epoch), columns);
        let pinned = pinned.ok_or_else(|| {
            Status::failed_precondition(format!(
                "this node does not lead shard {shard} in epoch {}",
                request.epoch
            ))
        })?;
        Ok(Response::new(Box::pin(tokio_stream::iter(replies(pinned)?))))
    }
}

/// The header, and then the rows. Each batch is encoded when the one before it has been taken: a memtable must not be in memory
/// twice because somebody reads it.
fn replies(pinned: PinnedShard) -> Result<impl Iterator<Item = Result<PinReply, Status>>, Status> {
    let internal = |e: arrow::error::ArrowError| Status::internal(e.to_string());
    let place = |key| pinned.partitions.iter().position(|p| p.key == key);
    let mut batches = Vec::with_capacity(pinned.batches.len());
    for batch in &pinned.batches {
        let index = place(batch.key).ok_or_else(|| Status::internal("a pinned batch has no partition"))?;
        batches.push(index as u32);
    }
    let partitions = pinned.partitions.iter().map(|p| PinnedPartition {
        pipe: p.key.pipe.0,
        partition: p.key.partition.0,
        incarnation: p.key.incarnation.0,
        from: p.from.0,
        to: p.to.0,
    });
    let header = PinHeader {
        epoch: pinned.epoch.0,
        partitions: partitions.collect(),
        batches,
    };
    let header = PinReply {
        kind: Some(Kind::Header(header)),
    };
    let first = pinned.batches.first();
    let mut writer = match first.map(|batch| PieceWriter::new(&batch.rows.schema())) {
        Some(writer) => Some(writer.map_err(internal)?),
        None => None,
    };
    let mut batches = pinned.batches.into_iter();
    let encoded = std::iter::from_fn(move || match batches.next() {
        Some(batch) => Some(writer.as_mut()?.write(&batch.rows)),
        None => Some(writer.take()?.finish()),
    });
    let pieces = encoded.flat_map(move |pieces| match pieces {
        Ok(pieces) => pieces.into_iter().map(|piece| Ok(of_rows(piece))).collect(),
        Err(error) => vec![Err(internal(error))],
    });
    Ok(std::iter::once(Ok(header)).chain(pieces))
}

fn of_rows(piece: Vec<u8>) -> PinReply {
    PinReply {
        kind: Some(Kind::Ipc(piece.into())),
    }
}
