//! One Parquet file: how the rows of a part are encoded, and what is said of them.
//!
//! LZ4 pages, dictionaries except where every value differs, statistics per page and row group.
//! The ranges for the catalog come from the statistics that the Parquet writer made anyway.

use super::order::Selection;
use super::ranges::{MAX_BOUND, first_leaf, holds_nan, ranges};
use super::sources::{self, SOURCES, Tally};
use super::{PartError, WrittenPart, path_of};
use arrow::array::RecordBatch;
use arrow::compute::interleave_record_batch;
use arrow::datatypes::{DataType, SchemaRef};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding};
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use tidemill_core::catalog::PartFile;
use tidemill_core::schema::OFFSET;
use tidemill_core::{Epoch, PartId, SchemaVersion, ShardId};
use xxhash_rust::xxh3::xxh3_64;

/// Rows of a row group: enough for good compression, few enough to be skipped usefully.
const ROW_GROUP: usize = 128 * 1024;
/// Rows that are gathered at once: their columns still fit the cache when they are encoded.
const GATHER: usize = 16 * 1024;

/// What a file is called and what it says of itself.
pub(super) struct FileOf<'a> {
    pub shard: ShardId,
    pub epoch: Epoch,
    pub id: PartId,
    pub suffix: &'static str,
    pub schema: &'a SchemaRef,
    pub schema_version: Option<SchemaVersion>,
    pub sorted_by: &'a [usize],
    pub partition_value: Option<String>,
    pub ranged: &'a [String],
}

/// Encodes the selected rows of `batches`.
pub(super) fn encode(
    of: FileOf<'_>,
    batches: &[&RecordBatch],
    selection: &Selection,
) -> Result<WrittenPart, PartError> {
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, of.schema.clone(), Some(properties(&of)))?;
    let mut with_nan = vec![false; of.schema.fields().len()];
    let mut sources = Tally::default();
    let mut write = |batch: &RecordBatch| -> Result<(), PartError> {
        sources.count(batch);
        for (column, found) in batch.columns().iter().zip(&mut with_nan) {
            *found = *found || holds_nan(column);
        }
        Ok(writer.write(batch)?)
    };
    match selection {
        Selection::AsGiven => batches.iter().try_for_each(|batch| write(batch))?,
        Selection::Rows(rows) => {
            let places = places(batches);
            let mut chosen = Vec::with_capacity(GATHER);
            for rows in rows.chunks(GATHER) {
                chosen.clear();
                chosen.extend(rows.iter().map(|&row| places[row as usize]));
                write(&interleave_record_batch(batches, &chosen)?)?;
            }
        }
    }
    let sources = sources.finish();
    writer.append_key_value_metadata(KeyValue::new(SOURCES.to_owned(), sources::to_text(&sources)));
    let metadata = writer.close()?;
    let bytes = Bytes::from(bytes);
    let file = PartFile {
        id: of.id,
        path: path_of(of.shard, of.epoch, of.id, of.suffix),
        // Not negative: the writer counted them.
        rows: metadata.file_metadata().num_rows().unsigned_abs(),
        bytes: bytes.len() as u64,
        checksum: xxh3_64(&bytes),
        ranges: ranges(of.schema, &metadata, &with_nan, of.ranged),
        partition_value: of.partition_value,
    };
    Ok(WrittenPart { file, bytes, sources })
}

/// For each row, counted through all batches, its batch and its number there.
fn places(batches: &[&RecordBatch]) -> Vec<(usize, usize)> {
    let mut places = Vec::with_capacity(batches.iter().map(|batch| batch.num_rows()).sum());
    for (i, batch) in batches.iter().enumerate() {
        places.extend((0..batch.num_rows()).map(|row| (i, row)));
    }
    places
}

fn properties(of: &FileOf<'_>) -> WriterProperties {
    let sorting = |&column: &usize| SortingColumn {
        column_idx: first_leaf(of.schema, column) as i32,
        descending: false,
        nulls_first: false,
    };
    let mut about = vec![
        KeyValue::new("tidemill.table".to_owned(), of.shard.table.to_string()),
        KeyValue::new("tidemill.shard".to_owned(), of.shard.index.to_string()),
        KeyValue::new("tidemill.epoch".to_owned(), of.epoch.to_string()),
    ];
    about.extend(
        of.schema_version
            .map(|version| KeyValue::new("tidemill.schema_version".to_owned(), version.to_string())),
    );
    let mut properties = WriterProperties::builder()
        .set_created_by(concat!("tidemill ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::LZ4_RAW)
        .set_dictionary_enabled(true)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_statistics_truncate_length(Some(MAX_BOUND))
        .set_max_row_group_row_count(Some(ROW_GROUP))
        .set_sorting_columns((!of.sorted_by.is_empty()).then(|| of.sorted_by.iter().map(sorting).collect()))
        .set_key_value_metadata(Some(about));
    // Offsets never repeat within a partition, and times hardly: a dictionary would only cost, while
    // the differences between neighbours are small.
    for field in of.schema.fields() {
        let steady = match field.data_type() {
            DataType::Timestamp(..) => true,
            DataType::Int64 => [OFFSET, "offset"].contains(&field.name().as_str()),
            _ => false,
        };
        if steady {
            let column = ColumnPath::new(vec![field.name().clone()]);
            properties = properties
                .set_column_dictionary_enabled(column.clone(), false)
                .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
        }
    }
    properties.build()
}
