//! Nodes come and go while events flow and a reader asks: one becomes three, loses the one that it began with, becomes
//! five, and shrinks to one again. Every event is there, once, all the time.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tidemill_chaos_tests::cut::Cut;
use tidemill_chaos_tests::events::{Events, Plan};
use tidemill_chaos_tests::reader::{Reader, count};
use tidemill_chaos_tests::scenario::{TABLE, check, create, wait_until_read};
use tidemill_chaos_tests::world::World;
use tidemill_client::Client;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until as many nodes vote, and as many are ready.
async fn wait_for_group(world: &World, voters: usize, ready: usize) {
    let began = Instant::now();
    let group = world.wait_for("the group to be as it should be", PATIENCE, async |world| {
        let nodes = world.client()?.cluster_status().await?.nodes;
        let votes = nodes.iter().filter(|n| n.role == "leader" || n.role == "voter").count();
        // A node that was killed this moment is still called ready.
        let heard = |ms: u64| (1..1000).contains(&ms);
        let working = nodes
            .iter()
            .filter(|n| n.state == "Ready" && heard(n.silent_ms))
            .count();
        anyhow::ensure!(
            (votes, working) == (voters, ready),
            "{votes} vote, {working} are ready: {nodes:?}"
        );
        Ok(true)
    });
    group.await.unwrap();
    eprintln!("{voters} voters and {ready} ready nodes after {:?}", began.elapsed());
}

/// Waits until every node that is ready leads a shard.
async fn wait_for_balance(world: &World) {
    let balanced = world.wait_for("every node to lead a shard", PATIENCE, async |world| {
        let nodes = world.client()?.cluster_status().await?.nodes;
        Ok(nodes.iter().filter(|n| n.state == "Ready").all(|n| n.shards > 0))
    });
    balanced.await.unwrap();
}

async fn join(world: &mut World) -> usize {
    let node = world.another_node().unwrap();
    world.start_node(node).unwrap();
    node
}

/// The same with one command, which is also the one that starts the node again.
async fn join_by_command(world: &mut World) -> usize {
    let node = world.name_another().unwrap();
    world.join_node(node).unwrap();
    let told = world.wait_for("the node to take part", PATIENCE, async |world| {
        Ok(world.log(node)?.contains("the node takes part"))
    });
    told.await.unwrap();
    assert!(
        world
            .log(node)
            .unwrap()
            .contains("is configured to join cluster 'demo'")
    );
    world.kill_node(node).unwrap();
    world.join_node(node).unwrap();
    node
}

/// Asks `node`, or others when it does not answer, in several sessions one thing after the other until told to stop.
fn ask_all_the_time(world: &World, node: usize) -> (Arc<AtomicBool>, Vec<JoinHandle<Result<u64, String>>>) {
    let stop = Arc::new(AtomicBool::new(false));
    let session = |_| {
        let (client, stop) = (Client::new(world.beginning_at(node)).unwrap(), stop.clone());
        tokio::spawn(async move {
            let mut answers = 0;
            while !stop.load(Ordering::Acquire) {
                count(&client, TABLE).await.map_err(|error| format!("{error:#}"))?;
                answers += 1;
            }
            Ok(answers)
        })
    };
    (stop.clone(), (0..4).map(session).collect())
}

