//! Tasks that live and do not get on: which shards need another leader for that.
//!
//! Heartbeats say that a process lives; only progress says that it works. A partition *stands still* while there is something
//! to be read or committed and neither goes on, outside a wait that would be the same on any node. After [`PATIENCE`] its
//! shard gets another leader; each time that does not help, the next comes after twice as long. When it stands still on
//! every node that may lead it, it is left where it is, and that is said. Any progress begins anew.
//!
//! A broker that does not answer one node is no reason while it answers nobody: then the shard waits where it is. If it
//! answers others, the shard moves, after [`BROKER_PATIENCE`]: brokers that start or change take a while.
//!
//! Nothing here is safety: an epoch fences whoever is replaced, stuck or not. This is a value that is shown what the manager
//! knows and the time, and says what to do; it is forgotten with the manager's term.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tidemill_core::wait::WaitKind;
use tidemill_core::{Epoch, NodeId, Offset, ShardId, SpanKey};

/// How long a partition may stand still, the first time.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// The same while the broker does not answer this node, but others.
pub const BROKER_PATIENCE: Duration = Duration::from_secs(30);
/// How long rows that are due may wait to be committed.
pub const COMMIT_PATIENCE: Duration = Duration::from_secs(60);
/// The patience doubles up to so many times.
const DOUBLINGS: u32 = 5;
/// How long a shard is kept from a node where it stood still.
const AVOIDED: Duration = Duration::from_secs(300);

/// A shard that has a leader, as the manager sees it.
#[derive(Clone, Debug)]
pub struct Led {
    /// The shard.
    pub shard: ShardId,
    /// The leader's term.
    pub epoch: Epoch,
    /// Who leads it.
    pub leader: NodeId,
    /// Who else may.
    pub others: BTreeSet<NodeId>,
    /// The partitions that its task has to read.
    pub partitions: Vec<Partition>,
}

/// A partition of such a shard.
#[derive(Clone, Debug)]
pub struct Partition {
    /// It and its life.
    pub key: SpanKey,
    /// What its leader says of it, in the present epoch; nothing if it does not run it.
    pub said: Option<Said>,
    /// What is committed of it.
    pub committed: Offset,
    /// When rows are due to be committed, at the latest.
    pub flush_age: Duration,
    /// Whether its brokers answer another node.
    pub answers_others: bool,
}

/// What a leader says of a partition.
#[derive(Clone, Copy, Debug)]
pub struct Said {
    /// The next offset to be read.
    pub position: Offset,
    /// One past the last offset that may be read, as far as it knows.
    pub end: Option<Offset>,
    /// What it waits for.
    pub wait: Option<WaitKind>,
}

/// A shard whose task stands still. It is to get another leader; if there is none left to try, it is left where it is, and
/// that is to be said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The shard.
    pub shard: ShardId,
    /// The present term.
    pub epoch: Epoch,
    /// Who leads it.
    pub from: NodeId,
    /// Who may lead it, and has not been tried.
    pub to: BTreeSet<NodeId>,
    /// The partition that stands still.
    pub key: SpanKey,
    /// For how long.
    pub still: Duration,
}

/// What the manager remembers of shards.
#[derive(Debug, Default)]
pub struct Stuck(BTreeMap<ShardId, Shard>);

#[derive(Debug, Default)]
struct Shard {
    epoch: Option<Epoch>,
    partitions: BTreeMap<SpanKey, Progress>,
    /// Where it stood still, and since when it is kept from there.
    left: BTreeMap<NodeId, Instant>,
    /// The partition for whose sake it was moved, and how often in a row.
    moved: Option<(SpanKey, u32)>,
    given_up: bool,
}

#[derive(Clone, Copy, Debug)]
struct Progress {
    position: Option<Offset>,
    committed: Offset,
    /// When it last read something, or needed not to.
    read: Instant,
    /// When something of it was last committed, or needed not to be.
    wrote: Instant,
}

impl Stuck {
    /// Looks at all shards that have a leader, at the time `now`.
    pub fn look(&mut self, now: Instant, led: &[Led]) -> Vec<Verdict> {
        let known: BTreeSet<ShardId> = led.iter().map(|led| led.shard).collect();
        self.0.retain(|shard, _| known.contains(shard));
        led.iter()
            .filter_map(|led| self.0.entry(led.shard).or_default().look(now, led))
            .collect()
    }

    /// Whether `shard` stood still at `node` not long ago.
    pub fn avoids(&self, now: Instant, shard: ShardId, node: NodeId) -> bool {
        self.0.get(&shard).is_some_and(|shard| shard.avoids(now, node))
    }

    /// Whether any shard stood still at `node` not long ago: then it gets no others for the sake of balance.
    pub fn avoids_any(&self, now: Instant, node: NodeId) -> bool {
        self.0.keys().any(|shard| self.avoids(now, *shard, node))
    }

