//! What a consumer thread is told to read.

use tidemill_core::{Offset, SpanKey, TopicId};

/// The partitions that a consumer reads.
pub type Assignment = Vec<Assigned>;

/// A partition to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// The partition and its life.
    pub key: SpanKey,
    /// Where to begin; `None` goes on where the thread is.
    pub start: Option<Start>,
    /// The offset at which it is read no further.
    pub until: Option<Offset>,
    /// The topic that its offsets belong to, where known.
    pub topic: Option<TopicId>,
}

/// Where a partition begins to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The next offset.
    pub offset: Offset,
    /// Leader epoch of the source at the record before it, if known.
    pub source_epoch: Option<i32>,
}
