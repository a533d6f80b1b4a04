//! How a call can end other than well: the statement is wrong, nobody answered, nobody knows, or
//! the server failed.
//!
//! The four are kept apart because callers do different things with them: *no* is not *don't know*.

use std::fmt;
use thiserror::Error;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ClientError {
    /// The configuration makes no sense; nothing was sent.
    #[error("{message}")]
    Config {
        /// What is wrong with it.
        message: String,
    },
    /// The statement is wrong and had no effect; it will be as wrong the next time.
    #[error("{message}")]
    Invalid {
        /// What is wrong with it.
        message: String,
        /// The line of the fault in the statement, counted from 1; 0 if it has no place.
        line: u32,
        /// The column of the fault in that line, in characters counted from 1; 0 if it has none.
        column: u32,
        /// How many characters the offending word has; 0 if unknown.
        length: u32,
    },
    /// No node could answer in the time there was. The statement had no effect.
    #[error("the cluster is unavailable: {}", list(.tried))]
    Unavailable {
        /// The last failure at each address that was tried.
        tried: Vec<Tried>,
    },
    /// The answer was lost: the statement may or may not have taken effect.
    #[error("it is unknown whether the statement took effect: {address}: {reason}")]
    Unknown {
        /// The node that was asked.
        address: String,
        /// What happened instead of an answer.
        reason: String,
    },
    /// The server refused or failed for a reason of its own. The statement had no effect.
    #[error("{message}")]
    Server {
        /// The server's words.
        message: String,
    },
}

/// One address and why it did not help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The api address.
    pub address: String,
    /// What happened there last.
    pub reason: String,
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.address, self.reason)
    }
}

fn list(tried: &[Tried]) -> String {
    if tried.is_empty() {
        return "no node was tried".to_owned();
    }
    tried.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// An error with everything that caused it, as one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    with_causes(error.to_string(), error.source())
}

/// The text and the causes behind it. Repetitions are left out: transport errors like to quote their
/// cause in their own words.
pub(crate) fn with_causes(mut text: String, mut cause: Option<&(dyn std::error::Error + 'static)>) -> String {
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unavailable_names_every_address() {
        let tried = ["a:1", "b:2"].map(|address| Tried {
            address: address.to_owned(),
            reason: "connection refused".to_owned(),
        });
        let error = ClientError::Unavailable { tried: tried.to_vec() };
        assert_eq!(
            error.to_string(),
            "the cluster is unavailable: a:1: connection refused; b:2: connection refused"
        );
    }
}
