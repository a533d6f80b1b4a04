//! Starting a node, in order, and ending it, in order.
//!
//! Up: addresses are bound first, so that a port in use is told before anything is touched; then the part store, the
//! write-ahead log, the admission of a node that joins, Raft, and the founding; then heartbeats and, once the cluster knows this run
//! of the process, tasks.
//! Down: tasks commit what they have, the manager moves the shards away, Raft leadership is handed on, statements
//! come to their ends, and only then do the servers stop.

use crate::adapters::{ClusterProgress, ClusterRows, Connections, KafkaSources, SharedCatalog};
use crate::allocator;
use crate::config::{NodeConfig, PartStoreConfig};
use crate::heartbeat::{Contact, Heart};
use crate::http::{self, Pages};
use crate::join;
use crate::manager::{Manager, Reports};
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::parts::{ClusterDisks, Keeper, KeeperState};
use crate::replay::Decode;
use crate::services::{
    ApiService, FreshService, MAX_CHUNK, MAX_REQUEST, ManagerService, MembershipService, PartsService, StrandedService,
    UnderWay, WritesService,
};
use crate::signals::Signals;
use crate::stranded;
use crate::supervisor::{ALONE, Supervisor};
use anyhow::{Context, anyhow};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tidemill_core::DiskId;
use tidemill_core::catalog::{Addresses, Cluster, ClusterKey, Replication, Shard};
use tidemill_core::view::CatalogRead;
use tidemill_ingest::budget::Budget;
use tidemill_ingest::priority::Priority;
use tidemill_ingest::task::TaskContext;
use tidemill_proto::api::fresh_server::FreshServer;
use tidemill_proto::api::manager_server::ManagerServer;
use tidemill_proto::api::membership_server::MembershipServer;
use tidemill_proto::api::parts_server::PartsServer;
use tidemill_proto::api::stranded_server::StrandedServer;
use tidemill_proto::api::tidemill_server::TidemillServer;
use tidemill_proto::api::writes_server::WritesServer;
use tidemill_query::{Engine, EngineConfig};
use tidemill_raft::{Catalog, RaftConfig};
use tidemill_storage::store::{self, Disk, DiskFolder, PartStore, ReplicatedStore, StoreError};
use tidemill_storage::wal::{Wal, WalClosing, WalOptions};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{mpsc, watch};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tracing::{info, warn};

/// How long a graceful end may take for commits, again for moving shards away, and again for statements that run.
const DRAIN: Duration = Duration::from_secs(10);

/// How long the end of the process waits for the write-ahead log to be closed.
const CLOSE: Duration = Duration::from_secs(6);

/// How long a node that is refused waits to learn whether it was removed.
const MOMENT: Duration = Duration::from_secs(2);

/// How many bytes of a file may be on their way to this node without having been taken.
const WINDOW: u32 = 4 << 20;

/// The file in a part store that says whose it is.
const MARK: &str = "cluster.id";

/// Runs a node until it is told to end or cannot go on.
///
/// # Errors
/// Says what kept the node from starting, or made it end.
pub fn run(config: NodeConfig) -> anyhow::Result<()> {
    let control = runtime("control", 2)?;
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let ingest = runtime("ingest", cores)?;
    let statements = runtime("statements", cores)?;
    let query = runtime("query", cores)?;
    let runtimes = Runtimes {
        ingest: ingest.handle().clone(),
        statements: statements.handle().clone(),
        query: query.handle().clone(),
    };
    let mut wal = WalClosing::default();
    let ended = control.block_on(start_and_wait(config, &mut wal, &runtimes));
    // Nothing of value is under way any more; what does not end by itself is not waited for.
    statements.shutdown_background();
    query.shutdown_background();
    ingest.shutdown_background();
    control.shutdown_timeout(Duration::from_secs(1));
    // A consumer thread may still be in a call to its broker, and holds the log until that returns.
    let until = Instant::now() + CLOSE;
    while !wal.is_done() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    ended
}

/// Those beside `control`, which everything is led from.
struct Runtimes {
    ingest: Handle,
    statements: Handle,
    query: Handle,
}

fn runtime(name: &'static str, threads: usize) -> anyhow::Result<Runtime> {
    let built = Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(name)
        .enable_all()
        .build();
    built.with_context(|| format!("the {name} runtime cannot be started"))
}

async fn bind(what: &str, address: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow!(
            "cannot listen on {address} ({what}): the port is in use; another node or program has it. \
             End that one, or choose another port for [listen] {what}"
        ),
        _ => anyhow!("cannot listen on {address} ({what}): {error}"),
    })
}

