//! Statements that change the catalog.

use super::world::*;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tidemill_core::catalog::{CatalogQuestions, PipeState, WalMode};

#[tokio::test]
async fn tables_and_pipes_come_and_go() {
    let (world, engine) = World::new();
    let create = "CREATE TABLE IF NOT EXISTS t (id INT NOT NULL, \"odd name\" DECIMAL(9, 2), d DATE)
                  ORDER BY id PARTITION BY date_trunc('month', d) WITH (shards = 3)";
    assert_eq!(done(&engine, create).await, "table 't' created with 3 shards");
    assert_eq!(
        done(&engine, create).await,
        "table 't' exists already; nothing was changed"
    );
    let pipe =
        "CREATE PIPE IF NOT EXISTS p INTO t FROM KAFKA (brokers = 'h:1', topic = 'x', client.sasl.password = 'a')";
    let created = "pipe 'p' created: 4 partitions of topic 'x' into table 't', from their oldest records on";
    assert_eq!(done(&engine, pipe).await, created);
    assert_eq!(
        done(&engine, pipe).await,
        "pipe 'p' exists already; nothing was changed"
    );
    // No task has anything to say: nothing is left to be committed.
    *world.progress.lock().unwrap() = Some(vec![]);
    let paused = "pipe 'p' paused; everything that it has read is committed";
    assert_eq!(done(&engine, "ALTER PIPE p PAUSE").await, paused);
    assert_eq!(done(&engine, "ALTER PIPE p PAUSE").await, "pipe 'p' was paused already");
    assert_eq!(done(&engine, "ALTER PIPE p RESUME").await, "pipe 'p' resumed");
    assert_eq!(
        world
            .snapshot()
            .pipe_named("p")
            .unwrap()
            .unwrap()
            .source
            .kafka()
            .unwrap()
            .client["sasl.password"],
        "a"
    );

    let shown = query_with(&engine, "SHOW CREATE TABLE t", "fresh").await;
    let text = shown[0].column_by_name("statement").unwrap();
    let text = arrow::array::AsArray::as_string::<i32>(text).value(0).to_owned();
    assert_eq!(
        text,
        "CREATE TABLE t (\n  id INT NOT NULL,\n  \"odd name\" DECIMAL(9, 2),\n  d DATE\n)\nORDER BY (id)\n\
         PARTITION BY date_trunc('month', d)\n\
         WITH (shards = 3, flush_rows = 1000000, flush_bytes = 134217728, flush_age_ms = 10000, flush_acks_ms = 5, \
         wal = 'off')"
    );
    let shown = query(&engine, "SHOW CREATE PIPE p").await.join("\n");
    assert!(shown.contains("client.sasl.password = '…'"), "{shown}");

    assert_eq!(
        done(&engine, "DROP PIPE p").await,
        "pipe 'p' dropped; the rows that it delivered stay"
    );
    assert_eq!(done(&engine, "DROP TABLE t").await, "table 't' dropped");
    assert_eq!(
        done(&engine, "DROP TABLE IF EXISTS t").await,
        "there is no table 't'; nothing was dropped"
    );
    // What was shown makes the same table again.
    assert_eq!(done(&engine, &text).await, "table 't' created with 3 shards");
}

#[tokio::test]
async fn a_pipe_that_reads_on_until_it_settles_is_skipped_to_what_is_latest_then() {
    let (world, engine) = World::with_events().await;
    world.source_end.store(10, Ordering::SeqCst);
    let skip = tokio::spawn(async move { done(&engine, "ALTER PIPE p SKIP TO LATEST PARTITION (0)").await });
    let pipe = || world.snapshot().pipe_named("p").unwrap().unwrap();
    while pipe().state != PipeState::Pausing {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Records have come and been read since the statement began.
    world.source_end.store(25, Ordering::SeqCst);
    world.consume(0, 20);
    world.flush(0).await;
    *world.progress.lock().unwrap() = Some(vec![]);
    assert_eq!(
        skip.await.unwrap(),
        "pipe 'p': 1 partitions go on elsewhere, 5 offsets are skipped; ALTER PIPE p BACKFILL reads them later"
    );
    assert_eq!(pipe().state, PipeState::Running);
}

#[tokio::test]
async fn a_table_is_logged_or_not() {
    let (world, engine) = World::new();
    done(&engine, "CREATE TABLE t (id INT) WITH (wal = 'local')").await;
    let wal = || world.snapshot().table_named("t").unwrap().unwrap().settings.wal;
    assert_eq!(wal(), WalMode::Local);
    assert_eq!(
        done(&engine, "ALTER TABLE t SET (flush_rows = 7, wal = 'LOCAL')").await,
        "table 't' changed; its tasks go by it from now on"
    );
    assert_eq!(wal(), WalMode::Local);
    done(&engine, "ALTER TABLE t SET (wal = off)").await;
    assert_eq!(wal(), WalMode::Off);
    assert_eq!(
        done(&engine, "ALTER TABLE t SET (wal = 'off')").await,
        "table 't' has these settings already"
    );
    let refused = error_of(&engine, "ALTER TABLE t SET (wal = 'yes')").await;
    assert_eq!(refused.message, "'yes' is not a value of wal: 'off' or 'local'");
}

#[tokio::test]
async fn settings_are_checked_and_kept_by_the_client() {
    let (_world, engine) = World::new();
    let message = done(&engine, "SET tidemill.consistency = committed").await;
    assert_eq!(
        message,
        "tidemill.consistency = 'committed' from now on in this session"
    );
    let shown = lines(&query_with(&engine, "SELECT name, value FROM system.settings", "committed").await);
    assert_eq!(shown, ["tidemill.consistency|committed"]);
}
