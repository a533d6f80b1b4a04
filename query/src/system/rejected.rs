//! `system.rejected`: the records that could not be decoded, of all pipes, read from the committed
//! reject parts. Those that a reset deleted, because they are read once more, are left out.

use crate::error::QueryError;
use crate::table::{OF_REJECTS, one_of_all};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Result, ScalarValue};
use datafusion::datasource::TableType;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use std::collections::BTreeMap;
use std::sync::Arc;
use tidemill_core::catalog::{DeletedRows, Pipe, RejectPart, Table};
use tidemill_core::view::{CatalogRead, CatalogSnapshot};
use tidemill_core::{PipeId, TableId};
use tidemill_storage::schema::reject_schema;

/// The reject parts of a snapshot.
#[derive(Debug)]
pub(super) struct Rejected {
    /// By table, since that is where deletions are written down.
    of_tables: BTreeMap<TableId, OfTable>,
    schema: SchemaRef,
}

/// The reject parts of a table's pipes.
#[derive(Debug, Default)]
struct OfTable {
    /// With the names of their pipes.
    parts: Vec<(String, RejectPart)>,
    deleted: Vec<DeletedRows>,
}

impl Rejected {
    /// The reject parts of `snapshot`.
    pub(super) fn new(snapshot: &dyn CatalogSnapshot) -> Result<Self, QueryError> {
        let pipes: BTreeMap<PipeId, String> = snapshot
            .list::<Pipe>(&[])?
            .into_iter()
            .map(|pipe| (pipe.id, pipe.name))
            .collect();
        let mut of_tables: BTreeMap<TableId, OfTable> = BTreeMap::new();
        for part in snapshot.list::<RejectPart>(&[])? {
            let name = pipes.get(&part.pipe).cloned().unwrap_or_else(|| part.pipe.to_string());
            of_tables.entry(part.shard.table).or_default().parts.push((name, part));
        }
        for (table, of_table) in &mut of_tables {
            of_table.deleted = snapshot.get::<Table>(table)?.map(|t| t.deleted).unwrap_or_default();
        }
        let fields: Vec<FieldRef> = std::iter::once(pipe_field())
            .chain(reject_schema().fields().iter().cloned())
            .collect();
        Ok(Self {
            of_tables,
            schema: Arc::new(Schema::new(fields)),
        })
    }
}

fn pipe_field() -> FieldRef {
    Arc::new(Field::new("pipe", DataType::Utf8, false))
}

#[async_trait]
impl TableProvider for Rejected {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        // In the scan, columns that are not in the files come last; here the pipe comes first.
        let columns = self.schema.fields().len();
        let place = |column: &usize| (column + columns - 1) % columns;
        let places: Vec<usize> = match projection {
            Some(wanted) => wanted.iter().map(place).collect(),
            None => (0..columns).map(|column| place(&column)).collect(),
        };
        let mut inputs = Vec::new();
        for of_table in self.of_tables.values() {
            let parts = of_table.parts.iter();
            let parts = parts.map(|(pipe, part)| (part.version, &part.file, vec![ScalarValue::from(pipe.as_str())]));
            for scan in OF_REJECTS.scans(&reject_schema(), &of_table.deleted, parts) {
                let scan = scan.with_extra(vec![pipe_field()]);
                inputs.extend(scan.plan(state, Some(&places), filters, limit)?);
            }
        }
        one_of_all(inputs, &self.schema, projection)
    }
}
