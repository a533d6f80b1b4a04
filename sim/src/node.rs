//! A node: its process, its disk, its tasks, and what it does again and again.

use crate::dice::Dice;
use crate::event::{Beat, Body, Duty, Event, Message};
use crate::group::Group;
use crate::manager::Manager;
use crate::mutant::Mutant;
use crate::seeds::Violation;
use crate::task::Task;
use crate::time::{MS, Time};
use crate::wal::Wal;
use crate::world::{World, tell};
use crate::writer::{Gap, Logging};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use tidemill_core::catalog::*;
use tidemill_core::command::Outcome;
use tidemill_core::view::{CatalogRead, MemView};
use tidemill_core::{
    BootId, CommitId, DiskId, Epoch, InstanceId, NodeId, PartId, PartitionId, PipeId, ShardId, SpanKey, Version,
};

/// How often a node says that it lives.
const BEAT: Time = 200 * MS;
/// How often it looks what it shall lead.
const SUPERVISE: Time = 100 * MS;
/// How often its tasks go on.
const WORK: Time = 30 * MS;
/// How often its keeper looks.
pub(crate) const KEEP: Time = 500 * MS;

/// Where a node is in [`World::nodes`].
pub(crate) fn index_of(node: NodeId) -> usize {
    node.0 as usize - 1
}

/// The node at `index` in [`World::nodes`].
pub(crate) fn id_of(index: usize) -> NodeId {
    NodeId(index as u64 + 1)
}

/// What a request of a node was for.
#[derive(Clone, Debug)]
pub(crate) enum Purpose {
    Commit(ShardId, Epoch, CommitId),
    Stop(ShardId, Epoch, SpanKey),
    /// Rows of a writer are passed over.
    Gap(Gap),
    Manage,
    Keep,
    Operate,
}

/// A file on a disk.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Kept {
    /// Whether a loss of power spares it.
    pub durable: bool,
    /// Whether it is not what was written any more.
    pub broken: bool,
}

impl Kept {
    /// Whether it is there for good, as it was written.
    pub fn is_sound(&self) -> bool {
        self.durable && !self.broken
    }
}

/// See the module's page.
#[derive(Debug)]
pub(crate) struct Node {
    pub index: usize,
    pub id: NodeId,
    pub name: String,
    pub up: bool,
    pub paused: bool,
    /// Whether it is not admitted yet.
    pub joining: bool,
    /// Whether it was removed, or lost with all that it had: it never comes back.
    pub gone: bool,
    /// The run of the process.
    pub boot: u64,
    pub instance: InstanceId,
    pub disk: DiskId,
    /// How fast its clock goes, in percent.
    pub rate: u64,
    /// How wrong its clock is.
    pub wall_ms: i64,
    /// How many commands it has applied, and how many of these are on its disk.
    pub applied: usize,
    pub synced: usize,
    pub state: Rc<MemView>,
    /// Whom it takes for the leader, in which term, and when it last heard of a leader.
    pub leader: Option<(u64, usize)>,
    pub heard_at: Time,
    /// How long it waits before it wants to be elected.
    pub patience: Time,
    /// When a manager last answered.
    pub contact: Time,
    /// The version by which it led nothing, if its log was found to have nothing for others at the last look.
    pub handed_over: Option<Version>,
    pub manager: Option<Manager>,
    pub tasks: BTreeMap<ShardId, Task>,
    pub stored: BTreeMap<PartId, Kept>,
    /// Files that we have taken from its disk.
    pub broken: BTreeSet<PartId>,
    pub full: bool,
    /// Whether it does not reach the brokers.
    pub reads_nothing: bool,
    /// How long a sync takes at most.
    pub sync: Time,
    /// What of its memtables survives its process.
    pub wal: Wal,
    /// How often that was lost with a disk, and when it was last.
    pub wipes: u64,
    pub wiped_at: Time,
    /// Rows that are being written to the log.
    pub logging: BTreeMap<u64, Logging>,
    /// Partitions of writers that stay closed until what was decided about them is known here.
    pub held: BTreeMap<u64, (ShardId, (PipeId, PartitionId))>,
    pub deferred: Vec<Event>,
    pub waiting: BTreeMap<u64, Purpose>,
    pub decides_at: Time,
    /// How often it has stopped its tasks because it heard no manager.
    pub silences: u64,
    pub swept: Time,
    /// The state by which its tasks were last reconciled.
    pub supervised: Option<usize>,
    /// By which version its tasks are as they are, once the catalog knows this run.
    pub follows: Option<Version>,
}

