//! `CREATE TABLE`: columns, sort key, partition expression, settings.
//!
//! Columns that a clause names are checked here, so that the error points at the word; the catalog
//! checks everything once more.

use super::words::Cursor;
use super::{Named, column_type, quantity};
use crate::error::QueryError;
use crate::nearest::did_you_mean;
use tidemill_core::catalog::{TableSettings, WalMode};
use tidemill_core::command::CreateTable;
use tidemill_core::schema::{Column, ColumnType, Literal, METADATA_COLUMNS, PartitionBy, TimeUnit};

/// Shards of a table that does not say how many.
const DEFAULT_SHARDS: u32 = 4;

const CLAUSES: &[&str] = &["ORDER", "PARTITION", "WITH"];
const SETTINGS: &[&str] = &[
    "shards",
    "flush_rows",
    "flush_bytes",
    "flush_age",
    "flush_age_ms",
    "flush_acks",
    "flush_acks_ms",
    "min_insync_replicas",
    "wal",
    "warehouse",
];

/// Reads what follows `CREATE TABLE`.
pub(super) fn parse(cursor: &mut Cursor<'_>) -> Result<CreateTable, QueryError> {
    let if_not_exists = if_not_exists(cursor)?;
    let name = cursor.table_name("a table")?;
    let mut table = CreateTable {
        id: None,
        name: name.name,
        if_not_exists,
        columns: columns(cursor)?,
        order_by: Vec::new(),
        partition_by: None,
        shards: DEFAULT_SHARDS,
        settings: TableSettings::default(),
    };
    loop {
        if cursor.accept("ORDER") {
            cursor.expect("BY", &["BY"])?;
            table.order_by = order_by(cursor, &table.columns)?;
        } else if cursor.accept("PARTITION") {
            cursor.expect("BY", &["BY"])?;
            table.partition_by = Some(partition_by(cursor, &table.columns)?);
        } else if cursor.accept("WITH") {
            with(cursor, &mut table)?;
        } else {
            break;
        }
    }
    cursor.end_or(CLAUSES)?;
    Ok(table)
}

/// `IF NOT EXISTS`, if it stands here.
pub(super) fn if_not_exists(cursor: &mut Cursor<'_>) -> Result<bool, QueryError> {
    if !cursor.accept("IF") {
        return Ok(false);
    }
    cursor.expect("NOT", &["NOT"])?;
    cursor.expect("EXISTS", &["EXISTS"])?;
    Ok(true)
}

fn columns(cursor: &mut Cursor<'_>) -> Result<Vec<Column>, QueryError> {
    cursor.expect("(", &[])?;
    let mut columns: Vec<Column> = Vec::new();
    loop {
        if columns.is_empty() && cursor.peek_is(")") {
            return Err(cursor.expected("a column", &[]));
        }
        let name = cursor.name("a column")?;
        let twice = columns.iter().any(|column| column.name == name.name);
        if twice || METADATA_COLUMNS.contains(&name.name.as_str()) {
            let message = match twice {
                true => format!("column '{}' is declared twice", name.name),
                false => format!("column '{}' is one that every table has by itself", name.name),
            };
            return Err(QueryError::invalid(message).at(name.place));
        }
        let data_type = column_type::parse(cursor)?;
        let (nullable, default) = column_clauses(cursor, &data_type)?;
        columns.push(Column {
            name: name.name,
            data_type,
            nullable,
            default,
        });
        if cursor.accept(")") {
            return Ok(columns);
        }
        if !cursor.accept(",") {
            return Err(after_column(cursor));
        }
    }
}

/// `[NOT] NULL` and `DEFAULT`, in any order: whether the column may be null, and its default.
fn column_clauses(cursor: &mut Cursor<'_>, data_type: &ColumnType) -> Result<(bool, Option<Literal>), QueryError> {
    let (mut nullable, mut default) = (None, None);
    loop {
        let place = cursor.place();
        let may_be = if cursor.accept("NOT") {
            cursor.expect("NULL", &["NULL"])?;
            Some(false)
        } else if cursor.accept("NULL") {
            Some(true)
        } else {
            None
        };
        if may_be.is_some() {
            if nullable.is_some() {
                return Err(QueryError::invalid("whether it may be NULL was said before").at(place));
            }
            nullable = may_be;
        } else if cursor.accept("DEFAULT") {
            if default.is_some() {
                return Err(QueryError::invalid("a column has one default").at(place));
            }
            default = Some(default_value(cursor, data_type)?);
        } else {
            return Ok((nullable.unwrap_or(true), default.flatten()));
        }
    }
}

