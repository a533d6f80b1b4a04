//! What must hold of the JSON decoder whatever it is given. `cargo test` tries it on a few thousand random inputs,
//! `scripts/fuzz` as long as one likes. An input is bytes: the first choose columns and options.

#![allow(clippy::unwrap_used, reason = "a property fails by panicking")]

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::compute::kernels::cast_utils::{Parser, string_to_timestamp_nanos};
use arrow::datatypes::*;
use serde_json::{Map, Number, Value, json};
use tidemill_core::catalog::{Table, TableSettings};
use tidemill_core::format::{JsonFormat, OnUnknownField, QuotedNumbers, Records, TimestampUnit, Tombstones};
use tidemill_core::schema::{Column, ColumnType, Literal, StructField};
use tidemill_core::{SchemaVersion, TableId};
use tidemill_ingest::decode::{JsonDecoder, SourceRecord};

/// Bytes as a source of choices; zeros once they are used up.
struct Choices<'d>(&'d [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn below(&mut self, bound: u8) -> u8 {
        self.byte() % bound
    }

    fn one_in(&mut self, chance: u8) -> bool {
        self.byte() % chance == 1
    }

    fn number(&mut self) -> u64 {
        let bytes = [0; 8].map(|_: u8| self.byte());
        // Small numbers as well as large ones.
        u64::from_le_bytes(bytes) >> (self.byte() % 64)
    }

    fn pick<'t, T>(&mut self, from: &'t [T]) -> &'t T {
        &from[usize::from(self.byte()) % from.len()]
    }

    fn data_type(&mut self, depth: u8) -> ColumnType {
        use ColumnType as T;
        match self.below(if depth == 0 { 15 } else { 19 }) {
            0 => T::Int64,
            1 => T::Int8,
            2 => T::Int16,
            3 => T::Int32,
            4 => T::Boolean,
            5 => T::UInt8,
            6 => T::UInt16,
            7 => T::UInt32,
            8 => T::UInt64,
            9 => T::Float32,
            10 => T::Float64,
            11 => {
                let precision = 1 + self.below(38);
                T::Decimal {
                    precision,
                    scale: self.below(precision + 1) as i8,
                }
            }
            12 => T::Text,
            13 => T::Date,
            14 => T::Timestamp,
            15 | 16 => T::Struct(
                ["a", "b"]
                    .map(|name| StructField {
                        name: name.to_owned(),
                        data_type: self.data_type(depth - 1),
                    })
                    .into(),
            ),
            17 => T::Array(Box::new(self.data_type(depth - 1))),
            _ => T::Map(Box::new(self.data_type(depth - 1))),
        }
    }

    fn table(&mut self) -> Table {
        let mut columns: Vec<Column> = ["a", "b", "c"]
            .map(|name| {
                let data_type = self.data_type(2);
                let default = match data_type {
                    ColumnType::Int64 if self.one_in(2) => Some(Literal::Number("7".to_owned())),
                    ColumnType::Text if self.one_in(2) => Some(Literal::Text("none".to_owned())),
                    _ => None,
                };
                Column {
                    name: name.to_owned(),
                    data_type,
                    nullable: !self.one_in(4),
                    default,
                }
            })
            .into();
        columns.push(Column {
            name: "_extra".to_owned(),
            data_type: ColumnType::Text,
            nullable: true,
            default: None,
        });
        Table {
            id: TableId(1),
            name: "t".to_owned(),
            columns,
            schema_version: SchemaVersion(1),
            min_schema: SchemaVersion(1),
            order_by: vec![],
            partition_by: None,
            shards: 1,
            settings: TableSettings::default(),
            deleted: vec![],
            former: vec![],
            created_at_ms: 0,
        }
    }

    fn format(&mut self) -> JsonFormat {
        use OnUnknownField as U;
        use TimestampUnit as T;
        JsonFormat {
            on_unknown_field: *self.pick(&[U::Ignore, U::Capture, U::Reject]),
            records: *self.pick(&[Records::One, Records::Many]),
            tombstones: *self.pick(&[Tombstones::Filter, Tombstones::Reject]),
            timestamp_unit: *self.pick(&[T::Milliseconds, T::Seconds, T::Microseconds, T::Nanoseconds]),
            quoted_numbers: *self.pick(&[QuotedNumbers::Reject, QuotedNumbers::Accept]),
            ..JsonFormat::default()
        }
    }
}

