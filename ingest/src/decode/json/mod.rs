//! JSON records to columns, by the table's schema and the pipe's options.
//!
//! A record is read once, straight into the columns. If it fails anywhere, the columns are cut back to where they
//! were before it, and it becomes a reject that names the field, what was expected and what was found. What each
//! type takes is written down in `docs/json.md`; how single values are read is in `tidemill_core::value`.

mod column;
mod fields;
mod object;
mod reading;
mod rows;
mod scalar;
#[cfg(test)]
mod tests;

use super::rejects::reject_batch;
use super::{Decoded, SourceRecord};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use fields::{Fields, Slot};
use rows::{Read, Rows};
use tidemill_core::catalog::Table;
use tidemill_core::format::JsonFormat;
use tidemill_storage::schema::arrow_schema;

/// Decodes JSON records into the columns of one table.
#[derive(Debug)]
pub struct JsonDecoder {
    fields: Fields,
    format: JsonFormat,
    /// Columns that are not filled from the payload.
    outer: Outer,
    schema: SchemaRef,
    topic: String,
    limits: Limits,
}

/// Columns that are filled from elsewhere, by their places.
#[derive(Debug, Default)]
struct Outer {
    captured: Option<usize>,
    key: Option<usize>,
    /// With the names of the headers.
    headers: Vec<(String, usize)>,
}

/// How much goes into one batch.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// The bytes that one column of texts can hold.
    text: usize,
    /// The rows that one record may become.
    rows_of_record: usize,
    /// A batch ends at the record that brings it to so many rows,
    rows: usize,
    /// or that has brought it so many bytes.
    bytes: usize,
}

const LIMITS: Limits = Limits {
    text: i32::MAX as usize,
    rows_of_record: 1 << 20,
    rows: 1 << 20,
    bytes: 1 << 30,
};

impl JsonDecoder {
    /// A decoder for records of `topic` into `table`, which `format` must fit (`JsonFormat::check`); what does not
    /// fit is left out.
    pub fn new(table: &Table, format: &JsonFormat, topic: &str) -> Self {
        let slot = |column: &tidemill_core::schema::Column| {
            Slot::new(&column.data_type, column.nullable, column.default.clone())
        };
        let columns = table.columns.iter();
        let mut fields = Fields::new(columns.map(|column| (column.name.as_str(), slot(column))));
        let place = |name: &str| table.columns.iter().position(|column| column.name == name);
        let outer = Outer {
            captured: format.captures_into().and_then(place),
            key: format.key_column.as_deref().and_then(place),
            headers: format
                .headers
                .iter()
                .filter_map(|(header, column)| Some((header.clone(), place(column)?)))
                .collect(),
        };
        let from_headers = outer.headers.iter().map(|(_, column)| *column);
        for column in outer.captured.into_iter().chain(outer.key).chain(from_headers) {
            fields.hide(&table.columns[column].name);
        }
        Self {
            fields,
            format: format.clone(),
            outer,
            schema: arrow_schema(table),
            topic: topic.to_owned(),
            limits: LIMITS,
        }
    }

    /// Decodes `records`, a run of one partition in offset order.
    ///
    /// # Errors
    /// When they do not fit one batch ([`JsonDecoder::decode_some`] takes as many as do), or when columns cannot be
    /// put together, which is a bug. Bad records are rejects, not errors.
    pub fn decode(&self, partition: i32, records: &[SourceRecord<'_>]) -> Result<Decoded, ArrowError> {
        match self.decode_some(partition, records)? {
            (decoded, taken) if taken == records.len() => Ok(decoded),
            (_, taken) => Err(ArrowError::InvalidArgumentError(format!(
                "only {taken} of {} records fit into one batch",
                records.len()
            ))),
        }
    }

    /// Decodes as many of `records` as fit into one batch, from the first on: almost always all, and always one at
    /// least. Says how many that are.
    ///
    /// # Errors
    /// When columns cannot be put together, which is a bug.
    pub fn decode_some(&self, partition: i32, records: &[SourceRecord<'_>]) -> Result<(Decoded, usize), ArrowError> {
        let mut rows = Rows::new(self, records.len());
        let mut bad: Vec<(SourceRecord<'_>, String)> = Vec::new();
        let (mut stored, mut filtered) = (0, 0);
        let (mut taken, mut bytes) = (0, 0);
        for record in records {
            if taken > 0 && (bytes >= self.limits.bytes || rows.count() >= self.limits.rows) {
                break;
            }
            match rows.read(record) {
                Read::Stored => stored += 1,
                Read::Filtered => filtered += 1,
                Read::Rejected(why) => bad.push((*record, why)),
                Read::Full if rows.count() > 0 => break,
                Read::Full => bad.push((*record, "its texts are too long for one column: 2 GiB".to_owned())),
            }
            taken += 1;
            let length = |part: Option<usize>| part.unwrap_or_default();
            bytes += length(record.payload.map(<[u8]>::len))
                + length(record.key.map(<[u8]>::len))
                + length(record.headers.map(str::len));
        }
        let decoded = Decoded {
            rows: rows.finish(partition)?,
            rejects: match bad.is_empty() {
                true => None,
                false => Some(reject_batch(&self.topic, partition, &bad)?),
            },
            stored,
            filtered,
        };
        Ok((decoded, taken))
    }
}
