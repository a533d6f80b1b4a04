//! Nodes that have applied the catalog up to the same version have the same state.

use super::{Outcome, Run};
use std::collections::BTreeMap;

/// See the module's page.
pub fn check(run: &Run) -> Outcome {
    let mut outcome = Outcome::new("digests");
    let mut known: BTreeMap<u64, (&str, &str, usize)> = BTreeMap::new();
    let mut nodes = std::collections::BTreeSet::new();
    let mut compared = 0;
    for (at, digest) in &run.facts.digests {
        nodes.insert(&digest.node);
        match known.get(&digest.version) {
            None => _ = known.insert(digest.version, (&digest.digest, &digest.node, *at)),
            Some((same, other, entry)) => {
                compared += usize::from(*other != digest.node);
                if *same != digest.digest {
                    let text = format!(
                        "version {} of the catalog is {same} at {other} and {} at {}",
                        digest.version, digest.digest, digest.node
                    );
                    outcome.find(&[*entry, *at], text);
                }
            }
        }
    }
    outcome.looked(run.facts.digests.len(), "digests");
    outcome.looked(nodes.len(), "nodes");
    outcome.looked(compared, "compared between nodes");
    if !run.facts.digests.is_empty() && compared == 0 {
        outcome.doubt("no two nodes told the digest of the same version".to_owned());
    }
    outcome
}
