//! Part files as a DataFusion scan: skipping whole files, grouping them, and their statistics.
//!
//! Row counts and counts of nulls are exact, so that `count(*)` needs no file at all. The footers of
//! files are cached by path, which is safe because a file never changes and a path is never reused.

use super::deleted::{Deleted, SourceColumns};
use super::pruning;
use crate::session::parts_url;
use arrow::datatypes::{FieldRef, SchemaRef};
use datafusion::catalog::Session;
use datafusion::common::config::TableParquetOptions;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, Result, ScalarValue, Statistics};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use std::collections::HashMap;
use std::sync::Arc;
use tidemill_core::catalog::PartFile;

/// Files to read, with values of columns that are not in them.
pub(crate) struct PartScan<'f> {
    file_schema: SchemaRef,
    extra: Vec<FieldRef>,
    files: Vec<(&'f PartFile, Vec<ScalarValue>)>,
    deleted: Option<(&'static SourceColumns, Deleted)>,
}

impl<'f> PartScan<'f> {
    /// Files with the columns of `file_schema`.
    pub(crate) fn new(
        file_schema: SchemaRef,
        files: impl IntoIterator<Item = (&'f PartFile, Vec<ScalarValue>)>,
    ) -> Self {
        Self {
            file_schema,
            extra: Vec::new(),
            files: files.into_iter().collect(),
            deleted: None,
        }
    }

    /// The same, but for the rows of `deleted`.
    pub(super) fn without(mut self, columns: &'static SourceColumns, deleted: Deleted) -> Self {
        self.deleted = Some((columns, deleted));
        self
    }

    /// The same, with further columns whose values stand beside each file.
    pub(crate) fn with_extra(mut self, extra: Vec<FieldRef>) -> Self {
        self.extra = extra;
        self
    }

    /// The scan, or `None` if no file can have a row that passes `filters`.
    pub(crate) fn plan(
        mut self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some((source, deleted)) = self.deleted.take() else {
            return self.scan(state, projection, filters, limit);
        };
        let all = self.file_schema.fields().len() + self.extra.len();
        let wanted = projection.map_or_else(|| (0..all).collect(), Clone::clone);
        let columns = source.beside(&self.file_schema, &wanted)?;
        // No limit: some of the rows do not count.
        let scan = self.scan(state, Some(&columns), filters, None)?;
        scan.map(|scan| source.leave_out(scan, deleted, wanted.len()))
            .transpose()
    }

    /// The scan of all rows, deleted or not.
    fn scan(
        mut self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let all = self.files.len();
        pruning::skip(state, &self.file_schema, filters, &mut self.files)?;
        tracing::debug!(parts = all, read = self.files.len(), "parts to read");
        if self.files.is_empty() {
            return Ok(None);
        }
        let url = parts_url()?;
        let runtime = state.runtime_env();
        let readers = CachedParquetFileReaderFactory::new(
            runtime.object_store(&url)?,
            runtime.cache_manager.get_file_metadata_cache(),
        );
        let options = TableParquetOptions {
            global: state.config_options().execution.parquet.clone(),
            ..Default::default()
        };
        let columns = TableSchema::builder(self.file_schema.clone())
            .with_table_partition_cols(self.extra.clone())
            .build();
        let source = ParquetSource::new(columns)
            .with_table_parquet_options(options)
            .with_parquet_file_reader_factory(Arc::new(readers));
        let config = FileScanConfigBuilder::new(url, Arc::new(source))
            .with_statistics(self.statistics())
            .with_file_groups(self.groups(state.config().target_partitions()))
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(Some(DataSourceExec::from_data_source(config)))
    }

    /// The files in at most `groups` groups of about the same size, to be read side by side.
    fn groups(&self, groups: usize) -> Vec<FileGroup> {
        let mut groups: Vec<(u64, Vec<PartitionedFile>)> = vec![(0, Vec::new()); groups.clamp(1, self.files.len())];
        let mut files: Vec<_> = self.files.iter().collect();
        files.sort_by_key(|(file, _)| std::cmp::Reverse(file.bytes));
        for (file, values) in files {
            let Some((bytes, group)) = groups.iter_mut().min_by_key(|(bytes, _)| *bytes) else {
                continue;
            };
            *bytes += file.bytes;
            group.push(PartitionedFile::new(&file.path, file.bytes).with_partition_values(values.clone()));
        }
        groups.into_iter().map(|(_, files)| FileGroup::new(files)).collect()
    }

    fn statistics(&self) -> Statistics {
        let files = || self.files.iter().map(|(file, _)| *file);
        let mut nulls: HashMap<&str, (usize, u64)> = HashMap::new();
        for range in files().flat_map(|file| &file.ranges) {
            let (known, sum) = nulls.entry(&range.column).or_default();
            *known += 1;
            *sum += range.nulls;
        }
        let of_column = |name: &str, nullable: bool| {
            let null_count = match nulls.get(name) {
                _ if !nullable => Precision::Exact(0),
                Some((known, sum)) if *known == self.files.len() => Precision::Exact(*sum as usize),
                _ => Precision::Absent,
            };
            ColumnStatistics {
                null_count,
                ..ColumnStatistics::new_unknown()
            }
        };
        let fields = self.file_schema.fields().iter().chain(&self.extra);
        Statistics {
            num_rows: Precision::Exact(files().map(|file| file.rows as usize).sum()),
            total_byte_size: Precision::Inexact(files().map(|file| file.bytes as usize).sum()),
            column_statistics: fields
                .map(|field| of_column(field.name(), field.is_nullable()))
                .collect(),
        }
    }
}
