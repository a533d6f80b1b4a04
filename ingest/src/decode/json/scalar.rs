//! Single values: from the text of a JSON value, of a header or of a key into a column.

use super::column::{Column, Full, Values};
use std::borrow::Cow;
use tidemill_core::schema::Literal;
use tidemill_core::value::{self, Fault};

/// A value that is kept as text may be nested so deep: what reads it again may have a limit, too.
const MAX_DEPTH: usize = 128;

/// Why a value did not become one of its column.
#[derive(Debug)]
pub(super) enum Why {
    /// It is of another type.
    OtherType,
    /// It is of the right form and no value of the type.
    Fault(Fault),
    /// Its text cannot be read.
    Unreadable(String),
    /// It is nested too deep.
    TooDeep,
    /// The column has no more room.
    Full,
}

impl From<Fault> for Why {
    fn from(fault: Fault) -> Self {
        Why::Fault(fault)
    }
}

impl From<Full> for Why {
    fn from(Full: Full) -> Self {
        Why::Full
    }
}

/// Whether numbers are taken from text as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quoted {
    /// No.
    IsText,
    /// Yes.
    MayBeNumber,
}

/// Appends the value that `json` is: the text of one JSON value other than `null`, valid and without blanks around it.
#[inline]
pub(super) fn append_json(column: &mut Column, json: &str, quoted: Quoted) -> Result<(), Why> {
    match json.as_bytes().first() {
        Some(b'"') => append_text(column, &unquoted(json)?, quoted),
        Some(b't' | b'f') => match &mut column.values {
            Values::Boolean(values) => {
                values.append(json == "true");
                column.value_added();
                Ok(())
            }
            _ => append_verbatim(column, json),
        },
        Some(b'{' | b'[') if matches!(column.values, Values::Text(_)) && is_too_deep(json) => Err(Why::TooDeep),
        Some(b'{' | b'[') => append_verbatim(column, json),
        _ => append_number(column, json),
    }
}

/// Appends the constant of a definition; it was checked there.
pub(super) fn append_literal(column: &mut Column, literal: &Literal) -> Result<(), Why> {
    match (literal, &mut column.values) {
        (Literal::Boolean(value), Values::Boolean(values)) => {
            values.append(*value);
            column.value_added();
            Ok(())
        }
        (Literal::Boolean(_), _) => Err(Why::OtherType),
        (Literal::Number(text), _) => append_number(column, text),
        (Literal::Text(text), _) => append_text(column, text, Quoted::IsText),
    }
}

/// JSON as it stands is a text, if the column takes texts.
fn append_verbatim(column: &mut Column, json: &str) -> Result<(), Why> {
    match &mut column.values {
        Values::Text(values) => values.push(json)?,
        _ => return Err(Why::OtherType),
    }
    column.value_added();
    Ok(())
}

/// Appends a number in JSON's grammar.
#[inline]
fn append_number(column: &mut Column, text: &str) -> Result<(), Why> {
    fn whole<T: TryFrom<i128>>(values: &mut Vec<T>, text: &str) -> Result<(), Why> {
        let value = value::integer(text)?;
        values.push(T::try_from(value).map_err(|_| Fault::OutOfRange)?);
        Ok(())
    }
    match &mut column.values {
        Values::Int8(values) => whole(values, text)?,
        Values::Int16(values) => whole(values, text)?,
        Values::Int32(values) => whole(values, text)?,
        Values::Int64(values) => whole(values, text)?,
        Values::UInt8(values) => whole(values, text)?,
        Values::UInt16(values) => whole(values, text)?,
        Values::UInt32(values) => whole(values, text)?,
        Values::UInt64(values) => whole(values, text)?,
        Values::Float32(values) => values.push(float(text, f32::is_finite)?),
        Values::Float64(values) => values.push(float(text, f64::is_finite)?),
        Values::Decimal {
            values,
            precision,
            scale,
        } => values.push(value::decimal(text, *precision, *scale)?),
        Values::Date(values) => values.push(value::day(text)?),
        Values::Timestamp { values, unit } => values.push(value::epoch(text, *unit)?),
        Values::Text(values) => values.push(text)?,
        _ => return Err(Why::OtherType),
    }
    column.value_added();
    Ok(())
}

/// The nearest floating-point number; there is none for a number beyond all of them.
fn float<T: std::str::FromStr + Copy>(text: &str, is_finite: fn(T) -> bool) -> Result<T, Fault> {
    let value: T = text.parse().map_err(|_| Fault::NotANumber)?;
    match is_finite(value) {
        true => Ok(value),
        false => Err(Fault::OutOfRange),
    }
}

/// Appends a text, or what it says if the column takes something else.
#[inline]
pub(super) fn append_text(column: &mut Column, text: &str, quoted: Quoted) -> Result<(), Why> {
    match &mut column.values {
        Values::Text(values) => values.push(text)?,
        Values::Decimal {
            values,
            precision,
            scale,
        } => values.push(value::decimal(text, *precision, *scale)?),
        Values::Timestamp { values, .. } => match value::timestamp(text) {
            Ok(micros) => values.push(micros),
            Err(Fault::NotATime) if quoted == Quoted::MayBeNumber && value::is_number(text) => {
                return append_number(column, text);
            }
            Err(fault) => return Err(fault.into()),
        },
        Values::Date(values) => match value::date(text) {
            Ok(day) => values.push(day),
            Err(Fault::NotADate) if quoted == Quoted::MayBeNumber && value::is_number(text) => {
                return append_number(column, text);
            }
            Err(fault) => return Err(fault.into()),
        },
        Values::Boolean(_) | Values::Struct(_) | Values::List { .. } | Values::Map { .. } => {
            return Err(Why::OtherType);
        }
        _ => {
            return match quoted {
                Quoted::IsText => Err(Why::OtherType),
                Quoted::MayBeNumber if value::is_number(text) => append_number(column, text),
                Quoted::MayBeNumber => Err(Why::Fault(Fault::NotANumber)),
            };
        }
    }
    column.value_added();
    Ok(())
}

/// Appends the text of a header or a key, which has no other way to say a number or a truth value.
pub(super) fn append_outer(column: &mut Column, text: &str) -> Result<(), Why> {
    match (&mut column.values, text) {
        (Values::Boolean(values), "true" | "false") => {
            values.append(text == "true");
            column.value_added();
            Ok(())
        }
        _ => append_text(column, text, Quoted::MayBeNumber),
    }
}

/// The text that stands in quotes in `json`.
#[inline]
fn unquoted(json: &str) -> Result<Cow<'_, str>, Why> {
    let inner = json.get(1..json.len().saturating_sub(1)).unwrap_or_default();
    match inner.as_bytes().contains(&b'\\') {
        false => Ok(Cow::Borrowed(inner)),
        // Escapes that are no characters, such as half of a pair, are found here.
        true => serde_json::from_str(json)
            .map(Cow::Owned)
            .map_err(|error| Why::Unreadable(error.to_string())),
    }
}

/// Whether the object or array `json` is nested deeper than texts may be.
pub(super) fn is_too_deep(json: &str) -> bool {
    let (mut depth, mut in_text, mut escaped) = (0, false, false);
    for byte in json.bytes() {
        if in_text {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_text = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_text = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        if depth > MAX_DEPTH {
            return true;
        }
    }
    false
}
