//! The simulated world: one queue of events, one clock, one thread.
//!
//! Whatever happens is an event with a time; events of the same time go in the order in which they were made. All choices come
//! from one [`Dice`], and nothing depends on the order of a hash map or on the machine, so a seed is a history.

use crate::client::{Client, Query};
use crate::dice::Dice;
use crate::group::{Group, Pending};
use crate::mutant::Mutant;
use crate::nemesis::Nemesis;
use crate::node::{Node, Purpose};
use crate::oracle::{Oracle, Violation};
use crate::source::{RecordId, Topic};
use crate::task::{Files, Hands, PinnedLane};
use crate::time::{MS, Time};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::hash::Hasher;
use tidemill_core::catalog::Holder;
use tidemill_core::command::Outcome;
use tidemill_core::view::MemView;
use tidemill_core::{BootId, Command, Epoch, PartId, Proposal, ShardId};
use xxhash_rust::xxh3::Xxh3;

/// How often the group looks whether it has a leader.
const RAFT: Time = 50 * MS;
/// How long a proposal is waited for.
const DECIDE: Time = 1_500 * MS;
/// For how long a leader without a majority goes on believing in itself.
const LEASE: Time = 1_000 * MS;

/// Something that happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A message arrives.
    Deliver(Message),
    /// A node has something to do: the run of its process, and what.
    Duty(usize, u64, Duty),
    /// The group looks after itself.
    Raft,
    /// A leader has a proposal on its disk and those of others, or not.
    Decide(u64),
    /// A node hears how far the log is committed.
    Apply(usize, u64, usize),
    /// Records are produced.
    Produce,
    /// Something breaks, or is mended.
    Nemesis,
    /// What a fault was begun for is over.
    Mend(crate::nemesis::Fault),
    /// Operators do something.
    Operate,
    /// Somebody asks what is there.
    Ask,
    /// A program writes.
    Write(usize),
    /// Looks whether all is well.
    Settle,
}

/// What a node does again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Duty {
    Beat,
    Supervise,
    Work,
    Manage,
    Keep,
    /// A request is not waited for any longer.
    GiveUp(u64),
    /// A file is on the disk for good.
    Synced(PartId, Option<usize>),
}

/// A message from one node to another.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub from: usize,
    pub to: usize,
    pub body: Body,
}

/// What it says.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Beat {
        boot: BootId,
        leads: Vec<(ShardId, Epoch)>,
    },
    Heard,
    Propose {
        request: u64,
        proposal: Box<Proposal>,
    },
    Decided {
        request: u64,
        outcome: Option<Outcome>,
    },
    Put(PartId),
    HasPut {
        part: PartId,
        holder: Holder,
    },
    Fetch(PartId),
    Fetched(PartId),
    Pin {
        query: u64,
        shard: ShardId,
    },
    Pinned {
        query: u64,
        shard: ShardId,
        pin: Option<(Epoch, Vec<PinnedLane>)>,
    },
    AskIndex {
        query: u64,
    },
    Index {
        query: u64,
        index: usize,
    },
    Append {
        client: usize,
        request: u64,
        shard: ShardId,
        first: u64,
        rows: Vec<RecordId>,
    },
}

/// What a run is like.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How it is broken on purpose.
    pub mutant: Option<Mutant>,
    /// Whether it tells what happens, line by line.
    pub tell: bool,
}

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Events.
    pub events: u64,
    /// Simulated time.
    pub time: Time,
    /// Commands that were committed.
    pub commands: u64,
    /// Commits of parts among them that were taken.
    pub commits: u64,
    /// Commands that were refused.
    pub refusals: u64,
    /// Faults, by name.
    pub faults: BTreeMap<&'static str, u64>,
    /// What operators did, by name.
    pub acts: BTreeMap<&'static str, u64>,
    /// Queries that were answered.
    pub queries: u64,
    /// Records that were produced.
    pub records: u64,
    /// Rows in the table at the end.
    pub rows: u64,
    /// A hash of the whole history.
    pub digest: u64,
}

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
    pub options: Options,
    pub tally: Tally,
    pub requests: u64,
    /// Links on which nothing arrives.
    pub cut: BTreeSet<(usize, usize)>,
    /// Links on which it takes longer.
    pub slow: BTreeMap<(usize, usize), Time>,
    /// One message of so many is lost; 0 if none is.
    pub loss: u64,
    pub told: Vec<String>,
    pub healed: bool,
    pub done: bool,
    pub flush_age: Time,
    history: Xxh3,
}

