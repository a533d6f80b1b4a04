//! Parts: what goes in comes out, sorted, split and described rightly.

use super::*;
use crate::schema::{arrow_schema, reject_schema};
use arrow::array::*;
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Int64Type, SchemaRef};
use parquet::file::reader::{FileReader, SerializedFileReader};
use std::sync::Arc;
use tidemill_core::catalog::{Scalar, Table, TableSettings};
use tidemill_core::schema::{Column, ColumnType, PartitionBy, TimeUnit};
use tidemill_core::{PipeId, SchemaVersion, TableId};

const SHARD: ShardId = ShardId {
    table: TableId(4),
    index: 2,
};

pub(crate) fn table(columns: &[(&str, ColumnType)]) -> Table {
    let column = |(name, data_type): &(&str, ColumnType)| Column {
        name: (*name).to_owned(),
        data_type: data_type.clone(),
        nullable: true,
        default: None,
    };
    Table {
        id: SHARD.table,
        name: "t".to_owned(),
        columns: columns.iter().map(column).collect(),
        schema_version: SchemaVersion(1),
        min_schema: SchemaVersion(1),
        order_by: Vec::new(),
        partition_by: None,
        shards: 4,
        settings: TableSettings::default(),
        deleted: vec![],
        former: vec![],
        created_at_ms: 0,
    }
}

pub(crate) fn table_of_all_types() -> Table {
    use ColumnType as T;
    table(&[
        ("bool", T::Boolean),
        ("i8", T::Int8),
        ("i16", T::Int16),
        ("i32", T::Int32),
        ("i64", T::Int64),
        ("u8", T::UInt8),
        ("u16", T::UInt16),
        ("u32", T::UInt32),
        ("u64", T::UInt64),
        ("f32", T::Float32),
        ("f64", T::Float64),
        (
            "dec",
            T::Decimal {
                precision: 20,
                scale: 3,
            },
        ),
        ("text", T::Text),
        ("date", T::Date),
        ("ts", T::Timestamp),
    ])
}

/// `columns` as declared, then metadata columns: one partition, offsets from `first`.
fn batch(table: &Table, columns: Vec<ArrayRef>, partition: i32, first: i64) -> RecordBatch {
    let rows = columns[0].len();
    let offsets: Vec<i64> = (first..first + rows as i64).collect();
    let mut all = columns;
    all.push(Arc::new(StringArray::from(vec!["topic"; rows])));
    all.push(Arc::new(Int32Array::from(vec![partition; rows])));
    all.push(Arc::new(TimestampMicrosecondArray::from(vec![None; rows])));
    all.insert(all.len() - 1, Arc::new(Int64Array::from(offsets)));
    all.push(Arc::new(StringArray::from(vec![None::<&str>; rows])));
    RecordBatch::try_new(arrow_schema(table), all).unwrap()
}

fn write(table: &Table, rows: &[RecordBatch]) -> Vec<WrittenPart> {
    let mut id = 0;
    let mut new_id = || {
        id += 1;
        PartId(id)
    };
    write_parts(table, SHARD, Epoch(9), rows, &mut new_id).unwrap()
}

fn read(part: &WrittenPart, schema: SchemaRef) -> RecordBatch {
    concat_batches(&schema, &read_part(part.bytes.clone(), &part.file).unwrap()).unwrap()
}

fn range(part: &WrittenPart, column: &str) -> (Option<Scalar>, Option<Scalar>, u64) {
    let range = part.file.ranges.iter().find(|r| r.column == column).unwrap().clone();
    (range.min, range.max, range.nulls)
}

fn ints(min: i64, max: i64, nulls: u64) -> (Option<Scalar>, Option<Scalar>, u64) {
    (Some(Scalar::Int(min)), Some(Scalar::Int(max)), nulls)
}

fn longs(values: Vec<Option<i64>>) -> ArrayRef {
    Arc::new(Int64Array::from(values))
}

#[test]
fn all_types_come_back_as_they_went() {
    let table = table_of_all_types();
    let numbers = Int64Array::from(vec![Some(1), None, Some(0), Some(100)]);
    let columns = arrow_schema(&table).fields()[..table.columns.len()]
        .iter()
        .map(|field| match field.data_type() {
            DataType::Date32 => cast(&cast(&numbers, &DataType::Int32).unwrap(), &DataType::Date32).unwrap(),
            other => cast(&numbers, other).unwrap(),
        })
        .collect();
    let rows = batch(&table, columns, 3, 10);
    let parts = write(&table, std::slice::from_ref(&rows));
    assert_eq!(parts.len(), 1);
    assert_eq!(parts[0].file.path, "4/2/9/00000000000000000000000000000001.parquet");
    assert_eq!(
        (parts[0].file.rows, parts[0].file.partition_value.as_deref()),
        (4, None)
    );
    assert_eq!(read(&parts[0], arrow_schema(&table)), rows);
    for column in ["i8", "i16", "i32", "i64", "date", "ts"] {
        assert_eq!(range(&parts[0], column), ints(0, 100, 1), "{column}");
    }
    for column in ["u8", "u16", "u32", "u64"] {
        assert_eq!(range(&parts[0], column).1, Some(Scalar::UInt(100)), "{column}");
    }
    assert_eq!(range(&parts[0], "f32").1, Some(Scalar::Float(100.0)));
    assert_eq!(range(&parts[0], "_offset"), ints(10, 13, 0));
    assert_eq!(range(&parts[0], "_partition"), ints(3, 3, 0));
    assert_eq!(range(&parts[0], "_timestamp"), (None, None, 4));
}

