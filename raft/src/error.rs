//! What can go wrong, as callers must tell it apart: a node that cannot start, a command that is
//! certainly not in the log, a command of which that is not known, and a read that was not answered.

use crate::log_store::LogOpenError;
use std::{io, path::PathBuf, sync::Arc, time::Duration};
use thiserror::Error;
use tidemill_core::{InstanceId, Version};

/// The node cannot start, or cannot belong to the cluster.
#[derive(Clone, Debug, Error)]
pub enum StartError {
    /// The configuration contradicts itself.
    #[error("{0}")]
    Config(String),
    /// The folder holds the data of another node.
    #[error(
        "the data folder {folder} belongs to node '{found_name}' of cluster '{found_cluster}', but this is node \
         '{name}' of cluster '{cluster}'; start it with its own folder, or an empty one"
    )]
    ForeignFolder {
        /// The folder.
        folder: PathBuf,
        /// The name in the folder.
        found_name: Box<str>,
        /// The cluster in the folder.
        found_cluster: Box<str>,
        /// The configured name.
        name: String,
        /// The configured cluster.
        cluster: String,
    },
    /// The list of members changed its order or lost this node since the folder was made.
    #[error(
        "in the data folder {folder} this is member {known} of the cluster, in the configuration it is member {given}; \
         the list of members must keep its order"
    )]
    Renumbered {
        /// The folder.
        folder: PathBuf,
        /// The number in the folder.
        known: u64,
        /// The number by the configuration.
        given: u64,
    },
    /// The folder was removed from its cluster.
    #[error(
        "node '{name}' was removed from cluster '{cluster}', and its data folder {folder} can never come back. Delete \
         the folder; with an empty one this machine can join as a new node (tidemill node join)"
    )]
    Removed {
        /// The folder.
        folder: PathBuf,
        /// The cluster.
        cluster: String,
        /// The name.
        name: String,
    },
    /// The folder was made to join a cluster, which has not given it a number yet.
    #[error("the data folder {folder} has not been admitted to cluster '{cluster}' yet; start it with `join` set")]
    NotAdmitted {
        /// The folder.
        folder: PathBuf,
        /// The cluster.
        cluster: String,
    },
    /// The folder was made to found a cluster, which it never was part of, and is to join it now.
    #[error(
        "the data folder {folder} was made for a node that founds cluster '{cluster}', and is no part of it; there is \
         nothing in it: delete it, and this machine joins as a new node"
    )]
    NeverFounded {
        /// The folder.
        folder: PathBuf,
        /// The cluster.
        cluster: String,
    },
    /// The folder's identity is gone or unreadable although there is data.
    #[error("the data folder {folder} has data but no identity that can be read ({reason}); move it away as a whole")]
    LostIdentity {
        /// The folder.
        folder: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The folder was part of a cluster, and its log is gone.
    #[error(
        "the data folder {folder} was part of cluster '{cluster}', but its Raft log is gone. With it went what this \
         node had promised to the others, so it must not go on as the same node: move the folder away as a whole, \
         remove the node from the cluster and let this machine join anew (tidemill node join)"
    )]
    LostLog {
        /// The folder.
        folder: PathBuf,
        /// The cluster.
        cluster: String,
    },
    /// The cluster knows this name with other data.
    #[error(
        "data folder {folder} (instance {instance}) is not the one that cluster '{cluster}' knows for node '{name}' \
         (instance {known}). A wiped node is a new node: give it back its own folder, or remove the node from the \
         cluster (tidemill node remove {name}), delete this folder, and let this machine join anew (tidemill node join)"
    )]
    Replaced {
        /// This folder.
        folder: PathBuf,
        /// This folder's instance.
        instance: InstanceId,
        /// The cluster.
        cluster: String,
        /// The name.
        name: String,
        /// The instance that the cluster knows.
        known: Box<str>,
    },
    /// The cluster exists and does not know this name.
    #[error(
        "cluster '{cluster}' exists and has no node called '{name}', or none any more; to join it, write a \
         configuration with tidemill node join"
    )]
    NotAMember {
        /// The cluster.
        cluster: String,
        /// The name.
        name: String,
    },
    /// A node of another cluster is at a member's address.
    #[error("at {address}, where '{name}' of cluster '{cluster}' should be, there is a node of cluster '{found}'")]
    OtherCluster {
        /// Where.
        address: String,
        /// Who should be there.
        name: String,
        /// Our cluster.
        cluster: String,
        /// The cluster there.
        found: String,
    },
    /// Another node is at a member's address.
    #[error("at {address} there should be node '{name}', but there is node '{found}'")]
    OtherNode {
        /// Where.
        address: String,
        /// Who should be there.
        name: String,
        /// Who is.
        found: String,
    },
    /// Another process answers at this node's address under its name.
    #[error(
        "at {address} another process runs as node '{name}' with a data folder of its own; this one, with {folder}, \
         cannot be the same node. Every node needs a name of its own: end one of the two, or rename it"
    )]
    Namesake {
        /// Where.
        address: String,
        /// The name.
        name: String,
        /// The folder of this process.
        folder: PathBuf,
    },
    /// A member has another list of members.
    #[error("node '{name}' is configured with the members [{theirs}], this node with [{ours}]; they must be the same")]
    OtherMembers {
        /// The other node.
        name: String,
        /// Its list.
        theirs: String,
        /// Our list.
        ours: String,
    },
    /// The log cannot be opened.
    #[error(transparent)]
    Log(#[from] LogOpenError),
    /// The catalog cannot be opened.
    #[error(
        "the catalog in {folder} cannot be opened: {reason}. If it is damaged, do not repair it: move the whole data \
         folder away and let this machine join as a new node with an empty folder"
    )]
    Catalog {
        /// Where it is.
        folder: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The disk failed.
    #[error("{what}: {error}")]
    Disk {
        /// What was tried.
        what: String,
        /// What came of it.
        #[source]
        error: Arc<io::Error>,
    },
    /// openraft does not start, or has stopped.
    #[error("Raft does not run: {0}")]
    Raft(String),
}

/// A command was not acknowledged. The three cases must stay apart: after [`ProposeError::Unknown`]
/// the command may take effect at any later time.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ProposeError {
    /// It is certainly not in the log, and never will be.
    #[error("the command has {bytes} bytes, at most {limit} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The most allowed.
        limit: usize,
    },
    /// It is certainly not in the log: it may be proposed again.
    #[error("the command was not proposed: {0}")]
    NotSent(String),
    /// It may or may not be in the log, now or later.
    #[error("it is not known whether the command takes effect: {0}")]
    Unknown(String),
}

/// A read could not be placed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ReadError {
    /// No leader answered in time.
    #[error("no leader confirmed the read within {waited:?}: {reason}")]
    NoLeader {
        /// How long it was tried.
        waited: Duration,
        /// The last thing that went wrong.
        reason: String,
    },
    /// This node did not catch up in time.
    #[error("this node is at version {at} and did not reach {wanted} within {waited:?}")]
    Behind {
        /// Where it is.
        at: Version,
        /// Where it should be.
        wanted: Version,
        /// How long was waited.
        waited: Duration,
    },
    /// The store failed.
    #[error("the catalog cannot be read: {0}")]
    Store(String),
    /// The node is stopping.
    #[error("this node has stopped")]
    Stopped,
}
