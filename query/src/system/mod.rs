//! The system tables: what the catalog and the manager know, as rows.
//!
//! Each is built when a query names it, from the query's own snapshot; what is not named costs
//! nothing. Soft state (rates, positions, lag) is null where no manager or node has told it.

mod check;
mod cluster;
mod columns;
mod freshness;
mod ledger;
mod pipes;
mod rejected;
mod tables;
mod writers;

use crate::error::QueryError;
use crate::ports::{Progress, SoftState};
use crate::settings::{SETTINGS, Settings};
use arrow::array::RecordBatch;
pub(crate) use columns::Columns;
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use std::sync::Arc;
use tidemill_core::catalog::Shard;
use tidemill_core::view::{CatalogRead, CatalogSnapshot};
use tidemill_storage::store::PartStore;

/// The names of the system tables.
pub(crate) const NAMES: &[&str] = &[
    "cluster",
    "nodes",
    "tables",
    "shards",
    "replicas",
    "pipes",
    "partitions",
    "writers",
    "parts",
    "rejected",
    "ledger",
    "skipped",
    "deleted_rows",
    "events",
    "freshness",
    CHECK,
    "settings",
];

/// The system table that reads every file.
pub(crate) const CHECK: &str = "check";

/// [`CHECK`] as a table.
pub(crate) async fn checked(
    snapshot: &dyn CatalogSnapshot,
    store: &dyn PartStore,
) -> Result<Arc<dyn TableProvider>, QueryError> {
    let rows = check::check(snapshot, store).await?;
    Ok(Arc::new(MemTable::try_new(rows.schema(), vec![vec![rows]])?))
}

/// What a system table is built from.
pub(crate) struct Source<'s> {
    pub(crate) snapshot: Arc<dyn CatalogSnapshot>,
    pub(crate) progress: Option<&'s SoftState>,
    pub(crate) group: &'s dyn Progress,
    pub(crate) settings: Settings,
}

/// Whether the table needs the manager's soft state.
pub(crate) fn needs_progress(name: &str, snapshot: &dyn CatalogSnapshot) -> Result<bool, QueryError> {
    Ok(match name {
        "nodes" | "partitions" | "freshness" => true,
        // How far standbys are; who leads can be asked while no manager answers.
        "shards" => snapshot.list::<Shard>(&[])?.iter().any(|shard| shard.standby.is_some()),
        _ => false,
    })
}

/// The system table called `name`, if there is one.
pub(crate) fn table(name: &str, source: &Source<'_>) -> Result<Option<Arc<dyn TableProvider>>, QueryError> {
    let snapshot = &*source.snapshot;
    let nothing = SoftState::default();
    let soft = source.progress.unwrap_or(&nothing);
    let said = &soft.nodes;
    let rows = match name {
        "cluster" => cluster::cluster(snapshot)?,
        "nodes" => cluster::nodes(snapshot, said, source.group)?,
        "shards" => cluster::shards(snapshot, said)?,
        "replicas" => cluster::replicas(snapshot)?,
        "tables" => tables::tables(snapshot)?,
        "parts" => tables::parts(snapshot)?,
        "pipes" => pipes::pipes(snapshot)?,
        "partitions" => pipes::partitions(snapshot, soft)?,
        "writers" => writers::writers(snapshot)?,
        "freshness" => freshness::freshness(snapshot, said)?,
        "ledger" => ledger::ledger(snapshot)?,
        "skipped" => ledger::skipped(snapshot)?,
        "deleted_rows" => ledger::deleted_rows(snapshot)?,
        "events" => ledger::events(snapshot)?,
        "settings" => settings(&source.settings)?,
        "rejected" => return Ok(Some(Arc::new(rejected::Rejected::new(snapshot)?))),
        _ => return Ok(None),
    };
    Ok(Some(Arc::new(MemTable::try_new(rows.schema(), vec![vec![rows]])?)))
}

fn settings(current: &Settings) -> Result<RecordBatch, QueryError> {
    let value = |setting: &crate::settings::Setting| current.value(setting.name).unwrap_or(setting.default).to_owned();
    Columns::default()
        .text("name", SETTINGS.iter().map(|s| Some(s.name.to_owned())))
        .text("value", SETTINGS.iter().map(|s| Some(value(s))))
        .text("default", SETTINGS.iter().map(|s| Some(s.default.to_owned())))
        .text("description", SETTINGS.iter().map(|s| Some(s.description.to_owned())))
        .finish()
}
