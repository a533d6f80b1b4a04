//! Where the crates meet: the catalog as ingest and query see it, fresh rows of other nodes, and progress.

use crate::ipc::PieceReader;
use crate::manager::Reports;
use crate::services::role;
use crate::supervisor::Supervisor;
use crate::time::now_ms;
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tidemill_core::catalog::{KafkaSource, Node, Shard};
use tidemill_core::command::{CommitPart, StopPartition};
use tidemill_core::view::{CatalogRead, CatalogSnapshot};
use tidemill_core::{
    Command, Epoch, Incarnation, NodeId, Offset, Outcome, PartitionId, PipeId, Proposal, Refusal, ShardId, SpanKey,
    TableId, Version,
};
use tidemill_ingest::kafka;
use tidemill_ingest::writer::{CommitUnknown, Committer};
use tidemill_proto::api::fresh_client::FreshClient;
use tidemill_proto::api::manager_client::ManagerClient;
use tidemill_proto::api::pin_reply::Kind;
use tidemill_proto::api::{self, NodeReport, PinHeader, PinRequest, ProgressReply, ProgressRequest, TaskProgress};
use tidemill_query::{
    CatalogError, FreshRows, NodeProgress, PartitionProgress, PinError, Progress, SoftState, SourceError,
    SourceOffsets, Sources, StartPosition,
};
use tidemill_raft::{Catalog, ProposeError, ReadError, peer_endpoint};
use tidemill_storage::memtable::{PinnedBatch, PinnedPartition, PinnedShard};
use tokio::runtime::Handle;
use tonic::transport::Channel;

/// How long a statement waits for the catalog.
const STATEMENT: Duration = Duration::from_secs(10);
/// How long a commit waits before it is proposed again.
const COMMIT: Duration = Duration::from_secs(3);
/// How long a pin on another node may take.
const PIN: Duration = Duration::from_secs(5);

/// Proposes `command`, dated now.
pub async fn propose(
    catalog: &Catalog,
    command: Command,
    deadline: Duration,
) -> Result<(Version, Outcome), ProposeError> {
    catalog.propose(Proposal::new(now_ms(), command), deadline).await
}

/// The replicated catalog, for query and ingest.
pub struct SharedCatalog(pub Catalog);

#[async_trait]
impl tidemill_query::Catalog for SharedCatalog {
    async fn linearizable(&self) -> Result<Arc<dyn CatalogSnapshot>, CatalogError> {
        self.0.read_index(STATEMENT).await.map_err(read_error)?;
        self.local()
    }

    fn local(&self) -> Result<Arc<dyn CatalogSnapshot>, CatalogError> {
        self.0.snapshot().map_err(read_error)
    }

    async fn propose(&self, command: Command) -> Result<(Version, Outcome), CatalogError> {
        match propose(&self.0, command, STATEMENT).await {
            Err(error @ ProposeError::TooLarge { .. }) => Ok((self.0.status().applied, too_large(&error))),
            Err(ProposeError::NotSent(why)) => Err(CatalogError::Unavailable(why)),
            Err(ProposeError::Unknown(why)) => Err(CatalogError::Unknown(why)),
            Ok(applied) => Ok(applied),
        }
    }
}

fn read_error(error: ReadError) -> CatalogError {
    match error {
        ReadError::Store(why) => CatalogError::Fatal(why),
        other => CatalogError::Unavailable(other.to_string()),
    }
}

#[async_trait]
impl Committer for SharedCatalog {
    async fn commit(&self, commit: CommitPart) -> Result<Outcome, CommitUnknown> {
        match propose(&self.0, Command::CommitPart(commit), COMMIT).await {
            Ok((_, outcome)) => Ok(outcome),
            Err(error @ ProposeError::TooLarge { .. }) => Ok(too_large(&error)),
            Err(unknown) => Err(CommitUnknown(unknown.to_string())),
        }
    }

    async fn stop(&self, stop: StopPartition) -> Result<Outcome, CommitUnknown> {
        match propose(&self.0, Command::StopPartition(stop), COMMIT).await {
            Ok((_, outcome)) => Ok(outcome),
            Err(unknown) => Err(CommitUnknown(unknown.to_string())),
        }
    }
}

/// A command that no log will ever take is a *no*, not a *don't know*.
fn too_large(error: &ProposeError) -> Outcome {
    Err(Refusal::Definition(error.to_string()))
}

/// Connections to other nodes, one for each address.
pub struct Connections {
    /// Drives them, whoever uses one first: one that a query opened must not wait with it.
    runtime: Handle,
    open: Mutex<BTreeMap<String, Channel>>,
}

