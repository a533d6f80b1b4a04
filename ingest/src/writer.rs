//! The commit protocol: cut the memtable, make parts durable, commit them with their offsets, and tell
//! *no* from *don't know*.
//!
//! The order is law. A part is durable in the part store before the commit that names it is proposed;
//! the memtable gives up its rows only when the commit is known to be applied. After *don't know*
//! the very same command is proposed again: the catalog recognises it by its id, and should it have
//! forgotten, the offset check refuses it. After *no* the refused histories are dropped and the rest is
//! committed anew. A part that no commit names is left for the collector.

use crate::backoff::Backoff;
use crate::budget::{Account, Encoding};
use crate::kafka::TopicCheck;
use async_trait::async_trait;
use rand::random;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;
use tidemill_core::catalog::Table;
use tidemill_core::command::{CommitPart, Outcome, Refusal, StopPartition};
use tidemill_core::wait::Wait;
use tidemill_core::{CommitId, Epoch, PartId, PipeId, SchemaVersion, ShardId, SpanKey};
use tidemill_storage::memtable::{Cut, Extent, Memtable};
use tidemill_storage::part::{WrittenPart, write_parts, write_rejects};
use tidemill_storage::store::{PartStore, put_all};
use tokio::sync::watch;
use tracing::{debug, error, warn};

/// How long to wait before something that failed is tried again, at first.
const BACKOFF: Duration = Duration::from_millis(20);

/// How long a commit waits for the broker's word that its topics are what they were.
const TOPIC_ANSWER: Duration = Duration::from_secs(5);

/// The most parts that the rows of one commit are split into. A part's entry in the catalog takes up to a few
/// kilobytes, and a command has a limit; a partition expression with more values than this in one cut gets
/// one part without a partition value, which costs pruning and nothing else.
const MAX_PARTS: usize = 48;

/// Nobody knows whether the commit was applied, or it surely was not; proposing it again is safe both ways.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct CommitUnknown(pub String);

/// What ingest needs of the catalog.
#[async_trait]
pub trait Committer: Send + Sync {
    /// Proposes `commit` and waits for its outcome.
    async fn commit(&self, commit: CommitPart) -> Result<Outcome, CommitUnknown>;

    /// Proposes that a partition is stopped, and waits for the outcome.
    async fn stop(&self, stop: StopPartition) -> Result<Outcome, CommitUnknown>;
}

/// The topic checks of the pipes that a task reads.
pub type TopicChecks = Arc<Mutex<BTreeMap<PipeId, Arc<TopicCheck>>>>;

/// What keeps the parts of a task from becoming durable, if anything does.
pub type Trouble = Arc<Mutex<Option<Wait>>>;

/// How a flush ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Flushed {
    /// There was nothing to flush.
    Nothing,
    /// What was cut is committed, without the histories named here, which must be opened again.
    Committed(Vec<SpanKey>),
    /// The shard has another leader or is gone: the task must end.
    Fenced(Refusal),
}

/// Writes the parts of one shard in one epoch.
pub struct ShardWriter {
    /// The table, as the catalog last said.
    pub table: watch::Receiver<Arc<Table>>,
    /// The shard.
    pub shard: ShardId,
    /// The epoch in which this node leads it.
    pub epoch: Epoch,
    /// The rows to write.
    pub memtable: Arc<Memtable>,
    /// Where parts go.
    pub store: Arc<dyn PartStore>,
    /// Where commits go.
    pub committer: Arc<dyn Committer>,
    /// What the memtable's size is reported to.
    pub account: Account,
    /// Whether the topics are still what they were.
    pub topics: TopicChecks,
    /// What keeps its parts from becoming durable.
    pub trouble: Trouble,
    /// Whether a pipe is being paused, so that what was read has to be committed at once.
    pub hurry: Arc<AtomicBool>,
    /// Whether somebody waits for all that is here to be committed, once.
    pub barrier: Arc<AtomicBool>,
    /// Is told whenever what is committed, or open, has changed.
    pub settled: watch::Sender<()>,
}

impl ShardWriter {
    /// What of the memtable should be cut now, if anything.
    pub fn due(&self) -> Option<Extent> {
        let stats = self.account.observe(&self.memtable);
        let policy = self.table.borrow().settings.flush;
        let has_something = stats.oldest_age.is_some();
        let all = has_something
            && (self.hurry.load(Ordering::Acquire)
                || self.barrier.load(Ordering::Acquire)
                || stats.uncut_rows >= policy.rows
                || stats.uncut_bytes >= policy.bytes
                || stats
                    .oldest_age
                    .is_some_and(|age| age >= Duration::from_millis(policy.age_ms))
                || self.account.should_flush());
        let awaited = stats
            .awaited_age
            .is_some_and(|age| age >= Duration::from_millis(policy.acks_ms));
        match (all, awaited) {
            (true, _) => Some(Extent::All),
            // Others do not suffer small parts because a few writers wait.
            (false, true) => Some(Extent::Awaited),
            (false, false) => None,
        }
    }

