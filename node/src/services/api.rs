//! Statements and status for clients.

use crate::adapters::ClusterProgress;
use crate::ipc::PieceWriter;
use crate::metrics::Metrics;
use crate::services::role;
use futures::{FutureExt, StreamExt};
use prost::Message;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tidemill_core::NodeId;
use tidemill_core::catalog::{Cluster, ClusterKey, Node, Shard, Table};
use tidemill_core::view::{CatalogRead, ViewError};
use tidemill_proto::api::query_reply::Kind;
use tidemill_proto::api::tidemill_server::Tidemill;
use tidemill_proto::api::{
    ClusterStatusReply, ClusterStatusRequest, ErrorDetail, NodeReport, NodeStatus, QueryReply, QueryRequest,
    ShardStatus,
};
use tidemill_query::{Answer, Engine, ErrorKind, QueryError};
use tidemill_raft::Catalog;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

/// How many pieces may wait for a slow client before the query waits too.
const PIECES_AHEAD: usize = 4;

/// What clients talk to.
pub struct ApiService {
    /// Executes statements.
    pub engine: Arc<Engine>,
    /// The catalog, for status.
    pub catalog: Catalog,
    /// What the manager knows.
    pub progress: Arc<ClusterProgress>,
    /// Name of this node.
    pub node: String,
    /// Where parts lie, as nodes that join have to write it.
    pub part_store: String,
    /// Counts queries.
    pub metrics: Arc<Metrics>,
    /// Where statements begin and their rows are sent from, apart from what serves them: many must not hold up files and
    /// fresh rows. Their operators run where the engine was made.
    pub runtime: Handle,
    /// Those that are under way.
    pub under_way: UnderWay,
}

/// Counts the statements that run here, until the last of an answer is on its way: a node that ends lets them finish.
#[derive(Clone, Debug, Default)]
pub struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    fn begin(&self) -> Begun {
        self.0.fetch_add(1, Ordering::AcqRel);
        Begun(self.0.clone())
    }
}

/// One statement under way.
struct Begun(Arc<AtomicUsize>);

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

type Replies = Pin<Box<dyn Stream<Item = Result<QueryReply, Status>> + Send>>;

#[tonic::async_trait]
impl Tidemill for ApiService {
    type QueryStream = Replies;

    async fn query(&self, request: Request<QueryRequest>) -> Result<Response<Replies>, Status> {
        let under_way = self.under_way.begin();
        let request = request.into_inner();
        let settings: BTreeMap<String, String> = request.settings.into_iter().collect();
        let began = Instant::now();
        let engine = self.engine.clone();
        let mut running = JoinSet::new();
        running.spawn_on(
            async move { engine.execute(&request.sql, &settings).await },
            &self.runtime,
        );
        // Dropped with this call when the client goes away, which ends the statement.
        let answer = match running.join_next().await {
            Some(Ok(answer)) => answer,
            Some(Err(error)) => return Err(Status::internal(format!("the statement has failed: {error}"))),
            None => return Err(Status::internal("the statement was not started")),
        };
        self.metrics.query(began.elapsed(), answer.is_err());
        match answer.map_err(|e| status_of(&e))? {
            Answer::Done { message } => {
                let reply = QueryReply {
                    kind: Some(Kind::Message(message)),
                };
                Ok(Response::new(Box::pin(tokio_stream::once(Ok(reply)))))
            }
            Answer::Rows { schema, mut stream } => {
                let mut writer = PieceWriter::new(&schema).map_err(|e| Status::internal(e.to_string()))?;
                let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
                // Ends with the query, or when the client goes away: then sending fails and the query is dropped.
                self.runtime.spawn(async move {
                    let send = async {
                        while let Some(batch) = next_unless_closed(&mut stream, &sender).await {
                            let batch = batch.map_err(|e| status_of(&QueryError::from(e)));
                            let pieces =
                                batch.and_then(|b| writer.write(&b).map_err(|e| Status::internal(e.to_string())));
                            if !send_all(&sender, pieces).await {
                                return;
                            }
                        }
                        send_all(&sender, writer.finish().map_err(|e| Status::internal(e.to_string()))).await;
                    };
                    // A stream that just ended would look like an answer.
                    if AssertUnwindSafe(send).catch_unwind().await.is_err() {
                        let status = Status::internal("the query has panicked; the node's log says where");
                        send_all(&sender, Err(status)).await;
                    }
                });
                let replies = ReceiverStream::new(receiver).map(move |reply| {
                    let _until_the_last = &under_way;
                    reply
                });
                Ok(Response::new(Box::pin(replies)))
            }
        }
    }

    async fn cluster_status(&self, _: Request<ClusterStatusRequest>) -> Result<Response<ClusterStatusReply>, Status> {
        let reports = self.progress.reports().await;
        let status = self.status(reports).map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(status))
    }
}

