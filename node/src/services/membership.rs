//! Joining, draining and removing nodes. The manager decides and proposes; any other node passes the call on to it, once.
//!
//! Whether a node may go is judged here by what the manager sees at the moment. The catalog checks what it can know for
//! itself, and each later step is judged anew, so that a node that fails in between cannot cost the quorum.

use crate::adapters::{Connections, propose};
use crate::manager::Reports;
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use tidemill_core::catalog::{
    Addresses, CatalogQuestions, Cluster, ClusterKey, Node, NodeIntent, NodeState, Replica, ReplicaState, Shard,
};
use tidemill_core::command::{AddNode, SetNodeIntent};
use tidemill_core::membership::{may_drain, may_leave};
use tidemill_core::view::{CatalogRead, CatalogSnapshot, ViewError};
use tidemill_core::{Command, NodeId, Response as Applied};
use tidemill_proto::api::membership_client::MembershipClient;
use tidemill_proto::api::membership_server::Membership;
use tidemill_proto::api::{ErrorDetail, FindNodeRequest, Intent, JoinReply, JoinRequest, NodeReply, SetIntentRequest};
use tidemill_raft::{Catalog, RaftStatus};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

/// How long a command or a read may take.
const DECIDE: Duration = Duration::from_secs(3);
/// How long the manager may take to answer a node that passes a call on.
const PASSED_ON: Duration = Duration::from_secs(7);

/// Serves on the api address for clients, and on the Raft address for nodes that pass a call on.
#[derive(Clone)]
pub struct MembershipService {
    /// The catalog.
    pub catalog: Catalog,
    /// What the manager hears.
    pub reports: Arc<Reports>,
    /// Ways to the manager.
    pub connections: Arc<Connections>,
}

#[tonic::async_trait]
impl Membership for MembershipService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let mut asked = request.into_inner();
        match self.manager(asked.passed_on)? {
            None => self.admit(asked).await.map(Response::new),
            Some(mut manager) => {
                asked.passed_on = true;
                passed(manager.join(within(asked)).await)
            }
        }
    }

    async fn find_node(&self, request: Request<FindNodeRequest>) -> Result<Response<NodeReply>, Status> {
        let mut asked = request.into_inner();
        match self.manager(asked.passed_on)? {
            None => self.find(&asked.name).await.map(Response::new),
            Some(mut manager) => {
                asked.passed_on = true;
                passed(manager.find_node(within(asked)).await)
            }
        }
    }

    async fn set_intent(&self, request: Request<SetIntentRequest>) -> Result<Response<NodeReply>, Status> {
        let mut asked = request.into_inner();
        match self.manager(asked.passed_on)? {
            None => self.intend(&asked).await.map(Response::new),
            Some(mut manager) => {
                asked.passed_on = true;
                passed(manager.set_intent(within(asked)).await)
            }
        }
    }
}

impl MembershipService {
    /// The manager, if it is another node.
    fn manager(&self, passed_on: bool) -> Result<Option<MembershipClient<Channel>>, Status> {
        let leadership = *self.catalog.leadership().borrow();
        if leadership.is_self {
            return Ok(None);
        }
        if passed_on {
            return Err(later("the node that was taken for the manager is not"));
        }
        let leader = leadership.leader.and_then(|leader| self.catalog.peer(leader));
        let leader = leader.ok_or_else(|| later("no leader is known"))?;
        let channel = self.connections.to(&leader.raft_addr).map_err(|e| later(&e))?;
        Ok(Some(MembershipClient::new(channel)))
    }

    async fn state(&self) -> Result<Arc<dyn CatalogSnapshot>, Status> {
        self.catalog
            .read_index(DECIDE)
            .await
            .map_err(|e| later(&e.to_string()))?;
        self.catalog.snapshot().map_err(|e| Status::internal(e.to_string()))
    }

    async fn propose(&self, command: Command) -> Result<Applied, Status> {
        // All commands from here may be repeated, so that *not known* and *not done* call for the same.
        let (_, outcome) = propose(&self.catalog, command, DECIDE)
            .await
            .map_err(|e| later(&e.to_string()))?;
        outcome.map_err(|refusal| Status::failed_precondition(refusal.to_string()))
    }

    async fn admit(&self, asked: JoinRequest) -> Result<JoinReply, Status> {
        let cluster = self.state().await?.get::<Cluster>(&ClusterKey).map_err(broken)?;
        let cluster = cluster.ok_or_else(|| later("the cluster is not founded yet"))?;
        if cluster.name != asked.cluster {
            return Err(Status::failed_precondition(format!(
                "this is cluster '{}', not '{}'",
                cluster.name, asked.cluster
            )));
        }
        let instance = asked.instance.parse();
        let command = AddNode {
            instance: instance.map_err(|_| Status::invalid_argument("the data folder cannot be read"))?,
            warehouse: asked.warehouse,
            addresses: Addresses {
                raft: asked.raft,
                api: asked.api,
                http: asked.http,
            },
            name: asked.name,
        };
        match self.propose(Command::AddNode(command)).await? {
            Applied::Node(node) => Ok(JoinReply { node: node.0 }),
            other => Err(Status::internal(format!("the catalog answered {other:?}"))),
        }
    }

    async fn find(&self, name: &str) -> Result<NodeReply, Status> {
        let state = self.state().await?;
        let nodes = state.list::<Node>(&[]).map_err(broken)?;
        let named = nodes.iter().filter(|node| node.name == name);
        // At most one of a name lives; of the removed ones the last is meant.
        match named.max_by_key(|node| (node.state != NodeState::Removed, node.id)) {
            Some(node) => self.reply(&*state, node),
            None => {
                let known = nodes.iter().filter(|node| node.state != NodeState::Removed);
                let known: Vec<&str> = known.map(|node| node.name.as_str()).collect();
                let text = format!("there is no node called '{name}'; there are {}", known.join(", "));
                Err(Status::not_found(text))
            }
        }
    }