#[derive(Debug)]
struct Scheduled {
    at: Time,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// Writes down what happens, if anybody wants to know.
macro_rules! tell {
    ($world:expr, $($what:tt)*) => {
        if $world.options.tell {
            let line = format!($($what)*);
            $world.told.push(format!("{:>10.3} {line}", $world.now as f64 / 1e6));
        }
    };
}
pub(crate) use tell;

impl World {
    pub fn new(seed: u64, options: Options) -> Self {
        let mut dice = Dice::new(seed);
        let nodes = if dice.one_in(4) { 5 } else { 3 };
        let nodes: Vec<Node> = (0..nodes).map(|index| Node::new(index, &mut dice)).collect();
        let partitions = dice.between(2, 5) as usize;
        let clients = (0..dice.between(0, 3)).map(|_| Client::new(&mut dice)).collect();
        let nemesis = Nemesis::new(&mut dice);
        let flush_age = dice.between(100, 2_500) * MS;
        Self {
            now: 0,
            queue: BinaryHeap::new(),
            made: 0,
            group: Group::new(),
            nodes,
            topic: Topic::new(partitions),
            files: Files::new(),
            clients,
            queries: BTreeMap::new(),
            oracle: Oracle::default(),
            nemesis,
            options,
            tally: Tally::default(),
            requests: 0,
            cut: BTreeSet::new(),
            slow: BTreeMap::new(),
            loss: 0,
            told: Vec::new(),
            healed: false,
            done: false,
            flush_age,
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
            Event::Operate => self.operate(),
            Event::Ask => self.ask(),
            Event::Write(client) => self.write(client),
            Event::Settle => self.settle(),
        }
    }

    /// Whether messages go from one node to the other.
    pub fn hears(&self, from: usize, to: usize) -> bool {
        let works = |index: usize| self.nodes[index].up && !self.nodes[index].paused;
        works(from) && works(to) && (from == to || !self.cut.contains(&(from, to)))
    }

    fn talk(&self, a: usize, b: usize) -> bool {
        self.hears(a, b) && self.hears(b, a)
    }

    /// Whether a node reaches a majority.
    pub fn has_majority(&self, index: usize) -> bool {
        let reached = (0..self.nodes.len()).filter(|other| self.talk(index, *other)).count();
        reached * 2 > self.nodes.len()
    }

    /// Sends a message. It may be late, or never arrive.
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
        self.after(time, Event::Deliver(Message { from, to, body }));
    }

    /// Node `index` proposes `command`; what comes of it goes where `purpose` says.
    pub fn propose(&mut self, index: usize, purpose: Purpose, command: Command) {
        self.requests += 1;
        let request = self.requests;
        let node = &mut self.nodes[index];
        let at_ms = (self.now / MS) as i64 + node.wall_ms;
        let proposal = Box::new(Proposal::new(at_ms, command));
        node.waiting.insert(request, purpose);
        let boot = node.boot;
        match node.leader {
            Some((_, leader)) => {
                self.send(index, leader, Body::Propose { request, proposal });
                self.after(DECIDE, Event::Duty(index, boot, Duty::GiveUp(request)));
            }
            None => self.after(100 * MS, Event::Duty(index, boot, Duty::GiveUp(request))),
        }
    }

    /// A node that believes that it leads takes a proposal.
    pub fn take_proposal(&mut self, index: usize, asked: (usize, u64), proposal: Proposal) {
        let node = &self.nodes[index];
        let Some((term, _)) = node.leader.filter(|(_, leader)| *leader == index) else {
            let (request, outcome) = (asked.1, None);
            return self.send(index, asked.0, Body::Decided { request, outcome });
        };
        let leader = (index, node.boot);
        let entry = self.group.take(Pending {
            proposal,
            leader,
            term,
            asked,
        });
        let sync = self.nodes[index].sync_time(&mut self.dice);
        // In the order in which they were taken.
        let at = (self.now + sync).max(self.nodes[index].decides_at + 1);
        self.nodes[index].decides_at = at;
        self.after(at - self.now, Event::Decide(entry));
    }

    fn decide(&mut self, entry: u64) -> Result<(), Violation> {
        let Some(pending) = self.group.pending.get(&entry).cloned() else {
            return Ok(());
        };
        let (leader, boot) = pending.leader;
        if self.group.term != pending.term {
            // Another leads by now: what of this reached a majority was decided when it was elected.
            self.group.pending.remove(&entry);
            return Ok(());
        }
        let node = &self.nodes[leader];
        let leads = node.up && node.boot == boot && self.group.leader == Some(leader);
        if leads && self.has_majority(leader) {
            self.group.pending.remove(&entry);
            let outcome = self.commit(pending.proposal)?;
            let (to, request) = pending.asked;
            let outcome = Some(outcome);
            self.send(leader, to, Body::Decided { request, outcome });
        }
        // Else it waits, in the logs of those that have it.
        Ok(())
    }

