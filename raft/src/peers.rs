//! Connections to the other nodes: made when first used, kept, and made anew after a failure. Each
//! kind of traffic has its own, so that a snapshot on its way does not hold up a heartbeat. Whoever uses one first, it is
//! driven by the runtime that the node was started on: a connection for votes that a query opened must not wait with it.
//! Also the header that says who speaks to whom, and what of the log each follower has acknowledged to this leader.

use crate::types::{Member, Vote};
use std::{
    collections::HashMap,
    error::Error,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tidemill_core::InstanceId;
use tidemill_proto::raft::{Header, raft_client::RaftClient};
use tokio::runtime::Handle;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

/// The largest message accepted; entries are sent in messages of about 2 MiB.
pub(crate) const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// A kind of traffic with a connection of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// Heartbeats, votes, read indexes: small and urgent.
    Control,
    /// Entries.
    Log,
    /// Snapshots.
    Snapshot,
    /// Proposals on their way to the leader.
    Propose,
}

/// How a node connects to the node at `address`, for whatever it asks there. A connection on which nothing comes back is given up
/// within three seconds, also when requests on it are given up sooner: TCP would go on with it, and try the less often the longer
/// it was cut, so that it stays silent long after others could be made.
///
/// # Errors
/// When `address` is not `host:port`.
pub fn peer_endpoint(address: &str, connect_timeout: Duration) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(2))
        .keep_alive_while_idle(true))
}

/// The connections of one node.
pub(crate) struct Peers {
    cluster: String,
    node: u64,
    instance: InstanceId,
    connect_timeout: Duration,
    /// Drives the connections.
    runtime: Handle,
    channels: Mutex<HashMap<(String, Lane), Channel>>,
    /// By follower: the vote under which this node led, and the index of the last entry acknowledged to it then.
    acknowledged: Mutex<HashMap<u64, (Vote, u64)>>,
    /// See [`Peers::log_losses`].
    log_losses: AtomicU64,
}

impl Peers {
    /// To be called on the runtime that is to drive the connections.
    pub(crate) fn new(cluster: String, node: u64, instance: InstanceId, connect_timeout: Duration) -> Self {
        Self {
            cluster,
            node,
            instance,
            connect_timeout,
            runtime: Handle::current(),
            channels: Mutex::default(),
            acknowledged: Mutex::default(),
            log_losses: AtomicU64::default(),
        }
    }

    /// Our own number.
    pub(crate) fn node(&self) -> u64 {
        self.node
    }

    /// The header of a message to `member`.
    pub(crate) fn header(&self, to: u64, member: &Member) -> Header {
        Header {
            cluster: self.cluster.clone(),
            from_node: self.node,
            from_instance: self.instance.to_string(),
            to_node: to,
            to_instance: member.instance.map(|instance| instance.to_string()).unwrap_or_default(),
        }
    }

    /// A client for the node at `address`. Does not wait for the connection.
    pub(crate) fn client(&self, address: &str, lane: Lane) -> Result<RaftClient<Channel>, Status> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (address.to_owned(), lane);
        let channel = match channels.get(&key) {
            Some(channel) => channel.clone(),
            None => {
                let endpoint = peer_endpoint(address, self.connect_timeout)
                    .map_err(|e| Status::invalid_argument(format!("'{address}' is not an address: {e}")))?;
                let _drives_it = self.runtime.enter();
                let channel = endpoint.connect_lazy();
                channels.insert(key, channel.clone());
                channel
            }
        };
        Ok(RaftClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// The index of the last entry that `follower` has acknowledged to this leader under `vote`.
    pub(crate) fn acknowledged(&self, follower: u64, vote: &Vote) -> Option<u64> {
        let acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        let under = acknowledged.get(&follower).filter(|(under, _)| under == vote);
        under.map(|(_, index)| *index)
    }

    /// `follower` has all entries up to `index`, it says to the leader of `vote`.
    pub(crate) fn acknowledge(&self, follower: u64, vote: Vote, index: u64) {
        let mut acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        let last = acknowledged.entry(follower).or_insert((vote, index));
        if last.0 != vote {
            *last = (vote, index);
        }
        last.1 = last.1.max(index);
    }

    /// `follower` has lost entries that it had acknowledged under this vote. They are sent again (see `Timing`), and what
    /// it acknowledges from now on counts anew. Answers whether this was not known yet.
    pub(crate) fn forgot(&self, follower: u64) -> bool {
        let mut acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = acknowledged.remove(&follower).is_some();
        self.log_losses.fetch_add(is_new.into(), Ordering::Relaxed);
        is_new
    }

    /// How often a follower had lost entries that it had acknowledged, since the start.
    pub(crate) fn log_losses(&self) -> u64 {
        self.log_losses.load(Ordering::Relaxed)
    }

    /// Drops the connection after a failure of the transport; the next call makes a new one.
    pub(crate) fn failed(&self, address: &str, lane: Lane, status: &Status) {
        if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal) && status.source().is_some() {
            self.channels
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&(address.to_owned(), lane));
        }
    }
}

/// Whether a call certainly never left this node: there was no connection to send it over.
pub(crate) fn never_sent(status: &Status) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Read, net::TcpListener};
    use tidemill_proto::raft::ReadIndexRequest;
    use tokio::runtime::{Builder, Runtime};

    #[test]
    fn a_connection_lives_on_where_the_node_was_started() {
        let started_on = Runtime::new().unwrap();
        let peers = started_on.block_on(async { Peers::new("c".into(), 1, InstanceId(1), Duration::from_secs(5)) });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let used_by = Builder::new_current_thread().enable_all().build().unwrap();
        let mut peer = used_by.block_on(async {
            let mut client = peers.client(&address, Lane::Control).unwrap();
            let asking = tokio::spawn(async move { client.read_index(ReadIndexRequest::default()).await });
            let greeted = tokio::task::spawn_blocking(move || {
                let mut peer = listener.accept().unwrap().0;
                // Who gives up before that leaves a connection that nobody drives, on whichever runtime.
                peer.read_exact(&mut [0; 24]).unwrap();
                peer
            });
            let peer = greeted.await.unwrap();
            asking.abort();
            peer
        });
        drop(used_by);
        // It does not hang up, whatever else it says.
        peer.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let hung_up = peer.read_to_end(&mut Vec::new());
        assert!(
            hung_up.is_err(),
            "the connection went with the runtime that used it first"
        );
    }

    #[test]
    fn a_connection_on_which_nothing_comes_back_is_given_up_also_while_nobody_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let runtime = Runtime::new().unwrap();
        let hung_up = runtime.block_on(async {
            let channel = peer_endpoint(&address, Duration::from_secs(5)).unwrap().connect_lazy();
            let asking = tokio::spawn(async move {
                let mut client = RaftClient::new(channel.clone());
                let asked = client.read_index(ReadIndexRequest::default());
                drop(tokio::time::timeout(Duration::from_millis(500), asked).await);
                channel
            });
            let peer = tokio::task::spawn_blocking(move || {
                let mut peer = listener.accept().unwrap().0;
                peer.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                peer.read_to_end(&mut Vec::new())
            });
            let channel = asking.await.unwrap();
            let hung_up = peer.await.unwrap();
            drop(channel);
            hung_up
        });
        assert!(hung_up.is_ok(), "it is kept although nothing comes back: {hung_up:?}");
    }
}
