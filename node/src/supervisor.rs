//! The supervisor: runs a task for every shard that the catalog says this node leads or stands by for, and only for those.
//!
//! It follows the local catalog and makes the difference. It starts nothing before the catalog has
//! taken note of this run of the process: the terms of office of an earlier run are over. When no
//! manager has answered for [`ALONE`], it stops all tasks by itself: this node may be cut off, and
//! another may lead its shards by now. What it starts after that is another run.

use crate::heartbeat::Contact;
use crate::wal;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tidemill_core::catalog::{CatalogQuestions, Node, Pipe, PipeState, Shard, Source, SourcePartition, Table};
use tidemill_core::view::{CatalogRead, CatalogSnapshot, ViewError};
use tidemill_core::{BootId, Epoch, NodeId, ShardId, TableId, Version};
use tidemill_ingest::task::{PartitionProgress, ShardTask, Takeovers, TaskContext, WantedPipe};
use tidemill_raft::Catalog;
use tidemill_storage::memtable::PinnedShard;
use tidemill_storage::wal::Wal;
use tracing::{error, warn};

/// How long a node goes on without a manager.
pub const ALONE: Duration = Duration::from_secs(5);
/// The shortest time between two looks at the catalog, since every commit changes it.
const SETTLE: Duration = Duration::from_millis(20);
/// The longest time between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// Keeps the tasks of this node.
pub struct Supervisor {
    node: NodeId,
    boot: Mutex<BootId>,
    catalog: Catalog,
    context: Arc<TaskContext>,
    contact: Arc<Contact>,
    tasks: Mutex<BTreeMap<ShardId, Arc<ShardTask>>>,
    /// By which version of the catalog the tasks are as they are; `None` until the catalog knows this run.
    follows: Mutex<Option<Version>>,
    draining: AtomicBool,
}

/// What a task has to say of itself.
pub struct TaskReport {
    /// The shard.
    pub shard: ShardId,
    /// The epoch in which it leads; `None` while it stands by.
    pub epoch: Option<Epoch>,
    /// How far its partitions are.
    pub partitions: Vec<PartitionProgress>,
    /// How old records were when they could be queried.
    pub freshness: Vec<u64>,
}

impl Supervisor {
    /// A supervisor without tasks.
    pub fn new(node: NodeId, catalog: Catalog, context: Arc<TaskContext>, contact: Arc<Contact>) -> Self {
        let (tasks, follows, draining) = (Mutex::default(), Mutex::default(), AtomicBool::new(false));
        let boot = Mutex::new(BootId(rand::random()));
        Self {
            node,
            boot,
            catalog,
            context,
            contact,
            tasks,
            follows,
            draining,
        }
    }

