//! One running node, as the handle, the service and the founding share it: openraft with its
//! stores, the peers, and what was learnt about the cluster. Proposing and reading on the leader
//! itself happen here; finding the leader is the handle's business.

use crate::{
    catalog_store::CatalogFolder,
    config::RaftConfig,
    database::Closing,
    error::{ProposeError, StartError},
    identity::Identity,
    peers::Peers,
    timing::leads_a_quorum,
    types::{Logged, Member, Raft},
};
use openraft::{
    ReadPolicy,
    async_runtime::watch::WatchReceiver,
    errors::{ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError},
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tidemill_core::{
    NodeId, Outcome, Proposal, Version,
    catalog::{self, Cluster, ClusterKey, NodeState},
    view::CatalogRead,
};
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
};

/// Who leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The leader, if one is known.
    pub leader: Option<NodeId>,
    /// The term of office.
    pub term: u64,
    /// Whether it is this node.
    pub is_self: bool,
}

/// How far the founding has come; `None` while it is under way.
pub(crate) type Founding = Option<Result<(), StartError>>;

/// See the module.
pub(crate) struct Node {
    pub(crate) config: RaftConfig,
    pub(crate) identity: Identity,
    /// Whether there was no entry at the start. Raft tells its members with some delay after a
    /// start; until then this keeps a node with a past from passing for an empty one.
    pub(crate) started_blank: bool,
    pub(crate) raft: Raft,
    pub(crate) catalog: Arc<CatalogFolder>,
    /// Tells when the log is closed.
    pub(crate) log_closing: Closing,
    pub(crate) peers: Arc<Peers>,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) leadership: watch::Sender<Leadership>,
    pub(crate) founding: watch::Sender<Founding>,
    /// Whether this node was removed from the cluster.
    pub(crate) removed: watch::Sender<bool>,
    /// Wakes whoever finds that out.
    pub(crate) suspicion: Notify,
    /// Which leader's entries, or sign of life, came last, and when.
    pub(crate) leader_heard: Mutex<Option<(NodeId, Instant)>>,
    /// Why the founding is not done yet, for people.
    pub(crate) waiting_for: Mutex<Option<String>>,
    /// Why Raft does not run any more.
    pub(crate) stopped: watch::Sender<Option<String>>,
    pub(crate) tasks: Mutex<Vec<AbortHandle>>,
}

/// The leader said no, or is somebody else.
pub(crate) enum Attempt {
    /// Not the leader (any more); perhaps that one is.
    NotLeader(Option<u64>),
    /// Final for this attempt.
    Failed(ProposeError),
}

impl Node {
    /// The members of the group as the log has them, by number.
    pub(crate) fn members(&self) -> Vec<(u64, Member)> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics
            .membership_config
            .nodes()
            .map(|(id, member)| (*id, member.clone()))
            .collect()
    }

    /// Whether this node belongs to no group yet.
    pub(crate) fn is_blank(&self) -> bool {
        self.started_blank && self.members().is_empty()
    }

    /// One member of the group.
    pub(crate) fn member(&self, id: u64) -> Option<Member> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_node(&id).cloned()
    }

    /// Whether this node leads, and a quorum has lately confirmed it.
    pub(crate) fn leads_a_quorum(&self) -> bool {
        leads_a_quorum(&self.raft.metrics().borrow_watched())
    }

    /// Whether a data folder was removed from the cluster, by the catalog of this node.
    pub(crate) fn was_removed(&self, is_it: impl Fn(&catalog::Node) -> bool) -> bool {
        let nodes = self
            .catalog
            .pin()
            .ok()
            .and_then(|state| state.list::<catalog::Node>(&[]).ok());
        let removed = |node: &catalog::Node| node.state == NodeState::Removed && is_it(node);
        nodes.is_some_and(|nodes| nodes.iter().any(removed))
    }

    /// Whether the catalog of this node says that the cluster is founded.
    pub(crate) fn is_founded(&self) -> bool {
        let founded = self
            .catalog
            .pin()
            .ok()
            .and_then(|state| state.get::<Cluster>(&ClusterKey).ok());
        founded.flatten().is_some()
    }

    /// Says what is waited for.
    pub(crate) fn waits_for(&self, what: Option<String>) {
        *self.waiting_for.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    /// Proposes here; this node must be the leader.
    pub(crate) async fn propose(&self, proposal: Proposal, limit: Duration) -> Result<(Version, Outcome), Attempt> {
        let unknown = |reason: String| Attempt::Failed(ProposeError::Unknown(reason));
        let write = self.raft.client_write(Logged(Arc::new(proposal)));
        // openraft may drop the responder without a word: the deadline is part of the contract.
        match tokio::time::timeout(limit, write).await {
            Ok(Ok(written)) => match written.data.0 {
                Some(outcome) => Ok((Version(written.log_id.index), outcome)),
                None => Err(unknown("the entry was applied as if it had no command".into())),
            },
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(ForwardToLeader { leader_id, .. })))) => {
                Err(Attempt::NotLeader(leader_id))
            }
            Ok(Err(error)) => Err(unknown(error.to_string())),
            Err(_) => Err(unknown(format!(
                "the command was not committed and applied within {limit:?}"
            ))),
        }
    }

    /// An index that covers everything acknowledged before the call; this node must be the leader.
    pub(crate) async fn read_index(&self, limit: Duration) -> Result<Version, String> {
        // Asks a quorum each time. A lease would save that, and would be wrong after a pause of the process.
        match tokio::time::timeout(limit, self.raft.get_read_linearizer(ReadPolicy::ReadIndex)).await {
            Ok(Ok(linearizer)) => Ok(Version(linearizer.read_log_id().index())),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_)))) => Err("not the leader".into()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no quorum within {limit:?}")),
        }
    }

    /// Keeps [`Node::leadership`] up to date until Raft stops, and then says why it did.
    pub(crate) async fn follow_leadership(self: Arc<Self>) {
        let mut metrics = self.raft.server_metrics();
        loop {
            let now = {
                let seen = metrics.borrow_and_update();
                Leadership {
                    leader: seen.current_leader.map(NodeId),
                    term: seen.vote.leader_id.term,
                    is_self: seen.current_leader == Some(self.identity.node),
                }
            };
            self.leadership
                .send_if_modified(|last| std::mem::replace(last, now) != now);
            if metrics.changed().await.is_err() {
                break;
            }
        }
        let reason = match &self.raft.metrics().borrow_watched().running_state {
            Ok(()) => "Raft was shut down".to_owned(),
            Err(fatal) => fatal.to_string(),
        };
        self.leadership.send_replace(Leadership::default());
        self.stopped.send_replace(Some(reason));
    }
}
