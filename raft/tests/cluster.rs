//! Whole groups in one process, over real connections. Each node has a runtime of its own, so that
//! dropping that is the end of the node, with everything it had open, as a crash would be.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, in its helpers too"
)]

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tidemill_core::{
    Command, NodeId, Proposal, Response, Version,
    catalog::{Cluster, ClusterKey, FlushPolicy, Node, Table},
    command::CreateTable,
    schema::{Column, ColumnType},
    view::CatalogRead,
};
use tidemill_proto::raft::{Envelope, Header, ProposeRequest, raft_client::RaftClient};
use tidemill_raft::{Catalog, MemberConfig, ProposeError, RaftConfig, ReadError, StartError};
use tokio::{net::TcpListener, runtime::Runtime};
use tonic::transport::Endpoint;

const PATIENCE: Duration = Duration::from_secs(30);

fn create(name: &str) -> Proposal {
    let create = CreateTable {
        name: name.into(),
        if_not_exists: false,
        columns: vec![Column {
            name: "a".into(),
            data_type: ColumnType::Int64,
            nullable: true,
            default: None,
        }],
        order_by: vec![],
        partition_by: None,
        shards: 1,
        flush: FlushPolicy::default(),
    };
    Proposal::new(1_700_000_000_000, Command::CreateTable(create))
}

/// Tries until it succeeds.
fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < until, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Removes a folder in which the threads of the last run may still be closing files.
fn remove(folder: &std::path::Path) {
    eventually("the folder can be removed", || std::fs::remove_dir_all(folder).ok());
}

/// A node that runs.
struct Running {
    runtime: Runtime,
    catalog: Catalog,
}

/// A group whose nodes can be stopped and started.
struct Group {
    folder: TempDir,
    cluster: String,
    members: Vec<MemberConfig>,
    snapshot_entries: u64,
    keep_entries: u64,
    running: BTreeMap<u64, Running>,
}

impl Group {
    fn new(nodes: usize) -> Self {
        // Held until all are known, so that no two get the same port.
        let listeners: Vec<_> = (0..nodes)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let members = listeners.iter().zip(1..).map(|(listener, number)| MemberConfig {
            name: format!("n{number}"),
            raft_addr: listener.local_addr().unwrap().to_string(),
            api_addr: format!("127.0.0.1:{number}"),
            http_addr: format!("127.0.0.1:{}", 100 + number),
            warehouse: "default".into(),
        });
        Self {
            folder: TempDir::new().unwrap(),
            cluster: "test".into(),
            members: members.collect(),
            snapshot_entries: 20_000,
            keep_entries: 5_000,
            running: BTreeMap::new(),
        }
    }

    fn config(&self, number: u64) -> RaftConfig {
        let name = format!("n{number}");
        let mut config = RaftConfig::new(
            self.folder.path().join(&name),
            &self.cluster,
            name,
            self.members.clone(),
        );
        config.snapshot_entries = self.snapshot_entries;
        config.keep_entries = self.keep_entries;
        config
    }

