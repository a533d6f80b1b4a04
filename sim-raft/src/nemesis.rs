//! Whoever breaks things, and the operators.

use crate::client::{admit, note, propose, within};
use crate::mutant::Mutant;
use crate::network::Link;
use crate::node::{Node, ProposeError};
use crate::runtime::{lock, spawn_free, spawn_on, true_nanos, true_sleep};
use crate::world::{Machine, Risk, World};
use openraft::async_runtime::watch::WatchReceiver;
use std::sync::Arc;
use std::time::Duration;
use tidemill_core::catalog::{self, NodeIntent};
use tidemill_core::command::SetNodeIntent;
use tidemill_core::view::CatalogRead;
use tidemill_core::{Command, NodeId, Outcome};
use tidemill_sim::dice::Dice;

/// What can be broken, by the names that a tally has; a run has some of them.
pub(crate) const FAULTS: [&str; 21] = [
    "killed process",
    "power loss of one",
    "power loss of all",
    "paused process",
    "slow disk",
    "one-way cut",
    "two-way cut",
    "node cut off",
    "leader cut off",
    "deaf node",
    "mute node",
    "halves",
    "ring",
    "refused connections",
    "message loss",
    "message delay",
    "duplication",
    "reordering",
    "crash while installing a snapshot",
    "crash after an election",
    "crash after truncating",
];

/// What operators do.
pub(crate) const ACTS: [&str; 5] = [
    "hand on leadership",
    "join",
    "leave",
    "remove a node that is cut off",
    "replace an emptied disk",
];

/// What is in `FAULTS` and was decided before the run began is counted there.
pub(crate) const OTHERS: [&str; 1] = ["clock drift"];

/// How often a link is cut again that is to stay so whoever mends the network.
const CUT_AGAIN: Duration = Duration::from_millis(50);

/// Breaks things until the time is over.
pub(crate) async fn run(world: Arc<World>, from: Duration, until: Duration) {
    let (faults, acts) = world.roll(|dice| (some_of(dice, &FAULTS), some_of(dice, &ACTS)));
    true_sleep(from).await;
    while true_nanos() < until.as_nanos() as u64 && world.violation().is_none() {
        if world.roll(|dice| dice.one_in(4)) {
            if let Some(act) = world.roll(|dice| dice.pick(&acts).copied()) {
                operate(&world, act, until);
            }
        } else if let Some(fault) = world.roll(|dice| dice.pick(&faults).copied()) {
            strike(&world, fault);
        }
        let pause = world.roll(|dice| dice.time(100_000, 1_500_000));
        true_sleep(pause).await;
    }
}

