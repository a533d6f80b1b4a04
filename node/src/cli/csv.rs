//! Rows as CSV (RFC 4180, line feeds), batch by batch. NULL is an empty field and the empty text is
//! `""`, as PostgreSQL writes them; lists and structs, which CSV does not know, are written as text.

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// The line of column names.
pub fn header(schema: &Schema) -> Vec<u8> {
    let mut out = String::new();
    for (at, field) in schema.fields().iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        push_field(&mut out, field.name());
    }
    out.push('\n');
    out.into_bytes()
}

/// The lines of a batch.
pub fn lines(batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let options = FormatOptions::default();
    let mut columns = Vec::with_capacity(batch.num_columns());
    for array in batch.columns() {
        columns.push((
            ArrayFormatter::try_new(array.as_ref(), &options)?,
            array.logical_nulls(),
        ));
    }
    let (mut out, mut value) = (String::new(), String::new());
    for row in 0..batch.num_rows() {
        for (at, (format, nulls)) in columns.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            if nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
                continue;
            }
            value.clear();
            format.value(row).write(&mut value)?;
            push_field(&mut out, &value);
        }
        out.push('\n');
    }
    Ok(out.into_bytes())
}

fn push_field(out: &mut String, value: &str) {
    let special = |c| matches!(c, ',' | '"' | '\n' | '\r');
    if !value.is_empty() && !value.contains(special) && value.trim() == value {
        out.push_str(value);
        return;
    }
    out.push('"');
    out.push_str(&value.replace('"', "\"\""));
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, ListArray, StringArray};
    use arrow::datatypes::{DataType, Field, Int64Type};
    use std::sync::Arc;

    #[test]
    fn values_are_quoted_when_needed() {
        let list = ListArray::from_iter_primitive::<Int64Type, _, _>([Some([Some(1), None]), None, None, None]);
        let schema = Schema::new(vec![
            Field::new("id", DataType::Int64, true),
            Field::new("a \"name\", quoted", DataType::Utf8, true),
            Field::new("list", list.data_type().clone(), true),
        ]);
        let names = StringArray::from(vec![Some("plain"), Some(""), None, Some("a,\"b\"\nc")]);
        let ids = Int64Array::from(vec![Some(1), Some(2), None, Some(4)]);
        let batch =
            RecordBatch::try_new(Arc::new(schema), vec![Arc::new(ids), Arc::new(names), Arc::new(list)]).unwrap();
        assert_eq!(header(&batch.schema()), b"id,\"a \"\"name\"\", quoted\",list\n");
        let text = String::from_utf8(lines(&batch).unwrap()).unwrap();
        assert_eq!(text, "1,plain,\"[1, ]\"\n2,\"\",\n,,\n4,\"a,\"\"b\"\"\nc\",\n");
    }
}
