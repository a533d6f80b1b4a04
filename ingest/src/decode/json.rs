//! JSON objects to columns, by the table's schema: one object for each record.
//!
//! A run is decoded at once. Only if something in it is wrong is it halved, and the halves tried
//! again, until each bad record stands alone: K bad ones among N cost about K log N decodes of short
//! runs, and a run without bad ones costs nothing extra.

use super::SourceRecord;
use super::rejects::reject_batch;
use arrow::array::{
    ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray,
};
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder;
use std::sync::Arc;
use tidemill_core::catalog::Table;
use tidemill_storage::schema::{arrow_schema, declared_schema};

/// Decodes JSON objects into the columns of one table.
#[derive(Debug)]
pub struct JsonDecoder {
    declared: SchemaRef,
    full: SchemaRef,
    topic: String,
}

/// What a run of records became: rows and rejects, each in offset order.
#[derive(Debug, Default)]
pub struct Decoded {
    /// Columns of the table with the metadata columns; `None` when there is no row.
    pub rows: Option<RecordBatch>,
    /// Columns of a reject part; `None` when there is no reject.
    pub rejects: Option<RecordBatch>,
}

impl Decoded {
    /// How many rows.
    pub fn stored(&self) -> u64 {
        self.rows.as_ref().map_or(0, |b| b.num_rows() as u64)
    }

    /// How many rejects.
    pub fn rejected(&self) -> u64 {
        self.rejects.as_ref().map_or(0, |b| b.num_rows() as u64)
    }
}

impl JsonDecoder {
    /// A decoder for records of `topic` into `table`.
    pub fn new(table: &Table, topic: &str) -> Self {
        Self {
            declared: declared_schema(table),
            full: arrow_schema(table),
            topic: topic.to_owned(),
        }
    }

