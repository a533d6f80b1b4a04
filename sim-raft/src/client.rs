//! Programs that use the catalog: they make commands out of what some node shows them, propose them there, say the same command
//! again when nobody knows what came of it, and read.

use crate::node::{Node, ProposeError, Proposed};
use crate::runtime::{lock, spawn_on, true_sleep};
use crate::world::{World, tell};
use futures::channel::oneshot;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tidemill_core::catalog::{
    self, CatalogQuestions, KafkaSource, NodeState, PartFile, PipeSettings, PipeState, Shard, TableSettings,
};
use tidemill_core::command::{
    AssignLeader, CommitPart, CreatePipe, CreateTable, RecordEvent, Refusal, Response, SetPipeState,
};
use tidemill_core::schema::{Column, ColumnType};
use tidemill_core::view::{CatalogRead, MemView, ViewError};
use tidemill_core::{Command, CommitId, Counts, Offset, Outcome, PartId, PartitionId, Proposal, SchemaVersion, Span};
use tidemill_sim::seeds::Violation;

/// The table and the pipe.
const TABLE: &str = "t";
const PIPE: &str = "p";
const SHARDS: u32 = 2;
const PARTITIONS: u32 = 4;
/// How long a proposal, or a read, is waited for.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How often a command of unknown fate is proposed again.
const AGAIN: u32 = 6;

impl World {
    /// A node that works, for somebody who looks for one.
    pub fn some_node(&self) -> Option<Arc<Node>> {
        let works = self.machines.iter().filter(|machine| machine.works());
        let nodes: Vec<Arc<Node>> = works.filter_map(|machine| machine.node()).collect();
        let index = self.roll(|dice| dice.below(nodes.len()));
        nodes.get(index).cloned()
    }
}

/// Has work done within the process of `node`; `None` if that ends before it is done.
pub(crate) async fn within<T: Send + 'static>(
    node: &Arc<Node>,
    work: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    let (done, result) = oneshot::channel();
    spawn_on(&node.process, async move { drop(done.send(work.await)) });
    result.await.ok()
}

/// One client, until the world does not want any more.
pub(crate) async fn run(world: Arc<World>, until: Duration) {
    let start = world.roll(|dice| dice.time(0, 300_000));
    true_sleep(start).await;
    while crate::runtime::true_nanos() < until.as_nanos() as u64 {
        if let Some(node) = world.some_node() {
            act(&world, node).await;
        }
        let pause = world.roll(|dice| dice.time(5_000, 120_000));
        true_sleep(pause).await;
    }
}

async fn act(world: &Arc<World>, node: Arc<Node>) {
    let state = node.look(MemView::clone).1;
    let command = match world.roll(|dice| dice.below(20)) {
        0..=3 => return read(world, &node).await,
        4 | 5 => return look(world, &node),
        chosen => make(world, &state, chosen).ok().flatten(),
    };
    let Some(command) = command else {
        return;
    };
    let proposal = world.proposal(command);
    if world.roll(|dice| dice.one_in(8)) {
        // To a node that may only believe that it leads.
        let (number, at) = (proposal.at_ms, lock(&world.oracle).floor());
        let own = node.clone();
        let result = within(&node, async move { own.propose_as_leader(proposal, PATIENCE).await }).await;
        drop(heard(world, number, at, result));
        return;
    }
    propose(world, proposal).await;
}

/// Proposes until it is known what came of it, or it has been tried often enough.
pub(crate) async fn propose(world: &Arc<World>, proposal: Proposal) -> Option<Outcome> {
    for attempt in 0..AGAIN {
        let Some(node) = world.some_node() else {
            true_sleep(Duration::from_millis(100)).await;
            continue;
        };
        if attempt > 0 {
            lock(&world.oracle).may_be(proposal.at_ms);
        }
        let floor = lock(&world.oracle).floor();
        let (own, again) = (node.clone(), proposal.clone());
        let result = within(&node, async move { own.propose(again, PATIENCE).await }).await;
        match heard(world, proposal.at_ms, floor, result) {
            Some(outcome) => return Some(outcome),
            None => {
                let pause = world.roll(|dice| dice.time(10_000, 300_000));
                true_sleep(pause).await;
            }
        }
        // Only a commit has an id by which its repetition is recognised.
        if !matches!(proposal.command, Command::CommitPart(_) | Command::AddNode(_)) {
            break;
        }
    }
    None
}

