//! The course of a run: founding, a time in which things break, and a time in which nothing does and all must become well.

use crate::client;
use crate::manager::is_settled;
use crate::nemesis;
use crate::runtime::{lock, spawn_free, true_nanos, true_sleep};
use crate::world::{Risk, World};
use openraft::async_runtime::watch::WatchReceiver;
use std::sync::Arc;
use std::time::Duration;
use tidemill_sim::seeds::Violation;

/// How long everything may take until it is well again once nothing breaks any more.
const RECOVERY: Duration = Duration::from_secs(30);
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(50);

/// Lives through a whole run, or until a rule is broken.
pub(crate) async fn live(world: Arc<World>) {
    for machine in &world.machines {
        machine.start(&world);
    }
    let (clients, begins, length) = world.roll(|dice| {
        let begins = if dice.one_in(4) {
            dice.time(100_000, 2_000_000)
        } else {
            dice.time(2_000_000, 3_000_000)
        };
        (dice.between(2, 5), begins, dice.time(5_000_000, 16_000_000))
    });
    let until = begins + length;
    for _ in 0..clients {
        spawn_free(client::run(world.clone(), until));
    }
    spawn_free(nemesis::run(world.clone(), begins, until));
    while passed() < until {
        true_sleep(LOOK).await;
        if is_broken(&world) {
            return;
        }
    }
    heal(&world);
    let last = passed() + RECOVERY;
    let mut why = "nothing was looked at".to_owned();
    let mut well = 0;
    while well < 3 {
        true_sleep(LOOK * 4).await;
        if is_broken(&world) {
            return;
        }
        match unwell(&world) {
            None => well += 1,
            Some(reason) => (well, why) = (0, reason),
        }
        if passed() > last {
            let found = format!("{RECOVERY:?} after everything was mended: {why}");
            return world.broke(Violation::new(
                "LIVE-1: all becomes well when nothing breaks any more",
                found,
            ));
        }
    }
    client::read_everywhere(&world).await;
    let ended = lock(&world.oracle).ended();
    world.check(ended);
}

fn passed() -> Duration {
    Duration::from_nanos(true_nanos())
}

fn is_broken(world: &World) -> bool {
    for machine in &world.machines {
        if let Some(why) = machine.process().and_then(|process| process.panicked()) {
            world.broke(Violation::new(
                "PANIC: nobody panics",
                format!("machine {}: {why}", machine.index),
            ));
        }
    }
    world.violation().is_some()
}

fn heal(world: &Arc<World>) {
    if world.is_told() {
        world.tell("everything is mended".into());
    }
    lock(&world.net).heal();
    for risk in [Risk::Election, Risk::Truncation] {
        world.arm(risk, false);
    }
    for machine in &world.machines {
        let mut state = lock(&machine.state);
        (state.slow, state.dies_installing) = (false, false);
        drop(state);
        match machine.process() {
            Some(process) => process.pause(false),
            None => machine.start(world),
        }
    }
}

/// What is not well yet, if anything.
fn unwell(world: &World) -> Option<String> {
    let Some(leader) = nemesis::leader(world) else {
        return Some("nobody leads".into());
    };
    if let Some(busy) = world.busy() {
        return Some(format!("machine {busy} has not joined yet"));
    }
    if !is_settled(&leader) {
        return Some(format!("the members are not settled, says node {}", leader.id));
    }
    let tip = lock(&world.oracle).tip();
    let last = leader.raft.metrics().borrow_watched().last_log_index;
    if tip.map(|tip| tip.index) != last {
        return Some(format!(
            "the log of node {} ends at {last:?}, applied is {tip:?}",
            leader.id
        ));
    }
    for machine in world.machines.iter().filter(|machine| machine.has_number()) {
        let Some(node) = machine.node() else {
            return Some(format!("machine {} does not run", machine.index));
        };
        if node.leader() != Some(leader.id) {
            return Some(format!(
                "node {} follows {:?}, {} leads",
                node.id,
                node.leader(),
                leader.id
            ));
        }
        let applied = node.look(|_| ()).0;
        if applied != tip {
            return Some(format!("node {} is at {applied:?}, not {tip:?}", node.id));
        }
    }
    None
}
