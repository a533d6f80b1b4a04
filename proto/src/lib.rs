//! The wire of Tidemill: the services between nodes and for clients, generated from `proto/*.proto`.

/// The Raft group among the nodes (`raft.proto`).
#[allow(missing_docs, clippy::all)]
pub mod raft {
    tonic::include_proto!("tidemill.raft.v1");
}

mod wait;

/// Clients, fresh scans and heartbeats (`api.proto`).
#[allow(missing_docs, clippy::all)]
pub mod api {
    tonic::include_proto!("tidemill.api.v1");
}
