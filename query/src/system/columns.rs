//! Columns of a system table, put together one by one.

use crate::error::QueryError;
use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use std::sync::Arc;

/// Columns so far.
#[derive(Default)]
pub(crate) struct Columns {
    fields: Vec<Field>,
    arrays: Vec<ArrayRef>,
}

impl Columns {
    fn with(mut self, name: &str, data_type: DataType, array: ArrayRef) -> Self {
        self.fields.push(Field::new(name, data_type, true));
        self.arrays.push(array);
        self
    }

    /// A column of text.
    pub(crate) fn text(self, name: &str, values: impl Iterator<Item = Option<String>>) -> Self {
        self.with(name, DataType::Utf8, Arc::new(values.collect::<StringArray>()))
    }

    /// A column of whole numbers; what a BIGINT cannot hold becomes its greatest value.
    pub(crate) fn number(self, name: &str, values: impl Iterator<Item = Option<u64>>) -> Self {
        let values = values.map(|value| value.map(|value| i64::try_from(value).unwrap_or(i64::MAX)));
        self.with(name, DataType::Int64, Arc::new(values.collect::<Int64Array>()))
    }

    /// A column of floating-point numbers.
    pub(crate) fn float(self, name: &str, values: impl Iterator<Item = Option<f64>>) -> Self {
        self.with(name, DataType::Float64, Arc::new(values.collect::<Float64Array>()))
    }

    /// A column of truth values.
    pub(crate) fn boolean(self, name: &str, values: impl Iterator<Item = Option<bool>>) -> Self {
        self.with(name, DataType::Boolean, Arc::new(values.collect::<BooleanArray>()))
    }

    /// A column of times, given in milliseconds since 1970.
    pub(crate) fn time(self, name: &str, values: impl Iterator<Item = i64>) -> Self {
        self.maybe_time(name, values.map(Some))
    }

    /// The same, where some are not known.
    pub(crate) fn maybe_time(self, name: &str, values: impl Iterator<Item = Option<i64>>) -> Self {
        let values = values.map(|ms| Some(ms?.saturating_mul(1000)));
        let array: TimestampMicrosecondArray = values.collect();
        self.with(name, DataType::Timestamp(TimeUnit::Microsecond, None), Arc::new(array))
    }

    /// The rows.
    pub(crate) fn finish(self) -> Result<RecordBatch, QueryError> {
        RecordBatch::try_new(Arc::new(Schema::new(self.fields)), self.arrays)
            .map_err(|e| QueryError::internal(format!("a system table cannot be built: {e}")))
    }
}
