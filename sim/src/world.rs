//! The simulated world: one queue of events, one clock, one thread.
//!
//! Whatever happens is an event with a time; events of the same time go in the order in which they were made. All choices come
//! from one [`Dice`], and nothing depends on the order of a hash map or on the machine, so a seed is a history.

use crate::client::{Query, SHARDS};
use crate::dice::Dice;
use crate::event::{Body, Event, Message, Scheduled};
use crate::group::Group;
use crate::mutant::Mutant;
use crate::nemesis::Nemesis;
use crate::node::Node;
use crate::oracle::Oracle;
use crate::seeds::Violation;
use crate::source::Topic;
use crate::tally::Tally;
use crate::task::{Files, Hands};
use crate::time::{MS, Time};
use crate::writer::Client;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::hash::Hasher;
use tidemill_core::catalog::SourcePartition;
use xxhash_rust::xxh3::Xxh3;

/// How often the group looks whether it has a leader.
const RAFT: Time = 50 * MS;

/// See the module's page.
pub(crate) struct World {
    pub now: Time,
    queue: BinaryHeap<Reverse<Scheduled>>,
    made: u64,
    pub dice: Dice,
    pub group: Group,
    pub nodes: Vec<Node>,
    pub topic: Topic,
    pub files: Files,
    pub clients: Vec<Client>,
    pub queries: BTreeMap<u64, Query>,
    pub oracle: Oracle,
    pub nemesis: Nemesis,
    /// How it is broken on purpose.
    pub mutant: Option<Mutant>,
    pub tally: Tally,
    pub requests: u64,
    /// Links on which nothing arrives.
    pub cut: BTreeSet<(usize, usize)>,
    /// Links on which it takes longer.
    pub slow: BTreeMap<(usize, usize), Time>,
    /// One message of so many is lost; 0 if none is.
    pub loss: u64,
    /// One message of so many arrives twice; 0 if none does.
    pub twice: u64,
    /// One proposal of so many travels for long; 0 if none does.
    pub late: u64,
    /// The partition of the topic in which nobody produces at present.
    pub quiet: Option<usize>,
    /// Whether it takes long until rows are passed over.
    pub late_gaps: bool,
    /// Whether it takes long until what a disk has is heard.
    pub late_claims: bool,
    /// Whose heartbeats arrive once more, late.
    pub late_beats: Option<usize>,
    /// What happened, line by line, if anybody wants to know.
    pub told: Option<Vec<String>>,
    pub healed: bool,
    pub done: bool,
    pub flush_age: Time,
    /// How many nodes there were in the beginning, and shall be in the end.
    pub founders: usize,
    /// When a node was last lost, or told to leave.
    pub shrunk_at: Time,
    /// Where the pipe was when it was dropped.
    pub left: Vec<SourcePartition>,
    /// When operators last asked for the pipe to be created again.
    pub created_at: Time,
    /// Whether the pipe asks for a hot standby, as operators said last.
    pub hot: bool,
    /// Whether the table has a log although nobody needs it.
    pub logs: bool,
    history: Xxh3,
}

/// Writes down what happens, if anybody wants to know.
macro_rules! tell {
    ($world:expr, $($what:tt)*) => {
        if $world.told.is_some() {
            let line = format!("{:>10.3} {}", $world.now as f64 / 1e6, format_args!($($what)*));
            $world.told.get_or_insert_default().push(line);
        }
    };
}
pub(crate) use tell;

impl World {
    pub fn new(seed: u64, mutant: Option<Mutant>, tells: bool) -> Self {
        let mut dice = Dice::new(seed);
        let nodes = if dice.one_in(4) { 5 } else { 3 };
        let nodes: Vec<Node> = (0..nodes).map(|index| Node::new(index, &mut dice)).collect();
        let partitions = dice.between(2, 5) as usize;
        let clients = (0..dice.between(0, 4))
            .map(|_| Client::new(&mut dice, SHARDS))
            .collect();
        let nemesis = Nemesis::new(&mut dice);
        let flush_age = dice.between(100, 2_500) * MS;
        let (hot, logs) = (dice.one_in(2), dice.one_in(3) || nemesis.needs_logs());
        Self {
            now: 0,
            queue: BinaryHeap::new(),
            made: 0,
            group: Group::of(nodes.len()),
            founders: nodes.len(),
            nodes,
            topic: Topic::new(partitions),
            files: Files::new(),
            clients,
            queries: BTreeMap::new(),
            oracle: Oracle::default(),
            nemesis,
            mutant,
            tally: Tally::default(),
            requests: 0,
            cut: BTreeSet::new(),
            slow: BTreeMap::new(),
            loss: 0,
            twice: 0,
            late: 0,
            quiet: None,
            late_gaps: false,
            late_claims: false,
            late_beats: None,
            told: tells.then(Vec::new),
            healed: false,
            done: false,
            flush_age,
            shrunk_at: 0,
            left: Vec::new(),
            created_at: 0,
            hot,
            logs,
            history: Xxh3::new(),
            dice,
        }
    }

    /// Has `event` happen after a while.
    pub fn after(&mut self, time: Time, event: Event) {
        self.made += 1;
        self.queue.push(Reverse(Scheduled {
            at: self.now + time,
            number: self.made,
            event,
        }));
    }

    /// Goes on until it is done.
    pub fn run(&mut self) -> Result<(), Violation> {
        self.found()?;
        while let Some(Reverse(next)) = self.queue.pop() {
            self.now = next.at;
            self.tally.events += 1;
            self.happen(next.event)?;
            if self.done {
                break;
            }
        }
        self.tally.time = self.now;
        self.tally.records = self.topic.produced();
        self.tally.digest = self.history.finish();
        Ok(())
    }

