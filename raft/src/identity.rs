//! Who a data folder is: the cluster, the node, and a random number made with the folder. It is
//! written once, before anything else, and never changed, so that an emptied folder is recognised
//! as another one.

use crate::{config::RaftConfig, error::StartError, folder};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill_core::InstanceId;

/// The identity of a data folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The name of the cluster.
    pub cluster_name: String,
    /// The name of the node.
    pub name: String,
    /// Its number: the position among the founding members, from 1.
    pub node: u64,
    /// The folder itself.
    pub instance: InstanceId,
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

/// Reads the identity of the configured folder, or makes it if the folder is empty. Blocks.
pub(crate) fn load_or_create(config: &RaftConfig) -> Result<Identity, StartError> {
    let disk = |what: String| {
        move |error: io::Error| StartError::Disk {
            what,
            error: Arc::new(error),
        }
    };
    let position = config
        .members
        .iter()
        .position(|member| member.name == config.name)
        .ok_or_else(|| StartError::Config(format!("the node '{}' is not in its own list of members", config.name)))?;
    let node = position as u64 + 1;
    let folder = &config.data_dir;
    fs::create_dir_all(folder).map_err(disk(format!("the data folder {} cannot be made", folder.display())))?;
    let path = file(folder);
    let identity = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice::<Identity>(&bytes).map_err(|e| StartError::LostIdentity {
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
            let identity = Identity {
                cluster_name: config.cluster_name.clone(),
                name: config.name.clone(),
                node,
                instance: InstanceId(rand::random()),
            };
            let text = serde_json::to_vec_pretty(&identity).map_err(io::Error::other);
            text.and_then(|text| folder::write_whole(&path, &text))
                .map_err(disk(format!("{} cannot be written", path.display())))?;
            identity
        }
        Err(error) => return Err(disk(format!("{} cannot be read", path.display()))(error)),
    };
    if identity.cluster_name != config.cluster_name || identity.name != config.name {
        return Err(StartError::ForeignFolder {
            folder: folder.clone(),
            found: Box::new(identity),
            name: config.name.clone(),
            cluster: config.cluster_name.clone(),
        });
    }
    if identity.node != node {
        return Err(StartError::Renumbered {
            folder: folder.clone(),
            known: identity.node,
            given: node,
        });
    }
    Ok(identity)
}
