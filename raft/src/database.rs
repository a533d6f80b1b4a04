//! Knowing when a database is closed. That nobody holds it any more (`Weak::strong_count`) is known
//! before its destructor has run; a process that ends in between aborts in RocksDB, whose threads
//! outlive its statics.

use std::sync::{Arc, Weak};

/// The last field of a struct that owns a database: fields are dropped in order, so this one goes
/// after the database is closed.
#[derive(Default)]
pub(crate) struct Open(Arc<()>);

impl Open {
    pub(crate) fn closing(&self) -> Closing {
        Closing(Arc::downgrade(&self.0))
    }
}

/// Tells whether what the [`Open`] belongs to is closed.
#[derive(Default)]
pub(crate) struct Closing(Weak<()>);

impl Closing {
    pub(crate) fn is_done(&self) -> bool {
        self.0.strong_count() == 0
    }
}
