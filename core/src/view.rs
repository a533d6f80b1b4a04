//! How the catalog is read and changed: ordered keys and values by kind, a write set over them,
//! and a digest that two nodes at the same version must share.
//!
//! `apply` reads through [`CatalogView`] and writes into an [`Overlay`]. The overlay's base is a
//! [`MemView`] in tests and simulation and RocksDB in production; neither is known here.

mod kept;
mod mem;

pub use kept::{Kept, Raw};
pub use mem::MemView;

use crate::ids::Version;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::sync::Arc;
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// The kinds of record; each is a key space of its own (a column family in RocksDB).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Counters, the cluster's identity and the digest.
    Meta,
    /// Nodes by id.
    Node,
    /// Tables by id.
    Table,
    /// Ids of tables by name.
    TableName,
    /// Pipes by id.
    Pipe,
    /// Ids of pipes by name.
    PipeName,
    /// Shards by (table, index).
    Shard,
    /// Source partitions by (pipe, partition).
    Partition,
    /// Parts by (table, shard, part).
    Part,
    /// Reject parts by (pipe, part).
    RejectPart,
    /// Files of parts and reject parts with their holders, by (table, shard, part).
    Copies,
    /// Files that are no longer referenced and wait for the collector, by part.
    Tombstone,
    /// Ledgers of lives that are over, by (pipe, partition, incarnation).
    Ledger,
    /// Offsets skipped by command, by (pipe, partition, offset).
    Skip,
    /// What happened, by number.
    Event,
    /// Programs that write rows themselves, by id.
    Writer,
}

impl Kind {
    /// Every kind, in order.
    pub const ALL: [Kind; 16] = [
        Kind::Meta,
        Kind::Node,
        Kind::Table,
        Kind::TableName,
        Kind::Pipe,
        Kind::PipeName,
        Kind::Shard,
        Kind::Partition,
        Kind::Part,
        Kind::RejectPart,
        Kind::Copies,
        Kind::Tombstone,
        Kind::Ledger,
        Kind::Skip,
        Kind::Event,
        Kind::Writer,
    ];

    /// Its name on disk.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Meta => "meta",
            Kind::Node => "node",
            Kind::Table => "table",
            Kind::TableName => "table_name",
            Kind::Pipe => "pipe",
            Kind::PipeName => "pipe_name",
            Kind::Shard => "shard",
            Kind::Partition => "partition",
            Kind::Part => "part",
            Kind::RejectPart => "reject_part",
            Kind::Copies => "copies",
            Kind::Tombstone => "tombstone",
            Kind::Ledger => "ledger",
            Kind::Skip => "skip",
            Kind::Event => "event",
            Kind::Writer => "writer",
        }
    }
}

/// The catalog could not be read. Never a verdict on a command: the node has to stop.
#[derive(Debug, Error)]
pub enum ViewError {
    /// The store below failed.
    #[error("the catalog store failed: {0}")]
    Store(String),
    /// A record is not what was written.
    #[error("a catalog record of kind {kind:?} cannot be read: {reason}")]
    Corrupt {
        /// Its kind.
        kind: Kind,
        /// What the decoder said.
        reason: String,
    },
}

/// Called for each key and value of a scan.
pub type Visit<'v> = dyn FnMut(&[u8], &[u8]) -> Result<(), ViewError> + 'v;

/// Called for each key, and its value in the form in which the view has it.
pub type VisitRaw<'v> = dyn FnMut(&[u8], Raw<'_>) -> Result<(), ViewError> + 'v;

/// Read access to one state of the catalog.
pub trait CatalogView {
    /// The value under `key`, if any.
    fn get_bytes(&self, kind: Kind, key: &[u8]) -> Result<Option<Vec<u8>>, ViewError>;

    /// Visits the entries whose key begins with `prefix`, in key order.
    fn scan_bytes(&self, kind: Kind, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), ViewError>;

    /// As [`CatalogView::get_bytes`], for views that may have it decoded.
    fn get_raw(&self, kind: Kind, key: &[u8], visit: &mut VisitRaw<'_>) -> Result<(), ViewError> {
        match self.get_bytes(kind, key)? {
            Some(bytes) => visit(key, Raw::Bytes(&bytes)),
            None => Ok(()),
        }
    }

