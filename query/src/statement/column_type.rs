//! Column types: names of standard SQL and the usual aliases, and types that consist of others.

use super::words::Cursor;
use crate::error::QueryError;
use crate::nearest::did_you_mean;
use tidemill_core::schema::{ColumnType, MAX_TYPE_DEPTH, StructField};

/// Every name and its type. `DECIMAL`, `VARCHAR` and others may be followed by numbers.
const NAMES: &[(&str, ColumnType)] = &[
    ("BOOLEAN", ColumnType::Boolean),
    ("BOOL", ColumnType::Boolean),
    ("TINYINT", ColumnType::Int8),
    ("INT8", ColumnType::Int64),
    ("SMALLINT", ColumnType::Int16),
    ("INT2", ColumnType::Int16),
    ("INT16", ColumnType::Int16),
    ("INT", ColumnType::Int32),
    ("INTEGER", ColumnType::Int32),
    ("INT4", ColumnType::Int32),
    ("INT32", ColumnType::Int32),
    ("BIGINT", ColumnType::Int64),
    ("INT64", ColumnType::Int64),
    ("LONG", ColumnType::Int64),
    ("UINT8", ColumnType::UInt8),
    ("UINT16", ColumnType::UInt16),
    ("UINT32", ColumnType::UInt32),
    ("UINT64", ColumnType::UInt64),
    ("REAL", ColumnType::Float32),
    ("FLOAT", ColumnType::Float32),
    ("FLOAT4", ColumnType::Float32),
    ("FLOAT32", ColumnType::Float32),
    ("DOUBLE", ColumnType::Float64),
    ("FLOAT8", ColumnType::Float64),
    ("FLOAT64", ColumnType::Float64),
    (
        "DECIMAL",
        ColumnType::Decimal {
            precision: 38,
            scale: 10,
        },
    ),
    (
        "NUMERIC",
        ColumnType::Decimal {
            precision: 38,
            scale: 10,
        },
    ),
    (
        "DEC",
        ColumnType::Decimal {
            precision: 38,
            scale: 10,
        },
    ),
    ("VARCHAR", ColumnType::Text),
    ("TEXT", ColumnType::Text),
    ("STRING", ColumnType::Text),
    ("CHAR", ColumnType::Text),
    ("CHARACTER", ColumnType::Text),
    ("DATE", ColumnType::Date),
    ("TIMESTAMP", ColumnType::Timestamp),
    ("DATETIME", ColumnType::Timestamp),
];

/// Names of types that consist of others.
const NESTED: &[&str] = &["STRUCT", "ROW", "ARRAY", "LIST", "MAP"];

/// Reads a type.
pub(super) fn parse(cursor: &mut Cursor<'_>) -> Result<ColumnType, QueryError> {
    let place = cursor.place();
    let data_type = parse_within(cursor, 1)?;
    match data_type.fault() {
        Some(fault) => Err(QueryError::invalid(fault).at(place)),
        None => Ok(data_type),
    }
}

/// Reads a type that stands within `depth - 1` others.
fn parse_within(cursor: &mut Cursor<'_>, depth: usize) -> Result<ColumnType, QueryError> {
    check_depth(cursor, depth)?;
    let word = cursor.peek_word().map(|word| word.to_ascii_uppercase());
    let mut data_type = match word.as_deref() {
        Some(word) if NESTED.contains(&word) => {
            cursor.bump();
            nested(cursor, word, depth)?
        }
        _ => plain(cursor)?,
    };
    let mut depth = depth;
    // `INT[]` is an array of INT.
    while cursor.accept("[") {
        cursor.expect("]", &[])?;
        depth += 1;
        check_depth(cursor, depth)?;
        data_type = ColumnType::Array(Box::new(data_type));
    }
    Ok(data_type)
}

fn check_depth(cursor: &Cursor<'_>, depth: usize) -> Result<(), QueryError> {
    match depth > MAX_TYPE_DEPTH {
        true => {
            let message = format!("types are nested more than {MAX_TYPE_DEPTH} deep");
            Err(QueryError::invalid(message).at(cursor.place()))
        }
        false => Ok(()),
    }
}

/// Reads what follows the name of a nested type: other types in angles or brackets.
fn nested(cursor: &mut Cursor<'_>, name: &str, depth: usize) -> Result<ColumnType, QueryError> {
    let in_angles = cursor.accept("<");
    if !in_angles {
        let example = match name {
            "STRUCT" | "ROW" => "STRUCT<name type, …>",
            "MAP" => "MAP<VARCHAR, type>",
            _ => "ARRAY<type>",
        };
        cursor
            .expect("(", &[])
            .map_err(|error| QueryError::invalid(format!("{} ({example})", error.message)).at(error.place))?;
    }
    let data_type = match name {
        "STRUCT" | "ROW" => ColumnType::Struct(struct_fields(cursor, depth)?),
        "MAP" => {
            let place = cursor.place();
            if parse_within(cursor, depth + 1)? != ColumnType::Text {
                return Err(QueryError::invalid("the keys of a MAP are VARCHAR").at(place));
            }
            cursor.expect(",", &[])?;
            ColumnType::Map(Box::new(parse_within(cursor, depth + 1)?))
        }
        _ => ColumnType::Array(Box::new(parse_within(cursor, depth + 1)?)),
    };
    match in_angles {
        true if cursor.accept_closing_angle() => Ok(data_type),
        true => Err(cursor.expected("'>'", &[])),
        false => cursor.expect(")", &[]).map(|()| data_type),
    }
}

