//! `system.nodes` and `system.shards`.

use super::columns::Columns;
use crate::error::QueryError;
use crate::ports::{NodeProgress, Progress};
use arrow::array::RecordBatch;
use std::collections::BTreeMap;
use tidemill_core::catalog::{Node, Shard, Table};
use tidemill_core::view::{CatalogRead, CatalogSnapshot};
use tidemill_core::{NodeId, TableId};

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

/// The shards and who leads them.
pub(super) fn shards(snapshot: &dyn CatalogSnapshot) -> Result<RecordBatch, QueryError> {
    let shards: Vec<Shard> = snapshot.list(&[])?;
    let tables = table_names(snapshot)?;
    let nodes: BTreeMap<NodeId, String> = snapshot
        .list::<Node>(&[])?
        .into_iter()
        .map(|node| (node.id, node.name))
        .collect();
    Columns::default()
        .text("table", shards.iter().map(|shard| tables.get(&shard.id.table).cloned()))
        .number("shard", shards.iter().map(|shard| Some(shard.id.index.into())))
        .number("epoch", shards.iter().map(|shard| Some(shard.epoch.0)))
        .text(
            "leader",
            shards
                .iter()
                .map(|shard| shard.leader.and_then(|leader| nodes.get(&leader).cloned())),
        )
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
