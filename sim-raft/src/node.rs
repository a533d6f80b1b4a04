//! One run of a node's process: openraft with its stores, and what `raft/src/node.rs`, `handle.rs` and `service.rs` do with it:
//! finding the leader, forwarding to it, and keeping *certainly not* apart from *not known*.

use crate::catalog::CatalogStore;
use crate::log::LogStore;
use crate::mutant::Mutant;
use crate::network::{Failure, Header, Manner, Network, call};
use crate::runtime::{Moment, NodeRuntime, Process, Signal, lock};
use crate::timing::{READ_ATTEMPT, RETRY, Timing, leads_a_quorum};
use crate::types::{LogId, Logged, Member, Raft};
use crate::world::{Machine, World, tell};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::async_runtime::{AsyncRuntime, instant::Instant};
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::{RaftSnapshotBuilder, ReadPolicy};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tidemill_core::catalog::{self, NodeState};
use tidemill_core::view::{CatalogRead, MemView};
use tidemill_core::{BootId, InstanceId, Outcome, Proposal};

/// See the module.
pub(crate) struct Node {
    pub world: Arc<World>,
    pub machine: Arc<Machine>,
    pub process: Arc<Process>,
    pub id: u64,
    pub instance: InstanceId,
    pub boot: BootId,
    /// Whether there was no entry at the start.
    pub started_blank: bool,
    pub raft: Raft,
    /// Tells that the catalog is another.
    pub moved: Arc<Signal>,
}

/// A command was not acknowledged.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ProposeError {
    /// It is certainly not in the log.
    NotSent(String),
    /// It may be in the log, now or later.
    Unknown(String),
}

/// What a proposal came to, and at which version.
pub(crate) type Proposed = Result<(u64, Outcome), ProposeError>;

enum Attempt {
    NotLeader,
    Failed(ProposeError),
}

impl Node {
    /// Opens the stores of `machine` and starts Raft; to be called within `process`.
    pub async fn start(
        world: &Arc<World>,
        machine: &Arc<Machine>,
        process: &Arc<Process>,
    ) -> Result<Arc<Self>, String> {
        let (id, instance) = machine.identity();
        let log = LogStore::open(world, machine)?;
        let has_past = machine.has_joined() || lock(&machine.disk).catalog.current.applied.is_some();
        if has_past && log.is_blank() && lock(&machine.disk).log.found().vote.is_none() {
            return Err("the data folder was part of a cluster, but its log is gone".into());
        }
        let started_blank = log.is_blank();
        drop(NodeRuntime::spawn(log.writer()));
        let moved = Arc::new(Signal::default());
        let catalog = CatalogStore::open(world, machine, moved.clone());
        if world.mutant != Some(Mutant::LogIsBehindTheCatalog)
            && log.is_behind(lock(&machine.disk).catalog.current.applied)
        {
            // As the product does: openraft purges the log up to the catalog, and needs a snapshot for what is purged.
            RaftSnapshotBuilder::build_snapshot(&mut catalog.clone())
                .await
                .map_err(|e| e.to_string())?;
            world.count("catalogs ahead of their log");
        }
        let timing = world.timing();
        let mut config = timing.for_openraft("c", id).map_err(|e| e.to_string())?;
        if world.mutant == Some(Mutant::LeaderIsRestored) {
            config.enable_leader_restore = Some(true);
        }
        let own = Arc::new(OnceLock::new());
        let network = Network {
            node: own.clone(),
            append_timeout: timing.election.0,
        };
        let raft = Raft::new(id, Arc::new(config), network, log, catalog)
            .await
            .map_err(|e| e.to_string())?;
        let node = Arc::new(Self {
            world: world.clone(),
            machine: machine.clone(),
            process: process.clone(),
            id,
            instance,
            boot: BootId(world.roll(tidemill_sim::dice::Dice::id)),
            started_blank,
            raft,
            moved,
        });
        drop(own.set(Arc::downgrade(&node)));
        Ok(node)
    }

