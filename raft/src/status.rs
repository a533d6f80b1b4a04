//! What a node can say about its part in the group, for people and metrics. A look, not a promise:
//! it may be out of date when it is read.

use crate::{node::Node, timing::leads_a_quorum, types::LogId};
use openraft::{Instant as _, async_runtime::watch::WatchReceiver};
use std::{collections::BTreeSet, sync::PoisonError, time::Duration};
use tidemill_core::{InstanceId, NodeId, Version};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftStatus {
    /// This node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Its data folder.
    pub instance: InstanceId,
    /// The term of office that it knows.
    pub term: u64,
    /// `Leader`, `Follower`, `Candidate`, `Learner` or `Shutdown`.
    pub role: String,
    /// Who leads, if known.
    pub leader: Option<NodeId>,
    /// Index of the last entry.
    pub last_log: Option<u64>,
    /// Index up to which entries are committed, as far as this node knows.
    pub committed: Option<u64>,
    /// The version of the catalog.
    pub applied: Version,
    /// Index of the last snapshot.
    pub snapshot: Option<u64>,
    /// Index up to which the log was purged.
    pub purged: Option<u64>,
    /// Who votes.
    pub voters: BTreeSet<NodeId>,
    /// Who gets the log and does not vote.
    pub learners: BTreeSet<NodeId>,
    /// Whether this node leads, and a quorum has confirmed it within two seconds.
    pub leads_a_quorum: bool,
    /// On the leader: the others.
    pub followers: Vec<FollowerStatus>,
    /// How often, since the start of this node, a follower of it had lost entries that it had acknowledged.
    pub log_losses: u64,
    /// Why the node is not part of a founded cluster yet.
    pub waiting_for: Option<String>,
    /// Why Raft does not run any more.
    pub stopped: Option<String>,
}

/// One follower as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowerStatus {
    /// The follower.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Index up to which its log is known to be the same.
    pub matched: Option<u64>,
    /// How long ago it last answered.
    pub seen: Option<Duration>,
}

impl RaftStatus {
    pub(crate) fn of(node: &Node) -> Self {
        let members = node.members();
        let metrics = node.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let index = |id: &Option<LogId>| id.as_ref().map(|id| id.index);
        let others = members.into_iter().filter(|(id, _)| *id != node.identity.node);
        let followers = match &metrics.replication {
            None => Vec::new(),
            Some(replication) => others
                .map(|(id, member)| FollowerStatus {
                    node: NodeId(id),
                    name: member.name,
                    matched: replication.get(&id).and_then(index),
                    seen: metrics
                        .heartbeat
                        .as_ref()
                        .and_then(|h| h.get(&id))
                        .and_then(|at| at.as_ref())
                        .map(|at| at.elapsed()),
                })
                .collect(),
        };
        Self {
            node: NodeId(node.identity.node),
            name: node.identity.name.clone(),
            instance: node.identity.instance,
            term: metrics.current_term,
            role: format!("{:?}", metrics.state),
            leader: metrics.current_leader.map(NodeId),
            last_log: metrics.last_log_index,
            committed: index(&metrics.local_committed),
            applied: *node.catalog.version().borrow(),
            snapshot: index(&metrics.snapshot),
            purged: index(&metrics.purged),
            voters: membership.voter_ids().map(NodeId).collect(),
            learners: membership.learner_ids().map(NodeId).collect(),
            leads_a_quorum: leads_a_quorum(&metrics),
            followers,
            log_losses: node.peers.log_losses(),
            waiting_for: node.waiting_for.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            stopped: node.stopped.borrow().clone(),
        }
    }
}