    /// The shard was taken from `from` because `key` stood still there.
    pub fn replaced(&mut self, now: Instant, shard: ShardId, from: NodeId, key: SpanKey) {
        let shard = self.0.entry(shard).or_default();
        shard.left.insert(from, now);
        let times = shard.moved.map_or(0, |(_, times)| times);
        shard.moved = Some((key, times + 1));
    }

    /// Those that stand still everywhere.
    pub fn given_up(&self) -> usize {
        self.0.values().filter(|shard| shard.given_up).count()
    }
}

impl Shard {
    fn look(&mut self, now: Instant, led: &Led) -> Option<Verdict> {
        if self.epoch != Some(led.epoch) {
            // Another task: what the one before did not do says nothing of it.
            self.epoch = Some(led.epoch);
            self.partitions.clear();
        }
        self.partitions
            .retain(|key, _| led.partitions.iter().any(|partition| partition.key == *key));
        let mut worst: Option<(SpanKey, Duration)> = None;
        for partition in &led.partitions {
            let progress = self.partitions.entry(partition.key).or_insert_with(|| Progress {
                position: partition.said.map(|said| said.position),
                committed: partition.committed,
                read: now,
                wrote: now,
            });
            let went_on = progress.take(now, partition);
            let moved = self.moved.filter(|(key, _)| *key == partition.key);
            if went_on && moved.is_some() {
                (self.moved, self.given_up) = (None, false);
            }
            let times = self.moved.map_or(0, |(_, times)| times.min(DOUBLINGS));
            if let Some(still) = progress.stands_still(now, partition, 1 << times)
                && worst.is_none_or(|(_, longest)| still > longest)
            {
                worst = Some((partition.key, still));
            }
        }
        let (key, still) = worst?;
        self.judge(now, led, key, still)
    }

    fn judge(&mut self, now: Instant, led: &Led, key: SpanKey, still: Duration) -> Option<Verdict> {
        if self.given_up {
            return None;
        }
        let tried = |node: &NodeId| self.avoids(now, *node);
        let to: BTreeSet<NodeId> = led.others.iter().filter(|node| !tried(node)).copied().collect();
        if to.is_empty() {
            self.given_up = true;
            // So that progress of this one ends it.
            self.moved.get_or_insert((key, 0)).0 = key;
        }
        Some(Verdict {
            shard: led.shard,
            epoch: led.epoch,
            from: led.leader,
            to,
            key,
            still,
        })
    }

    fn avoids(&self, now: Instant, node: NodeId) -> bool {
        let left = self.left.get(&node);
        left.is_some_and(|left| now.duration_since(*left) < AVOIDED)
    }
}

impl Progress {
    /// Takes what is said now. Whether something was read or committed since.
    fn take(&mut self, now: Instant, partition: &Partition) -> bool {
        let position = partition.said.map(|said| said.position);
        let (read, wrote) = (position > self.position, partition.committed > self.committed);
        if position != self.position || !may_read(partition) {
            (self.position, self.read) = (position, now);
        }
        let uncommitted = position.is_some_and(|position| position > partition.committed);
        let excused = partition
            .said
            .is_some_and(|said| said.wait == Some(WaitKind::PartStore));
        if partition.committed != self.committed || !uncommitted || excused {
            (self.committed, self.wrote) = (partition.committed, now);
        }
        read || wrote
    }

    /// For how long it stands still, if that is too long. `times` is how much more patience there is than the first time.
    fn stands_still(&self, now: Instant, partition: &Partition, times: u32) -> Option<Duration> {
        let broker = partition.said.is_some_and(|said| said.wait == Some(WaitKind::Broker));
        let patience = if broker { BROKER_PATIENCE } else { PATIENCE };
        let (read, wrote) = (now.duration_since(self.read), now.duration_since(self.wrote));
        let due = partition.flush_age + COMMIT_PATIENCE;
        (read >= patience * times)
            .then_some(read)
            .or_else(|| (wrote >= due * times).then_some(wrote))
    }
}

/// Whether there is something that it could read, and that another task could.
fn may_read(partition: &Partition) -> bool {
    let Some(said) = partition.said else {
        return true;
    };
    match said.wait {
        Some(WaitKind::Broker) => partition.answers_others,
        Some(
            WaitKind::Transaction
            | WaitKind::Memory
            | WaitKind::Turn
            | WaitKind::PartStore
            | WaitKind::Operator
            | WaitKind::Done,
        ) => false,
        // What a client cannot do here it may do elsewhere. Without an end, the source has not said yet what it has.
        Some(WaitKind::Client | WaitKind::Assignment) | None => said.end.is_none_or(|end| said.position < end),
    }
}

#[cfg(test)]
mod tests;
