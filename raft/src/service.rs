//! What this node answers to the others. A message is taken only if it was meant for this very data
//! folder and comes from the folder that the group knows: an emptied node neither votes nor
//! acknowledges in the name of the one it was.

use crate::{
    catalog_store::Snapshot,
    error::ProposeError,
    node::{Attempt, Node},
    peers::MAX_MESSAGE_BYTES,
    snapshot::{SnapshotFolder, SnapshotReceiver},
    types::{SnapshotMeta, Vote, decode, encode},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    future::Future,
    io,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};
use tidemill_core::{NodeId, Proposal};
use tidemill_proto::raft::{
    Answer, Applied, Envelope, Founded, Header, IdentityReply, IdentityRequest, NotSent, ProposeReply, ProposeRequest,
    ReadIndexReply, ReadIndexRequest, SnapshotPiece, propose_reply, raft_server, read_index_reply,
    snapshot_piece::Piece,
};
use tokio::{net::TcpListener, sync::mpsc};
use tonic::{Request, Response, Status, Streaming, transport::server::TcpIncoming};

/// A sender of a snapshot that is silent for so long is given up.
const SILENT: Duration = Duration::from_secs(30);

/// The service for the other nodes; to be served at this node's Raft address.
#[derive(Clone)]
pub struct RaftService {
    node: Arc<Node>,
}

impl RaftService {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    /// For adding to a tonic server together with other services.
    pub fn into_server(self) -> raft_server::RaftServer<RaftService> {
        raft_server::RaftServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Serves on `listener` alone, until `until` ends. To be run on the runtime of Raft.
    pub async fn serve(self, listener: TcpListener, until: impl Future<Output = ()>) -> io::Result<()> {
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = tonic::transport::Server::builder();
        server
            .serve_with_incoming_shutdown(self.into_server(), incoming, until)
            .await
            .map_err(io::Error::other)
    }

    /// Checks who speaks to whom.
    fn check(&self, header: Option<Header>) -> Result<(), Status> {
        let refuse = |reason: String| Err(Status::failed_precondition(reason));
        let Some(header) = header else {
            return refuse("the message has no header".into());
        };
        let own = &self.node.identity;
        if header.cluster != own.cluster_name {
            return refuse(format!(
                "this node belongs to cluster '{}', not '{}'",
                own.cluster_name, header.cluster
            ));
        }
        if header.to_node != own.node || header.to_instance != own.instance.to_string() {
            return refuse(format!(
                "this is node {} with data folder {}, the message is for node {} with data folder {}",
                own.node, own.instance, header.to_node, header.to_instance
            ));
        }
        let sender = self.node.member(header.from_node).and_then(|member| member.instance);
        match sender {
            Some(known) if known.to_string() != header.from_instance => refuse(format!(
                "node {} is known with data folder {known}, not {}",
                header.from_node, header.from_instance
            )),
            Some(_) => Ok(()),
            // It may be a member that this node has not heard of yet, as everybody is to a blank node; a leader
            // that was elected by members that this node does not know must be listened to. But what was removed is
            // out of the group for good, whatever its own log makes it believe.
            None if self
                .node
                .was_removed(|node| node.instance.to_string() == header.from_instance) =>
            {
                refuse(format!("node {} was removed from the cluster", header.from_node))
            }
            None => Ok(()),
        }
    }

    fn open<T: DeserializeOwned>(&self, envelope: Request<Envelope>) -> Result<T, Status> {
        let envelope = envelope.into_inner();
        self.check(envelope.header)?;
        decode(&envelope.body).map_err(|e| Status::invalid_argument(e.to_string()))
    }
}

fn answer<T: Serialize>(value: &T) -> Result<Response<Answer>, Status> {
    let body = encode(value).map_err(|e| Status::internal(e.to_string()))?.into();
    Ok(Response::new(Answer { body }))
}

fn stopped(error: &impl std::fmt::Display) -> Status {
    Status::unavailable(format!("Raft does not run on this node: {error}"))
}

#[tonic::async_trait]
impl raft_server::Raft for RaftService {
    async fn append(&self, request: Request<Envelope>) -> Result<Response<Answer>, Status> {
        let from = request.get_ref().header.as_ref().map(|header| NodeId(header.from_node));
        let request = self.open(request)?;
        // Known to be from whom it says. Whether it still leads is not asked here: it lives.
        let heard = from.map(|from| (from, Instant::now()));
        *self.node.leader_heard.lock().unwrap_or_else(PoisonError::into_inner) = heard;
        answer(&self.node.raft.append_entries(request).await.map_err(|e| stopped(&e))?)
    }

    async fn vote(&self, request: Request<Envelope>) -> Result<Response<Answer>, Status> {
        let request = self.open(request)?;
        answer(&self.node.raft.vote(request).await.map_err(|e| stopped(&e))?)
    }

    async fn pre_vote(&self, request: Request<Envelope>) -> Result<Response<Answer>, Status> {
        let request = self.open(request)?;
        answer(&self.node.raft.pre_vote(request).await.map_err(|e| stopped(&e))?)
    }

    async fn transfer_leader(&self, request: Request<Envelope>) -> Result<Response<Answer>, Status> {
        let request = self.open(request)?;
        answer(
            &self
                .node
                .raft
                .handle_transfer_leader(request)
                .await
                .map_err(|e| stopped(&e))?,
        )
    }

