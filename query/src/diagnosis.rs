//! DataFusion's errors in the words of this project: what is wrong, where in the text, and what was
//! probably meant.
//!
//! A place comes from the error's own diagnostics where it has some, from "at Line" of the parser,
//! or from looking for the quoted name in the text. An error without a place is still complete.

use crate::error::{ErrorKind, Place, QueryError};
use crate::nearest::{did_you_mean, nearest};
use crate::statement::words::{Words, lower_first};
use datafusion::common::{Column, DataFusionError, SchemaError};
use datafusion::execution::session_state::SessionState;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::Token;
use std::error::Error;

/// The words that may follow where a query cannot go on.
const CLAUSES: &[&str] = &[
    "FROM",
    "WHERE",
    "GROUP",
    "ORDER",
    "HAVING",
    "LIMIT",
    "OFFSET",
    "JOIN",
    "LEFT",
    "RIGHT",
    "INNER",
    "CROSS",
    "UNION",
    "EXCEPT",
    "INTERSECT",
    "SELECT",
    "DISTINCT",
    "BY",
    "ON",
    "AND",
    "AS",
    "BETWEEN",
    "VALUES",
    "WINDOW",
    "ANALYZE",
];

/// Explains an error that arose from the statement in `words`, with the functions of `state`.
pub(crate) fn explain(error: DataFusionError, words: &Words, state: Option<&SessionState>) -> QueryError {
    // Of several errors, the first is shown: correcting it often corrects the others.
    let first = error.iter().next().unwrap_or(&error);
    let root = first.find_root();
    let span = first.diagnostic().and_then(|d| d.span).and_then(|span| {
        let index = words.index_at(span.start.line, span.start.column)?;
        Some(words.place_at(index))
    });
    match root {
        DataFusionError::SQL(parser, _) => syntax(parser, words),
        DataFusionError::SchemaError(schema, _) => column(schema, span, words),
        _ => {
            let explained = match (root, state) {
                (DataFusionError::Plan(text), Some(state)) => function(text, state),
                _ => None,
            };
            let explained = explained.unwrap_or_else(|| QueryError::from_datafusion(first));
            let place = span.or_else(|| quoted(&explained.message).find_map(|name| words.place_of(name)));
            explained.at(place)
        }
    }
}

fn syntax(error: &ParserError, words: &Words) -> QueryError {
    let message = match error {
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => message.as_str(),
        ParserError::RecursionLimitExceeded => "the statement is nested too deeply",
    };
    let (text, location) = match message.rsplit_once(" at Line: ") {
        Some((text, location)) => (text, location.split_once(", Column: ")),
        None => (message, None),
    };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let location = location.and_then(|(line, column)| Some((number(line)?, number(column)?)));
    let index = location.and_then(|(line, column)| words.index_at(line, column));
    let text = lower_first(&text.replace("Expected: ", "expected ").replace("found: ", "found "));
    let Some(index) = index else {
        let text = text.replace("found EOF", "but the statement ends here");
        return QueryError::invalid(text).at(words.end());
    };
    // A misspelt clause is often read as an alias, so that the error comes one word late.
    let candidates = [Some(index), index.checked_sub(1), index.checked_sub(2)];
    for candidate in candidates.into_iter().flatten() {
        if let Some((word, meant)) = misspelt_clause(words, candidate) {
            let message = format!("'{word}' is not expected here; did you mean {meant}?");
            return QueryError::invalid(message).at(words.place_at(candidate));
        }
    }
    QueryError::invalid(text).at(words.place_at(index))
}

fn misspelt_clause(words: &Words, index: usize) -> Option<(String, &'static str)> {
    match &words.tokens().get(index)?.token {
        Token::Word(word) if word.quote_style.is_none() => {
            let known = CLAUSES.iter().any(|clause| clause.eq_ignore_ascii_case(&word.value));
            let meant = nearest(&word.value, CLAUSES.iter().copied()).filter(|_| !known && word.value.len() > 2)?;
            Some((word.value.clone(), meant))
        }
        _ => None,
    }
}

