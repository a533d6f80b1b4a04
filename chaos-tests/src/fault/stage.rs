//! A world in which faults can happen, and the thread on which everything in it runs.

use super::Needs;
use super::clock::Clock;
use super::disk::Disk;
use super::network::Network;
use crate::world::{World, checkout, output};
use anyhow::Context;
use std::process::Command;

/// Followers that fall behind are noticed within seconds, so that an unclean election need not wait for half a minute. What
/// is deleted stays on the disk for a minute, so that it can be seen what that was.
const BROKER_SETTINGS: [&str; 3] = [
    "replica.lag.time.max.ms=4000",
    "auto.leader.rebalance.enable=false",
    "log.segment.delete.delay.ms=60000",
];

/// How large a world is, and what can happen in it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Nodes, which form a cluster; 0 for none yet.
    pub nodes: u16,
    /// Brokers.
    pub brokers: u32,
    /// What faults need: what is not to be had here is left out, and said on the screen.
    pub needs: Needs,
    /// Added to the configuration of every node.
    pub settings: String,
}

impl Default for Plan {
    /// Three nodes and three brokers, and everything can happen.
    fn default() -> Self {
        Self {
            nodes: 3,
            brokers: 3,
            needs: Needs {
                network: true,
                disks: true,
                clocks: true,
                brokers: 3,
            },
            settings: String::new(),
        }
    }
}

/// Makes a world and does `work` in it, on a thread of its own, in a runtime of several threads that are, like all processes that
/// they start, in the hub of the network. What cannot be had on this machine is left out; see [`super::Fault::impossible`].
///
/// # Errors
/// If the world cannot be made; and what `work` gives.
pub fn stage<T: Send>(
    plan: &Plan,
    work: impl AsyncFnOnce(&mut World) -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    // Before the network, in which nothing can be fetched.
    if plan.brokers > 0 {
        output(Command::new(checkout().join("scripts/kafka")).arg("install"))?;
        output(Command::new(checkout().join("scripts/events")).arg("install"))?;
    }
    let missing = plan.needs.network.then(Network::missing).flatten();
    if let Some(why) = &missing {
        eprintln!("everything is on loopback, where no link can be cut: {why}");
    }
    let with_disks = plan.needs.disks && is_there("disks that misbehave", Disk::missing());
    let with_clocks = plan.needs.clocks && is_there("clocks that can be shifted", Clock::missing());
    let play = async |network| {
        let mut world = match &network {
            Some(network) => World::in_network(network, plan.brokers, &BROKER_SETTINGS)?,
            None if plan.brokers == 0 => World::without_broker()?,
            None => World::with_brokers(plan.brokers, &BROKER_SETTINGS)?,
        };
        world.with_disks = with_disks;
        world.with_clocks = with_clocks;
        world.settings.clone_from(&plan.settings);
        if plan.nodes > 0 {
            world.start_cluster(plan.nodes).await?;
        }
        work(&mut world).await
    };
    if plan.needs.network && missing.is_none() {
        let network = Network::make()?;
        return network.clone().inside(async || play(Some(network)).await);
    }
    let run = || runtime()?.block_on(play(None));
    std::thread::scope(|scope| match scope.spawn(run).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn is_there(what: &str, missing: Option<String>) -> bool {
    if let Some(why) = &missing {
        eprintln!("there are no {what} here: {why}");
    }
    missing.is_none()
}

/// Tools of the brokers are waited for on its threads, so there are some more than processors.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder
        .worker_threads(8)
        .enable_all()
        .build()
        .context("there is no runtime")
}