fn some_of(dice: &mut Dice, all: &[&'static str]) -> Vec<&'static str> {
    let least = 1 + dice.between(0, 3);
    let mut some: Vec<&'static str> = all.iter().filter(|_| dice.one_in(least)).copied().collect();
    if some.is_empty() {
        some.extend(dice.pick(all).copied());
    }
    some
}

/// Does something to a machine some time later.
fn later(time: Duration, what: impl FnOnce() + Send + 'static) {
    spawn_free(async move {
        true_sleep(time).await;
        what();
    });
}

fn strike(world: &Arc<World>, fault: &'static str) {
    let running: Vec<usize> = world
        .machines
        .iter()
        .filter(|m| m.process().is_some())
        .map(|m| m.index)
        .collect();
    let Some(index) = world.roll(|dice| dice.pick(&running).copied()) else {
        return;
    };
    let machine = world.machines[index].clone();
    let short = world.roll(|dice| dice.time(50_000, 3_000_000));
    match fault {
        "killed process" | "power loss of one" => {
            match fault {
                "killed process" => machine.kill(world),
                _ => machine.lose_power(world),
            }
            restart(world, &machine, short);
        }
        "power loss of all" => {
            // Rarely: each ends all that is under way.
            if !world.roll(|dice| dice.one_in(3)) {
                return;
            }
            for machine in world.machines.iter().filter(|machine| machine.process().is_some()) {
                machine.lose_power(world);
                let down = world.roll(|dice| dice.time(50_000, 1_500_000));
                restart(world, machine, down);
            }
        }
        "paused process" => {
            let Some(process) = machine.process() else { return };
            process.pause(true);
            later(short, move || process.pause(false));
        }
        "slow disk" => {
            lock(&machine.state).slow = true;
            later(short, move || lock(&machine.state).slow = false);
        }
        "crash while installing a snapshot" => {
            // Counted when it happens.
            lock(&machine.state).dies_installing = true;
            return;
        }
        // Counted when they happen, too.
        "crash after an election" => return world.arm(Risk::Election, true),
        "crash after truncating" => return world.arm(Risk::Truncation, true),
        "leader cut off" => {
            let Some(leader) = leader(world) else { return };
            disturb(world, fault, leader.machine.index);
            return keep_busy(world, &leader);
        }
        _ => return disturb(world, fault, index),
    }
    world.fault(fault);
}

/// Proposes much to a node that believes for a while that it leads, so that its log grows with what will not stay.
fn keep_busy(world: &Arc<World>, leader: &Arc<Node>) {
    for _ in 0..world.roll(|dice| dice.between(0, 40)) {
        let proposal = world.proposal(note());
        let node = leader.clone();
        spawn_on(&leader.process, async move {
            let number = proposal.at_ms;
            let result = node.propose_as_leader(proposal, Duration::from_secs(1)).await;
            if let Err(ProposeError::NotSent(_)) = result {
                lock(&node.world.oracle).was_not_sent(number);
            }
        });
    }
}

fn restart(world: &Arc<World>, machine: &Arc<Machine>, after: Duration) {
    let (world, machine) = (world.clone(), machine.clone());
    later(after, move || machine.start(&world));
}

/// Disturbs the network until it is disturbed in another way, or for a while in addition.
fn disturb(world: &Arc<World>, fault: &'static str, victim: usize) {
    let count = world.machines.len();
    let (other, half, share, few) = world.roll(|dice| {
        let half: Vec<bool> = (0..count).map(|_| dice.one_in(2)).collect();
        (dice.below(count), half, dice.between(20, 400), dice.one_in(2))
    });
    let delay = world.roll(|dice| dice.between(1_000, 150_000));
    let mut net = lock(&world.net);
    if few {
        net.heal();
    }
    let next = |from: usize, to: usize| (from + 1) % count == to || (to + 1) % count == from;
    net.change(|from, to, link: &mut Link| match fault {
        "one-way cut" => link.cut |= (from, to) == (victim, other),
        "two-way cut" => link.cut |= (from, to) == (victim, other) || (to, from) == (victim, other),
        "node cut off" | "leader cut off" => link.cut |= from == victim || to == victim,
        "deaf node" => link.cut |= to == victim,
        "mute node" => link.cut |= from == victim,
        "halves" => link.cut |= half[from] != half[to],
        "ring" => link.cut |= !next(from, to),
        "refused connections" => link.refuses |= from == victim || to == victim,
        "message loss" => link.loss = share,
        "message delay" => link.delay = (delay / 4, delay),
        "duplication" => link.twice = share,
        _ => link.late = share / 2,
    });
    drop(net);
    world.fault(fault);
    let (world, time) = (world.clone(), world.roll(|dice| dice.time(300_000, 5_000_000)));
    later(time, move || lock(&world.net).heal());
}

fn operate(world: &Arc<World>, act: &'static str, until: Duration) {
    match act {
        "hand on leadership" => {
            if let Some(leader) = leader(world) {
                world.act(act);
                let own = leader.clone();
                spawn_free(async move {
                    within(&leader, async move {
                        own.transfer_leadership(None, Duration::from_secs(3)).await
                    })
                    .await;
                });
            }
        }
        "join" => {
            let spare = world.machines.iter().find(|machine| !machine.has_number());
            if let Some(spare) = spare.filter(|spare| world.begins(spare.index)) {
                world.act(act);
                join(world, spare.clone());
            }
        }
        "leave" => leave(world),
        "remove a node that is cut off" => remove_cut_off(world, until),
        _ => replace(world),
    }
}

/// Lets the node of a machine without a number join, as long as it takes. Where it was admitted without hearing of it, and
/// removed since, it ends with an error (`node/src/join.rs`), and whoever reads that gives it an empty folder.
fn join(world: &Arc<World>, machine: Arc<Machine>) {
    let world = world.clone();
    spawn_free(async move {
        loop {
            let id = admit(&world, &machine).await;
            if let Some(id) = id {
                lock(&machine.state).id = Some(id);
                machine.start(&world);
                break;
            }
            let instance = machine.identity().1;
            let mut nodes = world.machines.iter().filter_map(|other| other.node());
            if nodes.any(|node| node.was_removed(instance)) {
                machine.renew(&world);
                world.count("nodes retired");
            }
            true_sleep(Duration::from_millis(300)).await;
        }
        world.ended(machine.index);
    });
}

fn leave(world: &Arc<World>) {
    let Some(leader) = leader(world) else {
        return;
    };
    let staying = staying(&leader);
    if staying.len() <= 3 {
        return;
    }
    if let Some(node) = world.roll(|dice| dice.pick(&staying).copied()) {
        world.act("leave");
        let world = world.clone();
        spawn_free(async move { drop(tell_to_leave(&world, node).await) });
    }
}

fn staying(leader: &Node) -> Vec<NodeId> {
    let nodes = leader
        .look(|state| state.list::<catalog::Node>(&[]).unwrap_or_default())
        .1;
    nodes.iter().filter(|node| node.stays()).map(|node| node.id).collect()
}

async fn tell_to_leave(world: &Arc<World>, node: NodeId) -> Option<Outcome> {
    let proposal = world.proposal(Command::SetNodeIntent(SetNodeIntent {
        node,
        intent: NodeIntent::Leave,
    }));
    propose(world, proposal).await
}

/// Cuts a node off, more often than not the leader, for so long that the others can elect one and remove it. It hears nothing of that,
/// and nobody sends it anything afterwards.
fn remove_cut_off(world: &Arc<World>, until: Duration) {
    let Some(leader) = leader(world) else {
        return;
    };
    let staying = staying(&leader);
    let some = world.roll(|dice| dice.one_in(3).then(|| dice.pick(&staying).copied()).flatten());
    let gone = some.unwrap_or(NodeId(leader.id));
    let machine = world.machines.iter().find(|machine| machine.identity().0 == gone.0);
    let Some(machine) = machine.map(|machine| machine.index).filter(|_| staying.len() > 3) else {
        return;
    };
    world.act("remove a node that is cut off");
    let (world, back) = (world.clone(), world.roll(|dice| dice.time(4_000_000, 9_000_000)));
    spawn_free(async move {
        let begin = true_nanos();
        let passed = || Duration::from_nanos(true_nanos() - begin);
        let mut told = Duration::ZERO;
        while passed() < back && Duration::from_nanos(true_nanos()) + CUT_AGAIN < until {
            // Whoever mends the network mends this, too.
            lock(&world.net).change(|from, to, link| link.cut |= from == machine || to == machine);
            true_sleep(CUT_AGAIN).await;
            if passed() > told {
                told = passed() + Duration::from_secs(1);
                let world = world.clone();
                spawn_free(async move { drop(tell_to_leave(&world, gone).await) });
            }
        }
        lock(&world.net).heal();
    });
}

/// Empties a disk, and lets the machine join anew. Only while all that was promised is on enough other disks.
fn replace(world: &Arc<World>) {
    let Some(machine) = may_be_emptied(world).filter(|machine| world.begins(machine.index)) else {
        return;
    };
    world.act("replace an emptied disk");
    let old = machine.identity().0;
    machine.empty(world);
    if world.mutant == Some(Mutant::EmptiedNodeComesBack) {
        restart(world, &machine, Duration::from_millis(200));
        return world.ended(machine.index);
    }
    let again = world.clone();
    spawn_free(async move {
        // An operator says it until it is done.
        loop {
            let told = tell_to_leave(&again, NodeId(old)).await;
            if told.is_some_and(|outcome| outcome.is_ok()) {
                break;
            }
            true_sleep(Duration::from_millis(300)).await;
        }
        join(&again, machine);
    });
}

fn may_be_emptied(world: &World) -> Option<Arc<Machine>> {
    let leader = leader(world)?;
    let voters: Vec<u64> = {
        let metrics = leader.raft.metrics();
        let metrics = metrics.borrow_watched();
        let (newest, committed) = (&metrics.membership_config, &metrics.committed_membership_config);
        if newest.log_id() != committed.log_id() || newest.membership().get_joint_config().len() != 1 {
            return None;
        }
        newest.membership().voter_ids().collect()
    };
    // All that vote run and know of no other group.
    let known = leader
        .raft
        .metrics()
        .borrow_watched()
        .membership_config
        .log_id()
        .to_owned();
    let voting = world.machines.iter().filter(|machine| machine.has_number());
    let voting: Vec<_> = voting
        .filter(|machine| voters.contains(&machine.identity().0))
        .collect();
    let agrees = |machine: &&&Arc<Machine>| {
        let node = machine.node();
        node.is_some_and(|node| *node.raft.metrics().borrow_watched().membership_config.log_id() == known)
    };
    if voters.len() < 3 || voting.iter().filter(agrees).count() < voters.len() {
        return None;
    }
    world.roll(|dice| voting.get(dice.below(voting.len())).map(|machine| Arc::clone(machine)))
}

/// The node that leads, if one does and works.
pub(crate) fn leader(world: &World) -> Option<Arc<Node>> {
    let works = world.machines.iter().filter(|machine| machine.works());
    let leading = works.filter_map(|machine| machine.node()).filter(|node| node.leads());
    leading.max_by_key(|node| node.raft.metrics().borrow_watched().current_term)
}
