//! Standbys: who reads beside the leader of a shard that a pipe with a hot standby feeds.

use super::replace::keep_away;
use super::shards::placement_problem;
use super::{Reports, Term};
use crate::adapters::propose;
use std::time::Duration;
use tidemill_core::catalog::{Node, Shard};
use tidemill_core::command::{AssignStandby, ReplicaOf};
use tidemill_core::placement::{Problem, standby};
use tidemill_core::view::{CatalogRead, CatalogSnapshot, ViewError};
use tidemill_core::{Command, NodeId};
use tidemill_raft::Catalog;
use tracing::{debug, info};

/// Passes over standbys that are not heard in the run of their process that the catalog knows, where who led last is there and
/// has rows in its log: after a loss of power everywhere, a standby has nothing.
pub(super) fn pass_over_unheard(reports: &Reports, nodes: &[Node], problem: &mut Problem) {
    let heard = |id: &NodeId| nodes.iter().any(|node| node.id == *id && reports.hears(node));
    for shard in &mut problem.shards {
        if shard.last_leader.is_some_and(|last| problem.candidates.contains(&last)) {
            shard.standby = shard.standby.filter(heard);
        }
    }
}

/// Whether the leader of `shard` says that it leads it.
fn is_led(reports: &Reports, shard: &Shard) -> bool {
    let report = shard.leader.and_then(|leader| reports.get(leader));
    let led = (shard.id.table.0, shard.id.index, shard.epoch.0);
    report.is_some_and(|report| {
        let mut tasks = report.progress.tasks.iter();
        tasks.any(|task| (task.table, task.shard, task.epoch) == led)
    })
}

/// Gives shards the standbys that they shall have, and takes away those that they shall not.
pub(super) async fn place(
    catalog: &Catalog,
    reports: &Reports,
    state: &dyn CatalogSnapshot,
    leaving: &[ReplicaOf],
    term: &Term,
) -> Result<(), ViewError> {
    let nodes = state.list::<Node>(&[])?;
    let mut problem = placement_problem(state, &nodes, leaving, term)?;
    // Who stood still as the leader would stand still as a standby.
    keep_away(&term.stuck, &mut problem);
    let mut assignments = Vec::new();
    for change in standby::choose(&problem) {
        let Some(shard) = state.get::<Shard>(&change.shard)? else {
            continue;
        };
        if change.to.is_some() && !is_led(reports, &shard) {
            // A leader that has not been started again yet may be the one whose log has the rows.
            continue;
        }
        let command = Command::AssignStandby(AssignStandby {
            shard: shard.id,
            epoch: shard.epoch,
            node: change.to,
        });
        assignments.push(async move { (change, propose(catalog, command, Duration::from_secs(2)).await) });
    }
    for (change, outcome) in futures::future::join_all(assignments).await {
        match outcome {
            Ok((_, Ok(_))) => info!(shard = %change.shard, to = ?change.to, "the shard gets a standby"),
            // The state has moved on; the next look sees how.
            other => debug!(shard = %change.shard, ?other, "the standby was not taken"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_core::catalog::{Addresses, NodeIntent, NodeState};
    use tidemill_core::placement::ShardLoad;
    use tidemill_core::{BootId, DiskId, Epoch, InstanceId, ShardId, TableId, Version};
    use tidemill_proto::api::{BeatRequest, NodeProgress, TaskProgress};

    const SHARD: ShardId = ShardId {
        table: TableId(1),
        index: 0,
    };

    fn node(id: u64) -> Node {
        Node {
            id: NodeId(id),
            name: format!("n{id}"),
            instance: InstanceId(1),
            boot: Some(BootId(1)),
            warehouse: "w".into(),
            addresses: Addresses::default(),
            state: NodeState::Ready,
            intent: NodeIntent::Serve,
            intent_since: Version(0),
            disk: None,
        }
    }

    /// What is heard of `node` in a run of its process, which leads the shard in `epoch` or stands by.
    fn beat(node: u64, boot: u128, epoch: Option<u64>) -> BeatRequest {
        let leads = epoch.map(|epoch| TaskProgress {
            epoch,
            table: SHARD.table.0,
            shard: SHARD.index,
            ..TaskProgress::default()
        });
        BeatRequest {
            node,
            boot: BootId(boot).to_string(),
            instance: InstanceId(1).to_string(),
            progress: Some(NodeProgress {
                tasks: leads.into_iter().collect(),
                ..NodeProgress::default()
            }),
            ..BeatRequest::default()
        }
    }

    #[test]
    fn a_node_with_another_disk_than_the_catalog_knows_is_not_heard() {
        let (reports, mut known) = (Reports::default(), node(1));
        known.disk = Some(DiskId(1));
        let hears = |boot, disk| {
            let mut beat = beat(1, boot, None);
            beat.disk = DiskId(disk).to_string();
            assert_eq!(reports.take(beat), None);
            reports.hears(&known)
        };
        assert!(hears(1, 1));
        assert!(!hears(1, 2), "its disk was replaced");
        assert!(!hears(2, 1), "it was started again");
    }

    #[test]
    fn a_standby_of_which_nothing_is_heard_is_passed_over_for_a_log() {
        let (reports, nodes) = (Reports::default(), [node(1), node(2)]);
        let standby = |last: Option<u64>| {
            let mut problem = Problem {
                candidates: vec![NodeId(1), NodeId(2)],
                shards: vec![ShardLoad {
                    shard: SHARD,
                    able: None,
                    leader: None,
                    last_leader: last.map(NodeId),
                    hot: true,
                    standby: Some(NodeId(2)),
                    stays: false,
                    weight: 1,
                }],
                ..Problem::default()
            };
            pass_over_unheard(&reports, &nodes, &mut problem);
            problem.shards[0].standby
        };
        assert_eq!(standby(Some(1)), None);
        assert_eq!(standby(Some(9)), Some(NodeId(2)), "who has the log is not there");
        assert_eq!(standby(None), Some(NodeId(2)), "there is no log");
        assert_eq!(reports.take(beat(2, 7, None)), None);
        assert_eq!(standby(Some(1)), None, "it was started again");
        assert_eq!(reports.take(beat(2, 1, None)), None);
        assert_eq!(standby(Some(1)), Some(NodeId(2)));
    }

    #[test]
    fn nobody_stands_by_beside_a_leader_that_is_not_heard_to_lead() {
        let reports = Reports::default();
        let shard = Shard {
            id: SHARD,
            epoch: Epoch(5),
            leader: Some(NodeId(1)),
            last_leader: Some(NodeId(1)),
            assigned: None,
            last_commit: None,
            replicas: vec![],
            standby: None,
        };
        assert!(!is_led(&reports, &shard));
        for (epoch, leads) in [(None, false), (Some(4), false), (Some(5), true)] {
            assert_eq!(reports.take(beat(1, 1, epoch)), None);
            assert_eq!(is_led(&reports, &shard), leads, "{epoch:?}");
        }
    }
}
