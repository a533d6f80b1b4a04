//! Rows that programs write themselves: opening and closing their writers, and taking their rows where a shard is led.

use crate::adapters::propose;
use crate::supervisor::Supervisor;
use prost::Message;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tidemill_core::catalog::{Acks, CatalogQuestions, Node, Shard, Table, Writer};
use tidemill_core::command::{CloseWriter, OpenWriter, PassGap};
use tidemill_core::view::{CatalogRead, CatalogSnapshot, ViewError};
use tidemill_core::{Command, NodeId, Offset, Outcome, Refusal, Response as Applied, ShardId, TableId, WriterId};
use tidemill_ingest::direct::{Body, Incoming, WriteError};
use tidemill_ingest::task::ShardTask;
use tidemill_proto::api::write_detail::Reason;
use tidemill_proto::api::write_request::Body as SentBody;
use tidemill_proto::api::writes_server::Writes;
use tidemill_proto::api::{
    self, CloseWriterReply, CloseWriterRequest, FindLeadersReply, FindLeadersRequest, OpenWriterReply,
    OpenWriterRequest, PassGapReply, PassGapRequest, WriteDetail, WriteReply, WriteRequest,
};
use tidemill_raft::{Catalog, ProposeError};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::debug;

/// The largest request that is taken.
pub const MAX_REQUEST: usize = 16 << 20;
/// How long a command or a read may take.
const DECIDE: Duration = Duration::from_secs(5);
/// How long to wait before a command is proposed again of which nobody knows what came of it.
const AGAIN: Duration = Duration::from_millis(100);
/// How many requests of a stream may wait for their commit; behind them the stream is not read on.
const AHEAD: usize = 64;

/// Serves on the api address.
#[derive(Clone)]
pub struct WritesService {
    /// This node.
    pub node: NodeId,
    /// The catalog.
    pub catalog: Catalog,
    /// The tasks of this node.
    pub supervisor: Arc<Supervisor>,
}

type Replies = Pin<Box<dyn Stream<Item = Result<WriteReply, Status>> + Send>>;

#[tonic::async_trait]
impl Writes for WritesService {
    type WriteStream = Replies;

    async fn open_writer(&self, request: Request<OpenWriterRequest>) -> Result<Response<OpenWriterReply>, Status> {
        let asked = request.into_inner();
        let acks = match asked.acks() {
            api::Acks::None => Acks::None,
            api::Acks::Leader => Acks::Leader,
            api::Acks::All | api::Acks::Unspecified => Acks::All,
        };
        let token = asked.token.parse();
        let token = token.map_err(|_| Status::invalid_argument("the token is not 32 hexadecimal digits"))?;
        let open = Command::OpenWriter(OpenWriter {
            table: asked.table.clone(),
            acks,
            token,
        });
        let Applied::Writer(writer) = decide(&self.catalog, open).await? else {
            return Err(Status::internal("a writer was not answered with its id"));
        };
        // The catalog here may be behind the one that has decided.
        self.catalog.read_index(DECIDE).await.map_err(not_now)?;
        let state = self.catalog.snapshot().map_err(not_now)?;
        let table = state.table_named(&asked.table).map_err(broken)?;
        let table = table.ok_or_else(|| not_now(Refusal::NoTable(asked.table)))?;
        Ok(Response::new(OpenWriterReply {
            writer: writer.0,
            table: table.id.0,
            shards: table.shards,
        }))
    }

    async fn close_writer(&self, request: Request<CloseWriterRequest>) -> Result<Response<CloseWriterReply>, Status> {
        let asked = request.into_inner();
        let acknowledged = asked.acknowledged.into_iter();
        let close = Command::CloseWriter(CloseWriter {
            writer: WriterId(asked.writer),
            acknowledged: acknowledged.map(|(shard, end)| (shard, Offset(end))).collect(),
            if_idle_since_ms: None,
        });
        decide(&self.catalog, close).await?;
        Ok(Response::new(CloseWriterReply {}))
    }

