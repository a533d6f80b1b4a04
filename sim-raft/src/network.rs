//! The network between machines: what becomes of a message is decided when it is sent, by the state of the link in that
//! direction. Calls have the deadlines of `raft/src/network.rs`; what is sent may still arrive after them.

use crate::catalog::SnapshotFiles;
use crate::node::Node;
use crate::runtime::{NodeRuntime, lock, spawn_free, spawn_on, true_sleep};
use crate::types::{Member, Snapshot, TypeConfig, Vote};
use crate::world::World;
use futures::channel::oneshot;
use futures::future::BoxFuture;
use openraft::async_runtime::AsyncRuntime;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tidemill_core::InstanceId;
use tidemill_sim::dice::Dice;

/// A snapshot of which nothing moves for so long is given up.
const STALLED: Duration = Duration::from_secs(20);

/// One direction between two machines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    /// Nothing arrives.
    pub cut: bool,
    /// Nothing arrives, and the sender is told so at once.
    pub refuses: bool,
    /// Of a thousand messages, so many are lost.
    pub loss: u64,
    /// Of a thousand, so many arrive twice.
    pub twice: u64,
    /// Of a thousand, so many arrive so late that others overtake them.
    pub late: u64,
    /// How long one takes, in microseconds.
    pub delay: (u64, u64),
}

impl Default for Link {
    fn default() -> Self {
        Self {
            cut: false,
            refuses: false,
            loss: 0,
            twice: 0,
            late: 0,
            delay: (100, 800),
        }
    }
}

/// What becomes of a message.
enum Fate {
    Lost,
    Refused,
    Arrives(Vec<Duration>),
}

/// All links.
#[derive(Default)]
pub(crate) struct Net {
    links: Vec<Vec<Link>>,
}

impl Net {
    pub fn new(machines: usize) -> Self {
        Self {
            links: vec![vec![Link::default(); machines]; machines],
        }
    }

    /// All links whole and fast.
    pub fn heal(&mut self) {
        *self = Self::new(self.links.len());
    }

    /// Changes every link between two machines.
    pub fn change(&mut self, mut change: impl FnMut(usize, usize, &mut Link)) {
        for (from, links) in self.links.iter_mut().enumerate() {
            for (to, link) in links.iter_mut().enumerate().filter(|(to, _)| *to != from) {
                change(from, to, link);
            }
        }
    }

    fn fate(&self, dice: &mut Dice, from: usize, to: usize) -> Fate {
        let link = self.links[from][to];
        if from == to {
            return Fate::Arrives(vec![Duration::from_micros(20)]);
        }
        if link.refuses {
            return Fate::Refused;
        }
        if link.cut || dice.per_mille(link.loss) {
            return Fate::Lost;
        }
        let copies = if dice.per_mille(link.twice) { 2 } else { 1 };
        let delays = (0..copies).map(|_| {
            let late = if dice.per_mille(link.late) {
                dice.between(5_000, 1_500_000)
            } else {
                0
            };
            dice.time(link.delay.0 + late, link.delay.1 + late)
        });
        Fate::Arrives(delays.collect())
    }
}

/// Who speaks to whom, as the header of every message says.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub from: u64,
    pub from_instance: InstanceId,
    pub to: u64,
    pub to_instance: Option<InstanceId>,
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// It was not sent, or not taken by the one that it reached: nothing has come of it.
    NotTaken(String),
    /// The connection broke; something may have come of it.
    Broken(String),
    /// There was no answer in time; something may have come of it.
    Late,
}

/// What a node does for a message.
type Work<A> = Arc<dyn Fn(Arc<Node>) -> BoxFuture<'static, Result<A, Failure>> + Send + Sync>;

/// How a message is sent.
#[derive(Clone, Copy)]
pub(crate) struct Manner {
    /// How long the answer is waited for.
    pub limit: Duration,
    /// Whether it may arrive twice. Raft's messages may; others are sent once over a connection, and do not.
    pub repeats: bool,
    /// Whether the receiver checks who speaks to whom. Only the question who somebody is, is open to all.
    pub checked: bool,
}

