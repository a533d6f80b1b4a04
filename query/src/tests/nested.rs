//! Columns of structs, arrays and maps: declared, in memory, in parts, and in queries.

use super::world::*;
use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::json::ReaderBuilder;
use std::sync::Arc;
use tidemill_core::{Offset, ShardId, Span};
use tidemill_storage::memtable::Chunk;
use tidemill_storage::{arrow_schema, declared_schema};

const CREATE: &str = "CREATE TABLE events (
  \"user\" STRUCT<name VARCHAR, \"home town\" STRUCT<zip INT, at TIMESTAMP>>,
  id BIGINT NOT NULL DEFAULT -1,
  tags ARRAY<VARCHAR>,
  prices MAP<VARCHAR, DECIMAL(9, 2)>,
  seen ARRAY<STRUCT<at DATE, n SMALLINT>>,
  note VARCHAR DEFAULT 'it''s'
)
ORDER BY (id)";

async fn nested() -> (Arc<World>, crate::Engine) {
    let (world, engine) = World::new();
    done(&engine, &format!("{CREATE} WITH (shards = 2)")).await;
    done(
        &engine,
        "CREATE PIPE p INTO events FROM KAFKA (brokers = 'h:1', topic = 'clicks', records = 'many',
         header.\"trace-id\" = 'note', timestamp_unit.\"user\" = 's')",
    )
    .await;
    world.lead_all();
    (world, engine)
}

