//! Constants in definitions: what stands behind `DEFAULT`.

use super::ColumnType;
use crate::value::{Fault, date, decimal, integer, is_number, timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A constant, as it was written. Numbers keep their digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Literal {
    /// `true` or `false`.
    Boolean(bool),
    /// A number.
    Number(String),
    /// Text; days and times are text as well.
    Text(String),
}

impl Literal {
    /// Whether it is a value of `data_type`.
    ///
    /// # Errors
    /// When it is not; the text says why.
    pub fn check(&self, data_type: &ColumnType) -> Result<(), String> {
        use ColumnType as T;
        let read = match (self, data_type) {
            (_, T::Struct(_) | T::Array(_) | T::Map(_)) => {
                return Err(format!("a column of type {data_type} has no default but NULL"));
            }
            (Literal::Boolean(_), T::Boolean) | (Literal::Text(_), T::Text) => Ok(()),
            (Literal::Number(text), T::Float32 | T::Float64) => float(text, data_type),
            (Literal::Number(text), T::Decimal { precision, scale }) => decimal(text, *precision, *scale).map(|_| ()),
            (Literal::Text(text), T::Date) => date(text).map(|_| ()),
            (Literal::Text(text), T::Timestamp) => timestamp(text).map(|_| ()),
            (Literal::Number(text), other) => match other.whole_range() {
                Some(range) => whole(text, range),
                None => return Err(format!("the default {self} is no {data_type}")),
            },
            _ => return Err(format!("the default {self} is no {data_type}")),
        };
        read.map_err(|fault| format!("the default {self} is no {data_type}: {fault}"))
    }
}

fn whole(text: &str, (least, most): (i128, i128)) -> Result<(), Fault> {
    match (least..=most).contains(&integer(text)?) {
        true => Ok(()),
        false => Err(Fault::OutOfRange),
    }
}

fn float(text: &str, data_type: &ColumnType) -> Result<(), Fault> {
    let finite = match data_type {
        ColumnType::Float32 => text.parse().is_ok_and(f32::is_finite),
        _ => text.parse().is_ok_and(f64::is_finite),
    };
    match (is_number(text), finite) {
        (false, _) => Err(Fault::NotANumber),
        (true, false) => Err(Fault::OutOfRange),
        (true, true) => Ok(()),
    }
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Literal::Boolean(value) => write!(f, "{value}"),
            Literal::Number(text) => f.write_str(text),
            Literal::Text(text) => write!(f, "'{}'", text.replace('\'', "''")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_must_be_a_value_of_its_type() {
        use ColumnType as T;
        let number = |text: &str| Literal::Number(text.to_owned());
        let text = |text: &str| Literal::Text(text.to_owned());
        let decimal = T::Decimal { precision: 5, scale: 2 };
        for (literal, data_type) in [
            (number("-128"), T::Int8),
            (number("3.0"), T::UInt64),
            (number("1e-5"), T::Float32),
            (number("12.34"), decimal.clone()),
            (Literal::Boolean(true), T::Boolean),
            (text("it's"), T::Text),
            (text("2026-01-31"), T::Date),
            (text("2026-01-31T08:00:00Z"), T::Timestamp),
        ] {
            assert_eq!(literal.check(&data_type), Ok(()), "{literal}");
        }
        for (literal, data_type, says) in [
            (
                number("128"),
                T::Int8,
                "the default 128 is no TINYINT: it is out of range",
            ),
            (number("-1"), T::UInt8, "out of range"),
            (
                number("1.5"),
                T::Int64,
                "the default 1.5 is no BIGINT: it has a fraction",
            ),
            (
                number("1e39"),
                T::Float32,
                "the default 1e39 is no REAL: it is out of range",
            ),
            (number("1.234"), decimal, "too many digits behind the point"),
            (text("1"), T::Int64, "the default '1' is no BIGINT"),
            (number("1"), T::Text, "the default 1 is no VARCHAR"),
            (
                text("it's"),
                T::Date,
                "the default 'it''s' is no DATE: a date is written YYYY-MM-DD",
            ),
            (number("1"), T::Timestamp, "the default 1 is no TIMESTAMP"),
            (number("1"), T::Array(Box::new(T::Int64)), "no default but NULL"),
        ] {
            let said = literal.check(&data_type).unwrap_err();
            assert!(said.contains(says), "{said}");
        }
    }
}