struct Listeners {
    raft: TcpListener,
    api: TcpListener,
    http: TcpListener,
}

async fn start_and_wait(config: NodeConfig, closing: &mut WalClosing, runtimes: &Runtimes) -> anyhow::Result<()> {
    let listeners = Listeners {
        raft: bind("raft", &config.listen.raft).await?,
        api: bind("api", &config.listen.api).await?,
        http: bind("http", &config.listen.http).await?,
    };
    let parts = {
        let _makes_its_requests = runtimes.ingest.enter();
        Opened::open(&config.part_store).context("the part store cannot be used")?
    };
    let wal_dir = config.wal_dir.clone();
    let wal = tokio::task::spawn_blocking(move || Wal::open(&wal_dir, WalOptions::default())).await??;
    *closing = wal.closing();
    let mut raft_config = RaftConfig::with_origin(
        config.data_dir.clone(),
        config.cluster.clone(),
        config.own.name.clone(),
        config.origin(),
    );
    raft_config.replication = match parts {
        Opened::Replicated(_) => Some(Replication::of_founders(config.members.len())),
        Opened::Shared(_) => None,
    };
    raft_config.memory = config.memory.catalog;
    join::admitted(&config, &raft_config).await?;
    let (catalog, raft_service) = Catalog::start(raft_config).await?;

    let node = Arc::new(Running::assemble(&config, catalog.clone(), parts, wal, runtimes)?);
    let (stop, stopped) = watch::channel(false);
    let until = || told(stopped.clone());
    let manager_service = ManagerService {
        catalog: catalog.clone(),
        reports: node.reports.clone(),
    };
    let raft_server = Server::builder()
        .add_service(raft_service.into_server())
        .add_service(ManagerServer::new(manager_service))
        .add_service(MembershipServer::new(node.membership()))
        .serve_with_incoming_shutdown(TcpIncoming::from(listeners.raft).with_nodelay(Some(true)), until());
    let raft_server = tokio::spawn(raft_server);
    tokio::spawn(http::serve(listeners.http, node.pages(), until()));

    let ended = node.clone().live(&config, listeners.api, runtimes).await;
    stop.send_replace(true);
    // Give the servers a moment to end their streams; peers reconnect elsewhere anyway.
    drop(tokio::time::timeout(Duration::from_millis(500), raft_server).await);
    tokio::time::timeout(Duration::from_secs(6), catalog.shutdown())
        .await
        .ok();
    ended
}

/// What parts are kept in, before it is known which node this is.
enum Opened {
    Shared(Arc<dyn PartStore>),
    Replicated(DiskFolder),
}

impl Opened {
    fn open(config: &PartStoreConfig) -> Result<Self, StoreError> {
        Ok(match config {
            PartStoreConfig::Shared(url, s3) => Self::Shared(store::open(url, s3)?),
            PartStoreConfig::Replicated(folder) => Self::Replicated(DiskFolder::open(folder, DiskId(rand::random()))?),
        })
    }
}

/// What parts are kept in.
struct Parts {
    store: Arc<dyn PartStore>,
    /// This node's disk, where parts are replicated.
    disk: Option<Disk>,
    /// Waits to be run there.
    keeper: Mutex<Option<Keeper>>,
    state: Arc<KeeperState>,
}

impl Parts {
    fn new(opened: Opened, catalog: &Catalog, config: &NodeConfig, ingest: &Handle) -> Self {
        let state = Arc::new(KeeperState::default());
        let (store, disk, keeper): (Arc<dyn PartStore>, _, _) = match opened {
            Opened::Shared(store) => (store, None, None),
            Opened::Replicated(folder) => {
                let disk = folder.of(catalog.node_id());
                let (damaged, reports) = mpsc::unbounded_channel();
                let disks = Arc::new(ClusterDisks {
                    own: disk.clone(),
                    catalog: catalog.clone(),
                    connections: Connections::new(ingest.clone()),
                    damaged,
                });
                let keeper = Keeper::new(disks.clone(), reports, config.keeper, state.clone());
                (Arc::new(ReplicatedStore::new(disks)), Some(disk), Some(keeper))
            }
        };
        Self {
            store,
            disk,
            keeper: Mutex::new(keeper),
            state,
        }
    }
}