    async fn pass_gap(&self, request: Request<PassGapRequest>) -> Result<Response<PassGapReply>, Status> {
        // In a task of its own: it must come to its end also when the client goes away.
        let passed = tokio::spawn(self.clone().pass(request.into_inner())).await;
        passed.map_err(|error| Status::internal(error.to_string()))??;
        Ok(Response::new(PassGapReply {}))
    }

    async fn find_leaders(&self, request: Request<FindLeadersRequest>) -> Result<Response<FindLeadersReply>, Status> {
        let table = TableId(request.into_inner().table);
        // A node that is cut off must not send anybody anywhere.
        self.catalog.read_index(DECIDE).await.map_err(not_now)?;
        let state = self.catalog.snapshot().map_err(not_now)?;
        let mut leaders = Vec::new();
        for shard in state.shards_of(table).map_err(broken)? {
            leaders.push(leader_of(&*state, &shard).map_err(broken)?.unwrap_or_default());
        }
        if leaders.is_empty() {
            return Err(Status::not_found("the table is not there any more"));
        }
        Ok(Response::new(FindLeadersReply { leaders }))
    }

    async fn write(&self, request: Request<Streaming<WriteRequest>>) -> Result<Response<Replies>, Status> {
        let requests = request.into_inner();
        let (taken, waiting) = mpsc::channel(AHEAD);
        let (answers, replies) = mpsc::channel(AHEAD);
        tokio::spawn(self.clone().take_all(requests, taken));
        tokio::spawn(acknowledge(waiting, answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(replies))))
    }
}

/// Proposes a command of a writer. Repeated, each of them does no more than once.
async fn decide(catalog: &Catalog, command: Command) -> Result<Applied, Status> {
    match propose(catalog, command, DECIDE).await {
        Ok((_, outcome)) => said(outcome),
        Err(error @ ProposeError::TooLarge { .. }) => Err(Status::invalid_argument(error.to_string())),
        Err(error) => Err(not_now(error)),
    }
}

fn said(outcome: Outcome) -> Result<Applied, Status> {
    outcome.map_err(|no| match no {
        Refusal::NoTable(_) | Refusal::NoWriter(_) => Status::not_found(no.to_string()),
        no => Status::failed_precondition(no.to_string()),
    })
}

/// What was taken and is to be acknowledged, in order.
type Taken = Result<Awaited, Status>;

struct Awaited {
    task: Arc<ShardTask>,
    writer: Arc<Writer>,
    end: Offset,
    wait: Wait,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    Not,
    ForCommit,
    ForCommitSoon,
}

impl WritesService {
    /// Takes the requests of one stream.
    async fn take_all(self, mut requests: Streaming<WriteRequest>, taken: mpsc::Sender<Taken>) {
        let mut writer: Option<Arc<Writer>> = None;
        // Ends with the client's stream, with an error, or when nobody listens to the answers any more.
        while let Ok(Some(request)) = requests.message().await {
            let result = self.take(&mut writer, request).await;
            let failed = result.is_err();
            if taken.send(result).await.is_err() || failed {
                return;
            }
        }
    }

    async fn take(&self, known: &mut Option<Arc<Writer>>, request: WriteRequest) -> Taken {
        let writer = match known.as_ref().filter(|writer| writer.id.0 == request.writer) {
            Some(writer) => writer.clone(),
            None => self.writer(WriterId(request.writer)).await?,
        };
        *known = Some(writer.clone());
        let (task, state) = self.task(&writer, request.shard, request.sequence)?;
        let awaited = |end, wait| Awaited {
            task: task.clone(),
            writer: writer.clone(),
            end,
            wait,
        };
        if request.rows == 0 {
            return Ok(awaited(Offset(request.sequence), Wait::ForCommitSoon));
        }
        if writer.acks == Acks::All
            && let Some(why) = too_few_in_sync(&*state, &writer, request.shard).map_err(broken)?
        {
            return Err(status(Code::Unavailable, why, detail(Reason::Retry)));
        }
        let body = match request.body {
            Some(SentBody::JsonLines(lines)) => Body::JsonLines(lines),
            Some(SentBody::ArrowIpc(ipc)) => Body::Arrow(ipc),
            None => return Err(Status::invalid_argument("the request has rows and no body")),
        };
        let incoming = Incoming {
            sequence: Offset(request.sequence),
            rows: request.rows,
            body,
        };
        let wait = match writer.acks {
            Acks::All => Wait::ForCommit,
            Acks::None | Acks::Leader => Wait::Not,
        };
        match task.write(&writer, incoming).await {
            Ok(end) => Ok(awaited(end, wait)),
            Err(error) => Err(status_of(&error, request.sequence)),
        }
    }

