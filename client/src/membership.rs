//! Joining, draining and removing nodes. Every call names what it means so that it can be repeated safely: a node that
//! joins by its data folder, any other by its id. So whatever is lost on the way, it is asked again.

use crate::client::Client;
use crate::error::ClientError;
use crate::failure::Failure;
use std::time::Duration;
use tidemill_proto::api::membership_client::MembershipClient;
use tidemill_proto::api::{FindNodeRequest, Intent, JoinRequest, NodeReply, SetIntentRequest};

/// A node passes a call on to the manager, which may have to wait for a quorum: longer than this, nobody answers.
const ANSWER: Duration = Duration::from_secs(10);

impl Client {
    /// Asks the cluster to admit a data folder as a node; answers with its id, the same for every repetition.
    ///
    /// # Errors
    /// [`ClientError::Server`] when the cluster refuses; [`ClientError::Unavailable`] when nobody could decide.
    pub async fn join(&self, request: JoinRequest) -> Result<u64, ClientError> {
        let call = |channel| {
            let request = request.clone();
            async move { MembershipClient::new(channel).join(request).await }
        };
        Ok(self.ask_any(ANSWER, Failure::from_status, call).await?.node)
    }

    /// The node called `name`; if only removed ones had that name, the last of them.
    ///
    /// # Errors
    /// As [`Client::join`].
    pub async fn find_node(&self, name: &str) -> Result<NodeReply, ClientError> {
        let request = FindNodeRequest {
            name: name.to_owned(),
            passed_on: false,
        };
        let call = |channel| {
            let request = request.clone();
            async move { MembershipClient::new(channel).find_node(request).await }
        };
        self.ask_any(ANSWER, Failure::from_status, call).await
    }

    /// Says what is wanted of the node with this id, and answers how far that is. Asked again, it changes nothing.
    ///
    /// # Errors
    /// As [`Client::join`].
    pub async fn set_intent(&self, node: u64, intent: Intent) -> Result<NodeReply, ClientError> {
        let request = SetIntentRequest {
            node,
            intent: intent.into(),
            passed_on: false,
        };
        let call = |channel| async move { MembershipClient::new(channel).set_intent(request).await };
        self.ask_any(ANSWER, Failure::from_status, call).await
    }
}
