//! Faults of a node's disk and of its clock, which go on until they are told to stop.

use super::Fault;
use super::clock::{Clock, Shift};
use super::disk::{Disk, Kept, Troubles};
use super::process::{any, kill};
use super::running::{After, Stroke};
use crate::history::History;
use crate::world::World;
use anyhow::Context;
use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Trouble that ends when this is dropped; the history says then how often it has struck.
struct Troubled {
    disk: Arc<Disk>,
    fault: Fault,
    history: History,
    /// How often it had before.
    before: u64,
}

impl Drop for Troubled {
    fn drop(&mut self) {
        let times = struck(&self.disk, self.fault) - self.before;
        self.disk.trouble(Troubles::default());
        let fault = self.fault.name();
        self.history
            .note("monitor", "struck", json!({ "fault": fault, "times": times }));
    }
}

/// How often a disk has done to its node what a fault is about.
fn struck(disk: &Disk, fault: Fault) -> u64 {
    let done = disk.done();
    let counter = match fault {
        Fault::SlowSync => &done.syncs,
        Fault::DiskFull => &done.refused,
        Fault::ReadErrors => &done.failed_reads,
        _ => &done.bad_syncs,
    };
    counter.load(Ordering::Relaxed)
}

/// A clock that is right again when this is dropped.
struct Shifted(Arc<Clock>);

impl Drop for Shifted {
    fn drop(&mut self) {
        if let Err(error) = self.0.set(Shift::default()) {
            eprintln!("a clock stays wrong: {error:#}");
        }
    }
}

pub(super) fn strike(stroke: &mut Stroke<'_>) -> anyhow::Result<()> {
    let node = any(stroke)?;
    match stroke.fault() {
        Fault::ClockJump | Fault::ClockDrift => shift_clock(stroke, node),
        Fault::PowerCut => cut_power(stroke, node),
        _ => trouble(stroke, node),
    }
}

fn trouble(stroke: &mut Stroke<'_>, node: usize) -> anyhow::Result<()> {
    let disk = disk(stroke.world, node)?;
    let mut troubles = Troubles::default();
    let fault = stroke.fault();
    let rng = &mut *stroke.rng;
    match fault {
        Fault::SlowSync => troubles.sync_delay = Duration::from_millis(rng.random_range(50..=500)),
        Fault::FailingSync => troubles.failing_syncs = 1,
        Fault::FailingSyncs => troubles.failing_syncs = u64::MAX,
        // Not about the Raft log: who votes and forgets that is no member of a group that anybody can rely on.
        Fault::LyingSync => troubles.lying = &["parts", "wal"],
        Fault::DiskFull => troubles.space = Some(rng.random_range(0..=64 * 1024)),
        _ => troubles.failing_reads = Some(rng.random_range(10..=200)),
    }
    stroke.tell(json!({ "node": stroke.world.name(node), "disk": format!("{troubles:?}") }));
    disk.trouble(troubles);
    if !troubles.lying.is_empty() {
        stroke.after(After::Betray(node));
    }
    let (history, before) = (stroke.history().clone(), struck(&disk, fault));
    stroke.until_the_end(Troubled {
        disk,
        fault,
        history,
        before,
    });
    stroke.after(After::Start(node));
    Ok(())
}

fn disk(world: &World, node: usize) -> anyhow::Result<Arc<Disk>> {
    let disk = world.disk(node).cloned();
    disk.with_context(|| format!("{} has no disk that can misbehave", world.name(node)))
}

/// A node is killed, and what its disk said was synced is gone.
pub(super) fn betray(world: &mut World, node: usize) -> anyhow::Result<()> {
    kill(world, node)?;
    // Nothing is left to chance.
    let lost = disk(world, node)?.cut_power(Kept::Nothing, &mut StdRng::seed_from_u64(0))?;
    eprintln!("{} has lost what its disk lied about: {lost:?}", world.name(node));
    Ok(())
}

fn cut_power(stroke: &mut Stroke<'_>, node: usize) -> anyhow::Result<()> {
    let disk = disk(stroke.world, node)?;
    stroke.tell(json!(stroke.world.name(node)));
    stroke.after(After::Start(node));
    kill(stroke.world, node)?;
    let lost = disk.cut_power(Kept::Some, stroke.rng)?;
    eprintln!("the power cut took of {}: {lost:?}", stroke.world.name(node));
    Ok(())
}

fn shift_clock(stroke: &mut Stroke<'_>, node: usize) -> anyhow::Result<()> {
    let clock = stroke.world.clock(node).cloned();
    let clock = clock.context("the node has no clock that can be shifted")?;
    let first = stroke.rng.random_bool(0.5);
    let shift = match (stroke.fault(), first) {
        (Fault::ClockJump, true) => Shift {
            jump_s: 3600,
            rate: 1.0,
        },
        (Fault::ClockJump, false) => Shift {
            jump_s: -3600,
            rate: 1.0,
        },
        (_, true) => Shift { jump_s: 0, rate: 2.0 },
        (_, false) => Shift { jump_s: 0, rate: 0.5 },
    };
    stroke.tell(json!({ "node": stroke.world.name(node), "jump_s": shift.jump_s, "rate": shift.rate }));
    clock.set(shift)?;
    stroke.until_the_end(Shifted(clock));
    Ok(())
}
