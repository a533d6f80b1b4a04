//! Values from text, exactly: how numbers, days and times are read, wherever the text comes from: fields of
//! records, headers, keys, defaults of columns.
//!
//! No number passes through floating point on its way to a whole number, a decimal or a time. Nothing is
//! rounded, with one exception: what is finer than a microsecond is dropped from a time.

mod number;
mod time;

pub use number::{decimal, integer, is_number};
pub use time::{date, day, epoch, timestamp};

use thiserror::Error;

/// Why a text is no value of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// It is not a number as JSON writes them.
    #[error("it is no number")]
    NotANumber,
    /// It is not whole.
    #[error("it has a fraction")]
    Fraction,
    /// The type ends before it.
    #[error("it is out of range")]
    OutOfRange,
    /// A decimal is too large.
    #[error("it has too many digits before the point")]
    TooLong,
    /// A decimal is too fine.
    #[error("it has too many digits behind the point")]
    TooFine,
    /// It is not a day.
    #[error("a date is written YYYY-MM-DD")]
    NotADate,
    /// It is not a time.
    #[error("a time is written as in RFC 3339, such as 2026-01-31T08:00:00.25Z")]
    NotATime,
    /// It is before the year 1 or after the year 9999.
    #[error("it is outside of the years 1 to 9999")]
    OutsideYears,
}
