//! A group in one process, over real connections. Each node has a runtime of its own, so that
//! dropping that is the end of the node, with everything it had open, as a crash would be.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tidemill_core::{
    BootId, Command, InstanceId, NodeId, Outcome, Proposal, Response, Version,
    catalog::{Addresses, Node, NodeIntent, NodeState, Table, TableSettings},
    command::{AddNode, CreateTable, NodeUp, SetNodeIntent, SetNodeState},
    membership::{Heard, Plan},
    schema::{Column, ColumnType},
    view::CatalogRead,
};
use tidemill_raft::{Catalog, Claim, MemberConfig, ProposeError, RaftConfig, StartError};
use tokio::{net::TcpListener, runtime::Runtime};

pub const PATIENCE: Duration = Duration::from_secs(30);

fn member(number: usize, listener: &std::net::TcpListener) -> MemberConfig {
    MemberConfig {
        name: format!("n{number}"),
        raft_addr: listener.local_addr().unwrap().to_string(),
        api_addr: format!("127.0.0.1:{number}"),
        http_addr: format!("127.0.0.1:{}", 100 + number),
        warehouse: "default".into(),
    }
}

fn addresses(member: &MemberConfig) -> Addresses {
    Addresses {
        raft: member.raft_addr.clone(),
        api: member.api_addr.clone(),
        http: member.http_addr.clone(),
    }
}

pub fn create(name: &str) -> Proposal {
    let create = CreateTable {
        name: name.into(),
        id: None,
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
        settings: TableSettings::default(),
    };
    Proposal::new(1_700_000_000_000, Command::CreateTable(create))
}

/// Tries until it succeeds.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
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
pub fn remove(folder: &std::path::Path) {
    eventually("the folder can be removed", || std::fs::remove_dir_all(folder).ok());
}

/// A node that runs.
pub struct Running {
    pub runtime: Runtime,
    pub catalog: Catalog,
}

/// A group whose nodes can be stopped and started.
pub struct Group {
    pub folder: TempDir,
    pub cluster: String,
    /// All nodes by number, from 1; first those that found the group.
    pub members: Vec<MemberConfig>,
    pub founding: usize,
    pub snapshot_entries: u64,
    pub keep_entries: u64,
    pub running: BTreeMap<u64, Running>,
}

impl Group {
    pub fn new(nodes: usize) -> Self {
        // Held until all are known, so that no two get the same port.
        let listeners: Vec<_> = (0..nodes)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let members = listeners
            .iter()
            .zip(1..)
            .map(|(listener, number)| member(number, listener));
        Self {
            folder: TempDir::new().unwrap(),
            cluster: "test".into(),
            members: members.collect(),
            founding: nodes,
            snapshot_entries: 20_000,
            keep_entries: 5_000,
            running: BTreeMap::new(),
        }
    }

    pub fn config(&self, number: u64) -> RaftConfig {
        let data = self.folder.path().join(format!("n{number}"));
        let own = self.members[number as usize - 1].clone();
        let mut config = if number as usize <= self.founding {
            RaftConfig::new(data, &self.cluster, own.name, self.members[..self.founding].to_vec())
        } else {
            RaftConfig::joining(data, &self.cluster, own)
        };
        config.snapshot_entries = self.snapshot_entries;
        config.keep_entries = self.keep_entries;
        config
    }

    pub fn try_start(&self, number: u64) -> Result<Running, StartError> {
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

    pub fn start(&mut self, number: u64) -> Catalog {
        let running = self.try_start(number).unwrap();
        let catalog = running.catalog.clone();
        self.running.insert(number, running);
        catalog
    }

    /// One more node, which joins; it has no folder yet.
    pub fn another(&mut self) -> u64 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        self.members.push(member(self.members.len() + 1, &listener));
        self.members.len() as u64
    }

    /// Asks, via a node, to admit `number` with this folder.
    pub fn ask(&self, via: u64, number: u64, instance: InstanceId) -> Outcome {
        let own = &self.members[number as usize - 1];
        let command = Command::AddNode(AddNode {
            name: own.name.clone(),
            instance,
            warehouse: own.warehouse.clone(),
            addresses: addresses(own),
        });
        self.propose(via, Proposal::new(0, command)).unwrap().1
    }

    /// Admits `number` with its folder and starts it.
    pub fn join(&mut self, via: u64, number: u64) -> Catalog {
        if let Claim::New(instance) = Catalog::claim(&self.config(number)).unwrap() {
            let Ok(Response::Node(id)) = self.ask(via, number, instance) else {
                panic!("not admitted")
            };
            Catalog::admit(&self.config(number), id).unwrap();
        }
        self.start(number)
    }

    /// Says what is wanted of a node, by its id.
    pub fn intend(&self, via: u64, node: NodeId, intent: NodeIntent) -> Outcome {
        let command = Command::SetNodeIntent(SetNodeIntent { node, intent });
        self.propose(via, Proposal::new(0, command)).unwrap().1
    }

    /// Does once what a manager does: says who is up and who is down, and takes a step of membership. `None` while
    /// nobody leads or the step failed.
    pub fn manage(&self) -> Option<Plan> {
        let alive = self.judge()?;
        let (_, manager) = self
            .running
            .iter()
            .find(|(_, r)| r.catalog.leadership().borrow().is_self)?;
        block_on(manager.catalog.tend_membership(heard(alive), Duration::from_secs(3))).ok()
    }

