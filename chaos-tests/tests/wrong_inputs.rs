//! What a user gets wrong, as the user meets it: the binary's exit code and what it says.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tidemill_chaos_tests::events::{Events, Plan};
use tidemill_chaos_tests::world::{World, binary};

/// Runs a statement with the binary; it must fail and say all of `expected`.
fn refused(world: &World, sql: &str, expected: &[&str]) {
    let output = Command::new(binary().unwrap())
        .args(["sql", "--connect", &world.connect(), "-c", sql])
        .output()
        .unwrap();
    must_say(&output, sql, expected);
}

fn must_say(output: &Output, what: &str, expected: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{what}: succeeded, saying {said}");
    for text in expected {
        assert!(said.contains(text), "{what}: said\n{said}\nwhich lacks {text:?}");
    }
}

/// Starts a node that must end by itself, with an error that says all of `expected`.
fn will_not_start(config: &Path, expected: &[&str]) {
    let mut command = Command::new(binary().unwrap());
    command
        .arg("node")
        .arg("--config")
        .arg(config)
        .stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            panic!(
                "{} runs on: {}",
                config.display(),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    must_say(
        &child.wait_with_output().unwrap(),
        &config.display().to_string(),
        expected,
    );
}

/// A copy of node 1's configuration, changed; ports moved away unless they shall collide.
fn changed_config(world: &World, name: &str, change: impl Fn(String) -> String) -> PathBuf {
    let original = std::fs::read_to_string(world.folder().join("n1/node.toml")).unwrap();
    let folder = world.folder().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("node.toml");
    std::fs::write(&file, change(original)).unwrap();
    file
}

/// The configuration with a [listen] section of free ports.
fn on_other_ports(text: String) -> String {
    let free: Vec<_> = (0..3)
        .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let at = |i: usize| free[i].local_addr().unwrap();
    let listen = format!(
        "[listen]\nraft = \"{}\"\napi = \"{}\"\nhttp = \"{}\"\n\n",
        at(0),
        at(1),
        at(2)
    );
    text.replacen("[[members]]", &format!("{listen}[[members]]"), 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_that_cannot_be_done_say_why_and_where() {
    let world = World::start(1).await.unwrap();
    let plan = Plan {
        topic: "t".into(),
        partitions: 2,
        count: 0,
        bad: 0,
        rate: None,
        seed: 0,
    };
    Events::create_topic(&world.brokers, &plan).unwrap();
    world
        .run("CREATE TABLE t (id BIGINT NOT NULL, name TEXT)")
        .await
        .unwrap();

    let pipe = |brokers: &str, topic: &str, more: &str| {
        format!("CREATE PIPE p INTO t FROM KAFKA (brokers = '{brokers}', topic = '{topic}', format = 'json'{more})")
    };
    refused(
        &world,
        &pipe("127.0.0.1:1", "t", ""),
        &["127.0.0.1:1 does not answer", "check the address"],
    );
    refused(&world, &pipe(&world.brokers, "nosuch", ""), &["has no topic 'nosuch'"]);
    refused(
        &world,
        &pipe(&world.brokers, "t", ", strat = 'latest'"),
        &["strat", "start", "^^^^^"],
    );
    refused(
        &world,
        &pipe(&world.brokers, "t", ", \"client.nosuch\" = '1'"),
        &["nosuch"],
    );
    refused(
        &world,
        &pipe(&world.brokers, "t", "").replace("INTO t", "INTO tt"),
        &["'tt'"],
    );
    refused(&world, "CREATE TABLE u (id BIGINTT)", &["BIGINTT", "BIGINT", "^^^^^^^"]);
    refused(
        &world,
        "CREATE TABLE u (id BIGINT) WITH (shard = 4)",
        &["shard", "shards", "^^^^^"],
    );
    refused(&world, "CREATE TABLE u (id BIGINT) ORDER BY (idd)", &["idd"]);
    refused(&world, "CREATE TABLE t (id BIGINT)", &["already", "'t'"]);
    refused(&world, "SELECT nme FROM t", &["nme", "name", "^^^"]);
    refused(&world, "SELECT * FROM tt", &["tt", "^^"]);
    refused(&world, "SELEC * FROM t", &["SELEC", "SELECT", "^^^^^"]);
    refused(&world, "SELECT cout(*) FROM t", &["cout", "count", "^^^^"]);
    refused(&world, "SELECT * FORM t", &["FORM", "^^^^"]);
    refused(&world, "ALTER PIPE nosuch PAUSE", &["'nosuch'"]);
    refused(&world, "DROP TABLE nosuch", &["'nosuch'"]);
    refused(&world, "INSERT INTO t VALUES (1)", &["INSERT"]);
    world.run("SET tidemill.consistency = DEFAULT").await.unwrap();
    refused(&world, "SET tidemill.consistency = 'strong'", &["strong", "fresh"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_cannot_run_say_why() {
    let mut world = World::with_broker().unwrap();
    world.start_cluster(1).await.unwrap();

    let typo = changed_config(&world, "typo", |text| text.replace("data_dir", "datadir"));
    will_not_start(&typo, &["`datadir`", "did you mean `data_dir`?"]);
    will_not_start(
        &world.folder().join("nowhere.toml"),
        &["nowhere.toml", "cannot be read"],
    );
    let taken = changed_config(&world, "taken", |text| text);
    will_not_start(&taken, &["port is in use"]);
    // The same name from another folder: the cluster knows n1 already, with its own folder.
    let twin = changed_config(&world, "twin", on_other_ports);
    will_not_start(&twin, &["n1", "folder"]);
    // The disk of another node that runs.
    let data = world.folder().join("n1/data").display().to_string();
    let with_parts_of_n1 = |text: String| {
        let store = format!("part_store = \"replicated://{data}/parts\"");
        text.replace("part_store = \"replicated\"", &store)
    };
    let greedy = changed_config(&world, "greedy", |text| on_other_ports(with_parts_of_n1(text)));
    will_not_start(&greedy, &["n1/data/parts", "another process uses it"]);
    // The folder of a node of another cluster.
    world.stop_node(0).unwrap();
    let with_data_of_n1 = |text: String| text.replace("data_dir = \"data\"", &format!("data_dir = {data:?}"));
    let foreign = changed_config(&world, "foreign", |text| {
        with_data_of_n1(text.replace("cluster = \"demo\"", "cluster = \"other\""))
    });
    will_not_start(&foreign, &["'demo'", "'other'"]);
    // A new cluster over the parts of an old one.
    let second = changed_config(&world, "second", |text| {
        with_parts_of_n1(text.replace("cluster = \"demo\"", "cluster = \"second\""))
    });
    will_not_start(&second, &["belongs to another cluster", "demo"]);
    // Something else where parts should be.
    let full = changed_config(&world, "full", |text| {
        let folder = world.folder().join("n1").display().to_string();
        text.replace(
            "part_store = \"replicated\"",
            &format!("part_store = \"replicated://{folder}\""),
        )
    });
    will_not_start(&full, &["no disk.id", "name an empty one"]);
    // Another kind of store than the cluster has.
    let shared = changed_config(&world, "shared", |text| {
        let store = format!("part_store = \"file://{}/shared\"", world.folder().display());
        with_data_of_n1(text.replace("part_store = \"replicated\"", &store))
    });
    will_not_start(&shared, &["replicates its parts", "Set part_store = \"replicated\""]);
    let twice = changed_config(&world, "twice", |text| {
        let members = text.find("[[members]]").unwrap();
        let again = text[members..].to_owned();
        text + &again
    });
    will_not_start(&twice, &["two members are called \"n1\""]);
}

#[test]
fn a_cluster_that_is_not_there_is_said_to_be_unreachable() {
    let binary = binary().unwrap();
    let output = Command::new(binary)
        .args(["cluster", "status", "--connect", "127.0.0.1:1"])
        .output()
        .unwrap();
    must_say(&output, "cluster status", &["127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(2));
}