fn record(offset: i64, payload: Option<&[u8]>) -> SourceRecord<'_> {
    SourceRecord {
        offset,
        timestamp_ms: (offset % 2 == 0).then_some(offset),
        key: payload,
        payload,
        headers: None,
    }
}

/// Any bytes as records, separated by zeros: each is stored, rejected or filtered, and becomes what it becomes alone.
pub fn any_bytes(data: &[u8]) {
    let mut choices = Choices(data);
    let (table, format) = (choices.table(), choices.format());
    assert_eq!(format.check(&table), Ok(()));
    let decoder = JsonDecoder::new(&table, &format, "topic");
    let payloads = choices.0.split(|byte| *byte == 0);
    let records: Vec<SourceRecord<'_>> = payloads
        .zip(1..)
        .map(|(payload, offset)| record(offset * 3, (payload != b"~").then_some(payload)))
        .collect();
    let all = decoder.decode(0, &records).unwrap();
    assert_eq!(all.stored() + all.rejected() + all.filtered(), records.len() as u64);
    let offsets = |batch: &Option<RecordBatch>, name: &str| -> Vec<i64> {
        let column = |batch: &RecordBatch| batch.column_by_name(name).unwrap().as_primitive::<Int64Type>().clone();
        batch.as_ref().map_or(vec![], |batch| column(batch).values().to_vec())
    };
    let stored = offsets(&all.rows, "_offset");
    let strictly = format.records == Records::One;
    assert!(
        stored
            .windows(2)
            .all(|pair| pair[0] < pair[1] || (!strictly && pair[0] == pair[1]))
    );
    let mut distinct = stored;
    distinct.dedup();
    assert_eq!(distinct.len() as u64, all.stored());
    let rejected = offsets(&all.rejects, "offset");
    assert!(rejected.windows(2).all(|pair| pair[0] < pair[1]));
    assert!(rejected.iter().all(|offset| !distinct.contains(offset)));

    let alone: Vec<_> = records
        .iter()
        .map(|record| decoder.decode(0, std::slice::from_ref(record)).unwrap())
        .collect();
    let together = |batches: Vec<RecordBatch>| {
        let schema = batches.first()?.schema();
        Some(concat_batches(&schema, &batches).unwrap())
    };
    assert_eq!(
        all.rows,
        together(alone.iter().filter_map(|one| one.rows.clone()).collect())
    );
    assert_eq!(
        all.rejects,
        together(alone.iter().filter_map(|one| one.rejects.clone()).collect())
    );
}

/// Random columns, and JSON that fits them more or less: what is decoded is what a slow reading through
/// `serde_json::Value` says.
pub fn random_values(data: &[u8]) {
    let mut choices = Choices(data);
    let (table, format) = (choices.table(), choices.format());
    let decoder = JsonDecoder::new(&table, &format, "topic");
    let fields: Vec<(String, ColumnType)> = table.columns[..3]
        .iter()
        .map(|column| (column.name.clone(), column.data_type.clone()))
        .collect();
    let payloads: Vec<String> = (0..1 + choices.below(6))
        .map(|_| match format.records {
            Records::One => object(&mut choices, &fields),
            Records::Many => {
                let objects: Vec<_> = (0..choices.below(4)).map(|_| object(&mut choices, &fields)).collect();
                format!("[{}]", objects.join(", "))
            }
        })
        .collect();
    let records: Vec<_> = payloads
        .iter()
        .zip(0..)
        .map(|(payload, offset)| record(offset, Some(payload.as_bytes())))
        .collect();
    let decoded = decoder.decode(0, &records).unwrap();

    let slow = Slow {
        table: &table,
        format: &format,
    };
    let mut expected = Vec::new();
    for (payload, offset) in payloads.iter().zip(0_i64..) {
        let value: Value = serde_json::from_str(payload).unwrap();
        let objects = match value {
            Value::Array(objects) => objects,
            object => vec![object],
        };
        let rows: Option<Vec<Value>> = objects.iter().map(|object| slow.row(object)).collect();
        expected.extend(rows.unwrap_or_default().into_iter().map(|row| (offset, row)));
    }
    let mut found = Vec::new();
    if let Some(batch) = &decoded.rows {
        let offsets = batch.column_by_name("_offset").unwrap().as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            let values = table.columns.iter().zip(batch.columns());
            let mut object: Map<String, Value> = values
                .map(|(column, array)| (column.name.clone(), shown(array, row)))
                .collect();
            if format.on_unknown_field == OnUnknownField::Capture {
                let extra = object["_extra"]
                    .as_str()
                    .map(|text| serde_json::from_str(text).unwrap());
                object.insert("_extra".to_owned(), extra.unwrap_or(Value::Null));
            }
            found.push((offsets.value(row), Value::Object(object)));
        }
    }
    assert_eq!(
        found, expected,
        "{payloads:#?}\n{table:#?}\n{format:?}\n{:?}",
        decoded.rejects
    );
}

