//! Rows that a reset deleted: they are in the files, and whoever reads a file leaves them out.
//!
//! A deletion names source partitions, an offset of each, and the version that made it; it concerns the parts that
//! became visible before. Most parts are concerned by none and are read as if there were no such thing.

use super::PartScan;
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::{DataType, Int32Type, Int64Type, Schema, SchemaRef};
use datafusion::common::{Result, ScalarValue, internal_datafusion_err};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::expressions::col;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use std::collections::BTreeMap;
use std::fmt;
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
pub(super) const OF_ROWS: SourceColumns = SourceColumns {
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

/// What is deleted of the parts of one age: by topic and partition, the first offset.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Deleted(BTreeMap<String, BTreeMap<i32, i64>>);

impl Deleted {
    /// What was deleted by `deletions`, of parts that are older than they.
    fn by(deletions: &[DeletedRows]) -> Self {
        let mut first: BTreeMap<String, BTreeMap<i32, i64>> = BTreeMap::new();
        for deletion in deletions {
            let of_topic = first.entry(deletion.topic.clone()).or_default();
            for (partition, from) in &deletion.from {
                let from = from.0 as i64;
                let known = of_topic.entry(partition.0 as i32).or_insert(from);
                *known = from.min(*known);
            }
        }
        Self(first)
    }

    /// What was deleted of parts that became visible at `version`.
    pub(crate) fn since(all: &[DeletedRows], version: Version) -> Self {
        Self::by(younger(all, version))
    }

    /// For each row, whether it is none of them; a row that does not say where it comes from is none.
    fn leaves(&self, topics: &ArrayRef, partitions: &ArrayRef, offsets: &ArrayRef) -> Result<BooleanArray> {
        let (Some(topics), Some(partitions), Some(offsets)) = (
            topics.as_string_opt::<i32>(),
            partitions.as_primitive_opt::<Int32Type>(),
            offsets.as_primitive_opt::<Int64Type>(),
        ) else {
            return Err(internal_datafusion_err!("the columns of the source have other types"));
        };
        let mut known: Option<(&str, Option<&BTreeMap<i32, i64>>)> = None;
        let leaves = |row: usize| {
            if topics.is_null(row) || partitions.is_null(row) || offsets.is_null(row) {
                return true;
            }
            // Rows come in runs of one topic.
            let topic = topics.value(row);
            let of_topic = match known {
                Some((last, of_topic)) if last == topic => of_topic,
                _ => known.insert((topic, self.0.get(topic))).1,
            };
            let from = of_topic.and_then(|of_topic| of_topic.get(&partitions.value(row)));
            from.is_none_or(|from| offsets.value(row) < *from)
        };
        Ok((0..topics.len()).map(leaves).map(Some).collect())
    }

    /// For each record of a reject part, whether it is none of them.
    pub(crate) fn leaves_rejects(&self, rejects: &RecordBatch) -> Result<BooleanArray> {
        let column = |name: &str| -> Result<&ArrayRef> { Ok(rejects.column(rejects.schema_ref().index_of(name)?)) };
        let SourceColumns {
            topic,
            partition,
            offset,
        } = OF_REJECTS;
        self.leaves(column(topic)?, column(partition)?, column(offset)?)
    }
}

/// The deletions that a part of `version` is older than; `all` are in the order of versions.
fn younger(all: &[DeletedRows], version: Version) -> &[DeletedRows] {
    &all[all.partition_point(|deletion| deletion.version <= version)..]
}

impl SourceColumns {
    /// Whether a file may hold rows of `deletion`.
    fn may_hold(&self, deletion: &DeletedRows, file: &PartFile) -> bool {
        let range = |column: &str| {
            let range = file.ranges.iter().find(|range| range.column == column)?;
            match (&range.min, &range.max) {
                (Some(Scalar::Int(min)), Some(Scalar::Int(max))) => Some((*min, *max)),
                _ => None,
            }
        };
        // Where nothing is known of a column, it may be anything.
        let (partitions, offsets) = (range(self.partition), range(self.offset));
        deletion.from.iter().any(|(partition, from)| {
            let partition = i64::from(partition.0);
            partitions.is_none_or(|(min, max)| (min..=max).contains(&partition))
                && offsets.is_none_or(|(_, max)| from.0 as i64 <= max)
        })
    }

    /// The files, with the columns of `schema`, as scans without what is deleted of them.
    pub(crate) fn scans<'f>(
        &'static self,
        schema: &SchemaRef,
        all: &[DeletedRows],
        files: impl IntoIterator<Item = (Version, &'f PartFile, Vec<ScalarValue>)>,
    ) -> impl Iterator<Item = PartScan<'f>> {
        // By how many deletions concern them: those that are younger, if any of them may.
        let mut groups: BTreeMap<usize, Vec<_>> = BTreeMap::new();
        for (version, file, values) in files {
            let deletions = younger(all, version);
            let concerned = deletions.iter().any(|deletion| self.may_hold(deletion, file));
            let count = if concerned { deletions.len() } else { 0 };
            groups.entry(count).or_default().push((file, values));
        }
        groups.into_iter().map(move |(count, files)| {
            let scan = PartScan::new(schema.clone(), files);
            match &all[all.len() - count..] {
                [] => scan,
                deletions => scan.without(self, Deleted::by(deletions)),
            }
        })
    }

    /// `wanted` columns of `schema`, and behind them those that are needed to know deleted rows.
    pub(super) fn beside(&self, schema: &SchemaRef, wanted: &[usize]) -> Result<Vec<usize>> {
        let mut columns = wanted.to_vec();
        for name in [self.topic, self.partition, self.offset] {
            let place = schema.index_of(name)?;
            if !columns.contains(&place) {
                columns.push(place);
            }
        }
        Ok(columns)
    }

    /// `input` without the rows of `deleted`, and with its first `columns` columns only.
    pub(super) fn leave_out(
        &self,
        input: Arc<dyn ExecutionPlan>,
        deleted: Deleted,
        columns: usize,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = input.schema();
        let is_left = IsLeft {
            deleted: Arc::new(deleted),
            columns: [
                col(self.topic, &schema)?,
                col(self.partition, &schema)?,
                col(self.offset, &schema)?,
            ],
        };
        let filtered = Arc::new(FilterExec::try_new(Arc::new(is_left), input)?);
        let kept = schema.fields().iter().take(columns);
        let kept = kept.map(|field| Ok((col(field.name(), &schema)?, field.name().clone())));
        Ok(Arc::new(ProjectionExec::try_new(
            kept.collect::<Result<Vec<_>>>()?,
            filtered,
        )?))
    }
}

/// True for rows that are not deleted. One lookup for a row, however many deletions there are.
#[derive(Debug, PartialEq, Eq, Hash)]
struct IsLeft {
    deleted: Arc<Deleted>,
    /// Topic, partition, offset.
    columns: [Arc<dyn PhysicalExpr>; 3],
}

impl fmt::Display for IsLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not deleted by a reset")
    }
}

impl PhysicalExpr for IsLeft {
    fn data_type(&self, _: &Schema) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn nullable(&self, _: &Schema) -> Result<bool> {
        Ok(false)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let value = |column: &Arc<dyn PhysicalExpr>| column.evaluate(batch)?.into_array(batch.num_rows());
        let [topics, partitions, offsets] = &self.columns;
        let leaves = self
            .deleted
            .leaves(&value(topics)?, &value(partitions)?, &value(offsets)?)?;
        Ok(ColumnarValue::Array(Arc::new(leaves)))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        self.columns.iter().collect()
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        let columns = children.try_into();
        let columns =
            columns.map_err(|_| internal_datafusion_err!("a row comes from a topic, a partition and an offset"))?;
        let deleted = self.deleted.clone();
        Ok(Arc::new(Self { deleted, columns }))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