/// The pieces of a node, wired together.
struct Running {
    name: String,
    catalog: Catalog,
    supervisor: Arc<Supervisor>,
    contact: Arc<Contact>,
    reports: Arc<Reports>,
    progress: Arc<ClusterProgress>,
    heart: Arc<Heart>,
    engine: Arc<Engine>,
    metrics: Arc<Metrics>,
    memory: Arc<Memory>,
    parts: Parts,
    membership: MembershipService,
    statements: UnderWay,
}

impl Running {
    fn assemble(
        config: &NodeConfig,
        catalog: Catalog,
        opened: Opened,
        wal: Wal,
        runtimes: &Runtimes,
    ) -> anyhow::Result<Self> {
        let parts = Parts::new(opened, &catalog, config, &runtimes.ingest);
        let contact = Arc::new(Contact::default());
        let reports = Arc::new(Reports::default());
        let connections = Arc::new(Connections::new(runtimes.ingest.clone()));
        let priority = Arc::new(Priority::default());
        let budget = Arc::new(Budget::new(config.memory.rows, config.memory.decoding));
        let context = Arc::new(TaskContext {
            takeovers: Arc::default(),
            cluster: config.cluster.clone(),
            committer: Arc::new(SharedCatalog(catalog.clone())),
            store: parts.store.clone(),
            wal: Arc::new(wal),
            budget: budget.clone(),
            priority: priority.clone(),
            attention: Arc::default(),
        });
        let id = catalog.node_id();
        let supervisor = Arc::new(Supervisor::new(id, catalog.clone(), context, contact.clone()));
        let progress = Arc::new(ClusterProgress {
            catalog: catalog.clone(),
            reports: reports.clone(),
            connections: connections.clone(),
        });
        let membership = MembershipService {
            catalog: catalog.clone(),
            reports: reports.clone(),
            connections: connections.clone(),
        };
        let rows = ClusterRows {
            node: id,
            supervisor: supervisor.clone(),
            catalog: catalog.clone(),
            connections,
        };
        let engine_config = EngineConfig {
            memory_limit_bytes: config.memory.queries as usize,
            spill_dir: Some(config.data_dir.join("spill")),
            ..EngineConfig::default()
        };
        // Its operators run there.
        let _on_query_runtime = runtimes.query.enter();
        let engine = Engine::new(
            engine_config,
            Arc::new(SharedCatalog(catalog.clone())),
            Arc::new(rows),
            progress.clone(),
            Arc::new(KafkaSources),
            Arc::new(Decode {
                store: parts.store.clone(),
            }),
            parts.store.clone(),
            config.own.name.clone(),
        );
        let engine = Arc::new(engine.map_err(|e| anyhow!("the query engine cannot be set up: {}", e.message))?);
        let me = &config.own;
        let pinned = engine.clone();
        let heart = Arc::new(Heart {
            node: id,
            instance: catalog.instance(),
            disk: parts.disk.as_ref().map(|disk| disk.holder().disk),
            addresses: Addresses {
                raft: me.raft_addr.clone(),
                api: me.api_addr.clone(),
                http: me.http_addr.clone(),
            },
            warehouse: config.warehouse.clone(),
            catalog: catalog.clone(),
            supervisor: supervisor.clone(),
            reports: reports.clone(),
            contact: contact.clone(),
            draining: AtomicBool::new(false),
            hand_over: Arc::default(),
            priority,
            pinned: Box::new(move || pinned.oldest_pinned_version()),
        });
        let metrics = Arc::new(Metrics::default());
        let memory = Arc::new(Memory {
            shares: config.memory,
            budget,
            catalog: catalog.clone(),
            engine: engine.clone(),
        });
        let name = config.own.name.clone();
        Ok(Self {
            name,
            catalog,
            supervisor,
            contact,
            reports,
            progress,
            heart,
            engine,
            metrics,
            memory,
            parts,
            membership,
            statements: UnderWay::default(),
        })
    }

    fn membership(&self) -> MembershipService {
        self.membership.clone()
    }

    fn pages(&self) -> Pages {
        Pages {
            catalog: self.catalog.clone(),
            supervisor: self.supervisor.clone(),
            metrics: self.metrics.clone(),
            reports: self.reports.clone(),
            memory: self.memory.clone(),
            parts: self.parts.state.clone(),
            contact: self.contact.clone(),
        }
    }