/// Rows `id` 0 to `count` of partition 0, in falling order, behind those that are there.
fn consume(world: &World, count: u64) {
    let table = world.table();
    let shard = ShardId {
        table: table.id,
        index: 0,
    };
    let json: String = (0..count)
        .rev()
        .map(|i| match i % 3 {
            0 => format!(
                r#"{{"id":{i},"user":{{"name":"n{i}","home town":{{"zip":{i}}}}},"tags":["a","b{i}"],"prices":{{"x":{i}.5,"y":null}},"seen":[{{"n":{i}}},null]}}"#
            ),
            1 => format!(r#"{{"id":{i},"user":{{"home town":null}},"tags":[],"prices":{{}},"seen":[]}}"#),
            _ => format!(r#"{{"id":{i}}}"#),
        })
        .collect();
    let mut decoder = ReaderBuilder::new(declared_schema(&table)).build_decoder().unwrap();
    decoder.decode(json.as_bytes()).unwrap();
    let declared = decoder.flush().unwrap().unwrap();
    let memtables = world.memtables.lock().unwrap();
    let (key, start) = memtables[&shard]
        .positions()
        .into_iter()
        .find(|(key, _)| key.partition.0 == 0)
        .unwrap();
    let n = count as usize;
    let mut columns = declared.columns().to_vec();
    let metadata: [ArrayRef; 5] = [
        Arc::new(StringArray::new_repeated("clicks", n)),
        Arc::new(Int32Array::from_value(0, n)),
        Arc::new(Int64Array::from_iter_values(
            (start.0..start.0 + count).map(|o| o as i64),
        )),
        Arc::new(TimestampMicrosecondArray::new_null(n)),
        Arc::new(StringArray::new_null(n)),
    ];
    columns.extend(metadata);
    let rows = RecordBatch::try_new(arrow_schema(&table), columns).unwrap();
    let span = Span {
        key,
        start,
        end: Offset(start.0 + count),
        counts: tidemill_core::Counts::stored(count),
        topic: None,
        source_epoch: None,
    };
    memtables[&shard]
        .append(Chunk {
            span,
            rows: Some(rows),
            rejects: None,
        })
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nested_columns_are_queried_in_memory_and_in_parts() {
    let (world, engine) = nested().await;
    let questions = [
        "SELECT id, \"user\", tags, prices, seen FROM events ORDER BY id LIMIT 4",
        "SELECT \"user\"['name'], \"user\"['home town']['zip'] FROM events WHERE id < 4 ORDER BY id",
        "SELECT tags[2], array_length(tags), seen[1]['n'] FROM events WHERE id < 4 ORDER BY id",
        "SELECT map_extract(prices, 'x')[1], map_keys(prices) FROM events WHERE id < 4 ORDER BY id",
        "SELECT count(*), count(\"user\"), count(tags), count(prices), count(seen) FROM events",
        "SELECT sum(\"user\"['home town']['zip']) FROM events WHERE \"user\"['name'] IS NOT NULL",
        "SELECT tag, count(*) FROM (SELECT unnest(tags) AS tag FROM events) WHERE tag = 'a' GROUP BY tag",
        "SELECT count(*) FROM events WHERE array_has(tags, 'b3')",
        "SELECT count(*) FROM events WHERE tags IS NULL",
        "SELECT DISTINCT tags FROM events WHERE id IN (1, 4)",
    ];
    let answers = |_: ()| async {
        let mut answers = Vec::new();
        for sql in questions {
            answers.push(query(&engine, sql).await);
        }
        answers
    };
    for _ in 0..20 {
        consume(&world, 15);
    }
    let in_memory = answers(()).await;
    assert_eq!(
        in_memory[0][0],
        "0|{name: n0, home town: {zip: 0, at: }}|[a, b0]|{x: 0.50, y: }|[{at: , n: 0}, ]"
    );
    assert_eq!(
        query(&engine, "SELECT id, tags FROM events WHERE id = 2 LIMIT 1").await,
        ["2|"]
    );
    assert_eq!(in_memory[4], ["300|200|200|200|200"]);
    assert_eq!(in_memory[7], ["20"]);
    assert_eq!(in_memory[8], ["100"]);
    world.flush(0).await;
    assert_eq!(answers(()).await, in_memory);
    // Sorted by `id`, whose place in the file is behind the leaves of `user`.
    let part = world.snapshot();
    let part = &tidemill_core::catalog::CatalogQuestions::parts_of(&part, world.table().id).unwrap()[0];
    let ranges: Vec<_> = part.file.ranges.iter().map(|range| range.column.as_str()).collect();
    assert_eq!(ranges, ["id", "_partition", "_offset", "_timestamp"]);
    let range = &part.file.ranges[0];
    assert_eq!(format!("{:?} {:?}", range.min, range.max), "Some(Int(0)) Some(Int(14))");
    assert_eq!(query(&engine, "SELECT count(*) FROM events WHERE id > 14").await, ["0"]);
    consume(&world, 3);
    assert_eq!(query(&engine, "SELECT count(tags) FROM events").await, ["202"]);
}

#[tokio::test]
async fn definitions_are_shown_as_they_can_be_given_again() {
    let (_world, engine) = nested().await;
    let shown = query_with(&engine, "SHOW CREATE TABLE events", "fresh").await;
    let text = arrow::array::AsArray::as_string::<i32>(shown[0].column(1))
        .value(0)
        .to_owned();
    assert!(text.starts_with(&CREATE.replace("\"user\"", "user")), "{text}");
    let columns = query(&engine, "DESCRIBE events").await;
    assert_eq!(columns[1], "id|BIGINT|false|-1|sort key 1");
    assert_eq!(columns[2], "tags|ARRAY<VARCHAR>|true||");
    let pipe = query(&engine, "SHOW CREATE PIPE p").await.join("\n");
    for option in [
        "records = 'many'",
        "header.\"trace-id\" = 'note'",
        "timestamp_unit.user = 's'",
    ] {
        assert!(pipe.contains(option), "{pipe}");
    }
    let options = query(&engine, "SELECT format, options FROM system.pipes").await;
    assert_eq!(
        options,
        ["json|records = 'many', timestamp_unit.user = 's', header.\"trace-id\" = 'note'"]
    );
    done(&engine, "DROP PIPE p").await;
    done(&engine, "DROP TABLE events").await;
    done(&engine, &text).await;
}

#[tokio::test]
async fn options_that_the_table_does_not_fit_are_refused() {
    let (_world, engine) = World::with_events().await;
    let pipe =
        |options: &str| format!("CREATE PIPE q INTO events FROM KAFKA (brokers = 'h:1', topic = 'clicks', {options})");
    for (options, says) in [
        (
            "on_unknown_field = 'capture'",
            "has no column '_extra'; declare it as VARCHAR",
        ),
        ("capture_column = 'name'", "needs on_unknown_field = 'capture'"),
        (
            "key_column = 'nosuch'",
            "key_column: table 'events' has no column 'nosuch'",
        ),
        ("timestamp_unit.id = 's'", "column 'id' is BIGINT, not TIMESTAMP"),
    ] {
        let error = error_of(&engine, &pipe(options)).await;
        assert!(error.message.contains(says), "{error}");
    }
    done(&engine, &pipe("on_unknown_field = 'capture', capture_column = 'name'")).await;
}
