//! The rows of one batch in the making: record by record, all of a record or nothing.

use super::column::{Column, Columns, Values};
use super::object::{RowSeed, fill_missing};
use super::reading::{Failure, Reading, not_a_value};
use super::scalar::{Quoted, Why, append_outer};
use super::{JsonDecoder, SourceRecord};
use arrow::array::{Array, ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use tidemill_core::format::{QuotedNumbers, Records, TimestampUnit, Tombstones};
use tidemill_core::schema::ColumnType;

/// What a record became.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// Rows.
    Stored,
    /// Nothing, as the pipe wants it.
    Filtered,
    /// A reject, for this reason.
    Rejected(String),
    /// Nothing yet: there is no room for it beside the rows that are there.
    Full,
}

/// The headers of a record by name; null where one has no value.
type Headers = HashMap<String, Option<String>>;

/// Rows so far.
pub(super) struct Rows<'d> {
    decoder: &'d JsonDecoder,
    columns: Columns,
    offsets: Vec<i64>,
    times: Column,
    keys: Column,
}

impl<'d> Rows<'d> {
    /// No rows yet; `records` are expected.
    pub fn new(decoder: &'d JsonDecoder, records: usize) -> Self {
        let limit = decoder.limits.text;
        let unit = |column: &str| decoder.format.timestamp_unit_of(column);
        Self {
            decoder,
            columns: decoder.fields.columns(records, limit, unit),
            offsets: Vec::with_capacity(records),
            times: Column::new(&ColumnType::Timestamp, TimestampUnit::Milliseconds, records, limit),
            keys: Column::new(&ColumnType::Text, TimestampUnit::Milliseconds, records, limit),
        }
    }

    /// How many rows there are.
    pub fn count(&self) -> usize {
        self.offsets.len()
    }

    /// Adds the rows of `record`, or leaves everything as it was.
    pub fn read(&mut self, record: &SourceRecord<'_>) -> Read {
        let before = self.count();
        let failure = match self.try_read(record) {
            Ok(()) if self.count() > before => return Read::Stored,
            Ok(()) => return Read::Filtered,
            Err(failure) => failure,
        };
        self.columns.truncate(before);
        self.offsets.truncate(before);
        self.times.truncate(before);
        self.keys.truncate(before);
        match failure {
            Failure::Wrong(why) => Read::Rejected(why),
            Failure::Full => Read::Full,
        }
    }

    fn try_read(&mut self, record: &SourceRecord<'_>) -> Result<(), Failure> {
        let wrong = |why: String| Err(Failure::Wrong(why));
        let Some(payload) = record.payload else {
            return match self.decoder.format.tombstones {
                Tombstones::Filter => Ok(()),
                Tombstones::Reject => wrong("the record has no payload (a tombstone)".to_owned()),
            };
        };
        let text = match std::str::from_utf8(payload) {
            Ok(text) => text,
            Err(error) => return wrong(format!("the payload is not UTF-8 at byte {}", error.valid_up_to())),
        };
        let headers = self.headers(record)?;
        let read = match self.decoder.format.records {
            Records::One => self.read_one(record, &headers, text),
            Records::Many => self.read_many(record, &headers, text),
        };
        match read {
            Err(Failure::Wrong(_)) if text.trim_ascii().is_empty() => wrong("the payload is empty".to_owned()),
            read => read,
        }
    }

    fn headers(&self, record: &SourceRecord<'_>) -> Result<Headers, Failure> {
        match record.headers {
            Some(headers) if !self.decoder.outer.headers.is_empty() => serde_json::from_str(headers)
                .map_err(|error| Failure::Wrong(format!("the headers cannot be read: {error}"))),
            _ => Ok(Headers::new()),
        }
    }

    fn read_one(&mut self, record: &SourceRecord<'_>, headers: &Headers, text: &str) -> Result<(), Failure> {
        let mut parser = serde_json::Deserializer::from_str(text);
        self.read_row(record, headers, &mut parser)
            .map_err(|failure| match failure {
                Failure::Wrong(why) if text.trim_ascii_start().starts_with('[') => {
                    Failure::Wrong(format!("{why}; with records = 'many' the pipe takes arrays of objects"))
                }
                other => other,
            })?;
        parser.end().map_err(|error| {
            Failure::Wrong(format!(
                "more follows the object (line {} column {}); with records = 'many' the pipe takes several",
                error.line(),
                error.column()
            ))
        })
    }

