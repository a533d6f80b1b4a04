//! The calls about writers: each may be repeated, so that whatever is lost on the way is asked again.

use crate::client::Client;
use crate::error::ClientError;
use crate::failure::Failure;
use prost::Message;
use std::collections::BTreeMap;
use std::time::Duration;
use tidemill_proto::api::write_detail::Reason;
use tidemill_proto::api::writes_client::WritesClient;
use tidemill_proto::api::{
    Acks, CloseWriterRequest, FindLeadersRequest, OpenWriterReply, OpenWriterRequest, PassGapRequest, WriteDetail,
};
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::Channel;

/// How long a node may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

impl Client {
    /// `token` is chosen at random; a repetition has the same.
    pub(crate) async fn open_writer(
        &self,
        table: &str,
        acks: Acks,
        token: u128,
    ) -> Result<OpenWriterReply, ClientError> {
        let request = OpenWriterRequest {
            table: table.to_owned(),
            acks: acks.into(),
            token: format!("{token:032x}"),
        };
        let call = move |channel| {
            let request = request.clone();
            async move { WritesClient::new(channel).open_writer(request).await }
        };
        self.ask_any(ANSWER, failure_of, call).await
    }

    pub(crate) async fn close_writer(&self, writer: u64, acknowledged: BTreeMap<u32, u64>) -> Result<(), ClientError> {
        let request = CloseWriterRequest {
            writer,
            acknowledged: acknowledged.into_iter().collect(),
        };
        let call = move |channel| {
            let request = request.clone();
            async move { WritesClient::new(channel).close_writer(request).await }
        };
        self.ask_any(ANSWER, failure_of, call).await?;
        Ok(())
    }

    /// To be asked at the leader of the shard, by way of `channel`.
    pub(crate) async fn pass_gap(channel: Channel, request: PassGapRequest) -> Result<(), Status> {
        let asked = timeout(ANSWER, WritesClient::new(channel).pass_gap(request)).await;
        let asked = asked.unwrap_or_else(|_| Err(Status::unavailable(format!("no answer within {ANSWER:?}"))));
        asked.map(drop)
    }

    pub(crate) async fn find_leaders(&self, table: u64) -> Result<Vec<String>, ClientError> {
        let request = FindLeadersRequest { table };
        let call = move |channel| async move { WritesClient::new(channel).find_leaders(request).await };
        Ok(self.ask_any(ANSWER, failure_of, call).await?.leaders)
    }
}

fn failure_of(status: &Status) -> Failure {
    let detail = WriteDetail::decode(status.details()).unwrap_or_default();
    match detail.reason() {
        Reason::Retry => Failure::Retryable(status.message().to_owned()),
        _ => Failure::from_status(status),
    }
}
