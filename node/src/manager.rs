//! The manager: what the Raft leader does besides. It hears the heartbeats, says who is down,
//! gives shards their leaders, takes nodes into the Raft group and out of it, and puts right what others have left half done.
//!
//! What it hears is soft and stays in memory; what it decides is a command, checked in apply against
//! the state it was decided on (boot id, epoch). A new manager listens for [`SILENT`] before it
//! declares anybody down: until then it has not had the chance to hear them. Only of the leader before it does it know
//! since when that is silent.

mod pausing;
mod rates;
mod replace;
mod reports;
mod shards;
mod standbys;
mod stuck;

pub use reports::Reports;

use pausing::Pausing;
use rates::Rates;
use stuck::Stuck;

use crate::adapters::propose;
use crate::collector;
use crate::headroom;
use crate::idle_writers;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tidemill_core::catalog::{CatalogQuestions, Node, NodeState, Pipe, PipeState, Shard};
use tidemill_core::command::{AddPartitions, NodeUp, ReplicaOf, SetNodeState};
use tidemill_core::membership::Plan;
use tidemill_core::replication::{self, Change};
use tidemill_core::view::{CatalogRead, CatalogSnapshot, ViewError};
use tidemill_core::{Command, NodeId, Refusal, ShardId, Version};
use tidemill_raft::{Catalog, MembershipError};
use tidemill_storage::store::PartStore;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

/// How long a node may be silent before it is down.
pub const SILENT: Duration = Duration::from_millis(1500);
/// For how long a new manager listens for the leader before it, at least: a heartbeat and a half. It says nothing in Raft
/// either, and has not for the time of an election.
const LISTEN: Duration = Duration::from_millis(300);
/// How often the manager looks.
const LOOK: Duration = Duration::from_millis(100);
/// How long a node must have been there before replicas move to it for the sake of balance: files are heavy, and whoever
/// starts a node may be about to say whose place it takes.
const RESETTLE: Duration = Duration::from_secs(30);
/// How long one step of membership may take before it is looked at anew.
const MEMBERSHIP_STEP: Duration = Duration::from_secs(10);
/// How long a change of replicas that was refused is left alone.
const REFUSED: Duration = Duration::from_secs(1);
/// The most changes of replicas that are asked for at once.
const REPLICAS_AT_ONCE: usize = 64;
/// How often sources are asked for new partitions, and unreferenced files are looked for.
const CHORES: Duration = Duration::from_secs(15);

/// Manages while this node leads the Raft group.
pub struct Manager {
    catalog: Catalog,
    reports: Arc<Reports>,
    store: Arc<dyn PartStore>,
    chores_runtime: tokio::runtime::Handle,
}

/// What a term of management remembers.
struct Term {
    since: Instant,
    /// Who led before, and when it was last heard.
    before: Option<(NodeId, Instant)>,
    balanced: Instant,
    chores: Instant,
    chores_task: Option<JoinHandle<()>>,
    /// The catalog's version at the last chores: what was buried before it is unknown to no heartbeat now.
    chores_version: Version,
    ready_since: BTreeMap<NodeId, Instant>,
    /// Changes of replicas that were refused, and when: they are not asked for again at once.
    refused: BTreeMap<(ShardId, NodeId), Instant>,
    /// Which tasks stand still, and when that was last looked at.
    stuck: Stuck,
    /// Which pipes are on their way to a pause, and when that was last looked at.
    pausing: Pausing,
    pausing_seen: Instant,
    rates: Rates,
    progress_seen: Instant,
    /// The step of membership that is under way; one at a time.
    membership: Option<JoinHandle<Result<Plan, MembershipError>>>,
}

impl Term {
    /// For how long `node`, of which nothing has been heard in this term, would have been heard if it lived. Its heartbeats
    /// come here since the term began; but who led before spoke to this node all the time, and its falling silent is what
    /// the term began with.
    fn listened_to(&self, node: NodeId) -> Duration {
        let before = self.before.filter(|(leader, _)| *leader == node);
        let since = before.map_or(self.since, |(_, heard)| heard.min(self.since));
        // It may be long ago that it led; whoever lives is heard within a few heartbeats.
        since.elapsed().min(self.since.elapsed() + SILENT - LISTEN)
    }

