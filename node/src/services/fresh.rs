//! Uncommitted rows for the queries of other nodes.

use crate::ipc::PieceWriter;
use crate::supervisor::Supervisor;
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
        let pinned = self.supervisor.pin(shard, Epoch(request.epoch)).ok_or_else(|| {
            Status::failed_precondition(format!(
                "this node does not lead shard {shard} in epoch {}",
                request.epoch
            ))
        })?;
        let replies = replies(pinned)?;
        Ok(Response::new(Box::pin(tokio_stream::iter(replies.into_iter().map(Ok)))))
    }
}

fn replies(pinned: PinnedShard) -> Result<Vec<PinReply>, Status> {
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
    let mut replies = vec![PinReply {
        kind: Some(Kind::Header(header)),
    }];
    if let Some(first) = pinned.batches.first() {
        let mut writer = PieceWriter::new(&first.rows.schema()).map_err(internal)?;
        let mut pieces = Vec::new();
        for batch in &pinned.batches {
            pieces.extend(writer.write(&batch.rows).map_err(internal)?);
        }
        pieces.extend(writer.finish().map_err(internal)?);
        replies.extend(pieces.into_iter().map(|piece| PinReply {
            kind: Some(Kind::Ipc(piece.into())),
        }));
    }
    Ok(replies)
}
