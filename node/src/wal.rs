//! What of this node's write-ahead log is not needed any more, by the catalog. Also of shards that other nodes lead now:
//! what they have committed is committed.

use tidemill_core::catalog::SourcePartition;
use tidemill_core::view::{CatalogRead, ViewError};
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
pub fn trim(wal: &Wal, state: &(impl CatalogRead + ?Sized), lanes: &[Lane]) -> Result<(), ViewError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_core::view::{MemView, Overlay};
    use tidemill_core::{Counts, Epoch, Incarnation, Ledger, Span, TableId};
    use tidemill_storage::memtable::Chunk;
    use tidemill_storage::wal::WalOptions;

    fn shard(index: u32) -> ShardId {
        ShardId {
            table: TableId(1),
            index,
        }
    }

    /// Ten offsets of partition `partition` of pipe 1, in which there was nothing.
    fn chunk(partition: u32, life: u64, start: u64) -> Chunk {
        let key = SpanKey {
            pipe: PipeId(1),
            partition: PartitionId(partition),
            incarnation: Incarnation(life),
        };
        let span = Span {
            key,
            start: Offset(start),
            end: Offset(start + 10),
            counts: Counts {
                absent: 10,
                ..Counts::default()
            },
            topic: None,
            source_epoch: None,
        };
        Chunk {
            span,
            rows: None,
            rejects: None,
        }
    }

    /// A catalog in which partition `n` is in life 2, belongs to the shard, and is committed up to the offset given.
    fn state(partitions: &[(ShardId, u64)]) -> MemView {
        let mut state = MemView::default();
        let mut draft = Overlay::new(&state);
        for (n, (shard, offset)) in partitions.iter().enumerate() {
            let partition = SourcePartition {
                pipe: PipeId(1),
                partition: PartitionId(n as u32),
                shard: *shard,
                incarnation: Incarnation(2),
                offset: Offset(*offset),
                until: None,
                topic: None,
                source_epoch: None,
                ledger: Ledger::default(),
                stop: None,
                committed_at_ms: 0,
            };
            draft.put(&(PipeId(1), partition.partition), &partition).unwrap();
        }
        let writes = draft.into_writes();
        state.write(writes);
        state
    }

    /// What the log has left of each partition: shard, partition, first offsets.
    fn left(wal: &Wal) -> Vec<(u32, u32, Vec<u64>)> {
        let of_lane = |(shard, pipe, partition): Lane| {
            let key = SpanKey {
                pipe,
                partition,
                incarnation: Incarnation(2),
            };
            let found = wal.recover(shard, key, Offset(0)).unwrap();
            let chunks = found.chunks.iter().map(|chunk| chunk.span.start.0);
            let starts = chunks.chain(found.unused.iter().map(|entry| entry.start.0));
            (shard.index, partition.0, starts.collect())
        };
        wal.lanes().into_iter().map(of_lane).collect()
    }

    #[test]
    fn the_log_keeps_what_the_catalog_has_not_and_may_still_get() {
        let folder = tempfile::TempDir::new().unwrap();
        let wal = Wal::open(folder.path(), WalOptions::default()).unwrap();
        for (index, partition, life) in [(0, 0, 2), (0, 1, 1), (0, 1, 2), (0, 2, 2), (1, 3, 2), (1, 4, 2)] {
            for start in [0, 10, 20] {
                wal.append(shard(index), Epoch(1), &[chunk(partition, life, start)])
                    .unwrap();
            }
        }
        let lanes = wal.lanes();
        // Logged after the lanes were listed, of a pipe that the state is too old to know.
        let mut later = chunk(0, 1, 0);
        later.span.key.pipe = PipeId(9);
        wal.append(shard(0), Epoch(1), &[later]).unwrap();
        // Partition 2 is in shard 1 now, and 4 is gone.
        let state = state(&[(shard(0), 19), (shard(0), 0), (shard(1), 0), (shard(1), 30)]);
        trim(&wal, &state, &lanes).unwrap();
        let later = (0, 0, vec![0]);
        assert_eq!(left(&wal), [(0, 0, vec![10, 20]), (0, 1, vec![0, 10, 20]), later]);
    }
}