    /// The members of the group as the log has them.
    pub fn members(&self) -> Vec<(u64, Member)> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics
            .membership_config
            .nodes()
            .map(|(id, member)| (*id, member.clone()))
            .collect()
    }

    pub fn member(&self, id: u64) -> Option<Member> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_node(&id).cloned()
    }

    /// Who leads, as far as this node knows.
    pub fn leader(&self) -> Option<u64> {
        self.raft.server_metrics().borrow_watched().current_leader
    }

    pub fn leads(&self) -> bool {
        self.leader() == Some(self.id)
    }

    /// Whether this node leads, and a quorum has lately confirmed it.
    pub fn leads_a_quorum(&self) -> bool {
        leads_a_quorum(&self.raft.metrics().borrow_watched())
    }

    /// Looks at the newest state that this node has applied.
    pub fn look<T>(&self, at: impl FnOnce(&MemView) -> T) -> (Option<LogId>, T) {
        let disk = lock(&self.machine.disk);
        (disk.catalog.current.applied, at(&disk.catalog.current.view))
    }

    /// Whether this node knows that the node with the data folder `instance` was removed.
    pub fn was_removed(&self, instance: InstanceId) -> bool {
        let nodes = self
            .look(|state| state.list::<catalog::Node>(&[]).unwrap_or_default())
            .1;
        nodes
            .iter()
            .any(|node| node.state == NodeState::Removed && node.instance == instance)
    }

    /// Whether this node knows that it was removed.
    pub fn is_removed(&self) -> bool {
        self.was_removed(self.instance)
    }

    /// Checks who speaks to whom.
    pub fn check(&self, header: &Header) -> Result<(), String> {
        if self.world.mutant == Some(Mutant::EmptiedNodeComesBack) {
            return Ok(());
        }
        if header.to != self.id || header.to_instance != Some(self.instance) {
            return Err(format!(
                "this is node {} with another data folder than {header:?}",
                self.id
            ));
        }
        match self.member(header.from).and_then(|member| member.instance) {
            Some(known) if known != header.from_instance => {
                Err(format!("node {} has another data folder", header.from))
            }
            Some(_) => Ok(()),
            None if self.was_removed(header.from_instance) => Err(format!("node {} was removed", header.from)),
            None => Ok(()),
        }
    }

    /// Proposes here; this node must be the leader.
    async fn propose_here(&self, proposal: Proposal, limit: Duration) -> Result<(u64, Outcome), Attempt> {
        let unknown = |reason: String| Attempt::Failed(ProposeError::Unknown(reason));
        let write = self.raft.client_write(Logged(Arc::new(proposal)));
        match NodeRuntime::timeout(limit, write).await {
            Ok(Ok(written)) => match written.data.0 {
                Some(outcome) => Ok((written.log_id.index, outcome)),
                None => Err(unknown("the entry was applied as if it had no command".into())),
            },
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => Err(Attempt::NotLeader),
            Ok(Err(error)) => Err(unknown(error.to_string())),
            Err(_) => Err(unknown(format!("not committed and applied within {limit:?}"))),
        }
    }

    /// As a node does that takes itself for the leader, whether it is or not.
    pub async fn propose_as_leader(&self, proposal: Proposal, limit: Duration) -> Proposed {
        match self.propose_here(proposal, limit).await {
            Ok(applied) => Ok(applied),
            Err(Attempt::NotLeader) => Err(ProposeError::NotSent("this node does not lead".into())),
            Err(Attempt::Failed(error)) => Err(error),
        }
    }

    /// Proposes a command, here if this node leads, else through the leader, until it is in the log or may be.
    pub async fn propose(&self, proposal: Proposal, deadline: Duration) -> Proposed {
        let mut result = self.propose_once(proposal.clone(), deadline).await;
        if self.world.mutant == Some(Mutant::UnknownIsProposedAgain)
            && let Err(ProposeError::Unknown(_)) = result
        {
            result = self.propose_once(proposal, deadline).await;
        }
        match (self.world.mutant, result) {
            (Some(Mutant::UnknownIsTakenForNo), Err(ProposeError::Unknown(why))) => Err(ProposeError::NotSent(why)),
            (_, result) => result,
        }
    }

    async fn propose_once(&self, proposal: Proposal, deadline: Duration) -> Proposed {
        let until = Moment::now() + deadline;
        loop {
            let attempt = match self.leader() {
                None => Err("no leader is known".to_owned()),
                Some(leader) if leader == self.id => match self.propose_here(proposal.clone(), left(until)).await {
                    Ok(applied) => return Ok(applied),
                    Err(Attempt::NotLeader) => Err("this node does not lead any more".to_owned()),
                    Err(Attempt::Failed(error)) => return Err(error),
                },
                Some(leader) => self.forward(leader, proposal.clone(), left(until)).await?,
            };
            match attempt {
                Ok(applied) => return Ok(applied),
                Err(reason) if left(until).is_zero() => return Err(ProposeError::NotSent(reason)),
                Err(_) => NodeRuntime::sleep(RETRY.min(left(until))).await,
            }
        }
    }

    /// Sends a proposal to the leader. The inner error says that it is certainly not in the log.
    async fn forward(
        &self,
        leader: u64,
        proposal: Proposal,
        limit: Duration,
    ) -> Result<Result<(u64, Outcome), String>, ProposeError> {
        let Some(member) = self.member(leader) else {
            return Ok(Err(format!("node {leader} is not a member")));
        };
        let work = move |node: Arc<Node>| -> futures::future::BoxFuture<'static, Result<Proposed, Failure>> {
            let proposal = proposal.clone();
            Box::pin(async move { Ok(node.propose_as_leader(proposal, limit).await) })
        };
        match call(self, (leader, &member), Manner::request(limit), work).await {
            Ok(Ok(applied)) => Ok(Ok(applied)),
            Ok(Err(ProposeError::NotSent(reason))) | Err(Failure::NotTaken(reason)) => Ok(Err(reason)),
            Ok(Err(unknown)) => Err(unknown),
            Err(Failure::Broken(reason)) => Err(ProposeError::Unknown(reason)),
            Err(Failure::Late) => Err(ProposeError::Unknown(format!("no answer within {limit:?}"))),
        }
    }

    /// An index that covers everything acknowledged before; this node must be the leader.
    async fn read_index_here(&self, limit: Duration) -> Result<u64, String> {
        let policy = match self.world.mutant {
            Some(Mutant::ReadsByTheLastTerm) => {
                let applied = self.look(|_| ()).0;
                return applied
                    .map(|applied| applied.index)
                    .ok_or_else(|| "nothing is applied".into());
            }
            _ => ReadPolicy::ReadIndex,
        };
        match NodeRuntime::timeout(limit, self.raft.get_read_linearizer(policy)).await {
            Ok(Ok(linearizer)) => Ok(linearizer.read_log_id().index()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_)))) => Err("not the leader".into()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no quorum within {limit:?}")),
        }
    }

    /// Waits until what this node has applied includes everything that was acknowledged anywhere before the call.
    pub async fn read_index(&self, deadline: Duration) -> Result<u64, String> {
        if self.world.mutant == Some(Mutant::ReadsWithoutIndex) {
            let applied = self.look(|_| ()).0;
            return applied
                .map(|applied| applied.index)
                .ok_or_else(|| "nothing is applied".into());
        }
        let until = Moment::now() + deadline;
        let wanted = loop {
            let limit = left(until).min(READ_ATTEMPT);
            let attempt = match self.leader() {
                None => Err("no leader is known".to_owned()),
                Some(leader) if leader == self.id => self.read_index_here(limit).await,
                Some(leader) => self.ask_read_index(leader, limit).await,
            };
            match attempt {
                Ok(index) => break index,
                Err(reason) if left(until).is_zero() => return Err(reason),
                Err(_) => NodeRuntime::sleep(RETRY.min(left(until))).await,
            }
        };
        let applied = self
            .moved
            .until(|| self.look(|_| ()).0.filter(|applied| applied.index >= wanted));
        match NodeRuntime::timeout(left(until), applied).await {
            Ok(_) => Ok(wanted),
            Err(_) => Err(format!("this node did not reach {wanted}")),
        }
    }

    async fn ask_read_index(&self, leader: u64, limit: Duration) -> Result<u64, String> {
        let member = self
            .member(leader)
            .ok_or_else(|| format!("node {leader} is not a member"))?;
        let work = move |node: Arc<Node>| -> futures::future::BoxFuture<'static, _> {
            Box::pin(async move { Ok(node.read_index_here(limit).await) })
        };
        match call(self, (leader, &member), Manner::request(limit), work).await {
            Ok(answer) => answer,
            Err(failure) => Err(format!("{failure:?}")),
        }
    }

    /// Hands leadership to `to`, or to the voter that has most of the log.
    pub async fn transfer_leadership(&self, to: Option<u64>, deadline: Duration) -> bool {
        if !self.leads() {
            return self.leader().is_some();
        }
        let Some(to) = to.or_else(|| self.best_follower()) else {
            return false;
        };
        tell!(self.world, "node {} hands leadership to {to}", self.id);
        if self.raft.trigger().transfer_leader(to).await.is_err() {
            return false;
        }
        let until = Moment::now() + deadline;
        while !left(until).is_zero() {
            if self.leader().is_some_and(|leader| leader != self.id) {
                return true;
            }
            NodeRuntime::sleep(RETRY).await;
        }
        false
    }

    fn best_follower(&self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let voters: Vec<u64> = metrics.membership_config.membership().voter_ids().collect();
        let followers = metrics.replication.iter().flatten();
        let followers = followers.filter(|(id, _)| **id != self.id && voters.contains(id));
        let best = followers.max_by_key(|(_, matched)| matched.as_ref().map(|matched| matched.index));
        best.map(|(id, _)| *id)
    }
}

impl World {
    /// The timing of the product, except that snapshots are made and logs purged much more often.
    pub fn timing(&self) -> Timing {
        Timing {
            snapshot_entries: self.snapshot_entries,
            keep_entries: self.keep_entries,
            ..Timing::default()
        }
    }
}

fn left(until: Moment) -> Duration {
    until - Moment::now()
}