    /// When it will be due for rows whose writers wait, if there are any.
    pub fn due_in(&self) -> Option<Duration> {
        let age = self.memtable.stats().awaited_age?;
        Some(Duration::from_millis(self.table.borrow().settings.flush.acks_ms).saturating_sub(age))
    }

    /// Cuts `extent` of the memtable and commits the cut. Returns only when its fate is known; drop the future to give up,
    /// after which the task must not be used any more.
    pub async fn flush(&self, extent: Extent) -> Flushed {
        if extent == Extent::All {
            // Before the cut: who asks from now on may have rows that are not in it.
            self.barrier.store(false, Ordering::Release);
        }
        let Some(cut) = self.memtable.cut_of(extent) else {
            return Flushed::Nothing;
        };
        let flushed = self.commit(cut).await;
        self.settled.send_replace(());
        flushed
    }

    async fn commit(&self, mut cut: Cut) -> Flushed {
        // Everything in the cut was read before now; an answer to a question asked from now on covers it.
        let read_before = Instant::now();
        self.ask_topics(&cut);
        let (mut lost, mut again) = (Vec::new(), Backoff::new(BACKOFF));
        let mut encoded = self.encode(&cut).await;
        loop {
            let commit = self.make_durable(&encoded, &cut).await;
            let others = self.other_topics(&cut, read_before).await;
            if !others.is_empty() {
                warn!(shard = %self.shard, "a topic was created again: what was read of it is dropped");
                lost.extend(others.iter().copied());
                match self.memtable.recut(&others) {
                    Some(rest) => cut = rest,
                    None => return Flushed::Committed(lost),
                }
                encoded = self.encode(&cut).await;
                continue;
            }
            match self.decide(commit).await {
                Ok(()) => {
                    self.memtable.commit_cut();
                    self.account.observe(&self.memtable);
                    return Flushed::Committed(lost);
                }
                Err(Refusal::Spans(refused)) => {
                    let keys: Vec<SpanKey> = refused.iter().map(|(key, _)| *key).collect();
                    warn!(shard = %self.shard, epoch = %self.epoch, refused = %Refusal::Spans(refused), "commit the rest");
                    let rest = self.memtable.recut(&keys);
                    lost.extend(keys);
                    match rest {
                        Some(rest) => cut = rest,
                        None => return Flushed::Committed(lost),
                    }
                    encoded = self.encode(&cut).await;
                }
                Err(refusal @ Refusal::TooFewHolders { .. }) => {
                    // Replicas came or went since the files were put: put them where they are wanted now.
                    warn!(shard = %self.shard, epoch = %self.epoch, %refusal, "put the files once more");
                    again.wait().await;
                }
                Err(refusal) => return Flushed::Fenced(refusal),
            }
        }
    }

    fn checks_of(&self, cut: &Cut) -> Vec<(PipeId, Arc<TopicCheck>)> {
        let checks = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        let known = cut
            .spans
            .iter()
            .filter(|span| span.topic.is_some())
            .map(|span| span.key.pipe);
        let mut found: Vec<_> = known
            .filter_map(|pipe| Some((pipe, checks.get(&pipe)?.clone())))
            .collect();
        found.dedup_by_key(|(pipe, _)| *pipe);
        found
    }

    fn ask_topics(&self, cut: &Cut) {
        for (_, check) in self.checks_of(cut) {
            check.ask();
        }
    }

