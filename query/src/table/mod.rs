//! A user's table for DataFusion: its committed parts and the pinned rows, as one scan.
//!
//! A provider stands for one moment of the table ([`TableAtOnce`]) and lives as long as a query. It
//! lists the parts when it is scanned, skips those that the filters rule out, and leaves reading them
//! to DataFusion's Parquet source. It remembers nothing beyond its query.

mod deleted;
mod parts;
mod pruning;

use deleted::OF_ROWS;
pub(crate) use deleted::{Deleted, OF_REJECTS};
pub(crate) use parts::PartScan;

use crate::error::QueryError;
use crate::fresh::TableAtOnce;
use arrow::array::RecordBatch;
use arrow::datatypes::{FieldRef, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::datasource::TableType;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::union::UnionExec;
use std::fmt;
use std::sync::Arc;
use tidemill_core::catalog::{CatalogQuestions, Part};
use tidemill_core::view::CatalogSnapshot;
use tidemill_storage::schema::arrow_schema;
use tokio::sync::OnceCell;

/// One moment of a user's table.
pub(crate) struct UserTable {
    at_once: TableAtOnce,
    schema: SchemaRef,
    snapshot: Arc<dyn CatalogSnapshot>,
    /// Listed at the first scan; the same for all scans of this query.
    parts: OnceCell<Vec<Part>>,
}

impl UserTable {
    /// The table as it is in `snapshot`, with rows beyond it. Fails when those have columns that the table does not have.
    pub(crate) fn new(at_once: TableAtOnce, snapshot: Arc<dyn CatalogSnapshot>) -> Result<Self, QueryError> {
        let schema = arrow_schema(&at_once.table);
        if let Some(other) = at_once.rows.iter().find(|rows| {
            !rows.schema_ref().fields().iter().all(|field| {
                schema
                    .field_with_name(field.name())
                    .is_ok_and(|known| known == &**field)
            })
        }) {
            return Err(QueryError::internal(format!(
                "rows in memory of table '{}' have columns {}, expected {schema}",
                at_once.table.name,
                other.schema_ref()
            )));
        }
        Ok(Self {
            at_once,
            schema,
            snapshot,
            parts: OnceCell::new(),
        })
    }

    async fn parts(&self) -> Result<&Vec<Part>, QueryError> {
        let list = || async {
            let (snapshot, table) = (self.snapshot.clone(), self.at_once.table.id);
            // Thousands of parts take milliseconds to read; other queries go on meanwhile.
            let listing = tokio::task::spawn_blocking(move || snapshot.parts_of(table));
            let parts = listing.await;
            Ok(parts.map_err(|e| QueryError::internal(format!("listing parts failed: {e}")))??)
        };
        self.parts.get_or_try_init(list).await
    }
}

impl fmt::Debug for UserTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserTable")
            .field("name", &self.at_once.table.name)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl TableProvider for UserTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // Filters skip parts, row groups and pages; rows are filtered above the scan.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut inputs: Vec<Arc<dyn ExecutionPlan>> = Vec::new();
        let deleted = &self.at_once.table.deleted;
        let all = self.parts().await?.iter();
        let all = all.map(|part| (part.version, &part.file, Vec::new()));
        for scan in OF_ROWS.scans(&self.schema, deleted, all) {
            inputs.extend(scan.plan(state, projection, filters, limit)?);
        }
        if !self.at_once.rows.is_empty() {
            let wanted = datafusion::physical_plan::project_schema(&self.schema, projection)?;
            let rows = self.at_once.rows.iter().map(|rows| with_columns(rows, &wanted));
            let lanes = spread(&rows.collect::<Result<Vec<_>>>()?, state.config().target_partitions());
            let fresh = MemorySourceConfig::try_new(&lanes, wanted, None)?;
            let fresh = fresh.with_limit(limit).with_show_sizes(false);
            inputs.push(datafusion::datasource::source::DataSourceExec::from_data_source(fresh));
        }
        one_of_all(inputs, &self.schema, projection)
    }
}

/// All of `inputs` as one; nothing of the `projection` of `schema` if there are none.
pub(crate) fn one_of_all(
    mut inputs: Vec<Arc<dyn ExecutionPlan>>,
    schema: &SchemaRef,
    projection: Option<&Vec<usize>>,
) -> Result<Arc<dyn ExecutionPlan>> {
    match (inputs.len(), inputs.pop()) {
        (0 | 1, Some(only)) => Ok(only),
        (_, Some(last)) => {
            inputs.push(last);
            UnionExec::try_new(inputs)
        }
        (_, None) => {
            let schema = datafusion::physical_plan::project_schema(schema, projection)?;
            Ok(Arc::new(EmptyExec::new(schema)))
        }
    }
}

/// The columns of `wanted`, which `rows` must have: rows in memory come with those that the query names.
fn with_columns(rows: &RecordBatch, wanted: &SchemaRef) -> Result<RecordBatch> {
    let place = |field: &FieldRef| {
        let place = rows.schema_ref().index_of(field.name());
        place.map_err(|_| QueryError::internal(format!("column '{}' is read but not named by the query", field.name())))
    };
    let places = wanted.fields().iter().map(place).collect::<Result<Vec<_>, _>>()?;
    Ok(rows.project(&places)?)
}

/// The batches in at most `lanes` groups of about as many rows, to be read side by side.
fn spread(batches: &[RecordBatch], lanes: usize) -> Vec<Vec<RecordBatch>> {
    let mut groups: Vec<(usize, Vec<_>)> = vec![(0, Vec::new()); lanes.clamp(1, batches.len().max(1))];
    for batch in batches {
        if let Some((rows, group)) = groups.iter_mut().min_by_key(|(rows, _)| *rows) {
            *rows += batch.num_rows();
            group.push(batch.clone());
        }
    }
    groups
        .into_iter()
        .map(|(_, group)| group)
        .filter(|group| !group.is_empty())
        .collect()
}
