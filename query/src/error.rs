//! The one error of this crate: a text for people, the place in the statement that it is about, and
//! what kind of failure it is, so that clients know whether to try again.

use crate::ports::CatalogError;
use datafusion::sql::sqlparser::tokenizer::Span as SqlSpan;
use std::fmt;
use tidemill_core::Refusal;
use tidemill_core::view::ViewError;

/// Why a statement has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryError {
    /// For people; complete without the place.
    pub message: String,
    /// The words of the statement that it is about, where known.
    pub place: Option<Place>,
    /// What kind of failure it is.
    pub kind: ErrorKind,
}

/// A place in a statement's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Line, from 1.
    pub line: u32,
    /// Column within the line in characters, from 1.
    pub column: u32,
    /// How many characters; 0 at the end of the text.
    pub length: u32,
}

/// What kind of failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The statement cannot work as it stands.
    Invalid,
    /// Not at the moment; trying again is safe.
    Unavailable,
    /// A change may or may not have been made.
    Unknown,
    /// A fault of the system.
    Internal,
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for QueryError {}

impl QueryError {
    fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            place: None,
            kind,
        }
    }

    /// The statement cannot work as it stands.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// Not at the moment.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    /// A fault of the system.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// The same, about `place`.
    #[must_use]
    pub fn at(mut self, place: impl Into<Option<Place>>) -> Self {
        self.place = place.into();
        self
    }
}

impl Place {
    /// The place of a span of the SQL tokenizer; none when it has no location.
    pub(crate) fn of_span(span: SqlSpan) -> Option<Place> {
        if span.start.line == 0 {
            return None;
        }
        let length = match span.end.line == span.start.line {
            true => span.end.column.saturating_sub(span.start.column),
            false => 1,
        };
        Some(Place {
            line: span.start.line as u32,
            column: span.start.column as u32,
            length: length as u32,
        })
    }
}

impl From<CatalogError> for QueryError {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Unavailable(reason) => Self::unavailable(format!(
                "the catalog cannot be reached at the moment: {reason}; try again"
            )),
            CatalogError::Unknown(reason) => Self::new(
                ErrorKind::Unknown,
                format!(
                    "the answer was lost, so the change may or may not have been made: {reason}; look before trying again"
                ),
            ),
            CatalogError::Fatal(reason) => Self::internal(reason),
        }
    }
}

impl From<ViewError> for QueryError {
    fn from(error: ViewError) -> Self {
        Self::internal(error.to_string())
    }
}

impl From<Refusal> for QueryError {
    fn from(refusal: Refusal) -> Self {
        Self::invalid(refusal.to_string())
    }
}
