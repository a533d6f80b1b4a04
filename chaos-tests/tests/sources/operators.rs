//! What operators do: skip and come back, read anew, and let what is urgent go first.

use crate::Done;
use tidemill_chaos_tests::stage::{Stage, TOPIC};
use tidemill_chaos_tests::world::World;

pub async fn what_was_skipped_is_backfilled_exactly(stage: &mut Stage) -> Done {
    let mut source = stage.begin(2).await?;
    source.write_ids(0, 0..100)?;
    stage.caught_up().await?;
    stage.run("WAIT FOR OFFSET (0 = 99) OF PIPE p").await?;
    // Tools that look at groups see what is committed, some time later.
    let seen = async |world: &World| {
        let said = world.kafka(&["groups", "--describe", "--group", "tidemill.demo.p"])?;
        Ok(said.lines().any(|line| line.split_whitespace().nth(3) == Some("100")))
    };
    let patience = std::time::Duration::from_secs(30);
    stage
        .world
        .wait_for("Kafka to know the offsets", patience, seen)
        .await?;
    stage.run("ALTER PIPE p PAUSE").await?;
    source.send_ids(0, 100..500)?;
    source.write_ids(1, 10_000..10_050)?;
    stage.run("ALTER PIPE p SKIP TO LATEST PARTITION 0").await?;
    stage.run("ALTER PIPE p RESUME").await?;
    source.write_ids(0, 500..510)?;
    stage.caught_up().await?;
    assert_eq!(stage.ask("SELECT count(*) FROM t WHERE id < 10000").await?, 110);
    assert_eq!(
        stage.ask("SELECT count(*) FROM t WHERE id >= 10000").await?,
        50,
        "the other partition"
    );
    assert_eq!(stage.ask("SELECT sum(lost) FROM system.ledger").await?, 400);
    stage.run("ALTER PIPE p BACKFILL").await?;
    stage.disturb().await?;
    stage.run("ALTER PIPE p BACKFILL").await?;
    stage.wait("SELECT count(*) FROM t WHERE id < 10000", 510).await?;
    assert_eq!(
        stage.ask("SELECT sum(id) FROM t WHERE id < 10000").await?,
        (0..510).sum::<i64>()
    );
    assert_eq!(
        stage.ask("SELECT count(*) FROM system.pipes").await?,
        2,
        "a second backfill of the same"
    );
    // Going back is refused until somebody says what shall become of the rows.
    assert!(
        stage
            .run("ALTER PIPE p RESET OFFSETS TO EARLIEST PARTITION 1")
            .await
            .is_err()
    );
    stage
        .wait(
            "SELECT sum(committed) FROM system.partitions WHERE pipe LIKE 'p_backfill%'",
            500,
        )
        .await
}

