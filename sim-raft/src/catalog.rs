//! The state machine: the catalog as `raft/src/catalog_store.rs` keeps it. Entries are applied in runs, by the rules of
//! `tidemill_core`, and written with the position that they lead to in one batch, which is not synced. Snapshots are whole
//! copies, durable before they count; one that arrives takes the place of the catalog, durably, and then that of the last snapshot.

use crate::disk::{Batch, CatalogState};
use crate::mutant::Mutant;
use crate::runtime::{Signal, lock, true_sleep};
use crate::timing::RUN_ENTRIES;
use crate::types::{Entry, LogId, Membership, Reply, Snapshot, SnapshotMeta, TypeConfig};
use crate::world::{Machine, World};
use futures::{Stream, TryStreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, StoredMembership};
use std::io;
use std::sync::Arc;
use tidemill_core::Version;
use tidemill_core::view::{MemView, Overlay};

/// The content of a snapshot.
pub(crate) type SnapshotFiles = Arc<CatalogState>;

/// See the module.
#[derive(Clone)]
pub(crate) struct CatalogStore {
    world: Arc<World>,
    machine: Arc<Machine>,
    moved: Arc<Signal>,
}

impl CatalogStore {
    /// Opens the catalog on the disk of `machine`; `moved` tells when it is another.
    pub fn open(world: &Arc<World>, machine: &Arc<Machine>, moved: Arc<Signal>) -> Self {
        if world.mutant == Some(Mutant::AppliesTwiceAfterRestart) {
            let mut disk = lock(&machine.disk);
            // As if the position were written some time after what it stands for.
            let seen = disk.log.found().entries.into_values().map(|entry| entry.log_id);
            let applied = disk.catalog.current.applied;
            disk.catalog.current.applied = seen.filter(|id| Some(*id) < applied).rev_nth(3).or(applied);
        }
        Self {
            world: world.clone(),
            machine: machine.clone(),
            moved,
        }
    }

    fn apply_run(&self, entries: &[Entry]) -> io::Result<Vec<Reply>> {
        let Some(last) = entries.last() else {
            return Ok(Vec::new());
        };
        let mut disk = lock(&self.machine.disk);
        let (writes, membership, replies) = decide(&disk.catalog.current.view, entries)?;
        let mut batch = Batch {
            writes,
            applied: last.log_id,
            membership,
        };
        if self.world.mutant == Some(Mutant::BatchIsTorn) && entries.len() > 1 {
            batch.writes = decide(&disk.catalog.current.view, &entries[..1])?.0;
        }
        disk.catalog.write(batch);
        if self.world.roll(|dice| dice.one_in(50)) {
            // RocksDB moves what it has in memory into files when it likes to.
            disk.catalog.sync();
        }
        self.world
            .applied(&self.machine, entries, &replies, &disk.catalog.current.view);
        drop(disk);
        self.moved.notify();
        Ok(replies)
    }

    /// Stands still at a place where it may be that the machine dies.
    async fn at_risk(&self) {
        true_sleep(self.world.sync_time(&self.machine)).await;
        if self.world.dies_while_installing(&self.machine) {
            std::future::pending::<()>().await;
        }
    }
}

/// What comes of `entries`.
type Decided = (tidemill_core::view::WriteSet, Option<Membership>, Vec<Reply>);

fn decide(view: &MemView, entries: &[Entry]) -> io::Result<Decided> {
    let mut overlay = Overlay::new(view);
    let mut membership = None;
    let mut replies = Vec::with_capacity(entries.len());
    for entry in entries {
        replies.push(match &entry.payload {
            EntryPayload::Blank => Reply(None),
            EntryPayload::Normal(logged) => {
                let outcome = tidemill_core::apply(&mut overlay, Version(entry.log_id.index), &logged.0)
                    .map_err(|e| io::Error::other(format!("entry {} cannot be applied: {e}", entry.log_id)))?;
                Reply(Some(outcome))
            }
            EntryPayload::Membership(members) => {
                membership = Some(StoredMembership::new(Some(entry.log_id), members.clone()));
                Reply(None)
            }
        });
    }
    Ok((overlay.into_writes(), membership, replies))
}