    /// Whether `node` has been ready for so long, as far as this manager has seen.
    fn is_settled(&self, node: NodeId, time: Duration) -> bool {
        let since = self.ready_since.get(&node);
        since.is_some_and(|since| since.elapsed() >= time)
    }
}

impl Manager {
    /// A manager; it does nothing until this node leads. What takes long and is not urgent runs on `chores_runtime`.
    pub fn new(
        catalog: Catalog,
        reports: Arc<Reports>,
        store: Arc<dyn PartStore>,
        chores_runtime: tokio::runtime::Handle,
    ) -> Self {
        Self {
            catalog,
            reports,
            store,
            chores_runtime,
        }
    }

    /// Manages whenever this node leads, forever. To be run on the control runtime.
    pub async fn run(self) {
        let mut leadership = self.catalog.leadership();
        loop {
            if leadership.wait_for(|l| l.is_self).await.is_err() {
                return;
            }
            // Decide on nothing older than this term of office.
            if self.catalog.read_index(Duration::from_secs(2)).await.is_err() {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            info!("this node is the manager");
            self.reports.begin();
            let now = Instant::now();
            let mut term = Term {
                since: now,
                before: self.catalog.take_leader_heard(),
                balanced: now,
                chores: now,
                chores_task: None,
                chores_version: Version(0),
                ready_since: BTreeMap::new(),
                refused: BTreeMap::new(),
                stuck: Stuck::default(),
                pausing: Pausing::default(),
                pausing_seen: now,
                rates: Rates::new(now),
                progress_seen: now,
                membership: None,
            };
            while leadership.borrow().is_self {
                if let Err(error) = self.look(&mut term).await {
                    warn!("the catalog cannot be read: {error}");
                }
                // A node that falls silent is judged when its time is over, not at the next look.
                let due = self.reports.until_silence().unwrap_or(LOOK);
                tokio::time::sleep(due.clamp(LOOK / 10, LOOK)).await;
            }
            self.reports.end();
            info!("this node is not the manager any more");
        }
    }

    async fn look(&self, term: &mut Term) -> Result<(), ViewError> {
        let state = || self.catalog.snapshot().map_err(|e| ViewError::Store(e.to_string()));
        if term.rates.are_due(Instant::now()) {
            term.rates.look(Instant::now(), &self.reports.all());
            self.reports.know_rates(term.rates.of_partitions());
        }
        self.judge_nodes(term, &*state()?).await?;
        let leaving = self.place_replicas(term, &*state()?).await?;
        self.place_shards(term, &*state()?, &leaving).await?;
        standbys::place(&self.catalog, &self.reports, &*state()?, &leaving, term).await?;
        self.resume_abandoned(term, &*state()?).await?;
        self.tend_membership(term).await;
        // One round at a time: a source that does not answer makes it long.
        let free = term.chores_task.as_ref().is_none_or(JoinHandle::is_finished);
        if free && term.chores.elapsed() >= CHORES {
            term.chores = Instant::now();
            let state = state()?;
            let buried_before = std::mem::replace(&mut term.chores_version, state.version());
            term.chores_task = Some(self.spawn_chores(state, buried_before));
        }
        Ok(())
    }

    /// Begins the next step towards the members that the catalog asks for, if none is under way. Beside the rest: a step
    /// that waits for a quorum must not keep shards from getting leaders.
    async fn tend_membership(&self, term: &mut Term) {
        if term.membership.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        if let Some(task) = term.membership.take() {
            match task.await {
                Ok(Ok(Plan::Step(step))) => {
                    info!("membership: {step:?} is done");
                    self.reports.wait_for(None);
                }
                Ok(Ok(Plan::Wait(why))) => self.reports.wait_for(Some(why)),
                Ok(Ok(Plan::Settled)) => self.reports.wait_for(None),
                Ok(Err(error)) => self.reports.wait_for(Some(error.to_string())),
                Err(error) => warn!("a step of membership has failed: {error}"),
            }
        }
        if let Some(heard) = self.reports.heard() {
            let catalog = self.catalog.clone();
            term.membership = Some(tokio::spawn(async move {
                catalog.tend_membership(heard, MEMBERSHIP_STEP).await
            }));
        }
    }

    async fn judge_nodes(&self, term: &mut Term, state: &dyn CatalogSnapshot) -> Result<(), ViewError> {
        for node in state.list::<Node>(&[])? {
            let alive = self.reports.get(node.id);
            if alive.is_none() && node.state == NodeState::Removed {
                // What it last said must not keep files from being collected for ever.
                self.reports.forget(node.id);
                continue;
            }
            let judged = match &alive {
                Some(r) if node.state == NodeState::Removed => {
                    let why = format!("node '{}' ({}) was removed from the cluster", node.name, node.id);
                    self.reports.refuse(r.boot, why);
                    None
                }
                Some(r) if r.draining && node.boot == Some(r.boot) => {
                    (node.state != NodeState::Draining).then(|| set_state(&node, NodeState::Draining))
                }
                Some(r) => {
                    let warehouse = Some(&r.warehouse).filter(|said| !said.is_empty());
                    let same_place =
                        node.addresses == r.addresses && warehouse.is_none_or(|said| node.warehouse == *said);
                    let known = node.boot == Some(r.boot) && same_place && node.disk == r.disk;
                    (!known || node.state != node.intent.state_when_up()).then(|| {
                        Command::NodeUp(NodeUp {
                            node: node.id,
                            instance: r.instance,
                            boot: r.boot,
                            addresses: r.addresses.clone(),
                            disk: r.disk,
                            warehouse: warehouse.cloned(),
                        })
                    })
                }
                None => {
                    let may_judge = term.listened_to(node.id) >= SILENT;
                    let has_been_up = node.state.is_up();
                    (may_judge && has_been_up).then(|| set_state(&node, NodeState::Down))
                }
            };
            match alive.is_some() && judged.is_none() && node.state == NodeState::Ready {
                true => _ = term.ready_since.entry(node.id).or_insert_with(Instant::now),
                false => _ = term.ready_since.remove(&node.id),
            }
            let Some(command) = judged else { continue };
            info!(node = %node.name, "{}", describe(&command));
            let outcome = propose(&self.catalog, command, Duration::from_secs(2)).await;
            if let (Ok((_, Err(Refusal::Node(why)))), Some(report)) = (outcome, alive) {
                self.reports.refuse(report.boot, why);
            }
        }
        Ok(())
    }

    /// Lets nodes keep the files of shards, or not any more. Gives those that lead what they shall not keep.
    async fn place_replicas(&self, term: &mut Term, state: &dyn CatalogSnapshot) -> Result<Vec<ReplicaOf>, ViewError> {
        let nodes = state.list::<Node>(&[])?;
        let settled = |node: &Node| node.state != NodeState::Ready || term.is_settled(node.id, RESETTLE);
        let heard = |node: &Node| self.reports.hears(node);
        let Some(problem) = replication::Problem::of(state, &nodes, heard, nodes.iter().all(settled))? else {
            return Ok(Vec::new());
        };
        let mut leaving = Vec::new();
        let mut changes = Vec::new();
        term.refused.retain(|_, at| at.elapsed() < REFUSED);
        let ready = |node: &NodeId| nodes.iter().any(|n| n.id == *node && n.state == NodeState::Ready);
        let due = replication::changes(&problem).into_iter();
        let due: Vec<Change> = due
            .filter(|change| !term.refused.contains_key(&key_of(change)))
            .take(REPLICAS_AT_ONCE)
            .collect();
        for change in due {
            let shard_of = |of: &ReplicaOf| problem.shards.iter().find(|shard| shard.id == of.shard);
            let leads = |of: &ReplicaOf| shard_of(of).is_some_and(|shard| shard.leader == Some(of.node));
            let others = |of: &ReplicaOf| {
                let shard = shard_of(of).into_iter();
                shard
                    .flat_map(Shard::ready_replicas)
                    .any(|node| node != of.node && ready(&node))
            };
            let command = match change {
                Change::Add(of) => Command::AddReplica(of),
                Change::Drop(of) if leads(&of) => {
                    // Only if somebody can take the lead: a leader is not taken away for nothing.
                    leaving.extend(others(&of).then_some(of));
                    continue;
                }
                Change::Drop(of) => Command::DropReplica(of),
            };
            changes.push(async move { (change, propose(&self.catalog, command, Duration::from_secs(2)).await) });
        }
        for (change, outcome) in futures::future::join_all(changes).await {
            match outcome {
                Ok((_, Ok(_))) => info!("{}", describe_replica(change)),
                // Copies are still to be made, or the state has moved on: a later look sees how.
                other => {
                    debug!(?change, ?other, "the replicas stay as they are");
                    term.refused.insert(key_of(&change), Instant::now());
                }
            }
        }
        Ok(leaving)
    }

    /// What is not urgent and may take long runs beside.
    fn spawn_chores(&self, state: Arc<dyn CatalogSnapshot>, buried_before: Version) -> JoinHandle<()> {
        let pinned = self
            .reports
            .all()
            .into_iter()
            .filter_map(|r| Some(r.progress?.oldest_pinned_version));
        let oldest = pinned.filter(|v| *v > 0).map(Version).min();
        let may_delete_up_to = oldest.map_or(buried_before, |oldest| oldest.min(buried_before));
        let (catalog, store, reports) = (self.catalog.clone(), self.store.clone(), self.reports.clone());
        self.chores_runtime.spawn(async move {
            if let Err(error) = add_partitions(&catalog, &*state).await {
                warn!("new partitions cannot be taken up: {error}");
            }
            if let Err(error) = headroom::look(&catalog, &reports, &*state).await {
                warn!("retention headroom is not known: {error}");
            }
            if let Err(error) = idle_writers::close(&catalog, &*state).await {
                warn!("idle writers cannot be closed: {error}");
            }
            let replicates = state.replication().is_ok_and(|rule| rule.is_some());
            let collected = match replicates {
                true => collector::delete_buried(&catalog, &*state, &*store, may_delete_up_to).await,
                false => collector::collect(&catalog, &*store, may_delete_up_to).await,
            };
            if let Err(error) = collected {
                warn!("unreferenced files cannot be collected: {error}");
            }
        })
    }
}

fn set_state(node: &Node, state: NodeState) -> Command {
    Command::SetNodeState(SetNodeState {
        node: node.id,
        boot: node.boot,
        state,
    })
}

fn key_of(change: &Change) -> (ShardId, NodeId) {
    match change {
        Change::Add(of) | Change::Drop(of) => (of.shard, of.node),
    }
}

fn describe_replica(change: Change) -> String {
    match change {
        Change::Add(ReplicaOf { shard, node }) => format!("node {node} keeps the files of shard {shard} from now on"),
        Change::Drop(ReplicaOf { shard, node }) => format!("node {node} keeps the files of shard {shard} no more"),
    }
}

fn describe(command: &Command) -> &'static str {
    match command {
        Command::SetNodeState(c) if c.state == NodeState::Down => "the node is silent: down",
        Command::SetNodeState(_) => "the node gives up its shards",
        _ => "the node is there",
    }
}