impl Connections {
    /// None yet; `runtime` is to drive them.
    pub fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            open: Mutex::default(),
        }
    }

    /// The connection to `address`, made when it is first used.
    pub fn to(&self, address: &str) -> Result<Channel, String> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = open.get(address) {
            return Ok(channel.clone());
        }
        let endpoint = peer_endpoint(address, Duration::from_millis(700)).map_err(|e| e.to_string())?;
        let _drives_it = self.runtime.enter();
        let channel = endpoint.connect_lazy();
        open.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }
}

/// Fresh rows of this node and of others.
pub struct ClusterRows {
    /// This node.
    pub node: NodeId,
    /// Its tasks.
    pub supervisor: Arc<Supervisor>,
    /// Knows where the others are.
    pub catalog: Catalog,
    /// Ways to them.
    pub connections: Arc<Connections>,
}

#[async_trait]
impl FreshRows for ClusterRows {
    async fn pin(
        &self,
        leader: NodeId,
        shard: ShardId,
        epoch: Epoch,
        columns: Option<&BTreeSet<String>>,
    ) -> Result<PinnedShard, PinError> {
        if leader == self.node {
            let pinned = self.supervisor.pin(shard, epoch, columns);
            return pinned.ok_or(PinError::NotLeading);
        }
        let member = self
            .catalog
            .peer(leader)
            .ok_or_else(|| PinError::Unreachable(format!("node {leader} is unknown")))?;
        let channel = self.connections.to(&member.api_addr).map_err(PinError::Unreachable)?;
        let pinned = tokio::time::timeout(PIN, pin_remote(channel, shard, epoch, columns));
        tokio::select! {
            asked = pinned => {
                asked.unwrap_or_else(|_| Err(PinError::Unreachable(format!("node '{}' does not answer", member.name))))
            }
            // A node that hangs is not waited for when another has taken its place.
            () = self.moved_on(shard, epoch) => Err(PinError::NotLeading),
        }
    }
}

impl ClusterRows {
    /// Ends when the catalog of this node knows that the shard is not at `epoch` any more.
    async fn moved_on(&self, shard: ShardId, epoch: Epoch) {
        let mut version = self.catalog.version();
        loop {
            let known = self.catalog.snapshot().map_err(|e| e.to_string());
            let known = known.and_then(|state| state.get::<Shard>(&shard).map_err(|e| e.to_string()));
            // A catalog that cannot be read says nothing; the pin has a limit of its own.
            if known.is_ok_and(|known| known.is_none_or(|known| known.epoch != epoch))
                || version.changed().await.is_err()
            {
                return;
            }
        }
    }
}

async fn pin_remote(
    channel: Channel,
    shard: ShardId,
    epoch: Epoch,
    columns: Option<&BTreeSet<String>>,
) -> Result<PinnedShard, PinError> {
    let failed = |status: tonic::Status| match status.code() {
        tonic::Code::FailedPrecondition => PinError::NotLeading,
        _ => PinError::Unreachable(status.message().to_owned()),
    };
    let broken = |what: &str| PinError::Unreachable(format!("its answer is not readable: {what}"));
    let request = PinRequest {
        table: shard.table.0,
        shard: shard.index,
        epoch: epoch.0,
        columns: columns.into_iter().flatten().cloned().collect(),
    };
    let mut client = FreshClient::new(channel).max_decoding_message_size(16 << 20);
    let mut replies = client.pin(request).await.map_err(failed)?.into_inner();
    let (mut header, mut reader, mut batches) = (None, PieceReader::default(), Vec::new());
    while let Some(reply) = replies.message().await.map_err(failed)? {
        match reply.kind {
            Some(Kind::Header(h)) => header = Some(h),
            Some(Kind::Ipc(piece)) => batches.extend(reader.read(piece.to_vec()).map_err(|e| broken(&e.to_string()))?),
            None => {}
        }
    }
    let header: PinHeader = header.ok_or_else(|| broken("no header"))?;
    if header.batches.len() != batches.len() {
        return Err(broken("batches are missing"));
    }
    let partitions: Vec<PinnedPartition> = header.partitions.iter().map(pinned_partition).collect();
    let mut pinned = Vec::with_capacity(batches.len());
    for (rows, index) in batches.into_iter().zip(header.batches) {
        let key = partitions
            .get(index as usize)
            .ok_or_else(|| broken("an unknown partition"))?
            .key;
        pinned.push(PinnedBatch { key, rows });
    }
    Ok(PinnedShard {
        shard,
        epoch: Epoch(header.epoch),
        partitions,
        batches: pinned,
    })
}

