//! The Tidemill node: wiring, supervisor, services and command line.
//!
//! Four runtimes keep what must never wait apart from what may: `control` runs Raft, heartbeats, the manager
//! and HTTP; `ingest` runs the writers of the shards, the keeper of parts and the api; `statements` begins SQL and sends
//! what comes of it; `query` runs the operators in between, which hold a thread for seconds. Consumer threads are threads of
//! their own.

pub mod adapters;
pub mod allocator;
pub mod cli;
pub mod collector;
pub mod config;
pub mod headroom;
pub mod heartbeat;
pub mod http;
pub mod idle_writers;
pub mod ipc;
pub mod join;
pub mod manager;
pub mod memory;
pub mod metrics;
pub mod parts;
pub mod replay;
pub mod server;
pub mod services;
pub mod signals;
pub mod stranded;
pub mod supervisor;
pub mod time;
pub mod wal;
