//! What of this node's write-ahead log is not needed any more, by the catalog. Also of shards that other nodes lead now:
//! what they have committed is committed.

use tidemill_core::catalog::SourcePartition;
use tidemill_core::view::{CatalogRead, CatalogSnapshot, ViewError};
use tidemill_core::{Offset, PartitionId, PipeId, ShardId, SpanKey};
use tidemill_storage::wal::{Wal, WalError};
use tracing::warn;

/// A partition of which the log has entries.
pub type Lane = (ShardId, PipeId, PartitionId);

/// Forgets what is committed, and what can never be: of lives that are over, of partitions that belong to another shard now,
/// and of pipes and tables that are gone.
///
/// `lanes` must have been listed before `state` was taken: what a task has logged was known to the catalog at that time, so
/// what `state` does not know is gone, and not new. For the same reason `state` must not be older than this run
/// of the process: after a restart the catalog catches up with what its log holds.
pub fn trim(wal: &Wal, state: &dyn CatalogSnapshot, lanes: &[Lane]) -> Result<(), ViewError> {
    for of_shard in lanes.chunk_by(|(a, ..), (b, ..)| a == b) {
        let mut committed: Vec<(SpanKey, Offset)> = Vec::with_capacity(of_shard.len());
        for (shard, pipe, partition) in of_shard {
            match state.get::<SourcePartition>(&(*pipe, *partition))? {
                Some(p) if p.shard == *shard => committed.push((p.key(), p.offset)),
                _ => tell(wal.drop_lane(*shard, *pipe, *partition)),
            }
        }
        if let Some((shard, ..)) = of_shard.first() {
            tell(wal.trim(*shard, &committed));
        }
    }
    Ok(())
}

/// What could not be forgotten now is forgotten when the log is opened again.
fn tell(trimmed: Result<(), WalError>) {
    if let Err(error) = trimmed {
        warn!("the write-ahead log is not trimmed: {error}");
    }
}
