//! `system.rejected`: the records that could not be decoded, of all pipes, read from the committed
//! reject parts.

use crate::error::QueryError;
use crate::table::PartScan;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Result, ScalarValue};
use datafusion::datasource::TableType;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use std::collections::BTreeMap;
use std::sync::Arc;
use tidemill_core::PipeId;
use tidemill_core::catalog::{PartFile, Pipe, RejectPart};
use tidemill_core::view::{CatalogRead, CatalogSnapshot};
use tidemill_storage::schema::reject_schema;

/// The reject parts of a snapshot and the names of their pipes.
#[derive(Debug)]
pub(super) struct Rejected {
    files: Vec<(String, PartFile)>,
    schema: SchemaRef,
}

impl Rejected {
    /// The reject parts of `snapshot`.
    pub(super) fn new(snapshot: &dyn CatalogSnapshot) -> Result<Self, QueryError> {
        let pipes: BTreeMap<PipeId, String> = snapshot
            .list::<Pipe>(&[])?
            .into_iter()
            .map(|pipe| (pipe.id, pipe.name))
            .collect();
        let parts: Vec<RejectPart> = snapshot.list(&[])?;
        let name = |pipe: PipeId| pipes.get(&pipe).cloned().unwrap_or_else(|| pipe.to_string());
        let files = parts.into_iter().map(|part| (name(part.pipe), part.file)).collect();
        let fields: Vec<FieldRef> = std::iter::once(pipe_field())
            .chain(reject_schema().fields().iter().cloned())
            .collect();
        Ok(Self {
            files,
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
        let places = match projection {
            Some(wanted) => wanted.iter().map(place).collect(),
            None => (0..columns).map(|column| place(&column)).collect(),
        };
        let files = self
            .files
            .iter()
            .map(|(pipe, file)| (file, vec![ScalarValue::from(pipe.as_str())]));
        let scan = PartScan::new(reject_schema(), files).with_extra(vec![pipe_field()]);
        Ok(match scan.plan(state, Some(&places), filters, limit)? {
            Some(plan) => plan,
            None => Arc::new(EmptyExec::new(datafusion::physical_plan::project_schema(
                &self.schema,
                projection,
            )?)),
        })
    }
}
