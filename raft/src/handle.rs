//! The handle on the replicated catalog: propose, read, wait, look. It finds the leader, forwards to
//! it, and keeps *certainly not* apart from *not known*. It can be used from any runtime; the work
//! is done on the one on which [`Catalog::start`] was called. Every call ends by its deadline.

use crate::{
    bootstrap,
    catalog_store::CatalogStore,
    config::RaftConfig,
    error::{ProposeError, ReadError, StartError},
    folder,
    identity::{self, Claim},
    log_store::{LogOptions, LogStore},
    network::Network,
    node::{Attempt, Leadership, Node},
    peers::{Lane, Peers, never_sent},
    retire,
    service::RaftService,
    status::RaftStatus,
    timing::{READ_ATTEMPT, RETRY},
    types::{Member, Raft, decode, encode},
};
use openraft::async_runtime::watch::WatchReceiver;
use std::{
    collections::BTreeSet,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tidemill_core::{
    InstanceId, NodeId, Outcome, Proposal, Version, command::MAX_COMMAND_BYTES, view::CatalogSnapshot,
};
use tidemill_proto::raft::{ProposeRequest, ReadIndexRequest, propose_reply, read_index_reply};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tonic::Code;

/// The replicated catalog, as this node has it.
#[derive(Clone)]
pub struct Catalog {
    node: Arc<Node>,
}

impl Catalog {
    /// Opens the stores in the data folder and starts Raft on the current tokio runtime. The
    /// service must be served at the node's Raft address for anything to happen; what then comes
    /// of the founding is told by [`Catalog::wait_founded`].
    pub async fn start(config: RaftConfig) -> Result<(Catalog, RaftService), StartError> {
        let opening = config.clone();
        let opened = tokio::task::spawn_blocking(move || open_stores(&opening)).await;
        let (identity, log, store) = opened.map_err(|e| StartError::Raft(e.to_string()))??;
        let raft_config = config.for_openraft(identity.node);
        let raft_config = raft_config.map_err(|e| StartError::Config(e.to_string()))?;

        let catalog = store.folder();
        let started_blank = log.is_blank();
        let log = {
            let catalog = catalog.clone();
            log.with_purge_gate(Arc::new(move |index| catalog.sync_up_to(index)))
        };
        let log_closing = log.closing();
        let peers = Arc::new(Peers::new(
            identity.cluster_name.clone(),
            identity.node,
            identity.instance,
            config.connect_timeout,
        ));
        let network = Network {
            peers: peers.clone(),
            append_timeout: config.election.0,
        };
        let raft = Raft::new(identity.node, Arc::new(raft_config), network, log, store)
            .await
            .map_err(|e| StartError::Raft(e.to_string()))?;
        let node = Arc::new(Node {
            config,
            identity,
            started_blank,
            raft,
            catalog,
            log_closing,
            peers,
            runtime: tokio::runtime::Handle::current(),
            leadership: watch::Sender::new(Leadership::default()),
            founding: watch::Sender::new(None),
            removed: watch::Sender::new(false),
            suspicion: Notify::new(),
            leader_heard: Mutex::default(),
            waiting_for: Mutex::default(),
            stopped: watch::Sender::new(None),
            tasks: Mutex::default(),
        });
        let follow = tokio::spawn(node.clone().follow_leadership()).abort_handle();
        let establish = tokio::spawn({
            let node = node.clone();
            async move {
                let result = bootstrap::establish(&node).await;
                if let Err(error) = &result {
                    node.waits_for(Some(error.to_string()));
                }
                node.founding.send_replace(Some(result));
            }
        });
        let retire = tokio::spawn(retire::watch(node.clone())).abort_handle();
        node.tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend([follow, establish.abort_handle(), retire]);
        Ok((Catalog { node: node.clone() }, RaftService::new(node)))
    }

    /// How far the configured data folder has come on its way into the cluster; makes its identity if it is empty.
    pub fn claim(config: &RaftConfig) -> Result<Claim, StartError> {
        identity::claim(config)
    }

    /// Takes down the number that the cluster has given to the configured data folder. [`Catalog::start`] needs it.
    pub fn admit(config: &RaftConfig, node: NodeId) -> Result<(), StartError> {
        identity::admit(config, node)
    }

    /// This node's number: its position among the founding members, or what the cluster gave it when it joined.
    pub fn node_id(&self) -> NodeId {
        NodeId(self.node.identity.node)
    }

    /// This node's data folder.
    pub fn instance(&self) -> InstanceId {
        self.node.identity.instance
    }

    /// Waits, as long as it takes, until this node's catalog says that the cluster is founded. An
    /// error says that this node cannot belong to the cluster; it should end then.
    pub async fn wait_founded(&self) -> Result<(), StartError> {
        let mut founding = self.node.founding.subscribe();
        let mut stopped = self.node.stopped.subscribe();
        let mut removed = self.node.removed.subscribe();
        tokio::select! {
            // In this order: by its own catalog, which may be old, a removed node still belongs to the cluster.
            biased;
            _ = removed.wait_for(|removed| *removed) => Err(StartError::Removed {
                folder: self.node.config.data_dir.clone(),
                cluster: self.node.identity.cluster_name.clone(),
                name: self.node.identity.name.clone(),
            }),
            done = founding.wait_for(Option::is_some) => match done.map(|done| done.clone()) {
                Ok(Some(result)) => result,
                _ => Err(StartError::Raft("this node has stopped".into())),
            },
            reason = stopped.wait_for(Option::is_some) => {
                Err(StartError::Raft(reason.ok().and_then(|reason| reason.clone()).unwrap_or_default()))
            }
        }
    }

    /// Proposes a command: here if this node leads, else through the leader. Answers with the
    /// version at which it was applied and what it came to (a refusal is an answer).
    ///
    /// As long as the command is certainly not in the log, this tries again until `deadline`.
    /// After [`ProposeError::Unknown`] it never does.
    pub async fn propose(&self, proposal: Proposal, deadline: Duration) -> Result<(Version, Outcome), ProposeError> {
        let encoded = encode(&proposal).map_err(|e| ProposeError::NotSent(e.to_string()))?;
        if encoded.len() > MAX_COMMAND_BYTES {
            return Err(ProposeError::TooLarge {
                bytes: encoded.len(),
                limit: MAX_COMMAND_BYTES,
            });
        }
        let node = self.node.clone();
        let work = async move { propose(&node, proposal, encoded, Instant::now() + deadline).await };
        match self.on_runtime(work).await {
            Some(result) => result,
            None => Err(ProposeError::Unknown(
                "this node stopped while the command was on its way".into(),
            )),
        }
    }

    /// A version that includes every command acknowledged anywhere before the call. When it
    /// answers, this node has applied it, so that [`Catalog::snapshot`] is linearizable.
    pub async fn read_index(&self, deadline: Duration) -> Result<Version, ReadError> {
        let node = self.node.clone();
        let until = Instant::now() + deadline;
        let work = async move {
            let version = read_index(&node, until, deadline).await?;
            wait_applied(&node, version, until, deadline).await?;
            Ok(version)
        };
        self.on_runtime(work).await.unwrap_or(Err(ReadError::Stopped))
    }

    /// Waits until this node has applied everything up to `version`.
    pub async fn wait_applied(&self, version: Version, deadline: Duration) -> Result<(), ReadError> {
        let node = self.node.clone();
        let work = async move { wait_applied(&node, version, Instant::now() + deadline, deadline).await };
        self.on_runtime(work).await.unwrap_or(Err(ReadError::Stopped))
    }

    /// The newest state that this node has applied. Reads the disk; holding it keeps old files.
    pub fn snapshot(&self) -> Result<Arc<dyn CatalogSnapshot>, ReadError> {
        self.node.catalog.pin().map_err(|e| ReadError::Store(e.to_string()))
    }

    /// Follows the version of the newest state that this node has applied.
    pub fn version(&self) -> watch::Receiver<Version> {
        self.node.catalog.version()
    }

    /// Follows who leads.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.node.leadership.subscribe()
    }

    /// A member of the group.
    pub fn peer(&self, node: NodeId) -> Option<Member> {
        self.node.member(node.0)
    }

    /// All members of the group.
    pub fn peers(&self) -> Vec<(NodeId, Member)> {
        self.node
            .members()
            .into_iter()
            .map(|(id, member)| (NodeId(id), member))
            .collect()
    }

    /// Which other node led last, as far as this one has heard since this was asked last, and when it was last heard.
    pub fn take_leader_heard(&self) -> Option<(NodeId, std::time::Instant)> {
        let mut heard = self.node.leader_heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.take()
    }

    /// Why Raft does not run any more; `None` while it does. A node whose Raft has stopped should end.
    pub fn stopped(&self) -> watch::Receiver<Option<String>> {
        self.node.stopped.subscribe()
    }

    /// Whether this node was removed from the cluster; it must end then. Known to be true it never changes.
    pub fn removed(&self) -> watch::Receiver<bool> {
        self.node.removed.subscribe()
    }

    /// Asks the others at once whether this node was removed; [`Catalog::removed`] tells what came of it.
    pub fn suspect_removal(&self) {
        self.node.suspicion.notify_one();
    }

    /// Everything worth showing.
    pub fn status(&self) -> RaftStatus {
        RaftStatus::of(&self.node)
    }

    /// Bytes of memory that the catalog's database uses.
    pub fn memory_used(&self) -> u64 {
        self.node.catalog.memory_used()
    }

    /// Hands leadership to `to`, or to the voter that has most of the log. Does nothing if this
    /// node does not lead. Answers whether another node leads by the deadline.
    pub async fn transfer_leadership(&self, to: Option<NodeId>, deadline: Duration) -> bool {
        let node = self.node.clone();
        let work = async move {
            let mut leadership = node.leadership.subscribe();
            if !leadership.borrow().is_self {
                return leadership.borrow().leader.is_some();
            }
            let Some(to) = to.map(|to| to.0).or_else(|| best_follower(&node)) else {
                return false;
            };
            if node.raft.trigger().transfer_leader(to).await.is_err() {
                return false;
            }
            let moved = leadership.wait_for(|now| now.leader.is_some() && !now.is_self);
            tokio::time::timeout(deadline, moved)
                .await
                .is_ok_and(|moved| moved.is_ok())
        };
        self.on_runtime(work).await.unwrap_or(false)
    }

    /// Makes a snapshot of the catalog and purges the log behind it, without waiting for either.
    pub async fn trigger_snapshot(&self) -> bool {
        let node = self.node.clone();
        self.on_runtime(async move { node.raft.trigger().snapshot().await.is_ok() })
            .await
            .unwrap_or(false)
    }

    /// Stops Raft and closes the stores. Waits a few seconds for readers that still hold a state.
    pub async fn shutdown(&self) {
        let node = self.node.clone();
        let work = async move {
            for task in node.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(1..) {
                task.abort();
            }
            // The only error says that the task panicked; it has been logged, and the rest must close.
            drop(node.raft.shutdown().await);
            let catalog_closing = node.catalog.close();
            let is_closed = || catalog_closing.is_done() && node.log_closing.is_done();
            let until = Instant::now() + Duration::from_secs(5);
            while !is_closed() && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if !is_closed() {
                tracing::warn!("the stores in {} are still in use", node.config.data_dir.display());
            }
        };
        self.on_runtime(work).await;
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Does the work on Raft's runtime; `None` if that is gone.
    pub(crate) async fn on_runtime<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        self.node.runtime.spawn(work).await.ok()
    }
}