fn column(error: &SchemaError, span: Option<Place>, words: &Words) -> QueryError {
    let (message, field): (String, &Column) = match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let names = valid_fields.iter().map(|valid| valid.name.as_str());
            let hint = did_you_mean(&field.name, names.clone());
            let known: Vec<_> = names.take(12).collect();
            let known = match (hint.is_empty() && !known.is_empty(), valid_fields.len() > known.len()) {
                (true, false) => format!("; there are {}", known.join(", ")),
                (true, true) => format!("; there are {}, …", known.join(", ")),
                _ => String::new(),
            };
            (
                format!("there is no column '{}'{hint}{known}", field.flat_name()),
                field,
            )
        }
        SchemaError::AmbiguousReference { field } => {
            let message = format!(
                "column '{}' is in several of the tables: put the table's name before it",
                field.name
            );
            (message, field)
        }
        other => return QueryError::invalid(lower_first(&other.to_string())),
    };
    QueryError::invalid(message).at(words
        .place_of(&field.name)
        .filter(|_| !covers(span, words, &field.name))
        .or(span))
}

/// The error for a function that is not there.
fn function(message: &str, state: &SessionState) -> Option<QueryError> {
    let (name, _) = message.strip_prefix("Invalid function '")?.split_once('\'')?;
    let scalar = state.scalar_functions().keys();
    let names = scalar
        .chain(state.aggregate_functions().keys())
        .chain(state.window_functions().keys());
    let hint = did_you_mean(name, names.map(String::as_str));
    Some(QueryError::invalid(format!("there is no function '{name}'{hint}")))
}

/// Whether the word at `span` is `name`, so that the place is exact already.
fn covers(span: Option<Place>, words: &Words, name: &str) -> bool {
    let index = span.and_then(|place| words.index_at(place.line.into(), place.column.into()));
    let token = index.and_then(|index| words.tokens().get(index));
    matches!(token.map(|t| &t.token), Some(Token::Word(word)) if word.value == name)
}

/// The names in a message that stand in single quotes.
fn quoted(message: &str) -> impl Iterator<Item = &str> {
    message.split('\'').skip(1).step_by(2).filter(|name| !name.is_empty())
}

impl QueryError {
    fn from_datafusion(error: &DataFusionError) -> Self {
        let mut next: Option<&(dyn Error + 'static)> = Some(error);
        while let Some(cause) = next {
            if let Some(own) = cause.downcast_ref::<QueryError>() {
                return own.clone();
            }
            if let Some(object_store::Error::NotFound { path, .. }) = cause.downcast_ref() {
                return Self::missing_part(path);
            }
            next = cause.source();
        }
        // The root may hide behind layers that do not name their source.
        let root = error.find_root();
        let text = root.strip_backtrace();
        match root {
            DataFusionError::Internal(text) => Self::internal(format!("the query engine failed: {text}")),
            DataFusionError::ExecutionJoin(text) => Self::internal(format!("a task of the query failed: {text}")),
            DataFusionError::IoError(_) | DataFusionError::ObjectStore(_) => Self::internal(lower_first(&text)),
            DataFusionError::ParquetError(_) if missing_file(&text).is_some() => {
                Self::missing_part(missing_file(&text).unwrap_or_default())
            }
            DataFusionError::ParquetError(_) => Self::internal(format!("a part cannot be read: {text}")),
            DataFusionError::ResourcesExhausted(text) => Self::unavailable(format!(
                "the query needs more memory than queries have here ({text}); try again when fewer of them run, or read less"
            )),
            DataFusionError::Plan(text) | DataFusionError::Execution(text) | DataFusionError::NotImplemented(text) => {
                Self::invalid(tidy(text))
            }
            _ => Self::invalid(tidy(&text)),
        }
    }

    fn missing_part(path: &str) -> Self {
        Self::internal(format!(
            "part file '{path}' is committed but missing from the part store: look at this node's disk and log, \
             and put the file back"
        ))
    }
}

/// The file that could not be opened because it is not there. The Parquet reader gives this as text
/// only; if its words change, the error is still an internal one that names the file.
fn missing_file(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("Failed to fetch metadata for file ")?;
    let (path, reason) = rest.split_once(": ")?;
    reason.contains("not found").then_some(path)
}

/// A message of DataFusion as one line that begins and ends like ours.
fn tidy(text: &str) -> String {
    let text = text
        .trim_start_matches("Error during planning: ")
        .trim_start_matches("Execution error: ");
    lower_first(&text.trim_end_matches('.').replace(".\n", "; ").replace('\n', "; "))
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        Self::from_datafusion(&error)
    }
}

impl From<QueryError> for DataFusionError {
    fn from(error: QueryError) -> Self {
        DataFusionError::External(Box::new(error))
    }
}

impl QueryError {
    /// Whether trying the same again is safe and may help.
    pub fn is_retryable(&self) -> bool {
        self.kind == ErrorKind::Unavailable
    }
}