    /// As [`CatalogView::scan_bytes`], for views that may have it decoded.
    fn scan_raw(&self, kind: Kind, prefix: &[u8], visit: &mut VisitRaw<'_>) -> Result<(), ViewError> {
        self.scan_bytes(kind, prefix, &mut |key, value| visit(key, Raw::Bytes(value)))
    }
}

/// A key: encoded so that byte order is the order of its fields.
pub trait Key: Sized {
    /// Appends its bytes.
    fn encode(&self, out: &mut Vec<u8>);

    /// Its bytes.
    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(24);
        self.encode(&mut out);
        out
    }
}

/// A record of the catalog: which kind it is and what finds it.
pub trait Record: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// Its kind.
    const KIND: Kind;
    /// What finds it.
    type Key: Key;
}

/// Typed reads over any view.
pub trait CatalogRead: CatalogView {
    /// The record under `key`, if any.
    fn get<R: Record>(&self, key: &R::Key) -> Result<Option<R>, ViewError> {
        let mut found = None;
        self.get_raw(R::KIND, &key.bytes(), &mut |_, raw| {
            found = Some(raw.owned(R::KIND)?);
            Ok(())
        })?;
        Ok(found)
    }

    /// All records of a kind whose key begins with `prefix` (`&[]` for all), in key order.
    fn list<R: Record>(&self, prefix: &[u8]) -> Result<Vec<R>, ViewError> {
        let mut found = Vec::new();
        self.scan_raw(R::KIND, prefix, &mut |_, raw| {
            found.push(raw.owned(R::KIND)?);
            Ok(())
        })?;
        Ok(found)
    }

    /// As [`CatalogRead::get`], without a copy where the view has the record decoded.
    fn find<R: Record>(&self, key: &R::Key) -> Result<Option<Arc<R>>, ViewError> {
        let mut found = None;
        self.get_raw(R::KIND, &key.bytes(), &mut |_, raw| {
            found = Some(raw.shared(R::KIND)?);
            Ok(())
        })?;
        Ok(found)
    }

    /// As [`CatalogRead::list`], without copies where the view has the records decoded.
    fn all<R: Record>(&self, prefix: &[u8]) -> Result<Vec<Arc<R>>, ViewError> {
        let mut found = Vec::new();
        self.scan_raw(R::KIND, prefix, &mut |_, raw| {
            found.push(raw.shared(R::KIND)?);
            Ok(())
        })?;
        Ok(found)
    }

    /// The digest of everything in this state.
    fn digest(&self) -> Result<u128, ViewError> {
        let bytes = self.get_bytes(Kind::Meta, DIGEST_KEY)?;
        Ok(bytes.and_then(|b| b.try_into().ok()).map_or(0, u128::from_be_bytes))
    }
}

impl<V: CatalogView + ?Sized> CatalogRead for V {}

/// A state of the catalog that says which one it is; what a query or a reconciler works on.
pub trait CatalogSnapshot: CatalogView + Send + Sync {
    /// The version that it shows, whole and nothing newer.
    fn version(&self) -> Version;
}

const DIGEST_KEY: &[u8] = b"digest";

fn decode<R: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<R, ViewError> {
    rmp_serde::from_slice(bytes).map_err(|e| ViewError::Corrupt {
        kind,
        reason: e.to_string(),
    })
}

/// Changes to make: a value to put, or `None` to delete.
pub type WriteSet = BTreeMap<(Kind, Vec<u8>), Option<Vec<u8>>>;

/// A view with changes on top of it that are not yet made.
pub struct Overlay<'b> {
    base: &'b dyn CatalogView,
    writes: WriteSet,
}

impl<'b> Overlay<'b> {
    /// Nothing changed yet.
    pub fn new(base: &'b dyn CatalogView) -> Self {
        Self {
            base,
            writes: WriteSet::new(),
        }
    }

