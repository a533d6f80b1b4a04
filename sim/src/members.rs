//! Who belongs to the cluster: nodes that join, leave, are lost with all that they have, and are replaced.
//!
//! Who votes is decided by `core` (`membership::next_step`), one step at a time, as in `node/src/manager.rs`. A change of voters
//! is one moment here: that two configurations overlap safely is Raft's promise. A node that has lost its data folder is a
//! new node: it never comes back under its id, and under its name only when the old one was removed.

use crate::event::Event;
use crate::mutant::Mutant;
use crate::node::{Node, Purpose, id_of, index_of};
use crate::seeds::Violation;
use crate::time::{MS, SECOND, Time};
use crate::world::{World, tell};
use std::collections::{BTreeMap, BTreeSet};
use tidemill_core::catalog::{Addresses, Node as Known, NodeIntent, NodeState, Shard};
use tidemill_core::command::{AddNode, SetNodeIntent};
use tidemill_core::membership::{self, Heard, Plan, Standing, Step};
use tidemill_core::view::{CatalogRead, MemView};
use tidemill_core::{Command, Version};

/// How often a node that is not admitted yet asks.
const ASK: Time = 500 * MS;
/// The most nodes that a history has.
const MOST: usize = 14;
/// With so many, no more are lost or told to leave.
const ENOUGH: usize = 9;
/// A log that is so many entries behind has caught up.
const CAUGHT_UP: usize = 50;

impl World {
    /// A node that nobody knows wants to join, under a name of its own or under that of one that was lost.
    pub fn join(&mut self, name: Option<String>) -> bool {
        let waits = self.nodes.iter().any(|node| node.joining);
        if waits || self.nodes.len() >= MOST {
            return false;
        }
        let index = self.nodes.len();
        let mut node = Node::new(index, &mut self.dice);
        (node.up, node.joining) = (false, true);
        node.name = name.unwrap_or(node.name);
        tell!(self, "n{} wants to join as '{}'", index + 1, node.name);
        self.nodes.push(node);
        self.after(ASK, Event::Join(index));
        true
    }

    /// It asks to be admitted until it is, and starts when it gets the log.
    pub fn ask_to_join(&mut self, index: usize) -> Result<(), Violation> {
        let (instance, name) = (self.nodes[index].instance, self.nodes[index].name.clone());
        let tip = self.group.tip();
        let known = tip
            .all::<Known>(&[])?
            .into_iter()
            .find(|node| node.instance == instance);
        let is_member = self.group.learners.contains(&index) || self.group.voters.contains(&index);
        if known.as_ref().is_some_and(|node| node.state == NodeState::Removed) {
            // Somebody thought better of it before it was there.
            let node = &mut self.nodes[index];
            (node.joining, node.gone) = (false, true);
            return Ok(());
        }
        if known.is_some() && is_member {
            let (version, now) = (self.group.committed(), self.now);
            let node = &mut self.nodes[index];
            (node.up, node.joining) = (true, false);
            (node.applied, node.synced, node.state) = (version, version, tip);
            (node.heard_at, node.contact) = (now, now);
            tell!(self, "n{} has joined", index + 1);
            *self.tally.acts.entry("node joins").or_default() += 1;
            self.begin_duties(index);
            return Ok(());
        }
        self.after(ASK, Event::Join(index));
        if known.is_none()
            && let Some(at) = self.some_node()
        {
            let command = Command::AddNode(AddNode {
                name,
                instance,
                warehouse: "default".into(),
                addresses: Addresses::default(),
            });
            self.propose(at, Purpose::Operate, command);
        }
        Ok(())
    }

    /// Whether there are numbers left for those that take the place of others.
    ///
    /// One at a time, or it is a loss that nobody can stand: of three voters, one that leaves and one that is lost are two.
    pub fn may_shrink(&mut self) -> bool {
        let tip = self.group.tip();
        let known = tip.all::<Known>(&[]).unwrap_or_default();
        let living = known.iter().filter(|node| node.state != NodeState::Removed);
        let calm = |node: &std::sync::Arc<Known>| {
            let gone = self.nodes.get(index_of(node.id)).is_some_and(|node| node.gone);
            node.intent == NodeIntent::Serve && !gone
        };
        let whole = living.clone().all(calm) && living.count() >= self.founders;
        let waits = self.nodes.iter().any(|node| node.joining) || self.now < self.shrunk_at + 14 * SECOND;
        let may = self.nodes.len() < ENOUGH && whole && !waits;
        if may {
            self.shrunk_at = self.now;
        }
        may
    }

    /// A node is lost with everything that it has: it has to be replaced.
    pub fn lose_node(&mut self, index: usize) -> bool {
        if !self.may_shrink() {
            return false;
        }
        self.kill(index);
        let node = &mut self.nodes[index];
        node.gone = true;
        node.stored.clear();
        node.broken.clear();
        node.wal.wipe();
        (node.wipes, node.wiped_at) = (node.wipes + 1, self.now);
        let name = node.name.clone();
        self.join(Some(name))
    }

