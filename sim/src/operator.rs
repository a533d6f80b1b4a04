//! Operators: what they do while things break, and how they put everything right in the end.

use crate::client::{PIPE, REPAIR, TABLE};
use crate::event::Event;
use crate::mutant::Mutant;
use crate::node::Purpose;
use crate::oracle::Violation;
use crate::time::{MS, SECOND, Time};
use crate::world::{World, tell};
use tidemill_core::catalog::*;
use tidemill_core::command::*;
use tidemill_core::view::{CatalogRead, Key, MemView};
use tidemill_core::{Command, Offset};

/// How long everything may take until it is well again once nothing breaks any more.
const RECOVERY: Time = 60 * SECOND;

impl World {
    /// Operators do something, or put something right.
    pub fn operate(&mut self) -> Result<(), Violation> {
        if self.healed {
            return Ok(());
        }
        let time = self.dice.between(500, 4_000) * MS;
        self.after(time, Event::Operate);
        let Some(node) = self.some_node() else {
            return Ok(());
        };
        let state = self.nodes[node].state.clone();
        let act = match self.dice.below(8) {
            0 | 1 => self.pause_or_go_on(&state)?.map(|c| ("pause or resume", c)),
            2..=4 => self.repair(&state)?.map(|c| ("repair", c)),
            5 => self.reset(&state)?.map(|c| ("reset", c)),
            _ => self.drain_or_serve(&state)?.map(|c| ("drain or resume a node", c)),
        };
        if let Some((name, command)) = act {
            *self.tally.acts.entry(name).or_default() += 1;
            self.propose(node, Purpose::Operate, command);
        }
        Ok(())
    }

    fn pause_or_go_on(&mut self, state: &MemView) -> Result<Option<Command>, Violation> {
        let Some(pipe) = state.pipe_named(PIPE)? else {
            return Ok(None);
        };
        let next = match pipe.state {
            PipeState::Running if self.dice.one_in(3) => PipeState::Paused,
            PipeState::Running => PipeState::Pausing,
            PipeState::Pausing => PipeState::Paused,
            PipeState::Paused => PipeState::Running,
        };
        let name = pipe.name;
        Ok(Some(Command::SetPipeState(SetPipeState { name, state: next })))
    }

    /// Lets stopped partitions go on where the records tell where.
    fn repair(&mut self, state: &MemView) -> Result<Option<Command>, Violation> {
        let Some(pipe) = state.pipe_named(PIPE)? else {
            return Ok(None);
        };
        let mut targets = Vec::new();
        for p in state.partitions_of(pipe.id)? {
            let Some(log) = self.topic.logs.get(p.partition.0 as usize).filter(|_| p.stop.is_some()) else {
                continue;
            };
            // Where the reason does not say it, an operator does: everything anew, and the old rows away.
            let known = p.goes_on(Some(self.topic.id), Offset(log.low));
            let (to, source_epoch) = known.unwrap_or((Offset(log.low), None));
            let forgets = self.mutant == Some(Mutant::RepairForgetsTheEpoch);
            targets.push(ResetTarget {
                partition: p.partition,
                incarnation: p.incarnation,
                to: Some(to),
                topic: Some(self.topic.id),
                old_rows: Some(known.map_or(OldRows::Delete, |_| OldRows::Keep)),
                source_epoch: source_epoch.filter(|_| !forgets),
            });
        }
        Ok((!targets.is_empty()).then(|| {
            Command::ResetOffsets(ResetOffsets {
                name: pipe.name,
                targets,
                because: REPAIR.into(),
            })
        }))
    }

    fn reset(&mut self, state: &MemView) -> Result<Option<Command>, Violation> {
        let Some(pipe) = state.pipe_named(PIPE)? else {
            return Ok(None);
        };
        let partitions = state.partitions_of(pipe.id)?;
        let Some(p) = self.dice.pick(&partitions).filter(|p| p.stop.is_none()).cloned() else {
            return Ok(None);
        };
        let Some(log) = self.topic.logs.get(p.partition.0 as usize) else {
            return Ok(None);
        };
        let to = self.dice.between(log.low, log.high() + 1);
        let target = ResetTarget {
            partition: p.partition,
            incarnation: p.incarnation,
            to: Some(Offset(to)),
            topic: None,
            old_rows: (to < p.offset.0).then_some(OldRows::Delete),
            source_epoch: None,
        };
        Ok(Some(Command::ResetOffsets(ResetOffsets {
            name: pipe.name,
            targets: vec![target],
            because: "reset".into(),
        })))
    }