fn open_stores(config: &RaftConfig) -> Result<(identity::Identity, LogStore, CatalogStore), StartError> {
    let identity = identity::load_or_create(config)?;
    let (log_folder, catalog_folder) = (config.data_dir.join("raft-log"), config.data_dir.join("catalog"));
    // RocksDB makes durable what is in its folder, not the folder itself: without this, a power
    // failure could take a whole log away, votes and all.
    let made = [&log_folder, &catalog_folder]
        .into_iter()
        .try_for_each(std::fs::create_dir_all);
    made.and_then(|()| folder::sync_folder(&config.data_dir))
        .map_err(|error| StartError::Disk {
            what: format!("the data folder {} cannot be prepared", config.data_dir.display()),
            error: Arc::new(error),
        })?;
    let options = LogOptions {
        on_failure: config.on_failure.clone(),
        fault: None,
        memory: config.memory,
    };
    let log = LogStore::open(&log_folder, options)?;
    let catalog_error = |e: std::io::Error| StartError::Catalog {
        folder: catalog_folder.clone(),
        reason: e.to_string(),
    };
    let store = CatalogStore::open(&catalog_folder, config.memory).map_err(catalog_error)?;
    // A snapshot that arrives first leaves a vote in the log, so that an empty log is a lost one.
    let has_past =
        identity::is_joined(&config.data_dir) || store.folder().applied().map_err(catalog_error)?.0.is_some();
    if has_past && log.is_empty() {
        return Err(StartError::LostLog {
            folder: config.data_dir.clone(),
            cluster: identity.cluster_name,
        });
    }
    let applied = store.folder().applied().map_err(catalog_error)?.0;
    if log.is_behind(applied.as_ref()) {
        // A process that was killed may leave behind a catalog with entries that were still on their way into its log, or one from
        // a snapshot that was not kept yet. openraft then purges the log up to the catalog. It needs a snapshot of that, or it
        // would have nothing to send to a follower that lacks what is between the last snapshot and there.
        store.folder().build_snapshot().map_err(catalog_error)?;
    }
    Ok((identity, log, store))
}

