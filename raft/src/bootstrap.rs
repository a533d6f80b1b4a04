//! How a cluster comes into being, and how a node finds out that it does not belong to it.
//!
//! The first of the configured members, when its folder is blank, waits until all others answer
//! that they are blank too, belong to the same cluster and have the same list of members; then it
//! founds the Raft group with the data folders that it saw. A blank node that learns of a founded
//! group with another folder under its own name stops: what it promised before is gone with its
//! old folder, and it must not promise anything again under that name.
//!
//! What the answers mean is decided by [`judge`], which does no I/O. A node that joins founds nothing: it has its
//! number from the cluster already, and waits for the leader to send the log.

use crate::{
    config::{MemberConfig, Origin, RaftConfig},
    error::StartError,
    identity,
    node::Node,
    peers::Lane,
    types::Member,
};
use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tidemill_core::{
    ClusterId, Command, InstanceId, NodeId, Proposal,
    catalog::Addresses,
    command::{FoundCluster, FoundingMember},
};
use tidemill_proto::raft::{IdentityReply, IdentityRequest};

/// How long a blank node waits between two rounds of questions.
const ROUND: Duration = Duration::from_millis(250);
/// How long it waits for one answer.
const ANSWER: Duration = Duration::from_millis(1000);
/// How long the first command may take before it is proposed again.
const FOUNDING: Duration = Duration::from_secs(5);

/// What the answers of the other members mean for a blank node.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Nothing can be done yet, for this reason.
    Wait(String),
    /// All are there and blank: the first member may found the group, with these folders by number.
    Found(BTreeMap<u64, InstanceId>),
    /// The group exists and knows this folder; its leader will send what is missing.
    Belongs,
}

/// Decides what a blank node does. `answers` holds one entry for each configured member, in
/// order: `None` for this node itself, `Some(None)` for one that did not answer.
pub(crate) fn judge(
    config: &RaftConfig,
    instance: InstanceId,
    answers: &[Option<Option<IdentityReply>>],
) -> Result<Verdict, StartError> {
    let mut folders = BTreeMap::new();
    let mut silent = Vec::new();
    let mut belongs = false;
    for ((number, member), answer) in (1u64..).zip(config.founding()).zip(answers) {
        let answer = match answer {
            None => {
                folders.insert(number, instance);
                continue;
            }
            Some(None) => {
                silent.push(format!("'{}' at {}", member.name, member.raft_addr));
                continue;
            }
            Some(Some(answer)) => answer,
        };
        check_place(config, member, answer)?;
        check_membership(config, instance, answer)?;
        if !answer.members.is_empty() {
            belongs = true;
        } else if !answer.blank {
            silent.push(format!("'{}', which is still starting", member.name));
        } else {
            check_list(config, answer)?;
        }
        match answer.instance.parse() {
            Ok(folder) => drop(folders.insert(number, folder)),
            Err(_) => silent.push(format!("'{}', whose answer cannot be read", member.name)),
        }
    }
    if belongs {
        Ok(Verdict::Belongs)
    } else if silent.is_empty() {
        Ok(Verdict::Found(folders))
    } else {
        Ok(Verdict::Wait(format!("waiting for {}", silent.join(", "))))
    }
}

fn check_place(config: &RaftConfig, member: &MemberConfig, answer: &IdentityReply) -> Result<(), StartError> {
    if answer.cluster != config.cluster_name {
        return Err(StartError::OtherCluster {
            address: member.raft_addr.clone(),
            name: member.name.clone(),
            cluster: config.cluster_name.clone(),
            found: answer.cluster.clone(),
        });
    }
    if answer.node != member.name {
        return Err(StartError::OtherNode {
            address: member.raft_addr.clone(),
            name: member.name.clone(),
            found: answer.node.clone(),
        });
    }
    Ok(())
}

