//! The keeper of this node's disk: copies what is missing, verifies what is there, and tidies up.
//!
//! One task does it all, one thing after the other, so that nothing that it does meets anything else that it does: what
//! it says of a file, the catalog gets to know before the file can go. All of it can be cut short anywhere and
//! begun again: what was copied is found on the disk and only verified. The catalog decides; a claim that does not
//! fit any more is passed over or refused there.
//!
//! A file may be deleted here when a linearizable state says that this node is no replica of its shard (the
//! catalog has forgotten its copy before), or that nothing refers to it and its epoch is over, so that no commit can
//! name it any more. Files of dropped parts are deleted by the manager, which knows who still reads them.

use super::places::{ClusterDisks, Damaged};
use super::state::KeeperState;
use crate::adapters::propose;
use crate::collector::is_over;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tidemill_core::catalog::{CatalogQuestions, Copies, Node, ReplicaState, Shard, Tombstone};
use tidemill_core::command::{ReplicaOf, SetHoldings};
use tidemill_core::view::{CatalogRead, CatalogSnapshot};
use tidemill_core::{Command, PartId, ShardId, Version};
use tidemill_raft::Catalog;
use tidemill_storage::part::place_of;
use tidemill_storage::store::{Disk, PartStore, Replicas, StoreError};
use tokio::sync::mpsc;
use tracing::{info, warn};
use xxhash_rust::xxh3::xxh3_64;

/// How often it looks, at most and at least.
const LOOK: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// How often files that nobody needs are looked for, and files that should be there.
const SWEEP: Duration = Duration::from_secs(30);
/// How long a verdict of the catalog is waited for.
const DECIDE: Duration = Duration::from_secs(5);
/// How many files are told at once, and after which time fewer.
const TELL: (usize, Duration) = (200, Duration::from_secs(1));
/// How long a file that cannot be copied from anywhere is left alone.
const AGAIN: Duration = Duration::from_secs(2);

/// How much of the machine the keeper may take.
#[derive(Clone, Copy, Debug)]
pub struct KeeperConfig {
    /// Bytes per second that are copied from other nodes.
    pub copy_rate: u64,
    /// Bytes per second that are verified in the background.
    pub scrub_rate: u64,
}

/// See the module's page.
pub struct Keeper {
    catalog: Catalog,
    disk: Disk,
    disks: Arc<ClusterDisks>,
    damaged: mpsc::UnboundedReceiver<Damaged>,
    config: KeeperConfig,
    state: Arc<KeeperState>,
    /// Files that could be copied from nowhere, and when that was tried.
    failed: BTreeMap<PartId, Instant>,
    /// The last file that was verified in the background.
    scrubbed: Option<(ShardId, PartId)>,
    /// How many bytes may be verified; below zero after a large file.
    credit: f64,
    swept: Option<Instant>,
}

/// What the keeper has to do for one shard.
struct Work {
    /// The version of the catalog that says so.
    seen: Version,
    shard: ShardId,
    state: ReplicaState,
    missing: Vec<Copies>,
}

impl Keeper {
    /// A keeper of the own disk of `disks`; it hears of damage through `damaged`.
    pub fn new(
        disks: Arc<ClusterDisks>,
        damaged: mpsc::UnboundedReceiver<Damaged>,
        config: KeeperConfig,
        state: Arc<KeeperState>,
    ) -> Self {
        Self {
            catalog: disks.catalog.clone(),
            disk: disks.own.clone(),
            disks,
            damaged,
            config,
            state,
            failed: BTreeMap::new(),
            scrubbed: None,
            credit: 0.0,
            swept: None,
        }
    }

