//! What a node does by itself: founding, saying that it runs, ending when it was removed, and, while it leads, looking after shards and
//! members as the manager of the product does. Which change of members comes next, `tidemill_core::membership` decides.

use crate::mutant::Mutant;
use crate::network::{Failure, Manner, call};
use crate::node::{Node, ProposeError, Proposed};
use crate::runtime::{Moment, NodeRuntime, lock, spawn_free, spawn_on};
use crate::timing::CAUGHT_UP;
use crate::types::{LogId, Member, TypeConfig};
use crate::world::tell;
use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::async_runtime::{AsyncRuntime, instant::Instant};
use openraft::raft::Precondition;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tidemill_core::catalog::{self, Addresses, Cluster, ClusterKey, NodeState, Shard};
use tidemill_core::command::{AssignLeader, FoundCluster, FoundingMember, NodeUp, SetNodeState};
use tidemill_core::membership::{Group, Plan, Standing, Step, next_step};
use tidemill_core::view::CatalogRead;
use tidemill_core::{ClusterId, Command, NodeId};
use tidemill_sim::seeds::Violation;

/// How often a node looks.
const LOOK: Duration = Duration::from_millis(250);
/// A node that is silent for so long is taken for down.
const SILENT: Duration = Duration::from_millis(1500);
/// How often a node asks the others whether it was removed.
const SUSPICION: Duration = Duration::from_secs(3);
/// How long a step of the manager may take.
const STEP: Duration = Duration::from_secs(5);

/// Starts what `node` does; its Raft runs.
pub(crate) fn run(node: Arc<Node>) {
    spawn_on(&node.process.clone(), own_duties(node.clone()));
    spawn_on(&node.process.clone(), lead(node));
}

impl Node {
    /// Proposes a command of the node's own.
    pub async fn submit(&self, command: Command, limit: Duration) -> Proposed {
        let proposal = self.world.proposal(command);
        let number = proposal.at_ms;
        let result = self.propose(proposal, limit).await;
        if let Err(ProposeError::NotSent(_)) = result {
            lock(&self.world.oracle).was_not_sent(number);
        }
        result
    }

    fn is_founded(&self) -> bool {
        self.look(|state| state.get::<Cluster>(&ClusterKey).ok().flatten().is_some())
            .1
    }

    /// What the catalog of this node says of this node.
    fn known(&self) -> Option<catalog::Node> {
        self.look(|state| state.get::<catalog::Node>(&NodeId(self.id)).ok().flatten())
            .1
    }

    /// Why Raft does not run, if it does not.
    fn stopped(&self) -> Option<String> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.running_state.as_ref().err().map(ToString::to_string)
    }
}

async fn own_duties(node: Arc<Node>) {
    let jitter = node.world.roll(|dice| dice.time(0, 100_000));
    NodeRuntime::sleep(jitter).await;
    let mut asked = Moment::now();
    loop {
        if let Some(why) = node.stopped() {
            let found = format!("node {}: {why}", node.id);
            return node
                .world
                .broke(Violation::new("RUN: Raft does not stop by itself", found));
        }
        if node.is_removed() || (asked.elapsed() >= SUSPICION && others_say_removed(&node).await) {
            return retire(node);
        }
        if asked.elapsed() >= SUSPICION {
            asked = Moment::now();
        }
        found(&node).await;
        say_up(&node).await;
        NodeRuntime::sleep(LOOK).await;
    }
}

/// Founds the group, or the cluster in it, if that is to be done by this node.
async fn found(node: &Arc<Node>) {
    let world = &node.world;
    if node.id == 1 && node.started_blank && node.members().is_empty() && lock(&world.oracle).tip().is_none() {
        let founders = world.machines[..world.founders].iter();
        let members: BTreeMap<u64, Member> = founders.map(|m| (m.identity().0, m.member())).collect();
        if let Err(error) = node.raft.initialize(members).await {
            tell!(world, "the group is not founded: {error}");
        }
    }
    if node.leads() && !node.is_founded() {
        let members = node.members().into_iter().map(|(id, member)| FoundingMember {
            node: NodeId(id),
            name: member.name,
            instance: member.instance.unwrap_or(node.instance),
            warehouse: "default".into(),
            addresses: addresses(member.machine),
        });
        let command = Command::FoundCluster(FoundCluster {
            cluster: ClusterId(1),
            name: "c".into(),
            members: members.collect(),
            replication: None,
        });
        drop(node.submit(command, STEP).await);
    }
    if node.is_founded() && node.member(node.id).is_some() {
        node.machine.mark_joined();
    }
}

pub(crate) fn addresses(machine: usize) -> Addresses {
    Addresses {
        raft: format!("m{machine}:1"),
        api: format!("m{machine}:2"),
        http: format!("m{machine}:3"),
    }
}

