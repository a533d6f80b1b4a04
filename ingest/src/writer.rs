//! The commit protocol: cut the memtable, make parts durable, commit them with their offsets, and tell
//! *no* from *don't know*.
//!
//! The order is law. A part is durable in the part store before the commit that names it is proposed;
//! the memtable gives up its rows only when the commit is known to be applied. After *don't know*
//! the very same command is proposed again: the catalog recognises it by its id, and should it have
//! forgotten, the offset check refuses it. After *no* the refused histories are dropped and the rest is
//! committed anew. A part that no commit names is left for the collector.

use crate::budget::Account;
use async_trait::async_trait;
use rand::random;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tidemill_core::catalog::Table;
use tidemill_core::command::{CommitPart, Outcome, Refusal};
use tidemill_core::{CommitId, Epoch, PartId, ShardId, SpanKey};
use tidemill_storage::memtable::{Cut, Memtable};
use tidemill_storage::part::{WrittenPart, write_parts, write_rejects};
use tidemill_storage::store::PartStore;
use tracing::{debug, error, warn};

/// How long to wait before something that failed is tried again, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

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
}

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
    /// The table.
    pub table: Arc<Table>,
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
}

impl ShardWriter {
    /// Whether the memtable should be cut now.
    pub fn is_due(&self) -> bool {
        let stats = self.memtable.stats();
        self.account.report(stats.bytes);
        let policy = &self.table.flush;
        let has_something = stats.oldest_age.is_some();
        has_something
            && (stats.uncut_rows >= policy.rows
                || stats.uncut_bytes >= policy.bytes
                || stats
                    .oldest_age
                    .is_some_and(|age| age >= Duration::from_millis(policy.age_ms))
                || self.account.should_flush())
    }

    /// Cuts the memtable and commits the cut. Returns only when its fate is known; drop the future to give up,
    /// after which the task must not be used any more.
    pub async fn flush(&self) -> Flushed {
        let Some(mut cut) = self.memtable.cut() else {
            return Flushed::Nothing;
        };
        let mut lost = Vec::new();
        loop {
            let commit = self.make_durable(&cut).await;
            match self.decide(commit).await {
                Ok(()) => {
                    self.memtable.commit_cut();
                    self.account.report(self.memtable.stats().bytes);
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
                }
                Err(refusal) => return Flushed::Fenced(refusal),
            }
        }
    }

    /// Writes the parts of `cut` and puts them into the store, however long that takes.
    async fn make_durable(&self, cut: &Cut) -> CommitPart {
        let mut wait = BACKOFF.0;
        loop {
            match self.try_make_durable(cut).await {
                Ok(commit) => return commit,
                Err(why) => error!(shard = %self.shard, "a part cannot be made durable, trying again: {why}"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(BACKOFF.1);
        }
    }

    async fn try_make_durable(&self, cut: &Cut) -> Result<CommitPart, String> {
        let (table, shard, epoch, copy) = (self.table.clone(), self.shard, self.epoch, cut.clone());
        let encoded = tokio::task::spawn_blocking(move || encode(&table, shard, epoch, &copy));
        let (parts, rejects) = encoded.await.map_err(|e| e.to_string())??;
        for part in parts.iter().chain(rejects.iter().map(|(_, part)| part)) {
            self.store
                .put(&part.file.path, part.bytes.clone())
                .await
                .map_err(|e| e.to_string())?;
        }
        Ok(CommitPart {
            commit: CommitId(random()),
            shard: self.shard,
            epoch: self.epoch,
            schema_version: self.table.schema_version,
            parts: parts.into_iter().map(|p| p.file).collect(),
            reject_parts: rejects.into_iter().map(|(pipe, p)| (pipe, p.file)).collect(),
            spans: cut.spans.clone(),
        })
    }

    /// Proposes `commit` until the catalog has decided.
    async fn decide(&self, commit: CommitPart) -> Result<(), Refusal> {
        let mut wait = BACKOFF.0;
        loop {
            match self.committer.commit(commit.clone()).await {
                Ok(Ok(_)) | Ok(Err(Refusal::AlreadyCommitted(_))) => return Ok(()),
                Ok(Err(refusal)) => return Err(refusal),
                Err(unknown) => {
                    debug!(shard = %self.shard, "a commit's outcome is not known, proposing it again: {unknown}")
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(BACKOFF.1);
        }
    }
}

type Encoded = (Vec<WrittenPart>, Vec<(tidemill_core::PipeId, WrittenPart)>);

fn encode(table: &Table, shard: ShardId, epoch: Epoch, cut: &Cut) -> Result<Encoded, String> {
    let mut new_id = || PartId(random());
    let mut parts = Vec::new();
    if !cut.rows.is_empty() {
        parts = write_parts(table, shard, epoch, &cut.rows, &mut new_id).map_err(|e| e.to_string())?;
        if parts.len() > MAX_PARTS {
            let whole = Table {
                partition_by: None,
                ..table.clone()
            };
            parts = write_parts(&whole, shard, epoch, &cut.rows, &mut new_id).map_err(|e| e.to_string())?;
        }
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
    Ok((parts, rejects))
}