pub async fn rows_that_are_read_again_take_the_place_of_the_old_ones(stage: &mut Stage) -> Done {
    let mut source = stage.begin(3).await?;
    source.send_ids(0, 0..100)?;
    source.send(0, None, Some(r#"{"id": "100"}"#))?;
    source.send(0, None, Some("not JSON"))?;
    source.send_ids(1, 1000..1100)?;
    source.send(2, None, Some(r#"{"id": "2000"}"#))?;
    source.flush()?;
    stage.caught_up().await?;
    stage.wait("SELECT count(*) FROM system.rejected", 3).await?;
    // The fix is for all records, also for those that are rows already: everything is read anew.
    stage.run("ALTER PIPE p SET (quoted_numbers = 'accept')").await?;
    let again = "ALTER PIPE p RESET OFFSETS TO EARLIEST PARTITION 0";
    assert!(stage.run(again).await.is_err(), "rows would have been doubled");
    stage.run(&format!("{again} DELETE ROWS")).await?;
    stage.disturb().await?;
    stage.caught_up().await?;
    assert_eq!(
        stage.ask("SELECT sum(id) FROM t WHERE _partition = 0").await?,
        (0..=100).sum::<i64>()
    );
    assert_eq!(stage.ask("SELECT count(*) FROM t").await?, 201);
    stage.wait("SELECT count(*) FROM system.rejected", 2).await?;
    // What is read again is not replayed as well, neither at once nor out of what a replay leaves over: one part
    // holds the rejects of two partitions of a shard.
    for _ in 0..2 {
        stage.run("REPLAY REJECTED p").await?;
        assert_eq!(stage.ask("SELECT count(*) FROM t").await?, 202);
        assert_eq!(stage.ask("SELECT count(*) FROM system.rejected").await?, 1);
    }
    // Once more, from the middle, while records come.
    source.send_ids(0, 102..200)?;
    stage.run("ALTER PIPE p RESET OFFSETS TO (0 = 50) DELETE ROWS").await?;
    source.flush()?;
    stage.caught_up().await?;
    assert_eq!(
        stage.ask("SELECT sum(id) FROM t WHERE _partition = 0").await?,
        (0..200).sum::<i64>() - 101
    );
    assert_eq!(
        stage
            .ask("SELECT count(*) FROM system.ledger WHERE \"partition\" = 1")
            .await?,
        1,
        "the other partition was touched"
    );
    Ok(())
}

pub async fn a_kafka_that_denies_groups_is_read_all_the_same(stage: &mut Stage) -> Done {
    stage.topic(1, &[])?;
    let groups = ["--deny-principal", "User:*", "--operation", "All", "--group", "*"];
    stage.world.kafka(&[&["acls", "--add"][..], &groups].concat())?;
    stage.pipe("").await?;
    let mut source = stage.source()?;
    source.write_ids(0, 0..100)?;
    stage.caught_up().await?;
    stage.wait("SELECT sum(committed) FROM system.partitions", 100).await?;
    stage.disturb().await?;
    // By now it has told the group more than once, in vain.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    source.write_ids(0, 100..200)?;
    stage.caught_up().await?;
    assert_eq!(stage.ask("SELECT sum(id) FROM t").await?, (0..200).sum::<i64>());
    stage
        .wait("SELECT count(*) FROM system.partitions WHERE waiting_for <> ''", 0)
        .await?;
    let said = stage
        .world
        .kafka(&["groups", "--describe", "--group", "tidemill.demo.p"]);
    let denied = |said: &str| !said.lines().any(|line| line.contains(TOPIC));
    assert!(said.map_or(true, |said| denied(&said)), "groups are not denied");
    Ok(())
}

/// Records of each of the two topics that compete.
const BACKLOG: i64 = 600_000;

pub async fn what_expires_first_is_read_first(stage: &mut Stage) -> Done {
    const LASTING: &str = "lasting";
    // Much more is to be read than it keeps (one segment is never deleted), so the danger lasts until most of it is read:
    // it is over as soon as what is unread is less than half of what it keeps.
    stage.topic(1, &["retention.bytes=20000000", "segment.bytes=1073741824"])?;
    let create = ["topic", "create", LASTING, "--partitions", "1"];
    stage.world.kafka(&create)?;
    // Both fill the same shard, so that they compete on the same node.
    stage.pipe("").await?;
    stage.run("ALTER PIPE p PAUSE").await?;
    let brokers = stage.world.brokers.clone();
    let lasting = format!("CREATE PIPE q INTO t FROM KAFKA (brokers = '{brokers}', topic = '{LASTING}')");
    stage.run(&lasting).await?;
    stage.run("ALTER PIPE q PAUSE").await?;
    let payload = stage.world.folder().join("payload");
    std::fs::write(&payload, format!(r#"{{"id": 1, "note": "{}"}}"#, "x".repeat(100)))?;
    let (records, payload) = (BACKLOG.to_string(), payload.display().to_string());
    for topic in [TOPIC, LASTING] {
        let what = ["perf-produce", "--topic", topic, "--num-records", &records];
        let how = ["--throughput", "-1", "--payload-file", &payload];
        stage.world.kafka(&[&what[..], &how[..]].concat())?;
    }
    stage.disturb().await?;
    let alerts = "SELECT count(*) FROM system.partitions WHERE headroom_alert";
    stage.wait(alerts, 1).await?;
    // The nodes hear of it with the next heartbeat.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    // In this order: whether q gives way can only be seen while p reads.
    stage.run("ALTER PIPE p RESUME").await?;
    stage.run("ALTER PIPE q RESUME").await?;
    stage.caught_up().await?;
    let read = "SELECT greatest(max(position), max(committed)) FROM system.partitions WHERE pipe = 'q'";
    let read = stage.ask(read).await?;
    assert!(
        read < BACKLOG / 2,
        "{read} records that last were read before {BACKLOG} that expire"
    );
    stage.run("WAIT FOR PIPE q CAUGHT UP TIMEOUT '55s'").await?;
    assert_eq!(stage.ask("SELECT count(*) FROM t").await?, 2 * BACKLOG);
    Ok(())
}