fn pinned_partition(p: &api::PinnedPartition) -> PinnedPartition {
    PinnedPartition {
        key: span_key(p.pipe, p.partition, p.incarnation),
        from: Offset(p.from),
        to: Offset(p.to),
    }
}

fn span_key(pipe: u64, partition: u32, incarnation: u64) -> SpanKey {
    SpanKey {
        pipe: PipeId(pipe),
        partition: PartitionId(partition),
        incarnation: Incarnation(incarnation),
    }
}

/// What the manager knows, wherever it is.
pub struct ClusterProgress {
    /// Finds the manager.
    pub catalog: Catalog,
    /// What is heard here, for when the manager is here.
    pub reports: Arc<Reports>,
    /// Ways to the others.
    pub connections: Arc<Connections>,
}

impl ClusterProgress {
    /// The reports of all nodes; `None` when the manager is unknown or does not answer.
    pub async fn reports(&self) -> Option<Vec<NodeReport>> {
        Some(self.ask().await?.nodes)
    }

    async fn ask(&self) -> Option<ProgressReply> {
        let leadership = *self.catalog.leadership().borrow();
        if leadership.is_self {
            return Some(self.reports.reply());
        }
        let manager = self.catalog.peer(leadership.leader?)?;
        let mut client = ManagerClient::new(self.connections.to(&manager.raft_addr).ok()?);
        let asked = tokio::time::timeout(Duration::from_secs(1), client.progress(ProgressRequest {})).await;
        let reply = asked.ok()?.ok()?.into_inner();
        reply.manager.then_some(reply)
    }
}

#[async_trait]
impl Progress for ClusterProgress {
    async fn progress(&self) -> Option<SoftState> {
        let reply = self.ask().await?;
        let headroom = reply.headroom.into_iter();
        Some(SoftState {
            nodes: reply.nodes.into_iter().map(node_progress).collect(),
            headroom: headroom
                .map(|h| (PipeId(h.pipe), PartitionId(h.partition), h.seconds))
                .collect(),
            arriving: (reply.rates.into_iter())
                .map(|rate| (PipeId(rate.pipe), PartitionId(rate.partition), rate.bytes_per_second))
                .collect(),
        })
    }

    fn roles(&self, nodes: &[Node]) -> Vec<&'static str> {
        let raft = self.catalog.status();
        nodes.iter().map(|node| role(node, &raft)).collect()
    }
}

fn node_progress(report: NodeReport) -> NodeProgress {
    let progress = report.progress.unwrap_or_default();
    let freshness = progress.tasks.iter();
    let freshness = freshness.map(|task| (TableId(task.table), task.freshness.clone()));
    NodeProgress {
        node: NodeId(report.node),
        silent_ms: report.silent_ms,
        memtable_bytes: progress.memtable_bytes,
        rows_per_second: progress.rows_per_second,
        freshness: freshness.collect(),
        partitions: partitions_of(progress.tasks),
        standing_by: partitions_of(progress.standbys),
    }
}

fn partitions_of(tasks: Vec<TaskProgress>) -> Vec<PartitionProgress> {
    let of_task = |task: TaskProgress| {
        let shard = ShardId {
            table: TableId(task.table),
            index: task.shard,
        };
        task.partitions.into_iter().map(move |p| PartitionProgress {
            key: span_key(p.pipe, p.partition, p.incarnation),
            shard,
            position: Offset(p.position),
            end: p.end.map(Offset),
            reading: p.reading,
            record_bytes: p.record_bytes,
            read_to_ms: p.read_to_ms,
            wait: p.wait().into(),
            waiting_for: p.waiting_for,
        })
    };
    tasks.into_iter().flat_map(of_task).collect()
}

/// Asks Kafka, off the runtime.
pub struct KafkaSources;

#[async_trait]
impl Sources for KafkaSources {
    async fn kafka_start(&self, source: &KafkaSource, start: &StartPosition) -> Result<SourceOffsets, SourceError> {
        let source = source.clone();
        let start = match start {
            StartPosition::Earliest => kafka::StartPosition::Earliest,
            StartPosition::Latest => kafka::StartPosition::Latest,
            StartPosition::TimestampMs(ms) => kafka::StartPosition::TimestampMs(*ms),
        };
        let asked = tokio::task::spawn_blocking(move || kafka::start_offsets(&source, &start)).await;
        let found = asked
            .map_err(|e| SourceError(e.to_string()))?
            .map_err(|e| SourceError(e.0))?;
        Ok(SourceOffsets {
            topic: found.topic,
            partitions: found.partitions,
        })
    }
}
