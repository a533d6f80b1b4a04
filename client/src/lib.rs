//! The Rust SDK: runs SQL statements on a Tidemill cluster over gRPC, and writes rows ([`Writer`]).
//!
//! Any node answers any statement, so a [`Client`] is given several addresses and uses whichever
//! answers. It promises to repeat a request only where that is safe: a statement that reads may be
//! asked again until its first rows are there, any other only when it certainly did not take
//! effect. Where that is not certain the caller is told so with [`ClientError::Unknown`]. It does
//! not parse SQL beyond words, quotes and comments ([`sql`]), and it does not encrypt.
//!
//! ```no_run
//! # async fn example() -> Result<(), tidemill_client::ClientError> {
//! use tidemill_client::{Answer, Client, ClientConfig};
//!
//! let client = Client::new(ClientConfig::new(["127.0.0.1:7401", "127.0.0.1:7402"]))?;
//! if let Answer::Rows(mut rows) = client.query("SELECT 1 AS one").await? {
//!     while let Some(batch) = rows.next().await? {
//!         println!("{} rows", batch.num_rows());
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod client;
mod config;
mod error;
mod failure;
mod membership;
mod nodes;
mod rows;
pub mod sql;
mod writer;
mod writes;

pub use client::{Answer, Client};
pub use config::ClientConfig;
pub use error::{ClientError, Tried};
pub use rows::Rows;
pub use tidemill_proto::api::{Acks, ClusterStatusReply, Intent, JoinRequest, NodeReply, NodeStatus, ShardStatus};
pub use writer::{Delivered, Delivery, WriteError, Writer, WriterOptions};