fn machine_of(addresses: &Addresses) -> usize {
    let digits = addresses.raft.trim_start_matches('m').split(':').next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or_default()
}

async fn say_up(node: &Arc<Node>) {
    let Some(known) = node.known() else {
        return;
    };
    let is_up = known.boot == Some(node.boot) && known.state == known.intent.state_when_up();
    if is_up || known.instance != node.instance {
        return;
    }
    let command = Command::NodeUp(NodeUp {
        node: known.id,
        instance: node.instance,
        boot: node.boot,
        addresses: addresses(node.machine.index),
        disk: None,
        warehouse: None,
    });
    drop(node.submit(command, Duration::from_secs(1)).await);
}

/// Whether anybody says that this node was removed. Whoever has no log yet asks where it was admitted (`node/src/join.rs`).
async fn others_say_removed(node: &Arc<Node>) -> bool {
    let leads = match node.world.mutant {
        Some(Mutant::LeaderBelievesItself) => node.leads(),
        _ => node.leads_a_quorum(),
    };
    if leads {
        return false;
    }
    let mut others: Vec<(u64, Member)> = node.members().into_iter().collect();
    if others.is_empty() {
        others.extend(node.world.machines.iter().map(|m| (m.identity().0, m.member())));
    }
    for (id, member) in others {
        let instance = node.instance;
        let work = move |other: Arc<Node>| -> futures::future::BoxFuture<'static, Result<bool, Failure>> {
            Box::pin(async move { Ok(other.was_removed(instance)) })
        };
        let manner = Manner {
            checked: false,
            ..Manner::request(Duration::from_secs(1))
        };
        if id != node.id && call(node, (id, &member), manner, work).await.unwrap_or(false) {
            return true;
        }
    }
    false
}

/// The process ends, and the machine is free for another node.
fn retire(node: Arc<Node>) {
    tell!(node.world, "node {} was removed, and ends", node.id);
    let (world, machine, process) = (node.world.clone(), node.machine.clone(), node.process.clone());
    drop(node);
    spawn_free(async move {
        // Another process may run there by now.
        if machine.process().is_some_and(|now| Arc::ptr_eq(&now, &process)) {
            machine.kill(&world);
            *lock(&machine.disk) = Default::default();
            machine.renew(&world);
            world.count("nodes retired");
        }
    });
}

/// What the leader does.
async fn lead(node: Arc<Node>) {
    let mut leads_since: Option<Moment> = None;
    loop {
        NodeRuntime::sleep(LOOK).await;
        if !node.leads() || !node.is_founded() {
            leads_since = None;
            continue;
        }
        let since = *leads_since.get_or_insert_with(Moment::now);
        let alive = alive(&node);
        if since.elapsed() >= SILENT {
            judge(&node, &alive).await;
        }
        assign(&node).await;
        let plan = tend(&node, &alive).await;
        if let Some(Plan::Step(step)) = plan {
            tell!(node.world, "manager {}: {step:?}", node.id);
        }
    }
}

/// The nodes that have answered lately.
fn alive(node: &Node) -> BTreeSet<NodeId> {
    let metrics = node.raft.metrics();
    let metrics = metrics.borrow_watched();
    let heard = metrics.heartbeat.iter().flatten();
    let lately = heard.filter(|(_, at)| at.as_ref().is_some_and(|at| at.elapsed() < SILENT));
    lately.map(|(id, _)| NodeId(*id)).chain([NodeId(node.id)]).collect()
}

async fn judge(node: &Node, alive: &BTreeSet<NodeId>) {
    let nodes = node
        .look(|state| state.list::<catalog::Node>(&[]).unwrap_or_default())
        .1;
    for silent in nodes
        .iter()
        .filter(|known| known.state.is_up() && !alive.contains(&known.id))
    {
        let command = Command::SetNodeState(SetNodeState {
            node: silent.id,
            boot: silent.boot,
            state: NodeState::Down,
        });
        drop(node.submit(command, STEP).await);
    }
}

/// Gives shards without a leader, or with one that is leaving, to the node with the least to do.
async fn assign(node: &Node) {
    let (nodes, shards) = node
        .look(|state| {
            let nodes = state.list::<catalog::Node>(&[]).unwrap_or_default();
            (nodes, state.list::<Shard>(&[]).unwrap_or_default())
        })
        .1;
    let load = |id: NodeId| shards.iter().filter(|shard| shard.leader == Some(id)).count();
    let ready = nodes.iter().filter(|known| known.state == NodeState::Ready);
    let Some(idle) = ready.map(|known| known.id).min_by_key(|id| load(*id)) else {
        return;
    };
    let is_ready = |id: NodeId| {
        nodes
            .iter()
            .any(|known| known.id == id && known.state == NodeState::Ready)
    };
    if let Some(shard) = shards.iter().find(|shard| !shard.leader.is_some_and(is_ready)) {
        let command = Command::AssignLeader(AssignLeader {
            shard: shard.id,
            replaces: shard.epoch,
            leader: Some(idle),
            because: "it has none".into(),
        });
        drop(node.submit(command, STEP).await);
    }
}

