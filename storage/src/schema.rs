//! The Arrow schemas of a table's rows and of rejected records.
//!
//! This is the only place where a declared column type becomes an Arrow type. It does not convert
//! values, and it does not know what a part written with an older schema version looked like.

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use std::sync::Arc;
use tidemill_core::catalog::Table;
use tidemill_core::schema::{Column, ColumnType, KEY, OFFSET, PARTITION, TIMESTAMP, TOPIC};

/// The Arrow type of timestamps everywhere: microseconds since 1970-01-01 00:00 UTC, without a zone.
const MICROSECONDS: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);

/// The Arrow type of a declared column.
pub fn arrow_type(column_type: &ColumnType) -> DataType {
    match column_type {
        ColumnType::Boolean => DataType::Boolean,
        ColumnType::Int8 => DataType::Int8,
        ColumnType::Int16 => DataType::Int16,
        ColumnType::Int32 => DataType::Int32,
        ColumnType::Int64 => DataType::Int64,
        ColumnType::UInt8 => DataType::UInt8,
        ColumnType::UInt16 => DataType::UInt16,
        ColumnType::UInt32 => DataType::UInt32,
        ColumnType::UInt64 => DataType::UInt64,
        ColumnType::Float32 => DataType::Float32,
        ColumnType::Float64 => DataType::Float64,
        ColumnType::Decimal { precision, scale } => DataType::Decimal128(*precision, *scale),
        ColumnType::Text => DataType::Utf8,
        ColumnType::Date => DataType::Date32,
        ColumnType::Timestamp => MICROSECONDS,
        ColumnType::Struct(fields) => DataType::Struct(
            fields
                .iter()
                .map(|field| Field::new(&field.name, arrow_type(&field.data_type), true))
                .collect(),
        ),
        ColumnType::Array(inner) => DataType::List(Arc::new(Field::new_list_field(arrow_type(inner), true))),
        ColumnType::Map(inner) => {
            let entry = [
                Field::new("key", DataType::Utf8, false),
                Field::new("value", arrow_type(inner), true),
            ];
            let entries = DataType::Struct(entry.into_iter().collect());
            DataType::Map(Arc::new(Field::new("entries", entries, false)), false)
        }
    }
}

/// The columns of `table`'s rows, in memory and in parts: the declared ones, then the metadata
/// columns `_topic`, `_partition`, `_offset`, `_timestamp`, `_key`.
pub fn arrow_schema(table: &Table) -> SchemaRef {
    let metadata = [
        Field::new(TOPIC, DataType::Utf8, false),
        Field::new(PARTITION, DataType::Int32, false),
        Field::new(OFFSET, DataType::Int64, false),
        Field::new(TIMESTAMP, MICROSECONDS, true),
        Field::new(KEY, DataType::Utf8, true),
    ];
    let fields: Vec<Field> = table.columns.iter().map(field).chain(metadata).collect();
    Arc::new(Schema::new(fields))
}

/// The declared columns of `table` alone, as a decoder fills them.
pub fn declared_schema(table: &Table) -> SchemaRef {
    Arc::new(Schema::new(table.columns.iter().map(field).collect::<Vec<_>>()))
}

/// The columns of records that could not be decoded, of any table.
///
/// `headers` is JSON text, `payload` the record's bytes as they came, `error` why they were refused.
pub fn reject_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("topic", DataType::Utf8, false),
        Field::new("partition", DataType::Int32, false),
        Field::new("offset", DataType::Int64, false),
        Field::new("timestamp", MICROSECONDS, true),
        Field::new("key", DataType::Binary, true),
        Field::new("headers", DataType::Utf8, true),
        Field::new("payload", DataType::Binary, true),
        Field::new("error", DataType::Utf8, false),
    ]))
}

fn field(column: &Column) -> Field {
    Field::new(&column.name, arrow_type(&column.data_type), column.nullable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::part::tests::table_of_all_types;

    #[test]
    fn metadata_columns_follow_the_declared_ones() {
        let table = table_of_all_types();
        let (all, declared) = (arrow_schema(&table), declared_schema(&table));
        assert_eq!(all.fields().len(), declared.fields().len() + 5);
        assert_eq!(all.fields()[..declared.fields().len()], declared.fields()[..]);
        let names: Vec<_> = all.fields()[declared.fields().len()..]
            .iter()
            .map(|f| f.name().as_str())
            .collect();
        assert_eq!(names, tidemill_core::schema::METADATA_COLUMNS);
    }
}