/// Takes up partitions that sources have and their pipes do not.
async fn add_partitions(catalog: &Catalog, state: &dyn CatalogSnapshot) -> anyhow::Result<()> {
    // A backfill reads what it was made for and nothing else.
    let grows = |pipe: &Pipe| pipe.state == PipeState::Running && pipe.backfills.is_none();
    for pipe in state.list::<Pipe>(&[])?.into_iter().filter(grows) {
        let Some(source) = pipe.source.kafka().cloned() else {
            continue;
        };
        let known: Vec<_> = state.partitions_of(pipe.id)?.iter().map(|p| p.partition).collect();
        let asked = tokio::task::spawn_blocking(move || tidemill_ingest::kafka::added_partitions(&source, &known));
        let added = match asked.await? {
            Ok(added) => added,
            Err(error) => {
                debug!(pipe = %pipe.name, %error, "the source does not say which partitions it has");
                continue;
            }
        };
        if !added.is_empty() {
            info!(pipe = %pipe.name, count = added.len(), "the topic has new partitions");
            let command = Command::AddPartitions(AddPartitions {
                pipe: pipe.id,
                partitions: added,
            });
            // A pipe that was dropped meanwhile, or no leader for the moment, is no reason to leave out the others.
            match propose(catalog, command, Duration::from_secs(5)).await {
                Ok((_, Ok(_))) => {}
                other => warn!(pipe = %pipe.name, ?other, "its new partitions are not taken up yet"),
            }
        }
    }
    Ok(())
}