    /// Joins the cluster and works until told to end.
    async fn live(self: Arc<Self>, config: &NodeConfig, api: TcpListener, runtimes: &Runtimes) -> anyhow::Result<()> {
        let ingest = &runtimes.ingest;
        info!(node = %config.own.name, cluster = %config.cluster, "waiting for the cluster");
        let mut signals = Signals::new()?;
        tokio::select! {
            founded = self.catalog.wait_founded() => founded?,
            refused = join::refused(config, self.catalog.instance()) => return Err(refused),
            () = signals.next() => return Ok(()),
        }
        self.claim_stores(config).await?;
        let service = ApiService {
            engine: self.engine.clone(),
            catalog: self.catalog.clone(),
            progress: self.progress.clone(),
            node: self.name.clone(),
            part_store: config.part_store.of_cluster().to_owned(),
            metrics: self.metrics.clone(),
            runtime: runtimes.statements.clone(),
            under_way: self.statements.clone(),
        };
        let parts = PartsService {
            disk: self.parts.disk.clone(),
        };
        let writes = WritesService {
            node: self.catalog.node_id(),
            catalog: self.catalog.clone(),
            supervisor: self.supervisor.clone(),
        };
        let fresh = FreshService {
            supervisor: self.supervisor.clone(),
        };
        let stranded = StrandedService {
            supervisor: self.supervisor.clone(),
        };
        let (closing, closed) = watch::channel(false);
        let api_server = Server::builder()
            .http2_keepalive_interval(Some(crate::services::KEEPALIVE))
            .initial_stream_window_size(Some(WINDOW))
            .initial_connection_window_size(Some(2 * WINDOW))
            .add_service(TidemillServer::new(service))
            .add_service(FreshServer::new(fresh))
            .add_service(WritesServer::new(writes).max_decoding_message_size(MAX_REQUEST))
            .add_service(StrandedServer::new(stranded).max_decoding_message_size(MAX_CHUNK))
            .add_service(PartsServer::new(parts).max_decoding_message_size(WINDOW as usize))
            .add_service(MembershipServer::new(self.membership()))
            .serve_with_incoming_shutdown(TcpIncoming::from(api).with_nodelay(Some(true)), told(closed));
        let (refused, mut refusal) = watch::channel(None);
        let manager = Manager::new(
            self.catalog.clone(),
            self.reports.clone(),
            self.parts.store.clone(),
            ingest.clone(),
        );
        // None of these ends while the node lives; if one does, the node must not go on half alive.
        let mut api_task = ingest.spawn(api_server);
        let mut supervisor_task = ingest.spawn(self.supervisor.clone().run());
        let mut heart_task = tokio::spawn(self.heart.clone().run(refused));
        let mut manager_task = tokio::spawn(manager.run());
        let mut keeper_task = ingest.spawn(self.clone().keep());
        let mut stranded_task = ingest.spawn(stranded::run(
            self.catalog.node_id(),
            self.catalog.clone(),
            self.supervisor.clone(),
            self.progress.connections.clone(),
            self.heart.hand_over.clone(),
        ));
        ingest.spawn(allocator::give_back(config.memory.limit));
        info!(node = %config.own.name, api = %config.listen.api, http = %config.listen.http, "the node takes part");

        let mut raft_stopped = self.catalog.stopped();
        let mut removed = self.catalog.removed();
        tokio::select! {
            () = signals.next() => {}
            // Its shards have been given away, and its vote: there is nothing left to hand over.
            _ = removed.wait_for(|removed| *removed) => {
                farewell(config);
                self.finish_statements(&closing).await;
                return Ok(());
            }
            why = refusal.wait_for(Option::is_some) => {
                let why = why.ok().and_then(|w| w.clone()).unwrap_or_default();
                // The manager may know that this node was removed before its own catalog does, if that ever will.
                self.catalog.suspect_removal();
                let mut removed = self.catalog.removed();
                if tokio::time::timeout(MOMENT, removed.wait_for(|removed| *removed)).await.is_ok() {
                    farewell(config);
                    self.finish_statements(&closing).await;
                    return Ok(());
                }
                return Err(anyhow!("the cluster does not take this node: {why}"));
            }
            why = raft_stopped.wait_for(Option::is_some) => {
                let why = why.ok().and_then(|w| w.clone()).unwrap_or_default();
                return Err(anyhow!("Raft has stopped: {why}"));
            }
            ended = &mut api_task => return Err(anyhow!("the api server has ended: {ended:?}")),
            ended = &mut supervisor_task => return Err(anyhow!("the supervisor has ended: {ended:?}")),
            ended = &mut heart_task => return Err(anyhow!("the heartbeats have ended: {ended:?}")),
            ended = &mut stranded_task => return Err(anyhow!("the look for stranded rows has ended: {ended:?}")),
            ended = &mut keeper_task => return Err(anyhow!("the keeper of parts has ended: {ended:?}")),
            ended = &mut manager_task => return Err(anyhow!("the manager has ended: {ended:?}")),
        }
        info!("ending: commit, hand over, stop");
        tokio::select! {
            () = async { self.hand_over().await; self.finish_statements(&closing).await } => {}
            () = self.quorum_lost() => warn!("no quorum is left to commit to or hand over to: ending without"),
            () = signals.next() => warn!("told again: ending at once"),
        }
        Ok(())
    }

