//! Which node leads what, as operators see it: shards for which much arrives are spread, and tables stay in their warehouse.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::time::Duration;
use tidemill_chaos_tests::events::{Events, Plan};
use tidemill_chaos_tests::reader::{Reader, count, rows, text};
use tidemill_chaos_tests::scenario::{TABLE, check, create, statements, wait_until_read};
use tidemill_chaos_tests::world::World;

const PATIENCE: Duration = Duration::from_secs(90);

async fn asked(world: &World, sql: &str) -> anyhow::Result<String> {
    text(&rows(&world.client()?, sql).await?)
}

/// Starts one more node, of this warehouse.
fn join(world: &mut World, warehouse: &str) -> usize {
    let node = world.another_node().unwrap();
    let file = world.folder().join(format!("n{}/node.toml", node + 1));
    let before = std::fs::read_to_string(&file).unwrap();
    let after = before.replace("warehouse = \"default\"", &format!("warehouse = \"{warehouse}\""));
    std::fs::write(&file, after).unwrap();
    world.start_node(node).unwrap();
    node
}

/// Waits until the question has this answer.
async fn until(world: &World, sql: &str, answer: &str) {
    let what = format!("{sql} to be {answer}");
    let so = world.wait_for(&what, PATIENCE, async |world| {
        let found = asked(world, sql).await?;
        anyhow::ensure!(found == answer, "it is {found}");
        Ok(true)
    });
    so.await.unwrap();
}

/// Everything that was produced is there, once, and was all the time.
async fn finish(world: &World, events: Events, reader: Reader) {
    let produced = events.stop().await.unwrap();
    wait_until_read(world, &produced).await.unwrap();
    let findings = reader.finish().await.unwrap();
    let counted = count(&world.client().unwrap(), TABLE).await.unwrap();
    check(world, &produced, &counted, &findings).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_for_which_much_arrives_are_spread() {
    let world = &mut World::start(1).await.unwrap();
    let plan = Plan {
        topic: TABLE.into(),
        partitions: 2,
        count: 20_000_000,
        bad: 0,
        rate: Some(2_000),
        seed: 11,
    };
    // Much by its bytes and not by its rows, which would keep the processors busy: then less arrives, and there is nothing to spread.
    let large = ["--payload", "2000"];
    Events::create_topic(&world.brokers, &plan).unwrap();
    for sql in statements(&world.brokers, TABLE, 1000) {
        world.run(&sql.replace("shards = 4", "shards = 2")).await.unwrap();
    }
    world
        .run("CREATE TABLE idle (x BIGINT) WITH (shards = 4)")
        .await
        .unwrap();
    let events = Events::start_with(world.folder(), &world.brokers, &plan, &large).unwrap();
    let rate = "SELECT count(*) FROM system.partitions WHERE arriving_bytes_per_second > 1000000";
    until(world, rate, "2").await;

    let reader = Reader::start(world.client().unwrap(), TABLE.into());
    join(world, "default");
    // By their number alone, both busy shards would have moved to the one that came: they are the first.
    let led = "SELECT count(DISTINCT leader) FROM system.shards";
    until(world, led, "2").await;
    let busy = format!("SELECT count(DISTINCT leader) FROM system.shards WHERE \"table\" = '{TABLE}'");
    until(world, &busy, "2").await;
    let why = "SELECT count(*) FROM system.shards WHERE reason LIKE '%MiB/s%'";
    assert_ne!(asked(world, why).await.unwrap(), "0");
    // And there they stay.
    let epochs = "SELECT sum(epoch) FROM system.shards";
    let before = asked(world, epochs).await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(asked(world, epochs).await.unwrap(), before);

    finish(world, events, reader).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_led_by_the_nodes_of_their_warehouse() {
    let world = &mut World::start(3).await.unwrap();
    let plan = Plan {
        topic: TABLE.into(),
        partitions: 4,
        count: 20_000_000,
        bad: 0,
        rate: Some(2_000),
        seed: 12,
    };
    create(world, &plan, 500).await.unwrap();
    let events = Events::start(world.folder(), &world.brokers, &plan).unwrap();
    until(world, &format!("SELECT count(*) > 10000 FROM {TABLE}"), "true").await;
    let to_etl = format!("ALTER TABLE {TABLE} SET (warehouse = 'etl')");
    let refused = format!("{:#}", world.run(&to_etl).await.unwrap_err());
    assert!(
        refused.contains("no node is of warehouse 'etl': those of the nodes are 'default'"),
        "{refused}"
    );

    // Whoever leads goes on until the node of the warehouse has the files.
    let reader = Reader::start(world.client().unwrap(), TABLE.into());
    let node = join(world, "etl");
    until(world, "SELECT count(*) FROM system.nodes WHERE state = 'Ready'", "4").await;
    world.run(&to_etl).await.unwrap();
    let leaders = "SELECT string_agg(coalesce(leader, 'nobody'), ' ') FROM system.shards";
    until(world, leaders, "n4 n4 n4 n4").await;
    let may = "SELECT string_agg(DISTINCT may_lead, ' ') FROM system.shards";
    assert_eq!(asked(world, may).await.unwrap(), "n4");
    let show = format!("SHOW CREATE TABLE {TABLE}");
    let created = world.tidemill(&["sql", "-c", &show]).unwrap();
    assert!(created.contains("warehouse = 'etl'"), "{created}");
    let remove = world.tidemill(&["node", "remove", "n4"]).unwrap_err().to_string();
    assert!(remove.contains("is the last one of warehouse 'etl'"), "{remove}");

    // Nobody else takes them over: the source keeps what is written meanwhile.
    world.kill_node(node).unwrap();
    until(world, leaders, "nobody nobody nobody nobody").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(asked(world, leaders).await.unwrap(), "nobody nobody nobody nobody");
    world.start_node(node).unwrap();
    until(world, leaders, "n4 n4 n4 n4").await;

    world
        .run(&format!("ALTER TABLE {TABLE} SET (warehouse = '')"))
        .await
        .unwrap();
    until(world, "SELECT count(DISTINCT leader) > 1 FROM system.shards", "true").await;
    world.tidemill(&["node", "remove", "n4"]).unwrap();
    finish(world, events, reader).await;
}