    async fn install_snapshot(&self, request: Request<Streaming<SnapshotPiece>>) -> Result<Response<Answer>, Status> {
        let mut stream = request.into_inner();
        let Some(Piece::Begin(begin)) = next(&mut stream).await? else {
            return Err(Status::invalid_argument("a snapshot begins with 'begin'"));
        };
        self.check(begin.header)?;
        let vote: Vote = decode(&begin.vote).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let meta: SnapshotMeta = decode(&begin.meta).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let receiver = self
            .node
            .catalog
            .receive()
            .map_err(|e| Status::internal(e.to_string()))?;
        let snapshot = receive(stream, receiver, meta.clone()).await?;
        let installed = self
            .node
            .raft
            .install_full_snapshot(vote, Snapshot { meta, snapshot })
            .await;
        answer(&installed.map_err(|e| stopped(&e))?)
    }

    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeReply>, Status> {
        let request = request.into_inner();
        // Refused here, it is certain that the command is not in the log; the sender relies on that.
        self.check(request.header)?;
        let proposal: Proposal =
            decode(&request.proposal).map_err(|e| Status::failed_precondition(format!("no proposal: {e}")))?;
        let limit = Duration::from_millis(request.timeout_ms.into());
        let result = match self.node.propose(proposal, limit).await {
            Ok((version, outcome)) => match encode(&outcome) {
                Ok(outcome) => propose_reply::Result::Applied(Applied {
                    version: version.0,
                    outcome: outcome.into(),
                }),
                Err(error) => propose_reply::Result::Unknown(error.to_string()),
            },
            Err(Attempt::NotLeader(leader)) => propose_reply::Result::NotSent(NotSent {
                reason: format!("node {} is not the leader", self.node.identity.node),
                leader: leader.unwrap_or(0),
            }),
            Err(Attempt::Failed(ProposeError::Unknown(reason))) => propose_reply::Result::Unknown(reason),
            Err(Attempt::Failed(error)) => propose_reply::Result::NotSent(NotSent {
                reason: error.to_string(),
                leader: 0,
            }),
        };
        Ok(Response::new(ProposeReply { result: Some(result) }))
    }

    async fn read_index(&self, request: Request<ReadIndexRequest>) -> Result<Response<ReadIndexReply>, Status> {
        let request = request.into_inner();
        self.check(request.header)?;
        let limit = Duration::from_millis(request.timeout_ms.into());
        let result = match self.node.read_index(limit).await {
            Ok(version) => read_index_reply::Result::Index(version.0),
            Err(reason) => {
                let leader = self.node.leadership.borrow().leader.map_or(0, |leader| leader.0);
                read_index_reply::Result::NotLeader(NotSent { reason, leader })
            }
        };
        Ok(Response::new(ReadIndexReply { result: Some(result) }))
    }

    async fn identity(&self, request: Request<IdentityRequest>) -> Result<Response<IdentityReply>, Status> {
        let asked = request.into_inner();
        let own = &self.node.identity;
        if asked.cluster != own.cluster_name {
            tracing::warn!("node '{}' of cluster '{}' asked who is here", asked.node, asked.cluster);
        }
        let members = self.node.members();
        let removed = asked.cluster == own.cluster_name
            && !asked.instance.is_empty()
            && self
                .node
                .was_removed(|node| node.instance.to_string() == asked.instance);
        Ok(Response::new(IdentityReply {
            removed,
            cluster: own.cluster_name.clone(),
            node: own.name.clone(),
            instance: own.instance.to_string(),
            blank: self.node.started_blank && members.is_empty(),
            configured: self
                .node
                .config
                .founding()
                .iter()
                .map(|member| member.name.clone())
                .collect(),
            members: members
                .into_iter()
                .map(|(node, member)| Founded {
                    node,
                    name: member.name,
                    instance: member.instance.map(|instance| instance.to_string()).unwrap_or_default(),
                })
                .collect(),
        }))
    }
}

/// The next piece, within the patience for a silent sender.
async fn next(stream: &mut Streaming<SnapshotPiece>) -> Result<Option<Piece>, Status> {
    match tokio::time::timeout(SILENT, stream.message()).await {
        Ok(Ok(piece)) => Ok(piece.and_then(|piece| piece.piece)),
        Ok(Err(status)) => Err(status),
        Err(_) => Err(Status::deadline_exceeded("the sender of the snapshot is silent")),
    }
}

/// Writes what arrives, on a thread that may block.
async fn receive(
    mut stream: Streaming<SnapshotPiece>,
    receiver: SnapshotReceiver,
    meta: SnapshotMeta,
) -> Result<SnapshotFolder, Status> {
    let (pieces, arriving) = mpsc::channel(4);
    let writer = tokio::task::spawn_blocking(move || write_pieces(arriving, receiver, &meta));
    while let Some(piece) = next(&mut stream).await? {
        // A writer that has ended says why below.
        if pieces.send(piece).await.is_err() {
            break;
        }
    }
    drop(pieces);
    let written = writer.await.map_err(|e| Status::internal(e.to_string()))?;
    written.map_err(|e| Status::aborted(format!("the snapshot could not be received: {e}")))
}

fn write_pieces(
    mut arriving: mpsc::Receiver<Piece>,
    mut receiver: SnapshotReceiver,
    meta: &SnapshotMeta,
) -> io::Result<SnapshotFolder> {
    while let Some(piece) = arriving.blocking_recv() {
        match piece {
            Piece::File(file) => receiver.file(&file.name, file.bytes)?,
            Piece::Chunk(bytes) => receiver.chunk(&bytes)?,
            Piece::FileEnd(end) => receiver.file_end(end.checksum)?,
            Piece::End(end) => return receiver.finish(end.files, meta),
            Piece::Begin(_) => return Err(io::Error::other("a second 'begin'")),
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}