    /// Keeps this node's parts; waits for ever where it has none.
    async fn keep(self: Arc<Self>) {
        let keeper = self.parts.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        match keeper {
            Some(keeper) => keeper.run().await,
            None => std::future::pending().await,
        }
    }

    /// Marks the part store and the write-ahead log as this cluster's. Two clusters in one part store would collect each other's files, since
    /// neither knows what the other refers to.
    async fn claim_stores(&self, config: &NodeConfig) -> anyhow::Result<()> {
        let cluster = self.catalog.snapshot()?.get::<Cluster>(&ClusterKey)?;
        let cluster = cluster.context("the cluster is founded but has no record of itself")?;
        // Its entries go by the ids of tables and pipes, which mean others in another cluster.
        let owner = format!("cluster '{}' ({})", cluster.name, cluster.id);
        self.supervisor.wal().claim(&owner)?;
        let mark = format!("{} {}\n", cluster.id, cluster.name);
        let shown = &config.part_store;
        let store: &dyn PartStore = match &self.parts.disk {
            Some(disk) => disk,
            None => &*self.parts.store,
        };
        match (self.parts.disk.is_some(), cluster.replication.is_some()) {
            (true, false) => {
                return Err(anyhow!(
                    "the nodes of cluster '{}' share one part store, and this one is configured with part_store = \
                     \"replicated\". Set part_store as the other nodes have it",
                    cluster.name
                ));
            }
            (false, true) => {
                return Err(anyhow!(
                    "cluster '{}' replicates its parts, and this node is configured with part_store = \"{shown}\". Set \
                     part_store = \"replicated\"",
                    cluster.name
                ));
            }
            _ => {}
        }
        if !config.join.is_empty() && self.parts.disk.is_none() && store.get(MARK).await.is_err() {
            return Err(anyhow!(
                "the part store {shown} is not that of cluster '{}': all nodes need the same. Set part_store as the other \
                 nodes have it",
                cluster.name
            ));
        }
        match store.put(MARK, mark.into()).await {
            Ok(_) => Ok(()),
            Err(StoreError::Exists { .. }) => {
                let found = store.get(MARK).await.unwrap_or_default();
                Err(anyhow!(
                    "the part store {shown} belongs to another cluster ({}); every cluster needs one of its own. \
                     Set part_store to an empty folder",
                    String::from_utf8_lossy(&found).trim()
                ))
            }
            Err(error) => Err(error).context("the part store cannot be used"),
        }
    }

    /// Ends when no manager with a quorum has answered for a while, as when all nodes are told to end at once. The
    /// heart goes on beating meanwhile, and knows.
    async fn quorum_lost(&self) {
        while self.contact.silence() < ALONE / 2 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Takes no more requests, and lets the statements that run here come to their ends: whoever asked would be told that files are
    /// missing, or nothing at all, and asking again is safe only before the first rows.
    async fn finish_statements(&self, closing: &watch::Sender<bool>) {
        closing.send_replace(true);
        let until = Instant::now() + DRAIN;
        while self.statements.count() > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn hand_over(&self) {
        self.supervisor.drain(DRAIN).await;
        self.heart.draining.store(true, Ordering::Release);
        let me = self.catalog.node_id();
        let until = Instant::now() + DRAIN;
        while Instant::now() < until {
            let leads = self.catalog.snapshot().ok().and_then(|state| {
                let shards = state.list::<Shard>(&[]).ok()?;
                Some(shards.iter().any(|s| s.leader == Some(me)))
            });
            if leads != Some(true) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if self.catalog.status().voters.len() > 1 {
            self.catalog.transfer_leadership(None, Duration::from_secs(2)).await;
        }
    }
}

/// Ends when that is said.
async fn told(mut said: watch::Receiver<bool>) {
    // An error means that the sender is gone, which says the same.
    drop(said.wait_for(|said| *said).await);
}

fn farewell(config: &NodeConfig) {
    let (name, folder) = (&config.own.name, config.data_dir.display());
    info!("node '{name}' was removed from the cluster: ending. Its data folder {folder} can be deleted");
}
