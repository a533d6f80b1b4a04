//! Columns of a table: types, nullability, defaults, and the columns that every table has from its source.

mod literal;

pub use literal::Literal;

use serde::{Deserialize, Serialize};
use std::fmt;

/// The type of a column.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// `STRUCT<name type, …>`: fields, any of which may be null
    Struct(Vec<StructField>),
    /// `ARRAY<type>`: elements of one type, any of which may be null
    Array(Box<ColumnType>),
    /// `MAP<VARCHAR, type>`: values of one type by text, any of which may be null
    Map(Box<ColumnType>),
}

/// One field of a [`ColumnType::Struct`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StructField {
    /// Its name, as it stands in the source's records.
    pub name: String,
    /// Its type.
    pub data_type: ColumnType,
}

/// How deep types may be nested within each other.
pub const MAX_TYPE_DEPTH: usize = 16;

impl ColumnType {
    /// Whether its values consist of others.
    pub fn is_nested(&self) -> bool {
        matches!(self, ColumnType::Struct(_) | ColumnType::Array(_) | ColumnType::Map(_))
    }

    /// The least and the greatest value of a type of whole numbers.
    pub fn whole_range(&self) -> Option<(i128, i128)> {
        Some(match self {
            ColumnType::Int8 => (i8::MIN.into(), i8::MAX.into()),
            ColumnType::Int16 => (i16::MIN.into(), i16::MAX.into()),
            ColumnType::Int32 => (i32::MIN.into(), i32::MAX.into()),
            ColumnType::Int64 => (i64::MIN.into(), i64::MAX.into()),
            ColumnType::UInt8 => (0, u8::MAX.into()),
            ColumnType::UInt16 => (0, u16::MAX.into()),
            ColumnType::UInt32 => (0, u32::MAX.into()),
            ColumnType::UInt64 => (0, u64::MAX.into()),
            _ => return None,
        })
    }

    /// Whether `wanted` holds for it or for a type within it.
    pub fn any(&self, wanted: &dyn Fn(&ColumnType) -> bool) -> bool {
        wanted(self)
            || match self {
                ColumnType::Struct(fields) => fields.iter().any(|field| field.data_type.any(wanted)),
                ColumnType::Array(inner) | ColumnType::Map(inner) => inner.any(wanted),
                _ => false,
            }
    }

    /// Why it cannot be the type of a column, if it cannot.
    pub fn fault(&self) -> Option<String> {
        self.fault_at(1)
    }

    fn fault_at(&self, depth: usize) -> Option<String> {
        if depth > MAX_TYPE_DEPTH {
            return Some(format!("types are nested more than {MAX_TYPE_DEPTH} deep"));
        }
        match self {
            ColumnType::Decimal { precision, scale }
                if !(1..=38).contains(precision) || !(0..=*precision as i8).contains(scale) =>
            {
                Some("DECIMAL takes 1 to 38 digits, and at most that many behind the point".to_owned())
            }
            ColumnType::Struct(fields) if fields.is_empty() => Some("a STRUCT needs at least one field".to_owned()),
            ColumnType::Struct(fields) => fields.iter().enumerate().find_map(|(i, field)| {
                match fields[..i].iter().any(|other| other.name == field.name) {
                    true => Some(format!("field '{}' is declared twice", field.name)),
                    false => field.data_type.fault_at(depth + 1),
                }
            }),
            ColumnType::Array(inner) | ColumnType::Map(inner) => inner.fault_at(depth + 1),
            _ => None,
        }
    }
}

/// A name as SQL takes it: quoted where it is not a plain word.
pub fn quoted(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    match plain {
        true => name.to_owned(),
        false => format!("\"{}\"", name.replace('"', "\"\"")),
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
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
            ColumnType::Struct(fields) => {
                f.write_str("STRUCT<")?;
                for (i, field) in fields.iter().enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    write!(f, "{comma}{} {}", quoted(&field.name), field.data_type)?;
                }
                ">"
            }
            ColumnType::Array(inner) => return write!(f, "ARRAY<{inner}>"),
            ColumnType::Map(inner) => return write!(f, "MAP<VARCHAR, {inner}>"),
        };
        f.write_str(text)
    }
}

/// One column that the user declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name, as it stands in the source's records.
    pub name: String,
    /// Its type.
    pub data_type: ColumnType,
    /// Whether it may be null.
    pub nullable: bool,
    /// What a record that lacks it gives it; null without one.
    #[serde(default)]
    pub default: Option<Literal>,
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
