//! Power cuts under a table with a write-ahead log: nodes are killed and lose what they had not fsynced of it, one of them, then
//! all at once. Nothing is committed meanwhile, so all that comes back comes from the logs or is read again; every
//! row is there, once.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tidemill_chaos_tests::events::{Events, Plan};
use tidemill_chaos_tests::reader::{Reader, busiest_node, count};
use tidemill_chaos_tests::scenario::{TABLE, check, statements, wait_until_read};
use tidemill_chaos_tests::script::Script;
use tidemill_chaos_tests::stage::{Stage, TOPIC};
use tidemill_chaos_tests::world::World;

const PATIENCE: Duration = Duration::from_secs(60);

fn seed() -> u64 {
    let fresh = std::env::var("TIDEMILL_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = fresh.unwrap_or(7);
    eprintln!("seed {seed}");
    seed
}

/// The file that the write-ahead log of a node grows in, and its length.
fn growing_file(world: &World, node: usize) -> (PathBuf, u64) {
    let folder = world.folder().join(format!("n{}/data/wal", node + 1));
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let newest = files.filter(|path| path.extension().is_some_and(|e| e == "log")).max();
    let newest = newest.unwrap();
    let length = fs::metadata(&newest).unwrap().len();
    (newest, length)
}

/// Cuts the power of these nodes: they are killed, and of what was written to their logs in the last moments, before which
/// everything was fsynced, a part is gone.
fn cut_power(world: &mut World, nodes: &[usize], rng: &mut StdRng) {
    let before: Vec<(PathBuf, u64)> = nodes.iter().map(|node| growing_file(world, *node)).collect();
    // Whoever waited for the disk has been answered by then: a run is appended every 20 ms or so.
    std::thread::sleep(Duration::from_millis(500));
    for node in nodes {
        world.kill_node(*node).unwrap();
    }
    for (node, (file, synced)) in nodes.iter().zip(before) {
        let (now, length) = growing_file(world, *node);
        // Another file was begun meanwhile: what the one before holds was fsynced.
        let synced = if now == file { synced } else { 0 };
        let kept = rng.random_range(synced..=length);
        eprintln!("n{}: {kept} of {length} bytes of {} are kept", node + 1, now.display());
        truncate(&now, kept);
    }
}

fn truncate(file: &Path, length: u64) {
    fs::OpenOptions::new()
        .write(true)
        .open(file)
        .unwrap()
        .set_len(length)
        .unwrap();
}

/// Waits until so many rows are to be seen again.
async fn wait_for_rows(world: &World, rows: i64) {
    let began = Instant::now();
    let back = world.wait_for("the rows to be there again", PATIENCE, async |world| {
        let found = count(&world.client()?, TABLE).await?;
        Ok(found.rows >= rows && found.rows == found.distinct)
    });
    back.await.unwrap();
    eprintln!("{rows} rows are there again after {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cuts_lose_and_double_nothing() {
    let world = &mut World::start(3).await.unwrap();
    let mut rng = StdRng::seed_from_u64(seed());
    let plan = Plan {
        topic: TABLE.into(),
        partitions: 6,
        count: 80_000,
        bad: 20,
        rate: Some(4_000),
        seed: seed(),
    };
    Events::create_topic(&world.brokers, &plan).unwrap();
    // One shard for each node, and nothing is flushed before the end.
    let [table, pipe] = statements(&world.brokers, TABLE, 3_600_000);
    let table = table.replace("shards = 4", "shards = 3, wal = 'local'");
    for sql in [&table, &pipe] {
        world.run(sql).await.unwrap();
    }
    let reader = Reader::start(world.client().unwrap(), TABLE.into());
    let events = Events::start(world.folder(), &world.brokers, &plan).unwrap();
    wait_for_rows(world, 15_000).await;

    // The others go on meanwhile; this one comes back before it is given up.
    let node = rng.random_range(0..3);
    cut_power(world, &[node], &mut rng);
    world.start_node(node).unwrap();
    wait_for_rows(world, 25_000).await;
    let replayed = world.metric(node, "tidemill_wal_replayed_rows").unwrap() as u64;
    eprintln!("n{} replayed {replayed} rows", node + 1);

    wait_for_rows(world, 40_000).await;
    let before = count(&world.client().unwrap(), TABLE).await.unwrap().rows;
    cut_power(world, &[0, 1, 2], &mut rng);
    (0..3).for_each(|node| world.start_node(node).unwrap());
    wait_for_rows(world, before).await;
    let replayed: u64 = (0..3)
        .map(|node| world.metric(node, "tidemill_wal_replayed_rows").unwrap() as u64)
        .sum();
    eprintln!("{replayed} rows were replayed, {before} were seen before");
    // All but the last moments, and what was waiting in Kafka when they were cut.
    assert!(
        replayed * 10 >= before as u64 * 8,
        "{replayed} rows were replayed, {before} were seen before"
    );
    let parts = world.ask("SELECT count(*) FROM system.parts").await.unwrap();
    assert_eq!(parts, 0, "what was seen was in no part");

    let produced = events.finish().await.unwrap();
    world.run("ALTER TABLE events SET (flush_age = '200ms')").await.unwrap();
    wait_until_read(world, &produced).await.unwrap();
    let findings = reader.finish().await.unwrap();
    world.all_alive().unwrap();
    let counted = count(&world.client().unwrap(), TABLE).await.unwrap();
    check(world, &produced, &counted, &findings).await.unwrap();
    let forgotten = world.wait_for("the logs to be trimmed", PATIENCE, async |world| {
        Ok((0..3).all(|node| world.metric(node, "tidemill_wal_entries").unwrap() == 0.0))
    });
    forgotten.await.unwrap();
}

/// A topic of one partition, a table that logs what it has and flushes nothing, a pipe; gives a producer.
async fn logged() -> (Stage, Script) {
    let stage = Stage::new(1, &[], false).await.unwrap();
    stage.topic(1, &[]).unwrap();
    let table = "CREATE TABLE t (id BIGINT NOT NULL) WITH (shards = 1, flush_age = '1h', wal = 'local')";
    stage.run(table).await.unwrap();
    let brokers = &stage.world.brokers;
    let pipe = format!("CREATE PIPE p INTO t FROM KAFKA (brokers = '{brokers}', topic = '{TOPIC}')");
    stage.run(&pipe).await.unwrap();
    let source = stage.source().unwrap();
    (stage, source)
}

/// Kills all nodes when rows 0 to 100 were seen; then 100 more come, and the first 150 of all expire.
fn kill_all_and_expire(stage: &mut Stage, source: &mut Script) {
    (0..3).for_each(|node| stage.world.kill_node(node).unwrap());
    source.write_ids(0, 100..200).unwrap();
    stage.world.kafka(&["delete-records", TOPIC, "0:150"]).unwrap();
}

/// After a repair, what was seen is there and what expired unseen is counted.
async fn only_unseen_rows_are_lost(stage: Stage) {
    stage.run("ALTER PIPE p REPAIR").await.unwrap();
    stage.caught_up().await.unwrap();
    assert_eq!(
        stage.ask("SELECT sum(id) FROM t").await.unwrap(),
        (0..100).sum::<i64>() + (150..200).sum::<i64>()
    );
    assert_eq!(stage.ask("SELECT sum(lost) FROM system.ledger").await.unwrap(), 50);
    stage.finish().await.unwrap();
}

/// The topic has lost rows that were seen, and some that were not, while all nodes were down.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_expired_meanwhile_come_from_the_log() {
    let (mut stage, mut source) = logged().await;
    source.write_ids(0, 0..100).unwrap();
    stage.caught_up().await.unwrap();

    kill_all_and_expire(&mut stage, &mut source);
    (0..3).for_each(|node| stage.world.start_node(node).unwrap());

    stage.stopped("expired", 1).await.unwrap();
    let logs: Vec<String> = (0..3).map(|node| stage.world.log(node).unwrap()).collect();
    let said = |line: &&str| line.contains("replayed from the write-ahead log") && line.contains("from=0 to=100");
    let line = logs.iter().flat_map(|log| log.lines()).find(said);
    eprintln!(
        "{}",
        line.unwrap_or_else(|| panic!("nobody says that it replayed its log"))
    );
    stage.wait("SELECT count(*) FROM t", 100).await.unwrap();
    only_unseen_rows_are_lost(stage).await;
}

/// The source has lost rows that were seen, while the node that has them in its log was away and another led the shard.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_expired_while_their_node_was_away_are_handed_over() {
    let (mut stage, mut source) = logged().await;
    source.write_ids(0, 0..100).unwrap();
    stage.caught_up().await.unwrap();
    let leader = busiest_node(&stage.world.client().unwrap()).await.unwrap();
    let away = stage.world.index_of(&leader).unwrap();

    kill_all_and_expire(&mut stage, &mut source);
    let others = || (0..3).filter(|node| *node != away);
    others().for_each(|node| stage.world.start_node(node).unwrap());
    stage.stopped("expired", 1).await.unwrap();
    assert_eq!(stage.ask("SELECT count(*) FROM t").await.unwrap(), 0);

    stage.world.start_node(away).unwrap();
    stage.wait("SELECT count(*) FROM t", 100).await.unwrap();
    // Committed at once, although the table waits for an hour: a repair must not count them as lost.
    stage
        .wait("SELECT sum(committed) FROM system.partitions", 100)
        .await
        .unwrap();
    let log = stage.world.log(away).unwrap();
    let said = log
        .lines()
        .find(|line| line.contains("stranded rows were taken by node"));
    eprintln!(
        "{}",
        said.unwrap_or_else(|| panic!("it does not say that it gave them: {log}"))
    );
    only_unseen_rows_are_lost(stage).await;
}

