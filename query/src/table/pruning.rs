//! Skipping whole parts by the ranges that the catalog keeps of their columns.
//!
//! DataFusion turns the filters into a predicate over least and greatest values; this gives it those.
//! Where a range is not known, or is of another type than the column, the part is read.

use arrow::array::{ArrayRef, BooleanArray, UInt64Array};
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use datafusion::catalog::Session;
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column, DFSchema, Result, ScalarValue};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::utils::conjunction;
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use std::collections::HashSet;
use tidemill_core::catalog::{ColumnRange, PartFile, Scalar};

/// Removes the files that cannot have a row that passes all `filters`.
pub(super) fn skip<T>(
    state: &dyn Session,
    schema: &SchemaRef,
    filters: &[Expr],
    files: &mut Vec<(&PartFile, T)>,
) -> Result<()> {
    // Filters on columns that are not in the files are for the rows, not for the files.
    let in_files = |filter: &&Expr| filter.column_refs().iter().all(|c| schema.index_of(&c.name).is_ok());
    let Some(filter) = conjunction(filters.iter().filter(in_files).map(unqualified)) else {
        return Ok(());
    };
    let columns = DFSchema::try_from(schema.as_ref().clone())?;
    let predicate = state.create_physical_expr(filter, &columns)?;
    let builder = PruningPredicateBuilder::new().with_file_schema(schema.clone());
    let Some(predicate) = builder.build(predicate) else {
        return Ok(());
    };
    let ranges = Ranges {
        schema,
        files: files.iter().map(|(file, _)| *file).collect(),
    };
    let mut keep = predicate.prune(&ranges)?.into_iter();
    files.retain(|_| keep.next().unwrap_or(true));
    Ok(())
}

/// The filter with columns named without their table, as they are in a file.
fn unqualified(filter: &Expr) -> Expr {
    use datafusion::common::tree_node::{Transformed, TreeNode};
    let renamed = filter.clone().transform(|expr| {
        Ok(match expr {
            Expr::Column(column) if column.relation.is_some() => {
                Transformed::yes(Expr::Column(Column::new_unqualified(column.name)))
            }
            other => Transformed::no(other),
        })
    });
    renamed.map_or_else(|_| filter.clone(), |renamed| renamed.data)
}

struct Ranges<'f> {
    schema: &'f SchemaRef,
    files: Vec<&'f PartFile>,
}

impl Ranges<'_> {
    fn bounds(&self, column: &Column, bound: impl Fn(&ColumnRange) -> Option<Scalar>) -> Option<ArrayRef> {
        let data_type = self.schema.field_with_name(&column.name).ok()?.data_type();
        let of_file = |file: &&PartFile| {
            let range = file.ranges.iter().find(|range| range.column == column.name);
            range.and_then(&bound).and_then(|scalar| value(scalar, data_type))
        };
        let values: Vec<Option<ScalarValue>> = self.files.iter().map(of_file).collect();
        if values.iter().all(Option::is_none) {
            return None;
        }
        let unknown = ScalarValue::try_from(data_type).ok()?;
        ScalarValue::iter_to_array(values.into_iter().map(|v| v.unwrap_or_else(|| unknown.clone()))).ok()
    }
}

impl PruningStatistics for Ranges<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        // The two zeros are equal as bounds but not in DataFusion's order: take the outer one.
        self.bounds(column, |range| match range.min {
            Some(Scalar::Float(0.0)) => Some(Scalar::Float(-0.0)),
            ref min => min.clone(),
        })
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column, |range| match range.max {
            Some(Scalar::Float(0.0)) => Some(Scalar::Float(0.0)),
            ref max => max.clone(),
        })
    }

    fn num_containers(&self) -> usize {
        self.files.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        let of_file = |file: &&PartFile| {
            let range = file.ranges.iter().find(|range| range.column == column.name);
            range.map(|range| range.nulls)
        };
        Some(std::sync::Arc::new(
            self.files.iter().map(of_file).collect::<UInt64Array>(),
        ))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(std::sync::Arc::new(
            self.files.iter().map(|file| Some(file.rows)).collect::<UInt64Array>(),
        ))
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

/// The bound as a value of the column's type, if it is one.
fn value(scalar: Scalar, data_type: &DataType) -> Option<ScalarValue> {
    Some(match (scalar, data_type) {
        (Scalar::Int(v), DataType::Int8) => ScalarValue::Int8(Some(v.try_into().ok()?)),
        (Scalar::Int(v), DataType::Int16) => ScalarValue::Int16(Some(v.try_into().ok()?)),
        (Scalar::Int(v), DataType::Int32) => ScalarValue::Int32(Some(v.try_into().ok()?)),
        (Scalar::Int(v), DataType::Int64) => ScalarValue::Int64(Some(v)),
        (Scalar::Int(v), DataType::Date32) => ScalarValue::Date32(Some(v.try_into().ok()?)),
        (Scalar::Int(v), DataType::Timestamp(TimeUnit::Microsecond, zone)) => {
            ScalarValue::TimestampMicrosecond(Some(v), zone.clone())
        }
        (Scalar::UInt(v), DataType::UInt8) => ScalarValue::UInt8(Some(v.try_into().ok()?)),
        (Scalar::UInt(v), DataType::UInt16) => ScalarValue::UInt16(Some(v.try_into().ok()?)),
        (Scalar::UInt(v), DataType::UInt32) => ScalarValue::UInt32(Some(v.try_into().ok()?)),
        (Scalar::UInt(v), DataType::UInt64) => ScalarValue::UInt64(Some(v)),
        (Scalar::Float(v), DataType::Float32) => ScalarValue::Float32(Some(v as f32)),
        (Scalar::Float(v), DataType::Float64) => ScalarValue::Float64(Some(v)),
        (Scalar::Text(v), DataType::Utf8) => ScalarValue::Utf8(Some(v)),
        (Scalar::Bool(v), DataType::Boolean) => ScalarValue::Boolean(Some(v)),
        _ => return None,
    })
}