/// An object with most of the fields, and sometimes with one more.
fn object(choices: &mut Choices<'_>, fields: &[(String, ColumnType)]) -> String {
    let mut members = Vec::new();
    for (name, data_type) in fields {
        if !choices.one_in(8) {
            members.push(format!("\"{name}\":{}", fitting(choices, data_type)));
        }
    }
    if choices.one_in(8) {
        members.push(format!("\"zz\":{}", choices.pick(JUNK)));
    }
    format!("{{{}}}", members.join(","))
}

/// Values that fit some types and not others.
const JUNK: &[&str] = &[
    "null",
    "true",
    "false",
    "\"x\"",
    "\"\"",
    "\"12\"",
    "3.5",
    "3.0",
    "-1",
    "300",
    "1e+300",
    "{}",
    "[]",
    "[1,null]",
    "{\"a\":1}",
    "{\"a\":null,\"b\":\"2026-01-31\"}",
    "\"é\\n\\\"\\\\\"",
    "\"2026-01-31T08:00:00.25+01:00\"",
    "18446744073709551615",
];

/// JSON that mostly is a value of the type. Fractions are quarters, so that floats hold them exactly.
fn fitting(choices: &mut Choices<'_>, data_type: &ColumnType) -> String {
    use ColumnType as T;
    if choices.one_in(10) {
        return choices.pick(JUNK).to_string();
    }
    match data_type {
        T::Boolean => choices.one_in(2).to_string(),
        T::Float32 | T::Float64 => quarters(choices),
        T::Decimal { .. } if choices.one_in(2) => format!("\"{}\"", quarters(choices)),
        T::Decimal { .. } => quarters(choices),
        T::Text => {
            let text: String = (0..choices.below(6))
                .map(|_| *choices.pick(&['a', '"', '\\', '\n', 'é', '😀', '\u{1}', '/']))
                .collect();
            Value::from(text).to_string()
        }
        T::Date => {
            let (month, day) = (1 + choices.below(12), 1 + choices.below(28));
            format!("\"{:04}-{month:02}-{day:02}\"", 1900 + u16::from(choices.byte()))
        }
        T::Timestamp if choices.one_in(2) => quarters(choices),
        T::Timestamp => {
            let (month, day, hour) = (1 + choices.below(12), 1 + choices.below(28), choices.below(24));
            let year = 1900 + u16::from(choices.byte());
            let micros = choices.number() % 1_000_000;
            let zone = choices.pick(&["Z", "", "+01:30", "-11:00"]);
            format!("\"{year:04}-{month:02}-{day:02}T{hour:02}:59:07.{micros:06}{zone}\"")
        }
        T::Struct(fields) => {
            let fields: Vec<_> = fields
                .iter()
                .map(|field| (field.name.clone(), field.data_type.clone()))
                .collect();
            object(choices, &fields)
        }
        T::Array(element) => {
            let elements: Vec<_> = (0..choices.below(4)).map(|_| fitting(choices, element)).collect();
            format!("[{}]", elements.join(","))
        }
        T::Map(value) => {
            let entries: Vec<_> = (0..choices.below(4))
                .map(|i| format!("\"k{i}\":{}", fitting(choices, value)))
                .collect();
            format!("{{{}}}", entries.join(","))
        }
        _ if choices.one_in(4) => quarters(choices),
        whole => {
            let (least, most) = whole.whole_range().unwrap();
            let range = most - least + 1;
            (least + i128::from(choices.number()) % range).to_string()
        }
    }
}

