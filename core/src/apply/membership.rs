//! Who belongs to the cluster: admission, what the operators want of a node, and the end of its life.
//!
//! Every command may be repeated: whoever asks recognises itself by its data folder, and operators name nodes by id. An
//! id is never given out twice and a record never deleted, so that what was removed is known for good. Who votes
//! in the Raft group is not decided here; see [`crate::membership`].

use super::cluster::{depose, known_node};
use super::definitions::founded;
use super::{At, Stop, Verdict, replicas};
use crate::catalog::{Addresses, ClusterKey, Node, NodeIntent, NodeState, Table};
use crate::command::{AddNode, Refusal, RemoveNode, Response, SetNodeIntent};
use crate::ids::Version;
use crate::view::{CatalogRead, Overlay};

/// The most characters that the name of a node that joins may have.
const NAME_CHARS: usize = 64;

fn no(why: String) -> Stop {
    Refusal::Node(why).into()
}

pub(super) fn add_node(state: &mut Overlay<'_>, c: &AddNode) -> Verdict {
    let mut cluster = founded(state)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if c.name.is_empty() || c.name.len() > NAME_CHARS || !c.name.chars().all(plain) {
        return Err(no(format!(
            "'{}' cannot be the name of a node: it may have up to {NAME_CHARS} letters, digits, '-', '_' and '.'",
            c.name
        )));
    }
    let nodes = state.list::<Node>(&[])?;
    if let Some(known) = nodes.iter().find(|node| node.instance == c.instance) {
        return add_again(state, known.clone(), c);
    }
    for node in nodes.iter().filter(|node| node.state != NodeState::Removed) {
        if node.name == c.name {
            return Err(no(format!(
                "there is already a node called '{0}', with data folder {1}; this one has {2}. A wiped folder is a new \
                 node: join under another name, or remove the old one first (tidemill node remove {0})",
                node.name, node.instance, c.instance
            )));
        }
        if let Some(address) = shared_address(&node.addresses, &c.addresses) {
            return Err(no(format!("{address} is already an address of node '{}'", node.name)));
        }
    }
    let node = Node {
        id: cluster.next_node,
        name: c.name.clone(),
        instance: c.instance,
        boot: None,
        warehouse: c.warehouse.clone(),
        addresses: c.addresses.clone(),
        state: NodeState::Joining,
        intent: NodeIntent::Serve,
        disk: None,
        intent_since: Version(0),
    };
    state.put(&node.id, &node)?;
    cluster.next_node = cluster.next_node.next();
    state.put(&ClusterKey, &cluster)?;
    Ok(Response::Node(node.id))
}

/// The same data folder asks once more: its answer was lost, or its process was restarted before it was there.
fn add_again(state: &mut Overlay<'_>, mut node: Node, c: &AddNode) -> Verdict {
    if node.state == NodeState::Removed {
        return Err(no(format!(
            "this data folder ({}) was node '{}' ({}), which was removed from the cluster, and can never come back. \
             To join anew, start with an empty data folder",
            node.instance, node.name, node.id
        )));
    }
    if node.name != c.name {
        return Err(no(format!(
            "this data folder ({}) belongs to node '{}', not '{}'",
            node.instance, node.name, c.name
        )));
    }
    // Before its first heartbeat, this is the only way in which it can say that it has moved.
    if node.boot.is_none() && node.addresses != c.addresses {
        node.addresses = c.addresses.clone();
        state.put(&node.id, &node)?;
    }
    Ok(Response::Node(node.id))
}

fn shared_address<'a>(one: &Addresses, other: &'a Addresses) -> Option<&'a String> {
    let taken = [&one.raft, &one.api, &one.http];
    let new = [&other.raft, &other.api, &other.http];
    new.into_iter()
        .find(|address| !address.is_empty() && taken.contains(address))
}

pub(super) fn set_node_intent(state: &mut Overlay<'_>, at: At, c: &SetNodeIntent) -> Verdict {
    let mut node = known_node(state, c.node)?;
    if node.state == NodeState::Removed {
        return match c.intent {
            NodeIntent::Leave => Ok(Response::Unchanged),
            NodeIntent::Serve | NodeIntent::Drain => Err(no(format!(
                "node '{}' ({}) was removed from the cluster",
                node.name, node.id
            ))),
        };
    }
    if node.intent == c.intent {
        return Ok(Response::Unchanged);
    }
    if c.intent == NodeIntent::Leave {
        check_not_last(state, &node, Node::stays)?;
        replicas::check_may_leave(state, &node)?;
        check_not_last_of_its_warehouse(state, &node)?;
    }
    (node.intent, node.intent_since) = (c.intent, at.version);
    if c.intent != NodeIntent::Serve && node.state == NodeState::Ready {
        node.state = NodeState::Draining;
    }
    state.put(&node.id, &node)?;
    Ok(Response::Done)
}

pub(super) fn remove_node(state: &mut Overlay<'_>, at: At, c: &RemoveNode) -> Verdict {
    let mut node = known_node(state, c.node)?;
    if node.state == NodeState::Removed {
        return Ok(Response::Unchanged);
    }
    // Somebody may have thought better of it while the node was leaving.
    if node.intent != NodeIntent::Leave {
        return Err(no(format!("node '{}' shall {}, not leave", node.name, node.intent)));
    }
    if (node.boot, node.state, node.intent_since) != (c.boot, c.state, c.intent_since) {
        return Err(no(format!(
            "node '{}' has changed since it was found that it may go, and is {} now: its log may have rows that nobody else has",
            node.name, node.state
        )));
    }
    check_not_last(state, &node, |_| true)?;
    replicas::check_keeps_nothing(state, &node)?;
    depose(state, at, node.id, format!("node '{}' was removed", node.name))?;
    node.state = NodeState::Removed;
    state.put(&node.id, &node)?;
    Ok(Response::Done)
}

/// Refuses that no node is left that may lead the shards of a table.
fn check_not_last_of_its_warehouse(state: &Overlay<'_>, node: &Node) -> Result<(), Stop> {
    let tables = state.list::<Table>(&[])?;
    let wants = |table: &&Table| table.settings.warehouse.is_some() && table.is_home(node);
    let Some(table) = tables.iter().find(wants) else {
        return Ok(());
    };
    let nodes = state.list::<Node>(&[])?;
    let takes_over = |other: &Node| other.id != node.id && other.stays() && other.warehouse == node.warehouse;
    match nodes.iter().any(takes_over) {
        true => Ok(()),
        false => Err(no(format!(
            "node '{}' is the last one of warehouse '{}', whose nodes lead table '{}': let another one join first, or say \
             ALTER TABLE {} SET (warehouse = '')",
            node.name, node.warehouse, table.name, table.name
        ))),
    }
}

fn check_not_last(state: &Overlay<'_>, node: &Node, stays: impl Fn(&Node) -> bool) -> Result<(), Stop> {
    let others = state.list::<Node>(&[])?;
    let remains = |other: &Node| other.id != node.id && other.state != NodeState::Removed && stays(other);
    if others.iter().any(remains) {
        return Ok(());
    }
    Err(no(format!(
        "node '{}' is the last one: a cluster cannot be without a node",
        node.name
    )))
}
