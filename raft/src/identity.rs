//! Who a data folder is: the cluster, the node, and a random number made with the folder. It is
//! written before anything else, so that an emptied folder is recognised as another one. Nothing in it
//! is ever changed; the folder of a node that joins gets its number added, once, when the cluster
//! has given it one.

use crate::{
    config::{Origin, RaftConfig},
    error::StartError,
    folder,
};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::{InstanceId, NodeId};

/// The identity of a data folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The name of the cluster.
    pub cluster_name: String,
    /// The name of the node.
    pub name: String,
    /// Its number: the position among the founding members, from 1, or what the cluster gave it.
    pub node: u64,
    /// The folder itself.
    pub instance: InstanceId,
}

/// How far a data folder has come on its way into the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It has no number yet: the cluster must be asked for one, in the name of this folder.
    New(InstanceId),
    /// It has a number, and nothing of the cluster's log yet.
    Admitted(Identity),
    /// It is part of the cluster.
    Joined(Identity),
}

/// The same as it is written.
#[derive(Serialize, Deserialize)]
struct Written {
    cluster_name: String,
    name: String,
    /// Absent while a node that joins has not been given one.
    #[serde(default)]
    node: Option<u64>,
    instance: InstanceId,
    /// Whether it was made to found the cluster: the number is a place in a list then, and nobody else has given it.
    #[serde(default)]
    founding: bool,
}

/// Where the identity of a data folder is.
fn file(data_dir: &Path) -> PathBuf {
    data_dir.join("identity.json")
}

/// Where it is noted that the folder is part of a cluster.
fn mark(data_dir: &Path) -> PathBuf {
    data_dir.join("joined")
}

/// Notes that the folder is part of a cluster: from now on, an empty log is a lost log. Blocks.
pub(crate) fn mark_joined(data_dir: &Path) -> io::Result<()> {
    if is_joined(data_dir) {
        return Ok(());
    }
    folder::write_whole(&mark(data_dir), b"This data folder is part of a cluster.\n")
}

/// Whether the folder is part of a cluster.
pub(crate) fn is_joined(data_dir: &Path) -> bool {
    mark(data_dir).exists()
}

fn removed_mark(data_dir: &Path) -> PathBuf {
    data_dir.join("removed")
}

/// Notes that the node was removed from its cluster: the folder never takes part again. Blocks.
pub(crate) fn mark_removed(data_dir: &Path) -> io::Result<()> {
    let text = b"This data folder was removed from its cluster. It can be deleted.\n";
    folder::write_whole(&removed_mark(data_dir), text)
}

/// Reads how far the configured folder has come, making its identity if it is empty. Blocks.
pub(crate) fn claim(config: &RaftConfig) -> Result<Claim, StartError> {
    let written = read_or_create(config)?;
    let Some(node) = written.node else {
        return Ok(Claim::New(written.instance));
    };
    let identity = Identity {
        cluster_name: written.cluster_name,
        name: written.name,
        node,
        instance: written.instance,
    };
    Ok(match is_joined(&config.data_dir) {
        true => Claim::Joined(identity),
        false => Claim::Admitted(identity),
    })
}

/// Writes the number that the cluster has given to the configured folder. Blocks.
pub(crate) fn admit(config: &RaftConfig, node: NodeId) -> Result<(), StartError> {
    let mut written = read_or_create(config)?;
    match written.node {
        Some(known) if known == node.0 => return Ok(()),
        Some(known) => {
            return Err(StartError::Renumbered {
                folder: config.data_dir.clone(),
                known,
                given: node.0,
            });
        }
        None => written.node = Some(node.0),
    }
    write(&config.data_dir, &written)
}

fn write(data_dir: &Path, written: &Written) -> Result<(), StartError> {
    let text = serde_json::to_vec_pretty(written).map_err(io::Error::other);
    text.and_then(|text| folder::write_whole(&file(data_dir), &text))
        .map_err(|error| StartError::Disk {
            what: format!("{} cannot be written", file(data_dir).display()),
            error: Arc::new(error),
        })
}

/// The identity of the configured folder; it must have its number.
pub(crate) fn load_or_create(config: &RaftConfig) -> Result<Identity, StartError> {
    match claim(config)? {
        Claim::Joined(identity) | Claim::Admitted(identity) => Ok(identity),
        Claim::New(_) => Err(StartError::NotAdmitted {
            folder: config.data_dir.clone(),
            cluster: config.cluster_name.clone(),
        }),
    }
}

fn read_or_create(config: &RaftConfig) -> Result<Written, StartError> {
    let disk = |what: String| {
        move |error: io::Error| StartError::Disk {
            what,
            error: Arc::new(error),
        }
    };
    let given = match &config.origin {
        Origin::Joining(_) => None,
        Origin::Founding(members) => {
            let position = members.iter().position(|member| member.name == config.name);
            let position = position.ok_or_else(|| {
                StartError::Config(format!("the node '{}' is not in its own list of members", config.name))
            })?;
            Some(position as u64 + 1)
        }
    };
    let folder = &config.data_dir;
    fs::create_dir_all(folder).map_err(disk(format!("the data folder {} cannot be made", folder.display())))?;
    let path = file(folder);
    let written = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice::<Written>(&bytes).map_err(|e| StartError::LostIdentity {
            folder: folder.clone(),
            reason: e.to_string(),
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if folder.join("raft-log").exists() || folder.join("catalog").exists() || is_joined(folder) {
                let reason = format!("{} is missing", path.display());
                return Err(StartError::LostIdentity {
                    folder: folder.clone(),
                    reason,
                });
            }
            let written = Written {
                cluster_name: config.cluster_name.clone(),
                name: config.name.clone(),
                node: given,
                instance: InstanceId(rand::random()),
                founding: given.is_some(),
            };
            write(folder, &written)?;
            written
        }
        Err(error) => return Err(disk(format!("{} cannot be read", path.display()))(error)),
    };
    check(config, written, given)
}

/// Whether the folder is the configured node's, and still somebody's.
fn check(config: &RaftConfig, written: Written, given: Option<u64>) -> Result<Written, StartError> {
    let folder = &config.data_dir;
    if removed_mark(folder).exists() {
        return Err(StartError::Removed {
            folder: folder.clone(),
            cluster: written.cluster_name,
            name: written.name,
        });
    }
    if written.cluster_name != config.cluster_name || written.name != config.name {
        return Err(StartError::ForeignFolder {
            folder: folder.clone(),
            found_name: written.name.into(),
            found_cluster: written.cluster_name.into(),
            name: config.name.clone(),
            cluster: config.cluster_name.clone(),
        });
    }
    match (written.node, given) {
        (Some(known), Some(given)) if known != given => Err(StartError::Renumbered {
            folder: folder.clone(),
            known,
            given,
        }),
        // Its number would not be the one that the cluster gives it.
        (Some(_), None) if written.founding && !is_joined(folder) => Err(StartError::NeverFounded {
            folder: folder.clone(),
            cluster: written.cluster_name,
        }),
        // It asked to be admitted; it must not found a cluster instead.
        (None, Some(_)) => Err(StartError::NotAdmitted {
            folder: folder.clone(),
            cluster: written.cluster_name,
        }),
        _ => Ok(written),
    }
}
