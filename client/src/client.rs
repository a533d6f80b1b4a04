//! The client: statements in, answers out.
//!
//! Owns the session settings and the loop of attempts. Which node is next and when to stop is
//! [`Course`]'s affair, what a failure means [`failure`](crate::failure)'s, and how rows are put
//! together [`rows`](crate::rows)'s.

use crate::config::ClientConfig;
use crate::error::ClientError;
use crate::failure::Failure;
use crate::nodes::{Course, Nodes};
use crate::rows::{Begun, Rows};
use crate::sql;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tidemill_proto::api::tidemill_client::TidemillClient;
use tidemill_proto::api::{ClusterStatusReply, ClusterStatusRequest, QueryRequest};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Response, Status};

/// A connection to a cluster. Clones are cheap and share connections and session settings.
#[derive(Clone)]
pub struct Client {
    nodes: Arc<Nodes>,
    session: Arc<Mutex<BTreeMap<String, String>>>,
}

/// What a statement answers.
#[derive(Debug)]
pub enum Answer {
    /// A statement that returns rows.
    Rows(Rows),
    /// What any other statement did, in words.
    Message(String),
}

impl Client {
    /// Checks the configuration. Connections are made when they are needed.
    ///
    /// # Errors
    /// [`ClientError::Config`] when there is no address or one is not `host:port`.
    pub fn new(config: ClientConfig) -> Result<Self, ClientError> {
        Ok(Self {
            nodes: Arc::new(Nodes::new(config)?),
            session: Arc::default(),
        })
    }

    /// The address of the node that answered last, which is the first to be asked the next time; until one has, the first
    /// that was given. Of clones that ask at the same time, any may have been the last.
    pub fn address(&self) -> &str {
        self.nodes.preferred()
    }

    /// Runs one statement with the session's settings. A `SET` that the server accepts changes
    /// them: it holds for this client and its clones from the next statement on.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn query(&self, sql: &str) -> Result<Answer, ClientError> {
        let answer = self.query_with(sql, &self.settings()).await?;
        if let Some((name, value)) = sql::setting(sql) {
            self.set(name, value);
        }
        Ok(answer)
    }

    /// Runs one statement with exactly these settings; a `SET` has no effect on later ones.
    ///
    /// For rows it returns when the first batch is there.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn query_with(&self, sql: &str, settings: &BTreeMap<String, String>) -> Result<Answer, ClientError> {
        let request = QueryRequest {
            sql: sql.to_owned(),
            settings: settings
                .iter()
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        };
        let mut course = Course::new(&self.nodes, sql::reads(sql));
        loop {
            let mut node = course.next().await?;
            match self.ask(&mut node, request.clone(), course.address()).await {
                Ok(begun) => {
                    course.answered();
                    return Ok(match begun {
                        Begun::Rows(rows) => Answer::Rows(rows),
                        Begun::Message(message) => Answer::Message(message),
                    });
                }
                Err(failure) => course.failed(failure).await?,
            }
        }
    }

    /// What the node that answers knows of the cluster.
    ///
    /// # Errors
    /// [`ClientError::Unavailable`] when no node answers.
    pub async fn cluster_status(&self) -> Result<ClusterStatusReply, ClientError> {
        let mut course = Course::new(&self.nodes, true);
        loop {
            let mut node = course.next().await?;
            let call = node.cluster_status(ClusterStatusRequest {});
            match self.within(call).await {
                Ok(reply) => {
                    course.answered();
                    return Ok(reply.into_inner());
                }
                Err(failure) => course.failed(failure).await?,
            }
        }
    }

    /// The session's settings as they are now.
    #[must_use]
    pub fn settings(&self) -> BTreeMap<String, String> {
        self.session().clone()
    }

    /// Changes a setting of the session; `None` returns to the server's default. The server looks
    /// at it with the next statement.
    pub fn set(&self, name: impl Into<String>, value: Option<String>) {
        let name = name.into();
        match value {
            Some(value) => self.session().insert(name, value),
            None => self.session().remove(&name),
        };
    }

    /// Asks node after node until one answers: for calls that may be repeated. A node has `patience` to answer; `failure_of`
    /// says what a failed call means.
    pub(crate) async fn ask_any<T, F>(
        &self,
        patience: Duration,
        failure_of: fn(&Status) -> Failure,
        call: impl Fn(Channel) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut course = Course::new(&self.nodes, true);
        loop {
            let channel = course.channel().await?;
            let failure = match timeout(patience, call(channel)).await {
                Ok(Ok(reply)) => {
                    course.answered();
                    return Ok(reply.into_inner());
                }
                Ok(Err(status)) => failure_of(&status),
                Err(_) => Failure::Lost(format!("no answer within {patience:?}")),
            };
            course.failed(failure).await?;
        }
    }

    pub(crate) fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    fn session(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        // Held for one map operation only, which leaves the map whole even when it panics.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(
        &self,
        node: &mut TidemillClient<Channel>,
        request: QueryRequest,
        address: &str,
    ) -> Result<Begun, Failure> {
        let stream = self.within(node.query(request)).await?.into_inner();
        Rows::begin(stream, address, self.nodes.request_timeout).await
    }

    async fn within<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, Failure> {
        match timeout(self.nodes.request_timeout, call).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(status)) => Err(Failure::from_status(&status)),
            Err(_) => Err(Failure::Lost(format!(
                "no answer within {:?}",
                self.nodes.request_timeout
            ))),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("settings", &self.settings())
            .finish_non_exhaustive()
    }
}