/// What a client makes of an answer; `None` when it does not know what came of its proposal.
fn heard(world: &World, number: i64, floor: u64, result: Option<Proposed>) -> Option<Outcome> {
    match result {
        Some(Ok((version, outcome))) => {
            world.note(4, version);
            world.tally(|tally| tally.acknowledged += 1);
            if let Err(refusal) = &outcome {
                world.count(kind_of(refusal));
            }
            let checked = lock(&world.oracle).answered(number, floor, version, &outcome);
            world.check(checked);
            Some(outcome)
        }
        Some(Err(ProposeError::NotSent(_))) => {
            world.count("not sent");
            lock(&world.oracle).was_not_sent(number);
            None
        }
        Some(Err(ProposeError::Unknown(_))) | None => {
            tell!(world, "nobody knows what came of proposal {number}");
            world.tally(|tally| tally.unknown += 1);
            None
        }
    }
}

fn kind_of(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::AlreadyCommitted(_) => "no: already committed",
        Refusal::StaleEpoch { .. } => "no: stale epoch",
        Refusal::Spans(_) => "no: not the next offset",
        _ => "no: others",
    }
}

async fn read(world: &Arc<World>, node: &Arc<Node>) {
    let floor = lock(&world.oracle).floor();
    let own = node.clone();
    let answer = within(node, async move { own.read_index(PATIENCE).await }).await;
    if let Some(Ok(_)) = answer {
        // The state is looked at once, when it is known to be new enough.
        let disk = lock(&node.machine.disk);
        if !node.process.is_alive() {
            return;
        }
        let current = &disk.catalog.current;
        let checked = lock(&world.oracle).read(floor, current.applied, &current.view);
        world.note(5, current.applied.map_or(0, |applied| applied.index));
        world.check(checked);
        world.tally(|tally| tally.reads += 1);
    }
}

/// A read of what a node has: an older state, perhaps, but one that was.
fn look(world: &World, node: &Node) {
    let disk = lock(&node.machine.disk);
    let current = &disk.catalog.current;
    let checked = lock(&world.oracle).stands(current.applied, &current.view);
    world.check(checked);
    world.count("local reads");
}

/// A command that makes sense in `state`, or did until a moment ago.
fn make(world: &World, state: &MemView, chosen: usize) -> Result<Option<Command>, ViewError> {
    let Some(table) = state.table_named(TABLE)? else {
        return Ok((!state.list::<catalog::Node>(&[])?.is_empty()).then(create_table));
    };
    let Some(pipe) = state.pipe_named(PIPE)? else {
        return Ok(Some(create_pipe()));
    };
    let shards = state.shards_of(table.id)?;
    let Some(shard) = world.roll(|dice| shards.get(dice.below(shards.len())).cloned()) else {
        return Ok(None);
    };
    Ok(match chosen {
        6 | 7 => Some(note()),
        8 => {
            let next = match pipe.state {
                PipeState::Running => PipeState::Pausing,
                PipeState::Pausing => PipeState::Paused,
                PipeState::Paused => PipeState::Running,
            };
            Some(Command::SetPipeState(SetPipeState {
                name: pipe.name,
                pipe: Some(pipe.id),
                from: None,
                state: next,
            }))
        }
        9 | 10 => {
            let nodes = state.list::<catalog::Node>(&[])?;
            let ready: Vec<_> = nodes
                .iter()
                .filter(|node| node.state == NodeState::Ready)
                .map(|node| node.id)
                .collect();
            world.roll(|dice| dice.pick(&ready).copied()).map(|leader| {
                Command::AssignLeader(AssignLeader {
                    shard: shard.id,
                    replaces: shard.epoch,
                    leader: Some(leader),
                    because: "a client wants it".into(),
                })
            })
        }
        _ => commit(world, state, &shard)?,
    })
}