    async fn intend(&self, asked: &SetIntentRequest) -> Result<NodeReply, Status> {
        let id = NodeId(asked.node);
        let intent = match asked.intent() {
            Intent::Serve => NodeIntent::Serve,
            Intent::Drain => NodeIntent::Drain,
            Intent::Leave => NodeIntent::Leave,
            Intent::Unspecified => return Err(Status::invalid_argument("what is wanted is not said")),
        };
        let state = self.state().await?;
        let node = known(&*state, id)?;
        if node.intent != intent {
            let heard = self
                .reports
                .heard()
                .ok_or_else(|| later("the manager has just taken office"))?;
            let group = self.catalog.group(&heard).map_err(|e| later(&e.to_string()))?;
            let group = group.ok_or_else(|| later("this node is not the manager any more"))?;
            let possible = match intent {
                NodeIntent::Serve => Ok(()),
                NodeIntent::Drain => may_drain(&group, id),
                NodeIntent::Leave => may_leave(&group, id),
            };
            possible.map_err(|why| {
                Status::failed_precondition(format!("node '{}' cannot {intent} now: {why}", node.name))
            })?;
        }
        // A removed node has an intent, too: the catalog says what that means.
        if node.intent != intent || node.state == NodeState::Removed {
            self.propose(Command::SetNodeIntent(SetNodeIntent { node: id, intent }))
                .await?;
        }
        let state = self.state().await?;
        let node = known(&*state, id)?;
        self.reply(&*state, &node)
    }

    fn reply(&self, state: &dyn CatalogSnapshot, node: &Node) -> Result<NodeReply, Status> {
        let all = state.list::<Shard>(&[]).map_err(broken)?;
        let shards = all.iter().filter(|shard| shard.leader == Some(node.id)).count();
        let removed = node.state == NodeState::Removed;
        let done = match node.intent {
            NodeIntent::Serve => node.state == NodeState::Ready,
            NodeIntent::Drain => shards == 0,
            NodeIntent::Leave => removed,
        };
        let waiting_for = match node.intent {
            _ if done || removed => String::new(),
            NodeIntent::Serve => "its heartbeats".to_owned(),
            _ if shards == 1 => "1 shard to move".to_owned(),
            _ if shards > 0 => format!("{shards} shards to move"),
            _ => match (copying(state, &all, node.id).map_err(broken)?, self.reports.waiting()) {
                (Some(copying), _) => copying,
                (None, Some(why)) => why,
                (None, None) => "the Raft group to go on without it".to_owned(),
            },
        };
        Ok(NodeReply {
            node: node.id.0,
            name: node.name.clone(),
            state: node.state.to_string(),
            intent: match node.intent {
                NodeIntent::Serve => Intent::Serve,
                NodeIntent::Drain => Intent::Drain,
                NodeIntent::Leave => Intent::Leave,
            }
            .into(),
            shards: shards as u32,
            done,
            waiting_for,
        })
    }
}

/// How many files are still to be copied by replicas of the shards whose files `node` keeps.
fn copying(state: &dyn CatalogSnapshot, shards: &[Shard], node: NodeId) -> Result<Option<String>, ViewError> {
    let (mut missing, mut bytes, mut all) = (0, 0, 0);
    for shard in shards.iter().filter(|shard| shard.replica(node).is_some()) {
        let copying = |replica: &&Replica| replica.state == ReplicaState::Copying;
        for replica in shard.replicas.iter().filter(copying) {
            for copies in state.copies_of(shard.id)? {
                all += 1;
                if copies.holders.iter().all(|holder| holder.node != replica.node) {
                    missing += 1;
                    bytes += copies.bytes;
                }
            }
        }
    }
    let mib = bytes as f64 / f64::from(1 << 20);
    Ok((all > 0).then(|| format!("{missing} of {all} files to be copied to other nodes ({mib:.1} MiB)")))
}

fn known(state: &dyn CatalogSnapshot, id: NodeId) -> Result<Node, Status> {
    let node = state.get::<Node>(&id).map_err(broken)?;
    node.ok_or_else(|| Status::not_found(format!("there is no node {id}")))
}

/// The part that a node has in the Raft group, in one word.
pub fn role(node: &Node, raft: &RaftStatus) -> &'static str {
    if node.state == NodeState::Removed {
        "removed"
    } else if raft.leader == Some(node.id) {
        "leader"
    } else if raft.voters.contains(&node.id) {
        "voter"
    } else if raft.learners.contains(&node.id) {
        "learner"
    } else {
        "joining"
    }
}

fn within<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PASSED_ON);
    request
}

/// The manager's answer. A connection that broke is nobody's refusal.
fn passed<T>(answer: Result<Response<T>, Status>) -> Result<Response<T>, Status> {
    answer.map_err(|status| {
        let lost = std::error::Error::source(&status).is_some();
        if lost
            || matches!(
                status.code(),
                Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded
            )
        {
            later(&format!("the manager does not answer: {}", status.message()))
        } else {
            Status::with_details(status.code(), status.message(), status.details().to_vec().into())
        }
    })
}

fn broken(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

/// Nothing that was asked for was refused: it may be asked again.
fn later(why: &str) -> Status {
    let detail = ErrorDetail {
        retryable: true,
        ..ErrorDetail::default()
    };
    Status::with_details(Code::Unavailable, why, detail.encode_to_vec().into())
}
