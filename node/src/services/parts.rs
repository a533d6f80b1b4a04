//! This node's disk, for the other nodes.

use crate::parts::remote::{CHUNK, status_of};
use bytes::BytesMut;
use std::pin::Pin;
use std::time::Duration;
use tidemill_proto::api::parts_server::Parts;
use tidemill_proto::api::put_piece::Piece as PutKind;
use tidemill_proto::api::{
    DeleteReply, DeleteRequest, ListRequest, ListedFile, PutPiece, PutReply, ReadHeader, ReadPiece, ReadRequest,
};
use tidemill_storage::store::{Disk, PartStore};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};
use xxhash_rust::xxh3::xxh3_64;

/// The longest file that is taken: many times what a part may have.
const LONGEST: u64 = 4 << 30;

/// How long a caller may be silent in the middle of a file.
const SILENCE: Duration = Duration::from_secs(10);

/// Serves a disk; refuses all where the part store is shared.
pub struct PartsService {
    /// The disk, if this node has one.
    pub disk: Option<Disk>,
}

impl PartsService {
    fn disk(&self) -> Result<&Disk, Status> {
        let shared = || Status::failed_precondition("this node keeps no parts: its part store is shared");
        self.disk.as_ref().ok_or_else(shared)
    }
}

/// The next piece, unless the caller has fallen silent.
async fn next(pieces: &mut Streaming<PutPiece>) -> Result<Option<PutPiece>, Status> {
    let silent = |_| Status::deadline_exceeded("the rest of the file does not come");
    tokio::time::timeout(SILENCE, pieces.message()).await.map_err(silent)?
}

type Pieces<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Parts for PartsService {
    type ReadStream = Pieces<ReadPiece>;
    type ListStream = Pieces<ListedFile>;

    async fn put(&self, request: Request<Streaming<PutPiece>>) -> Result<Response<PutReply>, Status> {
        let disk = self.disk()?;
        let mut pieces = request.into_inner();
        let Some(PutKind::Begin(begin)) = pieces.message().await?.and_then(|piece| piece.piece) else {
            return Err(Status::invalid_argument(
                "the first piece does not say which file this is",
            ));
        };
        if begin.bytes > LONGEST {
            return Err(Status::invalid_argument(format!(
                "{} has {} bytes",
                begin.path, begin.bytes
            )));
        }
        // Grows with what comes, not with what is announced.
        let mut bytes = BytesMut::with_capacity(CHUNK.min(begin.bytes as usize));
        while let Some(piece) = next(&mut pieces).await? {
            let Some(PutKind::Chunk(chunk)) = piece.piece else {
                continue;
            };
            if bytes.len() as u64 + chunk.len() as u64 > begin.bytes {
                return Err(Status::invalid_argument(format!(
                    "{} is longer than announced",
                    begin.path
                )));
            }
            bytes.extend_from_slice(&chunk);
        }
        if bytes.len() as u64 != begin.bytes || xxh3_64(&bytes) != begin.checksum {
            // Also when the caller gave up in the middle.
            return Err(Status::aborted(format!("{} did not arrive whole", begin.path)));
        }
        disk.put(&begin.path, bytes.freeze()).await.map_err(|e| status_of(&e))?;
        let holder = disk.holder();
        Ok(Response::new(PutReply {
            node: holder.node.0,
            disk: holder.disk.to_string(),
        }))
    }

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let asked = request.into_inner();
        let read = self.disk()?.get_range(&asked.path, asked.start..asked.end).await;
        let piece = read.map_err(|e| status_of(&e))?;
        let header = ReadHeader {
            total: piece.total,
            bytes: piece.bytes.len() as u64,
            checksum: xxh3_64(&piece.bytes),
        };
        let bytes = piece.bytes;
        let starts = std::iter::once(0).chain((CHUNK..bytes.len()).step_by(CHUNK));
        let pieces: Vec<_> = starts
            .map(|at| {
                Ok(ReadPiece {
                    header: (at == 0).then_some(header),
                    chunk: bytes.slice(at..bytes.len().min(at + CHUNK)),
                })
            })
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteReply>, Status> {
        let path = request.into_inner().path;
        self.disk()?.delete(&path).await.map_err(|e| status_of(&e))?;
        Ok(Response::new(DeleteReply {}))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let listed = self.disk()?.list(&request.into_inner().prefix).await;
        let files = listed.map_err(|e| status_of(&e))?.into_iter().map(|file| {
            Ok(ListedFile {
                path: file.path,
                bytes: file.bytes,
            })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(files.collect::<Vec<_>>()))))
    }
}