/// The next batch, if there is one; none for a client that has gone away, however long the query would take to give one.
async fn next_unless_closed<T>(
    stream: &mut (impl Stream<Item = T> + Unpin),
    sender: &mpsc::Sender<Result<QueryReply, Status>>,
) -> Option<T> {
    tokio::select! {
        batch = stream.next() => batch,
        () = sender.closed() => None,
    }
}

/// Sends the pieces, or the error; `false` when nothing more should follow.
async fn send_all(sender: &mpsc::Sender<Result<QueryReply, Status>>, pieces: Result<Vec<Vec<u8>>, Status>) -> bool {
    match pieces {
        Ok(pieces) => {
            for piece in pieces {
                if sender
                    .send(Ok(QueryReply {
                        kind: Some(Kind::Ipc(piece.into())),
                    }))
                    .await
                    .is_err()
                {
                    return false;
                }
            }
            true
        }
        Err(status) => {
            // Whether the client still listens makes no difference here: it was the last message.
            drop(sender.send(Err(status)).await);
            false
        }
    }
}

/// The error on the wire.
fn status_of(error: &QueryError) -> Status {
    let (code, retryable) = match error.kind {
        ErrorKind::Invalid => (Code::InvalidArgument, false),
        ErrorKind::Unavailable => (Code::Unavailable, true),
        ErrorKind::Unknown => (Code::Aborted, false),
        ErrorKind::Internal => (Code::Internal, false),
    };
    let (line, column, length) = error.place.map_or((0, 0, 0), |p| (p.line, p.column, p.length));
    let detail = ErrorDetail {
        line,
        column,
        length,
        retryable,
    };
    Status::with_details(code, error.message.clone(), detail.encode_to_vec().into())
}

impl ApiService {
    fn status(&self, reports: Option<Vec<NodeReport>>) -> Result<ClusterStatusReply, ViewError> {
        let state = self.catalog.snapshot().map_err(|e| ViewError::Store(e.to_string()))?;
        let raft = self.catalog.status();
        let nodes = state.list::<Node>(&[])?;
        let name_of = |id: Option<NodeId>| {
            let node = id.and_then(|id| nodes.iter().find(|n| n.id == id));
            node.map(|n| n.name.clone()).unwrap_or_default()
        };
        let shards = state.list::<Shard>(&[])?;
        let mut shard_status = Vec::new();
        for shard in &shards {
            let table = state.get::<Table>(&shard.id.table)?;
            shard_status.push(ShardStatus {
                table: table.map(|t| t.name).unwrap_or_default(),
                index: shard.id.index,
                epoch: shard.epoch.0,
                leader: name_of(shard.leader),
                lag: lag_of(shard, reports.as_deref().unwrap_or_default()),
            });
        }
        let known = reports.is_some();
        let node_status = nodes.iter().map(|node| {
            let report = reports.iter().flatten().find(|r| r.node == node.id.0);
            let progress = report.and_then(|r| r.progress.clone()).unwrap_or_default();
            NodeStatus {
                id: node.id.0,
                name: node.name.clone(),
                state: node.state.to_string(),
                warehouse: node.warehouse.clone(),
                raft: node.addresses.raft.clone(),
                api: node.addresses.api.clone(),
                http: node.addresses.http.clone(),
                shards: shards.iter().filter(|s| s.leader == Some(node.id)).count() as u32,
                rows_per_second: progress.rows_per_second,
                memtable_bytes: progress.memtable_bytes,
                silent_ms: report.map_or(0, |r| r.silent_ms.max(1)),
                role: role(node, &raft).to_owned(),
            }
        });
        Ok(ClusterStatusReply {
            cluster: state.get::<Cluster>(&ClusterKey)?.map(|c| c.name).unwrap_or_default(),
            node: self.node.clone(),
            leader: name_of(raft.leader),
            term: raft.term,
            applied: raft.applied.0,
            nodes: node_status.collect(),
            shards: shard_status,
            progress_known: known,
            part_store: self.part_store.clone(),
        })
    }
}

/// Records that the source has and the shard's leader has not read.
fn lag_of(shard: &Shard, reports: &[NodeReport]) -> u64 {
    let tasks = reports
        .iter()
        .filter_map(|r| r.progress.as_ref())
        .flat_map(|p| &p.tasks);
    let own = tasks.filter(|t| t.table == shard.id.table.0 && t.shard == shard.id.index && t.epoch == shard.epoch.0);
    own.flat_map(|t| &t.partitions)
        .filter_map(|p| Some(p.end?.saturating_sub(p.position)))
        .sum()
}

/// How long a client may be silent before its connection is given up.
pub const KEEPALIVE: Duration = Duration::from_secs(30);