fn commit(world: &World, state: &MemView, shard: &Shard) -> Result<Option<Command>, ViewError> {
    let Some(pipe) = state.pipe_named(PIPE)? else {
        return Ok(None);
    };
    let partitions = state.partitions_of(pipe.id)?;
    let of_shard: Vec<_> = partitions
        .iter()
        .filter(|partition| partition.shard == shard.id)
        .collect();
    let Some(partition) = world.roll(|dice| dice.pick(&of_shard).copied()) else {
        return Ok(None);
    };
    let rows = world.roll(|dice| dice.between(1, 50));
    let (commit, part) = world.roll(|dice| (dice.id(), dice.id()));
    let span = Span {
        key: partition.key(),
        start: partition.offset,
        end: Offset(partition.offset.0 + rows),
        counts: Counts::stored(rows),
        topic: None,
        source_epoch: None,
    };
    let file = PartFile {
        id: PartId(part),
        path: String::new(),
        rows,
        bytes: rows,
        checksum: 0,
        partition_value: None,
        ranges: vec![],
    };
    Ok(Some(Command::CommitPart(CommitPart {
        commit: CommitId(commit),
        shard: shard.id,
        epoch: shard.epoch,
        schema_version: SchemaVersion(1),
        parts: vec![file],
        reject_parts: vec![],
        spans: vec![span],
        holders: vec![],
    })))
}

/// The one command that does something every time.
pub(crate) fn note() -> Command {
    Command::RecordEvent(RecordEvent {
        kind: "note".into(),
        subject: "t".into(),
        partition: None,
        text: "something".into(),
    })
}

fn create_table() -> Command {
    let column = Column {
        name: "id".into(),
        data_type: ColumnType::Int64,
        nullable: false,
        default: None,
    };
    Command::CreateTable(CreateTable {
        name: TABLE.into(),
        id: None,
        if_not_exists: false,
        columns: vec![column],
        order_by: vec![],
        partition_by: None,
        shards: SHARDS,
        settings: TableSettings::default(),
    })
}

fn create_pipe() -> Command {
    Command::CreatePipe(CreatePipe {
        name: PIPE.into(),
        id: None,
        if_not_exists: false,
        table: TABLE.into(),
        table_id: None,
        source: KafkaSource {
            brokers: "b".into(),
            topic: "s".into(),
            client: BTreeMap::new(),
        },
        settings: PipeSettings::default(),
        topic: None,
        format: Default::default(),
        partitions: (0..PARTITIONS).map(|number| (PartitionId(number), Offset(0))).collect(),
    })
}

/// Every node answers a linearizable read in the end, all with the same state.
pub(crate) async fn read_everywhere(world: &Arc<World>) {
    for machine in world.machines.iter().filter(|machine| machine.has_number()) {
        let Some(node) = machine.node() else { continue };
        let own = node.clone();
        let answer = within(&node, async move { own.read_index(PATIENCE).await }).await;
        match answer {
            Some(Ok(_)) => read(world, &node).await,
            other => {
                let found = format!("node {} does not answer a read: {other:?}", node.id);
                world.broke(Violation::new("LIVE-2: every node answers when all is well", found));
            }
        }
    }
}

/// The id that the cluster gives to the data folder of a machine, once it has been asked often enough.
pub(crate) async fn admit(world: &Arc<World>, machine: &crate::world::Machine) -> Option<u64> {
    let command = Command::AddNode(tidemill_core::command::AddNode {
        name: machine.name(),
        instance: machine.identity().1,
        warehouse: "default".into(),
        addresses: crate::manager::addresses(machine.index),
    });
    match propose(world, world.proposal(command)).await {
        Some(Ok(Response::Node(id))) => Some(id.0),
        _ => None,
    }
}