    fn try_start(&self, number: u64) -> Result<Running, StartError> {
        let config = self.config(number);
        let address = self.members[number as usize - 1].raft_addr.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let catalog = runtime.block_on(async {
            let listener = loop {
                match TcpListener::bind(&address).await {
                    Ok(listener) => break listener,
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            };
            let until = Instant::now() + PATIENCE;
            let (catalog, service) = loop {
                match Catalog::start(config.clone()).await {
                    Ok(started) => break started,
                    // The threads of the last run are still letting go of the files.
                    Err(error) if error.to_string().contains("lock") && Instant::now() < until => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Err(error) => return Err(error),
                }
            };
            tokio::spawn(service.serve(listener, std::future::pending()));
            Ok(catalog)
        })?;
        Ok(Running { runtime, catalog })
    }

    fn start(&mut self, number: u64) -> Catalog {
        let running = self.try_start(number).unwrap();
        let catalog = running.catalog.clone();
        self.running.insert(number, running);
        catalog
    }

    fn founded(nodes: usize) -> Self {
        Self::new(nodes).found()
    }

    fn found(mut self) -> Self {
        for number in 1..=self.members.len() as u64 {
            self.start(number);
        }
        for running in self.running.values() {
            running
                .runtime
                .block_on(tokio_timeout(running.catalog.wait_founded()))
                .unwrap();
        }
        self
    }

    /// Ends a node without any farewell.
    fn kill(&mut self, number: u64) {
        let Running { runtime, catalog } = self.running.remove(&number).unwrap();
        runtime.shutdown_timeout(Duration::from_secs(10));
        drop(catalog);
    }

    fn stop(&mut self, number: u64) {
        let Running { runtime, catalog } = self.running.remove(&number).unwrap();
        runtime.block_on(catalog.shutdown());
        runtime.shutdown_timeout(Duration::from_secs(10));
    }

    fn catalog(&self, number: u64) -> &Catalog {
        &self.running[&number].catalog
    }

    fn leader(&self) -> u64 {
        eventually("a leader that all know", || {
            let known: Vec<_> = self
                .running
                .values()
                .map(|r| r.catalog.leadership().borrow().leader)
                .collect();
            let leader = known[0].filter(|leader| known.iter().all(|other| *other == Some(*leader)))?;
            self.running.contains_key(&leader.0).then_some(leader.0)
        })
    }

    fn follower(&self) -> u64 {
        let leader = self.leader();
        *self.running.keys().find(|number| **number != leader).unwrap()
    }

    fn propose(&self, via: u64, proposal: Proposal) -> Result<(Version, tidemill_core::Outcome), ProposeError> {
        block_on(self.catalog(via).propose(proposal, Duration::from_secs(20)))
    }

    fn create(&self, via: u64, name: &str) -> Version {
        let (version, outcome) = self.propose(via, create(name)).unwrap();
        assert!(matches!(outcome, Ok(Response::Table(_))), "{outcome:?}");
        version
    }

    fn tables(&self, number: u64) -> Vec<String> {
        let snapshot = self.catalog(number).snapshot().unwrap();
        let mut names: Vec<_> = snapshot
            .list::<Table>(&[])
            .unwrap()
            .into_iter()
            .map(|table| table.name)
            .collect();
        names.sort();
        names
    }

    /// All running nodes come to the same state at the same version.
    fn same_everywhere(&self) {
        eventually("the same state everywhere", || {
            let states: Vec<_> = self
                .running
                .values()
                .map(|running| {
                    let state = running.catalog.snapshot().unwrap();
                    (state.version(), state.digest().unwrap())
                })
                .collect();
            states.iter().all(|state| *state == states[0]).then_some(())
        });
    }
}

/// The handle is used from outside of the runtime of Raft here.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

async fn tokio_timeout<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap()
}

