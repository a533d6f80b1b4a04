//! The records of a pipe: what it reads, how it is set, and where each of its source partitions stands.

use crate::format::JsonFormat;
use crate::ids::*;
use crate::ledger::Ledger;
use crate::span::SpanKey;
use crate::stop::{Stop, StopReason};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a pipe reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KafkaSource {
    /// Bootstrap servers, `host:port` separated by commas.
    pub brokers: String,
    /// The topic.
    pub topic: String,
    /// Further settings for the client library, by its own names.
    pub client: BTreeMap<String, String>,
}

/// Where the rows of a pipe come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A Kafka topic.
    Kafka(KafkaSource),
    /// Programs that write into the table themselves ([`super::Writer`]). A table has at most one such pipe, made with its first
    /// writer and gone with the table; it has no name that a statement could use.
    Writers {
        /// The number of the next writer. None is used twice, so that no partition is.
        next: u32,
    },
}

/// What stands as the topic of rows that were written directly; no Kafka topic can be called that.
pub const DIRECT: &str = "(direct)";

impl Source {
    /// The Kafka topic, if it is one.
    pub fn kafka(&self) -> Option<&KafkaSource> {
        match self {
            Source::Kafka(source) => Some(source),
            Source::Writers { .. } => None,
        }
    }

    /// Its topic, as its rows name it.
    pub fn topic(&self) -> &str {
        self.kafka().map_or(DIRECT, |source| &source.topic)
    }

    /// Where it is; empty where rows come by themselves.
    pub fn brokers(&self) -> &str {
        self.kafka().map_or("", |source| &source.brokers)
    }

    /// Its kind, as in `system.pipes`.
    pub fn kind(&self) -> &'static str {
        match self {
            Source::Kafka(_) => "kafka",
            Source::Writers { .. } => "writers",
        }
    }
}

/// A pipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipe {
    /// Its id.
    pub id: PipeId,
    /// Its name.
    pub name: String,
    /// The table that it fills.
    pub table: TableId,
    /// What it reads.
    pub source: Source,
    /// The topic as it was when the pipe was created or last repaired; `None` where the broker does not say.
    pub topic: Option<TopicId>,
    /// Whether it reads.
    pub state: PipeState,
    /// What may be changed while it runs.
    pub settings: PipeSettings,
    /// The pipe whose skipped offsets this one reads, if it was made for that.
    pub backfills: Option<PipeId>,
    /// How its records become rows.
    #[serde(default)]
    pub format: JsonFormat,
    /// When it was created, milliseconds since 1970.
    pub created_at_ms: i64,
}

/// Whether a pipe reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PipeState {
    /// It reads.
    #[default]
    Running,
    /// It reads no further; what was read is being committed.
    Pausing,
    /// It does not read, and nothing of it is in memory.
    Paused,
}

impl PipeState {
    /// Its name, as in `system.pipes`.
    pub fn name(self) -> &'static str {
        match self {
            PipeState::Running => "running",
            PipeState::Pausing => "pausing",
            PipeState::Paused => "paused",
        }
    }
}

/// What of a pipe may be changed while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PipeSettings {
    /// What happens to a record that cannot be decoded.
    pub on_error: OnError,
    /// The share of rejected records among the last ones at which a partition stops, in thousandths.
    pub max_rejected_permille: Option<u16>,
    /// What a gap between offsets means.
    pub gaps: Gaps,
    /// Whether committed offsets are also shown to Kafka under a group, for outside tools.
    pub commit_to_group: bool,
    /// Retention headroom below which an alert is raised, in seconds.
    pub headroom_alert_s: u32,
    /// Whether another node reads the same records beside the leader, to take over without reading them again.
    pub standby: Standby,
}

impl Default for PipeSettings {
    fn default() -> Self {
        Self {
            on_error: OnError::Reject,
            max_rejected_permille: None,
            gaps: Gaps::Alarm,
            commit_to_group: true,
            headroom_alert_s: 3600,
            standby: Standby::Cold,
        }
    }
}

/// Who is ready to take over from the leader of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standby {
    /// Nobody in particular: the next leader reads from the committed offset on.
    #[default]
    Cold,
    /// One node that has the rows in memory which are not committed yet.
    Hot,
}

