//! What is in a log: marks of transactions, holes, records that cannot be decoded.

use crate::Done;
use tidemill_chaos_tests::script::Script;
use tidemill_chaos_tests::stage::{Stage, TOPIC};

pub async fn transactions_leave_gaps_and_no_lag(stage: &mut Stage) -> Done {
    stage.topic(1, &[])?;
    stage.pipe("").await?;
    let mut source = Script::transactional(&stage.world.brokers, TOPIC, "tx")?;
    source.begin()?;
    source.send_ids(0, 0..100)?;
    source.commit()?;
    source.begin()?;
    source.send_ids(0, 100..150)?;
    source.abort()?;
    stage.disturb().await?;
    source.begin()?;
    source.send_ids(0, 150..250)?;
    source.commit()?;
    stage.caught_up().await?;
    assert_eq!(stage.ask("SELECT count(*) FROM t").await?, 200);
    // A transaction that stays open holds back what is behind it, and says so.
    source.begin()?;
    source.write_ids(0, 1000..1010)?;
    let held = "SELECT count(*) FROM system.partitions WHERE waiting_for LIKE 'a transaction at the source%'";
    stage.wait(held, 1).await?;
    assert_eq!(
        stage.ask("SELECT count(*) FROM t").await?,
        200,
        "uncommitted records are seen"
    );
    source.commit()?;
    // A tail of nothing but marks and aborted records is no lag.
    source.begin()?;
    source.send_ids(0, 2000..2005)?;
    source.abort()?;
    stage.caught_up().await?;
    stage.wait("SELECT sum(lag) FROM system.partitions", 0).await?;
    assert_eq!(
        stage.ask("SELECT sum(id) FROM t").await?,
        (0..100).sum::<i64>() + (150..250).sum::<i64>() + (1000..1010).sum::<i64>()
    );
    let ends = "SELECT coalesce(max(\"end\") - max(committed), -1) FROM system.partitions";
    stage.wait(ends, 0).await?;
    assert_eq!(stage.ask("SELECT sum(delivered) FROM system.ledger").await?, 210);
    assert_eq!(
        stage.ask("SELECT sum(absent) FROM system.ledger").await?,
        55 + 5,
        "aborted records and five marks"
    );
    assert!(
        stage
            .ask("SELECT count(*) FROM system.events WHERE kind = 'absent'")
            .await?
            >= 1,
        "no alarm"
    );
    stage.run("ALTER PIPE p SET (gaps = 'expect')").await
}

