//! Queries over parts and memory together.

use super::world::*;
use crate::{Answer, ErrorKind};
use arrow::array::RecordBatch;
use futures::{StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tidemill_core::catalog::CatalogQuestions;
use tidemill_core::{Offset, Version};
use tokio::runtime::Builder;

#[tokio::test(flavor = "multi_thread")]
async fn rows_in_parts_and_in_memory_are_seen_once() {
    let (world, engine) = World::with_events().await;
    assert_eq!(query(&engine, "SELECT count(*) FROM events").await, ["0"]);
    for partition in 0..4 {
        world.consume(partition, 100);
    }
    assert_eq!(query(&engine, "SELECT count(*) FROM events").await, ["360"]);
    world.flush(0).await;
    assert_eq!(query(&engine, "SELECT count(*) FROM events").await, ["360"]);
    assert_eq!(
        lines(&query_with(&engine, "SELECT count(*) FROM events", "committed").await),
        ["180"]
    );
    world.consume(0, 50);
    world.flush(1).await;
    let sql = "SELECT _partition, count(*), count(DISTINCT _offset), sum(id), count(name) FROM events \
               GROUP BY _partition ORDER BY _partition";
    let expected = |partition: i64, n: i64| {
        let offsets = || (0..n).filter(|o| o % 10 != 9);
        let names = offsets().filter(|o| o % 3 != 0).count();
        let sum: i64 = offsets().map(|o| partition * 1_000_000 + o).sum();
        format!("{partition}|{0}|{0}|{sum}|{names}", offsets().count())
    };
    let all = [expected(0, 150), expected(1, 100), expected(2, 100), expected(3, 100)];
    assert_eq!(query(&engine, sql).await, all);
    assert_eq!(
        query(&engine, "SELECT count(*), count(name) FROM events").await,
        ["405|270"]
    );
    assert_eq!(
        query(
            &engine,
            "SELECT count(*) FROM events WHERE price < 5 AND _partition = 0"
        )
        .await,
        ["9"]
    );
    assert_eq!(
        query(&engine, "SELECT id FROM events ORDER BY id DESC LIMIT 2").await,
        ["3000098", "3000097"]
    );
    let joined = "SELECT count(*) FROM events a JOIN events b ON a.id = b.id";
    assert_eq!(query(&engine, joined).await, ["405"]);
}

#[tokio::test]
async fn a_query_that_gets_no_memory_is_refused_until_others_have_ended() {
    let (world, engine) = World::with_events().await;
    world.consume(0, 100);
    let run = || async { engine.execute("SELECT id FROM events", &BTreeMap::new()).await };
    let mut running = Vec::new();
    let refused = loop {
        match run().await {
            Ok(answer) => running.push(answer),
            Err(error) => break error,
        }
        assert!(running.len() < 10, "nothing is refused");
    };
    assert_eq!((running.len(), refused.kind), (3, ErrorKind::Unavailable), "{refused}");
    let message = &refused.message;
    assert!(
        message.contains("needs more memory than queries have here"),
        "{message}"
    );
    // Queries give back what they have when their rows are dropped and their operators have ended.
    let before = engine.memory_used();
    running.pop();
    until(|| engine.memory_used() < before).await;
    running.push(run().await.unwrap());
    drop(running);
    until(|| engine.memory_used() == 0).await;
}

/// Waits until it is so.
async fn until(is_so: impl Fn() -> bool) {
    let waits = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waits).await.unwrap();
}

#[test]
fn a_query_begins_while_operators_hold_all_their_threads() {
    let threads = |count| {
        Builder::new_multi_thread()
            .worker_threads(count)
            .enable_all()
            .build()
            .unwrap()
    };
    let (operators, callers) = (threads(1), threads(1));
    let (world, engine) = operators.block_on(World::with_events());
    world.consume(0, 20);
    let (let_go, held) = std::sync::mpsc::channel::<()>();
    operators.spawn(async move { held.recv() });
    callers.block_on(async {
        let sql = "SELECT id FROM events";
        let Ok(Answer::Rows { mut stream, .. }) = engine.execute(sql, &BTreeMap::new()).await else {
            panic!("there are rows")
        };
        let waited = tokio::time::timeout(Duration::from_millis(100), stream.next()).await;
        assert!(waited.is_err(), "operators run elsewhere");
        let_go.send(()).unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap().num_rows(), 18);
    });
}

#[tokio::test]
async fn every_column_is_shown_with_those_of_the_source() {
    let (world, engine) = World::with_events().await;
    world.consume(2, 2);
    let sql = "SELECT * FROM events ORDER BY id";
    let rows = query(&engine, sql).await;
    assert_eq!(
        rows[1],
        "2000001|name1|0.5|1970-01-01T00:00:01|clicks|2|1|1970-01-01T00:00:00.000001|"
    );
    world.flush(0).await;
    assert_eq!(query(&engine, sql).await, rows);
}

