//! Programs write rows themselves while nodes die: what was acknowledged is there once, whatever happens.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tidemill_chaos_tests::direct::{TABLE, Told, Writers, check, create};
use tidemill_chaos_tests::reader::{busiest_node, number, rows, text};
use tidemill_chaos_tests::world::{World, binary};
use tidemill_client::{Acks, Client, ClientConfig, WriteError, WriterOptions};

const PATIENCE: Duration = Duration::from_secs(60);

async fn three_nodes(settings: &str) -> World {
    let mut world = World::without_broker().unwrap();
    world.start_cluster(3).await.unwrap();
    world.run(&create(settings)).await.unwrap();
    world
}

/// Every acknowledged row is there once, and the ledgers agree with the files.
async fn all_is_there(world: &World, told: &[Told]) {
    let acknowledged: usize = told.iter().map(|told| told.acknowledged.len()).sum();
    let unknown: usize = told.iter().map(|told| told.unknown.len()).sum();
    println!("{acknowledged} rows acknowledged, {unknown} unknown");
    assert!(acknowledged > 0, "nothing was written");
    assert_eq!(
        check(&world.client().unwrap(), told).await.unwrap(),
        0,
        "acknowledged rows are missing"
    );
    ledgers_agree_with_files(world).await;
}

/// Of the table's only shard, once it has one.
async fn leader_of_the_shard(world: &World) -> usize {
    let led = world.wait_for("the shard to be led", PATIENCE, async |world| {
        Ok(world.ask("SELECT count(leader) FROM system.shards").await? == 1)
    });
    led.await.unwrap();
    let leader = rows(&world.client().unwrap(), "SELECT leader FROM system.shards")
        .await
        .unwrap();
    world.index_of(&text(&leader).unwrap()).unwrap()
}

/// Four writers, each with 50 rows on their way.
async fn writing(world: &World, options: WriterOptions) -> Writers {
    let client = world.client().unwrap();
    let started = Writers::start(&client, 4, 50, Duration::from_millis(1), options);
    started.await.unwrap()
}

fn with_acks(acks: Acks) -> WriterOptions {
    WriterOptions {
        acks,
        ..WriterOptions::default()
    }
}

async fn lost(world: &World) -> i64 {
    let sql = "SELECT coalesce(sum(lost), 0) FROM system.ledger";
    world.ask(sql).await.unwrap()
}

async fn rows_seen(world: &World) -> i64 {
    world.ask(&format!("SELECT count(*) FROM {TABLE}")).await.unwrap()
}

