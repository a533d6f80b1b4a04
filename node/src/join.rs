//! Joining: a node with `join` in its configuration and a folder that is not part of a cluster yet asks to be admitted. It
//! asks in the name of its data folder, so that it gets the same number however often it asks; with the number its
//! Raft can start, and the leader sends it the rest.

use crate::config::NodeConfig;
use anyhow::{anyhow, bail};
use std::time::Duration;
use tidemill_client::{Client, ClientConfig, ClientError, JoinRequest};
use tidemill_core::{InstanceId, NodeId};
use tidemill_raft::{Catalog, Claim, RaftConfig};
use tracing::{info, warn};

/// How long to wait after an attempt at which nobody could decide.
const AGAIN: Duration = Duration::from_secs(1);
/// How often a node that waits for the log asks whether it is still to come.
const STILL: Duration = Duration::from_secs(5);

/// Makes sure that the folder has its number, as long as it takes. Does nothing for a founding member, or a folder that
/// is part of the cluster.
///
/// # Errors
/// When the cluster refuses, or the folder cannot be used.
pub async fn admitted(config: &NodeConfig, raft: &RaftConfig) -> anyhow::Result<()> {
    if config.join.is_empty() {
        return Ok(());
    }
    let instance = match Catalog::claim(raft)? {
        Claim::New(instance) => instance,
        Claim::Admitted(identity) => identity.instance,
        Claim::Joined(_) => return Ok(()),
    };
    info!(node = %config.own.name, cluster = %config.cluster, "asking to be admitted");
    let node = ask(config, instance).await?;
    Catalog::admit(raft, NodeId(node))?;
    info!(node = %config.own.name, id = node, "the cluster has admitted this node");
    Ok(())
}

/// Ends only when the cluster will not have this folder any more while it waits for the log.
pub async fn refused(config: &NodeConfig, instance: InstanceId) -> anyhow::Error {
    if config.join.is_empty() {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(STILL).await;
        if let Err(error) = ask(config, instance).await {
            return error;
        }
    }
}

/// Asks until somebody decides.
async fn ask(config: &NodeConfig, instance: InstanceId) -> anyhow::Result<u64> {
    let client = Client::new(ClientConfig::new(config.join.iter().cloned()))?;
    loop {
        let own = &config.own;
        let request = JoinRequest {
            cluster: config.cluster.clone(),
            name: own.name.clone(),
            instance: instance.to_string(),
            warehouse: own.warehouse.clone(),
            raft: own.raft_addr.clone(),
            api: own.api_addr.clone(),
            http: own.http_addr.clone(),
            passed_on: false,
        };
        match client.join(request).await {
            Ok(node) => return Ok(node),
            Err(ClientError::Server { message }) => {
                bail!("cluster '{}' does not admit this node: {message}", config.cluster)
            }
            Err(error @ (ClientError::Config { .. } | ClientError::Invalid { .. })) => return Err(anyhow!(error)),
            Err(error) => warn!("not admitted yet: {error}"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}
