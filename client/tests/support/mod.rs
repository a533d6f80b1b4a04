//! A node that really fails: a tonic server that follows a script, behind a proxy that can cut its
//! connections. It holds no data and speaks real gRPC over real sockets.

use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::ipc::writer::StreamWriter;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use prost::Message;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tidemill_proto::api::query_reply::Kind;
use tidemill_proto::api::tidemill_server::{Tidemill, TidemillServer};
use tidemill_proto::api::{ClusterStatusReply, ClusterStatusRequest, ErrorDetail, QueryReply, QueryRequest};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status};

/// What the node does with one request.
pub enum Act {
    /// Sends these pieces and then ends so.
    Pieces(Vec<QueryReply>, End),
    /// Answers with this error at once.
    Fail(Status),
    /// Takes the request and cuts the connection.
    Vanish,
    /// Takes the request and says nothing.
    Hang,
}

/// How a stream of pieces ends.
pub enum End {
    Well,
    Fail(Status),
    Cut,
}

/// One scripted node.
pub struct Node {
    pub address: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    script: Mutex<VecDeque<Act>>,
    requests: Mutex<Vec<QueryRequest>>,
    cut: Notify,
}

impl Node {
    /// A node that does these things one after the other and then answers "ok".
    pub async fn start(script: impl IntoIterator<Item = Act>) -> Self {
        let state = Arc::new(State {
            script: Mutex::new(script.into_iter().collect()),
            ..State::default()
        });
        let inner = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let outer = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = outer.local_addr().unwrap().to_string();
        tokio::spawn(proxy(outer, inner.local_addr().unwrap(), state.clone()));
        let service = TidemillServer::new(Service(state.clone()));
        tokio::spawn(tonic::transport::Server::builder().serve_with_incoming(service, TcpIncoming::from(inner)));
        Self { address, state }
    }

    /// How many statements have arrived.
    pub fn requests(&self) -> Vec<QueryRequest> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Cuts all connections; new ones are accepted.
    pub fn cut(&self) {
        self.state.cut.notify_waiters();
    }
}

/// An address at which nobody listens.
pub async fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string()
}

async fn proxy(outer: TcpListener, inner: std::net::SocketAddr, state: Arc<State>) {
    while let Ok((mut client, _)) = outer.accept().await {
        let state = state.clone();
        tokio::spawn(async move {
            let mut server = TcpStream::connect(inner).await.unwrap();
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                () = state.cut.notified() => {}
            }
        });
    }
}

struct Service(Arc<State>);

#[tonic::async_trait]
impl Tidemill for Service {
    type QueryStream = BoxStream<'static, Result<QueryReply, Status>>;

    async fn query(&self, request: Request<QueryRequest>) -> Result<Response<Self::QueryStream>, Status> {
        let state = self.0.clone();
        state.requests.lock().unwrap().push(request.into_inner());
        let act = state.script.lock().unwrap().pop_front();
        let (pieces, end) = match act {
            None => (vec![message("ok")], End::Well),
            Some(Act::Pieces(pieces, end)) => (pieces, end),
            Some(Act::Fail(status)) => return Err(status),
            Some(Act::Hang) => std::future::pending().await,
            Some(Act::Vanish) => {
                state.cut.notify_waiters();
                std::future::pending().await
            }
        };
        let pieces = stream::iter(pieces.into_iter().map(Ok));
        let ending = stream::once(async move {
            match end {
                End::Well => None,
                End::Fail(status) => Some(Err(status)),
                End::Cut => {
                    // What was sent before shall arrive.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    state.cut.notify_waiters();
                    std::future::pending().await
                }
            }
        });
        Ok(Response::new(
            pieces.chain(ending.filter_map(|end| async { end })).boxed(),
        ))
    }

    async fn cluster_status(&self, _: Request<ClusterStatusRequest>) -> Result<Response<ClusterStatusReply>, Status> {
        Ok(Response::new(ClusterStatusReply {
            cluster: "demo".to_owned(),
            ..ClusterStatusReply::default()
        }))
    }
}

pub fn message(text: &str) -> QueryReply {
    QueryReply {
        kind: Some(Kind::Message(text.to_owned())),
    }
}

/// An error that says that the request may be sent again.
pub fn retryable(text: &str) -> Status {
    let detail = ErrorDetail {
        retryable: true,
        ..ErrorDetail::default()
    };
    Status::with_details(Code::Unavailable, text, detail.encode_to_vec().into())
}

/// A batch with one column `a`.
pub fn batch(values: impl IntoIterator<Item = i64>) -> RecordBatch {
    let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, false)]));
    RecordBatch::try_new(schema, vec![Arc::new(values.into_iter().collect::<Int64Array>())]).unwrap()
}

/// The schema and then each batch as pieces of at most `size` bytes, with or without the end mark.
pub fn pieces(batches: &[RecordBatch], size: usize, end_mark: bool) -> Vec<QueryReply> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batch([]).schema()).unwrap();
    for batch in batches {
        writer.write(batch).unwrap();
    }
    let bytes = if end_mark {
        writer.into_inner().unwrap()
    } else {
        writer.get_ref().clone()
    };
    let piece = |bytes: &[u8]| QueryReply {
        kind: Some(Kind::Ipc(bytes.to_vec().into())),
    };
    bytes.chunks(size).map(piece).collect()
}
