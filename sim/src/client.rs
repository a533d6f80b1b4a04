//! Those who use the system: programs that write, people who ask, and operators.

use crate::dice::Dice;
use crate::event::{Body, Event, Message};
use crate::mutant::Mutant;
use crate::node::Purpose;
use crate::oracle::{Answer, Violation};
use crate::source::RecordId;
use crate::task::{Awaiting, PinnedLane};
use crate::time::{MS, SECOND, Time};
use crate::world::{World, tell};
use std::collections::BTreeMap;
use std::rc::Rc;
use tidemill_core::catalog::*;
use tidemill_core::command::*;
use tidemill_core::schema::{Column, ColumnType};
use tidemill_core::view::{CatalogRead, Key, MemView};
use tidemill_core::{ClusterId, Command, Epoch, Offset, PartitionId, Proposal, ShardId, TableId, WriterToken};

/// The table, the pipe and the topic.
const TABLE: &str = "t";
const PIPE: &str = "p";
const SHARDS: u32 = 2;
/// What is written down of a reset that a repair makes.
pub(crate) const REPAIR: &str = "repair";
/// Ids of rows that programs write begin here.
const WRITTEN: RecordId = 1 << 40;
/// How long a program waits for an answer.
const PATIENCE: Time = 2 * SECOND;
/// How long everything may take until it is well again once nothing breaks any more.
const RECOVERY: Time = 60 * SECOND;

/// A program that writes rows, with `acks = all`, to one shard.
#[derive(Debug)]
pub(crate) struct Client {
    token: WriterToken,
    shard: u32,
    /// So many rows it was told are committed.
    acked: u64,
    /// Those behind them.
    rows: Vec<RecordId>,
    asked: Option<(u64, Time)>,
}

impl Client {
    pub fn new(dice: &mut Dice) -> Self {
        Self {
            token: WriterToken(dice.id()),
            shard: dice.below(SHARDS as usize) as u32,
            acked: 0,
            rows: vec![],
            asked: None,
        }
    }
}

/// A query on its way.
#[derive(Debug)]
pub(crate) struct Query {
    node: usize,
    boot: u64,
    plan: Rc<MemView>,
    wanted: usize,
    pins: BTreeMap<ShardId, (Epoch, Vec<PinnedLane>)>,
}

impl World {
    /// Founds the cluster, and creates what is to be filled.
    pub fn found(&mut self) -> Result<(), Violation> {
        let members = self.nodes.iter().map(|node| FoundingMember {
            node: node.id,
            name: format!("n{}", node.id),
            instance: node.instance,
            warehouse: "default".into(),
            addresses: Addresses::default(),
        });
        let column = Column {
            name: "id".into(),
            data_type: ColumnType::Int64,
            nullable: false,
            default: None,
        };
        let partitions = (0..self.topic.logs.len()).map(|n| (PartitionId(n as u32), Offset(0)));
        let mut commands = vec![
            Command::FoundCluster(FoundCluster {
                cluster: ClusterId(1),
                name: "c".into(),
                members: members.collect(),
                replication: Some(Replication::of_founders(3)),
            }),
            Command::CreateTable(CreateTable {
                name: TABLE.into(),
                if_not_exists: false,
                columns: vec![column],
                order_by: vec![],
                partition_by: None,
                shards: SHARDS,
                settings: TableSettings::default(),
            }),
            Command::CreatePipe(CreatePipe {
                name: PIPE.into(),
                if_not_exists: false,
                table: TABLE.into(),
                source: KafkaSource {
                    brokers: "b".into(),
                    topic: "s".into(),
                    client: BTreeMap::new(),
                },
                settings: PipeSettings::default(),
                topic: Some(self.topic.id),
                format: Default::default(),
                partitions: partitions.collect(),
            }),
        ];
        commands.extend(self.clients.iter().map(|client| {
            Command::OpenWriter(OpenWriter {
                table: TABLE.into(),
                acks: Acks::All,
                token: client.token,
            })
        }));
        for command in commands {
            if let Err(refusal) = self.commit(Proposal::new(0, command))? {
                return Err(Violation::new("a cluster is founded", refusal.to_string()));
            }
        }
        let (version, state) = (self.group.committed(), self.group.tip());
        for node in &mut self.nodes {
            (node.applied, node.synced, node.state) = (version, version, state.clone());
        }
        (0..self.nodes.len()).for_each(|index| self.begin_duties(index));
        self.after(MS, Event::Raft);
        self.after(SECOND, Event::Produce);
        self.after(3 * SECOND, Event::Nemesis);
        self.after(4 * SECOND, Event::Operate);
        self.after(2 * SECOND, Event::Ask);
        (0..self.clients.len()).for_each(|client| self.after(2 * SECOND, Event::Write(client)));
        let length = self.dice.between(12, 40) * SECOND;
        self.after(length, Event::Settle);
        Ok(())
    }

    fn some_node(&mut self) -> Option<usize> {
        let works = |index: &usize| self.nodes[*index].up && !self.nodes[*index].paused;
        let up: Vec<usize> = (0..self.nodes.len()).filter(works).collect();
        self.dice.pick(&up).copied()
    }

