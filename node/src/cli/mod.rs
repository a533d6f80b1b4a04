//! The command line for people and scripts: a SQL shell, the state of the cluster, its nodes, and the
//! configuration of a new one.
//!
//! Everything here talks to a cluster through `tidemill-client` only, or writes configuration
//! files. Each command has `Args` for clap and a `run` that ends in an exit code; what is printed
//! is made by pure functions. Starting a node is not done here: `node join` ends with the configuration to start.

pub mod check;
mod csv;
pub mod dev;
mod fault;
pub mod init;
pub mod join;
mod meta;
pub mod node;
mod output;
mod shell;
pub mod sql;
pub mod status;
mod table;
mod width;
pub mod write;

use std::process::ExitCode;
use std::time::Duration;
use tidemill_client::{Client, ClientConfig, ClientError, ClusterStatusReply};

/// Where the cluster is: the same option for all commands that need one.
#[derive(Clone, Debug, clap::Args)]
pub struct Connect {
    /// Api addresses of the nodes, separated by commas; any node will do
    #[arg(
        long,
        env = "TIDEMILL_CONNECT",
        value_name = "HOST:PORT,…",
        value_delimiter = ',',
        default_value = "127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403"
    )]
    connect: Vec<String>,
}

/// Who only wants to look shall not wait for a cluster that is not there.
const LOOK_FOR: Duration = Duration::from_secs(2);

impl Connect {
    fn addresses(&self) -> Vec<String> {
        let trimmed = self.connect.iter().map(|address| address.trim());
        trimmed
            .filter(|address| !address.is_empty())
            .map(str::to_owned)
            .collect()
    }

    fn config(&self) -> ClientConfig {
        ClientConfig::new(self.addresses())
    }

    fn client(&self) -> Result<Client, ClientError> {
        Client::new(self.config())
    }

    async fn status(&self) -> Result<ClusterStatusReply, ClientError> {
        let config = ClientConfig {
            retry_for: LOOK_FOR,
            ..self.config()
        };
        Client::new(config)?.cluster_status().await
    }
}

/// How the program ends after an error: 1 for a plain no, 2 when no node could be reached, 3 when
/// it is unknown whether the statement took effect.
fn exit_code(error: &ClientError) -> ExitCode {
    match error {
        ClientError::Config { .. } | ClientError::Invalid { .. } | ClientError::Server { .. } => ExitCode::from(1),
        ClientError::Unavailable { .. } => ExitCode::from(2),
        ClientError::Unknown { .. } => ExitCode::from(3),
    }
}