#[test]
fn large_unsigned_numbers_keep_their_order() {
    let table = table(&[("u32", ColumnType::UInt32), ("u64", ColumnType::UInt64)]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from(vec![1, u32::MAX])),
        Arc::new(UInt64Array::from(vec![u64::MAX, 1])),
    ];
    let parts = write(&table, &[batch(&table, columns, 0, 0)]);
    assert_eq!(range(&parts[0], "u32").1, Some(Scalar::UInt(u64::from(u32::MAX))));
    assert_eq!(
        range(&parts[0], "u64"),
        (Some(Scalar::UInt(1)), Some(Scalar::UInt(u64::MAX)), 0)
    );
}

#[test]
fn no_rows_are_no_part() {
    let table = table(&[("a", ColumnType::Int64)]);
    assert!(write(&table, &[]).is_empty());
    assert!(write(&table, &[RecordBatch::new_empty(arrow_schema(&table))]).is_empty());
}

#[test]
fn rows_are_sorted_with_nulls_last_and_ties_by_source() {
    let mut table = table(&[("a", ColumnType::Int64), ("s", ColumnType::Text)]);
    table.order_by = vec!["a".to_owned(), "s".to_owned()];
    let text = |values: Vec<Option<&str>>| -> ArrayRef { Arc::new(StringArray::from(values)) };
    let rows = [
        // Not in the order of partitions, so ties must be broken by looking.
        batch(
            &table,
            vec![
                longs(vec![Some(2), None, Some(2)]),
                text(vec![Some("b"), Some("a"), None]),
            ],
            1,
            0,
        ),
        batch(
            &table,
            vec![
                longs(vec![Some(2), Some(-1), Some(2)]),
                text(vec![Some("b"), None, Some("a")]),
            ],
            0,
            7,
        ),
    ];
    let parts = write(&table, &rows);
    let sorted = read(&parts[0], arrow_schema(&table));
    let source: Vec<_> = (0..6)
        .map(|i| {
            let partition = sorted.column(3).as_primitive::<arrow::datatypes::Int32Type>().value(i);
            (partition, sorted.column(4).as_primitive::<Int64Type>().value(i))
        })
        .collect();
    assert_eq!(source, [(0, 8), (0, 9), (0, 7), (1, 0), (1, 2), (1, 1)]);
    let file = SerializedFileReader::new(parts[0].bytes.clone()).unwrap();
    let by: Vec<_> = file
        .metadata()
        .row_group(0)
        .sorting_columns()
        .unwrap()
        .iter()
        .map(|s| s.column_idx)
        .collect();
    assert_eq!(by, [0, 1, 3, 4]);
    let about = file.metadata().file_metadata().key_value_metadata().unwrap();
    let value = |key: &str| about.iter().find(|kv| kv.key == key).unwrap().value.clone().unwrap();
    assert_eq!(
        (
            value("tidemill.table"),
            value("tidemill.shard"),
            value("tidemill.epoch")
        ),
        ("4".into(), "2".into(), "9".into())
    );
}

#[test]
fn random_rows_sort_like_a_simple_sort() {
    let mut table = table(&[("s", ColumnType::Text), ("a", ColumnType::Int64)]);
    table.order_by = vec!["s".to_owned(), "a".to_owned()];
    let mut state = 5_u64;
    let mut random = |below: u64| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    let mut expected = Vec::new();
    let mut rows = Vec::new();
    for partition in 0..3 {
        for chunk in 0..20 {
            let n = 1 + random(3_000);
            // Long common beginnings, so that the head of the key does not decide.
            let texts: Vec<String> = (0..n)
                .map(|_| format!("{}{}", "x".repeat(random(40) as usize), random(9)))
                .collect();
            let numbers: Vec<Option<i64>> = (0..n).map(|_| random(5).checked_sub(1).map(|v| v as i64 - 2)).collect();
            for (i, (t, a)) in texts.iter().zip(&numbers).enumerate() {
                expected.push((t.clone(), a.is_none(), *a, partition, chunk * 10_000 + i as i64));
            }
            let columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from(texts)), longs(numbers)];
            rows.push(batch(&table, columns, partition, chunk * 10_000));
        }
    }
    expected.sort();
    let parts = write(&table, &rows);
    let sorted = read(&parts[0], arrow_schema(&table));
    let (texts, numbers) = (
        sorted.column(0).as_string::<i32>(),
        sorted.column(1).as_primitive::<Int64Type>(),
    );
    let offsets = sorted.column(4).as_primitive::<Int64Type>();
    assert_eq!(sorted.num_rows(), expected.len());
    for (i, row) in expected.iter().enumerate() {
        let found = (
            texts.value(i),
            numbers.is_valid(i).then(|| numbers.value(i)),
            offsets.value(i),
        );
        assert_eq!(found, (row.0.as_str(), row.2, row.4), "row {i}");
    }
}