    /// Puts `record` under `key`.
    pub fn put<R: Record>(&mut self, key: &R::Key, record: &R) -> Result<(), ViewError> {
        // Named fields, so that a later version may add some and still read what this one wrote.
        let bytes = rmp_serde::to_vec_named(record).map_err(|e| ViewError::Corrupt {
            kind: R::KIND,
            reason: e.to_string(),
        })?;
        self.writes.insert((R::KIND, key.bytes()), Some(bytes));
        Ok(())
    }

    /// Deletes what is under `key`.
    pub fn delete<R: Record>(&mut self, key: &R::Key) {
        self.writes.insert((R::KIND, key.bytes()), None);
    }

    /// Takes in the changes of an overlay that stood on top of this one, and brings the digest up to date.
    pub fn absorb(&mut self, writes: WriteSet) -> Result<(), ViewError> {
        let mut digest = self.digest()?;
        for ((kind, key), value) in writes {
            if let Some(old) = self.get_bytes(kind, &key)? {
                digest ^= entry_hash(kind, &key, &old);
            }
            if let Some(new) = &value {
                digest ^= entry_hash(kind, &key, new);
            }
            self.writes.insert((kind, key), value);
        }
        let digest = digest.to_be_bytes().to_vec();
        self.writes.insert((Kind::Meta, DIGEST_KEY.to_vec()), Some(digest));
        Ok(())
    }

    fn written(&self, kind: Kind, key: &[u8]) -> Option<&Option<Vec<u8>>> {
        // Most reads are made before anything is written.
        match self.writes.is_empty() {
            true => None,
            false => self.writes.get(&(kind, key.to_vec())),
        }
    }

    /// The changes, to be made at once.
    pub fn into_writes(self) -> WriteSet {
        self.writes
    }
}

/// Hash of one entry. The digest of a state is the exclusive or of these, so that it can be kept
/// up to date in time proportional to the change. It finds divergence by bugs, not by malice.
fn entry_hash(kind: Kind, key: &[u8], value: &[u8]) -> u128 {
    let key_hash = xxh3_128_with_seed(key, kind as u64 + 1);
    let seed = (key_hash ^ (key_hash >> 64)) as u64;
    xxh3_128_with_seed(value, seed) ^ key_hash.rotate_left(17)
}

impl CatalogView for Overlay<'_> {
    fn get_bytes(&self, kind: Kind, key: &[u8]) -> Result<Option<Vec<u8>>, ViewError> {
        match self.written(kind, key) {
            Some(value) => Ok(value.clone()),
            None => self.base.get_bytes(kind, key),
        }
    }

    fn scan_bytes(&self, kind: Kind, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), ViewError> {
        self.scan_raw(kind, prefix, &mut |key, raw| visit(key, raw.bytes()))
    }

    fn get_raw(&self, kind: Kind, key: &[u8], visit: &mut VisitRaw<'_>) -> Result<(), ViewError> {
        match self.written(kind, key) {
            Some(Some(value)) => visit(key, Raw::Bytes(value)),
            Some(None) => Ok(()),
            None => self.base.get_raw(kind, key, visit),
        }
    }

    fn scan_raw(&self, kind: Kind, prefix: &[u8], visit: &mut VisitRaw<'_>) -> Result<(), ViewError> {
        // Both sides are ordered; walk them together, the overlay hiding what it overwrites.
        let mut changed = self
            .writes
            .range((kind, prefix.to_vec())..)
            .take_while(|((k, key), _)| *k == kind && key.starts_with(prefix))
            .peekable();
        self.base.scan_raw(kind, prefix, &mut |key, value| {
            while let Some(((_, new_key), new)) = changed.next_if(|((_, k), _)| k.as_slice() < key) {
                if let Some(new) = new {
                    visit(new_key, Raw::Bytes(new))?;
                }
            }
            match changed.next_if(|((_, k), _)| k.as_slice() == key) {
                Some((_, Some(new))) => visit(key, Raw::Bytes(new)),
                Some((_, None)) => Ok(()),
                None => visit(key, value),
            }
        })?;
        for ((_, key), value) in changed {
            if let Some(value) = value {
                visit(key, Raw::Bytes(value))?;
            }
        }
        Ok(())
    }
}
