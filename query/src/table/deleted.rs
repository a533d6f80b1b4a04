//! Rows that a reset deleted: they are in the files, and whoever reads a file leaves them out.
//!
//! A deletion names a source partition, an offset, and the version that made it; it concerns the parts that became
//! visible before. Most parts are concerned by none and are read as if there were no such thing.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type, SchemaRef};
use datafusion::catalog::Session;
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::utils::disjunction;
use datafusion::logical_expr::{Expr, lit};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::expressions::col;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::prelude::ident;
use std::collections::BTreeMap;
use std::sync::Arc;
use tidemill_core::Version;
use tidemill_core::catalog::{DeletedRows, PartFile, Scalar};
use tidemill_core::schema::{OFFSET, PARTITION, TOPIC};

/// The columns that say where a row comes from.
pub(crate) struct SourceColumns {
    topic: &'static str,
    partition: &'static str,
    offset: &'static str,
}

/// Those of a table's parts.
pub(crate) const OF_ROWS: SourceColumns = SourceColumns {
    topic: TOPIC,
    partition: PARTITION,
    offset: OFFSET,
};

/// Those of reject parts.
pub(crate) const OF_REJECTS: SourceColumns = SourceColumns {
    topic: "topic",
    partition: "partition",
    offset: "offset",
};

impl SourceColumns {
    /// Whether a file that became visible at `version` may hold rows of `deleted`.
    fn may_hold(&self, deleted: &DeletedRows, version: Version, file: &PartFile) -> bool {
        let range = |column: &str| {
            let range = file.ranges.iter().find(|range| range.column == column)?;
            match (&range.min, &range.max) {
                (Some(Scalar::Int(min)), Some(Scalar::Int(max))) => Some((*min, *max)),
                _ => None,
            }
        };
        // Where nothing is known of a column, it may be anything.
        let (from, partition) = (deleted.from.0 as i64, i64::from(deleted.partition.0));
        version < deleted.version
            && range(self.offset).is_none_or(|(_, max)| from <= max)
            && range(self.partition).is_none_or(|(min, max)| (min..=max).contains(&partition))
    }

    /// The files by the deletions that concern them, as places in `all`.
    pub(crate) fn by_deletions<'f, T>(
        &self,
        all: &[DeletedRows],
        files: impl IntoIterator<Item = (Version, &'f PartFile, T)>,
    ) -> BTreeMap<Vec<usize>, Vec<(&'f PartFile, T)>> {
        let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (version, file, with) in files {
            let concern = |(_, deleted): &(usize, &DeletedRows)| self.may_hold(deleted, version, file);
            let those = all.iter().enumerate().filter(concern).map(|(i, _)| i).collect();
            groups.entry(those).or_default().push((file, with));
        }
        groups
    }

    /// True for the rows of any of `deleted`.
    fn condition<'d>(&self, deleted: impl Iterator<Item = &'d DeletedRows>) -> Option<Expr> {
        disjunction(deleted.map(|deleted| {
            let of_topic = ident(self.topic).eq(lit(deleted.topic.as_str()));
            let of_partition = ident(self.partition).eq(lit(deleted.partition.0 as i32));
            of_topic
                .and(of_partition)
                .and(ident(self.offset).gt_eq(lit(deleted.from.0 as i64)))
        }))
    }

    /// `projection` (of `schema`; all when there is none), and behind it the columns that are needed to know deleted rows.
    pub(crate) fn beside(&self, schema: &SchemaRef, projection: Option<&Vec<usize>>) -> Result<Vec<usize>> {
        let mut columns = projection.map_or_else(|| (0..schema.fields().len()).collect(), Clone::clone);
        for name in [self.topic, self.partition, self.offset] {
            let place = schema.index_of(name)?;
            if !columns.contains(&place) {
                columns.push(place);
            }
        }
        Ok(columns)
    }

    /// `input` without the rows of any of `deleted`, and with its first `columns` columns only.
    pub(crate) fn leave_out<'d>(
        &self,
        state: &dyn Session,
        input: Arc<dyn ExecutionPlan>,
        deleted: impl Iterator<Item = &'d DeletedRows>,
        columns: usize,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(condition) = self.condition(deleted) else {
            return Ok(input);
        };
        let schema = input.schema();
        // A row that does not say where it comes from is none of them.
        let others =
            state.create_physical_expr(condition.is_not_true(), &DFSchema::try_from(schema.as_ref().clone())?)?;
        let filtered = Arc::new(FilterExec::try_new(others, input)?);
        let kept = schema.fields().iter().take(columns);
        let kept = kept.map(|field| Ok((col(field.name(), &schema)?, field.name().clone())));
        Ok(Arc::new(ProjectionExec::try_new(
            kept.collect::<Result<Vec<_>>>()?,
            filtered,
        )?))
    }
}

/// For each record of a reject part that became visible at `version`, whether it is deleted.
pub(crate) fn deleted_rejects(all: &[DeletedRows], version: Version, rejects: &RecordBatch) -> Vec<bool> {
    let column = |name: &str| rejects.column_by_name(name);
    let topics = column(OF_REJECTS.topic).and_then(|c| c.as_string_opt::<i32>());
    let partitions = column(OF_REJECTS.partition).and_then(|c| c.as_primitive_opt::<Int32Type>());
    let offsets = column(OF_REJECTS.offset).and_then(|c| c.as_primitive_opt::<Int64Type>());
    let (Some(topics), Some(partitions), Some(offsets)) = (topics, partitions, offsets) else {
        return vec![false; rejects.num_rows()];
    };
    let is_deleted = |row: usize| {
        all.iter().filter(|deleted| version < deleted.version).any(|deleted| {
            topics.value(row) == deleted.topic
                && partitions.value(row) == deleted.partition.0 as i32
                && offsets.value(row) >= deleted.from.0 as i64
        })
    };
    (0..topics.len()).map(is_deleted).collect()
}