/// A log that rots does not let its node start, and says what to do; done so, every row is there, once.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_is_told_and_not_skipped() {
    let (mut stage, mut source) = logged().await;
    for round in 0..20 {
        source.write_ids(0, round * 50..(round + 1) * 50).unwrap();
        stage.caught_up().await.unwrap();
    }
    let leader = busiest_node(&stage.world.client().unwrap()).await.unwrap();
    let node = stage.world.index_of(&leader).unwrap();
    stage.world.kill_node(node).unwrap();
    let (file, length) = growing_file(&stage.world, node);
    let mut bytes = fs::read(&file).unwrap();
    bytes[length as usize / 2] ^= 0x10;
    fs::write(&file, bytes).unwrap();

    stage.world.start_node(node).unwrap();
    let ended_well = stage.world.wait_for_end(node, PATIENCE).await.unwrap();
    let log = stage.world.log(node).unwrap();
    let said = log
        .lines()
        .find(|line| line.contains("the write-ahead log in") && line.contains("is damaged"));
    eprintln!(
        "{}",
        said.unwrap_or_else(|| panic!("it does not say that its log is damaged: {log}"))
    );
    assert!(!ended_well && log.contains("Move this folder away"), "{log}");

    let folder = file.parent().unwrap();
    fs::rename(folder, folder.with_extension("damaged")).unwrap();
    stage.world.start_node(node).unwrap();
    stage.caught_up().await.unwrap();
    assert_eq!(
        stage.ask("SELECT sum(id) FROM t").await.unwrap(),
        (0..1000).sum::<i64>()
    );
    stage.finish().await.unwrap();
}
