//! The rows of an answer, batch by batch, as they arrive.
//!
//! The server sends consecutive pieces of one Arrow IPC stream. This module puts them together and
//! hands out whole batches; it never holds more than one batch and one piece. Dropping [`Rows`]
//! cancels the statement on the server.

use crate::error::{ClientError, Tried};
use crate::failure::{Failure, Next};
use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;
use std::fmt;
use std::time::Duration;
use tidemill_proto::api::QueryReply;
use tidemill_proto::api::query_reply::Kind;
use tokio::time::timeout;
use tonic::Streaming;

/// What ends an IPC stream: a continuation marker and the length 0.
const END_OF_STREAM: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// The rows that a statement returns.
pub struct Rows {
    schema: SchemaRef,
    first: Option<RecordBatch>,
    rest: Option<Box<Pieces>>,
}

/// What a statement's answer begins with.
pub(crate) enum Begun {
    Rows(Rows),
    Message(String),
}

impl Rows {
    /// Reads until the kind of answer is known and, for rows, the first batch is there: up to here
    /// a statement that reads can be asked again elsewhere without the caller noticing.
    pub(crate) async fn begin(
        stream: Streaming<QueryReply>,
        address: &str,
        patience: Duration,
    ) -> Result<Begun, Failure> {
        let mut pieces = Pieces {
            stream,
            decoder: StreamDecoder::new(),
            left: Buffer::from_vec(Vec::<u8>::new()),
            last: Vec::new(),
            address: address.to_owned(),
            patience,
        };
        match pieces.next().await? {
            Piece::Message(message) => Ok(Begun::Message(message)),
            Piece::Batch(batch) => Ok(Begun::Rows(Self {
                schema: batch.schema(),
                first: Some(batch),
                rest: Some(Box::new(pieces)),
            })),
            Piece::End => match pieces.decoder.schema() {
                Some(schema) => Ok(Begun::Rows(Self {
                    schema,
                    first: None,
                    rest: None,
                })),
                None => Err(Failure::Broken("the server's answer is empty".to_owned())),
            },
        }
    }

    /// The names and types of the columns.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// The next batch, which has at least one row; `None` after the last.
    ///
    /// # Errors
    /// When the answer breaks off. What was handed out before is right but not all.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>, ClientError> {
        if let Some(batch) = self.first.take() {
            return Ok(Some(batch));
        }
        let Some(pieces) = &mut self.rest else {
            return Ok(None);
        };
        let piece = pieces.next().await;
        let error = match piece {
            Ok(Piece::Batch(batch)) => return Ok(Some(batch)),
            Ok(Piece::End) => {
                self.rest = None;
                return Ok(None);
            }
            Ok(Piece::Message(_)) => ClientError::Server {
                message: "the server sent a message among rows".to_owned(),
            },
            Err(failure) => pieces.broke_off(failure),
        };
        self.rest = None;
        Err(error)
    }

    /// All batches that are left.
    ///
    /// # Errors
    /// As [`Rows::next`].
    pub async fn collect(mut self) -> Result<Vec<RecordBatch>, ClientError> {
        let mut batches = Vec::new();
        while let Some(batch) = self.next().await? {
            batches.push(batch);
        }
        Ok(batches)
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows")
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}

enum Piece {
    Batch(RecordBatch),
    Message(String),
    End,
}

struct Pieces {
    stream: Streaming<QueryReply>,
    decoder: StreamDecoder,
    /// What of the last piece is not decoded yet.
    left: Buffer,
    /// The last bytes that have arrived.
    last: Vec<u8>,
    address: String,
    patience: Duration,
}

impl Pieces {
    async fn next(&mut self) -> Result<Piece, Failure> {
        loop {
            if let Some(batch) = self.decode()? {
                return Ok(Piece::Batch(batch));
            }
            let reply = match timeout(self.patience, self.stream.message()).await {
                Ok(Ok(reply)) => reply,
                Ok(Err(status)) => return Err(Failure::from_status(&status)),
                Err(_) => return Err(Failure::Lost(format!("no answer within {:?}", self.patience))),
            };
            match reply.map(|reply| reply.kind) {
                Some(Some(Kind::Ipc(bytes))) => {
                    self.last
                        .extend(&bytes[bytes.len().saturating_sub(END_OF_STREAM.len())..]);
                    self.last.drain(..self.last.len().saturating_sub(END_OF_STREAM.len()));
                    self.left = Buffer::from(bytes);
                }
                Some(Some(Kind::Message(message))) => return Ok(Piece::Message(message)),
                // A kind of reply that a newer server knows.
                Some(None) => {}
                None => return self.end(),
            }
        }
    }

    /// The next batch with rows in what has arrived.
    fn decode(&mut self) -> Result<Option<RecordBatch>, Failure> {
        while !self.left.is_empty() {
            match self.decoder.decode(&mut self.left) {
                Ok(Some(batch)) if batch.num_rows() > 0 => return Ok(Some(batch)),
                Ok(_) => {}
                Err(error) => return Err(undecodable(&error)),
            }
        }
        Ok(None)
    }

    /// The server says no more. Without the mark of the end it has not said all: whatever ended it, these are not all rows.
    fn end(&mut self) -> Result<Piece, Failure> {
        if self.last != END_OF_STREAM {
            let why = "the server's answer ends without the mark of its end, so it is not all";
            return Err(Failure::Broken(why.to_owned()));
        }
        // The decoder looks at a message without a body (a schema, a batch of nulls) only when more bytes follow.
        if self.decoder.finish().is_err() {
            self.left = Buffer::from(END_OF_STREAM);
            if let Some(batch) = self.decode()? {
                return Ok(Piece::Batch(batch));
            }
            self.decoder.finish().map_err(|error| undecodable(&error))?;
        }
        Ok(Piece::End)
    }

    /// After the first batch nothing can be repeated: the caller has seen rows.
    fn broke_off(&self, failure: Failure) -> ClientError {
        match failure.next(true, &self.address) {
            Next::Retry(reason) => ClientError::Unavailable {
                tried: vec![Tried {
                    address: self.address.clone(),
                    reason: format!("the answer broke off: {reason}"),
                }],
            },
            Next::GiveUp(error) => error,
        }
    }
}

fn undecodable(error: &ArrowError) -> Failure {
    Failure::Broken(format!("the server's answer cannot be decoded: {error}"))
}
