//! What `nft` does to the packets between two places: it drops all of them, or some.
//!
//! Packets are dropped where they arrive. A cut in one direction lets the other direction's packets through, as a broken
//! switch does; a TCP connection does not work over it in either direction, since acknowledgements are packets too.

use super::network::{Network, Place, differ};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

static RULES: AtomicU32 = AtomicU32::new(0);

/// Rules that are in force until this is dropped.
#[derive(Debug)]
#[must_use = "the link is mended when this is dropped"]
pub struct Link {
    network: Arc<Network>,
    at: Place,
    table: String,
}

impl Link {
    /// Drops what `from` sends to `to`.
    ///
    /// # Errors
    /// If `nft` refuses the rule.
    pub fn cut(network: &Arc<Network>, from: Place, to: Place) -> anyhow::Result<Self> {
        differ(from, to)?;
        Self::at_arrival(network, to, &format!("ip saddr {} drop", from.address()))
    }

    /// Drops what `from` sends to what listens at `port` of `to`.
    ///
    /// # Errors
    /// If `nft` refuses the rule.
    pub fn cut_port(network: &Arc<Network>, from: Place, to: Place, port: u16) -> anyhow::Result<Self> {
        differ(from, to)?;
        Self::at_arrival(
            network,
            to,
            &format!("ip saddr {} tcp dport {port} drop", from.address()),
        )
    }

    /// Drops `percent` of the packets that `from` sends to `to`, at random.
    ///
    /// # Errors
    /// If `nft` refuses the rule.
    pub fn lossy(network: &Arc<Network>, from: Place, to: Place, percent: u32) -> anyhow::Result<Self> {
        differ(from, to)?;
        let rule = format!("ip saddr {} numgen random mod 100 < {percent} drop", from.address());
        Self::at_arrival(network, to, &rule)
    }

    fn at_arrival(network: &Arc<Network>, at: Place, rule: &str) -> anyhow::Result<Self> {
        // Before the connection is looked up, so that what belongs to one that is there is dropped too.
        Self::load(
            network,
            at,
            &format!("chain in {{\ntype filter hook input priority -300; policy accept;\n{rule}\n}}"),
        )
    }

    /// Loads chains of `nft` in the namespace of `at`.
    pub(super) fn load(network: &Arc<Network>, at: Place, chains: &str) -> anyhow::Result<Self> {
        let table = format!("fault{}", RULES.fetch_add(1, Ordering::Relaxed));
        network.rules(at, &format!("table ip {table} {{\n{chains}\n}}"))?;
        let network = network.clone();
        Ok(Self { network, at, table })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Err(error) = self.network.rules(self.at, &format!("delete table ip {}", self.table)) {
            eprintln!("a link at {} cannot be mended: {error:#}", self.at);
        }
    }
}

/// Cuts every pair of these in both directions.
///
/// # Errors
/// If `nft` refuses a rule; then nothing is cut.
pub fn cut_all(network: &Arc<Network>, pairs: &[(Place, Place)]) -> anyhow::Result<Vec<Link>> {
    let both = pairs.iter().flat_map(|(one, other)| [(*one, *other), (*other, *one)]);
    both.map(|(from, to)| Link::cut(network, from, to)).collect()
}