fn quarters(choices: &mut Choices<'_>) -> String {
    let whole = choices.number() % (1 << 45);
    let sign = if whole > 0 && choices.one_in(2) { "-" } else { "" };
    let fraction = choices.pick(&["", ".0", ".25", ".5", ".75"]);
    format!("{sign}{whole}{fraction}")
}

/// The slow reading: it shares no code with the decoder, and knows numbers as quarters.
struct Slow<'t> {
    table: &'t Table,
    format: &'t JsonFormat,
}

impl Slow<'_> {
    /// The row that an object is, if it is one.
    fn row(&self, object: &Value) -> Option<Value> {
        let object = object.as_object()?;
        let mut captured = Map::new();
        let mut row = Map::new();
        for column in &self.table.columns[..3] {
            let value = match (object.get(&column.name), &column.default) {
                (Some(given), _) => self.value(given, &column.data_type, &column.name, &mut captured)?,
                (None, Some(Literal::Number(_))) => json!(7),
                (None, Some(_)) => json!("none"),
                (None, None) => Value::Null,
            };
            if value.is_null() && !column.nullable {
                return None;
            }
            row.insert(column.name.clone(), value);
        }
        let known = |name: &str| self.table.columns[..3].iter().any(|column| column.name == name);
        self.unknown(object, &known, "", &mut captured)?;
        let extra = match captured.is_empty() {
            true => Value::Null,
            false => Value::Object(captured),
        };
        row.insert("_extra".to_owned(), extra);
        Some(Value::Object(row))
    }

    fn unknown(
        &self,
        object: &Map<String, Value>,
        known: &dyn Fn(&str) -> bool,
        path: &str,
        captured: &mut Map<String, Value>,
    ) -> Option<()> {
        for (name, value) in object.iter().filter(|(name, _)| !known(name)) {
            match self.format.on_unknown_field {
                OnUnknownField::Ignore => {}
                OnUnknownField::Reject => return None,
                OnUnknownField::Capture => {
                    captured.insert(format!("{path}{name}"), value.clone());
                }
            }
        }
        Some(())
    }

    fn value(
        &self,
        given: &Value,
        data_type: &ColumnType,
        path: &str,
        captured: &mut Map<String, Value>,
    ) -> Option<Value> {
        use ColumnType as T;
        if given.is_null() {
            return Some(Value::Null);
        }
        Some(match (data_type, given) {
            (T::Boolean, Value::Bool(_)) | (T::Text, Value::String(_)) => given.clone(),
            (T::Text, other) => json!(other.to_string()),
            (T::Struct(fields), Value::Object(object)) => {
                let mut row = Map::new();
                for field in fields {
                    let inner = object.get(&field.name).unwrap_or(&Value::Null);
                    let path = format!("{path}.{}", field.name);
                    let value = self.value(inner, &field.data_type, &path, captured)?;
                    row.insert(field.name.clone(), value);
                }
                let known = |name: &str| fields.iter().any(|field| field.name == name);
                self.unknown(object, &known, &format!("{path}."), captured)?;
                Value::Object(row)
            }
            (T::Array(element), Value::Array(array)) => {
                let mut elements = Vec::new();
                for (i, inner) in array.iter().enumerate() {
                    elements.push(self.value(inner, element, &format!("{path}[{i}]"), captured)?);
                }
                Value::Array(elements)
            }
            (T::Map(value), Value::Object(object)) => {
                let mut entries = Map::new();
                for (key, inner) in object {
                    entries.insert(
                        key.clone(),
                        self.value(inner, value, &format!("{path}.{key}"), captured)?,
                    );
                }
                Value::Object(entries)
            }
            (_, Value::Number(number)) => self.number(number, data_type)?,
            (_, Value::String(text)) => self.text(text, data_type)?,
            _ => return None,
        })
    }

    fn text(&self, text: &str, data_type: &ColumnType) -> Option<Value> {
        let number = || match serde_json::from_str(text) {
            Ok(Value::Number(number)) => Some(number),
            _ => None,
        };
        let told = match data_type {
            ColumnType::Decimal { .. } => return self.number(&number()?, data_type),
            ColumnType::Timestamp => string_to_timestamp_nanos(text)
                .ok()
                .map(|nanos| json!(nanos.div_euclid(1000))),
            ColumnType::Date if text.len() == 10 => Date32Type::parse(text).map(|day| json!(day)),
            ColumnType::Boolean | ColumnType::Struct(_) | ColumnType::Array(_) | ColumnType::Map(_) => return None,
            _ => None,
        };
        match self.format.quoted_numbers {
            QuotedNumbers::Accept if told.is_none() => self.number(&number()?, data_type),
            _ => told,
        }
    }

    fn number(&self, number: &Number, data_type: &ColumnType) -> Option<Value> {
        use ColumnType as T;
        let float = number.as_f64()?;
        match data_type {
            T::Float64 => return Some(json!(float)),
            T::Float32 => return (float as f32).is_finite().then(|| json!(float as f32)),
            _ => {}
        }
        let quarters = match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => i128::from(whole) * 4,
            (_, Some(whole)) => i128::from(whole) * 4,
            _ if float.abs() < 1e20 => (float * 4.0) as i128,
            _ => return None,
        };
        let whole = || (quarters % 4 == 0).then_some(quarters / 4);
        match data_type {
            T::Decimal { precision, scale } => {
                // Halves or quarters, where they must be; 38 digits leave no room for more.
                let parts = [1, 2, 4].into_iter().find(|parts| quarters * parts % 4 == 0)?;
                let unit = 10_i128.checked_pow(u32::from(scale.unsigned_abs()))?;
                let scaled = (quarters * parts / 4).checked_mul(unit / parts)?;
                let fits = unit % parts == 0 && scaled.abs() < 10_i128.pow(u32::from(*precision));
                fits.then(|| json!(scaled.to_string()))
            }
            T::Date => whole()
                .filter(|day| (-719_162..=2_932_896).contains(day))
                .map(|day| json!(day as i64)),
            T::Timestamp => {
                let micros = match self.format.timestamp_unit {
                    TimestampUnit::Seconds => (quarters * 1_000_000).div_euclid(4),
                    TimestampUnit::Milliseconds => (quarters * 1_000).div_euclid(4),
                    TimestampUnit::Microseconds => quarters.div_euclid(4),
                    TimestampUnit::Nanoseconds => quarters.div_euclid(4_000),
                };
                let years = -62_135_596_800_000_000..253_402_300_800_000_000;
                years.contains(&micros).then(|| json!(micros as i64))
            }
            T::Boolean | T::Struct(_) | T::Array(_) | T::Map(_) => None,
            _ => {
                let (least, most) = data_type.whole_range()?;
                let whole = whole().filter(|value| (least..=most).contains(value))?;
                Some(u64::try_from(whole).map_or_else(|_| json!(whole as i64), |whole| json!(whole)))
            }
        }
    }
}