/// What stands behind `DEFAULT`; `NULL` is the same as no default.
fn default_value(cursor: &mut Cursor<'_>, data_type: &ColumnType) -> Result<Option<Literal>, QueryError> {
    let place = cursor.place();
    if cursor.accept("NULL") {
        return Ok(None);
    }
    let literal = if cursor.accept("TRUE") {
        Literal::Boolean(true)
    } else if cursor.accept("FALSE") {
        Literal::Boolean(false)
    } else if cursor.accept("DATE") || cursor.accept("TIMESTAMP") {
        // They say nothing that the column's type does not.
        cursor.constant("text in single quotes")?
    } else {
        cursor.constant("a constant: a number, 'text', true, false or NULL")?
    };
    literal
        .check(data_type)
        .map_err(|why| QueryError::invalid(why).at(place))?;
    Ok(Some(literal))
}

fn after_column(cursor: &Cursor<'_>) -> QueryError {
    let why = match cursor.peek_word().map(|word| word.to_uppercase()).as_deref() {
        Some("PRIMARY" | "UNIQUE" | "REFERENCES" | "CHECK") => "tables have no keys and constraints but NOT NULL",
        Some("COMMENT" | "CODEC" | "TTL" | "COLLATE") => "this is not known here",
        _ => return cursor.expected("',' or ')'", &["NULL", "NOT", "UNSIGNED", "DEFAULT"]),
    };
    QueryError::invalid(why).at(cursor.place())
}

/// A column that a clause names, checked against those that are declared.
fn known_column(cursor: &mut Cursor<'_>, columns: &[Column]) -> Result<String, QueryError> {
    let name = cursor.name("a column")?;
    let known = || {
        columns
            .iter()
            .map(|column| column.name.as_str())
            .chain(METADATA_COLUMNS)
    };
    match known().any(|column| column == name.name) {
        true => {
            let declared = columns.iter().find(|column| column.name == name.name);
            match declared.filter(|column| column.data_type.is_nested()) {
                None => Ok(name.name),
                Some(nested) => {
                    let message = format!(
                        "rows cannot be sorted or split by '{}': values of {} have no order",
                        name.name, nested.data_type
                    );
                    Err(QueryError::invalid(message).at(name.place))
                }
            }
        }
        false => {
            let hint = did_you_mean(&name.name, known());
            let message = format!("the table has no column '{}'{hint}", name.name);
            Err(QueryError::invalid(message).at(name.place))
        }
    }
}

fn order_by(cursor: &mut Cursor<'_>, columns: &[Column]) -> Result<Vec<String>, QueryError> {
    let bracket = cursor.accept("(");
    let mut names = Vec::new();
    loop {
        names.push(known_column(cursor, columns)?);
        if cursor.peek_is("DESC") {
            return Err(QueryError::invalid("a table is sorted upwards only").at(cursor.place()));
        }
        cursor.accept("ASC");
        if !cursor.accept(",") {
            break;
        }
    }
    if bracket {
        cursor.expect(")", &[])?;
    }
    Ok(names)
}

fn partition_by(cursor: &mut Cursor<'_>, columns: &[Column]) -> Result<PartitionBy, QueryError> {
    let bracket = cursor.accept("(");
    let place = cursor.place();
    let function = cursor.peek_word().unwrap_or_default().to_lowercase();
    let partition_by = match function.as_str() {
        "date_trunc" if !columns.iter().any(|c| c.name == function) => {
            cursor.bump();
            cursor.expect("(", &[])?;
            let unit = unit(cursor)?;
            cursor.expect(",", &[])?;
            let column = known_column(cursor, columns)?;
            cursor.expect(")", &[])?;
            PartitionBy::Truncated { unit, column }
        }
        "todate" | "to_date" if !columns.iter().any(|c| c.name == function) => {
            cursor.bump();
            cursor.expect("(", &[])?;
            let column = known_column(cursor, columns)?;
            cursor.expect(")", &[])?;
            PartitionBy::Truncated {
                unit: TimeUnit::Day,
                column,
            }
        }
        _ => {
            let column = known_column(cursor, columns).map_err(|e| e.at(place))?;
            PartitionBy::Column(column)
        }
    };
    if bracket {
        cursor.expect(")", &[])?;
    }
    if cursor.peek_is(",") {
        return Err(QueryError::invalid("a table is partitioned by one expression").at(cursor.place()));
    }
    Ok(partition_by)
}