    /// Takes note of what happens: two runs of a seed must agree on it.
    pub fn note(&mut self, kind: u64, what: u64) {
        self.history.write_u64(self.now);
        self.history.write_u64(kind);
        self.history.write_u64(what);
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Deliver(message) => {
                let to = message.to;
                let node = &mut self.nodes[to];
                if node.up && node.paused {
                    node.deferred.push(Event::Deliver(message));
                    return Ok(());
                }
                if !node.up {
                    return Ok(());
                }
                self.note(1, (message.from * 8 + to) as u64);
                self.take(message)
            }
            Event::Duty(index, boot, duty) => {
                let node = &mut self.nodes[index];
                if !node.up || node.boot != boot {
                    return Ok(());
                }
                if node.paused {
                    node.deferred.push(Event::Duty(index, boot, duty));
                    return Ok(());
                }
                self.do_duty(index, duty)
            }
            Event::Raft => {
                self.after(RAFT, Event::Raft);
                self.tend_group()
            }
            Event::Decide(entry) => self.decide(entry),
            Event::Apply(index, boot, version) => {
                let node = &mut self.nodes[index];
                if node.up && node.boot == boot && node.applied < version {
                    if node.paused {
                        node.deferred.push(Event::Apply(index, boot, version));
                        return Ok(());
                    }
                    node.applied = version;
                    node.state = self.group.state(version);
                    // What is applied is on disk some time later.
                    if self.dice.one_in(4) {
                        self.nodes[index].synced = version;
                    }
                    self.note(2, (index * 100_000 + version) as u64);
                }
                Ok(())
            }
            Event::Produce => {
                self.produce();
                Ok(())
            }
            Event::Nemesis => self.break_something(),
            Event::Mend(fault) => self.mend(fault),
            Event::LoseLeader(shard) => self.lose_leader(shard),
            Event::ShowStaleLog(index, shard) => self.show_stale_log(index, shard),
            Event::GiveUpCopies(index) => self.give_up_copies(index),
            Event::Lead(shard, node) => {
                self.move_some_shard(Some(shard), |to| to == node)?;
                Ok(())
            }
            Event::LeaveAndDie(index) => self.leave_and_die(index),
            Event::Stay(node) => {
                self.stay(node);
                Ok(())
            }
            Event::Operate => self.operate(),
            Event::Join(index) => self.ask_to_join(index),
            Event::Ask => self.ask(),
            Event::AskAt(node) => self.ask_at(node),
            Event::Write(client) => self.write(client),
            Event::Reply {
                client,
                request,
                node,
                epoch,
                answer,
            } => self.replied((client, request), node, epoch, answer),
            Event::Settle => self.settle(),
        }
    }

    /// Whether messages go from one node to the other.
    pub fn hears(&self, from: usize, to: usize) -> bool {
        let works = |index: usize| self.nodes[index].up && !self.nodes[index].paused;
        works(from) && works(to) && (from == to || !self.cut.contains(&(from, to)))
    }

    pub fn talk(&self, a: usize, b: usize) -> bool {
        self.hears(a, b) && self.hears(b, a)
    }

    /// Whether a node reaches a majority.
    pub fn has_majority(&self, index: usize) -> bool {
        let voters = &self.group.voters;
        let reached = voters.iter().filter(|other| self.talk(index, **other)).count();
        voters.contains(&index) && reached * 2 > voters.len()
    }

    /// Sends a message. It may be late, never arrive, or arrive twice.
    pub fn send(&mut self, from: usize, to: usize, body: Body) {
        let lost = self.loss > 0 && self.dice.one_in(self.loss);
        if from != to && (lost || self.cut.contains(&(from, to))) {
            return;
        }
        let mut time = self.dice.between(100, 2_000);
        if from == to {
            time = 10;
        } else if let Some(slow) = self.slow.get(&(from, to)).copied() {
            time += self.dice.between(0, slow);
        }
        let message = Message { from, to, body };
        if from != to && self.twice > 0 && self.dice.one_in(self.twice) {
            // Others that were sent later may come before it.
            let later = self.dice.between(0, 3_000) * MS;
            self.after(time + later, Event::Deliver(message.clone()));
            *self.tally.acts.entry("message arrives twice").or_default() += 1;
        }
        if self.late_beats == Some(from) && matches!(message.body, Body::Beat(_)) {
            let later = self.dice.between(500, 5_000) * MS;
            self.after(time + later, Event::Deliver(message.clone()));
        }
        self.after(time, Event::Deliver(message));
    }

    /// Runs `act` with what tasks may use.
    pub fn with_hands<T>(&mut self, index: usize, act: impl FnOnce(&mut Node, &mut Hands<'_>) -> T) -> T {
        let Self {
            nodes,
            topic,
            files,
            dice,
            mutant,
            now,
            ..
        } = self;
        let mut id = || dice.id();
        let node = &mut nodes[index];
        let mut wal = std::mem::take(&mut node.wal);
        let mut hands = Hands {
            now: *now,
            topic,
            files,
            wal: &mut wal,
            full: node.full,
            reads_nothing: node.reads_nothing,
            id: &mut id,
            mutant: *mutant,
        };
        let done = act(node, &mut hands);
        node.wal = wal;
        done
    }

    fn produce(&mut self) {
        if self.healed {
            return;
        }
        let time = self.dice.between(5, 60) * MS;
        self.after(time, Event::Produce);
        let partition = self.dice.below(self.topic.logs.len());
        if self.quiet == Some(partition) {
            return;
        }
        if self.dice.one_in(25) {
            let records = self.dice.between(1, 4);
            self.topic.abort(partition, records);
        }
        for _ in 0..self.dice.between(1, 4) {
            let bad = self.dice.one_in(40);
            self.topic.append(partition, bad);
        }
    }
}
