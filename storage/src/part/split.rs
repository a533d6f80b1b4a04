//! Which rows go into which part: one part per value of the table's partition expression.
//!
//! Neighbouring rows mostly share a value, so the work is done per run of equal values, not per row.
//! Values are compared exactly; their text is for people and may be cut.

use super::PartError;
use super::order::row_number;
use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{SortOptions, partition, take};
use arrow::datatypes::{DataType, Date32Type, TimeUnit as ArrowUnit, TimestampMicrosecondType};
use arrow::row::{RowConverter, SortField};
use arrow::util::display::array_value_to_string;
use std::collections::BTreeMap;
use tidemill_core::schema::{PartitionBy, TimeUnit};

/// The rows of one part.
pub(super) struct Group {
    /// The value that they share, if the table is split.
    pub value: Option<String>,
    /// Their numbers, ascending; `None` is all.
    pub rows: Option<Vec<u32>>,
}

/// Rows from the first number to before the second, ascending.
type Runs = Vec<(u32, u32)>;

const MICROS_PER_DAY: i64 = 86_400_000_000;
const MICROS_PER_HOUR: i64 = 3_600_000_000;
/// Longer texts of partition values are cut here.
const MAX_TEXT: usize = 256;

/// The rows of `batches` by the value of `by`, ascending, nulls last; together if there is none.
pub(super) fn split(batches: &[&RecordBatch], by: Option<&PartitionBy>) -> Result<Vec<Group>, PartError> {
    let Some(by) = by else {
        return Ok(vec![Group {
            value: None,
            rows: None,
        }]);
    };
    let mut groups: BTreeMap<Vec<u8>, (String, Runs)> = BTreeMap::new();
    let mut before = 0;
    let mut converter = None;
    for batch in batches {
        let values = values_of(batch, by)?;
        let runs = partition(std::slice::from_ref(&values))?.ranges();
        let starts = UInt32Array::from_iter_values(runs.iter().map(|run| run.start as u32));
        let firsts = take(&values, &starts, None)?;
        let converter = match &mut converter {
            Some(converter) => converter,
            none => none.insert(RowConverter::new(vec![SortField::new_with_options(
                values.data_type().clone(),
                SortOptions {
                    descending: false,
                    nulls_first: false,
                },
            )])?),
        };
        let keys = converter.convert_columns(std::slice::from_ref(&firsts))?;
        for (i, run) in runs.iter().enumerate() {
            let run = (row_number(before + run.start)?, row_number(before + run.end)?);
            match groups.get_mut(keys.row(i).data()) {
                Some((_, rows)) => rows.push(run),
                None => {
                    groups.insert(keys.row(i).data().to_vec(), (text(&firsts, i, by)?, vec![run]));
                }
            }
        }
        before += batch.num_rows();
    }
    let only = groups.len() == 1;
    let group = |(value, runs): (String, Runs)| Group {
        value: Some(value),
        rows: (!only).then(|| runs.into_iter().flat_map(|(start, end)| start..end).collect()),
    };
    Ok(groups.into_values().map(group).collect())
}

/// What `by` gives for each row: the column itself, or the number of the unit since 1970.
fn values_of(batch: &RecordBatch, by: &PartitionBy) -> Result<ArrayRef, PartError> {
    let column = batch
        .column_by_name(by.column())
        .ok_or_else(|| PartError::Definition(format!("there is no column {:?} to split by", by.column())))?;
    let PartitionBy::Truncated { unit, .. } = by else {
        return Ok(column.clone());
    };
    let numbers: Int64Array = match (column.data_type(), unit) {
        (DataType::Date32, unit) => {
            let days = column.as_primitive::<Date32Type>();
            days.unary(|day| number_of_day(i64::from(day), *unit))
        }
        (DataType::Timestamp(ArrowUnit::Microsecond, _), TimeUnit::Hour) => column
            .as_primitive::<TimestampMicrosecondType>()
            .unary(|t| t.div_euclid(MICROS_PER_HOUR)),
        (DataType::Timestamp(ArrowUnit::Microsecond, _), unit) => column
            .as_primitive::<TimestampMicrosecondType>()
            .unary(|t| number_of_day(t.div_euclid(MICROS_PER_DAY), *unit)),
        (other, _) => {
            return Err(PartError::Definition(format!(
                "column {:?} of type {other} cannot be truncated",
                by.column()
            )));
        }
    };
    Ok(std::sync::Arc::new(numbers))
}

/// In which unit since 1970 `day` lies.
fn number_of_day(day: i64, unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Hour => day * 24,
        TimeUnit::Day => day,
        TimeUnit::Month => {
            let (year, month, _) = civil(day);
            (year - 1970) * 12 + i64::from(month) - 1
        }
        TimeUnit::Year => civil(day).0 - 1970,
    }
}

/// The text of a value: `null`; `2026-03-31T09`, `2026-03-31`, `2026-03`, `2026`; or the column's own.
fn text(values: &ArrayRef, row: usize, by: &PartitionBy) -> Result<String, PartError> {
    if values.is_null(row) {
        return Ok("null".to_owned());
    }
    let PartitionBy::Truncated { unit, .. } = by else {
        let mut text = array_value_to_string(values, row)?;
        if text.len() > MAX_TEXT {
            text.truncate(text.floor_char_boundary(MAX_TEXT));
            text.push('…');
        }
        return Ok(text);
    };
    let number = values.as_primitive::<arrow::datatypes::Int64Type>().value(row);
    let day = |day: i64| {
        let (year, month, day) = civil(day);
        format!("{year:04}-{month:02}-{day:02}")
    };
    Ok(match unit {
        TimeUnit::Hour => format!("{}T{:02}", day(number.div_euclid(24)), number.rem_euclid(24)),
        TimeUnit::Day => day(number),
        TimeUnit::Month => format!("{:04}-{:02}", 1970 + number.div_euclid(12), number.rem_euclid(12) + 1),
        TimeUnit::Year => format!("{:04}", 1970 + number),
    })
}

/// Year, month and day of the day numbered from 1970-01-01, in the proleptic Gregorian calendar.
/// Howard Hinnant's `civil_from_days`, <https://howardhinnant.github.io/date_algorithms.html>.
fn civil(day: i64) -> (i64, u32, u32) {
    let z = day + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * shifted + 2) / 5 + 1) as u32;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 } as u32;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_their_dates() {
        for (day, date) in [
            (0, (1970, 1, 1)),
            (-1, (1969, 12, 31)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (-25_508, (1900, 3, 1)),
            (20_543, (2026, 3, 31)),
        ] {
            assert_eq!(civil(day), date);
        }
        assert_eq!(number_of_day(-1, TimeUnit::Month), -1);
        assert_eq!(number_of_day(-1, TimeUnit::Year), -1);
    }
}