#[tokio::test]
async fn whole_parts_are_skipped() {
    let (world, engine) = World::with_events().await;
    for _ in 0..5 {
        world.consume(0, 100);
        world.flush(0).await;
    }
    let parts = world.snapshot().parts_of(world.table().id).unwrap();
    assert_eq!(parts.len(), 5);
    // Only the third part stays: whoever opens another one fails.
    for part in parts
        .iter()
        .filter(|p| !p.file.ranges.iter().any(|r| format!("{:?}", r.min) == "Some(Int(200))"))
    {
        tidemill_storage::store::PartStore::delete(&*world.store, &part.file.path)
            .await
            .unwrap();
    }
    let one = "SELECT count(price) FROM events WHERE id BETWEEN 210 AND 240";
    assert_eq!(query(&engine, one).await, ["28"]);
    let none = "SELECT count(price) FROM events WHERE id > 1000000";
    assert_eq!(query(&engine, none).await, ["0"]);
    let aliased = "SELECT count(e.price) FROM events e WHERE e.id = 205 OR e.id = 206";
    assert_eq!(query(&engine, aliased).await, ["2"]);
    let by_time = "SELECT count(price) FROM events WHERE at >= '1970-01-01T00:03:20' AND at < '1970-01-01T00:05:00'";
    assert_eq!(query(&engine, by_time).await, ["90"]);
    // Counting needs no file at all.
    assert_eq!(query(&engine, "SELECT count(*) FROM events").await, ["450"]);

    let error = error_of(&engine, "SELECT sum(price) FROM events").await;
    assert!(
        error.message.contains("is committed but missing from the part store"),
        "{error}"
    );
    assert_eq!(error.kind, ErrorKind::Internal);
}

#[tokio::test]
async fn a_shard_that_cannot_be_pinned_is_named() {
    let (world, engine) = World::with_events().await;
    world.consume(0, 10);
    world.flush(0).await;
    world.unreachable.store(true, Ordering::SeqCst);
    let started = Instant::now();
    let error = error_of(&engine, "SELECT * FROM events").await;
    assert!(started.elapsed() >= Duration::from_millis(50) && started.elapsed() < Duration::from_secs(3));
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(
        error
            .message
            .starts_with("shard 0 of table 'events' (leader: node 'n1') cannot be read within 300ms")
    );
    assert!(error.message.contains("connection refused"), "{error}");
    assert!(error.message.contains("SET tidemill.consistency = 'committed'"));
    assert_eq!(
        lines(&query_with(&engine, "SELECT count(*) FROM events", "committed").await),
        ["9"]
    );
    // Without a pipe that runs there is nothing in memory, and no leader is needed.
    done(&engine, "ALTER PIPE p PAUSE").await;
    assert_eq!(query(&engine, "SELECT count(*) FROM events").await, ["9"]);
}

#[tokio::test]
async fn rows_that_a_reset_deleted_are_seen_no_more_and_those_read_again_are() {
    let (world, engine) = World::with_events().await;
    for partition in 0..4 {
        world.consume(partition, 100);
    }
    world.flush(0).await;
    world.flush(1).await;
    world.consume(0, 100);
    world.flush(0).await;
    // Not committed when it goes back: these leave with their incarnation.
    world.consume(0, 7);
    let rows = async |of: &str| query(&engine, &format!("SELECT count(*) FROM {of}")).await;
    let back = |to: u64| {
        let snapshot = world.snapshot();
        let pipe = snapshot.pipe_named("p").unwrap().unwrap();
        let p = snapshot.partitions_of(pipe.id).unwrap().remove(0);
        world.apply(read_anew(&pipe, &p, Offset(to))).1.unwrap();
    };
    back(60);
    assert_eq!(rows("events").await, [(4 * 90 - 36).to_string()]);
    assert_eq!(rows("events WHERE _partition = 0").await, ["54"]);
    assert_eq!(rows("events WHERE id < 55").await, ["50"]);
    assert_eq!(
        query(&engine, "SELECT max(_offset) FROM events WHERE _partition = 0").await,
        ["58"]
    );
    assert_eq!(
        query(
            &engine,
            "SELECT id FROM events WHERE _partition = 0 ORDER BY id DESC LIMIT 1"
        )
        .await,
        ["58"]
    );
    assert_eq!(
        query(
            &engine,
            "SELECT id FROM events WHERE _partition = 0 AND id > 58 LIMIT 1"
        )
        .await,
        [""; 0]
    );
    assert_eq!(rows("system.rejected").await, [(4 * 10 - 4).to_string()]);
    assert_eq!(
        rows("system.rejected WHERE pipe = 'p' AND \"partition\" = 0").await,
        ["6"]
    );
    let deleted = "SELECT \"table\", topic, \"partition\", from_offset FROM system.deleted_rows";
    assert_eq!(query(&engine, deleted).await, ["events|clicks|0|60"]);
    // What is read now counts, in memory and in parts, and further back in turn takes it away.
    world.open_partitions();
    world.consume(0, 50);
    assert_eq!(rows("events WHERE _partition = 0").await, ["99"]);
    world.flush(0).await;
    assert_eq!(rows("events WHERE _partition = 0").await, ["99"]);
    assert_eq!(rows("system.rejected WHERE \"partition\" = 0").await, ["11"]);
    back(100);
    assert_eq!(rows("events WHERE _partition = 0").await, ["90"]);
    back(0);
    assert_eq!(rows("events").await, ["270"]);
    assert_eq!(rows("events WHERE _partition = 0").await, ["0"]);
    // The files are what they were, and so is what was counted.
    assert_eq!(
        query(&engine, "SELECT count(*) FROM system.check WHERE NOT ok").await,
        ["0"]
    );
}

