//! The ranges of columns that the catalog keeps, so that queries can skip whole parts.
//!
//! A bound is given only when it is exactly right: no cut texts, none for a column with a NaN (which
//! has no place among the numbers), none for decimals (the catalog has no value for them).

use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::{DataType, Float32Type, Float64Type, Schema};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::statistics::Statistics;
use std::cmp::Ordering;
use tidemill_core::catalog::{ColumnRange, Scalar};

/// Bounds of text are complete up to this length, and not given beyond.
pub(super) const MAX_BOUND: usize = 64;

/// Whether a column of floating-point numbers holds one that is none.
pub(super) fn holds_nan(column: &ArrayRef) -> bool {
    match column.data_type() {
        DataType::Float32 => column.as_primitive::<Float32Type>().iter().flatten().any(f32::is_nan),
        DataType::Float64 => column.as_primitive::<Float64Type>().iter().flatten().any(f64::is_nan),
        _ => false,
    }
}

/// The ranges of the columns called `ranged`, in that order, over all row groups of a file.
/// `with_nan` says for each column of `schema` whether it holds a NaN.
pub(super) fn ranges(
    schema: &Schema,
    metadata: &ParquetMetaData,
    with_nan: &[bool],
    ranged: &[String],
) -> Vec<ColumnRange> {
    // Nested columns have no range: only their leaves would, which queries do not ask for.
    let columns = ranged
        .iter()
        .filter_map(|name| Some((schema.index_of(name).ok()?, name)))
        .filter(|(index, _)| !schema.field(*index).data_type().is_nested());
    let range = |(index, name): (usize, &String)| {
        let data_type = schema.field(index).data_type();
        let leaf = first_leaf(schema, index);
        let (mut min, mut max, mut nulls) = (Bound::NoValue, Bound::NoValue, 0);
        for group in metadata.row_groups() {
            let (group_min, group_max) = match group.column(leaf).statistics() {
                Some(statistics) if !with_nan[index] => bounds(statistics, data_type),
                _ => (Bound::Unknown, Bound::Unknown),
            };
            min = min.or(group_min, Ordering::Less);
            max = max.or(group_max, Ordering::Greater);
            nulls += group
                .column(leaf)
                .statistics()
                .and_then(Statistics::null_count_opt)
                .unwrap_or_default();
        }
        ColumnRange {
            column: name.clone(),
            min: min.known(),
            max: max.known(),
            nulls,
        }
    };
    columns.map(range).collect()
}

/// The position in a file of the first leaf of a column: nested columns are stored as one column per leaf.
pub(super) fn first_leaf(schema: &Schema, column: usize) -> usize {
    schema.fields()[..column]
        .iter()
        .map(|field| leaves(field.data_type()))
        .sum()
}

fn leaves(data_type: &DataType) -> usize {
    match data_type {
        DataType::Struct(fields) => fields.iter().map(|field| leaves(field.data_type())).sum(),
        DataType::List(inner) | DataType::Map(inner, _) => leaves(inner.data_type()),
        _ => 1,
    }
}

/// What is known of one end of a range.
enum Bound {
    /// There is no value, so any bound holds.
    NoValue,
    /// There are values, and no exact bound for them.
    Unknown,
    /// This is the outermost value.
    Known(Scalar),
}

impl Bound {
    /// The bound of two sets of values together; `outer` says which of two values is further out.
    fn or(self, other: Self, outer: Ordering) -> Self {
        match (self, other) {
            (Bound::NoValue, bound) | (bound, Bound::NoValue) => bound,
            (Bound::Known(a), Bound::Known(b)) => match compare(&a, &b) {
                None => Bound::Unknown,
                Some(order) if order == outer => Bound::Known(a),
                Some(_) => Bound::Known(b),
            },
            _ => Bound::Unknown,
        }
    }

    fn known(self) -> Option<Scalar> {
        match self {
            Bound::Known(scalar) => Some(scalar),
            Bound::NoValue | Bound::Unknown => None,
        }
    }
}

/// The order of two values of one column.
fn compare(a: &Scalar, b: &Scalar) -> Option<Ordering> {
    match (a, b) {
        (Scalar::Int(a), Scalar::Int(b)) => a.partial_cmp(b),
        (Scalar::UInt(a), Scalar::UInt(b)) => a.partial_cmp(b),
        (Scalar::Float(a), Scalar::Float(b)) => a.partial_cmp(b),
        (Scalar::Text(a), Scalar::Text(b)) => a.partial_cmp(b),
        (Scalar::Bool(a), Scalar::Bool(b)) => a.partial_cmp(b),
        _ => None,
    }
}

/// The least and greatest value of a row group.
///
/// Parquet keeps small integers as 32-bit ones, and unsigned ones as the signed number of the same bits.
fn bounds(statistics: &Statistics, data_type: &DataType) -> (Bound, Bound) {
    if statistics.min_bytes_opt().is_none() && statistics.max_bytes_opt().is_none() {
        return (Bound::NoValue, Bound::NoValue);
    }
    macro_rules! of {
        ($values:expr, $scalar:expr) => {
            ($values.min_opt().map($scalar), $values.max_opt().map($scalar))
        };
    }
    let unsigned = matches!(
        data_type,
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64
    );
    let (min, max) = match (statistics, data_type) {
        (_, DataType::Decimal128(..)) => (None, None),
        (Statistics::Boolean(values), _) => of!(values, |v| Scalar::Bool(*v)),
        (Statistics::Int32(values), _) if unsigned => of!(values, |v| Scalar::UInt(u64::from(v.cast_unsigned()))),
        (Statistics::Int32(values), _) => of!(values, |v| Scalar::Int(i64::from(*v))),
        (Statistics::Int64(values), _) if unsigned => of!(values, |v| Scalar::UInt(v.cast_unsigned())),
        (Statistics::Int64(values), _) => of!(values, |v| Scalar::Int(*v)),
        (Statistics::Float(values), _) => of!(values, |v| Scalar::Float(f64::from(*v))),
        (Statistics::Double(values), _) => of!(values, |v| Scalar::Float(*v)),
        (Statistics::ByteArray(values), DataType::Utf8) => (
            values.min_opt().and_then(|v| short_text(v.data())),
            values.max_opt().and_then(|v| short_text(v.data())),
        ),
        _ => (None, None),
    };
    let bound = |value: Option<Scalar>, exact: bool| match value.filter(|_| exact) {
        Some(value) => Bound::Known(value),
        None => Bound::Unknown,
    };
    (
        bound(min, statistics.min_is_exact()),
        bound(max, statistics.max_is_exact()),
    )
}

/// The writer keeps a longer text whole when it cannot be cut to a valid bound.
fn short_text(bytes: &[u8]) -> Option<Scalar> {
    let text = std::str::from_utf8(bytes).ok()?;
    (bytes.len() <= MAX_BOUND).then(|| Scalar::Text(text.to_owned()))
}
