//! The nodes a client knows: one connection each, made when first needed, and the order in which
//! they are tried.
//!
//! A [`Course`] walks over the nodes for one request: from the one that answered last, round and
//! round with growing pauses, until somebody answers or the time is over. What a failure means is
//! decided in [`failure`](crate::failure), not here.

use crate::config::ClientConfig;
use crate::error::{ClientError, Tried, chain};
use crate::failure::{Failure, Next};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tidemill_proto::api::tidemill_client::TidemillClient;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};

/// The largest piece of an answer that is accepted. Servers cut answers far smaller.
const MAX_PIECE_BYTES: usize = 256 << 20;
/// How often an idle connection is asked for a sign of life, and how long the answer may take: a
/// node that was stopped or cut off would otherwise hold a request for ever.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// The pause after the first round over all nodes; it doubles with each round.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause between two rounds.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// All nodes and which one is asked first.
pub(crate) struct Nodes {
    nodes: Vec<Node>,
    preferred: AtomicUsize,
    /// Nodes that others have named, by address.
    named: Mutex<BTreeMap<String, Channel>>,
    connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    retry_for: Duration,
}

struct Node {
    address: String,
    endpoint: Endpoint,
    channel: Mutex<Option<Channel>>,
}

impl Node {
    fn channel(&self) -> MutexGuard<'_, Option<Channel>> {
        // The lock is held for a clone or a store only: a panic cannot leave half a value behind.
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Nodes {
    /// Checks the addresses; connects to none of them.
    pub(crate) fn new(config: ClientConfig) -> Result<Self, ClientError> {
        if config.addresses.is_empty() {
            return Err(ClientError::Config {
                message: "no address of a node is given".to_owned(),
            });
        }
        let mut nodes = Vec::with_capacity(config.addresses.len());
        for address in config.addresses {
            let endpoint = endpoint(&address, config.connect_timeout)?;
            nodes.push(Node {
                address,
                endpoint,
                channel: Mutex::new(None),
            });
        }
        Ok(Self {
            nodes,
            preferred: AtomicUsize::new(0),
            named: Mutex::default(),
            connect_timeout: config.connect_timeout,
            request_timeout: config.request_timeout,
            retry_for: config.retry_for,
        })
    }

    /// The node that answered last.
    pub(crate) fn preferred(&self) -> &str {
        &self.nodes[self.preferred.load(Ordering::Relaxed)].address
    }

    /// A connection to a node that another has named.
    pub(crate) async fn at(&self, address: &str) -> Result<Channel, String> {
        if let Some(channel) = self.named().get(address) {
            return Ok(channel.clone());
        }
        let endpoint = endpoint(address, self.connect_timeout).map_err(|error| error.to_string())?;
        let connected = timeout(self.connect_timeout, endpoint.connect()).await;
        let connected = connected.map_err(|_| format!("no connection within {:?}", self.connect_timeout))?;
        let channel = connected.map_err(|error| chain(&error))?;
        self.named().insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// The next use of that node begins with a fresh connection.
    pub(crate) fn forget(&self, address: &str) {
        self.named().remove(address);
    }

    fn named(&self) -> MutexGuard<'_, BTreeMap<String, Channel>> {
        // The lock is held for one map operation only.
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self, node: &Node) -> Result<Channel, Failure> {
        if let Some(channel) = node.channel().clone() {
            return Ok(channel);
        }
        // The endpoint's own limit covers the TCP handshake alone; a stopped process passes that.
        let connected = timeout(self.connect_timeout, node.endpoint.connect()).await;
        let channel = match connected {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(Failure::Unsent(chain(&error))),
            Err(_) => {
                return Err(Failure::Unsent(format!(
                    "no connection within {:?}",
                    self.connect_timeout
                )));
            }
        };
        *node.channel() = Some(channel.clone());
        Ok(channel)
    }
}

fn endpoint(address: &str, connect_timeout: Duration) -> Result<Endpoint, ClientError> {
    let bad = |why: String| ClientError::Config {
        message: format!("'{address}' is not host:port: {why}"),
    };
    let host_port = address.strip_prefix("http://").unwrap_or(address);
    let port = host_port
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty())
        .map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(1..)) => {}
        _ => return Err(bad("the port is missing".to_owned())),
    }
    let endpoint = Endpoint::from_shared(format!("http://{host_port}")).map_err(|error| bad(chain(&error)))?;
    Ok(endpoint
        .connect_timeout(connect_timeout)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true))
}