/// The voter that has most of the log: a learner cannot be elected.
fn best_follower(node: &Node) -> Option<u64> {
    let metrics = node.raft.metrics();
    let metrics = metrics.borrow_watched();
    let voters: BTreeSet<u64> = metrics.membership_config.membership().voter_ids().collect();
    let followers = metrics
        .replication
        .iter()
        .flatten()
        .filter(|(id, _)| **id != node.identity.node && voters.contains(id));
    followers
        .max_by_key(|(_, matched)| matched.as_ref().map(|matched| matched.index))
        .map(|(id, _)| *id)
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// Waits for another leader, but not long: the same one may accept next time.
async fn pause(leadership: &mut watch::Receiver<Leadership>, until: Instant) {
    let wait = RETRY.min(left(until));
    // Both outcomes mean the same: try again.
    drop(tokio::time::timeout(wait, leadership.changed()).await);
}

async fn propose(
    node: &Node,
    proposal: Proposal,
    encoded: Vec<u8>,
    until: Instant,
) -> Result<(Version, Outcome), ProposeError> {
    let mut leadership = node.leadership.subscribe();
    let encoded = tonic::codegen::Bytes::from(encoded);
    loop {
        let now = *leadership.borrow_and_update();
        let attempt = match now.leader {
            None => Err("no leader is known".to_owned()),
            Some(_) if now.is_self => match node.propose(proposal.clone(), left(until)).await {
                Ok(applied) => return Ok(applied),
                Err(Attempt::NotLeader(_)) => Err("this node does not lead any more".to_owned()),
                Err(Attempt::Failed(error)) => return Err(error),
            },
            Some(leader) => forward(node, leader, encoded.clone(), left(until)).await?,
        };
        match attempt {
            Ok(applied) => return Ok(applied),
            Err(reason) if left(until).is_zero() => return Err(ProposeError::NotSent(reason)),
            Err(_) => pause(&mut leadership, until).await,
        }
        if node.stopped.borrow().is_some() {
            return Err(ProposeError::NotSent("Raft has stopped on this node".into()));
        }
    }
}

/// Sends a proposal to the leader. The inner error says that it is certainly not in the log.
async fn forward(
    node: &Node,
    leader: NodeId,
    proposal: tonic::codegen::Bytes,
    limit: Duration,
) -> Result<Result<(Version, Outcome), String>, ProposeError> {
    let Some(member) = node.member(leader.0) else {
        return Ok(Err(format!("node {leader} is not a member")));
    };
    let timeout_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    let request = ProposeRequest {
        header: Some(node.peers.header(leader.0, &member)),
        proposal,
        timeout_ms,
    };
    let mut client = match node.peers.client(&member.raft_addr, Lane::Propose) {
        Ok(client) => client,
        Err(status) => return Ok(Err(status.to_string())),
    };
    let unknown = |reason: String| ProposeError::Unknown(format!("node '{}' (leader): {reason}", member.name));
    let reply = match tokio::time::timeout(limit, client.propose(request)).await {
        Ok(Ok(reply)) => reply.into_inner(),
        Ok(Err(status)) => {
            node.peers.failed(&member.raft_addr, Lane::Propose, &status);
            // These two are the only failures that prove that nothing was appended.
            if never_sent(&status) || status.code() == Code::FailedPrecondition {
                return Ok(Err(format!("node '{}': {status}", member.name)));
            }
            return Err(unknown(status.to_string()));
        }
        Err(_) => return Err(unknown(format!("no answer within {limit:?}"))),
    };
    match reply.result {
        Some(propose_reply::Result::Applied(applied)) => {
            let outcome = decode(&applied.outcome).map_err(|e| unknown(e.to_string()))?;
            Ok(Ok((Version(applied.version), outcome)))
        }
        Some(propose_reply::Result::NotSent(not_sent)) => Ok(Err(not_sent.reason)),
        Some(propose_reply::Result::Unknown(reason)) => Err(unknown(reason)),
        None => Err(unknown("an empty answer".into())),
    }
}

async fn read_index(node: &Node, until: Instant, deadline: Duration) -> Result<Version, ReadError> {
    let mut leadership = node.leadership.subscribe();
    loop {
        let now = *leadership.borrow_and_update();
        let limit = left(until).min(READ_ATTEMPT);
        let attempt = match now.leader {
            None => Err("no leader is known".to_owned()),
            Some(_) if now.is_self => node.read_index(limit).await,
            Some(leader) => ask_read_index(node, leader, limit).await,
        };
        match attempt {
            Ok(version) => return Ok(version),
            Err(reason) if left(until).is_zero() => {
                return Err(ReadError::NoLeader {
                    waited: deadline,
                    reason,
                });
            }
            Err(_) => pause(&mut leadership, until).await,
        }
        if node.stopped.borrow().is_some() {
            return Err(ReadError::Stopped);
        }
    }
}

async fn ask_read_index(node: &Node, leader: NodeId, limit: Duration) -> Result<Version, String> {
    let member = node
        .member(leader.0)
        .ok_or_else(|| format!("node {leader} is not a member"))?;
    let timeout_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    let request = ReadIndexRequest {
        header: Some(node.peers.header(leader.0, &member)),
        timeout_ms,
    };
    let mut client = node
        .peers
        .client(&member.raft_addr, Lane::Control)
        .map_err(|status| status.to_string())?;
    let reply = match tokio::time::timeout(limit, client.read_index(request)).await {
        Ok(Ok(reply)) => reply.into_inner(),
        Ok(Err(status)) => {
            node.peers.failed(&member.raft_addr, Lane::Control, &status);
            return Err(format!("node '{}': {status}", member.name));
        }
        Err(_) => return Err(format!("node '{}': no answer within {limit:?}", member.name)),
    };
    match reply.result {
        Some(read_index_reply::Result::Index(index)) => Ok(Version(index)),
        Some(read_index_reply::Result::NotLeader(not)) => Err(not.reason),
        None => Err("an empty answer".into()),
    }
}

async fn wait_applied(node: &Node, wanted: Version, until: Instant, waited: Duration) -> Result<(), ReadError> {
    let mut version = node.catalog.version();
    let mut stopped = node.stopped.subscribe();
    let reached = tokio::select! {
        reached = tokio::time::timeout_at(until, version.wait_for(|at| *at >= wanted)) => reached.is_ok_and(|r| r.is_ok()),
        _ = stopped.wait_for(Option::is_some) => return Err(ReadError::Stopped),
    };
    let at = *node.catalog.version().borrow();
    if reached {
        Ok(())
    } else {
        Err(ReadError::Behind { at, wanted, waited })
    }
}
