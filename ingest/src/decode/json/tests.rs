//! What becomes of records: types one by one, then whole records and runs.

mod records;
mod types;

use super::{JsonDecoder, LIMITS, Limits};
use crate::decode::{Decoded, SourceRecord};
use crate::testing::table;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::util::display::array_value_to_string;
use tidemill_core::format::JsonFormat;
use tidemill_core::schema::{Column, ColumnType, Literal, StructField};

fn column(name: &str, data_type: ColumnType) -> Column {
    Column {
        name: name.into(),
        data_type,
        nullable: true,
        default: None,
    }
}

fn not_null(column: Column) -> Column {
    Column {
        nullable: false,
        ..column
    }
}

fn or(column: Column, default: Literal) -> Column {
    Column {
        default: Some(default),
        ..column
    }
}

fn structure(fields: &[(&str, ColumnType)]) -> ColumnType {
    let field = |(name, data_type): &(&str, ColumnType)| StructField {
        name: (*name).to_owned(),
        data_type: data_type.clone(),
    };
    ColumnType::Struct(fields.iter().map(field).collect())
}

fn array(element: ColumnType) -> ColumnType {
    ColumnType::Array(Box::new(element))
}

fn map(value: ColumnType) -> ColumnType {
    ColumnType::Map(Box::new(value))
}

fn format(options: &[(&str, Option<&str>, &str)]) -> JsonFormat {
    let mut format = JsonFormat::default();
    for (option, name, value) in options {
        format.set(option, *name, value).unwrap();
    }
    format
}

fn decoder(columns: Vec<Column>, options: &[(&str, Option<&str>, &str)]) -> JsonDecoder {
    let (table, format) = (table(columns), format(options));
    assert_eq!(format.check(&table), Ok(()));
    JsonDecoder::new(&table, &format, "topic")
}

fn record(offset: i64, payload: Option<&[u8]>) -> SourceRecord<'_> {
    SourceRecord {
        offset,
        timestamp_ms: Some(5),
        key: None,
        payload,
        headers: None,
    }
}

/// Records from offset 100 on.
fn run<'r>(payloads: &[Option<&'r [u8]>]) -> Vec<SourceRecord<'r>> {
    let record = |(i, payload): (usize, &Option<&'r [u8]>)| record(100 + i as i64, *payload);
    payloads.iter().enumerate().map(record).collect()
}

fn decode(decoder: &JsonDecoder, payloads: &[&str]) -> Decoded {
    let payloads: Vec<_> = payloads.iter().map(|text| Some(text.as_bytes())).collect();
    let decoded = decoder.decode(3, &run(&payloads)).unwrap();
    assert_eq!(
        decoded.stored() + decoded.rejected() + decoded.filtered(),
        payloads.len() as u64
    );
    decoded
}

/// The values of a column as text; none where there is no batch.
fn values(batch: &Option<RecordBatch>, column: &str) -> Vec<String> {
    let Some(batch) = batch else { return vec![] };
    let array = batch.column_by_name(column).unwrap();
    (0..array.len())
        .map(|row| match array.is_null(row) {
            true => "NULL".to_owned(),
            false => array_value_to_string(array, row).unwrap(),
        })
        .collect()
}

/// Why the one record was rejected.
fn why(decoded: &Decoded) -> String {
    assert_eq!((decoded.rejected(), decoded.rows_count()), (1, 0), "{decoded:?}");
    values(&decoded.rejects, "error").remove(0)
}

/// What a record with `json` in a column of that type gives: the value, or why there is none.
fn value(data_type: &ColumnType, json: &str, options: &[(&str, Option<&str>, &str)]) -> Result<String, String> {
    let decoder = decoder(vec![column("x", data_type.clone())], options);
    let decoded = decode(&decoder, &[&format!("{{\"x\":{json}}}")]);
    match decoded.rejected() {
        0 => Ok(values(&decoded.rows, "x").remove(0)),
        _ => Err(why(&decoded)),
    }
}
