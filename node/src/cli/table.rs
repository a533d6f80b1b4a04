//! Tables for people: columns aligned as the terminal shows them, numbers to the right. Pure; holds
//! all its rows, so it is for results that somebody reads. Nothing in a cell can move the cursor:
//! control characters are shown as escapes.

use super::width;
use arrow::array::{Array, RecordBatch};
use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use std::fmt::Write as _;
use std::io::{self, Write};

/// How NULL looks, unlike any ordinary text.
pub const NULL: &str = "ᴺᵁᴸᴸ";
/// A cell shows no more characters than this.
const LONGEST_CELL: usize = 1000;

/// Rows of texts under headers.
#[derive(Debug, Default)]
pub struct Table {
    columns: Vec<Column>,
    rows: usize,
}

#[derive(Debug)]
struct Column {
    header: String,
    to_the_right: bool,
    width: usize,
    cells: Vec<String>,
}

impl Table {
    /// A table without rows. A header that begins with `>` stands over a column of numbers.
    pub fn new(headers: &[&str]) -> Self {
        let column = |header: &&str| match header.strip_prefix('>') {
            Some(header) => Column::new(header, true),
            None => Column::new(header, false),
        };
        Self {
            columns: headers.iter().map(column).collect(),
            rows: 0,
        }
    }

    /// A table without rows for results of this schema.
    pub fn for_schema(schema: &Schema) -> Self {
        let column = |field: &arrow::datatypes::FieldRef| Column::new(field.name(), field.data_type().is_numeric());
        Self {
            columns: schema.fields().iter().map(column).collect(),
            rows: 0,
        }
    }

    /// Adds a row; there must be as many cells as headers.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        assert_eq!(N, self.columns.len(), "cells and headers");
        for (column, cell) in self.columns.iter_mut().zip(cells) {
            column.add(&cell);
        }
        self.rows += 1;
    }

    /// Adds the rows of a batch, as many as fit under `limit` rows in all.
    pub fn batch(&mut self, batch: &RecordBatch, limit: usize) -> Result<(), ArrowError> {
        let rows = batch.num_rows().min(limit.saturating_sub(self.rows));
        let options = FormatOptions::default();
        let mut text = String::new();
        for (column, array) in self.columns.iter_mut().zip(batch.columns()) {
            let format = ArrayFormatter::try_new(array.as_ref(), &options)?;
            let nulls = array.logical_nulls();
            for row in 0..rows {
                if nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
                    column.add(NULL);
                    continue;
                }
                text.clear();
                format.value(row).write(&mut text)?;
                column.add(&text);
            }
        }
        self.rows += rows;
        Ok(())
    }

    /// Writes the headers, a line and the rows.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        self.line(out, |column| &column.header)?;
        let rules: Vec<String> = self.columns.iter().map(|column| "-".repeat(column.width + 2)).collect();
        writeln!(out, "{}", rules.join("+"))?;
        for row in 0..self.rows {
            self.line(out, |column| &column.cells[row])?;
        }
        Ok(())
    }

    fn line<'a>(&'a self, out: &mut impl Write, cell: impl Fn(&'a Column) -> &'a str) -> io::Result<()> {
        let mut line = String::new();
        for (at, column) in self.columns.iter().enumerate() {
            let cell = cell(column);
            let pad = " ".repeat(column.width - width::of(cell));
            let separator = if at == 0 { " " } else { " | " };
            // Writing to a string cannot fail.
            let _ = if column.to_the_right {
                write!(line, "{separator}{pad}{cell}")
            } else {
                write!(line, "{separator}{cell}{pad}")
            };
        }
        writeln!(out, "{}", line.trim_end())
    }
}

impl Column {
    fn new(header: &str, to_the_right: bool) -> Self {
        let header = shown(header);
        Self {
            width: width::of(&header),
            header,
            to_the_right,
            cells: Vec::new(),
        }
    }

    fn add(&mut self, cell: &str) {
        let cell = shown(cell);
        self.width = self.width.max(width::of(&cell));
        self.cells.push(cell);
    }
}

/// One line, without control characters, not endless.
fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(LONGEST_CELL));
    for (count, c) in text.chars().enumerate() {
        if count == LONGEST_CELL {
            shown.push('…');
            break;
        }
        // U+2028… and the marks that turn the direction of writing are not "control" to Unicode.
        if c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, NullArray, StringArray};
    use arrow::datatypes::{DataType, Field};
    use std::sync::Arc;

    fn written(table: &Table) -> String {
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn batch() -> RecordBatch {
        let schema = Schema::new(vec![
            Field::new("id", DataType::Int64, true),
            Field::new("name", DataType::Utf8, true),
            Field::new("none", DataType::Null, true),
        ]);
        RecordBatch::try_new(
            Arc::new(schema),
            vec![
                Arc::new(Int64Array::from(vec![Some(1), None, Some(-300)])),
                Arc::new(StringArray::from(vec![Some("名前"), Some(""), None])),
                Arc::new(NullArray::new(3)),
            ],
        )
        .unwrap()
    }

    #[test]
    fn columns_are_aligned_and_null_is_not_empty() {
        let mut table = Table::for_schema(&batch().schema());
        table.batch(&batch(), 100).unwrap();
        let expected = concat!(
            "   id | name | none\n",
            "------+------+------\n",
            "    1 | 名前 | ᴺᵁᴸᴸ\n",
            " ᴺᵁᴸᴸ |      | ᴺᵁᴸᴸ\n",
            " -300 | ᴺᵁᴸᴸ | ᴺᵁᴸᴸ\n",
        );
        assert_eq!(written(&table), expected);
    }

    #[test]
    fn rows_over_the_limit_are_left_out() {
        let mut table = Table::for_schema(&batch().schema());
        table.batch(&batch(), 5).unwrap();
        table.batch(&batch(), 5).unwrap();
        table.batch(&batch(), 5).unwrap();
        assert_eq!((table.rows, written(&table).lines().count()), (5, 7));
    }

    #[test]
    fn nothing_moves_the_cursor() {
        let mut table = Table::new(&["a", ">b"]);
        table.row(["x\x1b[2J\ny".to_owned(), "7".to_owned()]);
        let expected = concat!(
            " a             | b\n",
            "---------------+---\n",
            " x\\u{1b}[2J\\ny | 7\n"
        );
        assert_eq!(written(&table), expected);
        table.row(["y".repeat(5000), "\u{202e}".to_owned()]);
        let text = written(&table);
        assert!(text.contains("y… |") && text.contains("\\u{202e}"), "{text}");
    }
}
