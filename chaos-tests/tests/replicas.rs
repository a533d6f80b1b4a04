//! Disks that are lost, files that rot, and nodes that are replaced, while events flow and a reader asks. Every event is
//! there, once, all the time, and in the end every replica is whole again.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use anyhow::ensure;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tidemill_chaos_tests::events::{Events, Plan};
use tidemill_chaos_tests::reader::{Reader, count};
use tidemill_chaos_tests::scenario::{TABLE, check, create, wait_until_read};
use tidemill_chaos_tests::stage::Stage;
use tidemill_chaos_tests::world::{World, binary, files_below};

const PATIENCE: Duration = Duration::from_secs(90);

/// Table, pipe and a producer of so many events per second.
async fn begin(world: &World, count: u64, rate: u64) -> Events {
    let plan = Plan {
        topic: TABLE.into(),
        partitions: 8,
        count,
        bad: 20,
        rate: Some(rate),
        seed: seed(),
    };
    create(world, &plan, 500).await.unwrap();
    Events::start(world.folder(), &world.brokers, &plan).unwrap()
}

fn seed() -> u64 {
    let fresh = std::env::var("TIDEMILL_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = fresh.unwrap_or(7);
    eprintln!("seed {seed}");
    seed
}

/// Waits until so many replicas of every shard are complete and hold every file that there is.
async fn whole(world: &World, replicas: i64) {
    let began = Instant::now();
    let all = world.wait_for("every replica to hold every file", PATIENCE, async |world| {
        let missing = world.ask("SELECT sum(missing_files) FROM system.replicas").await?;
        let sql = "SELECT count(*) FROM system.replicas WHERE state = 'Ready'";
        let (ready, shards) = (
            world.ask(sql).await?,
            world.ask("SELECT count(*) FROM system.shards").await?,
        );
        ensure!(
            missing == 0 && ready == replicas * shards,
            "{missing} files are missing, {ready} replicas of {shards} shards are ready"
        );
        Ok(true)
    });
    all.await.unwrap();
    eprintln!("whole again after {:?}", began.elapsed());
}

async fn wait_for_files(world: &World, files: i64) {
    let there = world.wait_for("parts to be there", PATIENCE, async |world| {
        Ok(world.ask("SELECT count(*) FROM system.parts").await? >= files)
    });
    there.await.unwrap();
}

fn parts_of(world: &World, node: usize) -> PathBuf {
    world.folder().join(format!("n{}/data/parts", node + 1))
}

/// Every part file below `folder`.
fn files(folder: &Path) -> Vec<PathBuf> {
    assert!(folder.is_dir(), "there is no {}", folder.display());
    let is_part = |path: &PathBuf| path.extension().is_some_and(|e| e == "parquet");
    let mut found: Vec<PathBuf> = files_below(folder).into_iter().filter(is_part).collect();
    found.sort();
    found
}

/// All that must hold in the end. No question may have failed where none needs to.
async fn finish(world: &mut World, events: Events, reader: Reader, may_fail: bool) {
    let produced = events.finish().await.unwrap();
    wait_until_read(world, &produced).await.unwrap();
    let findings = reader.finish().await.unwrap();
    let (failed, why) = &findings.failed;
    eprintln!(
        "{} answers, {failed} failed, longest gap {:?}",
        findings.answered, findings.longest_gap
    );
    assert!(may_fail || *failed == 0, "{failed} questions failed: {why}");
    world.all_alive().unwrap();
    let counted = count(&world.client().unwrap(), TABLE).await.unwrap();
    check(world, &produced, &counted, &findings).await.unwrap();
    let said = world.tidemill(&["check"]).unwrap();
    assert!(!said.contains("false"), "{said}");
}

/// The disk of one node after the other is lost, with everything on it; each time the others make it whole.
#[tokio::test(flavor = "multi_thread")]
async fn every_disk_is_lost_in_turn_and_nothing_with_it() {
    let world = &mut World::start(3).await.unwrap();
    let events = begin(world, 60_000, 2_000).await;
    let reader = Reader::start(world.client().unwrap(), TABLE.into());
    wait_for_files(world, 10).await;
    for node in 0..3 {
        world.kill_node(node).unwrap();
        fs::remove_dir_all(parts_of(world, node)).unwrap();
        world.start_node(node).unwrap();
        let name = format!("n{}", node + 1);
        let noticed = world.wait_for("the new disk to be noticed", PATIENCE, async |world| {
            Ok(world.log(node)?.contains("the replica is complete"))
        });
        noticed.await.unwrap();
        whole(world, 3).await;
        eprintln!("the disk of {name} is whole again");
    }
    finish(world, events, reader, true).await;
    whole(world, 3).await;
}

/// Bytes flip and files go on one node: no answer is wrong or missing, and all is healed.
#[tokio::test(flavor = "multi_thread")]
async fn what_rots_is_noticed_and_healed_and_never_read() {
    let world = &mut World::start(3).await.unwrap();
    let events = begin(world, 40_000, 4_000).await;
    wait_for_files(world, 20).await;
    let reader = Reader::start(world.client().unwrap(), TABLE.into());
    let mut rng = StdRng::seed_from_u64(seed());
    let mut spoiled = 0;
    for node in 0..3 {
        // Every file of a node, one after the other in its own way; the other nodes have them still.
        for path in files(&parts_of(world, node)) {
            let mut file = fs::File::options().read(true).write(true).open(&path).unwrap();
            let length = file.metadata().unwrap().len();
            match rng.random_range(0..4) {
                0 => file.set_len(length / 2).unwrap(),
                1 => fs::remove_file(&path).unwrap(),
                2 => {
                    // The file itself is whole: this is mended here, and nothing is lost.
                    fs::remove_file(path.with_extension("parquet.sums")).unwrap();
                    continue;
                }
                _ => {
                    let at = rng.random_range(0..length);
                    let mut byte = [0];
                    file.seek(SeekFrom::Start(at)).unwrap();
                    file.read_exact(&mut byte).unwrap();
                    file.seek(SeekFrom::Start(at)).unwrap();
                    file.write_all(&[byte[0] ^ 1 << rng.random_range(0..8)]).unwrap();
                }
            }
            spoiled += 1;
        }
        let sql = "SELECT count(*) FROM system.events WHERE kind = 'copy lost'";
        let began = Instant::now();
        let noticed = world.wait_for("the damage to be noticed", PATIENCE, async |world| {
            Ok(world.ask(sql).await? >= spoiled)
        });
        noticed.await.unwrap();
        eprintln!("n{}: all damage noticed after {:?}", node + 1, began.elapsed());
        whole(world, 3).await;
        let folder = parts_of(world, node);
        let mended = world.wait_for("checksums to be written anew", PATIENCE, async |_| {
            // Some files are being written at this moment; what is older than that is complete.
            let bare = |path: &PathBuf| !path.with_extension("parquet.sums").exists();
            let bare: Vec<_> = files(&folder).into_iter().filter(bare).collect();
            tokio::time::sleep(Duration::from_millis(300)).await;
            Ok(bare
                .iter()
                .all(|path| path.with_extension("parquet.sums").exists() || !path.exists()))
        });
        mended.await.unwrap();
    }
    finish(world, events, reader, false).await;
    eprintln!("{spoiled} files were spoiled");
    for node in 0..3 {
        assert!(!files(&parts_of(world, node)).is_empty());
    }
}

/// `tidemill node replace`, in the background.
fn replace(world: &World, old: &str, new: &str) -> Child {
    let mut command = Command::new(binary().unwrap());
    command.args([
        "node",
        "replace",
        "--old",
        old,
        "--new",
        new,
        "--connect",
        &world.connect(),
    ]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until `old` is replaced and its process has ended, and deletes its data: nothing of it is needed any more.
async fn finish_replacing(world: &mut World, old: usize, child: Child) {
    let done = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let error = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{said}{error}");
    assert!(said.contains("was removed from the cluster"), "{said}{error}");
    eprintln!("{said}");
    assert!(world.wait_for_end(old, PATIENCE).await.unwrap());
    fs::remove_dir_all(world.folder().join(format!("n{}/data", old + 1))).unwrap();
    whole(world, 3).await;
}

/// One more node, which copies slowly.
fn slow_node(world: &mut World) -> usize {
    let node = world.another_node().unwrap();
    let path = world.folder().join(format!("n{}/node.toml", node + 1));
    let text = fs::read_to_string(&path).unwrap();
    fs::write(path, format!("{text}\n[parts]\ncopy_rate = \"300KiB\"\n")).unwrap();
    node
}

/// Waits until the replicas on a node are under way, and not done.
async fn wait_for_copying(world: &World, node: usize) {
    let sql = format!(
        "SELECT count(*) FROM system.replicas WHERE node = 'n{}' AND state = 'Copying' AND files > 0",
        node + 1
    );
    let copying = world.wait_for("the copy to be under way", PATIENCE, async |world| {
        Ok(world.ask(&sql).await? > 0)
    });
    copying.await.unwrap();
}

/// A node takes the place of another while events flow and questions are asked: none of them fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_replaced_and_nobody_notices() {
    let world = &mut World::start(3).await.unwrap();
    let events = begin(world, 50_000, 2_000).await;
    wait_for_files(world, 30).await;
    let reader = Reader::start(world.client().unwrap(), TABLE.into());
    let replacing = replace(world, "n2", "n4");
    let new = world.another_node().unwrap();
    world.start_node(new).unwrap();
    finish_replacing(world, 1, replacing).await;
    finish(world, events, reader, false).await;
}

/// The same, and the new node is killed in the middle of the copy, and then a node that it copies from.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_replaced_although_both_ends_of_the_copy_are_killed() {
    let world = &mut World::start(3).await.unwrap();
    let events = begin(world, 60_000, 2_000).await;
    wait_for_files(world, 30).await;
    let reader = Reader::start(world.client().unwrap(), TABLE.into());
    let replacing = replace(world, "n3", "n4");
    let new = slow_node(world);
    world.start_node(new).unwrap();
    wait_for_copying(world, new).await;
    world.kill_node(new).unwrap();
    world.start_node(new).unwrap();
    wait_for_copying(world, new).await;
    let source = usize::from(rand::random::<bool>());
    eprintln!("killing the source n{}", source + 1);
    world.kill_node(source).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    world.start_node(source).unwrap();
    finish_replacing(world, 2, replacing).await;
    finish(world, events, reader, true).await;
}

/// Records that become no rows at all leave nothing to be held by anybody, and are passed over all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_filtered_as_a_whole_is_committed_without_a_file() {
    let stage = Stage::new(1, &[], false).await.unwrap();
    stage.topic(2, &[]).unwrap();
    stage.pipe(", tombstones = 'filter'").await.unwrap();
    let mut source = stage.source().unwrap();
    for partition in 0..2 {
        for key in 0..50 {
            source.send(partition, Some(&key.to_string()), None).unwrap();
        }
    }
    source.flush().unwrap();
    stage
        .wait("SELECT sum(committed) FROM system.partitions", 100)
        .await
        .unwrap();
    assert_eq!(stage.ask("SELECT sum(filtered) FROM system.ledger").await.unwrap(), 100);
    assert_eq!(stage.ask("SELECT count(*) FROM system.parts").await.unwrap(), 0);
    // And rows that come behind them.
    source.write_ids(0, 0..10).unwrap();
    stage.caught_up().await.unwrap();
    assert_eq!(stage.ask("SELECT count(*) FROM t").await.unwrap(), 10);
    stage.finish().await.unwrap();
}
