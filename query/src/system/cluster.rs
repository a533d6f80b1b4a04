//! `system.cluster`, `system.nodes`, `system.shards` and `system.replicas`.

use super::columns::Columns;
use crate::error::QueryError;
use crate::ports::{NodeProgress, PartitionProgress, Progress};
use arrow::array::RecordBatch;
use std::collections::BTreeMap;
use tidemill_core::catalog::{
    CatalogQuestions, Cluster, ClusterKey, Copies, Node, NodeState, Replication, Shard, SourcePartition, Table,
};
use tidemill_core::view::{CatalogRead, CatalogSnapshot};
use tidemill_core::{NodeId, TableId};

/// The cluster, and the version of the catalog that this query reads: all tables of a query are of one version.
pub(super) fn cluster(snapshot: &dyn CatalogSnapshot) -> Result<RecordBatch, QueryError> {
    let cluster = snapshot.get::<Cluster>(&ClusterKey)?;
    let rule = snapshot.replication()?;
    let one = || cluster.iter();
    let number = |of: fn(&Replication) -> u64| one().map(move |_| rule.as_ref().map(of));
    Columns::default()
        .text("name", one().map(|cluster| Some(cluster.name.clone())))
        .text("id", one().map(|cluster| Some(cluster.id.to_string())))
        .number("version", one().map(|_| Some(snapshot.version().0)))
        .number("replicas", number(|rule| rule.replicas.into()))
        .number("min_replicas", number(|rule| rule.min_replicas.into()))
        .finish()
}

/// The nodes, how many shards each leads, and what it last said of itself.
pub(super) fn nodes(
    snapshot: &dyn CatalogSnapshot,
    progress: &[NodeProgress],
    group: &dyn Progress,
) -> Result<RecordBatch, QueryError> {
    let nodes: Vec<Node> = snapshot.list(&[])?;
    let mut led: BTreeMap<NodeId, u64> = BTreeMap::new();
    for leader in snapshot.list::<Shard>(&[])?.iter().filter_map(|shard| shard.leader) {
        *led.entry(leader).or_default() += 1;
    }
    let said: Vec<_> = nodes
        .iter()
        .map(|node| progress.iter().find(|said| said.node == node.id))
        .collect();
    let text = |of: fn(&Node) -> String| nodes.iter().map(move |node| Some(of(node)));
    Columns::default()
        .number("id", nodes.iter().map(|node| Some(node.id.0)))
        .text("name", text(|node| node.name.clone()))
        .text("state", text(|node| node.state.to_string()))
        .text(
            "role",
            group.roles(&nodes).into_iter().map(|role| Some(role.to_owned())),
        )
        .text("warehouse", text(|node| node.warehouse.clone()))
        .text("raft_address", text(|node| node.addresses.raft.clone()))
        .text("api_address", text(|node| node.addresses.api.clone()))
        .text("http_address", text(|node| node.addresses.http.clone()))
        .number(
            "shards",
            nodes.iter().map(|node| Some(led.get(&node.id).copied().unwrap_or(0))),
        )
        .float(
            "rows_per_second",
            said.iter().map(|said| said.map(|said| said.rows_per_second)),
        )
        .number(
            "memtable_bytes",
            said.iter().map(|said| said.map(|said| said.memtable_bytes)),
        )
        .number("silent_ms", said.iter().map(|said| said.map(|said| said.silent_ms)))
        .finish()
}