impl Manner {
    /// A request that is no message of Raft.
    pub fn request(limit: Duration) -> Self {
        Self {
            limit,
            repeats: false,
            checked: true,
        }
    }
}

/// Sends a message to the machine of a member, and waits for what the node there answers.
pub(crate) async fn call<A: Send + 'static>(
    from: &Node,
    to: (u64, &Member),
    manner: Manner,
    work: impl Fn(Arc<Node>) -> BoxFuture<'static, Result<A, Failure>> + Send + Sync + 'static,
) -> Result<A, Failure> {
    let header = Header {
        from: from.id,
        from_instance: from.instance,
        to: to.0,
        to_instance: to.1.instance,
    };
    let (world, path) = (from.world.clone(), (from.machine.index, to.1.machine));
    let fate = world.fate(path.0, path.1);
    let (answer, answered) = oneshot::channel();
    let answer = Arc::new(Mutex::new(Some(answer)));
    let delays = match fate {
        Fate::Refused => {
            true_sleep(Duration::from_micros(300)).await;
            return Err(Failure::NotTaken("connection refused".into()));
        }
        Fate::Lost => vec![],
        Fate::Arrives(delays) if manner.repeats => delays,
        Fate::Arrives(delays) => delays.into_iter().take(1).collect(),
    };
    let work: Work<A> = Arc::new(work);
    for delay in delays {
        let (world, work, answer, header) = (world.clone(), work.clone(), answer.clone(), header.clone());
        spawn_free(async move {
            true_sleep(delay).await;
            deliver(&world, path, manner.checked.then_some(header), work, answer);
        });
    }
    // Held while it may still come, so that only an end of the other process is seen as one.
    let _waiting = answer;
    match NodeRuntime::timeout(manner.limit, answered).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(Failure::Broken("connection reset".into())),
        Err(_) => Err(Failure::Late),
    }
}

type Answer<A> = Arc<Mutex<Option<oneshot::Sender<Result<A, Failure>>>>>;

fn say<A>(answer: &Answer<A>, what: Result<A, Failure>) {
    if let Some(answer) = lock(answer).take() {
        // Who gave up hears nothing.
        drop(answer.send(what));
    }
}

/// A message has come to a machine.
fn deliver<A: Send + 'static>(
    world: &Arc<World>,
    (from, to): (usize, usize),
    header: Option<Header>,
    work: Work<A>,
    answer: Answer<A>,
) {
    let Some(node) = world.machines[to].node() else {
        if world.machines[to].lost_power() {
            return;
        }
        return say(&answer, Err(Failure::NotTaken("nobody listens there".into())));
    };
    world.note(1, (from * 16 + to) as u64);
    let process = node.process.clone();
    let broken = Reset {
        answer: answer.clone(),
        world: world.clone(),
        machine: to,
        told: false,
    };
    spawn_on(&process, async move {
        let mut broken = broken;
        let result = match header.map_or(Ok(()), |header| node.check(&header)) {
            Ok(()) => work(node.clone()).await,
            Err(reason) => Err(Failure::NotTaken(reason)),
        };
        broken.told = true;
        let fate = node.world.fate(to, from);
        if let Fate::Arrives(delays) = fate
            && let Some(delay) = delays.first().copied()
        {
            spawn_free(async move {
                true_sleep(delay).await;
                say(&answer, result);
            });
        }
    });
}

/// What the other side sees when a process is killed in the middle: its connection is reset, unless the whole machine is gone.
struct Reset<A> {
    answer: Answer<A>,
    world: Arc<World>,
    machine: usize,
    told: bool,
}

impl<A> Drop for Reset<A> {
    fn drop(&mut self) {
        if !self.told && !self.world.machines[self.machine].lost_power() {
            say(&self.answer, Err(Failure::Broken("connection reset".into())));
        }
    }
}

/// Makes connections for openraft.
pub(crate) struct Network {
    pub node: Arc<std::sync::OnceLock<std::sync::Weak<Node>>>,
    pub append_timeout: Duration,
}