/// Takes the next step towards the members that the catalog asks for, if there is one; says what it was.
async fn tend(node: &Node, alive: &BTreeSet<NodeId>) -> Option<Plan> {
    let (group, based_on) = look(node, alive)?;
    let plan = next_step(&group);
    if let Plan::Step(step) = &plan {
        take(node, step.clone(), based_on).await;
    }
    Some(plan)
}

/// Whether `node` leads and sees nothing to be done about the members.
pub(crate) fn is_settled(node: &Node) -> bool {
    let plan = look(node, &alive(node)).map(|(group, _)| next_step(&group));
    plan == Some(Plan::Settled)
}

/// The group, and the position of the membership in it.
fn look(node: &Node, alive: &BTreeSet<NodeId>) -> Option<(Group, Option<LogId>)> {
    let metrics = node.raft.metrics().borrow_watched().clone();
    let replication = metrics
        .replication
        .as_ref()
        .filter(|_| metrics.current_leader == Some(metrics.id))?;
    let (shards, known) = node
        .look(|state| {
            let shards = state.list::<Shard>(&[]).unwrap_or_default();
            (shards, state.list::<catalog::Node>(&[]).unwrap_or_default())
        })
        .1;
    let leading: BTreeSet<NodeId> = shards.iter().filter_map(|shard| shard.leader).collect();
    let membership = metrics.membership_config.membership();
    let standing = |known: catalog::Node| {
        let matched = replication
            .get(&known.id.0)
            .and_then(|matched| matched.as_ref())
            .map(|id| id.index);
        let own = known.id.0 == metrics.id;
        let lacks = metrics.last_log_index.unwrap_or(0).saturating_sub(matched.unwrap_or(0));
        let member = membership.get_node(&known.id.0);
        let standing = Standing {
            state: known.state,
            boot: known.boot,
            intent: known.intent,
            intent_since: known.intent_since,
            leads_shards: leading.contains(&known.id),
            keeps_parts: false,
            keeps_rows: false,
            alive: own || alive.contains(&known.id),
            caught_up: own || (matched.is_some() && lacks <= CAUGHT_UP),
            moved: member.is_some_and(|member| known.state != NodeState::Removed && *member != member_of(&known)),
            name: known.name,
        };
        (known.id, standing)
    };
    let configs = membership.get_joint_config();
    let group = Group {
        leader: NodeId(metrics.id),
        voters: configs.last().into_iter().flatten().copied().map(NodeId).collect(),
        joint: configs.len() > 1,
        learners: membership.learner_ids().map(NodeId).collect(),
        nodes: known.into_iter().map(standing).collect(),
    };
    Some((group, *metrics.membership_config.log_id()))
}

fn member_of(node: &catalog::Node) -> Member {
    Member {
        name: node.name.clone(),
        instance: Some(node.instance),
        machine: machine_of(&node.addresses),
    }
}

async fn take(node: &Node, step: Step, based_on: Option<LogId>) {
    let change = match step {
        Step::Remove(gone) => {
            let proposal = node.world.proposal(Command::RemoveNode(gone));
            let number = proposal.at_ms;
            let result = node.propose_as_leader(proposal, STEP).await;
            if let Err(ProposeError::NotSent(_)) = result {
                lock(&node.world.oracle).was_not_sent(number);
            }
            return;
        }
        Step::TransferLeadership(to) => {
            node.world.count("leaderships handed on");
            node.transfer_leadership(Some(to.0), STEP).await;
            return;
        }
        Step::FinishJoint => ChangeMembers::AddVoterIds(BTreeSet::new()),
        Step::SetVoters(voters) => ChangeMembers::ReplaceAllVoters(voters.into_iter().map(|id| id.0).collect()),
        Step::DropLearner(id) => ChangeMembers::RemoveNodes([id.0].into()),
        Step::AddLearner(id) => {
            let known = node.look(|state| state.get::<catalog::Node>(&id).ok().flatten()).1;
            let Some(known) = known else { return };
            ChangeMembers::AddNodes([(id.0, member_of(&known))].into())
        }
    };
    let unchanged: Precondition<TypeConfig> = Precondition::LastMembershipLogId {
        last_membership_log_id: based_on,
    };
    let changed = node.raft.change_membership_if(change, true, [unchanged]);
    if let Ok(Ok(_)) = NodeRuntime::timeout(STEP, changed).await {
        node.world.count("changes of the group");
    }
}