#[test]
fn three_nodes_found_a_cluster_and_any_of_them_serves() {
    let group = Group::founded(3);
    let leader = group.leader();
    for number in 1..=3 {
        let name = format!("via{number}");
        let version = group.create(number, &name);
        for reader in 1..=3 {
            let at = block_on(group.catalog(reader).read_index(PATIENCE)).unwrap();
            assert!(at >= version);
            let state = group.catalog(reader).snapshot().unwrap();
            assert!(state.version() >= at);
            assert!(
                group.tables(reader).contains(&name),
                "node {reader} does not see {name}"
            );
        }
    }
    group.same_everywhere();
    let state = group.catalog(1).snapshot().unwrap();
    assert_eq!(state.get::<Cluster>(&ClusterKey).unwrap().unwrap().name, "test");
    let nodes = state.list::<Node>(&[]).unwrap();
    assert_eq!(
        nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(),
        ["n1", "n2", "n3"]
    );
    for (node, number) in nodes.iter().zip(1..) {
        assert_eq!(node.instance, group.catalog(number).instance());
        assert_eq!(node.id, group.catalog(number).node_id());
        assert_eq!(node.addresses.raft, group.members[number as usize - 1].raft_addr);
        assert_eq!(group.catalog(1).peer(node.id).unwrap().name, node.name);
    }

    // A refusal is an answer.
    let (_, outcome) = group.propose(group.follower(), create("via1")).unwrap();
    assert!(outcome.unwrap_err().to_string().contains("via1"));

    let mut large = create("large");
    if let Command::CreateTable(create) = &mut large.command {
        create.columns[0].name = "x".repeat(300 << 10);
    }
    let error = group.propose(1, large).unwrap_err();
    assert!(
        matches!(error, ProposeError::TooLarge { bytes, limit: 262_144 } if bytes > 300 << 10),
        "{error}"
    );

    let status = group.catalog(leader).status();
    assert_eq!((status.role.as_str(), status.leader), ("Leader", Some(NodeId(leader))));
    assert_eq!(status.followers.len(), 2);
    assert!(status.waiting_for.is_none() && status.stopped.is_none());
    assert!(status.applied > Version(3));

    let to = group.follower();
    let moved = block_on(group.catalog(leader).transfer_leadership(Some(NodeId(to)), PATIENCE));
    assert!(moved);
    assert_eq!(group.leader(), to);
    group.create(leader, "after");
}

#[test]
fn one_node_is_a_cluster_too() {
    let mut group = Group::founded(1);
    group.create(1, "a");
    assert!(block_on(group.catalog(1).read_index(PATIENCE)).is_ok());
    group.stop(1);
    group.start(1);
    group.create(1, "b");
    assert_eq!(group.tables(1), ["a", "b"]);
}

#[test]
fn the_loss_of_a_leader_loses_nothing() {
    let mut group = Group::founded(3);
    let mut created = Vec::new();
    for round in 0..3 {
        let leader = group.leader();
        let via = group.follower();
        for i in 0..10 {
            let name = format!("r{round}i{i}");
            group.create(via, &name);
            created.push(name);
        }
        group.kill(leader);
        let begun = Instant::now();
        let name = format!("r{round}without{leader}");
        group.create(via, &name);
        created.push(name);
        println!("a proposal was served {:?} after the leader was lost", begun.elapsed());
        block_on(group.catalog(via).read_index(PATIENCE)).unwrap();
        created.sort();
        assert_eq!(group.tables(via), created);
        group.start(leader);
    }
    group.same_everywhere();
    for number in 1..=3 {
        assert_eq!(group.tables(number), created);
    }
}

#[test]
fn a_restart_of_all_keeps_everything() {
    let mut group = Group::founded(3);
    for i in 0..20 {
        group.create(1 + i % 3, &format!("t{i}"));
    }
    group.same_everywhere();
    let digest = group.catalog(1).snapshot().unwrap().digest().unwrap();
    let instance = group.catalog(2).instance();
    for number in [1, 2, 3] {
        if number == 2 {
            group.stop(number)
        } else {
            group.kill(number)
        }
    }
    for number in [3, 2, 1] {
        group.start(number);
    }
    assert_eq!(group.catalog(2).instance(), instance);
    for number in 1..=3 {
        block_on(group.catalog(number).read_index(PATIENCE)).unwrap();
        let state = group.catalog(number).snapshot().unwrap();
        assert_eq!(state.digest().unwrap(), digest);
    }
    group.create(1, "after");
}

