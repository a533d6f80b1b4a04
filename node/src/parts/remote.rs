//! The disk of another node, over gRPC.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tidemill_core::NodeId;
use tidemill_core::catalog::Holder;
use tidemill_proto::api::parts_client::PartsClient;
use tidemill_proto::api::put_piece::Piece as PutKind;
use tidemill_proto::api::{DeleteRequest, ListRequest, PutBegin, PutPiece, ReadRequest};
use tidemill_storage::store::{ObjectStore, PartStore, Piece, StoreError, StoredFile};
use tonic::transport::Channel;
use tonic::{Code, Status};
use xxhash_rust::xxh3::xxh3_64;

/// How many bytes travel at once.
pub const CHUNK: usize = 1 << 20;
/// How much of a file is asked for at once: the other side reads and verifies all of it before it answers, in memory and
/// within [`SILENCE`].
const RANGE: u64 = 8 << 20;
/// How long the other side may be silent before it is given up.
const SILENCE: Duration = Duration::from_secs(3);

/// See the module's page.
#[derive(Clone, Debug)]
pub struct RemoteDisk {
    /// The way to its node.
    pub channel: Channel,
}

impl RemoteDisk {
    fn client(&self) -> PartsClient<Channel> {
        PartsClient::new(self.channel.clone()).max_decoding_message_size(4 * CHUNK)
    }
}

/// The answer, unless the other side stays silent.
async fn in_time<T>(
    action: &'static str,
    path: &str,
    answer: impl Future<Output = Result<T, Status>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(SILENCE, answer).await {
        Ok(answer) => answer.map_err(|status| error_of(action, path, &status)),
        Err(_) => Err(failed(action, path, "the node does not answer")),
    }
}

fn failed(action: &'static str, path: &str, why: &str) -> StoreError {
    StoreError::Io {
        action,
        path: path.to_owned(),
        source: why.into(),
    }
}

fn error_of(action: &'static str, path: &str, status: &Status) -> StoreError {
    let path = path.to_owned();
    match status.code() {
        Code::NotFound => StoreError::NotFound { path },
        Code::AlreadyExists => StoreError::Exists { path },
        Code::DataLoss => StoreError::Damaged {
            path,
            what: status.message().to_owned(),
        },
        Code::ResourceExhausted => StoreError::NoSpace {
            path,
            source: status.message().into(),
        },
        Code::InvalidArgument => StoreError::Path {
            path,
            why: "the other node does not take it",
        },
        _ => StoreError::Io {
            action,
            path,
            source: status.message().into(),
        },
    }
}

/// What another node is told of `error`.
pub(crate) fn status_of(error: &StoreError) -> Status {
    let code = match error {
        StoreError::NotFound { .. } => Code::NotFound,
        StoreError::Exists { .. } => Code::AlreadyExists,
        StoreError::Damaged { .. } => Code::DataLoss,
        StoreError::NoSpace { .. } => Code::ResourceExhausted,
        StoreError::Path { .. } => Code::InvalidArgument,
        _ => Code::Internal,
    };
    Status::new(code, error.to_string())
}

#[async_trait]
impl PartStore for RemoteDisk {
    // No deadline: how long a file takes depends on its length, and whoever puts it gives up when that is too long.
    async fn put(&self, path: &str, bytes: Bytes) -> Result<Vec<Holder>, StoreError> {
        let begin = PutBegin {
            path: path.to_owned(),
            bytes: bytes.len() as u64,
            checksum: xxh3_64(&bytes),
        };
        let chunks = (0..bytes.len()).step_by(CHUNK).map(move |at| {
            let chunk = bytes.slice(at..bytes.len().min(at + CHUNK));
            PutKind::Chunk(chunk)
        });
        let pieces = std::iter::once(PutKind::Begin(begin)).chain(chunks);
        let pieces = tokio_stream::iter(pieces.map(|piece| PutPiece { piece: Some(piece) }));
        let reply = self.client().put(pieces).await;
        let reply = reply.map_err(|status| error_of("write", path, &status))?.into_inner();
        let disk = reply.disk.parse();
        let disk = disk.map_err(|_| failed("write", path, "the answer names no disk"))?;
        Ok(vec![Holder {
            node: NodeId(reply.node),
            disk,
        }])
    }

    async fn get(&self, path: &str) -> Result<Bytes, StoreError> {
        let first = self.get_range(path, 0..RANGE).await?;
        if first.total <= RANGE {
            return Ok(first.bytes);
        }
        let mut bytes = BytesMut::from(first.bytes);
        while (bytes.len() as u64) < first.total {
            let start = bytes.len() as u64;
            let next = self.get_range(path, start..start + RANGE).await?;
            if next.bytes.is_empty() || next.total != first.total {
                return Err(failed("read", path, "the file has changed its length meanwhile"));
            }
            bytes.extend_from_slice(&next.bytes);
        }
        Ok(bytes.freeze())
    }

