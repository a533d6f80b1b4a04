//! Changing who belongs to the Raft group. What the next step is, `tidemill_core::membership` decides from the group and
//! the catalog; here the step is taken. Only the leader does that, and only on what it sees as its own: every change
//! of the group demands that the membership is still the one that was looked at, and the command that ends a
//! node's life is proposed on the leader itself, so that it follows the change it relies on in one log.
//!
//! A step that is cut short by a crash or by the loss of leadership leaves the group as it was, or joint, or changed; the
//! next call, here or on another leader, sees which and goes on.

use crate::{
    bootstrap::now_ms,
    error::ReadError,
    handle::Catalog,
    node::{Attempt, Node},
    timing::CAUGHT_UP,
    types::{LogId, Member, TypeConfig},
};
use openraft::{ChangeMembers, async_runtime::watch::WatchReceiver, raft::Precondition};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use thiserror::Error;
use tidemill_core::{
    Command, NodeId, Proposal,
    catalog::{self, NodeState, Shard},
    command::RemoveNode,
    membership::{Group, Heard, Plan, Standing, Step, next_step},
    view::CatalogRead,
};

/// Why a change of the group was not made, or may have been; either way the next look tells.
#[derive(Clone, Debug, Error)]
pub enum MembershipError {
    /// The catalog cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It was refused, or its end was not seen.
    #[error("{0}")]
    NotDone(String),
}

impl Catalog {
    /// The group as this node sees it; `None` unless it leads.
    pub fn group(&self, heard: &Heard) -> Result<Option<Group>, ReadError> {
        Ok(look(self.node(), heard)?.map(|(group, _)| group))
    }

    /// Takes the next step towards the members that the catalog asks for, if there is one and this node leads;
    /// says what it was, or why there is none. A step may take until `limit`.
    pub async fn tend_membership(&self, heard: Heard, limit: Duration) -> Result<Plan, MembershipError> {
        let Some((group, based_on)) = look(self.node(), &heard)? else {
            return Ok(Plan::Settled);
        };
        let plan = next_step(&group);
        if let Plan::Step(step) = &plan {
            let (catalog, step) = (self.clone(), step.clone());
            let work = async move { take(&catalog, step, based_on, limit).await };
            match self.on_runtime(work).await {
                Some(done) => done?,
                None => return Err(MembershipError::NotDone("this node has stopped".into())),
            }
        }
        Ok(plan)
    }
}

/// The group, and the position of the membership in it.
fn look(node: &Node, heard: &Heard) -> Result<Option<(Group, Option<LogId>)>, ReadError> {
    // Copied: Raft waits while they are borrowed, and the catalog is on disk.
    let metrics = node.raft.metrics().borrow_watched().clone();
    let Some(replication) = metrics
        .replication
        .as_ref()
        .filter(|_| metrics.current_leader == Some(metrics.id))
    else {
        return Ok(None);
    };
    let store = |e: &dyn std::fmt::Display| ReadError::Store(e.to_string());
    let state = node.catalog.pin().map_err(|e| store(&e))?;
    let shards = state.list::<Shard>(&[]).map_err(|e| store(&e))?;
    let leading: BTreeSet<NodeId> = shards.iter().filter_map(|shard| shard.leader).collect();
    let replicas = shards.iter().flat_map(|shard| &shard.replicas);
    let keeping: BTreeSet<NodeId> = replicas.map(|replica| replica.node).collect();
    let membership = metrics.membership_config.membership();
    let standing = |known: catalog::Node| {
        let matched = replication
            .get(&known.id.0)
            .and_then(|matched| matched.as_ref())
            .map(|id| id.index);
        let own = known.id.0 == metrics.id;
        let lacks = metrics.last_log_index.unwrap_or(0).saturating_sub(matched.unwrap_or(0));
        let member = membership.get_node(&known.id.0);
        let standing = Standing {
            state: known.state,
            boot: known.boot,
            intent: known.intent,
            intent_since: known.intent_since,
            leads_shards: leading.contains(&known.id),
            keeps_parts: keeping.contains(&known.id),
            keeps_rows: heard.keeps_rows(&known),
            alive: own || heard.alive.contains(&known.id),
            caught_up: own || (matched.is_some() && lacks <= CAUGHT_UP),
            moved: member.is_some_and(|member| known.state != NodeState::Removed && *member != member_of(&known)),
            name: known.name,
        };
        (known.id, standing)
    };
    let nodes: BTreeMap<NodeId, Standing> = state
        .list::<catalog::Node>(&[])
        .map_err(|e| store(&e))?
        .into_iter()
        .map(standing)
        .collect();
    let configs = membership.get_joint_config();
    let group = Group {
        leader: NodeId(metrics.id),
        voters: configs.last().into_iter().flatten().copied().map(NodeId).collect(),
        joint: configs.len() > 1,
        learners: membership.learner_ids().map(NodeId).collect(),
        nodes,
    };
    Ok(Some((group, *metrics.membership_config.log_id())))
}

