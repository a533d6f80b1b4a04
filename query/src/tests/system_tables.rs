//! The system tables.

use super::world::*;
use crate::{NodeProgress, PartitionProgress};
use std::collections::BTreeMap;
use tidemill_core::catalog::{CatalogQuestions, Shard};
use tidemill_core::command::AssignStandby;
use tidemill_core::view::CatalogRead;
use tidemill_core::{Command, NodeId, Offset, SpanKey};

#[tokio::test]
async fn the_catalog_is_shown_as_tables() {
    let (world, engine) = World::with_events().await;
    world.consume(0, 20);
    world.flush(0).await;
    world.consume(0, 5);
    // All of a query is of one version, and that grows.
    let version = world.snapshot().1;
    let cluster = "SELECT name, version, replicas FROM system.cluster";
    assert_eq!(query(&engine, cluster).await, [format!("test|{}|", version.0)]);
    let nodes = "SELECT name, state, api_address, shards, silent_ms FROM system.nodes ORDER BY id";
    assert_eq!(
        query(&engine, nodes).await,
        ["n1|Ready|h1:2|1|", "n2|Ready|h2:2|1|", "n3|Ready|h3:2|0|"]
    );
    let shards = "SELECT id, \"table\", shard, epoch, leader, may_lead FROM system.shards ORDER BY shard";
    assert_eq!(
        query(&engine, shards).await,
        ["1/0|events|0|1|n1|n1, n2, n3", "1/1|events|1|1|n2|n1, n2, n3"]
    );
    assert_eq!(query(&engine, "SHOW SHARDS FROM events").await.len(), 2);
    // Those of a warehouse are led by its nodes alone.
    let mut settings = world.snapshot().table_named("events").unwrap().unwrap().settings;
    settings.warehouse = Some("default".into());
    let alter = "ALTER TABLE events SET (warehouse = 'default')";
    engine.execute(alter, &BTreeMap::new()).await.unwrap();
    assert_eq!(
        world.snapshot().table_named("events").unwrap().unwrap().settings,
        settings
    );
    assert_eq!(
        query(&engine, "SELECT DISTINCT may_lead FROM system.shards").await,
        ["n1, n2, n3"]
    );
    let created = query(&engine, "SHOW CREATE TABLE events").await.concat();
    assert!(created.contains("warehouse = 'default')"), "{created}");
    let alter = "ALTER TABLE events SET (warehouse = '')";
    engine.execute(alter, &BTreeMap::new()).await.unwrap();
    let assignment = query(&engine, "EXPLAIN ASSIGNMENT events").await;
    assert!(assignment[1].starts_with("events|1|n2||1|"), "{assignment:?}");
    // The nodes of this world share one part store.
    assert_eq!(query(&engine, "SELECT * FROM system.replicas").await, [""; 0]);
    let tables = "SELECT name, columns, shards, order_by, pipes, parts, rows FROM system.tables";
    assert_eq!(query(&engine, tables).await, ["events|4|2|id|p|1|18"]);
    let pipes = "SELECT pipe, \"table\", source, topic, brokers, state, partitions FROM system.pipes";
    assert_eq!(query(&engine, pipes).await, ["p|events|kafka|clicks|h:1|running|4"]);
    let parts = "SELECT \"table\", shard, rows FROM system.parts";
    assert_eq!(query(&engine, parts).await, ["events|0|18"]);
    let rejected = "SELECT pipe, topic, \"partition\", \"offset\", error FROM system.rejected ORDER BY \"offset\"";
    assert_eq!(
        query(&engine, rejected).await,
        ["p|clicks|0|9|not JSON", "p|clicks|0|19|not JSON"]
    );
    assert_eq!(
        query(&engine, "SELECT * FROM system.rejected WHERE pipe = 'q'").await,
        [""; 0]
    );
    assert_eq!(
        query(&engine, "SELECT count(*) FROM system.rejected WHERE pipe = 'p'").await,
        ["2"]
    );
    assert_eq!(
        query(&engine, "SELECT pipe FROM system.rejected WHERE \"offset\" > 10").await,
        ["p"]
    );
    let columns = query(&engine, "DESCRIBE events").await;
    assert_eq!(columns[0], "id|BIGINT|false||sort key 1");
    assert_eq!(columns[6], "_offset|BIGINT|false||from the source");
    for sql in [
        "SHOW TABLES",
        "SHOW PIPES",
        "SHOW NODES",
        "SHOW SETTINGS",
        "SHOW PARTITIONS",
        "SHOW SHARDS",
    ] {
        assert!(!query(&engine, sql).await.is_empty(), "{sql}");
    }
}