/// Removes a node by the command line; its process must end well, and with it no query that it has begun.
async fn remove(world: &mut World, node: usize) {
    let name = format!("n{}", node + 1);
    let began = Instant::now();
    let (stop, sessions) = ask_all_the_time(world, node);
    let said = world.tidemill(&["node", "remove", &name]).unwrap();
    assert!(said.contains("was removed from the cluster"), "{said}");
    eprintln!("{name} was removed within {:?}", began.elapsed());
    assert!(
        world.wait_for_end(node, PATIENCE).await.unwrap(),
        "{}",
        world.log(node).unwrap()
    );
    let log = world.log(node).unwrap();
    assert!(log.contains("was removed from the cluster: ending"), "{log}");
    stop.store(true, Ordering::Release);
    for session in sessions {
        let answers = session.await.unwrap();
        assert!(
            answers.as_ref().is_ok_and(|answers| *answers > 0),
            "a query at {name}: {answers:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_come_and_go_and_every_event_is_there_once() {
    let world = &mut World::start(1).await.unwrap();
    let plan = Plan {
        topic: TABLE.into(),
        partitions: 8,
        // More than there is time for: they end when all is done.
        count: 1_200_000,
        bad: 200,
        rate: Some(2_000),
        seed: 5,
    };
    create(world, &plan, 1000).await.unwrap();
    let mut events = Events::start(world.folder(), &world.brokers, &plan).unwrap();
    let client = world.client().unwrap();
    while count(&client, TABLE).await.unwrap().rows < 1000 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let second = join(world).await;
    wait_for_group(world, 1, 2).await;
    let third = join(world).await;
    wait_for_group(world, 3, 3).await;
    let reader = Reader::start(world.client().unwrap(), TABLE.into());
    wait_for_balance(world).await;
    // Refused until every file has its copies: what the founder had alone is copied first.
    let safe = world.wait_for("two copies of everything", PATIENCE, async |world| {
        world.run("ALTER CLUSTER SET (min_replicas = 2)").await?;
        Ok(true)
    });
    safe.await.unwrap();

    let before = count(&world.client().unwrap(), TABLE).await.unwrap();
    let killed = Instant::now();
    world.kill_node(0).unwrap();
    let client = world.client().unwrap();
    while count(&client, TABLE).await.is_ok_and(|now| now.rows <= before.rows) {
        assert!(killed.elapsed() < PATIENCE, "nothing is read any more");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eprintln!("{:?} after the founder was killed, more was read", killed.elapsed());
    world.start_node(0).unwrap();
    wait_for_group(world, 3, 3).await;

    join(world).await;
    join_by_command(world).await;
    wait_for_group(world, 5, 5).await;
    assert!(
        !events.has_ended().unwrap(),
        "the events ended before the group was grown"
    );
    // The founder, and another one; one of the two may lead.
    remove(world, 0).await;
    remove(world, third).await;
    wait_for_group(world, 3, 3).await;
    assert!(
        !events.has_ended().unwrap(),
        "the events ended before the group had shrunk"
    );

    let produced = events.stop().await.unwrap();
    wait_until_read(world, &produced).await.unwrap();
    let findings = reader.finish().await.unwrap();
    eprintln!("{} answers, longest gap {:?}", findings.answered, findings.longest_gap);
    let counted = count(&world.client().unwrap(), TABLE).await.unwrap();
    check(world, &produced, &counted, &findings).await.unwrap();

    // What is gone is gone.
    world.start_node(0).unwrap();
    assert!(
        !world.wait_for_end(0, PATIENCE).await.unwrap(),
        "a removed node ran again"
    );
    let log = world.log(0).unwrap();
    assert!(log.contains("can never come back"), "{log}");
    let said = world.tidemill(&["node", "remove", "n1"]).unwrap();
    assert!(said.contains("'n1' (1) was removed from the cluster"), "{said}");

    // Down to one.
    remove(world, second).await;
    let refused = world.tidemill(&["node", "remove", "n4"]).unwrap_err().to_string();
    assert!(refused.contains("ALTER CLUSTER SET (min_replicas = 1)"), "{refused}");
    world.run("ALTER CLUSTER SET (min_replicas = 1)").await.unwrap();
    remove(world, 3).await;
    wait_for_group(world, 1, 1).await;
    let last = world.tidemill(&["node", "remove", "n5"]).unwrap_err().to_string();
    assert!(last.contains("no other node is ready"), "{last}");
    assert_eq!(count(&world.client().unwrap(), TABLE).await.unwrap(), counted);
    world.run("DROP PIPE events").await.unwrap();
    world.all_alive().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn joiners_and_leaders_killed_at_any_moment_leave_one_node_each() {
    let mut world = World::start(1).await.unwrap();
    let seed = std::env::var("TIDEMILL_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    eprintln!("seed {seed}; TIDEMILL_SEED={seed} repeats the faults");
    let mut rng = StdRng::seed_from_u64(seed);
    for round in 0..6 {
        let joiner = world.another_node().unwrap();
        world.start_node(joiner).unwrap();
        for _ in 0..2 {
            // The moment of the fault, from before it asks until after it votes.
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..900))).await;
            let leader = world.client().unwrap().cluster_status().await.unwrap().leader;
            let leader = world.index_of(&leader).filter(|_| rng.random_bool(0.6));
            let victims: BTreeSet<usize> = leader.into_iter().chain([joiner]).collect();
            eprintln!("round {round}: kill -9 of {victims:?}");
            for victim in &victims {
                world.kill_node(*victim).unwrap();
            }
            for victim in &victims {
                world.start_node(*victim).unwrap();
            }
        }
        let nodes = round + 2;
        wait_for_group(
            &world,
            if nodes < 3 {
                1
            } else if nodes < 5 {
                3
            } else {
                5
            },
            nodes,
        )
        .await;
    }
    let nodes = world.client().unwrap().cluster_status().await.unwrap().nodes;
    let ids: Vec<u64> = nodes.iter().map(|node| node.id).collect();
    assert_eq!(ids, (1..=7).collect::<Vec<_>>(), "{nodes:?}");
    world.all_alive().unwrap();
}

/// In its own eyes it leads on, and it is its own manager; nobody tells it anything else, since it is no member any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_removed_while_it_is_cut_off_ends_when_it_is_back() {
    let mut world = World::without_broker().unwrap();
    world.as_users = true;
    world.start_cluster(3).await.unwrap();
    let name = world.client().unwrap().cluster_status().await.unwrap().leader;
    let leader = world.index_of(&name).unwrap();
    let cut = Cut::off(world.user(leader)).unwrap();
    let another = world.wait_for("another node to lead", PATIENCE, async |world| {
        let leads = world.client_without(leader)?.cluster_status().await?.leader;
        Ok(!leads.is_empty() && leads != name)
    });
    another.await.unwrap();
    let said = world.tidemill_at((leader + 1) % 3, &["node", "remove", &name]).unwrap();
    assert!(said.contains("was removed from the cluster"), "{said}");
    // Until the connections are given up in which it would still find the votes of that election.
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!world.log(leader).unwrap().contains("was removed"));
    drop(cut);
    assert!(
        world.wait_for_end(leader, PATIENCE).await.unwrap(),
        "{}",
        world.log(leader).unwrap()
    );
    let log = world.log(leader).unwrap();
    assert!(log.contains("was removed from the cluster: ending"), "{log}");
    wait_for_group(&world, 2, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_moves_the_shards_and_wrong_requests_say_why() {
    let mut world = World::start(1).await.unwrap();
    world
        .run("CREATE TABLE t (id BIGINT NOT NULL) WITH (shards = 4)")
        .await
        .unwrap();
    let refused = |world: &World, arguments: &[&str], text: &str| {
        let said = world.tidemill(arguments).unwrap_err().to_string();
        assert!(said.contains(text), "{arguments:?}: {said}");
    };
    refused(
        &world,
        &["node", "drain", "n1"],
        "no other node is ready to take its shards",
    );
    refused(
        &world,
        &["node", "remove", "n1"],
        "no other node is ready to take its place",
    );
    refused(
        &world,
        &["node", "remove", "n7"],
        "there is no node called 'n7'; there are n1",
    );

    let second = join(&mut world).await;
    wait_for_group(&world, 1, 2).await;
    let said = world.tidemill(&["node", "drain", "n1"]).unwrap();
    assert!(said.contains("node 'n1' (1) has given up its shards"), "{said}");
    let listed = world.tidemill(&["node", "list"]).unwrap();
    let of = |name: &str| listed.lines().find(|line| line.contains(name)).unwrap().to_owned();
    assert!(of("n1").contains("Draining") && of("n1").contains("leader"), "{listed}");
    assert!(of("n2").contains("Ready") && of("n2").contains("learner"), "{listed}");
    // A restart does not undo it.
    world.stop_node(0).unwrap();
    world.start_node(0).unwrap();
    let drained = world.wait_for("n1 to be drained still", PATIENCE, async |world| {
        let nodes = world.client()?.cluster_status().await?.nodes;
        Ok(nodes[0].state == "Draining" && nodes[0].shards == 0 && nodes[1].shards == 4)
    });
    drained.await.unwrap();
    // Any node passes it on, a learner too.
    world.tidemill_at(second, &["node", "resume", "n1"]).unwrap();
    wait_for_group(&world, 1, 2).await;
    wait_for_balance(&world).await;

    // A wiped folder is a new node, and the old one has its name until it is removed.
    world.kill_node(second).unwrap();
    std::fs::remove_dir_all(world.folder().join("n2/data")).unwrap();
    world.start_node(second).unwrap();
    assert!(!world.wait_for_end(second, PATIENCE).await.unwrap());
    let log = world.log(second).unwrap();
    assert!(
        log.contains("already a node called 'n2'") && log.contains("tidemill node remove n2"),
        "{log}"
    );
    let said = world.tidemill(&["node", "remove", "n2"]).unwrap();
    assert!(said.contains("node 'n2' (2) was removed"), "{said}");
    world.start_node(second).unwrap();
    wait_for_group(&world, 1, 2).await;
    let nodes = world.client().unwrap().cluster_status().await.unwrap().nodes;
    assert_eq!(
        nodes.iter().map(|n| (n.id, n.role.as_str())).collect::<Vec<_>>(),
        [(1, "leader"), (2, "removed"), (3, "learner")]
    );
    let sql = [
        "sql",
        "--format",
        "csv",
        "-c",
        "SELECT name, role FROM system.nodes WHERE state = 'Ready' ORDER BY id",
    ];
    assert_eq!(world.tidemill(&sql).unwrap(), "name,role\nn1,leader\nn2,learner\n");

    // Removed while it was down, it learns that from the others, and remembers it.
    world.kill_node(second).unwrap();
    world.tidemill(&["node", "remove", "n2"]).unwrap();
    world.start_node(second).unwrap();
    assert!(world.wait_for_end(second, PATIENCE).await.unwrap());
    let log = world.log(second).unwrap();
    assert!(log.contains("node 'n2' was removed from the cluster: ending"), "{log}");
    world.start_node(second).unwrap();
    assert!(!world.wait_for_end(second, PATIENCE).await.unwrap());
    let log = world.log(second).unwrap();
    assert!(log.contains("can never come back"), "{log}");

    // What is configured already is not made another node.
    let folder = world.folder().display().to_string();
    let founder = ["node", "join", "--name", "n1", "--dir", &folder];
    refused(
        &world,
        &founder,
        "n1/node.toml is there and differs from what was said here",
    );

    // A node of another cluster's configuration is not admitted.
    let stranger = world.another_node().unwrap();
    let file = world.folder().join("n3/node.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("cluster = \"demo\"", "cluster = \"other\"")).unwrap();
    world.start_node(stranger).unwrap();
    assert!(!world.wait_for_end(stranger, PATIENCE).await.unwrap());
    assert!(
        world
            .log(stranger)
            .unwrap()
            .contains("this is cluster 'demo', not 'other'")
    );
}