    /// Says once who is up and who is down; gives those that are up.
    pub fn judge(&self) -> Option<BTreeSet<NodeId>> {
        let (_, manager) = self
            .running
            .iter()
            .find(|(_, r)| r.catalog.leadership().borrow().is_self)?;
        let ids: BTreeMap<NodeId, &Catalog> = self
            .running
            .values()
            .map(|r| (r.catalog.node_id(), &r.catalog))
            .collect();
        let state = manager.catalog.snapshot().unwrap();
        for node in state.list::<Node>(&[]).unwrap() {
            // A node beats once it is part of the cluster.
            let there = ids.get(&node.id).filter(|catalog| is_part(catalog));
            let command = match (there, node.state) {
                (_, NodeState::Removed) => continue,
                (Some(catalog), NodeState::Joining | NodeState::Down) => Command::NodeUp(NodeUp {
                    node: node.id,
                    instance: catalog.instance(),
                    boot: BootId(1),
                    addresses: node.addresses,
                    disk: None,
                    warehouse: None,
                }),
                (Some(_), NodeState::Draining) if node.intent == NodeIntent::Serve => Command::NodeUp(NodeUp {
                    node: node.id,
                    instance: node.instance,
                    boot: BootId(1),
                    addresses: node.addresses,
                    disk: None,
                    warehouse: None,
                }),
                (None, NodeState::Ready | NodeState::Draining) if !ids.contains_key(&node.id) => {
                    Command::SetNodeState(SetNodeState {
                        node: node.id,
                        boot: node.boot,
                        state: NodeState::Down,
                    })
                }
                _ => continue,
            };
            // A refusal says that the state has moved on; the next look sees how.
            drop(
                block_on(
                    manager
                        .catalog
                        .propose(Proposal::new(0, command), Duration::from_secs(2)),
                )
                .ok()?,
            );
        }
        let removed = |id: &NodeId| *ids[id].removed().borrow();
        Some(ids.keys().filter(|id| !removed(id)).copied().collect())
    }

    /// Manages until nothing is left to do, and all nodes that run have caught up.
    pub fn settle(&self) {
        let all: BTreeSet<NodeId> = self.running.values().map(|r| r.catalog.node_id()).collect();
        eventually("the group is settled", || {
            let before = self.manage()?;
            let (_, leading) = self
                .running
                .iter()
                .find(|(_, r)| r.catalog.leadership().borrow().is_self)?;
            let group = leading.catalog.group(&heard(all.clone())).unwrap()?;
            let there = |id: &NodeId| group.nodes[id].state == NodeState::Ready && group.nodes[id].caught_up;
            (before == Plan::Settled && all.iter().all(there)).then_some(())
        });
        // What was seen last came after what was done last.
        eventually("it stays so", || (self.manage()? == Plan::Settled).then_some(()));
    }

    /// Who votes and who learns, as `via` sees it.
    pub fn roles(&self, via: u64) -> (Vec<u64>, Vec<u64>) {
        let status = self.catalog(via).status();
        let plain = |ids: BTreeSet<NodeId>| ids.into_iter().map(|id| id.0).collect();
        (plain(status.voters), plain(status.learners))
    }

    pub fn founded(nodes: usize) -> Self {
        Self::new(nodes).found()
    }

    pub fn found(mut self) -> Self {
        for number in 1..=self.founding as u64 {
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
    pub fn kill(&mut self, number: u64) {
        let Running { runtime, catalog } = self.running.remove(&number).unwrap();
        runtime.shutdown_timeout(Duration::from_secs(10));
        drop(catalog);
    }

    pub fn stop(&mut self, number: u64) {
        let Running { runtime, catalog } = self.running.remove(&number).unwrap();
        runtime.block_on(catalog.shutdown());
        runtime.shutdown_timeout(Duration::from_secs(10));
    }

    pub fn catalog(&self, number: u64) -> &Catalog {
        &self.running[&number].catalog
    }

    /// The number of the node that calls itself leader; not all nodes need to know.
    pub fn leading(&self) -> u64 {
        let leading = |(number, r): (&u64, &Running)| r.catalog.leadership().borrow().is_self.then_some(*number);
        eventually("somebody leads", || self.running.iter().find_map(leading))
    }

    /// The number of the node that leads.
    pub fn leader(&self) -> u64 {
        eventually("a leader that all know", || {
            let known: Vec<_> = self
                .running
                .values()
                .map(|r| r.catalog.leadership().borrow().leader)
                .collect();
            let leader = known[0].filter(|leader| known.iter().all(|other| *other == Some(*leader)))?;
            let leading = self.running.iter().find(|(_, r)| r.catalog.node_id() == leader);
            leading.map(|(number, _)| *number)
        })
    }

    pub fn follower(&self) -> u64 {
        let leader = self.leader();
        *self.running.keys().find(|number| **number != leader).unwrap()
    }

    pub fn propose(&self, via: u64, proposal: Proposal) -> Result<(Version, tidemill_core::Outcome), ProposeError> {
        block_on(self.catalog(via).propose(proposal, Duration::from_secs(20)))
    }

    pub fn create(&self, via: u64, name: &str) -> Version {
        let (version, outcome) = self.propose(via, create(name)).unwrap();
        assert!(matches!(outcome, Ok(Response::Table(_))), "{outcome:?}");
        version
    }

    pub fn tables(&self, number: u64) -> Vec<String> {
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
    pub fn same_everywhere(&self) {
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

/// Whether a node is part of the cluster by its own catalog, and has noted it.
fn is_part(catalog: &Catalog) -> bool {
    let founded = async { tokio::time::timeout(Duration::from_millis(5), catalog.wait_founded()).await };
    block_on(founded).is_ok_and(|founded| founded.is_ok())
}

/// Heartbeats of nodes whose logs hold nothing.
pub fn heard(alive: BTreeSet<NodeId>) -> Heard {
    Heard {
        handed_over: alive.iter().map(|node| (*node, Version(u64::MAX))).collect(),
        alive,
    }
}

/// The handle is used from outside of the runtime of Raft here.
pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

pub async fn tokio_timeout<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap()
}
