//! Damage to what lies on a node's disk, behind its back: it stays until the node notices.

use super::Fault;
use super::process::{any, kill, start};
use super::running::{After, PATIENCE, Stroke};
use crate::world::{World, files_below};
use anyhow::{Context, ensure};
use rand::Rng;
use rand::RngCore;
use rand::seq::SliceRandom;
use serde_json::json;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long it is watched whether a node starts with what it has.
const START: Duration = Duration::from_secs(10);

pub(super) async fn strike(stroke: &mut Stroke<'_>) -> anyhow::Result<()> {
    let node = any(stroke)?;
    let data = stroke.world.data(node);
    match stroke.fault() {
        Fault::CorruptParts | Fault::TruncateParts => return spoil_parts(stroke, node, &data.join("parts")).await,
        Fault::WipeDisk => {
            stroke.tell(json!(stroke.world.name(node)));
            stroke.after(After::JoinAnew(node));
            kill(stroke.world, node)?;
            return wipe(stroke.world, node);
        }
        _ => {}
    }
    let folder = if stroke.fault() == Fault::CorruptRaftLog {
        "raft-log"
    } else {
        "wal"
    };
    let mut found = files(&data.join(folder), &["log", "sst"]);
    found.retain(|path| fs::metadata(path).is_ok_and(|there| there.len() > 0));
    found.sort();
    // The newest: what nobody has read since it was written.
    let file = found
        .last()
        .cloned()
        .with_context(|| format!("{folder} of {} is empty", stroke.world.name(node)))?;
    stroke.tell(json!({ "node": stroke.world.name(node), "file": name(&file) }));
    kill(stroke.world, node)?;
    match stroke.fault() {
        Fault::TruncateWal => {
            stroke.after(After::Start(node));
            truncate(&file, stroke.rng)
        }
        Fault::CorruptWal => {
            stroke.after(After::MoveLogAway(node));
            flip(&file, stroke.rng)
        }
        _ => {
            stroke.after(After::StartOrJoinAnew(node));
            flip(&file, stroke.rng)
        }
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

async fn spoil_parts(stroke: &mut Stroke<'_>, node: usize, folder: &Path) -> anyhow::Result<()> {
    let parts = || files(folder, &["parquet"]);
    let what = format!("{} to have parts", stroke.world.name(node));
    let there = async |_: &World| Ok(!parts().is_empty());
    stroke.world.wait_for(&what, PATIENCE, there).await?;
    let mut found = parts();
    found.shuffle(stroke.rng);
    found.truncate(found.len().div_ceil(3));
    let names: Vec<String> = found.iter().map(|path| name(path)).collect();
    stroke.tell(json!({ "node": stroke.world.name(node), "files": names }));
    for file in found {
        let spoiled = match stroke.fault() {
            Fault::TruncateParts => truncate(&file, stroke.rng),
            _ => flip(&file, stroke.rng),
        };
        // It may have been merged away meanwhile.
        if let Err(error) = spoiled {
            ensure!(!file.exists(), "{} cannot be spoiled: {error:#}", file.display());
        }
    }
    Ok(())
}

/// All files below `folder` whose names end so.
pub(super) fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let ends_so = |path: &PathBuf| {
        path.extension()
            .is_some_and(|end| endings.iter().any(|ending| end == *ending))
    };
    files_below(folder).into_iter().filter(ends_so).collect()
}

/// Flips a bit of a file.
///
/// # Errors
/// If the file is empty, or not there.
pub fn flip(path: &Path, rng: &mut dyn RngCore) -> anyhow::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    ensure!(length > 0, "{} is empty", path.display());
    let at = rng.random_range(0..length);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    byte[0] ^= 1 << rng.random_range(0..8);
    file.write_all_at(&byte, at)?;
    Ok(())
}

/// Cuts a file off somewhere.
///
/// # Errors
/// If the file is empty, or not there.
pub fn truncate(path: &Path, rng: &mut dyn RngCore) -> anyhow::Result<()> {
    let file = File::options().write(true).open(path)?;
    let length = file.metadata()?.len();
    ensure!(length > 0, "{} is empty", path.display());
    Ok(file.set_len(rng.random_range(0..length))?)
}

/// Takes everything from the disk of a node that is down.
fn wipe(world: &World, node: usize) -> anyhow::Result<()> {
    // The folder itself is a mount where the node has a disk of ours.
    let data = world.folder().join(world.name(node)).join("data");
    for entry in fs::read_dir(&data)? {
        let path = entry?.path();
        let gone = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        gone.with_context(|| format!("{} cannot be removed", path.display()))?;
    }
    Ok(())
}

/// What the node itself says is to be done about a damaged write-ahead log. It may have started with it, if the damage was in what
/// it does not need any more.
pub(super) async fn move_log_away(world: &mut World, node: usize) -> anyhow::Result<()> {
    start(world, node)?;
    if starts(world, node).await? {
        return Ok(());
    }
    let wal = world.folder().join(world.name(node)).join("data/wal");
    let away = (1..)
        .map(|i| wal.with_extension(format!("damaged-{i}")))
        .find(|path| !path.exists());
    fs::rename(&wal, away.context("there is no name left")?)?;
    world.start_node(node)
}

/// Whether the node runs on for a while.
async fn starts(world: &mut World, node: usize) -> anyhow::Result<bool> {
    let until = tokio::time::Instant::now() + START;
    while tokio::time::Instant::now() < until {
        if !world.is_alive(node)? {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(true)
}

pub(super) async fn start_or_join_anew(world: &mut World, node: usize) -> anyhow::Result<()> {
    start(world, node)?;
    if starts(world, node).await? {
        return Ok(());
    }
    wipe(world, node)?;
    join_anew(world, node).await
}

/// A node without data is another node, which may have the name as soon as the old one was removed.
pub(super) async fn join_anew(world: &mut World, node: usize) -> anyhow::Result<()> {
    let mut command = std::process::Command::new(crate::world::binary()?);
    command.args([
        "node",
        "remove",
        world.name(node),
        "--wait",
        "120",
        "--connect",
        &world.connect(),
    ]);
    let removed = tokio::task::spawn_blocking(move || crate::world::output(&mut command)).await?;
    removed.with_context(|| format!("{} was not removed", world.name(node)))?;
    world.configure_anew(node)?;
    // The others may not all know yet that the name is free.
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        world.start_node(node)?;
        if starts(world, node).await? {
            return Ok(());
        }
        ensure!(
            tokio::time::Instant::now() < until,
            "{} does not join again; see its log",
            world.name(node)
        );
    }
}