    async fn pass(self, asked: PassGapRequest) -> Result<(), Status> {
        let writer = self.writer(WriterId(asked.writer)).await?;
        let (task, _) = self.task(&writer, asked.shard, asked.expected)?;
        // What is here of it comes first; the gap is behind that.
        let expected = Offset(asked.expected);
        let settled = task.committed(&writer, expected, true).await;
        settled.map_err(|error| status_of(&error, asked.expected))?;
        // Rows may have come back meanwhile. From here on none can, until this is decided and known here: what is taken by
        // then is taken for the life behind the gap.
        let held = task.hold(&writer, expected);
        let held = held.ok_or_else(|| not_now("the rows are not missing any more, or are being passed over"))?;
        let pass = Command::PassGap(PassGap {
            writer: writer.id,
            shard: asked.shard,
            // Only this task holds the partition.
            epoch: task.epoch(),
            from: expected,
            to: Offset(asked.to),
        });
        // Again until somebody says what came of it: one that is under way still might be decided when the partition is open
        // again, and take along what was taken and acknowledged by then. Behind the first that is decided, the others are
        // refused: by the offset, by the epoch, or because the writer is gone.
        let decided = loop {
            match propose(&self.catalog, pass.clone(), DECIDE).await {
                Ok((_, outcome)) => break said(outcome),
                Err(error) if task.has_ended() => break Err(not_now(error)),
                Err(error) => debug!(%error, "it is not known yet whether a gap is passed over"),
            }
            tokio::time::sleep(AGAIN).await;
        };
        while !task.has_ended() && self.catalog.read_index(DECIDE).await.is_err() {}
        drop(held);
        decided.map(drop)
    }

    /// The task of a shard that `writer` writes to, if it is led here.
    fn task(
        &self,
        writer: &Writer,
        shard: u32,
        sequence: u64,
    ) -> Result<(Arc<ShardTask>, Arc<dyn CatalogSnapshot>), Status> {
        let id = ShardId {
            table: writer.table,
            index: shard,
        };
        let state = self.catalog.snapshot().map_err(not_now)?;
        let Some(shard) = state.get::<Shard>(&id).map_err(broken)? else {
            return Err(Status::not_found(format!(
                "there is no shard {id}: was the table dropped?"
            )));
        };
        let task = self.supervisor.task(id).filter(|task| !task.has_ended());
        if let Some(task) = task.filter(|_| shard.leader == Some(self.node)) {
            return Ok((task, state));
        }
        let elsewhere = (shard.leader != Some(self.node)).then(|| leader_of(&*state, &shard));
        let leader = elsewhere.transpose().map_err(broken)?.flatten().unwrap_or_default();
        let why = match leader.is_empty() {
            true if shard.leader.is_none() => format!("shard {id} has no leader at the moment"),
            true => format!("this node shall lead shard {id} and does not: it has just begun, or hears no manager"),
            false => format!("shard {id} is led at {leader}"),
        };
        let detail = WriteDetail {
            leader,
            sequence,
            ..detail(Reason::NotLeader)
        };
        Err(status(Code::Unavailable, why, detail))
    }

    async fn writer(&self, id: WriterId) -> Result<Arc<Writer>, Status> {
        let look = || {
            let state = self.catalog.snapshot().map_err(not_now)?;
            state.get::<Writer>(&id).map_err(broken)
        };
        if let Some(writer) = look()? {
            return Ok(Arc::new(writer));
        }
        // It may have been opened at another node a moment ago.
        self.catalog.read_index(DECIDE).await.map_err(not_now)?;
        let gone = || Refusal::NoWriter(id).to_string();
        look()?
            .map(Arc::new)
            .ok_or_else(|| status(Code::NotFound, gone(), detail(Reason::NoWriter)))
    }
}

