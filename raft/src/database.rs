//! What the databases of a node, of the Raft log and of the catalog, have in common.

use rocksdb::{ColumnFamily, DB};
use std::{
    io,
    sync::{Arc, Weak},
};

/// A column family by its name.
pub(crate) fn family<'d>(db: &'d DB, name: &str) -> io::Result<&'d ColumnFamily> {
    db.cf_handle(name)
        .ok_or_else(|| io::Error::other(format!("column family {name} is missing")))
}

/// The last field of a struct that owns a database: fields are dropped in order, so this one goes
/// after the database is closed.
#[derive(Default)]
pub(crate) struct Open(Arc<()>);

impl Open {
    pub(crate) fn closing(&self) -> Closing {
        Closing(Arc::downgrade(&self.0))
    }
}

/// Tells whether what the [`Open`] belongs to is closed. That nobody holds it any more would be known
/// before its destructor has run; a process that ends in between aborts in RocksDB, whose threads
/// outlive its statics.
#[derive(Default)]
pub(crate) struct Closing(Weak<()>);

impl Closing {
    pub(crate) fn is_done(&self) -> bool {
        self.0.strong_count() == 0
    }
}