fn check_list(config: &RaftConfig, answer: &IdentityReply) -> Result<(), StartError> {
    let ours: Vec<&str> = config.founding().iter().map(|member| member.name.as_str()).collect();
    if ours == answer.configured {
        return Ok(());
    }
    Err(StartError::OtherMembers {
        name: answer.node.clone(),
        theirs: answer.configured.join(", "),
        ours: ours.join(", "),
    })
}

fn check_membership(config: &RaftConfig, instance: InstanceId, answer: &IdentityReply) -> Result<(), StartError> {
    if answer.members.is_empty() {
        return Ok(());
    }
    match answer.members.iter().find(|member| member.name == config.name) {
        Some(known) if known.instance == instance.to_string() => Ok(()),
        Some(known) => Err(StartError::Replaced {
            folder: config.data_dir.clone(),
            instance,
            cluster: config.cluster_name.clone(),
            name: config.name.clone(),
            known: known.instance.as_str().into(),
        }),
        None => Err(StartError::NotAMember {
            cluster: config.cluster_name.clone(),
            name: config.name.clone(),
        }),
    }
}

/// Brings the node into its cluster, and ends when the catalog of this node says that it is founded.
pub(crate) async fn establish(node: &Arc<Node>) -> Result<(), StartError> {
    while node.is_blank() {
        check_namesake(node).await?;
        if matches!(node.config.origin, Origin::Joining(_)) {
            let at = node.config.own().map(|own| own.raft_addr.as_str()).unwrap_or_default();
            let cluster = &node.identity.cluster_name;
            node.waits_for(Some(format!(
                "waiting for the leader of cluster '{cluster}' to send the log to {at}"
            )));
            tokio::time::sleep(ROUND).await;
            continue;
        }
        let answers = ask_all(node).await;
        match judge(&node.config, node.identity.instance, &answers)? {
            Verdict::Found(folders) if node.identity.node == 1 => initialize(node, &folders).await?,
            Verdict::Found(_) => node.waits_for(Some("waiting for the first member to found the cluster".into())),
            Verdict::Belongs => node.waits_for(Some("waiting for the leader to send the log".into())),
            Verdict::Wait(reason) => node.waits_for(Some(reason)),
        }
        tokio::time::sleep(ROUND).await;
    }
    let mut version = node.catalog.version();
    while !node.is_founded() {
        check_own_folder(node)?;
        node.waits_for(Some("waiting for a leader and the first command".into()));
        if node.leadership.borrow().is_self
            && let Err(reason) = propose_founding(node).await
        {
            tracing::warn!("the cluster is not founded yet: {reason}");
        }
        tokio::select! {
            _ = version.changed() => {}
            () = tokio::time::sleep(ROUND) => {}
        }
    }
    check_own_folder(node)?;
    let folder = node.config.data_dir.clone();
    let marked = tokio::task::spawn_blocking(move || identity::mark_joined(&folder)).await;
    marked
        .unwrap_or_else(|e| Err(io::Error::other(e)))
        .map_err(|error| StartError::Disk {
            what: format!(
                "the data folder {} cannot be marked as joined",
                node.config.data_dir.display()
            ),
            error: Arc::new(error),
        })?;
    node.waits_for(None);
    Ok(())
}

/// A folder that was put together by hand, or an identity that was changed, is found out here.
fn check_own_folder(node: &Node) -> Result<(), StartError> {
    let own = &node.identity;
    let Some(known) = node.member(own.node) else {
        return Ok(());
    };
    if known.instance == Some(own.instance) && known.name == own.name {
        return Ok(());
    }
    Err(StartError::Replaced {
        folder: node.config.data_dir.clone(),
        instance: own.instance,
        cluster: own.cluster_name.clone(),
        name: own.name.clone(),
        known: known
            .instance
            .map(|instance| instance.to_string())
            .unwrap_or_default()
            .into(),
    })
}

