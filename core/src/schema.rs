//! Columns of a table: types, nullability, and the columns that every table has from its source.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ColumnType {
    /// `BOOLEAN`
    Boolean,
    /// `TINYINT`
    Int8,
    /// `SMALLINT`
    Int16,
    /// `INT`
    Int32,
    /// `BIGINT`
    Int64,
    /// `TINYINT UNSIGNED`
    UInt8,
    /// `SMALLINT UNSIGNED`
    UInt16,
    /// `INT UNSIGNED`
    UInt32,
    /// `BIGINT UNSIGNED`
    UInt64,
    /// `REAL`
    Float32,
    /// `DOUBLE`
    Float64,
    /// `DECIMAL(precision, scale)`, at most 38 digits
    Decimal {
        /// Digits in all, 1 to 38.
        precision: u8,
        /// Digits behind the point, at most `precision`.
        scale: i8,
    },
    /// `VARCHAR`, `TEXT`: UTF-8 text
    Text,
    /// `DATE`: days since 1970-01-01
    Date,
    /// `TIMESTAMP`: microseconds since 1970-01-01 00:00 UTC, without a zone
    Timestamp,
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ColumnType::Boolean => "BOOLEAN",
            ColumnType::Int8 => "TINYINT",
            ColumnType::Int16 => "SMALLINT",
            ColumnType::Int32 => "INT",
            ColumnType::Int64 => "BIGINT",
            ColumnType::UInt8 => "TINYINT UNSIGNED",
            ColumnType::UInt16 => "SMALLINT UNSIGNED",
            ColumnType::UInt32 => "INT UNSIGNED",
            ColumnType::UInt64 => "BIGINT UNSIGNED",
            ColumnType::Float32 => "REAL",
            ColumnType::Float64 => "DOUBLE",
            ColumnType::Decimal { precision, scale } => return write!(f, "DECIMAL({precision}, {scale})"),
            ColumnType::Text => "VARCHAR",
            ColumnType::Date => "DATE",
            ColumnType::Timestamp => "TIMESTAMP",
        })
    }
}

/// One column that the user declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name, as it stands in the source's records.
    pub name: String,
    /// Its type.
    pub data_type: ColumnType,
    /// Whether a record may lack it.
    pub nullable: bool,
}

/// How the rows of a table are split into parts, so that queries can skip whole parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PartitionBy {
    /// By the value of a column.
    Column(String),
    /// By the value of a date or timestamp column, cut to a unit.
    Truncated {
        /// What it is cut to.
        unit: TimeUnit,
        /// The column.
        column: String,
    },
}

impl PartitionBy {
    /// The column that it reads.
    pub fn column(&self) -> &str {
        match self {
            PartitionBy::Column(column) | PartitionBy::Truncated { column, .. } => column,
        }
    }
}

impl fmt::Display for PartitionBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PartitionBy::Column(column) => f.write_str(column),
            PartitionBy::Truncated { unit, column } => write!(f, "date_trunc('{unit}', {column})"),
        }
    }
}

/// A calendar unit, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimeUnit {
    /// An hour.
    Hour,
    /// A day.
    Day,
    /// A month.
    Month,
    /// A year.
    Year,
}

impl fmt::Display for TimeUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TimeUnit::Hour => "hour",
            TimeUnit::Day => "day",
            TimeUnit::Month => "month",
            TimeUnit::Year => "year",
        })
    }
}

/// Name of the column that holds the source topic of a row (text).
pub const TOPIC: &str = "_topic";
/// Name of the column that holds the source partition of a row (INT).
pub const PARTITION: &str = "_partition";
/// Name of the column that holds the source offset of a row (BIGINT).
pub const OFFSET: &str = "_offset";
/// Name of the column that holds the time the source gave a row (TIMESTAMP, may be null).
pub const TIMESTAMP: &str = "_timestamp";
/// Name of the column that holds the key of a row (text when UTF-8, otherwise with replacement characters; may be null).
pub const KEY: &str = "_key";
/// The columns that every table has behind its own, in this order.
pub const METADATA_COLUMNS: [&str; 5] = [TOPIC, PARTITION, OFFSET, TIMESTAMP, KEY];
