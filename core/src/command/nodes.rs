//! Nodes: who belongs to the cluster, who is there, and what the operators want of each.

use crate::catalog::{Addresses, NodeIntent, NodeState, Replication};
use crate::ids::*;
use serde::{Deserialize, Serialize};

/// See [`Command::FoundCluster`](super::Command::FoundCluster).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoundCluster {
    /// Its id, chosen at random by the founder.
    pub cluster: ClusterId,
    /// Its name.
    pub name: String,
    /// The first nodes.
    pub members: Vec<FoundingMember>,
    /// How part files are replicated; `None` where all nodes share one part store.
    pub replication: Option<Replication>,
}

/// One of the first nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoundingMember {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Its data folder.
    pub instance: InstanceId,
    /// Its warehouse.
    pub warehouse: String,
    /// Where it is reached.
    pub addresses: Addresses,
}

/// See [`Command::NodeUp`](super::Command::NodeUp).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeUp {
    /// The node.
    pub node: NodeId,
    /// Its data folder.
    pub instance: InstanceId,
    /// This run of its process.
    pub boot: BootId,
    /// Where it is reached from now on.
    pub addresses: Addresses,
    /// Its disk for part files, if it keeps any.
    pub disk: Option<DiskId>,
    /// Its warehouse from now on; `None` is the one that it has.
    #[serde(default)]
    pub warehouse: Option<String>,
}

/// See [`Command::SetNodeState`](super::Command::SetNodeState).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetNodeState {
    /// The node.
    pub node: NodeId,
    /// The run of its process that was judged: a later one is not touched by an old judgement.
    pub boot: Option<BootId>,
    /// The state it gets.
    pub state: NodeState,
}

/// See [`Command::AddNode`](super::Command::AddNode).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AddNode {
    /// Its name; no other living node has it.
    pub name: String,
    /// Its data folder; a repetition is recognised by it.
    pub instance: InstanceId,
    /// Its warehouse.
    pub warehouse: String,
    /// Where it is reached.
    pub addresses: Addresses,
}

/// See [`Command::SetNodeIntent`](super::Command::SetNodeIntent).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetNodeIntent {
    /// The node: by id, so that a repetition never meets another node that has taken its name.
    pub node: NodeId,
    /// What is wanted.
    pub intent: NodeIntent,
}

/// See [`Command::RemoveNode`](super::Command::RemoveNode).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveNode {
    /// The node.
    pub node: NodeId,
    /// The run of its process when it was found that nothing which it has is needed. If it has come back since, its log may have
    /// rows that nobody else has.
    pub boot: Option<BootId>,
    /// Where it was in its life then.
    pub state: NodeState,
    /// Since when it was to leave then. If somebody thought better of it since, and worse of it again, it may have led in between.
    #[serde(default)]
    pub intent_since: Version,
}
