//! Reads what went wrong in one attempt and decides what may follow. Pure: no clock, no network.
//!
//! The question that matters is whether the statement can have taken effect. *Certainly not* lets
//! any statement be sent again; *perhaps* lets only those that read.

use crate::error::{ClientError, chain, with_causes};
use prost::Message;
use std::error::Error;
use tidemill_proto::api::ErrorDetail;
use tonic::{Code, ConnectError, Status};

/// What went wrong in one attempt at one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The connection could not be made: the request was not sent.
    Unsent(String),
    /// The server says that nothing happened and that another attempt may succeed.
    Retryable(String),
    /// The connection or the answer broke: it may have taken effect; another attempt may succeed.
    Lost(String),
    /// The server failed in the middle: it may have taken effect, and asking again would not help.
    Broken(String),
    /// The server said no.
    Refused(ClientError),
}

/// What to do after a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another attempt, for this reason.
    Retry(String),
    /// Give up with this error.
    GiveUp(ClientError),
}

impl Failure {
    /// What a failed call says. A status with a source was made on this side, from a broken
    /// connection; one without came from the server.
    pub(crate) fn from_status(status: &Status) -> Self {
        if let Some(source) = status.source() {
            return if never_connected(source) {
                Self::Unsent(chain(source))
            } else {
                Self::Lost(reason(status))
            };
        }
        let detail = ErrorDetail::decode(status.details()).unwrap_or_default();
        if detail.retryable {
            return Self::Retryable(reason(status));
        }
        match status.code() {
            Code::InvalidArgument => Self::Refused(invalid(status, &detail)),
            _ if detail.line > 0 => Self::Refused(invalid(status, &detail)),
            Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated => Self::Refused(ClientError::Server { message: words(status) }),
            // A connection that is reset or a handler that is dropped arrives as one of these.
            Code::Unavailable | Code::Unknown | Code::Cancelled => Self::Lost(reason(status)),
            // `Aborted` is how the server itself says that it does not know.
            Code::Aborted | Code::Internal | Code::DataLoss | Code::DeadlineExceeded | Code::Ok => {
                Self::Broken(words(status))
            }
        }
    }

    /// What follows, for a statement that only reads or for one that may change something.
    pub(crate) fn next(self, reads: bool, address: &str) -> Next {
        match self {
            Self::Unsent(reason) | Self::Retryable(reason) => Next::Retry(reason),
            Self::Lost(reason) if reads => Next::Retry(reason),
            Self::Broken(message) if reads => Next::GiveUp(ClientError::Server { message }),
            Self::Lost(reason) | Self::Broken(reason) => Next::GiveUp(ClientError::Unknown {
                address: address.to_owned(),
                reason,
            }),
            Self::Refused(error) => Next::GiveUp(error),
        }
    }
}

fn invalid(status: &Status, detail: &ErrorDetail) -> ClientError {
    ClientError::Invalid {
        message: words(status),
        line: detail.line,
        column: detail.column,
        length: detail.length,
    }
}

/// Whether the connection was refused or not made in time, so that no byte of the request left.
fn never_connected(mut error: &(dyn Error + 'static)) -> bool {
    loop {
        if error.is::<ConnectError>() {
            return true;
        }
        match error.source() {
            Some(cause) => error = cause,
            None => return false,
        }
    }
}

fn words(status: &Status) -> String {
    if status.message().is_empty() {
        status.code().description().to_owned()
    } else {
        status.message().to_owned()
    }
}

/// The server's words, or those of the broken connection with what broke it.
fn reason(status: &Status) -> String {
    with_causes(words(status), status.source())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn said(code: Code, detail: ErrorDetail) -> Failure {
        Failure::from_status(&Status::with_details(code, "no", detail.encode_to_vec().into()))
    }

    #[test]
    fn a_refused_connection_had_no_effect() {
        let mut status = Status::unavailable("tcp connect error");
        status.set_source(Arc::new(ConnectError("connection refused".into())));
        let failure = Failure::from_status(&status);
        assert!(matches!(failure, Failure::Unsent(_)), "{failure:?}");
        assert!(matches!(failure.next(false, "a"), Next::Retry(_)));
    }

    #[test]
    fn a_broken_connection_is_unknown_for_writes_and_retried_for_reads() {
        let mut status = Status::unknown("transport error");
        status.set_source(Arc::new(std::io::Error::other("connection reset")));
        let failure = Failure::from_status(&status);
        assert_eq!(failure, Failure::Lost("transport error: connection reset".to_owned()));
        assert!(matches!(failure.clone().next(true, "a"), Next::Retry(_)));
        assert!(matches!(
            failure.next(false, "a"),
            Next::GiveUp(ClientError::Unknown { .. })
        ));
    }

    #[test]
    fn the_server_says_that_nothing_happened() {
        let detail = ErrorDetail {
            retryable: true,
            ..ErrorDetail::default()
        };
        let failure = said(Code::Unavailable, detail);
        assert_eq!(failure.next(false, "a"), Next::Retry("no".to_owned()));
    }

    #[test]
    fn a_place_makes_it_the_statements_fault() {
        let detail = ErrorDetail {
            line: 2,
            column: 3,
            length: 4,
            retryable: false,
        };
        let expected = ClientError::Invalid {
            message: "no".to_owned(),
            line: 2,
            column: 3,
            length: 4,
        };
        assert_eq!(said(Code::NotFound, detail), Failure::Refused(expected));
    }

    #[test]
    fn an_internal_error_is_not_retried_and_leaves_writes_unknown() {
        let failure = said(Code::Internal, ErrorDetail::default());
        assert_eq!(
            failure.clone().next(true, "a"),
            Next::GiveUp(ClientError::Server {
                message: "no".to_owned()
            })
        );
        assert!(matches!(
            failure.next(false, "a"),
            Next::GiveUp(ClientError::Unknown { .. })
        ));
    }

    #[test]
    fn a_refusal_is_final_for_all() {
        let failure = said(Code::AlreadyExists, ErrorDetail::default());
        assert_eq!(
            failure.next(false, "a"),
            Next::GiveUp(ClientError::Server {
                message: "no".to_owned()
            })
        );
    }

    #[test]
    fn details_that_are_not_ours_are_ignored() {
        let status = Status::with_details(Code::InvalidArgument, "no", vec![0xff, 0xff].into());
        assert!(matches!(
            Failure::from_status(&status),
            Failure::Refused(ClientError::Invalid { line: 0, .. })
        ));
    }
}
