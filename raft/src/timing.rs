//! How patient openraft is made and we are with it, and how much it does at once. Nothing but numbers and what follows from them: the
//! simulation of this crate (`sim-raft`) compiles this very file, so that it runs with what nodes run with.

use crate::types::TypeConfig;
use openraft::{Instant as _, RaftMetrics, SnapshotPolicy};
use std::time::Duration;

/// How long to wait before asking again when nobody leads.
pub(crate) const RETRY: Duration = Duration::from_millis(50);
/// The longest that one attempt to place a read waits for its answer; the next may find another leader.
pub(crate) const READ_ATTEMPT: Duration = Duration::from_millis(1500);
/// A leader that a quorum has not answered for so long speaks for itself alone.
const QUORUM: Duration = Duration::from_secs(2);
/// A learner that lacks no more entries than this has caught up; the rest takes less than a moment.
pub(crate) const CAUGHT_UP: u64 = 200;
/// The most entries that are applied, and written, at once.
pub(crate) const RUN_ENTRIES: usize = 256;

/// What `RaftConfig` says of it, where the fields are described.
#[derive(Clone, Debug)]
pub(crate) struct Timing {
    pub(crate) heartbeat: Duration,
    pub(crate) election: (Duration, Duration),
    pub(crate) snapshot_entries: u64,
    pub(crate) keep_entries: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election: (Duration::from_millis(400), Duration::from_millis(800)),
            snapshot_entries: 20_000,
            keep_entries: 5_000,
        }
    }
}

impl Timing {
    /// The part of the election time that `node` has. Of three nodes with successive ids each has another: were two to begin at
    /// once, they would split the votes and wait once more.
    fn election_of(&self, node: u64) -> (Duration, Duration) {
        let (least, most) = self.election;
        let quarter = most.saturating_sub(least) / 4;
        let place = (node.saturating_sub(1) % 3) as u32;
        let from = least + quarter * place;
        (from, from + quarter * 2)
    }

    /// The same for openraft, at `node`.
    pub(crate) fn for_openraft(&self, cluster: &str, node: u64) -> Result<openraft::Config, openraft::ConfigError> {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let (election_min, election_max) = self.election_of(node);
        let (election_min, election_max) = (ms(election_min), ms(election_max));
        openraft::Config {
            cluster_name: cluster.to_owned(),
            heartbeat_interval: ms(self.heartbeat),
            election_timeout_min: election_min,
            election_timeout_max: election_max,
            // A peer that could not win does not disturb a leader that works.
            enable_pre_vote: Some(true),
            // A leader without a quorum must fall silent now and then, or its heartbeats keep the
            // others from electing one that has a quorum.
            quorum_loss_probe_interval: Some(election_max.saturating_mul(2).saturating_add(100)),
            // After a power failure the catalog and the committed position may be older than what
            // was answered before; a leader that took office again without an election could serve
            // linearizable reads from that.
            enable_leader_restore: Some(false),
            // A follower whose disk has lost entries that it had acknowledged gets them again. Else it would never be fed any
            // more, and after two such the group would decide nothing; until it is fed the danger is the same, that this
            // leader is lost and one is elected that lacks them. What was committed stays so; `network` tells people.
            allow_log_reversion: Some(true),
            // Messages are bounded by bytes where the log is read.
            max_payload_entries: 1024,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_entries),
            max_in_snapshot_log_to_keep: self.keep_entries,
            replication_lag_threshold: self.snapshot_entries.saturating_mul(2),
            // Purging waits for the catalog to be synced: better seldom and much.
            purge_batch_size: (self.snapshot_entries / 4).max(1),
            // The network sends under deadlines of its own; this bounds a whole transfer.
            install_snapshot_timeout: 3_600_000,
            backoff: "50ms 100ms 200ms ...500ms".into(),
            ..openraft::Config::default()
        }
        .validate()
    }
}

/// Whether a node leads, and a quorum has lately confirmed it. A leader that is cut off goes on calling itself one, also when the
/// others have removed it meanwhile: then nobody tells it anything any more.
pub(crate) fn leads_a_quorum(metrics: &RaftMetrics<TypeConfig>) -> bool {
    let alone = metrics.membership_config.membership().voter_ids().eq([metrics.id]);
    let confirmed = metrics
        .last_quorum_acked
        .as_ref()
        .is_some_and(|at| at.elapsed() < QUORUM);
    metrics.current_leader == Some(metrics.id) && (alone || confirmed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_nodes_never_begin_an_election_at_once() {
        let timing = Timing::default();
        // The lease is as long as the greatest time; the election begins when a time from the part has passed after it.
        let begins = |node| {
            let (least, most) = timing.election_of(node);
            (most + least).as_millis()..(most + most).as_millis()
        };
        assert_eq!([1, 2, 3].map(begins), [1000..1200, 1200..1400, 1400..1600]);
        assert_eq!([4, 5, 6].map(begins), [1, 2, 3].map(begins));
        assert!((1..=6).all(|node| timing.for_openraft("c", node).is_ok()));
    }
}