fn struct_fields(cursor: &mut Cursor<'_>, depth: usize) -> Result<Vec<StructField>, QueryError> {
    let mut fields: Vec<StructField> = Vec::new();
    loop {
        let name = cursor.name("a field")?;
        if fields.iter().any(|field| field.name == name.name) {
            let message = format!("field '{}' is declared twice", name.name);
            return Err(QueryError::invalid(message).at(name.place));
        }
        cursor.accept(":");
        let data_type = parse_within(cursor, depth + 1)?;
        let place = cursor.place();
        if cursor.accept("NOT") || cursor.accept("DEFAULT") {
            let message = "the fields of a STRUCT may be NULL and have no default";
            return Err(QueryError::invalid(message).at(place));
        }
        cursor.accept("NULL");
        fields.push(StructField {
            name: name.name,
            data_type,
        });
        if !cursor.accept(",") {
            return Ok(fields);
        }
    }
}

/// Reads a type that does not consist of others.
fn plain(cursor: &mut Cursor<'_>) -> Result<ColumnType, QueryError> {
    let place = cursor.place();
    let Some(word) = cursor.peek_word() else {
        return Err(cursor.expected("a type", &[]));
    };
    let Some((_, base)) = NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(&word)) else {
        return Err(QueryError::invalid(unknown(&word)).at(place));
    };
    cursor.bump();
    match base {
        ColumnType::Decimal { .. } => decimal(cursor),
        ColumnType::Text => {
            cursor.accept("VARYING");
            if cursor.accept("(") {
                // The length is taken and not enforced, as in most analytical systems.
                cursor.number::<u32>("a length")?;
                cursor.expect(")", &[])?;
            }
            Ok(ColumnType::Text)
        }
        ColumnType::Float64 => {
            cursor.accept("PRECISION");
            Ok(ColumnType::Float64)
        }
        ColumnType::Timestamp => timestamp(cursor),
        whole => unsigned(cursor, whole.clone()),
    }
}

fn unknown(word: &str) -> String {
    let hint = match word.to_ascii_uppercase().as_str() {
        "TIMESTAMPTZ" | "TIMESTAMP_TZ" => "; TIMESTAMP is in UTC".to_owned(),
        "JSON" | "JSONB" | "UUID" | "BLOB" | "BYTEA" | "BINARY" | "ENUM" => "; VARCHAR takes any text".to_owned(),
        _ => did_you_mean(word, NAMES.iter().map(|(name, _)| *name).chain(NESTED.iter().copied())),
    };
    format!("there is no type called '{word}'{hint}")
}

fn unsigned(cursor: &mut Cursor<'_>, whole: ColumnType) -> Result<ColumnType, QueryError> {
    let place = cursor.place();
    if !cursor.accept("UNSIGNED") {
        return Ok(whole);
    }
    match whole {
        ColumnType::Int8 => Ok(ColumnType::UInt8),
        ColumnType::Int16 => Ok(ColumnType::UInt16),
        ColumnType::Int32 => Ok(ColumnType::UInt32),
        ColumnType::Int64 => Ok(ColumnType::UInt64),
        other => Err(QueryError::invalid(format!("{other} cannot be UNSIGNED")).at(place)),
    }
}

fn decimal(cursor: &mut Cursor<'_>) -> Result<ColumnType, QueryError> {
    let place = cursor.place();
    if !cursor.accept("(") {
        let message = "DECIMAL needs its digits: DECIMAL(18, 2) has 18 in all, 2 of them behind the point";
        return Err(QueryError::invalid(message).at(place));
    }
    let place = cursor.place();
    let precision: u8 = cursor.number("the number of digits")?;
    if !(1..=38).contains(&precision) {
        return Err(QueryError::invalid(format!("DECIMAL takes 1 to 38 digits, not {precision}")).at(place));
    }
    let mut scale = 0;
    if cursor.accept(",") {
        let place = cursor.place();
        scale = cursor.number("the number of digits behind the point")?;
        if scale > precision as i8 {
            let message = format!("of {precision} digits, {scale} cannot be behind the point");
            return Err(QueryError::invalid(message).at(place));
        }
    }
    cursor.expect(")", &[])?;
    Ok(ColumnType::Decimal { precision, scale })
}

fn timestamp(cursor: &mut Cursor<'_>) -> Result<ColumnType, QueryError> {
    if cursor.accept("(") {
        let place = cursor.place();
        let digits: u8 = cursor.number("the number of digits of a second")?;
        if digits > 6 {
            return Err(QueryError::invalid("a TIMESTAMP has microseconds: at most 6 digits").at(place));
        }
        cursor.expect(")", &[])?;
    }
    let place = cursor.place();
    if cursor.accept("WITH") {
        return Err(QueryError::invalid("a TIMESTAMP has no zone: it is in UTC").at(place));
    }
    if cursor.accept("WITHOUT") {
        cursor.expect("TIME", &["TIME"])?;
        cursor.expect("ZONE", &["ZONE"])?;
    }
    Ok(ColumnType::Timestamp)
}