    fn drain_or_serve(&mut self, state: &MemView) -> Result<Option<Command>, Violation> {
        let nodes = state.all::<Node>(&[])?;
        let other = nodes.iter().find(|node| node.intent != NodeIntent::Serve);
        let (node, intent) = match (other, self.dice.pick(&nodes)) {
            (Some(node), _) => (node.id, NodeIntent::Serve),
            (None, Some(node)) if self.dice.one_in(2) => (node.id, NodeIntent::Leave),
            (None, Some(node)) => (node.id, NodeIntent::Drain),
            (None, None) => return Ok(None),
        };
        Ok(Some(Command::SetNodeIntent(SetNodeIntent { node, intent })))
    }

    /// From now on nothing breaks any more: everything must become well.
    pub fn settle(&mut self) -> Result<(), Violation> {
        if !self.healed {
            tell!(self, "nothing breaks any more");
            self.heal()?;
            self.healed = true;
        }
        let state = self.group.tip();
        let Some(missing) = self.is_missing(&state)? else {
            self.tally.rows = self.oracle.finish(&state, &self.files, &self.topic)?;
            self.done = true;
            return Ok(());
        };
        if self.now > self.healed_at() + RECOVERY {
            self.oracle.check_acknowledged(&state, &self.files)?;
            return Err(Violation::new(
                "LIVE-1",
                format!("a minute after the last fault {missing}"),
            ));
        }
        self.after(500 * MS, Event::Settle);
        let Some(node) = self.group.leader.filter(|leader| self.nodes[*leader].up) else {
            return Ok(());
        };
        let mut commands = Vec::new();
        commands.extend(self.repair(&state)?);
        if state
            .pipe_named(PIPE)?
            .is_some_and(|pipe| pipe.state != PipeState::Running)
        {
            let (name, state) = (PIPE.to_owned(), PipeState::Running);
            commands.push(Command::SetPipeState(SetPipeState { name, state }));
        }
        for other in state
            .all::<Node>(&[])?
            .iter()
            .filter(|node| node.intent != NodeIntent::Serve)
        {
            let (node, intent) = (other.id, NodeIntent::Serve);
            commands.push(Command::SetNodeIntent(SetNodeIntent { node, intent }));
        }
        for command in commands {
            self.propose(node, Purpose::Operate, command);
        }
        Ok(())
    }

    /// What is not as it should be yet.
    fn is_missing(&self, state: &MemView) -> Result<Option<String>, Violation> {
        for node in state.all::<Node>(&[])? {
            if node.state != NodeState::Ready {
                return Ok(Some(format!("node '{}' is {}", node.name, node.state)));
            }
        }
        for shard in state.all::<Shard>(&[])? {
            if shard.leader.is_none() {
                return Ok(Some(format!("nobody leads shard {}", shard.id)));
            }
            if shard.ready_replicas().count() != 3 {
                return Ok(Some(format!("shard {} has replicas {:?}", shard.id, shard.replicas)));
            }
            for copies in state.all::<Copies>(&shard.id.bytes())? {
                let sound = |holder: &Holder| {
                    let node = &self.nodes[holder.node.0 as usize - 1];
                    let kept = node.stored.get(&copies.part);
                    node.disk == holder.disk && kept.is_some_and(|kept| kept.durable && !kept.broken)
                };
                let there = copies.holders.iter().filter(|holder| sound(holder)).count();
                if there < 3 {
                    return Ok(Some(format!("file {} is on {there} disks", copies.path)));
                }
            }
        }
        let Some(pipe) = state.pipe_named(PIPE)? else {
            return Ok(Some("there is no pipe".into()));
        };
        if pipe.state != PipeState::Running {
            return Ok(Some("the pipe does not run".into()));
        }
        let partitions = state.partitions_of(pipe.id)?;
        if partitions.len() != self.topic.logs.len() {
            return Ok(Some("the topic has partitions that the pipe has not".into()));
        }
        for (p, log) in partitions.iter().zip(&self.topic.logs) {
            if p.stop.is_some() || p.offset.0 != log.high() {
                let (at, end) = (p.offset, log.high());
                let what = format!("partition {} is at {at} of {end}, stopped: {:?}", p.partition, p.stop);
                return Ok(Some(what));
            }
        }
        if self.clients.iter().any(|client| !client.is_done()) {
            return Ok(Some("a program waits for an answer".into()));
        }
        Ok(None)
    }
}