/// The last but some.
trait FromTheEnd: Iterator + Sized {
    fn rev_nth(self, n: usize) -> Option<Self::Item> {
        let all: Vec<Self::Item> = self.collect();
        let at = all.len().checked_sub(n)?;
        all.into_iter().nth(at)
    }
}

impl<I: Iterator> FromTheEnd for I {}

impl RaftStateMachine<TypeConfig> for CatalogStore {
    type SnapshotData = SnapshotFiles;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, Membership)> {
        let disk = lock(&self.machine.disk);
        Ok((disk.catalog.current.applied, disk.catalog.current.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        loop {
            let mut run = Vec::new();
            let mut responders: Vec<Option<ApplyResponder<TypeConfig>>> = Vec::new();
            while run.len() < RUN_ENTRIES
                && let Some((entry, responder)) = entries.try_next().await?
            {
                run.push(entry);
                responders.push(responder);
            }
            if run.is_empty() {
                return Ok(());
            }
            true_sleep(self.world.write_time(&self.machine)).await;
            let replies = self.apply_run(&run)?;
            for (responder, reply) in responders.into_iter().zip(replies) {
                if let Some(responder) = responder {
                    responder.send(reply);
                }
            }
        }
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFiles) -> io::Result<()> {
        self.at_risk().await;
        let durable = self.world.mutant != Some(Mutant::InstallIsNotSynced);
        if snapshot.applied != meta.last_log_id && self.world.mutant != Some(Mutant::SnapshotIsOlderThanItSays) {
            return Err(io::Error::other(format!(
                "the snapshot {meta:?} is at {:?}",
                snapshot.applied
            )));
        }
        let state = CatalogState {
            applied: meta.last_log_id,
            ..(*snapshot).clone()
        };
        self.world.installed(&self.machine, &state);
        lock(&self.machine.disk).catalog.replace(state, durable);
        self.moved.notify();
        self.at_risk().await;
        lock(&self.machine.disk).catalog.adopt(meta.clone(), snapshot, true);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let disk = lock(&self.machine.disk);
        let snapshot = disk.catalog.snapshot();
        Ok(snapshot.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for CatalogStore {
    type SnapshotData = SnapshotFiles;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        true_sleep(self.world.sync_time(&self.machine)).await;
        let early = lock(&self.machine.disk).catalog.current.clone();
        if self.world.mutant == Some(Mutant::SnapshotIsOlderThanItSays) {
            true_sleep(self.world.sync_time(&self.machine)).await;
        }
        let syncs = self.world.mutant != Some(Mutant::PurgesWhatIsNotSynced);
        let state = {
            let mut disk = lock(&self.machine.disk);
            if syncs {
                // What a checkpoint copies has been moved into files before.
                disk.catalog.sync();
            }
            disk.catalog.current.clone()
        };
        let meta = SnapshotMeta {
            last_log_id: state.applied,
            last_membership: state.membership.clone(),
        };
        let state = match self.world.mutant {
            Some(Mutant::SnapshotIsOlderThanItSays) => early,
            _ => state,
        };
        true_sleep(self.world.copy_time(&self.machine)).await;
        let snapshot = Arc::new(state);
        let catalog = &mut lock(&self.machine.disk).catalog;
        // A newer one may have been installed meanwhile.
        let newer = catalog
            .snapshot()
            .is_some_and(|(last, _)| last.last_log_id > meta.last_log_id);
        if !newer || self.world.mutant == Some(Mutant::OlderSnapshotTakesOver) {
            catalog.adopt(meta.clone(), snapshot.clone(), syncs);
        }
        self.world.count("snapshots");
        Ok(Snapshot { meta, snapshot })
    }
}