impl Node {
    pub fn new(index: usize, dice: &mut Dice) -> Self {
        Self {
            index,
            id: id_of(index),
            name: format!("n{}", index + 1),
            up: true,
            paused: false,
            joining: false,
            gone: false,
            boot: 1,
            instance: InstanceId(dice.id()),
            disk: DiskId(dice.id()),
            rate: 100,
            wall_ms: 0,
            applied: 0,
            synced: 0,
            state: Rc::default(),
            leader: None,
            heard_at: 0,
            patience: dice.between(400, 800) * MS,
            contact: 0,
            handed_over: None,
            manager: None,
            tasks: BTreeMap::new(),
            stored: BTreeMap::new(),
            broken: BTreeSet::new(),
            full: false,
            reads_nothing: false,
            sync: 5 * MS,
            wal: Wal::default(),
            wipes: 0,
            wiped_at: 0,
            logging: BTreeMap::new(),
            held: BTreeMap::new(),
            deferred: Vec::new(),
            waiting: BTreeMap::new(),
            decides_at: 0,
            silences: 0,
            swept: 0,
            supervised: None,
            follows: None,
        }
    }

    /// This run of it, as others know it.
    pub fn boot_id(&self) -> BootId {
        BootId((u128::from(self.id.0) << 64) | (u128::from(self.silences) << 32) | u128::from(self.boot))
    }

    pub fn holder(&self) -> Holder {
        Holder {
            node: self.id,
            disk: self.disk,
        }
    }

    /// Begins to manage: it has just been elected.
    pub fn manage(&mut self, now: Time) {
        self.manager = Some(Manager::new(now));
    }

    /// How long something takes that has to be on disk.
    pub fn sync_time(&self, dice: &mut Dice) -> Time {
        dice.between(500, self.sync.max(1_000))
    }

    /// The process is gone, and with it what was in memory or only on its way to the disk: of its log, what comes behind `torn`.
    pub fn crash(&mut self, group: &Group, torn: u64) {
        self.up = false;
        self.paused = false;
        self.boot += 1;
        self.tasks.clear();
        self.manager = None;
        self.leader = None;
        self.deferred.clear();
        (self.supervised, self.follows) = (None, None);
        self.waiting.clear();
        self.stored.retain(|_, kept| kept.durable);
        self.wal.crash(torn);
        self.logging.clear();
        self.held.clear();
        self.applied = self.synced;
        self.state = group.state(self.synced);
    }
}

impl World {
    /// Starts the process of a node.
    pub fn start(&mut self, index: usize) -> Result<(), Violation> {
        let now = self.now;
        let node = &mut self.nodes[index];
        if node.up || node.joining || node.gone {
            return Ok(());
        }
        (node.up, node.heard_at, node.contact) = (true, now, now);
        node.handed_over = None;
        let from = node.applied;
        tell!(self, "n{} starts at #{from}", index + 1);
        let (found, wanted) = self.group.replay(from, self.mutant)?;
        if found != wanted {
            let what = format!(
                "node {} applies the log from {from} on and has digest {found:x} instead of {wanted:x}",
                index + 1
            );
            return Err(Violation::new("same log, same state", what));
        }
        if self.mutant == Some(Mutant::StartsByDeleting) {
            let state = self.nodes[index].state.clone();
            self.nodes[index].stored.retain(|part, _| {
                let named = |copies: &Copies| copies.part == *part;
                let all = state.all::<Copies>(&[]).unwrap_or_default();
                all.iter().any(|copies| named(copies))
            });
        }
        self.begin_duties(index);
        Ok(())
    }

    pub fn begin_duties(&mut self, index: usize) {
        for duty in [Duty::Beat, Duty::Supervise, Duty::Work, Duty::Keep, Duty::Offer] {
            let time = self.dice.between(1, 20_000);
            let boot = self.nodes[index].boot;
            self.after(time, Event::Duty(index, boot, duty));
        }
    }

    /// Does `duty` again after `time` by the clock of the node.
    pub fn again(&mut self, index: usize, duty: Duty, time: Time) {
        let node = &self.nodes[index];
        let (boot, time) = (node.boot, time * 100 / node.rate.max(1));
        self.after(time, Event::Duty(index, boot, duty));
    }

