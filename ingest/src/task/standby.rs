//! A task that stands by: it reads the partitions of a shard that another node leads, into a memtable of its own, so
//! that it can lead at once when that node is lost.
//!
//! It is an ordinary task without a writer. It commits nothing, stops no partition, tells Kafka nothing, shows no row and
//! counts for no lag. It follows the committed offsets and forgets what is below them. To take over means to get a writer and
//! an epoch: same consumers, same memtable (see `memtable/standby.rs` for why that is exact).
//!
//! Its rows are a copy, so whenever it could be in the way it gives in: it forgets them and begins again at the committed
//! offset, later.

use super::{Consumers, ShardTask, TaskContext, WantedPipe};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tidemill_core::catalog::{PipeState, SourcePartition, Standby, Table};
use tidemill_core::tail::Tail;
use tidemill_core::{Epoch, Offset, PipeId, ShardId, SpanKey};
use tidemill_storage::memtable::{Committed, Memtable};
use tracing::{error, info};

/// How long a standby that had to give back its memory reads nothing.
const REST: Duration = Duration::from_secs(30);

/// What a standby remembers.
#[derive(Debug, Default)]
pub(super) struct Memory {
    tail: Tail<Instant>,
    /// Until when nothing is read, for want of memory.
    rests_until: Option<Instant>,
}

/// What the standbys of a node took over, since its process began.
#[derive(Debug, Default)]
pub struct Takeovers {
    /// Partitions that went on from what was in memory.
    pub kept: AtomicU64,
    /// Partitions that were read again from the committed offset on.
    pub read_again: AtomicU64,
    /// Offsets beyond the committed ones that were in memory.
    pub kept_offsets: AtomicU64,
}

impl ShardTask {
    /// Stands by for `shard` of `table`, on the current runtime, without any partition.
    pub fn stand_by(context: Arc<TaskContext>, table: Table, shard: ShardId) -> Self {
        info!(%shard, table = %table.name, "the task stands by");
        Self::new(context, table, Memtable::standby(shard), shard, true)
    }

    /// Leads from now on, in `epoch`. `wanted` is what a state of the catalog says that has this epoch;
    /// [`ShardTask::reconcile`] must follow, with the same.
    pub fn take_over(&self, epoch: Epoch, wanted: &[WantedPipe]) {
        // Rows of writers are not tailed, and so neither kept nor read again.
        let tailed = |w: &&WantedPipe| w.pipe.state == PipeState::Running && w.pipe.source.kafka().is_some();
        let running = wanted.iter().filter(tailed);
        let partitions = running.flat_map(|w| w.partitions.iter().filter(|p| is_read(p)));
        let committed = |p: &SourcePartition| Committed {
            key: p.key(),
            offset: p.offset,
            source_epoch: p.source_epoch,
        };
        let committed: Vec<Committed> = partitions.map(committed).collect();
        let mut go_on = self.memtable.lead(epoch, &committed);
        // Before the log has its epoch, and so before anything is logged behind the rows taken over.
        go_on.retain(|key| {
            let begun = self.log.begin_anew(*key);
            if let Err(error) = &begun {
                error!(shard = %self.shard, ?key, "the partition is read again: {error}");
                self.memtable.close_partition(key.pipe, key.partition);
            }
            begun.is_ok()
        });
        let positions: BTreeMap<SpanKey, Offset> = self.memtable.positions().into_iter().collect();
        let beyond = |c: &Committed| positions.get(&c.key).map_or(0, |to| to.0.saturating_sub(c.offset.0));
        let (kept, offsets) = (go_on.len() as u64, committed.iter().map(beyond).sum::<u64>());
        // Of others it was not to have anything.
        let hot = wanted.iter().filter(|w| w.pipe.settings.standby == Standby::Hot);
        let hot: BTreeSet<PipeId> = hot.map(|w| w.pipe.id).collect();
        let missing = |c: &&Committed| hot.contains(&c.key.pipe) && !go_on.contains(&c.key);
        let again = committed.iter().filter(missing).count() as u64;
        let counts = &self.context.takeovers;
        counts.kept.fetch_add(kept, Ordering::Relaxed);
        counts.read_again.fetch_add(again, Ordering::Relaxed);
        counts.kept_offsets.fetch_add(offsets, Ordering::Relaxed);
        info!(shard = %self.shard, %epoch, kept, again, offsets, "the standby takes over");
        self.account.set_yields(false);
        self.begin_writing(epoch);
    }

    /// Of what the catalog says, that which a standby reads now. Forgets what is committed, and the partitions that are to
    /// begin again: they are opened where the catalog says.
    pub(super) fn worth_tailing(&self, consumers: &Consumers, wanted: Vec<WantedPipe>) -> Vec<WantedPipe> {
        let now = Instant::now();
        let mut memory = self.remembers.lock().unwrap_or_else(PoisonError::into_inner);
        if self.account.must_yield() {
            if memory.rests_until.is_none_or(|until| until <= now) {
                info!(shard = %self.shard, "memory is short: the standby gives back its own and rests");
            }
            memory.rests_until = Some(now + REST);
        }
        if memory.rests_until.is_some_and(|until| now < until) {
            // Nothing is wanted, so everything is closed and forgotten.
            memory.tail = Tail::default();
            self.account.report(0, 0);
            return Vec::new();
        }
        let hot = |w: &WantedPipe| w.pipe.settings.standby == Standby::Hot && w.pipe.state == PipeState::Running;
        let mut worth: Vec<WantedPipe> = wanted.into_iter().filter(hot).collect();
        let positions: BTreeMap<SpanKey, Offset> = self.memtable.positions().into_iter().collect();
        for WantedPipe { pipe, partitions, .. } in &mut worth {
            // What was read by other settings is read anew by these.
            let altered = consumers.get(&pipe.id).is_some_and(|known| known.pipe != *pipe);
            partitions.retain(is_read);
            partitions.retain(|p| {
                let key = p.key();
                let mut to = positions.get(&key).copied();
                if altered || to.is_some_and(|to| memory.tail.is_too_far_behind(key, to, p.offset, now)) {
                    self.memtable.close_partition(key.pipe, key.partition);
                    to = None;
                }
                if to.is_some() {
                    self.memtable.release_below(key, p.offset);
                }
                to.is_some() || memory.tail.may_begin(key, now)
            });
        }
        let known: BTreeSet<SpanKey> = worth
            .iter()
            .flat_map(|w| w.partitions.iter().map(SourcePartition::key))
            .collect();
        memory.tail.keep(&known);
        self.account.observe(&self.memtable);
        worth
    }
}

/// Whether a partition is to be read on.
fn is_read(p: &SourcePartition) -> bool {
    p.stop.is_none() && !p.is_complete()
}