/// A connection to one node.
pub(crate) struct Peer {
    node: Arc<std::sync::OnceLock<std::sync::Weak<Node>>>,
    append_timeout: Duration,
    id: u64,
    member: Member,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, member: &Member) -> Peer {
        Peer {
            node: self.node.clone(),
            append_timeout: self.append_timeout,
            id: target,
            member: member.clone(),
        }
    }
}

impl Peer {
    async fn call<A: Send + 'static>(
        &self,
        action: RPCTypes,
        limit: Duration,
        work: impl Fn(Arc<Node>) -> BoxFuture<'static, Result<A, Failure>> + Send + Sync + 'static,
    ) -> Result<A, RPCError<TypeConfig>> {
        let Some(node) = self.node.get().and_then(std::sync::Weak::upgrade) else {
            return Err(RPCError::Unreachable(Unreachable::from_string(
                "this node is still starting",
            )));
        };
        let id = node.id;
        let manner = Manner {
            limit,
            repeats: true,
            checked: true,
        };
        call(&node, (self.id, &self.member), manner, work)
            .await
            .map_err(|failure| match failure {
                // Not there, or not for us: there is no use in asking again at once.
                Failure::NotTaken(why) => RPCError::Unreachable(Unreachable::from_string(why)),
                Failure::Broken(why) => RPCError::Network(NetworkError::from_string(why)),
                Failure::Late => RPCError::Timeout(Timeout {
                    action,
                    id,
                    target: self.id,
                    timeout: limit,
                }),
            })
    }
}

fn stopped(error: &impl std::fmt::Display) -> Failure {
    Failure::NotTaken(format!("Raft does not run on this node: {error}"))
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotFiles;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let soft = option.soft_ttl();
        let limit = match request.entries.is_empty() {
            true => soft,
            false => soft.max(self.append_timeout),
        };
        let work = move |node: Arc<Node>| -> BoxFuture<'static, _> {
            let request = request.clone();
            Box::pin(async move { node.raft.append_entries(request).await.map_err(|e| stopped(&e)) })
        };
        self.call(RPCTypes::AppendEntries, limit, work).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let work = move |node: Arc<Node>| -> BoxFuture<'static, _> {
            let request = request.clone();
            Box::pin(async move { node.raft.vote(request).await.map_err(|e| stopped(&e)) })
        };
        self.call(RPCTypes::Vote, option.soft_ttl(), work).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let work = move |node: Arc<Node>| -> BoxFuture<'static, _> {
            let request = request.clone();
            Box::pin(async move { node.raft.pre_vote(request).await.map_err(|e| stopped(&e)) })
        };
        self.call(RPCTypes::Vote, option.soft_ttl(), work).await
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let work = move |node: Arc<Node>| -> BoxFuture<'static, _> {
            let request = request.clone();
            Box::pin(async move { node.raft.handle_transfer_leader(request).await.map_err(|e| stopped(&e)) })
        };
        self.call(RPCTypes::TransferLeader, option.soft_ttl(), work).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let (meta, files) = (snapshot.meta, snapshot.snapshot);
        let work = move |node: Arc<Node>| -> BoxFuture<'static, _> {
            let snapshot = Snapshot {
                meta: meta.clone(),
                snapshot: files.clone(),
            };
            Box::pin(async move {
                // It arrives file by file, each of which is synced.
                true_sleep(node.world.sync_time(&node.machine)).await;
                node.world.count("snapshots sent");
                let installed = node.raft.install_full_snapshot(vote, snapshot).await;
                installed.map_err(|e| stopped(&e))
            })
        };
        let sending = Box::pin(self.call(RPCTypes::InstallSnapshot, STALLED.min(option.soft_ttl()), work));
        match NodeRuntime::select2(sending, Box::pin(cancel)).await {
            openraft::async_runtime::Select2::First(sent) => sent.map_err(StreamingError::from),
            openraft::async_runtime::Select2::Second(closed) => Err(StreamingError::Closed(closed)),
        }
    }
}

impl World {
    fn fate(&self, from: usize, to: usize) -> Fate {
        let net = lock(&self.net);
        self.roll(|dice| net.fate(dice, from, to))
    }
}
