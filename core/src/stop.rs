//! Why a partition stopped, and what its way out is.
//!
//! A stop is a fact in the catalog, not a mood of a task: the next leader finds it, and a source that looks
//! healthy again (a log that has regrown past the old end) does not wipe it away. Only a command of the operator ends it.

use crate::ids::{Offset, PartitionId, TopicId};
use serde::{Deserialize, Serialize};

/// A stopped partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Why.
    pub reason: StopReason,
    /// When, milliseconds since 1970.
    pub at_ms: i64,
}

/// Why a partition stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// The source has removed records before they were read: retention, or deleted by hand.
    Expired {
        /// The oldest offset that the source still has.
        earliest: Offset,
    },
    /// The topic was deleted and created again: its offsets mean something else now.
    TopicRecreated {
        /// The topic that is there now.
        topic: TopicId,
        /// The end of the old topic as last seen, if it was.
        known_end: Option<Offset>,
    },
    /// The source's log ends before the next offset: it lost records after they were read.
    EndBelow {
        /// Where it ends.
        end: Offset,
    },
    /// The source's log was cut and has grown again: what is there now is not what was read (KIP-320).
    Truncated {
        /// The first offset from which the two differ, if the source said.
        diverged: Option<Offset>,
        /// The leader epoch of the record before that, if it said so.
        #[serde(default)]
        epoch: Option<i32>,
    },
    /// A record could not be decoded, and the pipe says `on_error = 'halt'`.
    BadRecord {
        /// Its offset.
        offset: Offset,
        /// What was wrong with it.
        error: String,
    },
    /// More records were rejected than the pipe's `max_rejected_ratio` allows.
    TooManyRejected {
        /// How many of the last records.
        rejected: u64,
        /// How many records were looked at.
        of: u64,
    },
}

/// What to do when nobody knows from which offset on a source's log is another one.
fn choose(pipe: &str, partition: PartitionId) -> String {
    format!(
        "it does not say from which offset on its records are others than those that were read: say where to go on, \
         ALTER PIPE {pipe} RESET OFFSETS TO ({partition} = offset) KEEP ROWS; with DELETE ROWS instead, rows go from there on, and of what \
         the source has lost there may be no other copy"
    )
}

impl StopReason {
    /// Its name, as in `system.partitions` and in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            StopReason::Expired { .. } => "expired",
            StopReason::TopicRecreated { .. } => "topic_recreated",
            StopReason::EndBelow { .. } => "end_below",
            StopReason::Truncated { .. } => "truncated",
            StopReason::BadRecord { .. } => "bad_record",
            StopReason::TooManyRejected { .. } => "too_many_rejected",
        }
    }

    /// Whether the source is not what it was: the life of the partition is over.
    pub fn is_source_loss(&self) -> bool {
        !matches!(self, StopReason::BadRecord { .. } | StopReason::TooManyRejected { .. })
    }

    /// Whether its source has lost what is next, and is the same otherwise: what was read of it is good, wherever it is.
    pub fn keeps_its_life(&self) -> bool {
        matches!(self, StopReason::Expired { .. })
    }

    /// Whether what was read of the source and is not committed is dropped, since nobody knows on which side of the break it
    /// lies. Of a log whose beginning went, everything that was read is good.
    pub fn drops_what_was_read(&self) -> bool {
        self.is_source_loss() && !self.keeps_its_life()
    }

    /// What happened and what to do, for `partition`, whose next offset is `next`, of the pipe called `pipe`.
    pub fn explain(&self, pipe: &str, partition: PartitionId, next: Offset) -> String {
        let repair = format!("ALTER PIPE {pipe} REPAIR goes on");
        match self {
            StopReason::Expired { earliest } => format!(
                "the source lost data: the next offset is {next}, the source begins at {earliest}; {repair} there and counts {} as lost",
                earliest.0.saturating_sub(next.0)
            ),
            StopReason::TopicRecreated { known_end, .. } => {
                let unread = known_end.map_or(0, |end| end.0.saturating_sub(next.0));
                format!(
                    "the topic was deleted and created again at offset {next}; {repair} at the new topic's beginning and counts {unread} as lost"
                )
            }
            StopReason::EndBelow { end } => format!(
                "the source lost data: the next offset is {next}, the source ends at {end}; {}",
                choose(pipe, partition)
            ),
            StopReason::Truncated { diverged: None, .. } => format!(
                "the source's log was cut and has grown again past offset {next}; {}",
                choose(pipe, partition)
            ),
            StopReason::Truncated { diverged: Some(at), .. } => format!(
                "the source's log was cut and has grown again: it differs from what was read from offset {at} on; {repair} there and keeps \
                 the rows read before"
            ),
            StopReason::BadRecord { offset, error } => format!(
                "the record at offset {offset} cannot be decoded ({error}); mend the table or the pipe, or let it be rejected with \
                 ALTER PIPE {pipe} SET (on_error = 'reject'), then ALTER PIPE {pipe} REPAIR"
            ),
            StopReason::TooManyRejected { rejected, of } => format!(
                "{rejected} of the last {of} records cannot be decoded, more than max_rejected_ratio allows; mend the table or the pipe, \
                 or raise it with ALTER PIPE {pipe} SET (max_rejected_ratio = …), then ALTER PIPE {pipe} REPAIR"
            ),
        }
    }
}
