//! What a client is told: where the nodes are and how long it may take.
//!
//! Plain values with defaults that work; checked once, in [`Client::new`](crate::Client::new).

use std::time::Duration;

/// Where the nodes are and how long things may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// The api addresses of the nodes, as `host:port`, in any order. One is enough; with all of
    /// them the client keeps working while any node does.
    pub addresses: Vec<String>,
    /// How long one attempt to connect may take. Default: 2 s.
    pub connect_timeout: Duration,
    /// How long a node may take until the first rows (or the message) are there, and then between
    /// two pieces of an answer. Default: 60 s.
    pub request_timeout: Duration,
    /// How long after the call new attempts are begun. An attempt that is under way at that moment
    /// is not cut off. Default: 15 s.
    pub retry_for: Duration,
}

impl ClientConfig {
    /// The default times with these addresses.
    pub fn new<A: Into<String>>(addresses: impl IntoIterator<Item = A>) -> Self {
        Self {
            addresses: addresses.into_iter().map(Into::into).collect(),
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(60),
            retry_for: Duration::from_secs(15),
        }
    }
}
