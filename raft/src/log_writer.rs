//! The thread that writes the Raft log. It owns the order: everything that changes the log comes
//! to it through one queue, is written in that order, and is acknowledged in that order after it
//! is on disk. Whatever waits in the queue shares one fsync (group commit).
//!
//! A write that fails ends the process, because what it covered is neither on disk nor gone: the
//! kernel marks the pages clean after a failed fsync, and a second attempt would report success.
//! This module knows nothing of Raft's rules; it does not check that entries are consecutive.

use crate::{database::family, log_store::Shared, types::TypeConfig};
use openraft::storage::IOFlushed;
use rocksdb::{WriteBatch, WriteOptions};
use std::{
    io,
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

/// Column family of the entries, keyed by index in big-endian order.
pub(crate) const ENTRIES: &str = "entries";
/// Column family of the vote, the committed position and the last purged position.
pub(crate) const META: &str = "meta";
pub(crate) const VOTE: &[u8] = b"vote";
pub(crate) const COMMITTED: &[u8] = b"committed";
pub(crate) const PURGED: &[u8] = b"purged";

/// The most bytes that are gathered into one batch; one more operation may go over it.
const BATCH_BYTES: usize = 4 << 20;

/// Called when the log cannot be written; it should not return. The default ends the process.
pub type FailureHook = Arc<dyn Fn(&str) + Send + Sync>;

/// Asked before each batch in tests: an error is taken as that of the disk.
pub type WriteFault = Arc<dyn Fn() -> Option<io::Error> + Send + Sync>;

/// Ends the process with a message, for production.
pub fn abort_process() -> FailureHook {
    Arc::new(|message| {
        tracing::error!("{message}");
        // The log output may be off or buffered; this must be seen.
        eprintln!("tidemill: {message}");
        std::process::abort()
    })
}

/// Who waits for an operation to be on disk.
pub(crate) enum Waiter {
    /// Nobody.
    None,
    /// openraft, for appended entries.
    Raft(IOFlushed<TypeConfig>),
    /// An async caller.
    Caller(tokio::sync::oneshot::Sender<io::Result<()>>),
}

impl Waiter {
    fn done(self, result: Result<(), &str>) {
        let result = result.map_err(io::Error::other);
        match self {
            Waiter::None => {}
            Waiter::Raft(flushed) => flushed.io_completed(result),
            // A caller who no longer waits has been cancelled; nothing is owed to it.
            Waiter::Caller(sender) => drop(sender.send(result)),
        }
    }
}

/// One change to the log.
pub(crate) enum Change {
    /// Puts entries under their indexes.
    Append(Vec<(u64, Vec<u8>)>),
    /// Puts a value into the meta family.
    Meta(&'static [u8], Vec<u8>),
    /// Like `Meta`, but worth no fsync of its own: losing it costs time, never data.
    Hint(&'static [u8], Vec<u8>),
    /// Deletes the entries with indexes in `from..=to`.
    Truncate { from: u64, to: u64 },
    /// Deletes the entries up to `upto`, and notes the position.
    Purge { upto: u64, position: Vec<u8> },
}

impl Change {
    fn bytes(&self) -> usize {
        match self {
            Change::Append(records) => records.iter().map(|(_, value)| value.len() + 16).sum(),
            Change::Meta(_, value) | Change::Hint(_, value) => value.len(),
            Change::Truncate { .. } | Change::Purge { .. } => 64,
        }
    }
}

/// A change with its number in the queue and who waits for it.
pub(crate) struct Operation {
    pub(crate) number: u64,
    pub(crate) change: Change,
    pub(crate) waiter: Waiter,
}

/// What the thread works with.
pub(crate) struct LogWriter {
    pub(crate) log: Arc<Shared>,
    pub(crate) on_failure: FailureHook,
    pub(crate) fault: Option<WriteFault>,
}

/// The running thread, and the queue that leads to it. When dropped, it waits until everything in
/// the queue is written and the thread has let go of the database: closing one while the process
/// ends would race with RocksDB's own clean-up, which aborts.
pub(crate) struct WriterThread {
    /// There until it is dropped.
    queue: Option<mpsc::Sender<Operation>>,
    thread: Option<JoinHandle<()>>,
}

impl WriterThread {
    /// Queues an operation.
    pub(crate) fn submit(&self, operation: Operation) -> io::Result<()> {
        let sent = self.queue.as_ref().is_some_and(|queue| queue.send(operation).is_ok());
        sent.then_some(())
            .ok_or_else(|| io::Error::other("the thread that writes the Raft log has ended"))
    }
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            // It panicked, and has said so.
            drop(thread.join());
        }
    }
}

impl LogWriter {
    /// Starts the thread.
    pub(crate) fn start(self) -> io::Result<WriterThread> {
        let (queue, operations) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("raft-log".into())
            .spawn(move || self.run(operations))?;
        Ok(WriterThread {
            queue: Some(queue),
            thread: Some(thread),
        })
    }

    /// Writes until the queue is closed. After a failure (and only if the hook returns, in tests)
    /// everything is answered with that failure: nothing may be written behind a gap.
    fn run(self, queue: mpsc::Receiver<Operation>) {
        let mut failed: Option<String> = None;
        while let Ok(first) = queue.recv() {
            let mut bytes = first.change.bytes();
            let mut group = vec![first];
            while bytes < BATCH_BYTES {
                let Ok(next) = queue.try_recv() else { break };
                bytes += next.change.bytes();
                group.push(next);
            }
            if failed.is_none()
                && let Err(error) = self.write(&group)
            {
                let message = format!(
                    "the Raft log in {} cannot be written: {error}. What was just written may or may not be on disk, \
                     so this process ends now; check the disk and start it again",
                    self.log.db.path().display()
                );
                (self.on_failure)(&message);
                failed = Some(message);
            }
            for operation in group {
                operation.waiter.done(failed.as_deref().map_or(Ok(()), Err));
            }
        }
    }

    fn write(&self, group: &[Operation]) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        let mut sync = false;
        let (entries, meta) = (family(&self.log.db, ENTRIES)?, family(&self.log.db, META)?);
        for operation in group {
            sync |= !matches!(operation.change, Change::Hint(..));
            match &operation.change {
                Change::Append(records) => {
                    for (index, value) in records {
                        batch.put_cf(entries, index.to_be_bytes(), value);
                    }
                }
                Change::Meta(key, value) | Change::Hint(key, value) => batch.put_cf(meta, key, value),
                Change::Truncate { from, to } => {
                    for index in *from..=*to {
                        batch.delete_cf(entries, index.to_be_bytes());
                    }
                }
                Change::Purge { upto, position } => {
                    batch.put_cf(meta, PURGED, position);
                    batch.delete_range_cf(entries, 0u64.to_be_bytes(), upto.saturating_add(1).to_be_bytes());
                }
            }
        }
        if let Some(error) = self.fault.as_ref().and_then(|fault| fault()) {
            return Err(error);
        }
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.log.db.write_opt(batch, &options).map_err(io::Error::other)?;
        if let Some(last) = group.last() {
            self.log.tail().written(last.number);
        }
        Ok(())
    }
}
