//! What openraft sends to the other nodes, over tonic. Every call has a deadline. A snapshot is
//! read from its files as the receiver takes it, and given up when the receiver stops taking.

use crate::{
    catalog_store::Snapshot,
    peers::{Lane, Peers},
    snapshot::{self, SnapshotFolder},
    types::{Member, TypeConfig, Vote, decode, encode},
};
use openraft::{
    OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::File,
    future::Future,
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tidemill_proto::raft::{
    Envelope, Header, SnapshotBegin, SnapshotEnd, SnapshotFile, SnapshotFileEnd, SnapshotPiece, snapshot_piece::Piece,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use xxhash_rust::xxh3::Xxh3;

/// Bytes of a file sent in one piece.
const CHUNK_BYTES: usize = 256 << 10;
/// A snapshot of which nothing moves for so long is given up.
const STALLED: Duration = Duration::from_secs(20);
/// The time that the other side has for installing, after the last byte.
const INSTALLING: Duration = Duration::from_secs(600);

/// Makes connections for openraft.
pub(crate) struct Network {
    pub(crate) peers: Arc<Peers>,
    /// How long a follower may take for writing entries: openraft's own limit is the heartbeat
    /// interval, which one slow fsync exceeds.
    pub(crate) append_timeout: Duration,
}

/// One kind of traffic to one node.
pub(crate) struct Peer {
    peers: Arc<Peers>,
    append_timeout: Duration,
    id: u64,
    member: Member,
    lane: Lane,
}

impl Network {
    fn peer(&self, id: u64, member: &Member, lane: Lane) -> Peer {
        Peer {
            peers: self.peers.clone(),
            append_timeout: self.append_timeout,
            id,
            member: member.clone(),
            lane,
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &Member) -> Peer {
        self.peer(target, node, Lane::Log)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Member) -> Peer {
        self.peer(target, node, Lane::Control)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &Member) -> Peer {
        self.peer(target, node, Lane::Snapshot)
    }
}

enum Call {
    Append,
    Vote,
    PreVote,
    TransferLeader,
}

impl Peer {
    fn header(&self) -> Header {
        self.peers.header(self.id, &self.member)
    }

    /// Keeps what the follower has acknowledged, and says so if it does not have that any more: under one vote a follower
    /// only ever gets entries, so a disk has lost what it said was synced, or is an older copy of itself.
    fn note(
        &self,
        request: &AppendEntriesRequest<TypeConfig>,
        answer: &AppendEntriesResponse<TypeConfig>,
        had: Option<u64>,
    ) {
        let asked = request.prev_log_id.as_ref().map(|id| id.index);
        match answer {
            AppendEntriesResponse::Success => {
                let last = request.entries.last().map(|entry| entry.log_id.index).or(asked);
                if let Some(last) = last {
                    self.peers.acknowledge(self.id, request.vote, last);
                }
            }
            AppendEntriesResponse::Conflict => {
                if let Some((asked, had)) = asked.zip(had)
                    && asked <= had
                    && self.peers.forgot(self.id)
                {
                    tracing::error!(
                        "node '{}' has acknowledged the Raft log up to entry {had}, and does not have entry {asked} any \
                         more: its disk loses what it says is synced, or its data folder was replaced by an older copy. \
                         It gets the entries again; until then they are safe only while this node lives. Replace that node \
                         (tidemill node replace)",
                        self.member.name
                    );
                }
            }
            // Nobody answers the first; after the second this node does not lead.
            AppendEntriesResponse::PartialSuccess(_) | AppendEntriesResponse::HigherVote(_) => {}
        }
    }

    async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        call: Call,
        lane: Lane,
        request: &Q,
        limit: Duration,
    ) -> Result<A, RPCError<TypeConfig>> {
        let body = encode(request)
            .map_err(|e| RPCError::Network(NetworkError::new(&e)))?
            .into();
        let envelope = Envelope {
            header: Some(self.header()),
            body,
        };
        let action = match call {
            Call::Append => RPCTypes::AppendEntries,
            Call::Vote | Call::PreVote => RPCTypes::Vote,
            Call::TransferLeader => RPCTypes::TransferLeader,
        };
        let sent = async {
            let mut client = self.peers.client(&self.member.raft_addr, lane)?;
            match call {
                Call::Append => client.append(envelope).await,
                Call::Vote => client.vote(envelope).await,
                Call::PreVote => client.pre_vote(envelope).await,
                Call::TransferLeader => client.transfer_leader(envelope).await,
            }
        };
        match tokio::time::timeout(limit, sent).await {
            Ok(Ok(answer)) => decode(&answer.into_inner().body).map_err(|e| RPCError::Network(NetworkError::new(&e))),
            Ok(Err(status)) => {
                self.peers.failed(&self.member.raft_addr, lane, &status);
                Err(rpc_error(&status))
            }
            Err(_) => {
                let id = self.peers.node();
                Err(RPCError::Timeout(Timeout {
                    action,
                    id,
                    target: self.id,
                    timeout: limit,
                }))
            }
        }
    }
}

fn rpc_error(status: &Status) -> RPCError<TypeConfig> {
    match status.code() {
        // Not there, or not for us: there is no use in asking again at once.
        Code::Unavailable | Code::FailedPrecondition | Code::Internal => {
            RPCError::Unreachable(Unreachable::from_string(status.to_string()))
        }
        _ => RPCError::Network(NetworkError::from_string(status.to_string())),
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotFolder;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let soft = option.soft_ttl();
        let limit = if request.entries.is_empty() {
            soft
        } else {
            soft.max(self.append_timeout)
        };
        // Taken before the call: what is acknowledged meanwhile, over the other lane, may be newer than the answer.
        let had = self.peers.acknowledged(self.id, &request.vote);
        let answer = self.call(Call::Append, self.lane, &request, limit).await?;
        self.note(&request, &answer, had);
        Ok(answer)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(Call::Vote, Lane::Control, &request, option.soft_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(Call::PreVote, Lane::Control, &request, option.soft_ttl())
            .await
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(Call::TransferLeader, Lane::Control, &request, option.soft_ttl())
            .await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let network = |e: &io::Error| StreamingError::Network(NetworkError::new(e));
        let begin = SnapshotBegin {
            header: Some(self.header()),
            vote: encode(&vote).map_err(|e| network(&e))?.into(),
            meta: encode(&snapshot.meta).map_err(|e| network(&e))?.into(),
        };
        let (pieces, stream) = mpsc::channel(4);
        let progress = Arc::new(AtomicU64::new(0));
        let reader = {
            let (files, progress) = (snapshot.snapshot.clone(), progress.clone());
            tokio::task::spawn_blocking(move || send_files(begin, &files, &pieces, &progress))
        };
        let mut client = self
            .peers
            .client(&self.member.raft_addr, self.lane)
            .map_err(|e| StreamingError::Unreachable(Unreachable::from_string(e.to_string())))?;
        let sending = async {
            let answer = client.install_snapshot(ReceiverStream::new(stream)).await;
            match answer {
                Ok(answer) => decode(&answer.into_inner().body).map_err(|e| network(&e)),
                Err(status) => {
                    self.peers.failed(&self.member.raft_addr, self.lane, &status);
                    Err(rpc_error(&status).into())
                }
            }
        };
        // Whichever ends first drops `sending`, and with it the stream, which ends the reader.
        let result = tokio::select! {
            result = sending => result,
            closed = cancel => Err(StreamingError::Closed(closed)),
            () = stalled(&progress) => Err(network(&io::ErrorKind::TimedOut.into())),
            () = tokio::time::sleep(option.soft_ttl()) => Err(network(&io::ErrorKind::TimedOut.into())),
        };
        match (result, reader.await) {
            (Ok(response), _) => Ok(response),
            // Our own files could not be read: that is the reason, whatever the other side says.
            (Err(_), Ok(Err(error))) if error.kind() != io::ErrorKind::BrokenPipe => Err(network(&error)),
            (Err(error), _) => Err(error),
        }
    }
}

/// Ends when the number has not changed for too long. `u64::MAX` means that all is sent.
async fn stalled(progress: &AtomicU64) {
    let mut last = progress.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(if last == u64::MAX { INSTALLING } else { STALLED }).await;
        let now = progress.load(Ordering::Relaxed);
        if now == last {
            return;
        }
        last = now;
    }
}

/// Reads the files of a snapshot into the stream. Blocks; ends early when the stream is dropped.
fn send_files(
    begin: SnapshotBegin,
    files: &SnapshotFolder,
    pieces: &mpsc::Sender<SnapshotPiece>,
    progress: &AtomicU64,
) -> io::Result<()> {
    let send = |piece: Piece| {
        let sent = pieces.blocking_send(SnapshotPiece { piece: Some(piece) });
        progress.fetch_add(1, Ordering::Relaxed);
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    };
    send(Piece::Begin(begin))?;
    let mut count = 0;
    for (name, path, bytes) in snapshot::files(&files.folder.path())? {
        send(Piece::File(SnapshotFile { name, bytes }))?;
        let mut file = File::open(path)?.take(bytes);
        let mut hash = Xxh3::new();
        let mut sent = 0;
        while sent < bytes {
            let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(bytes - sent).unwrap_or(CHUNK_BYTES))];
            file.read_exact(&mut chunk)?;
            hash.update(&chunk);
            sent += chunk.len() as u64;
            send(Piece::Chunk(chunk.into()))?;
        }
        send(Piece::FileEnd(SnapshotFileEnd {
            checksum: hash.digest(),
        }))?;
        count += 1;
    }
    send(Piece::End(SnapshotEnd { files: count }))?;
    progress.store(u64::MAX, Ordering::Relaxed);
    Ok(())
}