    /// Appends a command to the log: from here on it has happened.
    pub fn commit(&mut self, proposal: Proposal) -> Result<Outcome, Violation> {
        let command = proposal.command.clone();
        let decided = self.group.commit(proposal, self.options.mutant)?;
        self.tally.commands += 1;
        self.note(3, decided.version as u64);
        tell!(
            self,
            "#{} {} -> {:?}",
            decided.version,
            brief(&command),
            decided.outcome
        );
        match &decided.outcome {
            Ok(_) => self.tally.commits += u64::from(matches!(command, Command::CommitPart(_))),
            Err(_) => self.tally.refusals += 1,
        }
        self.oracle.step(&decided.before, &decided.after)?;
        if decided.outcome.is_ok() {
            self.check_command(&command, &decided.before, &decided.after)?;
        }
        let leader = self.group.leader;
        for index in 0..self.nodes.len() {
            if leader.is_some_and(|leader| self.hears(leader, index)) {
                let boot = self.nodes[index].boot;
                let time = self.dice.between(200, 15_000);
                self.after(time, Event::Apply(index, boot, decided.version));
            }
        }
        let oldest = self.nodes.iter().map(|node| node.synced.min(node.applied)).min();
        self.group.forget_before(oldest.unwrap_or_default());
        Ok(decided.outcome)
    }