fn unit(cursor: &mut Cursor<'_>) -> Result<TimeUnit, QueryError> {
    const UNITS: [TimeUnit; 4] = [TimeUnit::Hour, TimeUnit::Day, TimeUnit::Month, TimeUnit::Year];
    let place = cursor.place();
    let word = cursor.word_or_literal("'hour', 'day', 'month' or 'year'")?;
    UNITS
        .into_iter()
        .find(|unit| unit.to_string().eq_ignore_ascii_case(&word))
        .ok_or_else(|| {
            let hint = did_you_mean(&word, ["hour", "day", "month", "year"]);
            QueryError::invalid(format!(
                "date_trunc takes 'hour', 'day', 'month' or 'year', not '{word}'{hint}"
            ))
            .at(place)
        })
}

fn with(cursor: &mut Cursor<'_>, table: &mut CreateTable) -> Result<(), QueryError> {
    cursor.expect("(", &[])?;
    loop {
        let name = cursor.name("a setting")?;
        let key = name.name.to_lowercase();
        if !SETTINGS.contains(&key.as_str()) {
            let hint = did_you_mean(&name.name, SETTINGS.iter().copied());
            let message = format!("a table has no setting '{}'{hint}", name.name);
            return Err(QueryError::invalid(message).at(name.place));
        }
        cursor.expect("=", &[])?;
        let place = cursor.place();
        let value = cursor.literal(&format!("the value of {key}"))?;
        set(table, &key, &value).map_err(|e| e.at(place))?;
        if cursor.accept(")") {
            return Ok(());
        }
        if !cursor.accept(",") {
            return Err(cursor.expected("',' or ')'", &[]));
        }
    }
}

fn set(table: &mut CreateTable, key: &str, value: &str) -> Result<(), QueryError> {
    if key != "shards" {
        return set_later(&mut table.settings, key, value);
    }
    let shards = value.parse().ok().filter(|n| (1..=1024).contains(n));
    let wrong = || {
        QueryError::invalid(format!(
            "'{value}' is not a value of shards: a whole number from 1 to 1024"
        ))
    };
    table.shards = shards.ok_or_else(wrong)?;
    Ok(())
}

/// Whether a table has a setting of that name that may be changed later.
pub(super) fn check_alterable(name: &Named, key: &str) -> Result<(), QueryError> {
    let message = match key {
        "shards" => "the number of shards is fixed when a table is created".to_owned(),
        known if SETTINGS.contains(&known) => return Ok(()),
        _ => {
            let hint = did_you_mean(key, SETTINGS.iter().copied());
            format!("a table has no setting '{}'{hint}", name.name)
        }
    };
    Err(QueryError::invalid(message).at(name.place))
}

/// Sets what may be set later, too.
pub(crate) fn set_later(settings: &mut TableSettings, key: &str, value: &str) -> Result<(), QueryError> {
    let flush = &mut settings.flush;
    let wrong = |example: &str| QueryError::invalid(format!("'{value}' is not a value of {key}: {example}"));
    let positive = |n: Option<u64>, example: &str| n.filter(|n| *n > 0).ok_or_else(|| wrong(example));
    match key {
        "flush_rows" => flush.rows = positive(value.replace('_', "").parse().ok(), "a whole number from 1")?,
        "flush_bytes" => flush.bytes = positive(quantity::bytes(value), "bytes, such as 67108864 or '64MiB'")?,
        "flush_age" => {
            let example = "a duration, such as '10s', '500ms' or '1min'";
            flush.age_ms = positive(quantity::milliseconds(value), example)?;
        }
        "flush_acks" => {
            let example = "a duration, such as '5ms' or '0s'";
            flush.acks_ms = quantity::milliseconds(value).ok_or_else(|| wrong(example))?;
        }
        "flush_acks_ms" => flush.acks_ms = value.parse().map_err(|_| wrong("milliseconds, from 0"))?,
        "min_insync_replicas" => {
            let number = value.parse().ok().filter(|n| *n > 0);
            settings.min_insync_replicas = Some(number.ok_or_else(|| wrong("a whole number from 1"))?);
        }
        "wal" => {
            let known = WalMode::ALL
                .into_iter()
                .find(|mode| mode.to_string() == value.to_lowercase());
            settings.wal = known.ok_or_else(|| wrong("'off' or 'local'"))?;
        }
        // The empty one stands for any.
        "warehouse" => settings.warehouse = (!value.is_empty()).then(|| value.to_owned()),
        _ => flush.age_ms = positive(value.parse().ok(), "milliseconds, from 1")?,
    }
    Ok(())
}