async fn ledgers_agree_with_files(world: &World) {
    let sql = "SELECT count(*) FROM system.check WHERE NOT ok";
    let wrong = world.ask(sql).await.unwrap();
    assert_eq!(wrong, 0, "a ledger does not agree with the files");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_there_once_while_every_node_dies_and_stands_still() {
    let mut world = three_nodes("shards = 4").await;
    let client = world.client().unwrap();
    let writing = Writers::start(&client, 8, 50, Duration::from_millis(1), WriterOptions::default());
    let writing = writing.await.unwrap();
    for node in 0..3 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        world.kill_node(node).unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        world.start_node(node).unwrap();
        world.all_ready().await.unwrap();
    }
    // One that stands still is deposed, and comes back with rows that nobody wants any more.
    let busiest = busiest_node(&client).await.unwrap();
    let victim = world.index_of(&busiest).unwrap();
    world.signal(victim, "STOP").unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.signal(victim, "CONT").unwrap();
    world.all_ready().await.unwrap();
    let told = writing.finish().await.unwrap();
    assert!(
        told.iter()
            .all(|told| told.unknown.is_empty() && told.refused.is_empty()),
        "a row was given up"
    );
    all_is_there(&world, &told).await;
    assert_eq!(
        world.ask("SELECT count(*) FROM system.writers").await.unwrap(),
        0,
        "writers were not closed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_a_no_op_after_all_nodes_have_died() {
    let mut world = three_nodes("shards = 2").await;
    let writing = writing(&world, WriterOptions::default()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for node in 0..3 {
        world.kill_node(node).unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for node in 0..3 {
        world.start_node(node).unwrap();
    }
    world.all_ready().await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let told = writing.finish().await.unwrap();
    assert!(told.iter().all(|told| told.unknown.is_empty()), "a row was given up");
    all_is_there(&world, &told).await;
}

/// Replicas drop out one after the other, the last leader dies, and who dropped out first comes back first.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_follower_that_returns_first_loses_nothing() {
    let mut world = three_nodes("shards = 1").await;
    let leader = leader_of_the_shard(&world).await;
    let (first, second) = ((leader + 1) % 3, (leader + 2) % 3);
    let options = WriterOptions {
        delivery_timeout: Duration::from_secs(6),
        ..WriterOptions::default()
    };
    let writing = writing(&world, options).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.kill_node(first).unwrap();
    // Two of three are in sync: rows go on being acknowledged.
    tokio::time::sleep(Duration::from_secs(4)).await;
    world.kill_node(second).unwrap();
    // The leader alone acknowledges nothing any more: what is written now is given up after its time.
    tokio::time::sleep(Duration::from_secs(9)).await;
    let told = writing.finish().await.unwrap();
    let unknown: usize = told.iter().map(|told| told.unknown.len() + told.refused.len()).sum();
    assert!(unknown > 0, "rows were acknowledged by a leader without any follower");
    world.kill_node(leader).unwrap();
    world.start_node(first).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    // It cannot know what it missed, so it must not serve or take anything.
    let alone = ClientConfig {
        retry_for: Duration::from_secs(2),
        ..ClientConfig::new([format!("127.0.0.1:{}", api_port(&world, first))])
    };
    let alone = Client::new(alone).unwrap();
    assert!(
        rows(&alone, &format!("SELECT count(*) FROM {TABLE}")).await.is_err(),
        "a minority serves"
    );
    assert!(
        alone.writer(TABLE, WriterOptions::default()).await.is_err(),
        "a minority admits writers"
    );
    world.start_node(second).unwrap();
    let back = world.wait_for("the two to serve", PATIENCE, async |world| {
        Ok(world.ask(&format!("SELECT count(*) FROM {TABLE}")).await.is_ok())
    });
    back.await.unwrap();
    all_is_there(&world, &told).await;
    world.start_node(leader).unwrap();
    world.all_ready().await.unwrap();
    all_is_there(&world, &told).await;
}

fn api_port(world: &World, node: usize) -> String {
    let all = world.connect();
    let address = all.split(',').nth(node).unwrap().to_owned();
    address.rsplit(':').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_are_refused_while_too_few_replicas_are_in_sync() {
    let mut world = three_nodes("shards = 1, min_insync_replicas = 3").await;
    let client = world.client().unwrap();
    let writer = client.writer(TABLE, WriterOptions::default()).await.unwrap();
    writer
        .write_json(r#"{"writer": 0, "n": 0}"#)
        .await
        .unwrap()
        .await
        .unwrap();
    let follower = (leader_of_the_shard(&world).await + 1) % 3;
    world.kill_node(follower).unwrap();
    let down = world.wait_for("the follower to be down", PATIENCE, async |world| {
        let status = world.client()?.cluster_status().await?;
        Ok(status.nodes.iter().any(|node| node.state == "Down"))
    });
    down.await.unwrap();
    let hasty = WriterOptions {
        delivery_timeout: Duration::from_secs(2),
        ..WriterOptions::default()
    };
    let hasty = client.writer(TABLE, hasty).await.unwrap();
    let refused = hasty
        .write_json(r#"{"writer": 1, "n": 0}"#)
        .await
        .unwrap()
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("2 of 3 replicas of shard"), "{refused}");
    // Who has patience is served when the replica is back.
    let patient = writer.write_json(r#"{"writer": 0, "n": 1}"#).await.unwrap();
    world.start_node(follower).unwrap();
    patient.await.unwrap();
    assert_eq!(
        world
            .ask(&format!("SELECT count(*) FROM {TABLE} WHERE writer = 0"))
            .await
            .unwrap(),
        2
    );
}

/// With `acks = none` rows are lost with a leader. Then the ledger says how many, to the last one.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_too_early_and_lost_is_counted() {
    let mut world = three_nodes("shards = 2, flush_age = '60s'").await;
    let client = world.client().unwrap();
    let writing = writing(&world, with_acks(Acks::None)).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    // They are seen at once, long before they are committed.
    let seen = rows_seen(&world).await;
    assert!(seen > 0);
    let busiest = busiest_node(&client).await.unwrap();
    let victim = world.index_of(&busiest).unwrap();
    world.kill_node(victim).unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    world.start_node(victim).unwrap();
    world.all_ready().await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let told = writing.finish().await.unwrap();
    let missing = check(&client, &told).await.unwrap();
    let lost = lost(&world).await;
    println!("{missing} acknowledged rows are missing, the ledger says {lost}");
    assert!(missing > 0, "nothing was lost: this test shows nothing");
    assert_eq!(missing as i64, lost);
    let said = rows(&client, "SELECT text FROM system.events WHERE kind = 'lost'")
        .await
        .unwrap();
    println!("{}", text(&said).unwrap());
    ledgers_agree_with_files(&world).await;
}

/// With `acks = leader` rows are in the log of the leader: they outlive the process of every node at once.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_leaders_have_logged_outlives_all_nodes() {
    let mut world = three_nodes("shards = 2, flush_age = '60s', wal = 'local'").await;
    let writing = writing(&world, with_acks(Acks::Leader)).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    for node in 0..3 {
        world.kill_node(node).unwrap();
    }
    for node in 0..3 {
        world.start_node(node).unwrap();
    }
    world.all_ready().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let told = writing.finish().await.unwrap();
    all_is_there(&world, &told).await;
    assert_eq!(lost(&world).await, 0);
}

/// Kills the node that leads most while rows are written, has others lead its shards, and starts it again: what it had
/// acknowledged is in its log and nowhere else. Gives the node, the writers, and how many rows there were.
async fn stranded(world: &mut World) -> (usize, Writers, i64) {
    let writing = writing(world, with_acks(Acks::Leader)).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = rows_seen(world).await;
    let busiest = busiest_node(&world.client().unwrap()).await.unwrap();
    let victim = world.index_of(&busiest).unwrap();
    world.kill_node(victim).unwrap();
    let led = world.wait_for("the others to lead all shards", PATIENCE, async |world| {
        let sql = format!("SELECT count(*) FROM system.shards WHERE leader <> '{busiest}'");
        Ok(world.ask(&sql).await? == 2)
    });
    led.await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.start_node(victim).unwrap();
    // Until then it is a dead node for the others, and those are not waited for when they are to leave.
    world.all_ready().await.unwrap();
    (victim, writing, before)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_removed_hands_over_its_log_first() {
    // Parts that all nodes share, so that nothing else keeps the node; and so rare flushes that what others take over
    // is not committed before they are told to.
    let mut world = World::without_broker().unwrap();
    world.parts = Some(format!("file://{}/parts", world.folder().display()));
    world.start_cluster(3).await.unwrap();
    let settings = "shards = 2, flush_age = '8s', wal = 'local'";
    world.run(&create(settings)).await.unwrap();
    let (victim, writing, before) = stranded(&mut world).await;
    let name = format!("n{}", victim + 1);
    let said = world.tidemill(&["node", "remove", &name]).unwrap();
    assert!(said.contains("hand over the rows of its write-ahead log"), "{said}");
    assert!(world.wait_for_end(victim, PATIENCE).await.unwrap());
    assert!(world.log(victim).unwrap().contains("stranded rows were taken"));
    let told = writing.finish().await.unwrap();
    assert!(rows_seen(&world).await >= before);
    all_is_there(&world, &told).await;
    assert_eq!(lost(&world).await, 0);
}

/// The log of a leader that died is offered to the next one when its node is back: before that the rows are missing, after
/// it they are there, once.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_stranded_in_a_log_comes_back_with_its_node() {
    let mut world = three_nodes("shards = 2, flush_age = '60s', wal = 'local'").await;
    let (victim, writing, before) = stranded(&mut world).await;
    // Each of its writers and shards by itself; by now the gaps would have been passed over.
    let back = world.wait_for("the stranded rows", Duration::from_secs(9), async |world| {
        let count = world.ask(&format!("SELECT count(*) FROM {TABLE}")).await?;
        Ok(count >= before && world.log(victim)?.contains("stranded rows were taken"))
    });
    back.await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let told = writing.finish().await.unwrap();
    all_is_there(&world, &told).await;
    assert_eq!(lost(&world).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_needed_where_it_is_relied_upon() {
    let world = three_nodes("shards = 1").await;
    let client = world.client().unwrap();
    let options = with_acks(Acks::Leader);
    let refused = client.writer(TABLE, options.clone()).await.unwrap_err().to_string();
    assert!(
        refused.contains(&format!("ALTER TABLE {TABLE} SET (wal = 'local')")),
        "{refused}"
    );
    world
        .run(&format!("ALTER TABLE {TABLE} SET (wal = 'local')"))
        .await
        .unwrap();
    let writer = client.writer(TABLE, options).await.unwrap();
    writer
        .write_json(r#"{"writer": 0, "n": 0}"#)
        .await
        .unwrap()
        .await
        .unwrap();
    let refused = world
        .run(&format!("ALTER TABLE {TABLE} SET (wal = 'off')"))
        .await
        .unwrap_err();
    assert!(format!("{refused:#}").contains("1 writers of table"), "{refused:#}");
    writer.close().await.unwrap();
    world
        .run(&format!("ALTER TABLE {TABLE} SET (wal = 'off')"))
        .await
        .unwrap();
    assert_eq!(world.ask(&format!("SELECT count(*) FROM {TABLE}")).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_row_fails_alone_and_says_why() {
    let world = three_nodes("shards = 1").await;
    let client = world.client().unwrap();
    let writer = client.writer(TABLE, WriterOptions::default()).await.unwrap();
    let mut deliveries = Vec::new();
    for n in 0..100 {
        let row = match n {
            30 => r#"{"writer": 0, "n": "many"}"#.to_owned(),
            60 => r#"{"writer": 0, "n": 60, "note": "x", "nte": "y"}"#.to_owned(),
            61 => r#"{"writer": 0}"#.to_owned(),
            90 => "not json".to_owned(),
            _ => format!(r#"{{"writer": 0, "n": {n}}}"#),
        };
        deliveries.push((n, writer.write_json(row).await.unwrap()));
    }
    for (n, delivery) in deliveries {
        let expected = match n {
            30 => "field \"n\"",
            60 => "nte",
            61 => "field \"n\"",
            90 => "not JSON",
            _ => {
                delivery.await.unwrap();
                continue;
            }
        };
        match delivery.await.unwrap_err() {
            WriteError::Invalid(why) => assert!(why.contains(expected), "row {n}: {why}"),
            other => panic!("row {n}: {other:?}"),
        }
    }
    assert!(matches!(writer.write_json("{}\n{}").await, Err(WriteError::Invalid(_))));
    assert!(writer.flush().await.is_err(), "flush tells what went wrong");
    writer.close().await.unwrap();
    let counted = rows(&client, &format!("SELECT count(*), sum(n) FROM {TABLE}"))
        .await
        .unwrap();
    let sum: i64 = (0..100).filter(|n| ![30, 60, 61, 90].contains(n)).sum();
    assert_eq!((number(&counted, 0).unwrap(), number(&counted, 1).unwrap()), (96, sum));
    let missing = client.writer("nothing", WriterOptions::default()).await.unwrap_err();
    assert!(
        missing.to_string().contains("there is no table called 'nothing'"),
        "{missing}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_of_columns_and_lines_of_a_pipe_are_rows_too() {
    use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch};
    use std::sync::Arc;
    let world = three_nodes("shards = 2").await;
    let client = world.client().unwrap();
    let writer = client.writer(TABLE, WriterOptions::default()).await.unwrap();
    let columns =
        |n: ArrayRef| RecordBatch::try_from_iter([("n", n), ("writer", Arc::new(Int64Array::from(vec![5, 5])) as _)]);
    let batch = columns(Arc::new(Int32Array::from(vec![1, 2]))).unwrap();
    writer.write_batch(&batch).await.unwrap().await.unwrap();
    let nulls = columns(Arc::new(Int64Array::from(vec![Some(1), None]))).unwrap();
    let refused = writer.write_batch(&nulls).await.unwrap().await.unwrap_err();
    assert!(refused.to_string().contains("column 'n' may not be null"), "{refused}");
    drop(writer.close().await);

    let mut command = Command::new(binary().unwrap());
    command.args(["write", TABLE, "--connect", &world.connect()]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let began = Instant::now();
    for n in 0..10_000 {
        writeln!(input, r#"{{"writer": 6, "n": {n}}}"#).unwrap();
    }
    writeln!(input, "{{").unwrap();
    drop(input);
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(
        said.contains("line 10001: ") && said.contains("10000 rows written"),
        "{said}"
    );
    println!("10,000 lines in {:?}", began.elapsed());
    let counted = world
        .ask(&format!("SELECT count(DISTINCT n) FROM {TABLE} WHERE writer = 6"))
        .await
        .unwrap();
    assert_eq!(counted, 10_000);
    // The table goes with its writers.
    world.run(&format!("DROP TABLE {TABLE}")).await.unwrap();
    assert_eq!(world.ask("SELECT count(*) FROM system.pipes").await.unwrap(), 0);
}