    fn read_many(&mut self, record: &SourceRecord<'_>, headers: &Headers, text: &str) -> Result<(), Failure> {
        let before = self.count();
        let mut values = 0;
        for value in serde_json::Deserializer::from_str(text).into_iter::<&RawValue>() {
            let value = value.map_err(|error| Failure::Wrong(format!("not JSON: {error}")))?;
            values += 1;
            let mut parser = serde_json::Deserializer::from_str(value.get());
            if value.get().starts_with('[') {
                let mut failure = None;
                let rows = ArrayOfRows {
                    rows: self,
                    record,
                    headers,
                    before,
                    failure: &mut failure,
                };
                let read = parser.deserialize_seq(rows);
                failure.map_or(Ok(()), Err)?;
                read.map_err(|error| Failure::Wrong(format!("not JSON: {error}")))?;
            } else {
                self.read_row_of(record, headers, before, &mut parser)?;
            }
        }
        match values {
            0 => Err(Failure::Wrong("the payload is empty".to_owned())),
            _ => Ok(()),
        }
    }

    /// Reads one of several objects; those of this record begin at row `before`.
    fn read_row_of<'de, D>(
        &mut self,
        record: &SourceRecord<'_>,
        headers: &Headers,
        before: usize,
        parser: D,
    ) -> Result<(), Failure>
    where
        D: Deserializer<'de, Error = serde_json::Error>,
    {
        let number = self.count() - before;
        let most = self.decoder.limits.rows_of_record;
        if number >= most {
            return Err(Failure::Wrong(format!("the record holds more than {most} objects")));
        }
        self.read_row(record, headers, parser).map_err(|failure| match failure {
            Failure::Wrong(why) => Failure::Wrong(format!("object {}: {why}", number + 1)),
            full => full,
        })
    }

    /// Reads one object as a row.
    fn read_row<'de, D>(&mut self, record: &SourceRecord<'_>, headers: &Headers, parser: D) -> Result<(), Failure>
    where
        D: Deserializer<'de, Error = serde_json::Error>,
    {
        let row = self.count();
        let decoder = self.decoder;
        self.read_outer(record, headers)?;
        let quoted = match decoder.format.quoted_numbers {
            QuotedNumbers::Accept => Quoted::MayBeNumber,
            QuotedNumbers::Reject => Quoted::IsText,
        };
        let mut reading = Reading::new(decoder.format.on_unknown_field, quoted);
        let seed = RowSeed {
            fields: &decoder.fields,
            columns: &mut self.columns,
            row,
            reading: &mut reading,
        };
        if let Err(error) = seed.deserialize(parser) {
            return Err(reading.failure(&error));
        }
        if !reading.captured.is_empty()
            && let Some(column) = decoder.outer.captured
        {
            append_captured(&mut self.columns.columns[column], &reading.captured)?;
        }
        fill_missing(&decoder.fields, &mut self.columns.columns, row)
            .map_err(|(column, why)| self.not_filled(column, "nothing", why))?;
        self.read_metadata(record)
    }

    /// Fills the columns that come from the key and the headers.
    fn read_outer(&mut self, record: &SourceRecord<'_>, headers: &Headers) -> Result<(), Failure> {
        let outer = &self.decoder.outer;
        if let (Some(column), Some(key)) = (outer.key, record.key) {
            let key = std::str::from_utf8(key).map_err(|error| {
                let name = &self.decoder.fields.names[column];
                Failure::Wrong(format!(
                    "key for column \"{name}\": it is not UTF-8 at byte {}",
                    error.valid_up_to()
                ))
            })?;
            self.fill(column, Some(key))?;
        }
        for (header, column) in &outer.headers {
            if let Some(value) = headers.get(header) {
                self.fill(*column, value.as_deref())?;
            }
        }
        Ok(())
    }

    fn fill(&mut self, place: usize, text: Option<&str>) -> Result<(), Failure> {
        let column = &mut self.columns.columns[place];
        match text {
            Some(text) => append_outer(column, text).map_err(|why| self.not_filled(place, &format!("\"{text}\""), why)),
            None if self.decoder.fields.slots[place].nullable => {
                column.append_null();
                Ok(())
            }
            None => Err(self.not_filled(place, "null", Why::OtherType)),
        }
    }

    fn not_filled(&self, column: usize, found: &str, why: Why) -> Failure {
        let (decoder, name) = (self.decoder, &self.decoder.fields.names[column]);
        if matches!(why, Why::Full) {
            return Failure::Full;
        }
        let header = decoder.outer.headers.iter().find(|(_, place)| *place == column);
        let whose = match header {
            Some((header, _)) => format!("header \"{header}\" for column \"{name}\""),
            None if decoder.outer.key == Some(column) => format!("key for column \"{name}\""),
            None => format!("field \"{name}\""),
        };
        let problem = not_a_value(&decoder.fields.slots[column], found, &why);
        Failure::Wrong(format!("{whose}: {problem}"))
    }

    fn read_metadata(&mut self, record: &SourceRecord<'_>) -> Result<(), Failure> {
        match (&mut self.times.values, record.timestamp_ms) {
            (Values::Timestamp { values, .. }, Some(ms)) => {
                values.push(ms.saturating_mul(1000));
                self.times.value_added();
            }
            _ => self.times.append_null(),
        }
        match (&mut self.keys.values, record.key) {
            (Values::Text(values), Some(key)) => {
                values.push(&String::from_utf8_lossy(key)).map_err(|_| Failure::Full)?;
                self.keys.value_added();
            }
            _ => self.keys.append_null(),
        }
        // Last: this is what makes it a row.
        self.offsets.push(record.offset);
        Ok(())
    }

    /// The rows as a batch with the metadata columns; none if there is no row.
    pub fn finish(self, partition: i32) -> Result<Option<RecordBatch>, ArrowError> {
        let count = self.count();
        if count == 0 {
            return Ok(None);
        }
        let schema = &self.decoder.schema;
        let declared = self.columns.columns.into_iter().zip(schema.fields());
        let mut arrays: Vec<ArrayRef> = declared
            .map(|(column, field)| column.finish(field.data_type()))
            .collect::<Result<_, _>>()?;
        let microseconds = DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, None);
        let metadata: [ArrayRef; 5] = [
            Arc::new(StringArray::new_repeated(&self.decoder.topic, count)),
            Arc::new(Int32Array::from_value(partition, count)),
            Arc::new(Int64Array::from(self.offsets)),
            self.times.finish(&microseconds)?,
            self.keys.finish(&DataType::Utf8)?,
        ];
        arrays.extend(metadata);
        debug_assert!(arrays.iter().all(|array| array.len() == count));
        RecordBatch::try_new(schema.clone(), arrays).map(Some)
    }
}