impl Standby {
    /// Its name, as in statements.
    pub fn name(self) -> &'static str {
        match self {
            Standby::Cold => "cold",
            Standby::Hot => "hot",
        }
    }
}

/// What happens to a record that cannot be decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnError {
    /// It goes to a reject part, and the partition goes on.
    #[default]
    Reject,
    /// The partition stops in front of it.
    Halt,
}

/// What it means when offsets are absent between records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Gaps {
    /// A plain topic has none: they are counted and raise an alarm.
    #[default]
    Alarm,
    /// Transactions and compaction make them: they are counted.
    Expect,
}

/// What the catalog knows of one source partition of a pipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourcePartition {
    /// The pipe.
    pub pipe: PipeId,
    /// The partition.
    pub partition: PartitionId,
    /// The shard that its rows belong to.
    pub shard: ShardId,
    /// Its life.
    pub incarnation: Incarnation,
    /// The next offset to commit: everything below it is accounted for.
    pub offset: Offset,
    /// The offset at which it is read no further, for a pipe that reads what another skipped.
    pub until: Option<Offset>,
    /// The topic that `offset` belongs to, where the source says.
    pub topic: Option<TopicId>,
    /// Leader epoch of the source at the last committed record, if known.
    pub source_epoch: Option<i32>,
    /// What became of the offsets of this life.
    pub ledger: Ledger,
    /// Why it does not go on, if it had to stop.
    pub stop: Option<Stop>,
    /// When it last moved, milliseconds since 1970.
    pub committed_at_ms: i64,
}

impl SourcePartition {
    /// Which history its next span belongs to.
    pub fn key(&self) -> SpanKey {
        SpanKey {
            pipe: self.pipe,
            partition: self.partition,
            incarnation: self.incarnation,
        }
    }

    /// Whether everything that it shall read is committed.
    pub fn is_complete(&self) -> bool {
        self.until.is_some_and(|until| self.offset >= until)
    }

    /// Whether it has stopped because its source has deleted what is next, and is the same otherwise.
    pub fn has_expired(&self) -> bool {
        self.expired_until().is_some()
    }

    /// The oldest offset that its source still had, if it has stopped as expired.
    pub fn expired_until(&self) -> Option<Offset> {
        match self.stop.as_ref().map(|stop| &stop.reason) {
            Some(StopReason::Expired { earliest }) => Some(*earliest),
            _ => None,
        }
    }

    /// Where it goes on when it is repaired, at a source that is `topic` by now, if that is known, and whose oldest record is at
    /// `earliest`; with the leader epoch of a record before it, where one is known to be the same in what was read and in what
    /// is there. By it the source is compared again, so that a log that was cut once more in the meantime is not read on. `None`
    /// if it has to be said where: records that were never read may stand below the offset, and going on behind them would
    /// skip them in silence.
    pub fn goes_on(&self, topic: Option<TopicId>, earliest: Offset) -> Option<(Offset, Option<i32>)> {
        let other = topic.zip(self.topic).is_some_and(|(now, then)| now != then);
        let here = (self.offset, self.source_epoch);
        let (to, epoch) = match self.stop.as_ref().map(|stop| &stop.reason) {
            // Whatever it was that it stopped for: there nothing was read.
            _ if other => (earliest, None),
            Some(StopReason::TopicRecreated { .. }) => (earliest, None),
            Some(StopReason::EndBelow { .. } | StopReason::Truncated { diverged: None, .. }) => return None,
            Some(StopReason::Truncated {
                diverged: Some(at),
                epoch,
            }) if *at < self.offset => (*at, *epoch),
            Some(StopReason::Expired { .. } | StopReason::Truncated { .. }) => here,
            Some(StopReason::BadRecord { .. } | StopReason::TooManyRejected { .. }) | None => return Some(here),
        };
        Some(if to < earliest { (earliest, None) } else { (to, epoch) })
    }
}

/// Offsets that were passed over by command and may be read later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skip {
    /// The pipe.
    pub pipe: PipeId,
    /// The partition.
    pub partition: PartitionId,
    /// First offset.
    pub start: Offset,
    /// One past the last offset.
    pub end: Offset,
    /// The topic that the offsets belong to.
    pub topic: Option<TopicId>,
    /// The pipe that reads them, once there is one.
    pub backfill: Option<PipeId>,
    /// When they were skipped, milliseconds since 1970.
    pub at_ms: i64,
}
