//! What a node must be told before it can start: where its data is, how it comes into its cluster,
//! and how patient it shall be. Defaults suit a local network and an ordinary disk.

use crate::log_writer::{FailureHook, abort_process};
use openraft::SnapshotPolicy;
use std::{path::PathBuf, time::Duration};
use tidemill_core::catalog::Replication;

/// What the databases use where nothing else is said; more is of little use to them.
pub const DEFAULT_MEMORY: u64 = 128 << 20;

/// A node as the others see it. Founding members are configured on every node alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberConfig {
    /// Its name.
    pub name: String,
    /// Where it speaks Raft, `host:port`.
    pub raft_addr: String,
    /// Where it serves clients, `host:port`.
    pub api_addr: String,
    /// Where it serves health and metrics, `host:port`.
    pub http_addr: String,
    /// The set of nodes that it belongs to.
    pub warehouse: String,
}

/// How a node comes into its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It founds the cluster with these, itself among them: the same list in the same order on every node.
    Founding(Vec<MemberConfig>),
    /// It joins a cluster that exists; this is itself. The cluster gives it its number.
    Joining(MemberConfig),
}

/// See the module.
#[derive(Clone)]
pub struct RaftConfig {
    /// The node's data folder.
    pub data_dir: PathBuf,
    /// The name of the cluster; nodes of another cluster are refused.
    pub cluster_name: String,
    /// The name of this node.
    pub name: String,
    /// How it comes into the cluster.
    pub origin: Origin,
    /// How part files are replicated in a cluster that this node founds; `None` where all nodes share one part store.
    pub replication: Option<Replication>,
    /// How often a leader says that it lives.
    pub heartbeat: Duration,
    /// Bounds of the random time after which a silent leader is replaced. It counts from the end of the leader's lease, which is
    /// as long as the node's greatest time: by (400, 800) ms, elections begin 1 to 1.6 s after the last heartbeat.
    pub election: (Duration, Duration),
    /// After this many entries a snapshot is made.
    pub snapshot_entries: u64,
    /// This many entries before a snapshot are kept for slow followers.
    pub keep_entries: u64,
    /// Bytes of memory for what the databases cache and have not written to files yet.
    pub memory: u64,
    /// How long to wait for a connection to a peer.
    pub connect_timeout: Duration,
    /// Called when the log cannot be written; ends the process unless a test says otherwise.
    pub on_failure: FailureHook,
}

impl RaftConfig {
    /// The configuration of a founding member, with the default timings.
    pub fn new(
        data_dir: impl Into<PathBuf>,
        cluster_name: impl Into<String>,
        name: impl Into<String>,
        members: Vec<MemberConfig>,
    ) -> Self {
        Self::with_origin(data_dir, cluster_name, name, Origin::Founding(members))
    }

    /// The configuration of a node that joins, with the default timings.
    pub fn joining(data_dir: impl Into<PathBuf>, cluster_name: impl Into<String>, own: MemberConfig) -> Self {
        let name = own.name.clone();
        Self::with_origin(data_dir, cluster_name, name, Origin::Joining(own))
    }

    /// A configuration with the default timings.
    pub fn with_origin(
        data_dir: impl Into<PathBuf>,
        cluster_name: impl Into<String>,
        name: impl Into<String>,
        origin: Origin,
    ) -> Self {
        Self {
            data_dir: data_dir.into(),
            cluster_name: cluster_name.into(),
            name: name.into(),
            origin,
            replication: None,
            heartbeat: Duration::from_millis(100),
            election: (Duration::from_millis(400), Duration::from_millis(800)),
            snapshot_entries: 20_000,
            keep_entries: 5_000,
            memory: DEFAULT_MEMORY,
            connect_timeout: Duration::from_millis(500),
            on_failure: abort_process(),
        }
    }

    /// The founding members; none for a node that joins.
    pub(crate) fn founding(&self) -> &[MemberConfig] {
        match &self.origin {
            Origin::Founding(members) => members,
            Origin::Joining(_) => &[],
        }
    }

    /// This node as the others see it.
    pub(crate) fn own(&self) -> Option<&MemberConfig> {
        match &self.origin {
            Origin::Founding(members) => members.iter().find(|member| member.name == self.name),
            Origin::Joining(own) => Some(own),
        }
    }

    /// The part of [`Self::election`] that `node` has. Of three nodes with successive ids each has another: were two to begin at
    /// once, they would split the votes and wait once more.
    fn election_of(&self, node: u64) -> (Duration, Duration) {
        let (least, most) = self.election;
        let quarter = most.saturating_sub(least) / 4;
        let place = (node.saturating_sub(1) % 3) as u32;
        let from = least + quarter * place;
        (from, from + quarter * 2)
    }

    /// The same for openraft, at `node`.
    pub(crate) fn for_openraft(&self, node: u64) -> Result<openraft::Config, openraft::ConfigError> {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let (election_min, election_max) = self.election_of(node);
        let (election_min, election_max) = (ms(election_min), ms(election_max));
        openraft::Config {
            cluster_name: self.cluster_name.clone(),
            heartbeat_interval: ms(self.heartbeat),
            election_timeout_min: election_min,
            election_timeout_max: election_max,
            // A peer that could not win does not disturb a leader that works.
            enable_pre_vote: Some(true),
            // A leader without a quorum must fall silent now and then, or its heartbeats keep the
            // others from electing one that has a quorum.
            quorum_loss_probe_interval: Some(election_max.saturating_mul(2).saturating_add(100)),
            // After a power failure the catalog and the committed position may be older than what
            // was answered before; a leader that took office again without an election could serve
            // linearizable reads from that.
            enable_leader_restore: Some(false),
            // Messages are bounded by bytes where the log is read.
            max_payload_entries: 1024,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_entries),
            max_in_snapshot_log_to_keep: self.keep_entries,
            replication_lag_threshold: self.snapshot_entries.saturating_mul(2),
            // Purging waits for the catalog to be synced: better seldom and much.
            purge_batch_size: (self.snapshot_entries / 4).max(1),
            // The network sends under deadlines of its own; this bounds a whole transfer.
            install_snapshot_timeout: 3_600_000,
            backoff: "50ms 100ms 200ms ...500ms".into(),
            ..openraft::Config::default()
        }
        .validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_nodes_never_begin_an_election_at_once() {
        let config = RaftConfig::new("/data", "c", "n1", vec![]);
        // The lease is as long as the greatest time; the election begins when a time from the part has passed after it.
        let begins = |node| {
            let (least, most) = config.election_of(node);
            (most + least).as_millis()..(most + most).as_millis()
        };
        assert_eq!([1, 2, 3].map(begins), [1000..1200, 1200..1400, 1400..1600]);
        assert_eq!([4, 5, 6].map(begins), [1, 2, 3].map(begins));
        assert!((1..=6).all(|node| config.for_openraft(node).is_ok()));
    }
}