    /// The histories in `cut` that may be of another topic than they should. Waits until the broker has said that the
    /// topics are the same, or for [`TOPIC_ANSWER`]: rows are not given up because no broker answers any more.
    async fn other_topics(&self, cut: &Cut, read_before: Instant) -> Vec<SpanKey> {
        let mut others = Vec::new();
        for (pipe, check) in self.checks_of(cut) {
            while !check.is_verified(read_before) && !check.is_other() && read_before.elapsed() < TOPIC_ANSWER {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if check.is_other() {
                others.extend(cut.spans.iter().map(|span| span.key).filter(|key| key.pipe == pipe));
            }
        }
        others
    }

    /// Writes the parts of `cut`, however long that takes.
    async fn encode(&self, cut: &Cut) -> Encoded {
        let mut backoff = Backoff::new(BACKOFF);
        loop {
            match self.try_encode(cut).await {
                Ok(encoded) => return encoded,
                Err(why) => error!(shard = %self.shard, "a part cannot be written, trying again: {why}"),
            }
            backoff.wait().await;
        }
    }

    async fn try_encode(&self, cut: &Cut) -> Result<Encoded, String> {
        let (table, shard, epoch, copy) = (self.table.borrow().clone(), self.shard, self.epoch, cut.clone());
        let mut memory = self.account.encode(cut.memory).await;
        let files = tokio::task::spawn_blocking(move || encode(&table, shard, epoch, &copy));
        let files = files.await.map_err(|e| e.to_string())??;
        agree(&files.parts, cut)?;
        memory.keep(files.bytes());
        Ok(Encoded { files, _memory: memory })
    }

    /// Puts the parts into the store, however long that takes; they are durable then. Always the same files, so that a
    /// store that fails again and again is not filled with what nobody will name.
    async fn make_durable(&self, encoded: &Encoded, cut: &Cut) -> CommitPart {
        let mut backoff = Backoff::new(BACKOFF);
        let encoded = &encoded.files;
        loop {
            let files = encoded.all().map(|part| (part.file.path.as_str(), part.bytes.clone()));
            match put_all(&*self.store, files).await {
                Ok(holders) => {
                    self.be_in_trouble(None);
                    return CommitPart {
                        commit: CommitId(random()),
                        shard: self.shard,
                        epoch: self.epoch,
                        schema_version: encoded.schema_version,
                        parts: encoded.parts.iter().map(|p| p.file.clone()).collect(),
                        reject_parts: encoded
                            .rejects
                            .iter()
                            .map(|(pipe, p)| (*pipe, p.file.clone()))
                            .collect(),
                        spans: cut.spans.clone(),
                        holders,
                    };
                }
                Err(why) => {
                    error!(shard = %self.shard, "a part cannot be made durable, trying again: {why}");
                    self.be_in_trouble(Some(Wait::PartStore(why.to_string())));
                }
            }
            backoff.wait().await;
        }
    }

    fn be_in_trouble(&self, wait: Option<Wait>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = wait;
    }

    /// Proposes `commit` until the catalog has decided.
    async fn decide(&self, commit: CommitPart) -> Result<(), Refusal> {
        let mut backoff = Backoff::new(BACKOFF);
        loop {
            match self.committer.commit(commit.clone()).await {
                Ok(Ok(_)) | Ok(Err(Refusal::AlreadyCommitted(_))) => return Ok(()),
                Ok(Err(refusal)) => return Err(refusal),
                Err(unknown) => {
                    debug!(shard = %self.shard, "a commit's outcome is not known, proposing it again: {unknown}")
                }
            }
            backoff.wait().await;
        }
    }
}

/// Whether the rows that were written are those that the spans account for, partition by partition (LED-1). What
/// does not agree is never committed.
fn agree(parts: &[WrittenPart], cut: &Cut) -> Result<(), String> {
    let mut written = std::collections::BTreeMap::<u32, u64>::new();
    for source in parts.iter().flat_map(|part| &part.sources) {
        *written.entry(source.partition).or_default() += source.rows;
    }
    let mut counted = std::collections::BTreeMap::<u32, u64>::new();
    for span in cut.spans.iter().filter(|span| span.counts.rows > 0) {
        *counted.entry(span.key.partition.0).or_default() += span.counts.rows;
    }
    match written == counted {
        true => Ok(()),
        false => Err(format!(
            "LED-1: the parts hold {written:?} rows by partition, {counted:?} were counted"
        )),
    }
}

/// The files of one cut, and the memory that they take.
struct Encoded {
    files: Files,
    _memory: Encoding,
}

/// The files of one cut.
struct Files {
    /// The columns that they were written with.
    schema_version: SchemaVersion,
    parts: Vec<WrittenPart>,
    rejects: Vec<(PipeId, WrittenPart)>,
}

impl Files {
    fn all(&self) -> impl Iterator<Item = &WrittenPart> {
        self.parts.iter().chain(self.rejects.iter().map(|(_, part)| part))
    }

    fn bytes(&self) -> u64 {
        self.all().map(|part| part.file.bytes).sum()
    }
}

fn encode(table: &Table, shard: ShardId, epoch: Epoch, cut: &Cut) -> Result<Files, String> {
    let mut new_id = || PartId(random());
    let mut parts = write_parts(table, shard, epoch, &cut.rows, &mut new_id).map_err(|e| e.to_string())?;
    if parts.len() > MAX_PARTS {
        parts = write_parts(&table.undivided(), shard, epoch, &cut.rows, &mut new_id).map_err(|e| e.to_string())?;
    }
    let mut by_pipe = std::collections::BTreeMap::<_, Vec<_>>::new();
    for (pipe, batch) in &cut.rejects {
        by_pipe.entry(*pipe).or_default().push(batch.clone());
    }
    let mut rejects = Vec::new();
    for (pipe, batches) in by_pipe {
        let written = write_rejects(pipe, shard, epoch, &batches, &mut new_id).map_err(|e| e.to_string())?;
        rejects.push((pipe, written));
    }
    Ok(Files {
        schema_version: table.schema_version,
        parts,
        rejects,
    })
}