/// Answers what was taken, in order: commits of a shard follow each other, so nobody waits for a later one's sake.
async fn acknowledge(mut waiting: mpsc::Receiver<Taken>, answers: mpsc::Sender<Result<WriteReply, Status>>) {
    while let Some(taken) = waiting.recv().await {
        let answer = match taken {
            Ok(awaited) => tokio::select! {
                answer = awaited.settle() => answer,
                // Nobody waits any more.
                () = answers.closed() => return,
            },
            Err(status) => Err(status),
        };
        let failed = answer.is_err();
        if answers.send(answer).await.is_err() || failed {
            return;
        }
    }
}

impl Awaited {
    async fn settle(self) -> Result<WriteReply, Status> {
        if self.wait != Wait::Not {
            let soon = self.wait == Wait::ForCommitSoon;
            let committed = self.task.committed(&self.writer, self.end, soon).await;
            committed.map_err(|error| status_of(&error, self.end.0))?;
        }
        Ok(WriteReply { end: self.end.0 })
    }
}

/// Why rows of a shard could not become as safe as they must, if so: a commit would wait for replicas to come back.
fn too_few_in_sync(state: &dyn CatalogSnapshot, writer: &Writer, shard: u32) -> Result<Option<String>, ViewError> {
    let id = ShardId {
        table: writer.table,
        index: shard,
    };
    let (Some(rule), Some(shard)) = (state.replication()?, state.get::<Shard>(&id)?) else {
        return Ok(None);
    };
    let settings = state.get::<Table>(&shard.id.table)?.map(|table| table.settings);
    let needed = settings.unwrap_or_default().disks_needed(rule);
    let mut in_sync = Vec::new();
    for replica in &shard.replicas {
        let node = state.get::<Node>(&replica.node)?;
        in_sync.extend(node.filter(|node| node.state.is_up()).map(|node| node.name));
    }
    Ok((in_sync.len() < needed as usize).then(|| {
        format!(
            "{} of {needed} replicas of shard {} are in sync ({}), which acks = all needs; bring nodes back, or lower \
             min_insync_replicas of the table or min_replicas of the cluster",
            in_sync.len(),
            shard.id,
            in_sync.join(", ")
        )
    }))
}

/// The api address of the leader of `shard`.
fn leader_of(state: &dyn CatalogSnapshot, shard: &Shard) -> Result<Option<String>, ViewError> {
    let Some(leader) = shard.leader else {
        return Ok(None);
    };
    Ok(state.get::<Node>(&leader)?.map(|node| node.addresses.api))
}

fn status_of(error: &WriteError, sequence: u64) -> Status {
    let (code, mut detail) = match error {
        WriteError::Retry(_) => (Code::Unavailable, detail(Reason::Retry)),
        WriteError::Invalid { row, .. } => {
            let detail = WriteDetail {
                row: *row,
                ..detail(Reason::Invalid)
            };
            (Code::InvalidArgument, detail)
        }
        WriteError::Gap { expected, .. } => {
            let detail = WriteDetail {
                expected: expected.0,
                ..detail(Reason::Gap)
            };
            (Code::FailedPrecondition, detail)
        }
    };
    detail.sequence = sequence;
    status(code, error.to_string(), detail)
}

fn detail(reason: Reason) -> WriteDetail {
    WriteDetail {
        reason: reason as i32,
        ..WriteDetail::default()
    }
}

fn status(code: Code, why: String, detail: WriteDetail) -> Status {
    Status::with_details(code, why, detail.encode_to_vec().into())
}

fn not_now(why: impl std::fmt::Display) -> Status {
    status(Code::Unavailable, why.to_string(), detail(Reason::Retry))
}

fn broken(error: ViewError) -> Status {
    Status::internal(error.to_string())
}
