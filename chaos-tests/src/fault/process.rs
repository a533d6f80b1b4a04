//! Faults of processes: they end, in this way or that, or stand still.

use super::Fault;
use super::running::{After, PATIENCE, Stroke};
use crate::world::{World, binary, output};
use anyhow::{Context, ensure};
use rand::Rng;
use rand::seq::IndexedRandom;
use serde_json::json;
use std::process::{Child, Command, Stdio};

/// A process that stands still until this is dropped.
pub(super) struct Stopped {
    pid: u32,
}

impl Stopped {
    fn new(pid: u32) -> anyhow::Result<Self> {
        output(Command::new("kill").arg("-STOP").arg(pid.to_string()))?;
        Ok(Self { pid })
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have been killed meanwhile.
        drop(output(Command::new("kill").arg("-CONT").arg(self.pid.to_string())));
    }
}

/// The nodes that run.
pub(super) fn running(world: &World) -> Vec<usize> {
    (0..world.node_count())
        .filter(|node| world.pid(*node).is_some())
        .collect()
}

/// One of them.
pub(super) fn any(stroke: &mut Stroke<'_>) -> anyhow::Result<usize> {
    let running = running(stroke.world);
    running.choose(stroke.rng).copied().context("no node runs")
}

/// Starts a node, unless it runs.
pub(super) fn start(world: &mut World, node: usize) -> anyhow::Result<()> {
    if world.is_alive(node)? {
        return Ok(());
    }
    world.start_node(node)
}

/// Kills a node, unless it has ended.
pub(super) fn kill(world: &mut World, node: usize) -> anyhow::Result<()> {
    if world.is_alive(node)? {
        world.kill_node(node)?;
    }
    Ok(())
}

/// Asks a node to end, and waits until it has.
async fn terminate(world: &mut World, node: usize) -> anyhow::Result<()> {
    world.signal(node, "TERM")?;
    let well = world.wait_for_end(node, PATIENCE).await?;
    ensure!(well, "{} did not end well; see its log", world.name(node));
    Ok(())
}

pub(super) async fn strike(stroke: &mut Stroke<'_>) -> anyhow::Result<()> {
    match stroke.fault() {
        Fault::KillAll => return kill_all(stroke),
        Fault::RollingRestart => return restart_in_turn(stroke).await,
        Fault::ReplaceNode => return replace(stroke),
        _ => {}
    }
    let node = any(stroke)?;
    stroke.tell(json!(stroke.world.name(node)));
    match stroke.fault() {
        Fault::Pause => {
            let pid = stroke.world.pid(node).context("the node does not run")?;
            stroke.until_the_end(Stopped::new(pid)?);
        }
        Fault::Terminate => {
            stroke.after(After::Start(node));
            terminate(stroke.world, node).await?;
        }
        _ => {
            stroke.after(After::Start(node));
            kill(stroke.world, node)?;
        }
    }
    Ok(())
}

fn kill_all(stroke: &mut Stroke<'_>) -> anyhow::Result<()> {
    let nodes = running(stroke.world);
    let names: Vec<&str> = nodes.iter().map(|node| stroke.world.name(*node)).collect();
    let pids: Vec<String> = nodes
        .iter()
        .filter_map(|node| stroke.world.pid(*node))
        .map(|pid| pid.to_string())
        .collect();
    stroke.tell(json!(names));
    nodes.iter().for_each(|node| stroke.after(After::Start(*node)));
    // At once, before anybody waits for one.
    output(Command::new("kill").arg("-KILL").args(pids))?;
    nodes.iter().try_for_each(|node| stroke.world.collect(*node))
}

async fn restart_in_turn(stroke: &mut Stroke<'_>) -> anyhow::Result<()> {
    let nodes = running(stroke.world);
    let names: Vec<&str> = nodes.iter().map(|node| stroke.world.name(*node)).collect();
    stroke.tell(json!(names));
    for node in nodes {
        terminate(stroke.world, node).await?;
        stroke.world.start_node(node)?;
        stroke.world.all_ready().await?;
    }
    Ok(())
}

/// The new node is there at once; the old one goes in its own time.
fn replace(stroke: &mut Stroke<'_>) -> anyhow::Result<()> {
    let old = any(stroke)?;
    let is_dead = stroke.rng.random_bool(0.5);
    let world = &mut *stroke.world;
    let new = world.another_node()?;
    let (old_name, new_name) = (world.name(old).to_owned(), world.name(new).to_owned());
    stroke.tell(json!({ "old": old_name, "new": new_name, "killed": is_dead }));
    let world = &mut *stroke.world;
    if is_dead {
        kill(world, old)?;
    }
    world.start_node(new)?;
    let mut command = Command::new(binary()?);
    command.args([
        "node", "replace", "--old", &old_name, "--new", &new_name, "--wait", "300",
    ]);
    command.args(["--connect", &world.connect()]);
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    stroke.after(After::Replaced(old, child));
    Ok(())
}

/// Waits until a node is replaced and its process has ended.
pub(super) async fn replaced(world: &mut World, old: usize, child: Child) -> anyhow::Result<()> {
    let done = tokio::task::spawn_blocking(|| child.wait_with_output()).await??;
    ensure!(
        done.status.success(),
        "the node was not replaced: {}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    if world.is_alive(old)? {
        world.wait_for_end(old, PATIENCE).await?;
    }
    Ok(())
}
