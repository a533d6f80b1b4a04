//! A pipe's life on a real broker: pause and resume, a topic that grows, graceful ends, dropping.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::process::Command;
use std::time::Duration;
use tidemill_chaos_tests::events::{Events, Plan};
use tidemill_chaos_tests::reader::{count, number, rows};
use tidemill_chaos_tests::scenario::{TABLE, create, statements, wait_until_read};
use tidemill_chaos_tests::world::{World, checkout, files_below, output};
use tidemill_client::Client;

fn plan(partitions: u32, count: u64, rate: Option<u64>) -> Plan {
    Plan {
        topic: TABLE.into(),
        partitions,
        count,
        bad: 0,
        rate,
        seed: 7,
    }
}

async fn prepared(partitions: u32, count: u64, rate: Option<u64>) -> (World, Plan) {
    let world = World::start(3).await.unwrap();
    let plan = plan(partitions, count, rate);
    create(&world, &plan, 1000).await.unwrap();
    (world, plan)
}

async fn ask(world: &World, sql: &str) -> i64 {
    world.ask(sql).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_holds_and_a_resume_loses_and_doubles_nothing() {
    let (world, plan) = prepared(8, 120_000, Some(20_000)).await;
    let events = Events::start(world.folder(), &world.brokers, &plan).unwrap();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        world.run("ALTER PIPE events PAUSE").await.unwrap();
        let held = ask(&world, "SELECT sum(committed) FROM system.partitions").await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(
            ask(&world, "SELECT sum(committed) FROM system.partitions").await,
            held,
            "a paused pipe moved"
        );
        let seen = count(&world.client().unwrap(), TABLE).await.unwrap();
        assert_eq!(seen.rows, seen.distinct);
        world.run("ALTER PIPE events RESUME").await.unwrap();
    }
    let produced = events.finish().await.unwrap();
    wait_until_read(&world, &produced).await.unwrap();
    let counted = count(&world.client().unwrap(), TABLE).await.unwrap();
    assert_eq!((counted.rows, counted.distinct), (120_000, 120_000));
    assert_eq!(counted.sum_event_id, produced.sum_event_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_runs_again_when_the_node_that_was_to_reset_it_ends_between_its_steps() {
    let mut world = World::with_broker().unwrap();
    world.parts = Some(format!("file://{}/parts", world.folder().display()));
    world.start_cluster(3).await.unwrap();
    let plan = plan(4, 20_000, Some(4_000));
    create(&world, &plan, 1000).await.unwrap();
    let events = Events::start(world.folder(), &world.brokers, &plan).unwrap();
    let stored = "SELECT coalesce(sum(stored), 0) FROM system.partitions";
    world
        .wait_for("the first rows", Duration::from_secs(30), async |world| {
            Ok(world.ask(stored).await? > 0)
        })
        .await
        .unwrap();
    // Nothing can be committed: the first step of a reset waits for that, for 20 s.
    let (parts, away) = (world.folder().join("parts"), world.folder().join("away"));
    std::fs::rename(&parts, &away).unwrap();
    std::fs::write(&parts, "no folder").unwrap();
    let coordinator = 2;
    let mut asked = world.beginning_at(coordinator);
    asked.retry_for = Duration::ZERO;
    let client = Client::new(asked).unwrap();
    let reset = tokio::spawn(async move {
        client
            .query("ALTER PIPE events RESET OFFSETS TO LATEST")
            .await
            .map(drop)
    });
    let in_state = |state: &str| format!("SELECT count(*) FROM system.pipes WHERE state = '{state}'");
    world
        .wait_for("the reset to begin", Duration::from_secs(15), async |world| {
            Ok(world.ask(&in_state("pausing")).await? == 1)
        })
        .await
        .unwrap();
    world.kill_node(coordinator).unwrap();
    std::fs::remove_file(&parts).unwrap();
    std::fs::rename(&away, &parts).unwrap();
    reset.await.unwrap().unwrap_err();
    assert_eq!(
        ask(&world, &in_state("pausing")).await,
        1,
        "it was not left between its steps"
    );
    world.start_node(coordinator).unwrap();
    world
        .wait_for("the pipe to run again", Duration::from_secs(90), async |world| {
            Ok(world.ask(&in_state("running")).await? == 1)
        })
        .await
        .unwrap();
    let said = "SELECT count(*) FROM system.events WHERE kind = 'pipe' AND text LIKE '%who asked for that is gone%'";
    assert_eq!(ask(&world, said).await, 1);
    let produced = events.finish().await.unwrap();
    wait_until_read(&world, &produced).await.unwrap();
    let counted = count(&world.client().unwrap(), TABLE).await.unwrap();
    assert_eq!((counted.rows, counted.distinct), (20_000, 20_000));
    assert_eq!(counted.sum_event_id, produced.sum_event_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graceful_end_commits_and_hands_over_and_a_restart_of_all_keeps_everything() {
    let (mut world, plan) = prepared(8, 40_000, None).await;
    let produced = Events::start(world.folder(), &world.brokers, &plan)
        .unwrap()
        .finish()
        .await
        .unwrap();
    let committed = async |world: &World| ask(world, "SELECT count(*) FROM events").await;
    world
        .wait_for("the rows", Duration::from_secs(30), async |world| {
            Ok(committed(world).await == 40_000)
        })
        .await
        .unwrap();
    for i in 0..3 {
        let took = world.stop_node(i).unwrap();
        assert!(took < Duration::from_secs(15), "n{} took {took:?} to end", i + 1);
        assert_eq!(count(&world.client().unwrap(), TABLE).await.unwrap().rows, 40_000);
        world.start_node(i).unwrap();
        world.all_ready().await.unwrap();
    }
    for i in 0..3 {
        world.kill_node(i).unwrap();
    }
    for i in 0..3 {
        world.start_node(i).unwrap();
    }
    world
        .wait_for(
            "the cluster after a restart of all",
            Duration::from_secs(60),
            async |world| Ok(count(&world.client()?, TABLE).await?.rows == 40_000),
        )
        .await
        .unwrap();
    wait_until_read(&world, &produced).await.unwrap();
    let counted = count(&world.client().unwrap(), TABLE).await.unwrap();
    assert_eq!(
        (counted.rows, counted.distinct, counted.sum_event_id),
        (40_000, 40_000, produced.sum_event_id)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_added_to_a_topic_are_read_from_their_beginning() {
    let (world, mut plan) = prepared(2, 10_000, None).await;
    let first = Events::start(world.folder(), &world.brokers, &plan)
        .unwrap()
        .finish()
        .await
        .unwrap();
    let mut kafka = Command::new(checkout().join("scripts/kafka"));
    kafka.arg("--dir").arg(world.folder().join("kafka"));
    output(kafka.args(["topic", "grow", TABLE, "6"])).unwrap();
    plan.partitions = 6;
    let second = Events::start(world.folder(), &world.brokers, &plan)
        .unwrap()
        .finish()
        .await
        .unwrap();
    let all = first.count + second.count;
    world
        .wait_for("the rows of all partitions", Duration::from_secs(90), async |world| {
            Ok(count(&world.client()?, TABLE).await?.rows == all as i64)
        })
        .await
        .unwrap();
    assert_eq!(ask(&world, "SELECT count(DISTINCT _partition) FROM events").await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_table_is_gone_with_its_files_and_its_name_is_free() {
    let (world, plan) = prepared(4, 20_000, None).await;
    let produced = Events::start(world.folder(), &world.brokers, &plan)
        .unwrap()
        .finish()
        .await
        .unwrap();
    wait_until_read(&world, &produced).await.unwrap();
    assert!(
        world.run("DROP TABLE events").await.is_err(),
        "a table was dropped under its pipe"
    );
    // The files of the first table, on each node.
    let old_files = |world: &World| -> usize {
        let folders = (0..3).map(|i| world.data(i).join("parts/1"));
        folders.map(|folder| files_below(&folder).len()).sum()
    };
    assert!(old_files(&world) > 0, "the files are elsewhere");
    world.run("DROP PIPE events").await.unwrap();
    assert_eq!(
        count(&world.client().unwrap(), TABLE).await.unwrap().rows,
        20_000,
        "dropping a pipe took rows"
    );
    world.run("DROP TABLE events").await.unwrap();
    for sql in statements(&world.brokers, TABLE, 1000) {
        world.run(&sql).await.unwrap();
    }
    wait_until_read(&world, &produced).await.unwrap();
    assert_eq!(count(&world.client().unwrap(), TABLE).await.unwrap().rows, 20_000);
    // The collector takes the old table's files once no query can read them any more.
    world
        .wait_for(
            "the files of the dropped table to go",
            Duration::from_secs(90),
            async |world| Ok(old_files(world) == 0),
        )
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_the_source_deleted_unread_stop_their_partition_alone_and_say_so() {
    let (world, plan) = prepared(2, 10_000, None).await;
    let first = Events::start(world.folder(), &world.brokers, &plan)
        .unwrap()
        .finish()
        .await
        .unwrap();
    wait_until_read(&world, &first).await.unwrap();
    world.run("ALTER PIPE events PAUSE").await.unwrap();
    let next = ask(&world, "SELECT committed FROM system.partitions WHERE partition = 0").await;
    let other = ask(&world, "SELECT committed FROM system.partitions WHERE partition = 1").await;
    let second = Events::start(world.folder(), &world.brokers, &plan).unwrap();
    second.finish().await.unwrap();
    let mut kafka = Command::new(checkout().join("scripts/kafka"));
    kafka.arg("--dir").arg(world.folder().join("kafka"));
    output(kafka.args(["delete-records", TABLE, &format!("0:{}", next + 1000)])).unwrap();
    world.run("ALTER PIPE events RESUME").await.unwrap();
    world
        .wait_for(
            "partition 0 to stop and partition 1 to go on",
            Duration::from_secs(60),
            async |world| {
                let stopped = "SELECT count(*) FROM system.partitions WHERE partition = 0 \
                           AND waiting_for LIKE 'the source lost data%'";
                let went_on = "SELECT committed FROM system.partitions WHERE partition = 1";
                let client = world.client()?;
                Ok(number(&rows(&client, stopped).await?, 0)? == 1
                    && number(&rows(&client, went_on).await?, 0)? > other)
            },
        )
        .await
        .unwrap();
    // Nothing was skipped: the partition is where it was.
    let sql = "SELECT committed FROM system.partitions WHERE partition = 0";
    assert_eq!(ask(&world, sql).await, next);
}