#[tokio::test]
async fn partitions_show_what_their_leaders_say() {
    let (world, engine) = World::with_events().await;
    world.consume(0, 20);
    world.flush(0).await;
    let pipe = world.snapshot().pipe_named("p").unwrap().unwrap().id;
    let said = |node: u64, position: u64| {
        let partitions = world.snapshot().partitions_of(pipe).unwrap();
        let of = |p: &tidemill_core::catalog::SourcePartition| PartitionProgress {
            key: SpanKey {
                pipe,
                partition: p.partition,
                incarnation: p.incarnation,
            },
            shard: p.shard,
            position: Offset(position),
            reading: true,
            record_bytes: Some(10.0),
            read_to_ms: None,
            end: (p.partition.0 == 0).then_some(Offset(100)),
            wait: None,
            waiting_for: String::new(),
        };
        NodeProgress {
            node: NodeId(node),
            silent_ms: 7,
            memtable_bytes: 1024,
            rows_per_second: 2.5,
            partitions: partitions.iter().map(of).collect(),
            standing_by: Vec::new(),
            freshness: Vec::new(),
        }
    };
    // Node 3 leads nothing any more: what it says of partitions does not count.
    *world.progress.lock().unwrap() = Some(vec![said(1, 25), said(2, 30), said(3, 99)]);
    let arriving = "SELECT arriving_bytes_per_second FROM system.partitions ORDER BY \"partition\"";
    assert_eq!(query(&engine, arriving).await[..2], ["2048.5", ""]);
    let sql = "SELECT \"partition\", shard, incarnation, start, committed, position, \"end\", lag, stored, rejected \
               FROM system.partitions ORDER BY \"partition\" LIMIT 2";
    assert_eq!(
        query(&engine, sql).await,
        ["0|0|1|0|20|25|100|75|18|2", "1|1|1|0|0|30|||0|0"]
    );
    let nodes = "SELECT name, rows_per_second, memtable_bytes, silent_ms FROM system.nodes ORDER BY id LIMIT 1";
    assert_eq!(query(&engine, nodes).await, ["n1|2.5|1024|7"]);
}

#[tokio::test]
async fn shards_show_who_stands_by_and_how_far_behind() {
    let (world, engine) = World::with_events().await;
    world.consume(0, 20);
    world.flush(0).await;
    for (index, node) in [(0, 2), (1, 3)] {
        let shard = world.snapshot().list::<Shard>(&[]).unwrap()[index].clone();
        let assign = AssignStandby {
            shard: shard.id,
            epoch: shard.epoch,
            node: Some(NodeId(node)),
        };
        world.apply(Command::AssignStandby(assign)).1.unwrap();
    }
    let sql = "SELECT shard, leader, standby, standby_behind FROM system.shards ORDER BY shard";
    assert_eq!(
        query(&engine, sql).await,
        ["0|n1|n2|", "1|n2|n3|"],
        "nobody has said anything"
    );
    let alter = "ALTER PIPE p SET (standby = 'hot')";
    engine.execute(alter, &BTreeMap::new()).await.unwrap();
    assert_eq!(query(&engine, "SELECT standby FROM system.pipes").await, ["hot"]);
    let created = query(&engine, "SHOW CREATE PIPE p").await;
    assert!(created.concat().contains("standby = 'hot'"), "{created:?}");
    let pipe = world.snapshot().pipe_named("p").unwrap().unwrap().id;
    let partitions = world.snapshot().partitions_of(pipe).unwrap();
    let read = |shard: u32, position: u64| {
        let of_shard = partitions.iter().filter(move |p| p.shard.index == shard);
        let read = of_shard.map(move |p| PartitionProgress {
            key: p.key(),
            shard: p.shard,
            position: Offset(position),
            reading: true,
            record_bytes: None,
            read_to_ms: None,
            end: None,
            wait: None,
            waiting_for: String::new(),
        });
        read.collect::<Vec<_>>()
    };
    let said = |node: u64, partitions, standing_by| NodeProgress {
        node: NodeId(node),
        silent_ms: 7,
        memtable_bytes: 0,
        rows_per_second: 0.0,
        partitions,
        standing_by,
        freshness: Vec::new(),
    };
    // Two partitions each; of the first, 20 offsets are committed. A standby that has not begun would read everything again.
    let progress = vec![
        said(1, read(0, 50), vec![]),
        said(2, read(1, 30), read(0, 45)),
        said(3, vec![], vec![]),
    ];
    *world.progress.lock().unwrap() = Some(progress);
    assert_eq!(query(&engine, sql).await, ["0|n1|n2|10", "1|n2|n3|60"]);
}