/// One request's way over the nodes.
pub(crate) struct Course<'a> {
    nodes: &'a Nodes,
    /// Whether the request may be repeated although it may have taken effect.
    reads: bool,
    at: usize,
    in_round: usize,
    pause: Duration,
    until: Instant,
    tried: Vec<Tried>,
}

impl<'a> Course<'a> {
    /// Begins at the node that answered last.
    pub(crate) fn new(nodes: &'a Nodes, reads: bool) -> Self {
        Self {
            nodes,
            reads,
            at: nodes.preferred.load(Ordering::Relaxed),
            in_round: 0,
            pause: FIRST_PAUSE,
            until: Instant::now() + nodes.retry_for,
            tried: Vec::new(),
        }
    }

    /// The next node that can be reached, for statements.
    pub(crate) async fn next(&mut self) -> Result<TidemillClient<Channel>, ClientError> {
        let channel = self.channel().await?;
        Ok(TidemillClient::new(channel).max_decoding_message_size(MAX_PIECE_BYTES))
    }

    /// A connection to the next node that can be reached.
    pub(crate) async fn channel(&mut self) -> Result<Channel, ClientError> {
        loop {
            let node = &self.nodes.nodes[self.at];
            match self.nodes.connect(node).await {
                Ok(channel) => return Ok(channel),
                Err(failure) => self.failed(failure).await?,
            }
        }
    }

    /// The address of the node at hand.
    pub(crate) fn address(&self) -> &str {
        &self.nodes.nodes[self.at].address
    }

    /// The node at hand answered: it is the first to be asked the next time.
    pub(crate) fn answered(&self) {
        self.nodes.preferred.store(self.at, Ordering::Relaxed);
    }

    /// Moves on after a failure, or says that this was the last attempt.
    pub(crate) async fn failed(&mut self, failure: Failure) -> Result<(), ClientError> {
        let node = &self.nodes.nodes[self.at];
        if matches!(failure, Failure::Unsent(_) | Failure::Lost(_)) {
            // The next request to this node begins with a fresh connection.
            *node.channel() = None;
        }
        let reason = match failure.next(self.reads, &node.address) {
            Next::Retry(reason) => reason,
            Next::GiveUp(error) => return Err(error),
        };
        tracing::debug!(address = node.address, reason, "an attempt failed");
        self.tried.retain(|tried| tried.address != node.address);
        self.tried.push(Tried {
            address: node.address.clone(),
            reason,
        });

        self.at = (self.at + 1) % self.nodes.nodes.len();
        self.in_round += 1;
        let now = Instant::now();
        let round_over = self.in_round == self.nodes.nodes.len();
        let pause = if round_over { self.pause } else { Duration::ZERO };
        if now + pause >= self.until {
            return Err(ClientError::Unavailable {
                tried: std::mem::take(&mut self.tried),
            });
        }
        if round_over {
            self.in_round = 0;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            sleep(pause).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        for good in ["127.0.0.1:7401", "http://n1.example:7401", "[::1]:7401"] {
            assert!(endpoint(good, FIRST_PAUSE).is_ok(), "{good}");
        }
        for bad in ["", "n1", ":7401", "n1:", "n1:0", "n1:70000", "n 1:7401"] {
            let error = endpoint(bad, FIRST_PAUSE).expect_err(bad);
            assert!(error.to_string().contains("host:port"), "{bad}: {error}");
        }
        assert!(Nodes::new(ClientConfig::new(Vec::<String>::new())).is_err());
    }
}
