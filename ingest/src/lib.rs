//! From a source to spans of rows to commits.
//!
//! A [`task::ShardTask`] is what the leader of a shard runs: consumer threads ([`kafka`]) poll the
//! source partitions that map to the shard, a decoder ([`decode`]) turns each run of records into
//! columns, the write-ahead log keeps them where the table asks for it ([`log`]), the memtable (in `tidemill-storage`) makes
//! them queryable, and a writer ([`writer`]) cuts
//! it into parts and commits them together with the offsets they cover.
//!
//! Programs may write rows themselves ([`direct`]): each is a source of its own, and all else is the same.
//!
//! This crate sees the catalog through [`writer::Committer`] alone. It keeps no offset of its own: a
//! task begins where the catalog says, and what the catalog did not accept did not happen.

mod backoff;
pub mod budget;
pub mod decode;
pub mod direct;
pub mod freshness;
pub mod kafka;
pub mod log;
pub mod priority;
pub mod task;
#[cfg(test)]
mod testing;
pub mod writer;