    /// Keeps forever.
    pub async fn run(mut self) {
        let mut version = self.catalog.version();
        let mut scrub_from = Instant::now();
        loop {
            let began = Instant::now();
            if let Err(error) = self.look().await {
                warn!("parts are not kept as they should be, trying again: {error:#}");
            }
            // Looking costs a scan of the catalog: where that is large, it is done less often.
            let pause = (began.elapsed() * 10).clamp(LOOK.0, LOOK.1);
            let until = tokio::time::Instant::now() + pause;
            if let Err(error) = self.scrub(scrub_from.elapsed()).await {
                warn!("parts cannot be verified, trying again: {error:#}");
            }
            scrub_from = Instant::now();
            tokio::time::sleep_until(until).await;
            // What was missed may also be noticed while something waits to be tried again.
            tokio::select! {
                biased;
                path = self.damaged.recv() => {
                    // Many reads may have met the same file.
                    let mut paths: BTreeSet<Damaged> = path.into_iter().collect();
                    while let Ok(path) = self.damaged.try_recv() {
                        paths.insert(path);
                    }
                    for path in paths {
                        self.examine(path).await;
                    }
                }
                changed = version.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK.1) => {}
            }
            version.mark_unchanged();
        }
    }

    fn snapshot(&self) -> anyhow::Result<Arc<dyn CatalogSnapshot>> {
        Ok(self.catalog.snapshot()?)
    }

    async fn look(&mut self) -> anyhow::Result<()> {
        let state = self.snapshot()?;
        // Nothing counts before the catalog knows this disk.
        let me = self.disk.holder();
        if state
            .get::<Node>(&me.node)?
            .is_none_or(|node| node.disk != Some(me.disk))
        {
            return Ok(());
        }
        if self.swept.is_none_or(|at| at.elapsed() >= SWEEP) {
            // Copying goes first in importance: it must not wait for this to succeed.
            self.swept = Some(Instant::now());
            if let Err(error) = self.sweep().await {
                warn!("files that nobody needs cannot be looked for: {error:#}");
            }
        }
        let work = self.missing(&*state)?;
        drop(state);
        for work in work {
            self.copy(work).await?;
        }
        Ok(())
    }

    /// What this node shall keep and does not hold.
    fn missing(&mut self, state: &dyn CatalogSnapshot) -> anyhow::Result<Vec<Work>> {
        let me = self.disk.holder();
        let (mut files, mut bytes, mut work) = (0, 0, Vec::new());
        for shard in state.list::<Shard>(&[])? {
            let Some(replica) = shard.replica(me.node) else {
                continue;
            };
            let mut missing = state.copies_of(shard.id)?;
            missing.retain(|copies| !copies.on(me));
            files += missing.len() as u64;
            bytes += missing.iter().map(|copies| copies.bytes).sum::<u64>();
            if !missing.is_empty() || replica.state == ReplicaState::Copying {
                work.push(Work {
                    seen: state.version(),
                    shard: shard.id,
                    state: replica.state,
                    missing,
                });
            }
        }
        self.state.missing(files, bytes);
        self.failed.retain(|_, at| at.elapsed() < AGAIN);
        Ok(work)
    }

    /// Copies the files of one shard, and says so; then that the replica is complete, if it is.
    async fn copy(&mut self, work: Work) -> anyhow::Result<()> {
        let (mut held, mut told, mut left) = (Vec::new(), Instant::now(), work.missing.len());
        let total: u64 = work.missing.iter().map(|copies| copies.bytes).sum();
        if work.state == ReplicaState::Copying && left > 0 {
            info!(shard = %work.shard, files = left, bytes = total, "copying");
        }
        for copies in work.missing {
            if self.failed.contains_key(&copies.part) {
                continue;
            }
            match self.fetch(&copies).await {
                Ok(()) => {
                    held.push((work.shard, copies.part));
                    left -= 1;
                }
                Err(error) => {
                    warn!(shard = %work.shard, "{} cannot be copied yet: {error}", copies.path);
                    self.failed.insert(copies.part, Instant::now());
                }
            }
            if held.len() >= TELL.0 || told.elapsed() >= TELL.1 {
                self.tell(work.seen, std::mem::take(&mut held), Vec::new()).await?;
                told = Instant::now();
            }
        }
        self.tell(work.seen, held, Vec::new()).await?;
        if work.state == ReplicaState::Copying && left == 0 {
            let of = ReplicaOf {
                shard: work.shard,
                node: self.disk.holder().node,
            };
            match propose(&self.catalog, Command::CompleteReplica(of), DECIDE).await?.1 {
                Ok(_) => info!(shard = %work.shard, "the replica is complete"),
                // Files have come meanwhile: the next look copies them.
                Err(refusal) => tracing::debug!(shard = %work.shard, %refusal, "the replica is not complete yet"),
            }
        }
        Ok(())
    }

    /// Makes sure that the file is on the disk, durable, and is the one that was committed. What is there instead is
    /// replaced only when the right one is at hand.
    async fn fetch(&self, copies: &Copies) -> Result<(), StoreError> {
        let began = Instant::now();
        let mut other = false;
        match self.disk.get(&copies.path).await {
            // Put here and not counted, or copied before this process began: put again, since nobody may have seen it
            // become durable.
            Ok(bytes) if is_file(copies, &bytes) => return self.disk.put(&copies.path, bytes).await.map(drop),
            Ok(_) => other = true,
            Err(_) if self.mend(copies).await => return Ok(()),
            Err(_) => {}
        }
        let bytes = self.fetch_elsewhere(copies).await?;
        if other {
            self.disk.delete(&copies.path).await?;
        }
        self.disk.put(&copies.path, bytes).await?;
        self.state.copied_bytes.fetch_add(copies.bytes, Ordering::Relaxed);
        pace(copies.bytes, self.config.copy_rate, began).await;
        Ok(())
    }

    /// The file as another node has it.
    async fn fetch_elsewhere(&self, copies: &Copies) -> Result<Bytes, StoreError> {
        let mut last = StoreError::NotFound {
            path: copies.path.clone(),
        };
        let places = self.disks.sources(&copies.path).into_iter();
        for place in places.filter(|place| place.id != self.disks.own_id()) {
            match place.disk.get(&copies.path).await {
                Ok(bytes) if is_file(copies, &bytes) => return Ok(bytes),
                Ok(_) => {
                    last = StoreError::Damaged {
                        path: copies.path.clone(),
                        what: format!("what node '{}' has is not what was committed", place.node),
                    }
                }
                // That one has none is worth saying only if nothing else is.
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Gives a file its checksums again, if it is whole and only they are damaged or missing.
    async fn mend(&self, copies: &Copies) -> bool {
        match self.disk.get_unverified(&copies.path).await {
            Ok(bytes) if is_file(copies, &bytes) => self.disk.put(&copies.path, bytes).await.is_ok(),
            _ => false,
        }
    }

    /// Tells the catalog which files are on the disk, and which are there no more.
    /// What it holds was looked for after the catalog was at `seen`.
    async fn tell(
        &self,
        seen: Version,
        holds: Vec<(ShardId, PartId)>,
        lost: Vec<(ShardId, PartId, String)>,
    ) -> anyhow::Result<()> {
        if holds.is_empty() && lost.is_empty() {
            return Ok(());
        }
        let disk = self.disk.holder();
        let command = Command::SetHoldings(SetHoldings {
            disk,
            seen,
            holds,
            lost,
        });
        propose(&self.catalog, command, DECIDE).await?.1?;
        Ok(())
    }

    /// Looks at a file that could not be read.
    async fn examine(&mut self, path: Damaged) {
        let examined = async {
            let Some((shard, _, part)) = place_of(&path) else {
                return Ok(());
            };
            let copies = self.snapshot()?.get::<Copies>(&(shard, part))?;
            match copies.filter(|copies| copies.on(self.disk.holder())) {
                Some(copies) => self.verify(shard, &copies).await,
                None => Ok(()),
            }
        };
        let examined: anyhow::Result<()> = examined.await;
        if let Err(error) = examined {
            warn!("{path} could not be read, and cannot be verified now: {error:#}");
        }
    }

    /// Verifies a file that this disk holds. If it is not what was committed, the catalog is told; the next look replaces it
    /// by what another disk has.
    async fn verify(&self, shard: ShardId, copies: &Copies) -> anyhow::Result<()> {
        let what = match self.disk.get(&copies.path).await {
            Ok(bytes) if is_file(copies, &bytes) => return Ok(()),
            Ok(_) => "it is another file than was committed".to_owned(),
            Err(_) if self.mend(copies).await => {
                info!(%shard, "{}: its checksums were damaged and are written anew", copies.path);
                return Ok(());
            }
            Err(StoreError::Damaged { what, .. }) => what,
            Err(StoreError::NotFound { .. }) => "it is missing".to_owned(),
            Err(error) if is_unreadable(&error) => format!("it cannot be read: {error}"),
            // Nothing is known: too many files may be open.
            Err(error) => return Err(error.into()),
        };
        warn!(%shard, "{}: {what}", copies.path);
        self.state.lost_copies.fetch_add(1, Ordering::Relaxed);
        self.tell(Version(0), Vec::new(), vec![(shard, copies.part, what)])
            .await
    }

    /// Verifies some more of the files that this disk holds: as many as may be in so much time.
    async fn scrub(&mut self, time: Duration) -> anyhow::Result<()> {
        let rate = self.config.scrub_rate as f64;
        self.credit = (self.credit + rate * time.as_secs_f64()).min(rate * LOOK.1.as_secs_f64());
        let mut credit = self.credit;
        if credit <= 0.0 {
            return Ok(());
        }
        let me = self.disk.holder();
        let state = self.snapshot()?;
        let mut due = Vec::new();
        let from = self.scrubbed;
        'shards: for shard in state.list::<Shard>(&[])? {
            if shard.replica(me.node).is_none() || from.is_some_and(|(last, _)| shard.id < last) {
                continue;
            }
            for copies in state.copies_of(shard.id)? {
                let key = (shard.id, copies.part);
                if copies.on(me) && from.is_none_or(|from| key > from) {
                    credit -= copies.bytes as f64;
                    due.push((shard.id, copies));
                    if credit <= 0.0 {
                        break 'shards;
                    }
                }
            }
        }
        drop(state);
        if due.is_empty() {
            self.scrubbed = None;
        }
        for (shard, copies) in due {
            self.credit -= copies.bytes as f64;
            // Also when it fails: the files behind it are to be verified all the same.
            self.scrubbed = Some((shard, copies.part));
            match self.verify(shard, &copies).await {
                Ok(()) => _ = self.state.scrubbed_bytes.fetch_add(copies.bytes, Ordering::Relaxed),
                Err(error) => warn!(%shard, "{} cannot be verified now: {error:#}", copies.path),
            }
        }
        Ok(())
    }

    /// Deletes files that nobody needs here, and notices those that should be here and are not.
    async fn sweep(&self) -> anyhow::Result<()> {
        // List first, look at the catalog then: a file that is listed and then committed is seen as live.
        let contents = self.disk.contents().await?;
        self.catalog.read_index(DECIDE).await?;
        let state = self.snapshot()?;
        let me = self.disk.holder();
        let buried: BTreeSet<PartId> = state.list::<Tombstone>(&[])?.into_iter().map(|t| t.part).collect();
        let (mut needless, mut there) = (Vec::new(), BTreeSet::new());
        let whole = contents.whole.into_iter().map(|path| (path, true));
        // What a crash in the middle of putting or deleting has left goes by the same rule.
        let unfinished = contents.unfinished.into_iter().map(|path| (path, false));
        for (path, is_whole) in whole.chain(unfinished) {
            // What does not look like a part's path is not ours to delete.
            let Some((shard, epoch, part)) = place_of(&path) else {
                continue;
            };
            if is_whole {
                there.insert(part);
            }
            let live = state.get::<Copies>(&(shard, part))?.is_some();
            let keeps = state
                .get::<Shard>(&shard)?
                .is_some_and(|s| s.replica(me.node).is_some());
            let gone = if live {
                !keeps
            } else {
                !buried.contains(&part) && is_over(&*state, shard, epoch)?
            };
            if gone {
                needless.push(path);
            }
        }
        let mut absent = Vec::new();
        for shard in state.list::<Shard>(&[])? {
            let held = state.copies_of(shard.id)?.into_iter().filter(|copies| copies.on(me));
            let lost = held.filter(|copies| !there.contains(&copies.part));
            absent.extend(lost.map(|copies| (shard.id, copies)));
        }
        drop(state);
        for path in &needless {
            self.disk.delete(path).await?;
        }
        if !needless.is_empty() {
            info!("deleted {} files that this node does not need", needless.len());
        }
        // Committed since the list was made, or really missing.
        for (shard, copies) in absent {
            self.verify(shard, &copies).await?;
        }
        Ok(())
    }
}

/// Whether the disk itself says that it cannot give these bytes any more.
fn is_unreadable(error: &StoreError) -> bool {
    let StoreError::Io { source, .. } = error else {
        return false;
    };
    // EIO has no kind of its own.
    const EIO: i32 = 5;
    let system = source.downcast_ref::<std::io::Error>();
    system.and_then(std::io::Error::raw_os_error) == Some(EIO)
}

/// Whether `bytes` are what was committed.
fn is_file(copies: &Copies, bytes: &[u8]) -> bool {
    bytes.len() as u64 == copies.bytes && xxh3_64(bytes) == copies.checksum
}

/// Waits until `bytes` since `began` are no more than `rate` per second.
async fn pace(bytes: u64, rate: u64, began: Instant) {
    let due = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
    tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
}