    /// What the world knows of a command, and the catalog does not.
    fn check_command(&mut self, command: &Command, before: &MemView, after: &MemView) -> Result<(), Violation> {
        use tidemill_core::view::CatalogRead;
        match command {
            Command::CommitPart(commit) => {
                let files = commit
                    .parts
                    .iter()
                    .chain(commit.reject_parts.iter().map(|(_, file)| file));
                for file in files {
                    self.check_held(commit.shard, file.id, after)?;
                }
                self.oracle.check_commit(commit, before, &self.files, &self.topic)?;
            }
            Command::AddReplica(of) | Command::CompleteReplica(of) => {
                use tidemill_core::catalog::{CatalogQuestions, Shard};
                let ready = after.get::<Shard>(&of.shard)?;
                if ready.is_some_and(|shard| shard.ready_replicas().any(|node| node == of.node)) {
                    for copies in after.copies_of(of.shard)? {
                        self.check_held(of.shard, copies.part, after)?;
                    }
                }
            }
            Command::SetHoldings(holdings) => {
                for (shard, part) in &holdings.holds {
                    self.check_held(*shard, *part, after)?;
                }
            }
            Command::ResetOffsets(reset) => {
                use tidemill_core::catalog::{CatalogQuestions, SourcePartition};
                let Some(pipe) = before.pipe_named(&reset.name)? else {
                    return Ok(());
                };
                // Whoever asks at the moment may see what was before.
                self.queries.clear();
                self.oracle.forget_seen();
                for target in &reset.targets {
                    let place = (pipe.id, target.partition);
                    let Some(old) = before.get::<SourcePartition>(&place)? else {
                        continue;
                    };
                    let log = self.topic.logs.get(target.partition.0 as usize);
                    let (from, to) = (old.offset.0, target.to.map_or(0, |to| to.0));
                    for slot in (from..to).filter_map(|offset| log.and_then(|log| log.slot(offset))) {
                        if let crate::source::Slot::Record { id, .. } = slot {
                            self.oracle.given_up.insert(id);
                        }
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// CAT-1: a disk that the catalog names for a file has it, whole and synced, unless we have broken it ourselves.
    fn check_held(&self, shard: ShardId, part: PartId, state: &MemView) -> Result<(), Violation> {
        use tidemill_core::catalog::Copies;
        use tidemill_core::view::CatalogRead;
        let Some(copies) = state.get::<Copies>(&(shard, part))? else {
            return Ok(());
        };
        for holder in &copies.holders {
            let node = &self.nodes[holder.node.0 as usize - 1];
            if node.disk != holder.disk {
                continue;
            }
            let kept = node.stored.get(&part);
            if kept.is_none_or(|kept| !kept.durable && !kept.broken) && !node.broken.contains(&part) {
                let what = format!("node {} is said to hold {part}, and has {kept:?}", holder.node);
                return Err(Violation::new("CAT-1", what));
            }
        }
        Ok(())
    }

    fn tend_group(&mut self) -> Result<(), Violation> {
        let count = self.nodes.len();
        let healthy = self.group.leader.filter(|leader| self.has_majority(*leader));
        for index in 0..count {
            let node = &mut self.nodes[index];
            if !node.up || node.paused {
                continue;
            }
            // Whoever leads without a majority notices in time; whoever was deposed, when he hears of it.
            if node.leader.is_some_and(|(_, leader)| leader == index)
                && healthy != Some(index)
                && self.now >= node.heard_at + LEASE
            {
                node.leader = None;
                node.manager = None;
                self.group.leader = self.group.leader.filter(|leader| *leader != index);
            }
        }
        if let Some(leader) = healthy {
            let term = self.group.term;
            for index in 0..count {
                if !self.hears(leader, index) {
                    continue;
                }
                let node = &mut self.nodes[index];
                if node.leader != Some((term, leader)) {
                    node.leader = Some((term, leader));
                    if index != leader {
                        node.manager = None;
                    }
                }
                node.heard_at = self.now;
                let (boot, behind) = (node.boot, node.applied < self.group.committed());
                if behind {
                    let (time, version) = (self.dice.between(500, 30_000), self.group.committed());
                    self.after(time, Event::Apply(index, boot, version));
                }
            }
            let waiting: Vec<u64> = self
                .group
                .pending
                .iter()
                .filter(|(_, p)| p.term == term)
                .map(|(n, _)| *n)
                .collect();
            // What waited for a majority goes on, if it is not on its way anyway.
            for entry in waiting {
                self.after(MS, Event::Decide(entry));
            }
            return Ok(());
        }
        let now = self.now;
        let silent = |node: &Node, time: Time| node.heard_at + time <= now;
        let candidates: Vec<usize> = (0..count)
            .filter(|index| {
                let node = &self.nodes[*index];
                let agrees = |other: &usize| self.talk(*index, *other) && silent(&self.nodes[*other], 400 * MS);
                let votes = (0..count).filter(agrees).count();
                node.up && !node.paused && silent(node, node.patience) && votes * 2 > count
            })
            .collect();
        let Some(winner) = self.dice.pick(&candidates).copied() else {
            return Ok(());
        };
        self.elect(winner)
    }

    fn elect(&mut self, winner: usize) -> Result<(), Violation> {
        self.group.term += 1;
        self.group.leader = Some(winner);
        let (term, now) = (self.group.term, self.now);
        self.note(4, winner as u64);
        tell!(self, "n{} leads the group in term {term}", winner + 1);
        // What the one before had taken was on the disks of a majority, or was not.
        let open = std::mem::take(&mut self.group.pending);
        for (_, pending) in open {
            if self.dice.one_in(2) {
                // Its proposer was deposed: nobody is told.
                _ = self.commit(pending.proposal)?;
            }
        }
        let version = self.group.committed();
        let state = self.group.tip();
        let patience = self.dice.between(400, 800) * MS;
        let node = &mut self.nodes[winner];
        (node.leader, node.heard_at, node.applied, node.state) = (Some((term, winner)), now, version, state);
        node.patience = patience;
        node.manage(now);
        let boot = node.boot;
        self.after(MS, Event::Duty(winner, boot, Duty::Manage));
        Ok(())
    }

    /// Runs `act` with what tasks may use.
    pub fn with_hands<T>(&mut self, index: usize, act: impl FnOnce(&mut Node, &mut Hands<'_>) -> T) -> T {
        let Self {
            nodes,
            topic,
            files,
            dice,
            options,
            now,
            ..
        } = self;
        let mut id = || dice.id();
        let mut hands = Hands {
            now: *now,
            topic,
            files,
            id: &mut id,
            mutant: options.mutant,
        };
        act(&mut nodes[index], &mut hands)
    }

    fn produce(&mut self) {
        if self.healed {
            return;
        }
        let time = self.dice.between(5, 60) * MS;
        self.after(time, Event::Produce);
        let partition = self.dice.below(self.topic.logs.len());
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

/// A command in a few words.
fn brief(command: &Command) -> String {
    match command {
        Command::CommitPart(c) => {
            let spans = c.spans.iter().map(|s| {
                let key = s.key;
                format!(
                    "{}/{}@{} {}..{}",
                    key.pipe, key.partition, key.incarnation, s.start, s.end
                )
            });
            let spans: Vec<String> = spans.collect();
            let holders: Vec<String> = c.holders.iter().map(|h| format!("n{}", h.node)).collect();
            format!(
                "commit {} epoch {} [{}] on {}",
                c.shard,
                c.epoch,
                spans.join(", "),
                holders.join(" ")
            )
        }
        other => format!("{other:?}").chars().take(300).collect(),
    }
}
