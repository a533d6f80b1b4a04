//! Writes the rows of one answer in the chosen format. CSV and JSON go out batch by batch, whatever
//! their number; a table is collected first and therefore cut at [`TABLE_ROWS`].

use super::csv;
use super::table::Table;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::json::WriterBuilder;
use arrow::json::writer::LineDelimited;
use std::io::{self, Write};
use std::time::Duration;

/// A table shows no more rows than this.
pub const TABLE_ROWS: usize = 100_000;

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns, for people
    Table,
    /// CSV with a header
    Csv,
    /// One JSON object per line
    Json,
}

/// The rows of one answer on their way out.
pub struct Output {
    format: Format,
    schema: SchemaRef,
    table: Table,
    rows: usize,
    cut: bool,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// How many rows.
    pub rows: usize,
    /// Whether there were more.
    pub cut: bool,
}

impl Output {
    /// Begins an answer; CSV writes its header at once.
    pub fn begin(format: Format, schema: SchemaRef, out: &mut impl Write) -> io::Result<Self> {
        if format == Format::Csv {
            out.write_all(&csv::header(&schema))?;
        }
        let table = Table::for_schema(&schema);
        Ok(Self {
            format,
            schema,
            table,
            rows: 0,
            cut: false,
        })
    }

    /// Takes a batch. Returns false when more rows are not wanted.
    pub fn batch(&mut self, batch: &RecordBatch, out: &mut impl Write) -> io::Result<bool> {
        self.rows += batch.num_rows();
        match self.format {
            Format::Csv => out.write_all(&csv::lines(batch).map_err(io_error)?)?,
            Format::Json => {
                let mut writer = WriterBuilder::new()
                    .with_explicit_nulls(true)
                    .build::<_, LineDelimited>(&mut *out);
                writer.write(batch).map_err(io_error)?;
            }
            Format::Table => {
                self.table.batch(batch, TABLE_ROWS).map_err(io_error)?;
                self.cut = self.rows > TABLE_ROWS;
                return Ok(!self.cut);
            }
        }
        out.flush()?;
        Ok(true)
    }

    /// Ends the answer; a table is written now.
    pub fn end(self, out: &mut impl Write) -> io::Result<Written> {
        if self.format == Format::Table && !self.schema.fields().is_empty() {
            self.table.write(out)?;
        }
        out.flush()?;
        Ok(Written {
            rows: self.rows.min(if self.cut { TABLE_ROWS } else { usize::MAX }),
            cut: self.cut,
        })
    }
}

/// The line under an answer.
pub fn footer(written: Option<Written>, took: Option<Duration>) -> Option<String> {
    let rows = written.map(|written| match written {
        Written { rows, cut: true } => format!("the first {rows} rows; use the format csv or json for all"),
        Written { rows: 1, .. } => "1 row".to_owned(),
        Written { rows, .. } => format!("{rows} rows"),
    });
    let took = took.map(|took| match took.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        seconds => format!("{seconds:.2} s"),
    });
    match (rows, took) {
        (None, None) => None,
        (Some(rows), Some(took)) => Some(format!("({rows}, {took})")),
        (Some(one), None) | (None, Some(one)) => Some(format!("({one})")),
    }
}