    async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Piece, StoreError> {
        let request = ReadRequest {
            path: path.to_owned(),
            start: range.start,
            end: range.end,
        };
        let mut client = self.client();
        let mut pieces = in_time("read", path, client.read(request)).await?.into_inner();
        let first = in_time("read", path, pieces.message()).await?;
        let header = first.as_ref().and_then(|piece| piece.header);
        let header = header.ok_or_else(|| failed("read", path, "the answer has no header"))?;
        let mut bytes = BytesMut::new();
        let mut next = first;
        while let Some(piece) = next {
            bytes.extend_from_slice(&piece.chunk);
            next = in_time("read", path, pieces.message()).await?;
        }
        if bytes.len() as u64 != header.bytes || xxh3_64(&bytes) != header.checksum {
            return Err(failed("read", path, "the answer was damaged on its way"));
        }
        Ok(Piece {
            bytes: bytes.freeze(),
            total: header.total,
        })
    }

    async fn delete(&self, path: &str) -> Result<(), StoreError> {
        let request = DeleteRequest { path: path.to_owned() };
        in_time("delete", path, self.client().delete(request)).await.map(drop)
    }

    async fn list(&self, prefix: &str) -> Result<Vec<StoredFile>, StoreError> {
        let request = ListRequest {
            prefix: prefix.to_owned(),
        };
        let mut client = self.client();
        let mut listed = in_time("list", prefix, client.list(request)).await?.into_inner();
        let mut files = Vec::new();
        while let Some(file) = in_time("list", prefix, listed.message()).await? {
            files.push(StoredFile {
                path: file.path,
                bytes: file.bytes,
            });
        }
        Ok(files)
    }

    fn reader(&self) -> Arc<dyn ObjectStore> {
        tidemill_storage::store::range_reader(Arc::new(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_proto::api::parts_server::{Parts, PartsServer};
    use tidemill_proto::api::{DeleteReply, ListedFile, PutReply, ReadHeader, ReadPiece};
    use tokio::net::TcpListener;
    use tokio_stream::{Empty, Iter};
    use tonic::transport::server::TcpIncoming;
    use tonic::transport::{Endpoint, Server};
    use tonic::{Request, Response, Streaming};

    /// A node with one file on a disk that reads 10 MiB per second.
    struct Slow {
        file: Bytes,
    }

    #[tonic::async_trait]
    impl Parts for Slow {
        type ReadStream = Iter<std::vec::IntoIter<Result<ReadPiece, Status>>>;
        type ListStream = Empty<Result<ListedFile, Status>>;

        async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
            let asked = request.into_inner();
            let total = self.file.len() as u64;
            let bytes = self.file.slice(asked.start as usize..asked.end.min(total) as usize);
            tokio::time::sleep(Duration::from_secs_f64(bytes.len() as f64 / f64::from(10 << 20))).await;
            let header = ReadHeader {
                total,
                bytes: bytes.len() as u64,
                checksum: xxh3_64(&bytes),
            };
            let pieces = (0..bytes.len()).step_by(CHUNK).map(|at| {
                Ok(ReadPiece {
                    header: (at == 0).then_some(header),
                    chunk: bytes.slice(at..bytes.len().min(at + CHUNK)),
                })
            });
            Ok(Response::new(tokio_stream::iter(pieces.collect::<Vec<_>>())))
        }

        async fn put(&self, _: Request<Streaming<PutPiece>>) -> Result<Response<PutReply>, Status> {
            Err(Status::unimplemented("only reads"))
        }

        async fn delete(&self, _: Request<DeleteRequest>) -> Result<Response<DeleteReply>, Status> {
            Err(Status::unimplemented("only reads"))
        }

        async fn list(&self, _: Request<ListRequest>) -> Result<Response<Self::ListStream>, Status> {
            Err(Status::unimplemented("only reads"))
        }
    }

    /// Else a file could be too long to be copied from such a disk ever.
    #[tokio::test]
    async fn a_slow_disk_is_not_taken_for_a_silent_one_however_long_the_file_is() {
        let file: Vec<u8> = (0..33 * CHUNK + 5).map(|i| (i / 7 + i / CHUNK) as u8).collect();
        let file = Bytes::from(file);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let parts = PartsServer::new(Slow { file: file.clone() });
        tokio::spawn(
            Server::builder()
                .add_service(parts)
                .serve_with_incoming(TcpIncoming::from(listener)),
        );
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .unwrap()
            .connect_lazy();
        let got = RemoteDisk { channel }.get("1/0/1/p.parquet").await.unwrap();
        assert!(got == file);
    }
}