#[test]
fn a_follower_that_missed_too_much_gets_the_files() {
    let mut group = Group::new(3);
    (group.snapshot_entries, group.keep_entries) = (40, 5);
    let mut group = group.found();
    let behind = group.follower();
    group.create(behind, "first");
    group.same_everywhere();
    let was_at = group.catalog(behind).status().last_log.unwrap();
    let held = group.catalog(behind).snapshot().unwrap();
    drop(held);
    group.kill(behind);
    let via = group.leader();
    for i in 0..200 {
        group.create(via, &format!("t{i}"));
    }
    eventually("the log is purged", || {
        let status = group.catalog(via).status();
        (status.purged > Some(was_at + 50)).then_some(())
    });
    group.start(behind);
    block_on(
        group
            .catalog(behind)
            .wait_applied(group.catalog(via).status().applied, PATIENCE),
    )
    .unwrap();
    group.same_everywhere();
    assert_eq!(group.tables(behind).len(), 201);
    assert!(group.catalog(behind).status().snapshot > Some(was_at + 50));
    // What it got is what it starts with again.
    group.kill(behind);
    group.start(behind);
    group.create(behind, "last");
    block_on(group.catalog(behind).read_index(PATIENCE)).unwrap();
    group.same_everywhere();
    let catalogs = std::fs::read_dir(group.folder.path().join(format!("n{behind}/catalog"))).unwrap();
    let names: Vec<_> = catalogs
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(
        names.iter().filter(|name| name.starts_with('0')).count(),
        1,
        "{names:?}"
    );
    let incoming = group.folder.path().join(format!("n{behind}/catalog/incoming"));
    assert_eq!(std::fs::read_dir(incoming).unwrap().count(), 0);
}

#[test]
fn without_a_quorum_nothing_is_confirmed_and_later_everything_is_consistent() {
    let mut group = Group::founded(3);
    group.create(1, "before");
    let leader = group.leader();
    let others: Vec<u64> = (1..=3).filter(|number| *number != leader).collect();
    for number in &others {
        group.kill(*number);
    }
    let short = Duration::from_millis(700);
    let error = block_on(group.catalog(leader).propose(create("lost"), short)).unwrap_err();
    assert!(matches!(error, ProposeError::Unknown(_)), "{error}");
    let error = block_on(group.catalog(leader).read_index(short)).unwrap_err();
    assert!(matches!(error, ReadError::NoLeader { .. }), "{error}");
    // Reads of what is here still work.
    assert!(group.tables(leader).contains(&"before".to_owned()));
    for number in &others {
        group.start(*number);
    }
    group.create(others[0], "after");
    group.same_everywhere();
    // It may have come through or not; the same everywhere, and at most once.
    let lost = group.tables(1).iter().filter(|name| *name == "lost").count();
    assert!(lost <= 1);
}

#[test]
fn a_proposal_that_finds_no_leader_is_certainly_not_sent() {
    let mut group = Group::new(2);
    group.start(1);
    let error = block_on(group.catalog(1).propose(create("a"), Duration::from_millis(300))).unwrap_err();
    assert!(matches!(error, ProposeError::NotSent(_)), "{error}");
    let waiting = group.catalog(1).status().waiting_for.unwrap_or_default();
    assert!(waiting.contains("'n2'"), "{waiting}");
}

#[test]
fn a_wiped_node_is_not_the_one_it_was() {
    let mut group = Group::founded(3);
    group.create(1, "a");
    for wiped in [group.follower(), group.leader()] {
        group.kill(wiped);
        let data = group.folder.path().join(format!("n{wiped}"));
        let kept = group.folder.path().join("kept");
        std::fs::rename(&data, &kept).unwrap();
        let catalog = group.start(wiped);
        let error = block_on(tokio_timeout(catalog.wait_founded())).unwrap_err();
        let StartError::Replaced { instance, known, .. } = &error else {
            panic!("{error}")
        };
        assert_ne!(instance.to_string(), known.to_string());
        let text = error.to_string();
        assert!(
            text.contains("wiped node is a new node") && text.contains(&format!("'n{wiped}'")),
            "{text}"
        );
        drop(catalog);
        group.kill(wiped);
        // With its own folder it is itself again.
        remove(&data);
        std::fs::rename(&kept, &data).unwrap();
        group.start(wiped);
        group.create(wiped, &format!("back{wiped}"));
        group.same_everywhere();
    }
}

