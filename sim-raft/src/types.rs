//! What openraft is told: the types of `raft/src/types.rs`, on the simulated runtime.

use crate::runtime::NodeRuntime;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::sync::Arc;
use tidemill_core::{InstanceId, Outcome, Proposal};

openraft::declare_raft_types!(
    /// The types of the group.
    pub TypeConfig:
        D = Logged,
        R = Reply,
        NodeId = u64,
        Node = Member,
        AsyncRuntime = NodeRuntime,
);

pub(crate) type Raft = openraft::Raft<TypeConfig, crate::catalog::CatalogStore>;
pub(crate) type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub(crate) type Membership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, crate::catalog::SnapshotFiles>;

/// A member of the group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its data folder.
    pub instance: Option<InstanceId>,
    /// The machine on which it runs, which is where it is reached.
    pub machine: usize,
}

/// A proposal in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Logged(pub Arc<Proposal>);

impl fmt::Display for Logged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "proposal {}", self.0.at_ms)
    }
}

// openraft asks for these two; nothing is encoded here.
impl Serialize for Logged {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Logged {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Proposal::deserialize(deserializer).map(|proposal| Self(Arc::new(proposal)))
    }
}

/// What applying an entry gave; `None` for entries that carry no command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply(pub Option<Outcome>);
