//! What the footer of a part says of where its rows come from.
//!
//! Counted from the rows as they are written, not from what the writer was told: the ledger is checked against it,
//! when a part is committed and again whenever somebody asks (`tidemill check`).

use super::PartError;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int32Type;
use bytes::Bytes;
use parquet::file::metadata::ParquetMetaDataReader;
use std::collections::BTreeMap;

/// The footer's key.
pub(super) const SOURCES: &str = "tidemill.sources";

/// How many rows of a part come from one source partition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceRows {
    /// The topic.
    pub topic: String,
    /// Its partition.
    pub partition: u32,
    /// How many rows, or rejected records.
    pub rows: u64,
}

/// Counts rows by source.
#[derive(Default)]
pub(super) struct Tally(BTreeMap<String, BTreeMap<i32, u64>>);

impl Tally {
    /// Counts `batch`, by the columns that say where its rows come from; one without them counts for nothing.
    pub fn count(&mut self, batch: &RecordBatch) {
        let column = |names: [&str; 2]| names.iter().find_map(|name| batch.column_by_name(name));
        let topics = column(["_topic", "topic"]).and_then(|c| c.as_string_opt::<i32>());
        let partitions = column(["_partition", "partition"]).and_then(|c| c.as_primitive_opt::<Int32Type>());
        let (Some(topics), Some(partitions)) = (topics, partitions) else {
            return;
        };
        let mut row = 0;
        while row < topics.len() {
            // Most batches are of one topic, and its partitions come in runs.
            let (topic, partition) = (topics.value(row), partitions.value(row));
            let run =
                (row..topics.len()).take_while(|i| partitions.value(*i) == partition && topics.value(*i) == topic);
            let length = run.count();
            let of_topic = match self.0.get_mut(topic) {
                Some(known) => known,
                None => self.0.entry(topic.to_owned()).or_default(),
            };
            *of_topic.entry(partition).or_default() += length as u64;
            row += length;
        }
    }

    pub fn finish(self) -> Vec<SourceRows> {
        let mut all = Vec::new();
        for (topic, partitions) in self.0 {
            let of_topic = partitions.into_iter().map(|(partition, rows)| SourceRows {
                topic: topic.clone(),
                // Not negative: sources number their partitions from 0.
                partition: partition.unsigned_abs(),
                rows,
            });
            all.extend(of_topic);
        }
        all
    }
}

/// A line for each source: partition, rows and topic, with blanks between; a topic has none.
pub(super) fn to_text(sources: &[SourceRows]) -> String {
    let line = |s: &SourceRows| format!("{} {} {}", s.partition, s.rows, s.topic);
    sources.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn of_text(text: &str) -> Option<Vec<SourceRows>> {
    let line = |line: &str| {
        let mut words = line.splitn(3, ' ');
        Some(SourceRows {
            partition: words.next()?.parse().ok()?,
            rows: words.next()?.parse().ok()?,
            topic: words.next()?.to_owned(),
        })
    };
    text.lines().map(line).collect()
}

/// The rows that the Parquet footer of a part counts, in all and by source.
///
/// # Errors
/// When the bytes are no part that this version wrote.
pub fn read_sources(bytes: &Bytes) -> Result<(u64, Vec<SourceRows>), PartError> {
    let metadata = ParquetMetaDataReader::new().parse_and_finish(bytes)?;
    let file = metadata.file_metadata();
    let pairs = file.key_value_metadata().map(Vec::as_slice).unwrap_or_default();
    let text = pairs
        .iter()
        .find(|pair| pair.key == SOURCES)
        .and_then(|pair| pair.value.as_deref());
    let sources = text.and_then(of_text).ok_or_else(|| {
        PartError::Definition("the footer of the part does not say where its rows come from".to_owned())
    })?;
    Ok((file.num_rows().unsigned_abs(), sources))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let of = |topic: &str, partition, rows| SourceRows {
            topic: topic.to_owned(),
            partition,
            rows,
        };
        let sources = vec![of("a.b-c_d", 0, 5), of("a.b-c_d", 7, 1), of("x", 1, 9)];
        assert_eq!(of_text(&to_text(&sources)), Some(sources));
        assert_eq!(of_text(""), Some(vec![]));
        assert_eq!(of_text("1 x"), None);
    }
}
