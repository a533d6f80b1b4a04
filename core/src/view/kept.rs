//! A value as a view has it: bytes, or bytes with what they were decoded to.

use super::{Kind, Record, ViewError, decode};
use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// A value that is decoded at most once, however often it is read.
pub struct Kept {
    bytes: Vec<u8>,
    decoded: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl Kept {
    /// Of `bytes`, which nobody has decoded yet.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            decoded: OnceLock::new(),
        }
    }

    /// What was written.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn decoded<R: Record>(&self, kind: Kind) -> Result<Arc<R>, ViewError> {
        if let Some(known) = self.decoded.get()
            && let Ok(record) = known.clone().downcast::<R>()
        {
            return Ok(record);
        }
        let record = Arc::new(decode::<R>(kind, &self.bytes)?);
        // Whoever came first has decoded the same.
        _ = self.decoded.set(record.clone());
        Ok(record)
    }
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Kept {}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes.fmt(f)
    }
}

/// A value in the form in which a view has it.
#[derive(Clone, Copy, Debug)]
pub enum Raw<'r> {
    /// Bytes of a store.
    Bytes(&'r [u8]),
    /// A value in memory.
    Kept(&'r Arc<Kept>),
}

impl<'r> Raw<'r> {
    /// Its bytes.
    pub fn bytes(self) -> &'r [u8] {
        match self {
            Raw::Bytes(bytes) => bytes,
            Raw::Kept(kept) => kept.bytes(),
        }
    }

    /// The record, for whoever wants to change it.
    ///
    /// # Errors
    /// When the bytes are none of this kind.
    pub fn owned<R: Record>(self, kind: Kind) -> Result<R, ViewError> {
        match self {
            Raw::Bytes(bytes) => decode(kind, bytes),
            Raw::Kept(kept) => Ok((*kept.decoded::<R>(kind)?).clone()),
        }
    }

    /// The record, for whoever only looks at it.
    ///
    /// # Errors
    /// When the bytes are none of this kind.
    pub fn shared<R: Record>(self, kind: Kind) -> Result<Arc<R>, ViewError> {
        match self {
            Raw::Bytes(bytes) => Ok(Arc::new(decode(kind, bytes)?)),
            Raw::Kept(kept) => kept.decoded(kind),
        }
    }
}