    /// What the catalog has to know before anything is led here.
    pub fn boot(&self) -> BootId {
        *self.boot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tasks(&self) -> MutexGuard<'_, BTreeMap<ShardId, Arc<ShardTask>>> {
        // The map is whole after every statement.
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the catalog, forever. To be run on the ingest runtime, since tasks live there.
    pub async fn run(self: Arc<Self>) {
        let mut version = self.catalog.version();
        loop {
            tokio::select! {
                changed = version.changed() => if changed.is_err() { return },
                () = self.context.attention.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
            tokio::time::sleep(SETTLE).await;
            version.mark_unchanged();
            if self.draining.load(Ordering::Acquire) {
                continue;
            }
            if self.contact.silence() > ALONE {
                self.begin_anew();
                continue;
            }
            let logged = self.wal().lanes();
            let looked = self.catalog.snapshot().map_err(|e| e.to_string());
            // Replaying a log takes a while; what else is to be done on this thread need not wait.
            let reconcile =
                |state: Arc<dyn CatalogSnapshot>| tokio::task::block_in_place(|| self.reconcile(&*state, &logged));
            match looked.and_then(|state| reconcile(state).map_err(|e| e.to_string())) {
                Ok(()) => {}
                Err(why) => error!("the catalog cannot be read: {why}"),
            }
        }
    }

    /// `logged`: what the write-ahead log had before `state` was taken.
    fn reconcile(&self, state: &dyn CatalogSnapshot, logged: &[wal::Lane]) -> Result<(), ViewError> {
        let known = state
            .get::<Node>(&self.node)?
            .is_some_and(|node| node.boot == Some(self.boot()));
        let mut wanted = BTreeMap::new();
        if known {
            for shard in state.list::<Shard>(&[])? {
                if shard.leader == Some(self.node) {
                    wanted.insert(shard.id, Some(shard.epoch));
                } else if shard.standby == Some(self.node) {
                    wanted.insert(shard.id, None);
                }
            }
        }
        if known {
            wal::trim(self.wal(), state, logged)?;
        }
        let mut over = self.tasks().clone();
        over.retain(|shard, task| {
            // Whoever stands by may lead next; whoever led in another epoch, or leads no more, ends.
            let fits = |wanted: &Option<Epoch>| task.epoch().is_none() || task.epoch() == *wanted;
            !wanted.get(shard).is_some_and(fits) || task.has_ended()
        });
        self.end(over);
        let tables: BTreeSet<TableId> = wanted.keys().map(|shard| shard.table).collect();
        let pipes: Vec<Pipe> = state
            .list::<Pipe>(&[])?
            .into_iter()
            .filter(|pipe| pipe.state != PipeState::Paused && tables.contains(&pipe.table))
            .collect();
        let mut partitions = Vec::new();
        for pipe in pipes {
            let of_pipe: Vec<SourcePartition> = state.partitions_of(pipe.id)?;
            let writers = match pipe.source {
                Source::Writers { .. } => state.writers_of(pipe.table)?,
                Source::Kafka(_) => Vec::new(),
            };
            partitions.push((pipe, of_pipe, writers));
        }
        for (shard, epoch) in wanted {
            // In a statement of its own: a guard in the match would still be held inside its arms.
            let running = self.tasks().get(&shard).cloned();
            let Some(table) = state.get::<Table>(&shard.table)? else {
                continue;
            };
            let of_shard =
                partitions
                    .iter()
                    .filter(|(pipe, ..)| pipe.table == shard.table)
                    .map(|(pipe, all, writers)| {
                        let partitions = all.iter().filter(|p| p.shard == shard).cloned().collect();
                        WantedPipe {
                            pipe: pipe.clone(),
                            partitions,
                            writers: writers.clone(),
                        }
                    });
            let of_shard: Vec<WantedPipe> = of_shard.collect();
            let (task, can_be_asked) = match (running, epoch) {
                (Some(task), Some(epoch)) if task.epoch().is_none() => {
                    self.tasks().remove(&shard);
                    task.take_over(epoch, &of_shard);
                    (task, false)
                }
                (Some(task), _) => (task, true),
                (None, epoch) => {
                    let (context, table) = (self.context.clone(), table.clone());
                    let task = match epoch {
                        Some(epoch) => ShardTask::start(context, table, shard, epoch),
                        None => ShardTask::stand_by(context, table, shard),
                    };
                    (Arc::new(task), false)
                }
            };
            task.reconcile(&table, of_shard);
            if !can_be_asked {
                // Not before: what it took over and what it has in its log is there, and may be asked for from here on.
                self.tasks().insert(shard, task);
            }
        }
        // When all of that is done: see `leads_nothing_by`.
        self.follow(known.then(|| state.version()));
        Ok(())
    }

    /// Ends all tasks, as when the process ends. What they have proposed may still be under way, and be decided when this node
    /// leads again: under another boot id that is in another term of office, so that the catalog refuses it.
    fn begin_anew(&self) {
        let tasks = self.tasks().clone();
        if tasks.is_empty() {
            return;
        }
        self.follow(None);
        warn!("no manager has answered for {ALONE:?}: {} tasks stop", tasks.len());
        *self.boot.lock().unwrap_or_else(PoisonError::into_inner) = BootId(rand::random());
        self.end(tasks);
    }

    /// Ends tasks outside the lock: that takes a moment. They are gone when they have ended, not before: see
    /// [`Self::leads_nothing_by`].
    fn end(&self, tasks: BTreeMap<ShardId, Arc<ShardTask>>) {
        tasks.values().for_each(|task| task.stop());
        self.tasks().retain(|shard, _| !tasks.contains_key(shard));
    }

    fn follow(&self, version: Option<Version>) {
        *self.follows.lock().unwrap_or_else(PoisonError::into_inner) = version;
    }

    /// The version of the catalog that tasks here follow, if none of them leads. Then nothing is acknowledged here until the
    /// catalog has a later version in which this node leads: a task that has ended acknowledges nothing, whatever it still logs.
    ///
    /// `None` also until the catalog knows this run. An earlier one may have led by versions that this one has yet to see.
    pub fn leads_nothing_by(&self) -> Option<Version> {
        // Before the tasks are looked at: those that begin to lead after that do so by a later version.
        let follows = *self.follows.lock().unwrap_or_else(PoisonError::into_inner);
        follows.filter(|_| self.tasks().values().all(|task| task.epoch().is_none()))
    }

    /// Stops reading and commits everything, in all tasks at once; then no task runs any more.
    pub async fn drain(&self, patience: Duration) {
        self.draining.store(true, Ordering::Release);
        let tasks: Vec<Arc<ShardTask>> = self.tasks().values().cloned().collect();
        let drains = tasks.iter().map(|task| task.drain(patience));
        let unfinished = futures::future::join_all(drains)
            .await
            .into_iter()
            .filter(|done| !done)
            .count();
        if unfinished > 0 {
            warn!("{unfinished} tasks could not commit in time; the next leaders read their rows again");
        }
        self.tasks().clear();
    }

    /// The task of `shard`, if this node runs one.
    pub fn task(&self, shard: ShardId) -> Option<Arc<ShardTask>> {
        self.tasks().get(&shard).cloned()
    }

    /// The uncommitted rows of `shard`, with these columns or all, if this node leads it in `epoch`.
    pub fn pin(&self, shard: ShardId, epoch: Epoch, columns: Option<&BTreeSet<String>>) -> Option<PinnedShard> {
        let task = self.task(shard)?;
        let pinned = task.memtable().pin().filter(|pin| pin.epoch == epoch)?;
        Some(match columns {
            Some(columns) => pinned.with_columns(columns),
            None => pinned,
        })
    }

    /// What every task has to say.
    pub fn reports(&self) -> Vec<TaskReport> {
        let tasks: Vec<(ShardId, Arc<ShardTask>)> = self.tasks().iter().map(|(id, t)| (*id, t.clone())).collect();
        let report = |(shard, task): (ShardId, Arc<ShardTask>)| TaskReport {
            shard,
            epoch: task.epoch(),
            partitions: task.progress(),
            freshness: task.freshness(),
        };
        tasks.into_iter().map(report).collect()
    }

    /// The write-ahead log of this node.
    pub fn wal(&self) -> &Arc<Wal> {
        &self.context.wal
    }

    /// What standbys here took over.
    pub fn takeovers(&self) -> &Takeovers {
        &self.context.takeovers
    }

    /// Bytes in memtables.
    pub fn memtable_bytes(&self) -> u64 {
        self.context.budget.used().memtables
    }
}