pub async fn a_compacted_topic_is_read_to_its_end(stage: &mut Stage) -> Done {
    let config = [
        "cleanup.policy=compact",
        "min.cleanable.dirty.ratio=0.01",
        "segment.ms=1000",
        "min.compaction.lag.ms=0",
        "delete.retention.ms=600000",
    ];
    stage.topic(1, &config)?;
    let mut source = stage.source()?;
    for round in 0..20_u64 {
        for key in 0..50_u64 {
            let value = format!(r#"{{"id": {}}}"#, round * 50 + key);
            source.send(0, Some(&format!("k{key}")), Some(&value))?;
        }
        source.flush()?;
    }
    // A segment is compacted once it is not the last one.
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    source.send(0, Some("k0"), None)?;
    source.flush()?;
    let first = async || {
        let said = stage
            .world
            .kafka(&["consume", "--topic", TOPIC, "--from-beginning", "--timeout-ms", "2000"]);
        Ok(said.unwrap_or_default().lines().count() < 500)
    };
    stage
        .world
        .wait_for(
            "the log to be compacted",
            std::time::Duration::from_secs(60),
            async |_| first().await,
        )
        .await?;
    stage.pipe(", gaps = 'expect'").await?;
    stage.disturb().await?;
    stage.caught_up().await?;
    // What was compacted away is absent, what is left is there; the newest of every key is.
    let newest = stage.ask("SELECT count(*) FROM t WHERE id >= 950").await?;
    assert_eq!(newest, 50, "the newest values");
    stage
        .wait(
            "SELECT coalesce(max(\"end\") - max(committed), -1) FROM system.partitions",
            0,
        )
        .await?;
    assert_eq!(stage.ask("SELECT sum(passed) FROM system.ledger").await?, 1001);
    let absent = stage.ask("SELECT sum(absent) FROM system.ledger").await?;
    assert!(absent > 0, "nothing was compacted");
    Ok(())
}

pub async fn bad_records_halt_when_asked_and_are_replayed_once(stage: &mut Stage) -> Done {
    stage.topic(1, &[])?;
    stage.pipe(", on_error = 'halt'").await?;
    let mut source = stage.source()?;
    source.send_ids(0, 0..10)?;
    source.send(0, None, Some(r#"{"id": 10} {"id": 11}"#))?;
    source.send(0, None, Some("not JSON"))?;
    source.write_ids(0, 12..20)?;
    stage.stopped("bad_record", 1).await?;
    stage.wait("SELECT count(*) FROM t", 10).await?;
    stage.run("ALTER PIPE p REPAIR").await?;
    stage
        .wait("SELECT count(*) FROM system.events WHERE kind = 'bad_record'", 2)
        .await?;
    stage.disturb().await?;
    stage.run("ALTER PIPE p SET (on_error = 'reject')").await?;
    stage.run("ALTER PIPE p REPAIR").await?;
    stage.caught_up().await?;
    assert_eq!(stage.ask("SELECT count(*) FROM t").await?, 18);
    stage.wait("SELECT count(*) FROM system.rejected", 2).await?;
    // The fix: such records hold several rows. What cannot be mended stays where it is.
    stage.run("ALTER PIPE p SET (records = 'many')").await?;
    for _ in 0..2 {
        stage.run("REPLAY REJECTED p WHERE \"offset\" = 10").await?;
    }
    assert_eq!(stage.ask("SELECT count(*) FROM t").await?, 20);
    assert_eq!(stage.ask("SELECT sum(id) FROM t").await?, (0..20).sum::<i64>());
    assert_eq!(stage.ask("SELECT count(*) FROM system.rejected").await?, 1);
    assert_eq!(stage.ask("SELECT sum(rejected) FROM system.ledger").await?, 1);
    assert_eq!(
        stage
            .ask("SELECT count(*) FROM system.events WHERE kind = 'replay'")
            .await?,
        1
    );
    // One record has two rows.
    stage.several_histories = true;
    Ok(())
}

pub async fn many_bad_records_block_nothing(stage: &mut Stage) -> Done {
    const BAD: u64 = 65_536;
    let mut source = stage.begin(1).await?;
    for n in 0..BAD {
        source.send(0, None, Some(&format!("bad {n}")))?;
        if n == BAD / 2 {
            stage.disturb().await?;
        }
    }
    source.write_ids(0, 1..=3)?;
    stage.caught_up().await?;
    assert_eq!(stage.ask("SELECT sum(id) FROM t").await?, 6);
    stage.wait("SELECT count(*) FROM system.rejected", BAD as i64).await?;
    assert_eq!(stage.ask("SELECT sum(rejected) FROM system.ledger").await?, BAD as i64);
    // Too many of the last ones stop the partition, when that is wanted: at the next record that is read by that rule.
    stage.run("ALTER PIPE p SET (max_rejected_ratio = 0.5)").await?;
    let stopped = "SELECT count(*) FROM system.partitions WHERE stopped = 'too_many_rejected'";
    for _ in 0..100 {
        source.write_ids(0, 0..=0)?;
        if stage.ask(stopped).await? == 1 {
            break;
        }
    }
    stage.wait(stopped, 1).await?;
    stage.run("ALTER PIPE p SET (max_rejected_ratio = 'none')").await?;
    stage.run("ALTER PIPE p REPAIR").await?;
    stage.caught_up().await?;
    assert_eq!(stage.ask("SELECT sum(id) FROM t").await?, 6);
    Ok(())
}

/// Partitions without records hold nothing up: not the commits of the others, not the statement that waits for them, and nobody
/// takes their task for stuck.
pub async fn idle_partitions_hold_nothing_up(stage: &mut Stage) -> Done {
    let mut source = stage.begin(12).await?;
    source.write_ids(0, 0..10)?;
    stage.caught_up().await?;
    let terms = "SELECT sum(epoch) FROM system.shards";
    let before = stage.ask(terms).await?;
    // Longer than a task may take that has something to read.
    for id in 10..30 {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        source.write_ids(0, id..=id)?;
        stage
            .run(&format!("WAIT FOR OFFSET (0 = {id}) OF PIPE p TIMEOUT '10s'"))
            .await?;
    }
    assert_eq!(stage.ask(terms).await?, before, "a shard has moved");
    stage.wait("SELECT sum(committed) FROM system.partitions", 30).await?;
    stage.disturb().await?;
    // Somebody wakes up at last, in each shard.
    source.write_ids(7, 30..40)?;
    source.write_ids(10, 40..50)?;
    stage.caught_up().await?;
    assert_eq!(stage.ask("SELECT sum(id) FROM t").await?, (0..50).sum::<i64>());
    assert_eq!(stage.ask("SELECT count(DISTINCT _partition) FROM t").await?, 3);
    stage.wait("SELECT sum(lag) FROM system.partitions", 0).await
}

/// A partition that gets nearly everything does not starve those that are read beside it, in the same shard.
pub async fn a_hot_partition_starves_nobody(stage: &mut Stage) -> Done {
    const HOT: u64 = 600_000;
    let mut source = stage.begin(4).await?;
    stage.run("ALTER PIPE p PAUSE").await?;
    // The producer takes so many at a time.
    for from in (0..HOT).step_by(50_000) {
        source.write_ids(0, from..from + 50_000)?;
    }
    source.write_ids(2, HOT..HOT + 100)?;
    stage.run("ALTER PIPE p RESUME").await?;
    stage.disturb().await?;
    let seen = "SELECT CASE WHEN count(*) FILTER (WHERE _partition = 2) = 100 \
                THEN count(*) FILTER (WHERE _partition = 0) ELSE -1 END FROM t";
    let began = std::time::Instant::now();
    let hot = loop {
        assert!(began.elapsed().as_secs() < 60, "the others are not read at all");
        // Without an answer, somebody has just died.
        match stage.ask(seen).await {
            Ok(-1) | Err(_) => {}
            Ok(hot) => break hot,
        }
    };
    assert!(hot < HOT as i64, "the others waited until the hot partition was read");
    stage.caught_up().await?;
    let all = (0..HOT as i64 + 100).sum::<i64>();
    assert_eq!(stage.ask("SELECT sum(id) FROM t").await?, all);
    Ok(())
}