/// The shards, who leads them, and who stands by.
pub(super) fn shards(snapshot: &dyn CatalogSnapshot, progress: &[NodeProgress]) -> Result<RecordBatch, QueryError> {
    let shards: Vec<Shard> = snapshot.list(&[])?;
    let tables = snapshot.list::<Table>(&[])?.into_iter();
    let tables: BTreeMap<TableId, Table> = tables.map(|table| (table.id, table)).collect();
    let all: Vec<Node> = snapshot.list(&[])?;
    let nodes: BTreeMap<NodeId, String> = all.iter().map(|node| (node.id, node.name.clone())).collect();
    let replicates = snapshot.replication()?.is_some();
    let may_lead = |shard: &Shard| {
        let able = shard.may_be_led_by(tables.get(&shard.id.table), all.iter(), replicates);
        let ready = able.iter().filter(|node| node.state == NodeState::Ready);
        ready.map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let hot = snapshot.hot_partitions()?;
    let name = |node: Option<NodeId>| node.and_then(|node| nodes.get(&node).cloned());
    Columns::default()
        .text("id", shards.iter().map(|shard| Some(shard.id.to_string())))
        .text(
            "table",
            shards
                .iter()
                .map(|shard| tables.get(&shard.id.table).map(|table| table.name.clone())),
        )
        .number("shard", shards.iter().map(|shard| Some(shard.id.index.into())))
        .number("epoch", shards.iter().map(|shard| Some(shard.epoch.0)))
        .text("leader", shards.iter().map(|shard| name(shard.leader)))
        .maybe_time(
            "since",
            shards
                .iter()
                .map(|shard| shard.assigned.as_ref().map(|assigned| assigned.at_ms)),
        )
        .text(
            "reason",
            shards
                .iter()
                .map(|shard| shard.assigned.as_ref().map(|assigned| assigned.because.clone())),
        )
        .text("may_lead", shards.iter().map(|shard| Some(may_lead(shard))))
        .text("standby", shards.iter().map(|shard| name(shard.standby)))
        .number(
            "standby_behind",
            shards.iter().map(|shard| standby_behind(shard, &hot, progress)),
        )
        .finish()
}

/// How many offsets that the leader has read would have to be read again by the standby, as both said last.
fn standby_behind(shard: &Shard, hot: &[SourcePartition], progress: &[NodeProgress]) -> Option<u64> {
    let said = |node: NodeId| progress.iter().find(|said| said.node == node);
    let (leader, standby) = (said(shard.leader?)?, said(shard.standby?)?);
    let position = |said: &[PartitionProgress], of: &SourcePartition| {
        let found = said.iter().find(|p| p.key == of.key() && p.shard == shard.id);
        found.map(|p| p.position)
    };
    let behind = |of: &SourcePartition| {
        let led = position(&leader.partitions, of).unwrap_or(of.offset);
        // What is committed nobody reads again.
        let read = position(&standby.standing_by, of).unwrap_or(of.offset).max(of.offset);
        led.0.saturating_sub(read.0)
    };
    let of_shard = hot.iter().filter(|of| of.shard == shard.id);
    Some(of_shard.map(behind).sum())
}

/// Who keeps the files of which shard, and how far each is; empty where the part store is shared.
pub(super) fn replicas(snapshot: &dyn CatalogSnapshot) -> Result<RecordBatch, QueryError> {
    struct Line {
        table: Option<String>,
        shard: u64,
        node: Option<String>,
        state: String,
        files: u64,
        bytes: u64,
        missing_files: u64,
        missing_bytes: u64,
    }
    let tables = table_names(snapshot)?;
    let nodes: BTreeMap<NodeId, Node> = snapshot.list::<Node>(&[])?.into_iter().map(|n| (n.id, n)).collect();
    let mut lines = Vec::new();
    for shard in snapshot.list::<Shard>(&[])? {
        let copies = snapshot.copies_of(shard.id)?;
        for replica in &shard.replicas {
            let node = nodes.get(&replica.node);
            let disk = node.and_then(Node::holder);
            let held = |copies: &&Copies| disk.is_some_and(|disk| copies.on(disk));
            let (held, missing): (Vec<&Copies>, Vec<&Copies>) = copies.iter().partition(held);
            let bytes = |copies: &[&Copies]| copies.iter().map(|copies| copies.bytes).sum();
            lines.push(Line {
                table: tables.get(&shard.id.table).cloned(),
                shard: shard.id.index.into(),
                node: node.map(|node| node.name.clone()),
                state: replica.state.to_string(),
                files: held.len() as u64,
                bytes: bytes(&held),
                missing_files: missing.len() as u64,
                missing_bytes: bytes(&missing),
            });
        }
    }
    let number = |of: fn(&Line) -> u64| lines.iter().map(move |line| Some(of(line)));
    Columns::default()
        .text("table", lines.iter().map(|line| line.table.clone()))
        .number("shard", number(|line| line.shard))
        .text("node", lines.iter().map(|line| line.node.clone()))
        .text("state", lines.iter().map(|line| Some(line.state.clone())))
        .number("files", number(|line| line.files))
        .number("bytes", number(|line| line.bytes))
        .number("missing_files", number(|line| line.missing_files))
        .number("missing_bytes", number(|line| line.missing_bytes))
        .finish()
}

/// The names of all tables.
pub(super) fn table_names(snapshot: &dyn CatalogSnapshot) -> Result<BTreeMap<TableId, String>, QueryError> {
    Ok(snapshot
        .list::<Table>(&[])?
        .into_iter()
        .map(|table| (table.id, table.name))
        .collect())
}