/// Puts unknown fields into a column of text, as one object.
fn append_captured(column: &mut Column, captured: &[(String, &str)]) -> Result<(), Failure> {
    let mut object = String::from("{");
    for (name, value) in captured {
        if object.len() > 1 {
            object.push(',');
        }
        object.push_str(&serde_json::Value::from(name.as_str()).to_string());
        object.push(':');
        object.push_str(value);
    }
    object.push('}');
    let Values::Text(values) = &mut column.values else {
        return Err(Failure::Wrong("the column for unknown fields is no VARCHAR".to_owned()));
    };
    values.push(&object).map_err(|_| Failure::Full)?;
    column.value_added();
    Ok(())
}

/// Reads the objects of an array as rows. Their failures are told apart from the parser's through `failure`.
struct ArrayOfRows<'r, 'd, 's> {
    rows: &'r mut Rows<'d>,
    record: &'r SourceRecord<'s>,
    headers: &'r Headers,
    before: usize,
    failure: &'r mut Option<Failure>,
}

impl<'de> Visitor<'de> for ArrayOfRows<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        while let Some(object) = array.next_element::<&'de RawValue>()? {
            let mut parser = serde_json::Deserializer::from_str(object.get());
            let read = self
                .rows
                .read_row_of(self.record, self.headers, self.before, &mut parser);
            if let Err(failure) = read {
                *self.failure = Some(failure);
                return Err(serde::de::Error::custom(""));
            }
        }
        Ok(())
    }
}
