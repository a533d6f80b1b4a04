//! What a node must be told before it can start: where its data is, how it comes into its cluster,
//! and how patient it shall be. Defaults suit a local network and an ordinary disk.

use crate::{
    log_writer::{FailureHook, abort_process},
    timing::Timing,
};
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
        let timing = Timing::default();
        Self {
            data_dir: data_dir.into(),
            cluster_name: cluster_name.into(),
            name: name.into(),
            origin,
            replication: None,
            heartbeat: timing.heartbeat,
            election: timing.election,
            snapshot_entries: timing.snapshot_entries,
            keep_entries: timing.keep_entries,
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

    /// The same for openraft, at `node`.
    pub(crate) fn for_openraft(&self, node: u64) -> Result<openraft::Config, openraft::ConfigError> {
        let timing = Timing {
            heartbeat: self.heartbeat,
            election: self.election,
            snapshot_entries: self.snapshot_entries,
            keep_entries: self.keep_entries,
        };
        timing.for_openraft(&self.cluster_name, node)
    }
}