    /// What operators do about members: nodes that were lost leave, and there are as many as in the beginning.
    pub fn tend_members(&mut self, state: &MemView) -> Result<Vec<Command>, Violation> {
        let nodes = state.all::<Known>(&[])?;
        let lost = nodes.iter().filter(|node| {
            let gone = self.nodes.get(index_of(node.id)).is_some_and(|node| node.gone);
            gone && node.stays()
        });
        let leave = |node: &std::sync::Arc<Known>| {
            Command::SetNodeIntent(SetNodeIntent {
                node: node.id,
                intent: NodeIntent::Leave,
            })
        };
        let commands: Vec<Command> = lost.map(leave).collect();
        let staying = nodes.iter().filter(|node| node.stays()).count();
        if commands.is_empty() && staying < self.founders {
            self.join(None);
        }
        Ok(commands)
    }

    /// The next step towards the voters that the catalog asks for; a command if it is one of the catalog.
    pub fn step_members(&mut self, index: usize, state: &MemView) -> Result<Option<Command>, Violation> {
        let now = self.now;
        let leads = self.group.leader == Some(index) && self.has_majority(index);
        let manager = self.nodes[index].manager.as_mut();
        let Some(manager) = manager.filter(|manager| leads && now >= manager.stepped + SECOND / 2) else {
            return Ok(None);
        };
        manager.stepped = now;
        let group = self.standing(index, state)?;
        let Plan::Step(step) = membership::next_step(&group) else {
            return Ok(None);
        };
        tell!(self, "n{} steps: {step:?}", index + 1);
        match step {
            Step::FinishJoint => {}
            Step::AddLearner(id) => _ = self.group.learners.insert(index_of(id)),
            Step::DropLearner(id) => _ = self.group.learners.remove(&index_of(id)),
            Step::TransferLeadership(id) => {
                if self.talk(index, index_of(id)) {
                    self.nodes[index].manager = None;
                    self.elect(index_of(id))?;
                }
            }
            Step::SetVoters(voters) => {
                let voters: BTreeSet<usize> = voters.into_iter().map(index_of).collect();
                let heard = voters.iter().filter(|voter| self.talk(index, **voter)).count();
                if heard * 2 <= voters.len() {
                    // It takes a majority of both to decide it.
                    return Ok(None);
                }
                self.group.learners.extend(self.group.voters.clone());
                self.group.learners.retain(|node| !voters.contains(node));
                self.group.voters = voters;
                *self.tally.acts.entry("voters change").or_default() += 1;
            }
            Step::Remove(gone) => return Ok(Some(Command::RemoveNode(gone))),
        }
        Ok(None)
    }

    fn standing(&self, index: usize, state: &MemView) -> Result<membership::Group, Violation> {
        let shards = state.all::<Shard>(&[])?;
        let mut nodes = BTreeMap::new();
        let forgets = self.mutant == Some(Mutant::KeeperIsRemoved);
        let hasty = self.mutant == Some(Mutant::LogHolderIsRemoved);
        let manager = self.nodes[index].manager.as_ref();
        let mut heard = manager.map_or_else(Heard::default, |manager| manager.heard_of_all(self.now));
        if self.mutant == Some(Mutant::OldHandOverCounts) {
            heard.handed_over.values_mut().for_each(|by| *by = Version(u64::MAX));
        }
        for node in state.all::<Known>(&[])? {
            let at = index_of(node.id);
            let standing = Standing {
                name: node.name.clone(),
                state: node.state,
                boot: node.boot,
                intent: node.intent,
                intent_since: node.intent_since,
                leads_shards: shards.iter().any(|shard| shard.leader == Some(node.id)),
                keeps_parts: !forgets && shards.iter().any(|shard| shard.replica(node.id).is_some()),
                keeps_rows: heard.keeps_rows(&node) && !hasty,
                alive: heard.alive.contains(&node.id) || at == index,
                caught_up: self.nodes[at].applied + CAUGHT_UP >= self.group.committed(),
                moved: false,
            };
            nodes.insert(node.id, standing);
        }
        let ids = |of: &BTreeSet<usize>| of.iter().map(|index| id_of(*index)).collect();
        Ok(membership::Group {
            leader: self.nodes[index].id,
            voters: ids(&self.group.voters),
            joint: false,
            learners: ids(&self.group.learners),
            nodes,
        })
    }

    /// A node that learns that it was removed ends for good.
    pub fn end_if_removed(&mut self, index: usize, state: &MemView) -> Result<bool, Violation> {
        let known = state.find::<Known>(&self.nodes[index].id)?;
        let removed = known.is_some_and(|node| node.state == NodeState::Removed);
        if removed {
            self.kill(index);
            self.nodes[index].gone = true;
            tell!(self, "n{} was removed, and ends", index + 1);
            *self.tally.acts.entry("node removed").or_default() += 1;
        }
        Ok(removed)
    }
}