/// Asks at this node's own address, as the others see it: another process may answer there under the same name.
async fn check_namesake(node: &Arc<Node>) -> Result<(), StartError> {
    let own = &node.identity;
    let Some(me) = node.config.own() else {
        return Ok(());
    };
    // No answer proves nothing: behind NAT a node may not reach itself.
    let Some(answer) = ask(node, &me.name, &me.raft_addr)
        .await
        .filter(|answer| answer.instance != own.instance.to_string())
    else {
        return Ok(());
    };
    check_place(&node.config, me, &answer)?;
    check_membership(&node.config, own.instance, &answer)?;
    Err(StartError::Namesake {
        address: me.raft_addr.clone(),
        name: own.name.clone(),
        folder: node.config.data_dir.clone(),
    })
}

async fn ask_all(node: &Arc<Node>) -> Vec<Option<Option<IdentityReply>>> {
    let questions = node.config.founding().iter().map(|member| async {
        if member.name == node.identity.name {
            None
        } else {
            Some(ask(node, &member.name, &member.raft_addr).await)
        }
    });
    futures::future::join_all(questions).await
}

/// Asks who is at an address.
pub(crate) async fn ask(node: &Node, name: &str, address: &str) -> Option<IdentityReply> {
    let request = IdentityRequest {
        cluster: node.identity.cluster_name.clone(),
        node: node.identity.name.clone(),
        instance: node.identity.instance.to_string(),
    };
    let asked = async {
        let mut client = node.peers.client(address, Lane::Control)?;
        client.identity(request).await
    };
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(Ok(answer)) => Some(answer.into_inner()),
        Ok(Err(status)) => {
            node.peers.failed(address, Lane::Control, &status);
            tracing::debug!("node '{name}' at {address} does not answer: {status}");
            None
        }
        Err(_) => None,
    }
}

async fn initialize(node: &Node, folders: &BTreeMap<u64, InstanceId>) -> Result<(), StartError> {
    let members: BTreeMap<u64, Member> = (1u64..)
        .zip(node.config.founding())
        .map(|(number, member)| {
            let member = Member {
                name: member.name.clone(),
                instance: folders.get(&number).copied(),
                raft_addr: member.raft_addr.clone(),
                api_addr: member.api_addr.clone(),
                http_addr: member.http_addr.clone(),
            };
            (number, member)
        })
        .collect();
    tracing::info!(
        "founding cluster '{}' with {} members",
        node.identity.cluster_name,
        members.len()
    );
    match node.raft.initialize(members).await {
        Ok(()) => Ok(()),
        Err(error) if error.api_error().is_some() && !node.members().is_empty() => Ok(()),
        Err(error) => Err(StartError::Raft(format!("the group cannot be founded: {error}"))),
    }
}

/// Milliseconds since 1970. Only for people to read; a clock before 1970 is shown as 1970.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Proposes the first command. Whoever leads does so until it is applied: the one who initialized
/// the group may have failed before. The catalog refuses a second founding.
async fn propose_founding(node: &Node) -> Result<(), String> {
    let warehouse_of = |name: &str| {
        let member = node.config.founding().iter().find(|member| member.name == name);
        member
            .map(|member| member.warehouse.clone())
            .ok_or_else(|| format!("node '{name}' is not configured"))
    };
    let mut members = Vec::new();
    for (number, member) in node.members() {
        members.push(FoundingMember {
            node: NodeId(number),
            warehouse: warehouse_of(&member.name)?,
            instance: member
                .instance
                .ok_or_else(|| format!("node '{}' has no data folder", member.name))?,
            name: member.name,
            addresses: Addresses {
                raft: member.raft_addr,
                api: member.api_addr,
                http: member.http_addr,
            },
        });
    }
    let command = Command::FoundCluster(FoundCluster {
        cluster: ClusterId(rand::random()),
        name: node.identity.cluster_name.clone(),
        members,
        replication: node.config.replication,
    });
    match node.propose(Proposal::new(now_ms(), command), FOUNDING).await {
        Ok((_, Ok(_))) => Ok(()),
        Ok((_, Err(refusal))) => Err(refusal.to_string()),
        Err(crate::node::Attempt::NotLeader(_)) => Err("this node does not lead any more".into()),
        Err(crate::node::Attempt::Failed(error)) => Err(error.to_string()),
    }
}