    /// A program sends what it has, to whom it takes for the leader.
    pub fn write(&mut self, client: usize) -> Result<(), Violation> {
        let time = self.dice.between(50, 400) * MS;
        self.after(time, Event::Write(client));
        let now = self.now;
        let more = self.dice.between(1, 4);
        let Some(node) = self.some_node() else {
            return Ok(());
        };
        let fresh = (0..more)
            .map(|_| WRITTEN + (self.dice.id() as u64 >> 20))
            .collect::<Vec<_>>();
        let healed = self.healed;
        let c = &mut self.clients[client];
        if c.asked.is_some_and(|(_, at)| now < at + PATIENCE) {
            return Ok(());
        }
        c.asked = None;
        if !healed && c.rows.len() < 12 {
            c.rows.extend(fresh);
        }
        if c.rows.is_empty() {
            return Ok(());
        }
        let state = self.nodes[node].state.clone();
        let shard = ShardId {
            table: TableId(1),
            index: c.shard,
        };
        let Some(leader) = state.find::<Shard>(&shard)?.and_then(|shard| shard.leader) else {
            return Ok(());
        };
        self.requests += 1;
        c.asked = Some((self.requests, now));
        let body = Body::Append {
            client,
            request: self.requests,
            shard,
            first: c.acked,
            rows: c.rows.clone(),
        };
        self.send(node, leader.0 as usize - 1, body);
        Ok(())
    }

    /// The leader takes rows of a program.
    pub fn append(&mut self, index: usize, client: usize, request: u64, shard: ShardId, first: u64, rows: &[RecordId]) {
        let token = self.clients[client].token;
        let state = self.nodes[index].state.clone();
        let writers = state.all::<Writer>(&[]).unwrap_or_default();
        let table = state.find::<Table>(&shard.table).ok().flatten();
        let writer = writers.into_iter().find(|writer| writer.token == token);
        let place = writer
            .zip(table)
            .and_then(|(w, table)| Some((w.pipe, w.partition(&table, shard.index)?)));
        let Some(place) = place else {
            return;
        };
        let who = Awaiting {
            client,
            request,
            place,
            end: first + rows.len() as u64,
        };
        let taken = self.with_hands(index, |node, hands| {
            let task = node.tasks.get_mut(&shard);
            task.and_then(|task| task.write(first, rows, who, hands))
        });
        if let Some(wishes) = taken {
            self.grant(index, shard, wishes);
        }
    }

    /// A program hears that its rows are committed.
    pub fn acknowledged(&mut self, awaiting: Awaiting) {
        let client = &mut self.clients[awaiting.client];
        if client.asked.is_none_or(|(request, _)| request != awaiting.request) {
            return;
        }
        client.asked = None;
        let count = awaiting.end.saturating_sub(client.acked) as usize;
        let done: Vec<RecordId> = client.rows.drain(..count.min(client.rows.len())).collect();
        client.acked = client.acked.max(awaiting.end);
        self.oracle.acknowledge(done.into_iter());
    }

    /// Somebody asks for everything.
    pub fn ask(&mut self) -> Result<(), Violation> {
        let time = self.dice.between(150, 900) * MS;
        self.after(time, Event::Ask);
        // One at a time: of two, the one that began later may end first.
        self.queries.clear();
        let Some(node) = self.some_node() else {
            return Ok(());
        };
        self.requests += 1;
        let query = self.requests;
        let plan = self.nodes[node].state.clone();
        let shards = plan.all::<Shard>(&[])?;
        let leaders: Vec<(ShardId, usize)> = shards
            .iter()
            .filter_map(|shard| Some((shard.id, shard.leader?.0 as usize - 1)))
            .collect();
        if leaders.len() < shards.len() {
            return Ok(());
        }
        let asked = Query {
            node,
            boot: self.nodes[node].boot,
            plan,
            wanted: leaders.len(),
            pins: BTreeMap::new(),
        };
        self.queries.insert(query, asked);
        for (shard, leader) in leaders {
            self.send(node, leader, Body::Pin { query, shard });
        }
        Ok(())
    }

    /// A leader tells what it has in memory.
    pub fn pinned(
        &mut self,
        query: u64,
        shard: ShardId,
        pin: Option<(Epoch, Vec<PinnedLane>)>,
    ) -> Result<(), Violation> {
        let Some(asked) = self.queries.get_mut(&query) else {
            return Ok(());
        };
        let Some(pin) = pin else {
            self.queries.remove(&query);
            return Ok(());
        };
        asked.pins.insert(shard, pin);
        if asked.pins.len() < asked.wanted {
            return Ok(());
        }
        let node = asked.node;
        if self.mutant == Some(Mutant::SnapshotComesFirst) {
            let plan = asked.plan.clone();
            return self.answer_query(query, &plan);
        }
        if let Some((_, leader)) = self.nodes[node].leader {
            self.send(node, leader, Body::AskIndex { query });
        }
        Ok(())
    }

    /// The leader of the group says how far the log was committed when it was asked.
    pub fn indexed(&mut self, query: u64, index: usize) -> Result<(), Violation> {
        let Some(asked) = self.queries.get(&query) else {
            return Ok(());
        };
        let node = &self.nodes[asked.node];
        if node.boot != asked.boot {
            return Ok(());
        }
        if node.applied < index {
            let (from, to, body) = (asked.node, asked.node, Body::Index { query, index });
            self.after(5 * MS, Event::Deliver(Message { from, to, body }));
            return Ok(());
        }
        let state = node.state.clone();
        self.answer_query(query, &state)
    }

    fn answer_query(&mut self, query: u64, state: &MemView) -> Result<(), Violation> {
        let Some(asked) = self.queries.remove(&query) else {
            return Ok(());
        };
        let answer = Answer {
            state,
            pins: &asked.pins,
            uncut: self.mutant == Some(Mutant::PinsAreNotCut),
        };
        let rows = self.oracle.query(&answer, &self.files, &self.topic.aborted)?;
        if let Some(rows) = rows {
            self.tally.queries += 1;
            self.note(5, rows as u64);
        }
        Ok(())
    }

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
        if self.clients.iter().any(|client| !client.rows.is_empty()) {
            return Ok(Some("a program waits for an answer".into()));
        }
        Ok(None)
    }
}
