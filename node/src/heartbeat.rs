//! Heartbeats: every 200 ms this node tells the manager that it lives and how far its tasks are.

use crate::manager::Reports;
use crate::stranded::HandOver;
use crate::supervisor::{Supervisor, TaskReport};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tidemill_core::catalog::Addresses;
use tidemill_core::{DiskId, InstanceId, NodeId, PartitionId, PipeId, SpanKey, Version};
use tidemill_ingest::priority::Priority;
use tidemill_proto::api::manager_client::ManagerClient;
use tidemill_proto::api::{BeatRequest, Headroom, NodeProgress, PartitionProgress, TaskProgress, Wait};
use tidemill_raft::{Catalog, peer_endpoint};
use tokio::sync::watch;
use tonic::transport::Channel;
use tracing::warn;

/// How often a node tells.
pub const BEAT: Duration = Duration::from_millis(200);
/// How long a manager may take to answer.
const BEAT_TIMEOUT: Duration = Duration::from_millis(600);

/// When a manager last took a heartbeat of this node.
#[derive(Debug)]
pub struct Contact {
    last: Mutex<Instant>,
}

impl Default for Contact {
    fn default() -> Self {
        Self {
            last: Mutex::new(Instant::now()),
        }
    }
}

impl Contact {
    fn touch(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// How long no manager has answered.
    pub fn silence(&self) -> Duration {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// Sends this node's heartbeats.
pub struct Heart {
    /// This node.
    pub node: NodeId,
    /// Its data folder.
    pub instance: InstanceId,
    /// Its disk for parts, if it keeps any.
    pub disk: Option<DiskId>,
    /// Where it is reached.
    pub addresses: Addresses,
    /// Its warehouse, as its configuration says.
    pub warehouse: String,
    /// Finds the manager.
    pub catalog: Catalog,
    /// Says how far tasks are.
    pub supervisor: Arc<Supervisor>,
    /// The manager's memory, for when this node is the manager.
    pub reports: Arc<Reports>,
    /// Kept up to date.
    pub contact: Arc<Contact>,
    /// Whether this node wants to give up its shards.
    pub draining: AtomicBool,
    /// Says whether others have what this node's log had for them.
    pub hand_over: Arc<HandOver>,
    /// Is told whose records expire soon.
    pub priority: Arc<Priority>,
    /// The oldest version that queries here still read.
    pub pinned: Box<dyn Fn() -> Option<Version> + Send + Sync>,
}

impl Heart {
    /// Beats forever; sends the reason through `refused` when the cluster will not have this node.
    pub async fn run(self: Arc<Self>, refused: watch::Sender<Option<String>>) {
        let mut channels: BTreeMap<NodeId, (String, Channel)> = BTreeMap::new();
        let mut rates = Rates::default();
        let mut tick = tokio::time::interval(BEAT);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let beat = self.beat(&mut rates);
            let leadership = *self.catalog.leadership().borrow();
            if leadership.is_self {
                if let Some(why) = self.reports.take(beat) {
                    refused.send_replace(Some(why));
                }
                self.hurry(self.reports.urgent());
                // A leader that is cut off still calls itself one; only a quorum that answers counts.
                if self.catalog.status().leads_a_quorum {
                    self.contact.touch();
                }
                continue;
            }
            let Some(leader) = leadership.leader else { continue };
            let Some(channel) = self.channel(&mut channels, leader) else {
                continue;
            };
            let mut client = ManagerClient::new(channel);
            match tokio::time::timeout(BEAT_TIMEOUT, client.beat(beat)).await {
                Ok(Ok(reply)) => {
                    let reply = reply.into_inner();
                    if reply.accepted {
                        self.contact.touch();
                        self.hurry(reply.urgent);
                    }
                    if !reply.refused.is_empty() {
                        refused.send_replace(Some(reply.refused));
                    }
                }
                Ok(Err(status)) => warn!(%leader, "the manager does not take heartbeats: {}", status.message()),
                Err(_) => warn!(%leader, "the manager does not answer heartbeats"),
            }
        }
    }

    fn hurry(&self, urgent: Vec<Headroom>) {
        let urgent = urgent.into_iter().map(|p| (PipeId(p.pipe), PartitionId(p.partition)));
        self.priority.set_urgent(urgent.collect());
    }

    fn channel(&self, channels: &mut BTreeMap<NodeId, (String, Channel)>, leader: NodeId) -> Option<Channel> {
        let address = self.catalog.peer(leader)?.raft_addr;
        if let Some((known, channel)) = channels.get(&leader)
            && *known == address
        {
            return Some(channel.clone());
        }
        let channel = peer_endpoint(&address, BEAT_TIMEOUT).ok()?.connect_lazy();
        channels.insert(leader, (address, channel.clone()));
        Some(channel)
    }

    fn beat(&self, rates: &mut Rates) -> BeatRequest {
        let (leading, standing_by): (Vec<_>, Vec<_>) =
            self.supervisor.reports().into_iter().partition(|r| r.epoch.is_some());
        let positions = leading
            .iter()
            .flat_map(|r| r.partitions.iter().map(|p| (p.key, p.position.0)));
        let rows_per_second = rates.update(positions.collect());
        BeatRequest {
            node: self.node.0,
            boot: self.supervisor.boot().to_string(),
            instance: self.instance.to_string(),
            raft: self.addresses.raft.clone(),
            api: self.addresses.api.clone(),
            http: self.addresses.http.clone(),
            draining: self.draining.load(Ordering::Acquire),
            disk: self.disk.map(|disk| disk.to_string()).unwrap_or_default(),
            warehouse: self.warehouse.clone(),
            handed_over: self.hand_over.by().map_or(0, |by| by.0),
            progress: Some(NodeProgress {
                memtable_bytes: self.supervisor.memtable_bytes(),
                rows_per_second,
                tasks: leading.into_iter().map(progress).collect(),
                standbys: standing_by.into_iter().map(progress).collect(),
                oldest_pinned_version: (self.pinned)().map_or(0, |v| v.0),
            }),
        }
    }
}

/// What a task says of itself, on the wire.
fn progress(report: TaskReport) -> TaskProgress {
    let partition = |p: tidemill_ingest::task::PartitionProgress| PartitionProgress {
        pipe: p.key.pipe.0,
        partition: p.key.partition.0,
        incarnation: p.key.incarnation.0,
        position: p.position.0,
        end: p.end.map(|end| end.0),
        wait: Wait::from(p.wait.as_ref().map(|wait| wait.kind())).into(),
        waiting_for: p.wait.map(|wait| wait.to_string()).unwrap_or_default(),
        reading: p.reading,
        record_bytes: p.record_bytes,
        read_to_ms: p.read_to_ms,
    };
    TaskProgress {
        table: report.shard.table.0,
        shard: report.shard.index,
        epoch: report.epoch.unwrap_or_default().0,
        freshness: report.freshness,
        partitions: report.partitions.into_iter().map(partition).collect(),
    }
}

/// Records per second over the last few seconds, from positions.
#[derive(Default)]
struct Rates {
    last: BTreeMap<SpanKey, u64>,
    at: Option<Instant>,
    smooth: f64,
}

impl Rates {
    fn update(&mut self, now: BTreeMap<SpanKey, u64>) -> f64 {
        let read = now
            .iter()
            .filter_map(|(key, at)| Some(at.saturating_sub(*self.last.get(key)?)));
        let read: u64 = read.sum();
        if let Some(at) = self.at {
            let seconds = at.elapsed().as_secs_f64().max(0.001);
            // A step of 200 ms counts for a tenth: the mean over about two seconds.
            self.smooth += (read as f64 / seconds - self.smooth) * 0.1;
        }
        (self.at, self.last) = (Some(Instant::now()), now);
        if self.smooth < 0.5 { 0.0 } else { self.smooth }
    }
}
