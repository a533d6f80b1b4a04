//! How a node finds out that it was removed. While it runs, its own catalog says so: it gets the log until its process has
//! ended. If it was down meanwhile, nobody sends it anything any more, and its own log may still call it a voter, with a
//! leader, which may be itself; so a node whose catalog does not move asks the others, unless it leads a quorum, and so does
//! one that is refused somewhere. The answer is noted in the data folder, which never takes part again.

use crate::{bootstrap, identity, node::Node};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// How often the own catalog is looked at, at most.
const LOOK: Duration = Duration::from_millis(200);
/// When nothing was applied for so long the others are asked, and again after each further such time.
const QUIET: Duration = Duration::from_secs(3);

/// Ends when the node was removed.
pub(crate) async fn watch(node: Arc<Node>) {
    let instance = node.identity.instance;
    let mut version = node.catalog.version();
    version.mark_changed();
    let mut moved = Instant::now();
    loop {
        if version.has_changed().unwrap_or(false) {
            version.mark_unchanged();
            moved = Instant::now();
            if node.was_removed(|other| other.instance == instance) {
                break;
            }
        }
        let suspected = tokio::select! {
            () = tokio::time::sleep(LOOK) => false,
            () = node.suspicion.notified() => true,
        };
        if suspected || (moved.elapsed() >= QUIET && !node.leads_a_quorum()) {
            if others_say_removed(&node).await {
                break;
            }
            moved = Instant::now();
        }
    }
    let folder = node.config.data_dir.clone();
    let marked = tokio::task::spawn_blocking(move || identity::mark_removed(&folder)).await;
    if let Ok(Err(error)) = marked {
        // The cluster refuses the folder all the same; the next start takes a little longer to learn it.
        tracing::warn!("it cannot be noted in the data folder that the node was removed: {error}");
    }
    node.waits_for(Some("this node was removed from the cluster".into()));
    node.removed.send_replace(true);
}

/// Whether anybody of the same cluster says so.
async fn others_say_removed(node: &Arc<Node>) -> bool {
    let members = node.members();
    let questions = members
        .iter()
        .filter(|(id, _)| *id != node.identity.node)
        .map(|(_, member)| bootstrap::ask(node, &member.name, &member.raft_addr));
    let answers = futures::future::join_all(questions).await;
    answers
        .into_iter()
        .flatten()
        .any(|answer| answer.cluster == node.identity.cluster_name && answer.removed)
}