#[tokio::test]
async fn rows_of_a_paused_pipe_leave_with_their_incarnation() {
    let (world, engine) = World::with_events().await;
    world.consume(0, 10);
    world.flush(0).await;
    world.consume(0, 10);
    assert_eq!(query(&engine, "SELECT count(*) FROM events").await, ["18"]);
    done(&engine, "ALTER PIPE p PAUSE").await;
    assert_eq!(query(&engine, "SELECT count(*) FROM events").await, ["9"]);
    done(&engine, "ALTER PIPE p RESUME").await;
    assert_eq!(query(&engine, "SELECT count(*) FROM events").await, ["9"]);
    world.open_partitions();
    world.consume(0, 10);
    assert_eq!(query(&engine, "SELECT count(*) FROM events").await, ["18"]);
}

#[tokio::test]
async fn a_version_is_held_until_the_stream_is_dropped() {
    let (world, engine) = World::with_events().await;
    world.consume(0, 10);
    assert_eq!(engine.oldest_pinned_version(), None);
    let answer = engine.execute("SELECT * FROM events", &BTreeMap::new()).await.unwrap();
    let at = world.snapshot().1;
    world.flush(0).await;
    assert_eq!(engine.oldest_pinned_version(), Some(at));
    assert_ne!(world.snapshot().1, Version(at.0));
    let crate::Answer::Rows { stream, .. } = answer else {
        panic!("no rows")
    };
    let rows: Vec<RecordBatch> = stream.try_collect().await.unwrap();
    assert_eq!(rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 9);
    assert_eq!(engine.oldest_pinned_version(), None);
    error_of(&engine, "SELECT nope FROM events").await;
    assert_eq!(engine.oldest_pinned_version(), None);
}

#[tokio::test]
async fn queries_without_tables_and_explanations_work() {
    let (world, engine) = World::with_events().await;
    world.consume(0, 10);
    world.flush(0).await;
    world.consume(0, 10);
    assert_eq!(query(&engine, "SELECT 1 + 1").await, ["2"]);
    assert_eq!(query(&engine, "VALUES (1, 'a')").await, ["1|a"]);
    assert_eq!(
        query(&engine, "WITH e AS (SELECT * FROM events) SELECT count(*) FROM e").await,
        ["18"]
    );
    assert_eq!(query(&engine, "SELECT count(*) FROM public.events").await, ["18"]);
    assert_eq!(
        query(&engine, "SELECT count(*) FROM generate_series(1, 5)").await,
        ["5"]
    );
    let plan = query(&engine, "EXPLAIN SELECT * FROM events WHERE id = 1")
        .await
        .join("\n");
    assert!(plan.contains("DataSourceExec") && plan.contains("UnionExec"), "{plan}");
    let plan = query(&engine, "EXPLAIN ANALYZE SELECT * FROM events").await.join("\n");
    assert!(plan.contains("output_rows"), "{plan}");
}

#[tokio::test]
async fn a_query_beyond_the_memory_limit_fails_clearly() {
    let (_world, engine) = World::with_events().await;
    let sql = "SELECT value, -value FROM generate_series(1, 4000000) ORDER BY -value";
    let error = error_of(&engine, sql).await;
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(error.message.contains("more memory than queries have here"), "{error}");
}

/// Run with `--nocapture` to see the numbers.
#[tokio::test(flavor = "multi_thread")]
async fn a_trivial_query_costs_little() {
    let (world, engine) = World::with_events().await;
    for partition in 0..4 {
        world.consume(partition, 100);
    }
    world.flush(0).await;
    for sql in [
        "SELECT 1",
        "SELECT count(*) FROM events",
        "SELECT id FROM events WHERE id = 5",
        "SHOW TABLES",
    ] {
        query(&engine, sql).await;
        let started = Instant::now();
        for _ in 0..50 {
            query(&engine, sql).await;
        }
        println!("{:>8.3} ms  {sql}", started.elapsed().as_secs_f64() * 1000.0 / 50.0);
    }
}
