//! Nodes that live and do not get on. A broker that one node cannot reach, while the others can, costs that node its shards; a broker
//! that nobody can reach, or that is slow, is waited for.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::time::{Duration, Instant};
use tidemill_chaos_tests::cut::Cut;
use tidemill_chaos_tests::events::{Events, Plan};
use tidemill_chaos_tests::reader::{busiest_node, count, rows, text};
use tidemill_chaos_tests::scenario::{TABLE, create, wait_until_read};
use tidemill_chaos_tests::world::World;

const PATIENCE: Duration = Duration::from_secs(90);

/// Three nodes that read what is produced all the time; nodes run as users of their own if they are to be cut off.
async fn flowing(as_users: bool) -> (World, Events) {
    let mut world = World::with_broker().unwrap();
    world.as_users = as_users;
    world.start_cluster(3).await.unwrap();
    let plan = Plan {
        topic: TABLE.into(),
        partitions: 8,
        count: 10_000_000,
        bad: 0,
        rate: Some(3_000),
        seed: 5,
    };
    create(&world, &plan, 500).await.unwrap();
    let events = Events::start(world.folder(), &world.brokers, &plan).unwrap();
    world.all_lead(PATIENCE).await.unwrap();
    caught_up(&world).await;
    // Moves for the sake of balance are over.
    tokio::time::sleep(Duration::from_secs(6)).await;
    (world, events)
}

async fn caught_up(world: &World) {
    let sql = format!("WAIT FOR PIPE {TABLE} CAUGHT UP TIMEOUT '30s'");
    world.run(&sql).await.unwrap();
}

const MOVED: &str = "SELECT count(*) FROM system.events WHERE kind = 'stuck'";

/// Every row that was acknowledged is there, once.
async fn exact(world: &World, events: Events) {
    let produced = events.stop().await.unwrap();
    wait_until_read(world, &produced).await.unwrap();
    let counted = count(&world.client().unwrap(), TABLE).await.unwrap();
    let rows = produced.count as i64;
    assert_eq!((counted.rows, counted.distinct), (rows, rows));
    assert_eq!(counted.sum_event_id, produced.sum_event_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_its_broker_does_not_answer_loses_its_shards_once() {
    let (world, events) = flowing(true).await;
    let name = busiest_node(&world.client().unwrap()).await.unwrap();
    let node = world.index_of(&name).unwrap();
    let led = format!("SELECT count(*) FROM system.shards WHERE leader = '{name}'");
    let shards = world.ask(&led).await.unwrap();
    let port = world.brokers.rsplit(':').next().unwrap().parse().unwrap();
    let began = Instant::now();
    let cut = Cut::off_from(world.user(node), port).unwrap();
    let moved = world.wait_for("its shards to move", PATIENCE, async |world| {
        Ok(world.ask(&led).await? == 0)
    });
    moved.await.unwrap();
    println!("{shards} shards of {name} moved after {:?}", began.elapsed());
    let told = "SELECT text FROM system.events WHERE kind = 'stuck' ORDER BY number DESC LIMIT 1";
    println!(
        "{}",
        text(&rows(&world.client().unwrap(), told).await.unwrap()).unwrap()
    );
    assert!(began.elapsed() > Duration::from_secs(25), "a moment is no reason");
    // The others go on with its partitions, and the node is not down: it only has nothing to read from. It cannot be asked,
    // since it would ask its broker.
    let others = world.client_without(node).unwrap();
    let all = format!("WAIT FOR PIPE {TABLE} CAUGHT UP TIMEOUT '30s'");
    others.query(&all).await.unwrap();
    let ready = "SELECT count(*) FROM system.nodes WHERE state = 'Ready'";
    assert_eq!(world.ask(ready).await.unwrap(), 3);
    let why = "SELECT count(*) FROM system.shards WHERE reason LIKE '%did not go on at node%it has not answered for%'";
    assert_eq!(world.ask(why).await.unwrap(), shards);
    // Neither balance nor anything else brings them back while it is so.
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(world.ask(&led).await.unwrap(), 0);
    assert_eq!(world.ask(MOVED).await.unwrap(), shards);
    drop(cut);
    exact(&world, events).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_slow_is_waited_for() {
    let (world, events) = flowing(false).await;
    let epochs = "SELECT sum(epoch) FROM system.shards";
    let before = world.ask(epochs).await.unwrap();
    let began = Instant::now();
    let mut rows = count(&world.client().unwrap(), TABLE).await.unwrap().rows;
    // It works for a fifth of the time, and each answer is up to two seconds late.
    while began.elapsed() < Duration::from_secs(45) {
        for _ in 0..6 {
            world.kafka(&["pause", "1"]).unwrap();
            tokio::time::sleep(Duration::from_secs(2)).await;
            world.kafka(&["resume", "1"]).unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let now = count(&world.client().unwrap(), TABLE).await.unwrap().rows;
        println!("{rows} rows, and then {now}");
        assert!(now > rows, "nothing is read from a broker that is slow");
        rows = now;
    }
    assert_eq!(world.ask(MOVED).await.unwrap(), 0);
    assert_eq!(world.ask(epochs).await.unwrap(), before);
    caught_up(&world).await;
    exact(&world, events).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_answers_nobody_is_waited_for() {
    let (world, events) = flowing(false).await;
    let before = world.ask("SELECT sum(epoch) FROM system.shards").await.unwrap();
    world.kafka(&["pause", "1"]).unwrap();
    let waiting = "SELECT count(*) FROM system.partitions WHERE wait = 'broker'";
    let all = world.wait_for(
        "all to wait",
        PATIENCE,
        async |world| Ok(world.ask(waiting).await? == 8),
    );
    all.await.unwrap();
    tokio::time::sleep(Duration::from_secs(45)).await;
    assert_eq!(world.ask(MOVED).await.unwrap(), 0);
    assert_eq!(world.ask("SELECT sum(epoch) FROM system.shards").await.unwrap(), before);
    world.kafka(&["resume", "1"]).unwrap();
    // A broker that slept for so long finds itself fenced, and knows no partition until it is admitted again.
    let answers = world.wait_for("the broker to answer for its partitions", PATIENCE, async |world| {
        let sql = format!("WAIT FOR PIPE {TABLE} CAUGHT UP TIMEOUT '30s'");
        world.run(&sql).await.map(|()| true)
    });
    answers.await.unwrap();
    let waits = world.wait_for("nothing to wait for", PATIENCE, async |world| {
        Ok(world.ask(waiting).await? == 0)
    });
    waits.await.unwrap();
    // Now and then one client out of three hears nothing for half a minute more, while the broker answers the others: then
    // its node loses that shard, and for no other reason.
    let others = format!("{MOVED} AND text NOT LIKE '%it waits for the broker%'");
    let said = world.tidemill(&["sql", "-c", "SELECT text FROM system.events WHERE kind = 'stuck'"]);
    println!("{}", said.unwrap());
    assert_eq!(world.ask(&others).await.unwrap(), 0);
    exact(&world, events).await;
}