    pub fn do_duty(&mut self, index: usize, duty: Duty) -> Result<(), Violation> {
        match duty {
            Duty::Beat => {
                self.again(index, duty, BEAT);
                let node = &self.nodes[index];
                let led = node.tasks.values().filter_map(|task| Some((task.shard, task.epoch?)));
                let beat = Beat {
                    boot: node.boot_id(),
                    disk: node.disk,
                    instance: node.instance,
                    led: led.collect(),
                    handed_over: node.handed_over,
                };
                if let Some((_, leader)) = node.leader {
                    self.send(index, leader, Body::Beat(beat));
                }
                Ok(())
            }
            Duty::Supervise => {
                self.again(index, duty, SUPERVISE);
                self.supervise(index)
            }
            Duty::Work => {
                self.again(index, duty, WORK);
                let shards: Vec<ShardId> = self.nodes[index].tasks.keys().copied().collect();
                for shard in shards {
                    let wishes = self.with_hands(index, |node, hands| {
                        node.tasks
                            .get_mut(&shard)
                            .map(|task| task.go_on(hands))
                            .unwrap_or_default()
                    });
                    self.grant(index, shard, wishes);
                }
                Ok(())
            }
            Duty::Manage => {
                if self.nodes[index].manager.is_some() {
                    self.again(index, duty, 100 * MS);
                    self.look_after_all(index)?;
                }
                Ok(())
            }
            Duty::Keep => {
                self.again(index, duty, KEEP);
                self.keep(index)
            }
            Duty::Logged(number) => {
                self.logged(index, number);
                Ok(())
            }
            Duty::Release(number) => {
                self.release(index, number);
                Ok(())
            }
            Duty::Offer => self.offer(index),
            Duty::GiveUp(request) => {
                self.answer(index, request, None);
                Ok(())
            }
            Duty::Synced(part, asked) => {
                let node = &mut self.nodes[index];
                let holder = node.holder();
                if let Some(kept) = node.stored.get_mut(&part) {
                    kept.durable = true;
                    node.broken.remove(&part);
                    if let Some(to) = asked {
                        self.send(index, to, Body::HasPut { part, holder });
                    }
                }
                Ok(())
            }
        }
    }

    /// A message arrives at a node that runs.
    pub fn take(&mut self, message: Message) -> Result<(), Violation> {
        let Message { from, to, body } = message;
        match body {
            Body::Beat(beat) => {
                let now = self.now;
                let node = &mut self.nodes[to];
                if let Some(manager) = &mut node.manager {
                    manager.hear(from, now, beat);
                    self.send(to, from, Body::Heard);
                }
            }
            Body::Heard => self.nodes[to].contact = self.now,
            Body::Propose { request, proposal } => self.take_proposal(to, (from, request), *proposal),
            Body::Decided { request, outcome } => self.answer(to, request, outcome),
            Body::Put(part) => self.put(to, part, Some(from)),
            Body::HasPut { part, holder } => {
                let task = self.nodes[to].tasks.values_mut();
                task.for_each(|task| task.is_put(part, holder));
            }
            Body::Fetch(part) => {
                if self.nodes[to].stored.get(&part).is_some_and(|kept| !kept.broken) {
                    self.send(to, from, Body::Fetched(part));
                }
            }
            Body::Fetched(part) => self.put(to, part, None),
            Body::Pin { query, shard } => {
                let task = self.nodes[to].tasks.get(&shard).filter(|task| !task.ended);
                let pin = task.and_then(Task::pin);
                self.send(to, from, Body::Pinned { query, shard, pin });
            }
            Body::Pinned { query, shard, pin } => self.pinned(query, shard, pin)?,
            Body::AskIndex { query } => {
                let leads = self.group.leader == Some(to) && self.has_majority(to);
                if leads && self.nodes[to].leader == Some((self.group.term, to)) {
                    let index = self.group.committed();
                    self.send(to, from, Body::Index { query, index });
                }
            }
            Body::Index { query, index } => self.indexed(query, index)?,
            Body::Append {
                client,
                request,
                shard,
                first,
                rows,
            } => self.append(to, (client, request), shard, first, rows),
            Body::PassGap {
                client,
                request,
                shard,
                from,
                to: end,
            } => self.pass_gap(to, (client, request), shard, from, end),
            Body::Offer { shard, acks, pieces } => self.take_offer(to, shard, acks, pieces),
        }
        Ok(())
    }

    /// What came of a request; nothing if nobody knows.
    fn answer(&mut self, index: usize, request: u64, outcome: Option<Outcome>) {
        let Some(purpose) = self.nodes[index].waiting.remove(&request) else {
            return;
        };
        match purpose {
            Purpose::Commit(shard, epoch, commit) => {
                let wishes = self.with_hands(index, |node, hands| {
                    let task = node.tasks.get_mut(&shard).filter(|task| task.epoch == Some(epoch));
                    task.map(|task| task.decided(commit, outcome, hands))
                        .unwrap_or_default()
                });
                self.grant(index, shard, wishes);
            }
            Purpose::Stop(shard, epoch, key) => {
                let task = self.nodes[index].tasks.get_mut(&shard);
                if let Some(task) = task.filter(|task| task.epoch == Some(epoch)) {
                    task.stop_decided(key, outcome.is_some());
                }
            }
            Purpose::Gap(gap) => self.gap_decided(index, request, gap, outcome),
            Purpose::Manage => {
                if let Some(manager) = &mut self.nodes[index].manager {
                    manager.answered();
                }
            }
            Purpose::Keep | Purpose::Operate => {}
        }
    }

    /// How far the log of the group is, if a node can know that now.
    pub fn read_index(&self, index: usize) -> Option<usize> {
        let leader = self.group.leader.filter(|leader| self.has_majority(*leader))?;
        self.talk(index, leader).then(|| self.group.committed())
    }
}
