//! Fault tests on real parts: the `tidemill` binary, a real Apache Kafka, real signals.
//!
//! A [`world::World`] is a broker and a cluster in a folder of their own; an [`events::Events`] is a
//! producer that is not ours and says what Kafka acknowledged; a [`scenario`] puts faults in the way
//! and checks that the table holds exactly that.

pub mod cell;
pub mod check;
pub mod cut;
pub mod direct;
pub mod events;
pub mod failover;
pub mod fault;
pub mod history;
pub mod load;
pub mod matrix;
pub mod monitor;
pub mod positions;
pub mod reader;
pub mod replacing;
pub mod report;
pub mod saturation;
pub mod scenario;
pub mod script;
pub mod stage;
pub mod throughput;
pub mod visibility;
pub mod workload;
pub mod world;
