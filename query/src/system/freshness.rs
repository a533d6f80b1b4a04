//! `system.freshness`: how old records were when queries could see them, by table.

use super::cluster::table_names;
use super::columns::Columns;
use crate::error::QueryError;
use crate::ports::NodeProgress;
use arrow::array::RecordBatch;
use std::collections::BTreeMap;
use tidemill_core::TableId;
use tidemill_core::freshness::quantile_ms;
use tidemill_core::view::CatalogSnapshot;

/// Counted since the tasks that run now began; null where no manager has told it.
pub(super) fn freshness(snapshot: &dyn CatalogSnapshot, progress: &[NodeProgress]) -> Result<RecordBatch, QueryError> {
    let mut sums: BTreeMap<TableId, Vec<u64>> = BTreeMap::new();
    for (table, buckets) in progress.iter().flat_map(|node| &node.freshness) {
        let sum = sums.entry(*table).or_default();
        sum.resize(sum.len().max(buckets.len()), 0);
        for (total, count) in sum.iter_mut().zip(buckets) {
            *total += count;
        }
    }
    let tables = table_names(snapshot)?;
    let of = |table: &TableId| sums.get(table).map(Vec::as_slice).unwrap_or_default();
    let quantile = |share: f64| tables.keys().map(move |table| quantile_ms(of(table), share));
    Columns::default()
        .text("table", tables.values().map(|name| Some(name.clone())))
        .number("records", tables.keys().map(|table| Some(of(table).iter().sum())))
        .number("p50_ms", quantile(0.5))
        .number("p90_ms", quantile(0.9))
        .number("p99_ms", quantile(0.99))
        .finish()
}
