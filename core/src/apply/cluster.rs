//! Founding, the life of nodes, and who leads which shard.

use super::{At, Verdict, events, replicas};
use crate::catalog::{Assigned, Cluster, ClusterKey, Node, NodeIntent, NodeState, Shard};
use crate::command::{AssignLeader, AssignStandby, FoundCluster, NodeUp, Refusal, Response, SetNodeState};
use crate::ids::*;
use crate::view::{CatalogRead, Overlay};

/// The most characters that are kept of why a shard got its leader.
const BECAUSE: usize = 200;

pub(super) fn found(state: &mut Overlay<'_>, c: &FoundCluster) -> Verdict {
    if let Some(cluster) = state.get::<Cluster>(&ClusterKey)? {
        let refusal = Refusal::Founding(format!(
            "cluster '{}' ({}) is already founded",
            cluster.name, cluster.id
        ));
        return Err(refusal.into());
    }
    if let Some(replication) = c.replication {
        replication.check().map_err(Refusal::Founding)?;
    }
    let mut next_node = NodeId(1);
    for (i, member) in c.members.iter().enumerate() {
        if c.members[..i]
            .iter()
            .any(|other| other.node == member.node || other.name == member.name)
        {
            let refusal = Refusal::Founding(format!("node '{}' ({}) is named twice", member.name, member.node));
            return Err(refusal.into());
        }
        next_node = next_node.max(member.node.next());
        let node = Node {
            id: member.node,
            name: member.name.clone(),
            instance: member.instance,
            boot: None,
            warehouse: member.warehouse.clone(),
            addresses: member.addresses.clone(),
            state: NodeState::Joining,
            intent: NodeIntent::Serve,
            disk: None,
            intent_since: Version(0),
        };
        state.put(&node.id, &node)?;
    }
    let cluster = Cluster {
        id: c.cluster,
        name: c.name.clone(),
        next_node,
        next_table: TableId(1),
        next_pipe: PipeId(1),
        next_writer: WriterId(1),
        next_event: 1,
        replication: c.replication,
    };
    state.put(&ClusterKey, &cluster)?;
    Ok(Response::Done)
}

pub(super) fn node_up(state: &mut Overlay<'_>, at: At, c: &NodeUp) -> Verdict {
    let mut node = living_node(state, c.node)?;
    if node.instance != c.instance {
        return Err(Refusal::Node(format!(
            "node '{}' is known with data folder {}, not {}: a wiped or copied folder cannot take its place",
            node.name, node.instance, c.instance
        ))
        .into());
    }
    let up = node.intent.state_when_up();
    let same_disk = node.disk == c.disk;
    let warehouse = c.warehouse.as_ref().unwrap_or(&node.warehouse).clone();
    let same_place = node.addresses == c.addresses && node.warehouse == warehouse;
    if node.boot == Some(c.boot) && node.state == up && same_place && same_disk {
        return Ok(Response::Unchanged);
    }
    if node.boot != Some(c.boot) {
        // What an earlier run of this process had in memory is gone: its terms of office end here,
        // so that nothing it still has under way can be taken for the work of the new run.
        depose(state, at, c.node, format!("node '{}' has begun anew", node.name))?;
    }
    if !same_disk {
        // Whatever it held is on another disk, and not where it is asked for.
        depose(state, at, c.node, format!("node '{}' has another disk", node.name))?;
        replicas::begin_anew(state, c.node)?;
        node.disk = c.disk;
    }
    node.boot = Some(c.boot);
    node.addresses = c.addresses.clone();
    node.warehouse = warehouse;
    node.state = up;
    state.put(&node.id, &node)?;
    Ok(Response::Done)
}

pub(super) fn set_node_state(state: &mut Overlay<'_>, at: At, c: &SetNodeState) -> Verdict {
    let mut node = living_node(state, c.node)?;
    let possible = match c.state {
        NodeState::Ready => node.intent == NodeIntent::Serve,
        NodeState::Draining | NodeState::Down => true,
        NodeState::Joining | NodeState::Removed => false,
    };
    if !possible {
        let why = format!(
            "node '{}' shall {}: it cannot be made {}",
            node.name, node.intent, c.state
        );
        return Err(Refusal::Node(why).into());
    }
    if node.boot != c.boot {
        return Err(Refusal::Node(format!("node '{}' has been restarted since", node.name)).into());
    }
    if node.state == c.state {
        return Ok(Response::Unchanged);
    }
    if c.state == NodeState::Down {
        depose(state, at, c.node, format!("node '{}' is down", node.name))?;
        let text = format!("node '{}' is silent: its shards get other leaders", node.name);
        events::note(state, at, "down", &node.name, None, text)?;
    }
    node.state = c.state;
    state.put(&node.id, &node)?;
    Ok(Response::Done)
}

