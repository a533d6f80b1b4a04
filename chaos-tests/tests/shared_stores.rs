//! Clusters whose nodes share one part store: a bucket of a real S3 server, which goes away for a while, and a folder.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tidemill_chaos_tests::events::{Events, Plan};
use tidemill_chaos_tests::reader::{Reader, count};
use tidemill_chaos_tests::scenario::{TABLE, check, create, wait_until_read};
use tidemill_chaos_tests::world::{World, checkout, output};

/// A server with one bucket, from `scripts/s3`.
struct S3Server {
    folder: PathBuf,
}

impl S3Server {
    /// The server and its address.
    fn start(world: &World) -> (Self, String) {
        let server = Self {
            folder: world.folder().join("s3"),
        };
        let said = server.script(&["up", "bucket"]);
        (server, said.lines().last().unwrap().to_owned())
    }

    fn script(&self, words: &[&str]) -> String {
        let mut command = Command::new(checkout().join("scripts/s3"));
        output(command.args(words).arg("--dir").arg(&self.folder)).unwrap()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.script(&["down"]);
    }
}

/// Reads events, with a node and whatever else killed in the middle, and counts every row.
async fn run(world: &mut World, seed: u64, disturb: impl AsyncFnOnce(&mut World)) {
    let plan = Plan {
        topic: TABLE.into(),
        partitions: 8,
        count: 40_000,
        bad: 10,
        rate: Some(4_000),
        seed,
    };
    create(world, &plan, 500).await.unwrap();
    let reader = Reader::start(world.client().unwrap(), TABLE.into());
    let events = Events::start(world.folder(), &world.brokers, &plan).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    disturb(world).await;
    let produced = events.finish().await.unwrap();
    wait_until_read(world, &produced).await.unwrap();
    let findings = reader.finish().await.unwrap();
    let counted = count(&world.client().unwrap(), TABLE).await.unwrap();
    check(world, &produced, &counted, &findings).await.unwrap();
    let said = world.tidemill(&["check"]).unwrap();
    assert!(!said.contains("false"), "{said}");
    let sql = "SELECT count(*) FROM system.replicas";
    let replicas = world.ask(sql).await.unwrap();
    assert_eq!(replicas, 0, "a shared store has no replicas");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_keeps_everything_although_its_server_and_a_node_are_killed() {
    let world = &mut World::with_broker().unwrap();
    let (server, endpoint) = S3Server::start(world);
    world.parts = Some("s3://bucket/parts".to_owned());
    world.settings = format!(
        "[s3]\nendpoint = \"{endpoint}\"\nregion = \"us-east-1\"\naccess_key_id = \"tidemill\"\nsecret_access_key = \"tidemill\"\n"
    );
    world.start_cluster(3).await.unwrap();
    run(world, 11, async |world| {
        server.script(&["stop"]);
        tokio::time::sleep(Duration::from_secs(2)).await;
        // Said where people look.
        let sql = "SELECT count(*) FROM system.partitions WHERE waiting_for LIKE '%parts to become durable%'";
        let waits = world.wait_for("the trouble to be said", Duration::from_secs(30), async |world| {
            Ok(world.ask(sql).await? > 0)
        });
        waits.await.unwrap();
        server.script(&["start"]);
        world.kill_node(1).unwrap();
        world.start_node(1).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_keeps_everything_although_a_node_is_killed() {
    let world = &mut World::with_broker().unwrap();
    world.parts = Some(format!("file://{}/parts", world.folder().display()));
    world.start_cluster(3).await.unwrap();
    run(world, 12, async |world| {
        world.kill_node(0).unwrap();
        world.start_node(0).unwrap();
    })
    .await;
}