#[test]
fn rows_are_split_by_the_partition_expression() {
    let mut table = table(&[("ts", ColumnType::Timestamp), ("a", ColumnType::Int64)]);
    table.order_by = vec!["a".to_owned()];
    let hour = 3_600_000_000_i64;
    let times = vec![
        Some(0),
        Some(25 * hour),
        None,
        Some(-1),
        Some(hour),
        Some(31 * 24 * hour),
    ];
    let columns: Vec<ArrayRef> = vec![
        Arc::new(TimestampMicrosecondArray::from(times)),
        longs((0..6).rev().map(Some).collect()),
    ];
    let rows = batch(&table, columns, 0, 0);
    for (unit, expected) in [
        (
            TimeUnit::Hour,
            vec![
                ("1969-12-31T23", 1),
                ("1970-01-01T00", 1),
                ("1970-01-01T01", 1),
                ("1970-01-02T01", 1),
                ("1970-02-01T00", 1),
                ("null", 1),
            ],
        ),
        (
            TimeUnit::Day,
            vec![
                ("1969-12-31", 1),
                ("1970-01-01", 2),
                ("1970-01-02", 1),
                ("1970-02-01", 1),
                ("null", 1),
            ],
        ),
        (
            TimeUnit::Month,
            vec![("1969-12", 1), ("1970-01", 3), ("1970-02", 1), ("null", 1)],
        ),
        (TimeUnit::Year, vec![("1969", 1), ("1970", 4), ("null", 1)]),
    ] {
        table.partition_by = Some(PartitionBy::Truncated {
            unit,
            column: "ts".to_owned(),
        });
        let parts = write(&table, std::slice::from_ref(&rows));
        let found: Vec<_> = parts
            .iter()
            .map(|p| (p.file.partition_value.as_deref().unwrap(), p.file.rows))
            .collect();
        assert_eq!(found, expected);
        for part in &parts {
            let sorted = read(part, arrow_schema(&table));
            assert!(sorted.column(1).as_primitive::<Int64Type>().values().is_sorted());
        }
    }
    table.partition_by = Some(PartitionBy::Truncated {
        unit: TimeUnit::Day,
        column: "a".to_owned(),
    });
    let refused = write_parts(&table, SHARD, Epoch(1), &[rows], &mut || PartId(1));
    assert!(matches!(refused, Err(PartError::Definition(_))));
}

#[test]
fn rows_are_split_by_a_column() {
    let mut table = table(&[("s", ColumnType::Text)]);
    table.partition_by = Some(PartitionBy::Column("s".to_owned()));
    let long = "ü".repeat(200);
    let texts: ArrayRef = Arc::new(StringArray::from(vec![
        Some("b"),
        Some("a"),
        None,
        Some("b"),
        Some(long.as_str()),
    ]));
    let parts = write(
        &table,
        &[
            batch(&table, vec![texts.clone()], 0, 0),
            batch(&table, vec![texts], 0, 5),
        ],
    );
    let found: Vec<_> = parts
        .iter()
        .map(|p| (p.file.partition_value.clone().unwrap(), p.file.rows))
        .collect();
    let expected = [
        ("a".to_owned(), 2),
        ("b".to_owned(), 4),
        (format!("{}…", "ü".repeat(128)), 2),
        ("null".to_owned(), 2),
    ];
    assert_eq!(found, expected);
    assert_eq!(
        range(&parts[1], "s"),
        (Some(Scalar::Text("b".into())), Some(Scalar::Text("b".into())), 0)
    );
    assert_eq!(range(&parts[2], "s"), (None, None, 0), "long texts have no bounds");
    assert_eq!(range(&parts[3], "s"), (None, None, 2));
    assert_eq!(range(&parts[1], "_offset"), ints(0, 8, 0));
}