fn member_of(node: &catalog::Node) -> Member {
    Member {
        name: node.name.clone(),
        instance: Some(node.instance),
        raft_addr: node.addresses.raft.clone(),
        api_addr: node.addresses.api.clone(),
        http_addr: node.addresses.http.clone(),
    }
}

async fn take(catalog: &Catalog, step: Step, based_on: Option<LogId>, limit: Duration) -> Result<(), MembershipError> {
    let node = catalog.node();
    let change = match step {
        Step::Remove(gone) => return remove(node, gone, limit).await,
        Step::TransferLeadership(to) => {
            return match catalog.transfer_leadership(Some(to), limit).await {
                true => Ok(()),
                false => Err(MembershipError::NotDone(format!(
                    "node {to} did not take the leadership"
                ))),
            };
        }
        // Nothing is added to what is under way: the last configuration becomes the only one.
        Step::FinishJoint => ChangeMembers::AddVoterIds(BTreeSet::new()),
        Step::SetVoters(voters) => ChangeMembers::ReplaceAllVoters(voters.into_iter().map(|id| id.0).collect()),
        Step::DropLearner(id) => ChangeMembers::RemoveNodes([id.0].into()),
        Step::AddLearner(id) => {
            let state = node.catalog.pin().map_err(|e| ReadError::Store(e.to_string()))?;
            let known = state
                .get::<catalog::Node>(&id)
                .map_err(|e| ReadError::Store(e.to_string()))?;
            let known = known.ok_or_else(|| MembershipError::NotDone(format!("there is no node {id}")))?;
            ChangeMembers::AddNodes([(id.0, member_of(&known))].into())
        }
    };
    change_group(node, change, based_on, limit).await
}

/// Changes the group, unless its membership is another by now. Who loses the vote stays as a learner.
async fn change_group(
    node: &Node,
    change: ChangeMembers<u64, Member>,
    based_on: Option<LogId>,
    limit: Duration,
) -> Result<(), MembershipError> {
    let unchanged: Precondition<TypeConfig> = Precondition::LastMembershipLogId {
        last_membership_log_id: based_on,
    };
    // openraft does the two halves of a change one after the other in this call: cut short in between, the group stays
    // joint, and the next step is to finish that.
    let changed = node.raft.change_membership_if(change, true, [unchanged]);
    match tokio::time::timeout(limit, changed).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(MembershipError::NotDone(error.to_string())),
        Err(_) => Err(MembershipError::NotDone(format!(
            "it was not committed within {limit:?}"
        ))),
    }
}

/// Lets the catalog note that the node is gone. On this leader or not at all: handed on to another leader, it might
/// come before the loss of the vote that it relies on.
async fn remove(node: &Node, gone: RemoveNode, limit: Duration) -> Result<(), MembershipError> {
    match node
        .propose(Proposal::new(now_ms(), Command::RemoveNode(gone)), limit)
        .await
    {
        Ok((_, Ok(_))) => Ok(()),
        Ok((_, Err(refusal))) => Err(MembershipError::NotDone(refusal.to_string())),
        Err(Attempt::NotLeader(_)) => Err(MembershipError::NotDone("this node does not lead any more".into())),
        Err(Attempt::Failed(error)) => Err(MembershipError::NotDone(error.to_string())),
    }
}