/// A value of a column as JSON: days and times as numbers, decimals as the digits that they are kept as.
fn shown(array: &ArrayRef, row: usize) -> Value {
    macro_rules! number {
        ($type:ty) => {
            json!(array.as_primitive::<$type>().value(row))
        };
    }
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Boolean => json!(array.as_boolean().value(row)),
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(Int64Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        DataType::UInt64 => number!(UInt64Type),
        DataType::Float32 => number!(Float32Type),
        DataType::Float64 => number!(Float64Type),
        DataType::Date32 => number!(Date32Type),
        DataType::Timestamp(..) => number!(TimestampMicrosecondType),
        DataType::Decimal128(..) => json!(array.as_primitive::<Decimal128Type>().value(row).to_string()),
        DataType::Utf8 => json!(array.as_string::<i32>().value(row)),
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns().iter().zip(fields);
            Value::Object(
                columns
                    .map(|(column, field)| (field.name().clone(), shown(column, row)))
                    .collect(),
            )
        }
        DataType::List(_) => {
            let elements = array.as_list::<i32>().value(row);
            Value::Array((0..elements.len()).map(|i| shown(&elements, i)).collect())
        }
        DataType::Map(..) => {
            let entries = array.as_map().value(row);
            let keys = entries.column(0).as_string::<i32>();
            let entry = |i: usize| (keys.value(i).to_owned(), shown(entries.column(1), i));
            Value::Object((0..entries.len()).map(entry).collect())
        }
        other => panic!("no column is {other}"),
    }
}
