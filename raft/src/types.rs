//! What openraft is told about us: the type configuration, the member of a group, and the
//! proposal and reply as they travel through the log. Also the one encoding (MessagePack with
//! named fields) of everything that this crate writes to disk or to a peer. Nothing here does I/O.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use std::{fmt, io, sync::Arc};
use tidemill_core::{InstanceId, Outcome, Proposal};

openraft::declare_raft_types!(
    /// The types of our Raft group.
    pub TypeConfig:
        D = Logged,
        R = Reply,
        NodeId = u64,
        Node = Member,
);

/// Raft as this crate uses it.
pub(crate) type Raft = openraft::Raft<TypeConfig, crate::catalog_store::CatalogStore>;
/// Position of an entry: who led when it was made, and its index.
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// An entry of the log.
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
/// A vote.
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// The members of the group and where in the log that was decided.
pub type Membership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
/// Which state a snapshot holds.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;

/// A member of the group, as the group's own configuration knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its data folder; `None` only in the empty default that openraft's tests ask for.
    pub instance: Option<InstanceId>,
    /// Where it speaks Raft, `host:port`.
    pub raft_addr: String,
    /// Where it serves clients, `host:port`.
    pub api_addr: String,
    /// Where it serves health and metrics, `host:port`.
    pub http_addr: String,
}

/// A proposal in the log. Shared, because replication and apply hold it at the same time.
#[derive(Clone, Debug, PartialEq)]
pub struct Logged(pub Arc<Proposal>);

impl fmt::Display for Logged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "proposal of {} ms, format {}", self.0.at_ms, self.0.format)
    }
}

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

/// Encodes with named fields, so that a later version may add some.
pub(crate) fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    rmp_serde::to_vec_named(value).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Decodes what [`encode`] made.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    rmp_serde::from_slice(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}