/// Keeps an I/O error what it is: a closed pipe must be recognised.
fn io_error(error: ArrowError) -> io::Error {
    match error {
        ArrowError::IoError(_, error) => error,
        error => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};
    use std::sync::Arc;

    fn batch(rows: usize) -> RecordBatch {
        let schema = Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("name", DataType::Utf8, true),
        ]);
        let ids: Int64Array = (0..rows as i64).collect();
        let names: StringArray = (0..rows).map(|row| (row % 2 == 0).then_some("x\"y")).collect();
        RecordBatch::try_new(Arc::new(schema), vec![Arc::new(ids), Arc::new(names)]).unwrap()
    }

    fn written(format: Format, batches: &[RecordBatch]) -> (String, Written) {
        let mut out = Vec::new();
        let mut output = Output::begin(format, batch(0).schema(), &mut out).unwrap();
        for batch in batches {
            if !output.batch(batch, &mut out).unwrap() {
                break;
            }
        }
        let written = output.end(&mut out).unwrap();
        (String::from_utf8(out).unwrap(), written)
    }

    #[test]
    fn csv_has_a_header_even_without_rows() {
        assert_eq!(written(Format::Csv, &[]).0, "id,name\n");
        assert_eq!(
            written(Format::Csv, &[batch(1), batch(2)]).0,
            "id,name\n0,\"x\"\"y\"\n0,\"x\"\"y\"\n1,\n"
        );
    }

    #[test]
    fn json_is_one_object_per_line_with_nulls() {
        assert_eq!(written(Format::Json, &[]).0, "");
        let expected = "{\"id\":0,\"name\":\"x\\\"y\"}\n{\"id\":1,\"name\":null}\n";
        assert_eq!(written(Format::Json, &[batch(2)]).0, expected);
        assert_eq!(written(Format::Json, &[batch(2), batch(2)]).0, expected.repeat(2));
    }

    #[test]
    fn nested_values_are_objects_and_arrays_in_json() {
        let structs = r#"{"u":{"name":"a","at":"2026-01-31T08:00:00"},"l":[1,null],"m":{"k":1.5}}"#;
        let field = |name: &str, data_type| Field::new(name, data_type, true);
        let entries = [
            Field::new("key", DataType::Utf8, false),
            field("value", DataType::Decimal128(5, 2)),
        ];
        let entries = Field::new("entries", DataType::Struct(entries.into_iter().collect()), false);
        let micros = DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, None);
        let schema = Arc::new(Schema::new(vec![
            field(
                "u",
                DataType::Struct(
                    [field("name", DataType::Utf8), field("at", micros)]
                        .into_iter()
                        .collect(),
                ),
            ),
            field(
                "l",
                DataType::List(Arc::new(Field::new_list_field(DataType::Int64, true))),
            ),
            field("m", DataType::Map(Arc::new(entries), false)),
        ]));
        let mut decoder = arrow::json::ReaderBuilder::new(schema.clone()).build_decoder().unwrap();
        decoder.decode(structs.as_bytes()).unwrap();
        decoder.decode(b"{}").unwrap();
        let batch = decoder.flush().unwrap().unwrap();
        let write = |format| {
            let mut out = Vec::new();
            let mut output = Output::begin(format, schema.clone(), &mut out).unwrap();
            output.batch(&batch, &mut out).unwrap();
            output.end(&mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let expected = format!(
            "{}\n{{\"u\":null,\"l\":null,\"m\":null}}\n",
            structs.replace("1.5", "1.50")
        );
        assert_eq!(write(Format::Json), expected);
        assert_eq!(
            write(Format::Csv),
            "u,l,m\n\"{name: a, at: 2026-01-31T08:00:00}\",\"[1, ]\",{k: 1.50}\n,,\n"
        );
        assert!(write(Format::Table).contains("{name: a, at: 2026-01-31T08:00:00} | [1, ]"));
    }

    #[test]
    fn long_tables_are_cut_and_say_so() {
        let half = batch(TABLE_ROWS / 2 + 1);
        let (text, written) = written(Format::Table, &[half.clone(), half.clone(), half]);
        assert_eq!(
            written,
            Written {
                rows: TABLE_ROWS,
                cut: true
            }
        );
        assert_eq!(text.lines().count(), TABLE_ROWS + 2);
        assert!(footer(Some(written), None).unwrap().contains("the first 100000 rows"));
    }

    #[test]
    fn footers() {
        let rows = |rows| Some(Written { rows, cut: false });
        assert_eq!(footer(None, None), None);
        assert_eq!(footer(rows(1), None).unwrap(), "(1 row)");
        assert_eq!(
            footer(rows(0), Some(Duration::from_micros(12_340))).unwrap(),
            "(0 rows, 12.3 ms)"
        );
        assert_eq!(footer(None, Some(Duration::from_millis(2_500))).unwrap(), "(2.50 s)");
    }
}
