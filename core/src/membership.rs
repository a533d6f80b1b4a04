//! Who votes: the next step from the Raft group as it is to the one that the catalog asks for, as a pure function.
//!
//! The manager calls [`next_step`] again and again and does what it says, one step at a time. Nothing is
//! remembered between two calls, so a new manager goes on where the last one was lost. The rules:
//!
//! - A node of the catalog that is not in the group becomes a learner. It votes when it has caught up, and when
//!   that makes the number of voters odd, up to [`MAX_VOTERS`]; all voters that a step brings come at once. Two
//!   voters survive no more losses than one, four no more than three, so an even number is never made by adding.
//! - Nobody who stays loses the vote. A node that leaves keeps it until its shards have moved, and others have its parts, and the
//!   rows of its log that nobody else has. One that is not heard is waited for until it is down: what is decided on that is void if
//!   it comes back.
//! - The leader never takes itself out: it makes another node leader, which does that.
//! - No step is taken after which no majority of the voters would be alive.
//! - A joint configuration that somebody left behind is finished before anything else is begun.

use crate::catalog::{Node, NodeIntent, NodeState};
use crate::command::RemoveNode;
use crate::ids::{BootId, NodeId, Version};
use std::collections::{BTreeMap, BTreeSet};

/// The most voters. More would slow every commit down; further nodes learn, lead shards and answer queries.
pub const MAX_VOTERS: usize = 5;

/// One node: what the catalog says of it, and what the manager sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its name, for people.
    pub name: String,
    /// Where it is in its life.
    pub state: NodeState,
    /// The run of its process that the catalog knows.
    pub boot: Option<BootId>,
    /// What the operators want of it.
    pub intent: NodeIntent,
    /// Since which version of the catalog they want that.
    pub intent_since: Version,
    /// Whether it leads shards.
    pub leads_shards: bool,
    /// Whether it is to keep files of shards.
    pub keeps_parts: bool,
    /// Whether its log may hold rows that nobody else has. Of a node that is not heard nothing can be had.
    pub keeps_rows: bool,
    /// Whether its heartbeats arrive.
    pub alive: bool,
    /// Whether its log is about as long as the leader's.
    pub caught_up: bool,
    /// Whether the group knows it under another address than the catalog.
    pub moved: bool,
}

impl Standing {
    fn leaves(&self) -> bool {
        self.intent == NodeIntent::Leave || self.state == NodeState::Removed
    }

    /// Whether it may lose its vote: nothing that it has is needed any more.
    fn may_go(&self) -> bool {
        let says_so = self.alive || !self.state.is_up();
        self.leaves() && says_so && !self.leads_shards && !self.keeps_parts && !self.keeps_rows
    }

    fn may_vote(&self) -> bool {
        self.intent == NodeIntent::Serve && self.state == NodeState::Ready && self.alive && self.caught_up
    }
}

/// What the manager hears of nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Those whose heartbeats arrive.
    pub alive: BTreeSet<NodeId>,
    /// Those that have said that they led nothing by this version of the catalog, and that others had all that their logs had
    /// for them after that.
    pub handed_over: BTreeMap<NodeId, Version>,
}

impl Heard {
    /// Whether the log of `node` is waited for.
    ///
    /// A node that leaves is given no shard any more. So what it says by a version in which it was to leave remains true, however
    /// late it is heard; what it said by an older one may not be: it may have led, and acknowledged rows, since.
    pub fn keeps_rows(&self, node: &Node) -> bool {
        let handed_over = self.handed_over.get(&node.id);
        self.alive.contains(&node.id) && handed_over.is_none_or(|by| *by < node.intent_since)
    }
}

/// The Raft group as its leader sees it, beside the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The leader, which is the manager.
    pub leader: NodeId,
    /// Who votes; while the configuration is joint, who shall vote in the end.
    pub voters: BTreeSet<NodeId>,
    /// Whether two configurations hold at the same time.
    pub joint: bool,
    /// Who gets the log and does not vote.
    pub learners: BTreeSet<NodeId>,
    /// All nodes of the catalog, also removed ones.
    pub nodes: BTreeMap<NodeId, Standing>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ends a joint configuration.
    FinishJoint,
    /// Sends the log to a node of the catalog.
    AddLearner(NodeId),
    /// Makes these the voters; all of them get the log already. Who is left out becomes a learner.
    SetVoters(BTreeSet<NodeId>),
    /// Makes another node leader.
    TransferLeadership(NodeId),
    /// Lets the catalog note that a node is gone.
    Remove(RemoveNode),
    /// Sends the log to a node no more.
    DropLearner(NodeId),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// This.
    Step(Step),
    /// Nothing for the moment, for this reason.
    Wait(String),
    /// Nothing.
    Settled,
}

