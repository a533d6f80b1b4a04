//! Heartbeats in, progress out. Served beside Raft, on the control runtime.

use crate::manager::Reports;
use std::sync::Arc;
use tidemill_proto::api::manager_server::Manager;
use tidemill_proto::api::{BeatReply, BeatRequest, ProgressReply, ProgressRequest};
use tidemill_raft::Catalog;
use tonic::{Request, Response, Status};

/// The manager's ear.
pub struct ManagerService {
    /// Says whether this node is the manager.
    pub catalog: Catalog,
    /// Where heartbeats go.
    pub reports: Arc<Reports>,
}

#[tonic::async_trait]
impl Manager for ManagerService {
    async fn beat(&self, request: Request<BeatRequest>) -> Result<Response<BeatReply>, Status> {
        if !self.catalog.leadership().borrow().is_self {
            return Ok(Response::new(BeatReply {
                accepted: false,
                ..BeatReply::default()
            }));
        }
        let refused = self.reports.take(request.into_inner()).unwrap_or_default();
        Ok(Response::new(BeatReply {
            accepted: true,
            refused,
            urgent: self.reports.urgent(),
        }))
    }

    async fn progress(&self, _: Request<ProgressRequest>) -> Result<Response<ProgressReply>, Status> {
        Ok(Response::new(ProgressReply {
            manager: self.catalog.leadership().borrow().is_self,
            ..self.reports.reply()
        }))
    }
}
