//! Takes what other nodes' write-ahead logs have of partitions that this node leads and that have expired at their source.

use crate::supervisor::Supervisor;
use std::sync::Arc;
use tidemill_core::{ShardId, TableId};
use tidemill_ingest::task::AdoptError;
use tidemill_proto::api::stranded_server::Stranded;
use tidemill_proto::api::{AdoptReply, AdoptRequest};
use tidemill_storage::wal::decode_chunk;
use tonic::{Request, Response, Status};

/// The largest request that is taken: much more than a consumer reads at a time.
pub const MAX_CHUNK: usize = 64 << 20;

/// Serves on the api address.
pub struct StrandedService {
    /// The tasks of this node.
    pub supervisor: Arc<Supervisor>,
}

#[tonic::async_trait]
impl Stranded for StrandedService {
    async fn adopt(&self, request: Request<AdoptRequest>) -> Result<Response<AdoptReply>, Status> {
        let AdoptRequest { table, shard, chunk } = request.into_inner();
        let shard = ShardId {
            table: TableId(table),
            index: shard,
        };
        let task = self.supervisor.task(shard);
        let task = task.ok_or_else(|| Status::failed_precondition(format!("this node does not lead shard {shard}")))?;
        let adopted = tokio::task::spawn_blocking(move || {
            let chunk = decode_chunk(&chunk).map_err(Status::invalid_argument)?;
            task.adopt(chunk).map_err(|error| match error {
                AdoptError::NotWaiting
                | AdoptError::NotNext { .. }
                | AdoptError::OtherLog
                | AdoptError::Memtable(_) => Status::failed_precondition(error.to_string()),
                AdoptError::Memory => Status::resource_exhausted(error.to_string()),
                AdoptError::Log(_) => Status::internal(error.to_string()),
            })
        });
        adopted.await.map_err(|error| Status::internal(error.to_string()))??;
        Ok(Response::new(AdoptReply {}))
    }
}