/// What to do next.
pub fn next_step(group: &Group) -> Plan {
    if group.joint {
        return Plan::Step(Step::FinishJoint);
    }
    if let Some(step) = tidy_learners(group) {
        return Plan::Step(step);
    }
    let waiting = match voting(group) {
        Ok(Some(step)) => return Plan::Step(step),
        Ok(None) => None,
        Err(why) => Some(why),
    };
    let living = |node: &Standing| node.state != NodeState::Removed;
    let gone = group
        .nodes
        .iter()
        .find(|(id, node)| living(node) && node.may_go() && !group.voters.contains(id));
    if let Some((id, node)) = gone {
        return Plan::Step(Step::Remove(RemoveNode {
            node: *id,
            boot: node.boot,
            state: node.state,
            intent_since: node.intent_since,
        }));
    }
    let leading = group.nodes.values().find(|node| node.leaves() && node.leads_shards);
    let leading = leading.map(|node| format!("node '{}' still leads shards", node.name));
    let keeping = group.nodes.values().find(|node| node.leaves() && node.keeps_parts);
    let keeping = keeping.map(|node| format!("the parts of node '{}' to be copied to others", node.name));
    let holding = group.nodes.values().find(|node| node.leaves() && node.keeps_rows);
    let holding = holding.map(|node| format!("node '{}' to hand over the rows of its write-ahead log", node.name));
    waiting
        .or(leading)
        .or(keeping)
        .or(holding)
        .map_or(Plan::Settled, Plan::Wait)
}

/// Why `node` cannot be asked to leave now; judged by what can be seen at the moment.
pub fn may_leave(group: &Group, node: NodeId) -> Result<(), String> {
    let mut after = group.clone();
    let Some(standing) = after.nodes.get_mut(&node) else {
        return Err(format!("there is no node {node}"));
    };
    if standing.leaves() {
        return Ok(());
    }
    standing.intent = NodeIntent::Leave;
    (standing.leads_shards, standing.keeps_parts, standing.keeps_rows) = (false, false, false);
    let someone = |other: &Standing| !other.leaves() && other.alive && other.state == NodeState::Ready;
    if !after.nodes.values().any(someone) {
        return Err("no other node is ready to take its place".into());
    }
    if !after.voters.contains(&node) {
        return Ok(());
    }
    let remaining = future_voters(&after);
    if remaining.is_empty() {
        return Err("no other node can vote in the Raft group yet".into());
    }
    check_majority(&after, &remaining)
}

/// Why `node` cannot give up its shards now.
pub fn may_drain(group: &Group, node: NodeId) -> Result<(), String> {
    let someone = |(id, other): (&NodeId, &Standing)| *id != node && other.alive && other.state == NodeState::Ready;
    if group.nodes.iter().any(someone) {
        return Ok(());
    }
    Err("no other node is ready to take its shards".into())
}

fn tidy_learners(group: &Group) -> Option<Step> {
    for id in &group.learners {
        let drop = match group.nodes.get(id) {
            None => true,
            // It gets the log until its process has ended, so that it learns what has become of it.
            Some(node) if node.state == NodeState::Removed => !node.alive,
            // It is taken in again, under the address that it has now.
            Some(node) => node.moved,
        };
        if drop {
            return Some(Step::DropLearner(*id));
        }
    }
    let unknown = |id: &NodeId| !group.learners.contains(id) && !group.voters.contains(id);
    let new = group.nodes.iter().find(|(id, node)| unknown(id) && !node.leaves());
    new.map(|(id, _)| Step::AddLearner(*id))
}

/// The voters that the catalog asks for.
fn future_voters(group: &Group) -> BTreeSet<NodeId> {
    let goes = |id: &NodeId| group.nodes.get(id).is_none_or(Standing::may_go);
    let mut voters: BTreeSet<NodeId> = group.voters.iter().filter(|id| !goes(id)).copied().collect();
    let able = |id: &&NodeId| group.nodes.get(id).is_some_and(Standing::may_vote);
    let new: Vec<NodeId> = group.learners.iter().filter(able).copied().collect();
    let room = MAX_VOTERS.saturating_sub(voters.len()).min(new.len());
    let odd = if (voters.len() + room).is_multiple_of(2) {
        room.saturating_sub(1)
    } else {
        room
    };
    voters.extend(new.into_iter().take(odd));
    voters
}

fn voting(group: &Group) -> Result<Option<Step>, String> {
    let future = future_voters(group);
    if future == group.voters {
        return Ok(None);
    }
    if future.is_empty() {
        return Err("no other node can vote in the Raft group yet".into());
    }
    check_majority(group, &future)?;
    if future.contains(&group.leader) || !group.voters.contains(&group.leader) {
        return Ok(Some(Step::SetVoters(future)));
    }
    let able = |id: &&NodeId| group.nodes.get(id).is_some_and(|node| node.alive && node.caught_up);
    let successor = future.intersection(&group.voters).find(able);
    if let Some(successor) = successor {
        return Ok(Some(Step::TransferLeadership(*successor)));
    }
    let mut next = future;
    next.insert(group.leader);
    if next == group.voters {
        return Err("no other voter has caught up to take the leadership".into());
    }
    check_majority(group, &next)?;
    Ok(Some(Step::SetVoters(next)))
}

fn check_majority(group: &Group, voters: &BTreeSet<NodeId>) -> Result<(), String> {
    let name = |id: &NodeId| {
        group
            .nodes
            .get(id)
            .map_or_else(|| id.to_string(), |node| format!("'{}'", node.name))
    };
    let dead = |id: &&NodeId| group.nodes.get(id).is_none_or(|node| !node.alive);
    let silent: Vec<String> = voters.iter().filter(dead).map(name).collect();
    if 2 * (voters.len() - silent.len()) > voters.len() {
        return Ok(());
    }
    Err(format!(
        "the Raft group would lose its quorum: {} would vote, and of these {} cannot be reached",
        voters.iter().map(name).collect::<Vec<_>>().join(", "),
        silent.join(", ")
    ))
}

#[cfg(test)]
mod tests;