    /// Decodes `records`, a run of one partition in offset order.
    ///
    /// An error means that columns could not be put together at all, which is a bug: bad records are
    /// rejects, not errors.
    pub fn decode(&self, partition: i32, records: &[SourceRecord<'_>]) -> Result<Decoded, ArrowError> {
        let mut good = Vec::new();
        let mut batches = Vec::new();
        let mut bad = Vec::new();
        self.split(records, &mut batches, &mut good, &mut bad);
        let rows = match batches.len() {
            0 => None,
            _ => Some(self.with_metadata(partition, concat_batches(&self.declared, &batches)?, &good)?),
        };
        let rejects = match bad.len() {
            0 => None,
            _ => Some(reject_batch(&self.topic, partition, &bad)?),
        };
        Ok(Decoded { rows, rejects })
    }

    fn split<'r>(
        &self,
        records: &[SourceRecord<'r>],
        batches: &mut Vec<RecordBatch>,
        good: &mut Vec<SourceRecord<'r>>,
        bad: &mut Vec<(SourceRecord<'r>, String)>,
    ) {
        if records.is_empty() {
            return;
        }
        match self.decode_all(records) {
            Ok(batch) => {
                batches.push(batch);
                good.extend_from_slice(records);
            }
            Err(why) if records.len() == 1 => bad.push((records[0], why)),
            Err(_) => {
                let (left, right) = records.split_at(records.len() / 2);
                self.split(left, batches, good, bad);
                self.split(right, batches, good, bad);
            }
        }
    }

    /// All of `records` as one batch, or why not.
    fn decode_all(&self, records: &[SourceRecord<'_>]) -> Result<RecordBatch, String> {
        let text = |e: ArrowError| match e {
            ArrowError::JsonError(why) => why,
            other => other.to_string(),
        };
        // Room for one more than there may be, so that a second object in a record is seen and not left over.
        let mut decoder = ReaderBuilder::new(self.declared.clone())
            .with_batch_size(records.len() + 1)
            .build_decoder()
            .map_err(text)?;
        for (i, record) in records.iter().enumerate() {
            let payload = record.payload.ok_or("the record has no payload (a tombstone)")?;
            // The decoder takes text without checking it first; what is not UTF-8 must not reach it.
            let text_payload = std::str::from_utf8(payload).map_err(|e| format!("the payload is not UTF-8: {e}"))?;
            let taken = decoder.decode(payload).map_err(text)?;
            // One record is one object: a cut one must not be completed by the next record.
            match (
                decoder.len() - i,
                decoder.has_partial_record() || taken != payload.len(),
            ) {
                (1, false) => {}
                (0, false) if text_payload.trim().is_empty() => return Err("the payload is empty".into()),
                (0 | 1, true) => return Err("the payload ends in the middle of a JSON value".into()),
                _ => return Err("the payload holds more than one JSON value".into()),
            }
        }
        let batch = decoder.flush().map_err(text)?.ok_or("the payload is empty")?;
        if batch.num_rows() != records.len() {
            return Err(format!("{} records gave {} rows", records.len(), batch.num_rows()));
        }
        Ok(batch)
    }

    fn with_metadata(
        &self,
        partition: i32,
        rows: RecordBatch,
        records: &[SourceRecord<'_>],
    ) -> Result<RecordBatch, ArrowError> {
        let mut keys = StringBuilder::new();
        for record in records {
            keys.append_option(record.key.map(String::from_utf8_lossy));
        }
        let times = records.iter().map(|r| r.timestamp_ms.map(|ms| ms.saturating_mul(1000)));
        let mut columns = rows.columns().to_vec();
        let metadata: [ArrayRef; 5] = [
            Arc::new(StringArray::from_iter_values(records.iter().map(|_| &self.topic))),
            Arc::new(Int32Array::from_iter_values(records.iter().map(|_| partition))),
            Arc::new(Int64Array::from_iter_values(records.iter().map(|r| r.offset))),
            Arc::new(TimestampMicrosecondArray::from_iter(times)),
            Arc::new(keys.finish()),
        ];
        columns.extend(metadata);
        RecordBatch::try_new(self.full.clone(), columns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::AsArray;
    use arrow::datatypes::Int64Type;
    use tidemill_core::catalog::FlushPolicy;
    use tidemill_core::schema::{Column, ColumnType};
    use tidemill_core::{SchemaVersion, TableId};

    fn decoder() -> JsonDecoder {
        let column = |name: &str, data_type, nullable| Column {
            name: name.into(),
            data_type,
            nullable,
        };
        let table = Table {
            id: TableId(1),
            name: "t".into(),
            columns: vec![
                column("id", ColumnType::Int64, false),
                column("name", ColumnType::Text, true),
            ],
            schema_version: SchemaVersion(1),
            min_schema: SchemaVersion(1),
            order_by: vec![],
            partition_by: None,
            shards: 1,
            flush: FlushPolicy::default(),
            created_at_ms: 0,
        };
        JsonDecoder::new(&table, "topic")
    }

    fn run<'r>(payloads: &[Option<&'r [u8]>]) -> Vec<SourceRecord<'r>> {
        let record = |(i, payload): (usize, &Option<&'r [u8]>)| SourceRecord {
            offset: 100 + i as i64,
            timestamp_ms: Some(5),
            key: None,
            payload: *payload,
            headers: None,
        };
        payloads.iter().enumerate().map(record).collect()
    }

    fn offsets(batch: &Option<RecordBatch>, column: &str) -> Vec<i64> {
        batch.as_ref().map_or(vec![], |b| {
            b.column_by_name(column)
                .unwrap()
                .as_primitive::<Int64Type>()
                .values()
                .to_vec()
        })
    }

    #[test]
    fn every_record_is_a_row_or_a_reject() {
        let payloads: Vec<Option<&[u8]>> = vec![
            Some(br#"{"id":1,"name":"a"}"#),
            Some(br#"{"id":"x"}"#),                // wrong type
            Some(br#"{"id":2,"unknown":[1,{}]}"#), // unknown field: ignored
            None,                                  // tombstone
            Some(br#"{"name":"no id"}"#),          // missing and not nullable
            Some(b""),
            Some(b"  "),
            Some(br#"{"id":3}{"id":4}"#), // two objects
            Some(br#"{"id":5,"#),         // cut
            Some(br#""name":"b"}"#),      // would complete the one before
            Some(b"null"),
            Some(b"[1]"),
            Some(b"\xff\xfe"),
            Some(b"{\"id\":7,\"name\":\"\xff\"}"),
            Some(b" {\"id\": 6 }\n"),
        ];
        let decoded = decoder().decode(3, &run(&payloads)).unwrap();
        assert_eq!(offsets(&decoded.rows, "_offset"), [100, 102, 114]);
        assert_eq!(offsets(&decoded.rows, "id"), [1, 2, 6]);
        assert_eq!(
            offsets(&decoded.rejects, "offset"),
            [101, 103, 104, 105, 106, 107, 108, 109, 110, 111, 112, 113]
        );
        assert_eq!(decoded.stored() + decoded.rejected(), payloads.len() as u64);
    }

    #[test]
    fn a_reject_says_why_and_keeps_the_bytes() {
        let decoded = decoder().decode(0, &run(&[Some(br#"{"id":"x"}"#)])).unwrap();
        let rejects = decoded.rejects.unwrap();
        let why = rejects
            .column_by_name("error")
            .unwrap()
            .as_string::<i32>()
            .value(0)
            .to_owned();
        assert!(why.contains("id"), "{why}");
        assert_eq!(
            rejects.column_by_name("payload").unwrap().as_binary::<i32>().value(0),
            br#"{"id":"x"}"#
        );
    }

    #[test]
    fn a_long_run_of_bad_records_is_rejected_whole() {
        let bad: Vec<Option<&[u8]>> = vec![Some(b"{broken"); 5000];
        let decoded = decoder().decode(0, &run(&bad)).unwrap();
        assert_eq!((decoded.stored(), decoded.rejected()), (0, 5000));
    }
}