#[test]
fn a_folder_of_another_node_or_cluster_is_refused() {
    let mut group = Group::founded(1);
    group.stop(1);
    group.cluster = "other".into();
    let Err(error) = group.try_start(1) else {
        panic!("started")
    };
    let StartError::ForeignFolder { found, cluster, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!((found.cluster_name.as_str(), cluster.as_str()), ("test", "other"));
    let folder = group.folder.path().join("n1").display().to_string();
    assert!(error.to_string().contains(&folder), "{error}");
    group.cluster = "test".into();
    std::fs::remove_file(group.folder.path().join("n1/identity.json")).unwrap();
    let Err(error) = group.try_start(1) else {
        panic!("started")
    };
    assert!(matches!(error, StartError::LostIdentity { .. }), "{error}");
}

#[test]
fn a_node_of_another_cluster_at_a_members_address_is_an_error() {
    let mut one = Group::new(1);
    one.cluster = "other".into();
    let one = one.found();
    let mut two = Group::new(2);
    two.members[1].raft_addr = one.members[0].raft_addr.clone();
    let catalog = two.start(1);
    let error = block_on(tokio_timeout(catalog.wait_founded())).unwrap_err();
    let StartError::OtherCluster { cluster, found, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!((cluster.as_str(), found.as_str()), ("test", "other"));
}

#[test]
fn proposals_share_fsyncs() {
    let group = Group::founded(3);
    let via = group.follower();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    for (label, number, at_once, total) in [
        ("leader", group.leader(), 1, 50),
        ("leader", group.leader(), 64, 2000),
        ("follower", via, 64, 2000),
    ] {
        let catalog = group.catalog(number).clone();
        let begun = Instant::now();
        runtime.block_on(async {
            let limit = Arc::new(tokio::sync::Semaphore::new(at_once));
            let tasks = (0..total).map(|i| {
                let (catalog, limit) = (catalog.clone(), limit.clone());
                tokio::spawn(async move {
                    let _permit = limit.acquire().await.unwrap();
                    let proposal = create(&format!("{label}{at_once}x{i}"));
                    catalog.propose(proposal, PATIENCE).await.unwrap().1.unwrap();
                })
            });
            for task in tasks.collect::<Vec<_>>() {
                task.await.unwrap();
            }
        });
        let seconds = begun.elapsed().as_secs_f64();
        println!(
            "{total} proposals via the {label}, {at_once} at once: {:.0}/s",
            total as f64 / seconds
        );
    }
    group.same_everywhere();
}

#[test]
fn a_folder_that_lost_its_log_is_refused() {
    let mut group = Group::founded(3);
    let number = group.follower();
    group.create(number, "a");
    group.stop(number);
    let data = group.folder.path().join(format!("n{number}"));
    remove(&data.join("raft-log"));
    let Err(error) = group.try_start(number) else {
        panic!("started without its log")
    };
    assert!(matches!(error, StartError::LostLog { .. }), "{error}");
    // Not even when the catalog is gone with it.
    remove(&data.join("raft-log"));
    remove(&data.join("catalog"));
    let Err(error) = group.try_start(number) else {
        panic!("started without its data")
    };
    assert!(matches!(error, StartError::LostLog { .. }), "{error}");
}

#[test]
fn a_message_for_another_folder_is_not_taken() {
    let group = Group::founded(2);
    let (one, two) = (
        group.catalog(1).instance().to_string(),
        group.catalog(2).instance().to_string(),
    );
    let right = Header {
        cluster: "test".into(),
        from_node: 1,
        from_instance: one.clone(),
        to_node: 2,
        to_instance: two.clone(),
    };
    let wrong = [
        (
            Header {
                cluster: "other".into(),
                ..right.clone()
            },
            "belongs to cluster 'test'",
        ),
        (
            Header {
                to_instance: one.clone(),
                ..right.clone()
            },
            "the message is for node 2",
        ),
        (
            Header {
                to_node: 3,
                ..right.clone()
            },
            "the message is for node 3",
        ),
        (
            Header {
                from_instance: two,
                ..right.clone()
            },
            "node 1 is known with data folder",
        ),
    ];
    let address = format!("http://{}", group.members[1].raft_addr);
    group.running[&1].runtime.block_on(async {
        let mut client = RaftClient::new(Endpoint::from_shared(address).unwrap().connect_lazy());
        for (header, reason) in wrong {
            let envelope = Envelope {
                header: Some(header.clone()),
                body: vec![0xc0].into(),
            };
            let status = client.vote(envelope.clone()).await.unwrap_err();
            assert_eq!(status.code(), tonic::Code::FailedPrecondition);
            assert!(status.message().contains(reason), "{status}");
            assert_eq!(
                client.append(envelope).await.unwrap_err().code(),
                tonic::Code::FailedPrecondition
            );
            let propose = ProposeRequest {
                header: Some(header),
                proposal: vec![].into(),
                timeout_ms: 1000,
            };
            assert_eq!(
                client.propose(propose).await.unwrap_err().code(),
                tonic::Code::FailedPrecondition
            );
        }
        // The right one comes as far as the content.
        let envelope = Envelope {
            header: Some(right),
            body: vec![0xc0].into(),
        };
        assert_eq!(
            client.vote(envelope).await.unwrap_err().code(),
            tonic::Code::InvalidArgument
        );
    });
}

#[test]
fn every_answer_holds_through_changes_of_the_leader() {
    let mut group = Group::founded(3);
    let mut answers: Vec<(String, Result<(), ProposeError>)> = Vec::new();
    for round in 0..4 {
        let leader = group.leader();
        let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let proposers: Vec<_> = group
            .running
            .iter()
            .filter(|(number, _)| **number != leader)
            .flat_map(|(number, running)| (0..4).map(move |task| (*number, task, running.catalog.clone())))
            .map(|(number, task, catalog)| {
                let done = done.clone();
                group.running[&number].runtime.spawn(async move {
                    let mut answers = Vec::new();
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        let name = format!("r{round}n{number}t{task}i{}", answers.len());
                        // Short, so that all three kinds of answer come up.
                        let answer = catalog.propose(create(&name), Duration::from_millis(300)).await;
                        answers.push((name, answer.map(|(_, outcome)| assert!(outcome.is_ok(), "{outcome:?}"))));
                    }
                    answers
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        group.kill(leader);
        std::thread::sleep(Duration::from_millis(1500));
        group.start(leader);
        std::thread::sleep(Duration::from_millis(500));
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        for proposer in proposers {
            answers.extend(block_on(proposer).unwrap());
        }
    }
    group.create(1, "last");
    group.same_everywhere();
    let tables: std::collections::BTreeSet<String> = group.tables(1).into_iter().collect();
    let (mut done, mut not_sent, mut unknown) = (0, 0, 0);
    for (name, answer) in answers {
        match answer {
            Ok(()) => {
                assert!(tables.contains(&name), "{name} was acknowledged and is gone");
                done += 1;
            }
            Err(ProposeError::NotSent(reason)) => {
                assert!(
                    !tables.contains(&name),
                    "{name} was certainly not sent ({reason}) and is there"
                );
                not_sent += 1;
            }
            Err(ProposeError::Unknown(_)) => unknown += 1,
            Err(error) => panic!("{error}"),
        }
    }
    println!("{done} done, {not_sent} not sent, {unknown} unknown");
    assert!(
        done > 100 && not_sent > 0,
        "{done} done, {not_sent} not sent, {unknown} unknown"
    );
}
