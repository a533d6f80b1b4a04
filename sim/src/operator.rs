//! Operators: what they do while things break, and how they put everything right in the end.

use crate::client::{PIPE, REPAIR, TABLE, source};
use crate::event::Event;
use crate::group::Pending;
use crate::mutant::Mutant;
use crate::node::{Kept, Purpose, index_of};
use crate::seeds::Violation;
use crate::source::{Loss, Slot};
use crate::time::{MS, SECOND, Time};
use crate::world::{World, tell};
use tidemill_core::catalog::*;
use tidemill_core::command::*;
use tidemill_core::view::{CatalogRead, Key, MemView};
use tidemill_core::{Command, NodeId, Offset, PartitionId};

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
        for command in self.tend_members(&state)? {
            self.propose(node, Purpose::Operate, command);
        }
        let act = match self.dice.below(12) {
            0 | 1 => self.pause_or_go_on(&state)?.map(|c| ("pause or resume", c)),
            2..=4 => self.repair(&state)?.map(|c| ("repair", c)),
            5 => self.reset(&state)?.map(|c| ("reset", c)),
            6 | 7 => self.drain_or_serve(&state)?.map(|c| ("drain or resume a node", c)),
            8 => self.alter_pipe(&state)?.map(|c| ("alter pipe", c)),
            9 => self.alter_table(&state)?.map(|c| ("alter table", c)),
            _ => self.drop_or_create(&state)?,
        };
        if let Some((name, command)) = act {
            *self.tally.acts.entry(name).or_default() += 1;
            self.propose(node, Purpose::Operate, command);
        }
        Ok(())
    }

    /// Asks for a hot standby, or for none any more.
    fn alter_pipe(&mut self, state: &MemView) -> Result<Option<Command>, Violation> {
        let Some(pipe) = state.pipe_named(PIPE)? else {
            return Ok(None);
        };
        self.hot = pipe.settings.standby == Standby::Cold;
        let from = PipeOptions::of(&pipe);
        Ok(Some(Command::AlterPipe(AlterPipe {
            name: pipe.name,
            pipe: Some(pipe.id),
            settings: self.pipe_settings(),
            format: pipe.format,
            source: source(),
            from,
        })))
    }

    /// Gives the table a log, or takes it away, which is refused while a program needs it.
    fn alter_table(&mut self, state: &MemView) -> Result<Option<Command>, Violation> {
        let Some(table) = state.table_named(TABLE)? else {
            return Ok(None);
        };
        let wal = match table.settings.wal {
            WalMode::Off => WalMode::Local,
            WalMode::Local => WalMode::Off,
        };
        Ok(Some(Command::AlterTable(AlterTable {
            name: table.name,
            table: Some(table.id),
            settings: TableSettings {
                wal,
                ..table.settings.clone()
            },
            from: Some(table.settings),
        })))
    }

    fn drop_or_create(&mut self, state: &MemView) -> Result<Option<(&'static str, Command)>, Violation> {
        if state.pipe_named(PIPE)?.is_none() {
            return Ok(self.create_again()?.map(|c| ("create pipe", c)));
        }
        // Whoever has asked for a pipe waits until that is decided: a second one would begin where the first did.
        let open = |p: &Pending| matches!(p.proposal.command, Command::CreatePipe(_));
        let waits = self.group.pending.values().any(open) || self.now < self.created_at + 8 * SECOND;
        if waits || !self.dice.one_in(3) {
            return Ok(None);
        }
        let dropped = ByName {
            name: PIPE.to_owned(),
            if_exists: true,
            id: state.pipe_named(PIPE)?.map(|pipe| pipe.id),
        };
        Ok(Some(("drop pipe", Command::DropPipe(dropped))))
    }

    /// A pipe that goes on where the one before was dropped.
    fn create_again(&mut self) -> Result<Option<Command>, Violation> {
        let tip = self.group.tip();
        if tip.pipe_named(PIPE)?.is_some() || self.topic.down {
            return Ok(None);
        }
        let mut partitions = Vec::new();
        for n in 0..self.topic.logs.len() {
            let known = self.left.iter().find(|p| p.partition.0 as usize == n).cloned();
            let from_the_start = self.mutant == Some(Mutant::CreatedAgainFromTheStart);
            let start = known.filter(|_| !from_the_start).map_or(0, |p| self.goes_on_at(n, &p));
            partitions.push((PartitionId(n as u32), Offset(start.max(self.topic.logs[n].low))));
        }
        self.created_at = self.now;
        let id = tip.find::<Cluster>(&ClusterKey)?.map(|cluster| cluster.next_pipe);
        Ok(Some(self.create_pipe(id, partitions)))
    }

    /// Where partition `n` is read on by another pipe: nothing twice, and nothing that is still there passed over.
    fn goes_on_at(&mut self, n: usize, p: &SourcePartition) -> u64 {
        let log = &self.topic.logs[n];
        let (low, high) = (log.low, log.high());
        let Some((to, epoch)) = p.goes_on(Some(self.topic.id), Offset(low)) else {
            // Nobody knows what was read of what is there.
            self.give_up(n, low, high);
            return high;
        };
        let topic = p.topic.filter(|topic| *topic == self.topic.id);
        match self.topic.read(n, to.0, epoch, topic, 0) {
            Ok(_) | Err(Loss::Recreated(_)) => to.0,
            Err(Loss::Expired { earliest }) => earliest,
            Err(Loss::Truncated { diverged, .. }) => diverged,
            Err(Loss::EndBelow { end }) => end,
        }
    }

    /// Operators say that these records may be missing.
    fn give_up(&mut self, n: usize, from: u64, to: u64) {
        for offset in from..to {
            if let Some(Slot::Record { id, .. }) = self.topic.logs.get(n).and_then(|log| log.slot(offset)) {
                self.oracle.given_up.insert(id);
            }
        }
    }

    /// The pipe is dropped: its rejects go with it, and somebody remembers where it was.
    pub fn pipe_is_dropped(&mut self, name: &str, before: &MemView) -> Result<(), Violation> {
        let Some(pipe) = before.pipe_named(name)? else {
            return Ok(());
        };
        self.left = before.partitions_of(pipe.id)?;
        for part in before.all::<RejectPart>(&pipe.id.bytes())? {
            let rows = self.files.get(&part.file.id).map(|contents| contents.rows.clone());
            self.oracle
                .given_up
                .extend(rows.into_iter().flatten().map(|row| row.id));
        }
        self.queries.clear();
        self.oracle.forget_seen();
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
        Ok(Some(set_state(pipe, next)))
    }

    /// Lets stopped partitions go on where the records tell where.
    fn repair(&mut self, state: &MemView) -> Result<Option<Command>, Violation> {
        let Some(pipe) = state.pipe_named(PIPE)? else {
            return Ok(None);
        };
        // Rows of a dropped pipe that read another topic of that name cannot be told from those that would be read again.
        let table = state.table_named(TABLE)?;
        let others = table.is_some_and(|table| table.former.iter().any(|former| former.id != pipe.topic));
        let (mut targets, mut blind) = (Vec::new(), Vec::new());
        for p in state.partitions_of(pipe.id)? {
            let Some(log) = self.topic.logs.get(p.partition.0 as usize).filter(|_| p.stop.is_some()) else {
                continue;
            };
            // Where the reason does not say it, an operator does: everything anew, and the old rows away.
            let known = p.goes_on(Some(self.topic.id), Offset(log.low));
            if known.is_none() && others {
                blind.push(ResetTarget {
                    partition: p.partition,
                    incarnation: p.incarnation,
                    to: Some(Offset(log.high())),
                    topic: Some(self.topic.id),
                    old_rows: Some(OldRows::Keep),
                    source_epoch: None,
                });
                continue;
            }
            // Only what goes back by what was known says so: where more was committed since, it is refused.
            let goes_back = |to: Offset| to < p.offset || p.topic != Some(self.topic.id);
            let old_rows = match known {
                Some((to, _)) => goes_back(to).then_some(OldRows::Keep),
                None => Some(OldRows::Delete),
            };
            let (to, source_epoch) = known.unwrap_or((Offset(log.low), None));
            let forgets = self.mutant == Some(Mutant::RepairForgetsTheEpoch);
            targets.push(ResetTarget {
                partition: p.partition,
                incarnation: p.incarnation,
                to: Some(to),
                topic: Some(self.topic.id),
                old_rows,
                source_epoch: source_epoch.filter(|_| !forgets),
            });
        }
        if !blind.is_empty() {
            for target in &blind {
                let n = target.partition.0 as usize;
                let high = target.to.map_or(0, |to| to.0);
                self.give_up(n, 0, high);
            }
            return Ok(Some(Command::ResetOffsets(ResetOffsets {
                name: pipe.name,
                pipe: Some(pipe.id),
                targets: blind,
                because: "skip".into(),
            })));
        }
        Ok((!targets.is_empty()).then(|| {
            Command::ResetOffsets(ResetOffsets {
                name: pipe.name,
                pipe: Some(pipe.id),
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
            pipe: Some(pipe.id),
            targets: vec![target],
            because: "reset".into(),
        })))
    }

    fn drain_or_serve(&mut self, state: &MemView) -> Result<Option<Command>, Violation> {
        let nodes = state.all::<Node>(&[])?;
        let gone = |id: NodeId| self.nodes.get(index_of(id)).is_some_and(|node| node.gone);
        let living = nodes
            .iter()
            .filter(|node| node.state != NodeState::Removed && !gone(node.id));
        let nodes: Vec<_> = living.collect();
        let other = nodes.iter().find(|node| node.intent != NodeIntent::Serve);
        // Sometimes one that leaves does.
        if other.is_some() && self.dice.one_in(2) {
            return Ok(None);
        }
        let leaves = other.is_none() && self.dice.one_in(2);
        let (node, intent) = match (other, self.dice.pick(&nodes)) {
            (Some(node), _) => (node.id, NodeIntent::Serve),
            (None, Some(node)) if leaves => (node.id, NodeIntent::Leave),
            (None, Some(node)) => (node.id, NodeIntent::Drain),
            (None, None) => return Ok(None),
        };
        if intent == NodeIntent::Leave && !self.may_shrink() {
            return Ok(None);
        }
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
        if let Some(pipe) = state.pipe_named(PIPE)?.filter(|pipe| pipe.state != PipeState::Running) {
            commands.push(set_state(pipe, PipeState::Running));
        }
        if state.pipe_named(PIPE)?.is_none() {
            commands.extend(self.create_again()?);
        }
        commands.extend(self.tend_members(&state)?);
        let lost = |id: NodeId| self.nodes.get(index_of(id)).is_some_and(|node| node.gone);
        for other in state
            .all::<Node>(&[])?
            .iter()
            .filter(|node| node.intent != NodeIntent::Serve && node.state != NodeState::Removed && !lost(node.id))
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
        let nodes = state.all::<Node>(&[])?;
        let living = nodes.iter().filter(|node| node.state != NodeState::Removed);
        if living.clone().count() < self.founders || self.nodes.iter().any(|node| node.joining) {
            return Ok(Some(format!("there are {} nodes", living.count())));
        }
        for node in living {
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
                    let node = &self.nodes[index_of(holder.node)];
                    let kept = node.stored.get(&copies.part);
                    node.disk == holder.disk && kept.is_some_and(Kept::is_sound)
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

fn set_state(pipe: Pipe, state: PipeState) -> Command {
    Command::SetPipeState(SetPipeState {
        name: pipe.name,
        pipe: Some(pipe.id),
        from: None,
        state,
    })
}