#[test]
fn ranges_hold_over_row_groups_and_leave_out_nan() {
    let mut table = table(&[
        ("a", ColumnType::Int64),
        ("f", ColumnType::Float64),
        ("g", ColumnType::Float64),
    ]);
    table.order_by = vec!["a".to_owned()];
    let n = 300_000_i64;
    let floats = |nan_at: Option<i64>| -> ArrayRef {
        let value = |i: i64| if Some(i) == nan_at { f64::NAN } else { i as f64 / 2.0 };
        Arc::new(Float64Array::from_iter_values((0..n).map(value)))
    };
    let numbers = longs((0..n).map(|i| (i % 1000 != 0).then_some((i * 7919) % n)).collect());
    let parts = write(
        &table,
        &[batch(&table, vec![numbers, floats(Some(5)), floats(None)], 0, 0)],
    );
    let file = SerializedFileReader::new(parts[0].bytes.clone()).unwrap();
    assert_eq!(file.num_row_groups(), 3);
    assert_eq!(range(&parts[0], "a"), ints(1, n - 1, 300));
    assert_eq!(range(&parts[0], "f"), (None, None, 0));
    let half = (n - 1) as f64 / 2.0;
    assert_eq!(
        range(&parts[0], "g"),
        (Some(Scalar::Float(0.0)), Some(Scalar::Float(half)), 0)
    );
    assert_eq!(range(&parts[0], "_offset"), ints(0, n - 1, 0));
}

#[test]
fn ranges_are_kept_of_few_columns() {
    let columns: Vec<(String, ColumnType)> = (0..60).map(|i| (format!("c{i}"), ColumnType::Int64)).collect();
    let mut table = table(&columns.iter().map(|(n, t)| (n.as_str(), t.clone())).collect::<Vec<_>>());
    table.order_by = vec!["c59".to_owned()];
    let parts = write(&table, &[batch(&table, vec![longs(vec![Some(1)]); 60], 0, 0)]);
    assert_eq!(parts[0].file.ranges.len(), 32);
    assert_eq!(range(&parts[0], "c59"), ints(1, 1, 0));
}

#[test]
fn other_schemas_and_unknown_columns_are_refused() {
    let mut here = table(&[("a", ColumnType::Int64)]);
    let there = table(&[("a", ColumnType::Int32)]);
    let rows = batch(&there, vec![Arc::new(Int32Array::from(vec![1]))], 0, 0);
    let refused = write_parts(&here, SHARD, Epoch(1), &[rows], &mut || PartId(1));
    assert!(matches!(refused, Err(PartError::Schema(_))));
    let rows = batch(&here, vec![longs(vec![Some(1)])], 0, 0);
    here.order_by = vec!["missing".to_owned()];
    let refused = write_parts(&here, SHARD, Epoch(1), &[rows], &mut || PartId(1));
    assert!(matches!(refused, Err(PartError::Definition(_))));
}

#[test]
fn rejects_come_back_as_they_went() {
    let rows = RecordBatch::try_new(
        reject_schema(),
        vec![
            Arc::new(StringArray::from(vec!["t", "t"])),
            Arc::new(Int32Array::from(vec![0, 1])),
            Arc::new(Int64Array::from(vec![5, 3])),
            Arc::new(TimestampMicrosecondArray::from(vec![None, Some(1)])),
            Arc::new(BinaryArray::from_opt_vec(vec![None, Some(b"\xff")])),
            Arc::new(StringArray::from(vec![None, Some("{}")])),
            Arc::new(BinaryArray::from_opt_vec(vec![Some(b"{"), None])),
            Arc::new(StringArray::from(vec!["no", "no"])),
        ],
    )
    .unwrap();
    let batches = [rows.slice(0, 1), rows.slice(1, 1)];
    let part = write_rejects(PipeId(1), SHARD, Epoch(9), &batches, &mut || PartId(255)).unwrap();
    assert_eq!(part.file.path, "4/2/9/000000000000000000000000000000ff.rejects.parquet");
    assert_eq!(read(&part, reject_schema()), rows);
    assert_eq!(range(&part, "offset"), ints(3, 5, 0));
}

#[test]
fn damage_is_detected() {
    let table = table(&[("a", ColumnType::Int64)]);
    let part = write(
        &table,
        &[batch(&table, vec![longs((0..100).map(Some).collect())], 0, 0)],
    )
    .remove(0);
    let what = |bytes: Bytes, file: &PartFile| match read_part(bytes, file) {
        Err(PartError::Damaged { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(what(part.bytes.slice(1..), &part.file), "length");
    for at in [4, part.bytes.len() / 2, part.bytes.len() - 5] {
        let mut flipped = part.bytes.to_vec();
        flipped[at] ^= 1;
        assert_eq!(what(flipped.into(), &part.file), "checksum");
    }
    let miscounted = PartFile {
        rows: 99,
        ..part.file.clone()
    };
    assert_eq!(what(part.bytes.clone(), &miscounted), "rows");
    assert!(read_part(part.bytes, &part.file).is_ok());
}