pub(super) fn assign_leader(state: &mut Overlay<'_>, at: At, c: &AssignLeader) -> Verdict {
    let mut shard = state.get::<Shard>(&c.shard)?.ok_or(Refusal::NoShard(c.shard))?;
    if shard.epoch != c.replaces {
        return Err(stale_epoch(&shard, c.replaces).into());
    }
    if let Some(leader) = c.leader {
        let node = known_node(state, leader)?;
        check_may_lead(state, &shard, &node)?;
    }
    shard.epoch = shard.epoch.next();
    shard.leader = c.leader;
    shard.last_leader = c.leader.or(shard.last_leader);
    // Whoever leads stands by no more; a standby that was passed over goes on.
    shard.standby = shard.standby.filter(|standby| Some(*standby) != c.leader);
    shard.assigned = Some(Assigned {
        at_ms: at.ms,
        because: c.because.chars().take(BECAUSE).collect(),
    });
    state.put(&shard.id, &shard)?;
    Ok(Response::Epoch(shard.epoch))
}

pub(super) fn assign_standby(state: &mut Overlay<'_>, c: &AssignStandby) -> Verdict {
    let mut shard = state.get::<Shard>(&c.shard)?.ok_or(Refusal::NoShard(c.shard))?;
    if shard.epoch != c.epoch {
        return Err(stale_epoch(&shard, c.epoch).into());
    }
    if shard.standby == c.node {
        return Ok(Response::Unchanged);
    }
    if let Some(standby) = c.node {
        let node = known_node(state, standby)?;
        if shard.leader == Some(standby) {
            let why = format!("node '{}' leads shard {}: it cannot stand by", node.name, shard.id);
            return Err(Refusal::Node(why).into());
        }
        // It stands by to lead, so it must be one that may.
        check_may_lead(state, &shard, &node)?;
    }
    shard.standby = c.node;
    state.put(&shard.id, &shard)?;
    Ok(Response::Done)
}

/// Refuses a leader that is not ready, or is no complete replica (REP-1).
fn check_may_lead(state: &Overlay<'_>, shard: &Shard, node: &Node) -> Result<(), super::Stop> {
    if node.state != NodeState::Ready {
        return Err(Refusal::Node(format!("node '{}' is {}: it cannot lead", node.name, node.state)).into());
    }
    replicas::check_may_lead(state, shard, node)
}

/// The refusal of what goes by an epoch that is not the present one of `shard`.
pub(super) fn stale_epoch(shard: &Shard, given: Epoch) -> Refusal {
    Refusal::StaleEpoch {
        shard: shard.id,
        current: shard.epoch,
        given,
    }
}

/// Refuses what whoever led `shard` in `given` says, if that term is over.
pub(super) fn check_term(state: &Overlay<'_>, shard: ShardId, given: Option<Epoch>) -> Result<(), super::Stop> {
    let Some(given) = given else {
        return Ok(());
    };
    let shard = state.get::<Shard>(&shard)?.ok_or(Refusal::NoShard(shard))?;
    if shard.epoch != given || shard.leader.is_none() {
        return Err(stale_epoch(&shard, given).into());
    }
    Ok(())
}

/// Ends the terms of office of `node` in all its shards. What it had in memory is gone, so it stands by no more either.
pub(super) fn depose(state: &mut Overlay<'_>, at: At, node: NodeId, because: String) -> Result<(), super::Stop> {
    for mut shard in state.list::<Shard>(&[])? {
        if shard.leader == Some(node) {
            shard.leader = None;
            shard.epoch = shard.epoch.next();
            shard.assigned = Some(Assigned {
                at_ms: at.ms,
                because: because.clone(),
            });
            state.put(&shard.id, &shard)?;
        } else if shard.standby == Some(node) {
            shard.standby = None;
            state.put(&shard.id, &shard)?;
        }
    }
    Ok(())
}

pub(super) fn known_node(state: &Overlay<'_>, id: NodeId) -> Result<Node, super::Stop> {
    Ok(state
        .get::<Node>(&id)?
        .ok_or_else(|| Refusal::Node(format!("there is no node {id}")))?)
}

/// A node that was not removed.
fn living_node(state: &Overlay<'_>, id: NodeId) -> Result<Node, super::Stop> {
    let node = known_node(state, id)?;
    if node.state == NodeState::Removed {
        return Err(Refusal::Node(format!(
            "node '{}' ({id}) was removed from the cluster; its data folder {} can never come back",
            node.name, node.instance
        ))
        .into());
    }
    Ok(node)
}
