//! The whole: machines, network, clients and whoever breaks things, and what all of them share.

use crate::disk::{CatalogState, Disk};
use crate::mutant::Mutant;
use crate::network::Net;
use crate::node::Node;
use crate::oracle::{LeaderId, Oracle};
use crate::runtime::{Process, RIGHT, lock, spawn_free, spawn_on, true_nanos, true_sleep};
use crate::tally::Tally;
use crate::types::{Entry, LogId, Member, Reply};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tidemill_core::view::MemView;
use tidemill_core::{Command, InstanceId, Proposal};
use tidemill_sim::dice::Dice;
use tidemill_sim::seeds::Violation;

/// Everything that the tasks of a simulation share.
pub(crate) struct World {
    pub mutant: Option<Mutant>,
    pub machines: Vec<Arc<Machine>>,
    pub founders: usize,
    pub net: Mutex<Net>,
    pub oracle: Mutex<Oracle>,
    pub snapshot_entries: u64,
    pub keep_entries: u64,
    /// Whether the catalog takes long to copy.
    large: bool,
    dice: Mutex<Dice>,
    tally: Mutex<Tally>,
    violation: Mutex<Option<Violation>>,
    told: Option<Mutex<Vec<String>>>,
    next: Mutex<i64>,
    /// Machines that an operator is busy with.
    busy: Mutex<BTreeSet<usize>>,
    /// Moments at which there will be a crash.
    risks: Mutex<BTreeSet<Risk>>,
}

/// Writes down what happens, if somebody wants to know.
macro_rules! tell {
    ($world:expr, $($what:tt)*) => {
        if $world.is_told() {
            $world.tell(format!($($what)*));
        }
    };
}
pub(crate) use tell;

impl World {
    pub fn new(seed: u64, mutant: Option<Mutant>, told: bool) -> Self {
        let mut dice = Dice::new(seed);
        let founders = if dice.one_in(4) { 5 } else { 3 };
        let machines = founders + dice.below(3).min(6 - founders);
        // Most clocks are right; some gain or lose two seconds in a hundred.
        let drifts = dice.one_in(3);
        let mut tally = Tally::default();
        if drifts {
            tally.faults.insert("clock drift", 1);
        }
        let machines = (0..machines).map(|index| {
            let rate = if drifts {
                dice.between(RIGHT - 20, RIGHT + 21)
            } else {
                RIGHT
            };
            Arc::new(Machine::new(index, rate, &mut dice))
        });
        let machines: Vec<Arc<Machine>> = machines.collect();
        for machine in &machines[..founders] {
            lock(&machine.state).id = Some(machine.index as u64 + 1);
        }
        Self {
            mutant,
            founders,
            net: Mutex::new(Net::new(machines.len())),
            machines,
            oracle: Mutex::default(),
            snapshot_entries: dice.between(12, 60),
            keep_entries: dice.between(0, 12),
            large: dice.one_in(4),
            dice: Mutex::new(dice),
            tally: Mutex::new(tally),
            violation: Mutex::default(),
            told: told.then(Mutex::default),
            next: Mutex::new(1),
            busy: Mutex::default(),
            risks: Mutex::default(),
        }
    }

    /// An operator begins to do something with a machine, unless one is at it.
    pub fn begins(&self, machine: usize) -> bool {
        lock(&self.busy).insert(machine)
    }

    /// It is done.
    pub fn ended(&self, machine: usize) {
        lock(&self.busy).remove(&machine);
    }

    /// A machine that some operator is busy with.
    pub fn busy(&self) -> Option<usize> {
        lock(&self.busy).first().copied()
    }

    /// Lets chance decide.
    pub fn roll<T>(&self, decide: impl FnOnce(&mut Dice) -> T) -> T {
        decide(&mut lock(&self.dice))
    }

    /// A command as nobody else proposes it: its time is its number.
    pub fn proposal(&self, command: Command) -> Proposal {
        let mut next = lock(&self.next);
        *next += 1;
        lock(&self.oracle).may_be(*next);
        Proposal::new(*next, command)
    }

    pub fn is_told(&self) -> bool {
        self.told.is_some()
    }

    pub fn tell(&self, what: String) {
        if let Some(told) = &self.told {
            let ms = true_nanos() as f64 / 1e6;
            lock(told).push(format!("{ms:>10.3} ms  {what}"));
        }
    }

    /// Mixes what happens into the hash of the history.
    pub fn note(&self, kind: u64, what: u64) {
        let mut tally = lock(&self.tally);
        let mixed = (tally.digest ^ kind.rotate_left(56) ^ what).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        tally.digest = (mixed ^ (mixed >> 29)).wrapping_add(true_nanos());
    }

    pub fn tally(&self, change: impl FnOnce(&mut Tally)) {
        change(&mut lock(&self.tally));
    }

    pub fn count(&self, event: &'static str) {
        self.tally(|tally| *tally.events.entry(event).or_default() += 1);
    }

    pub fn fault(&self, name: &'static str) {
        tell!(self, "FAULT {name}");
        self.tally(|tally| *tally.faults.entry(name).or_default() += 1);
    }

    pub fn act(&self, name: &'static str) {
        tell!(self, "OPERATOR {name}");
        self.tally(|tally| *tally.acts.entry(name).or_default() += 1);
    }

    /// A rule was broken; the first one counts.
    pub fn broke(&self, violation: Violation) {
        tell!(self, "BROKEN {violation}");
        lock(&self.violation).get_or_insert(violation);
    }

    pub fn check(&self, checked: Result<(), Violation>) {
        if let Err(violation) = checked {
            self.broke(violation);
        }
    }

    pub fn violation(&self) -> Option<Violation> {
        lock(&self.violation).clone()
    }

    /// What came of it, and what happened. The machines end with it, or they would keep each other alive.
    pub fn end(&self) -> (Result<Tally, Violation>, Vec<String>) {
        for machine in &self.machines {
            machine.kill(self);
        }
        let mut tally = lock(&self.tally).clone();
        tally.time = true_nanos();
        let (entries, elections) = lock(&self.oracle).counts();
        (tally.entries, tally.elections) = (entries, elections);
        let told = self.told.as_ref().map(|told| std::mem::take(&mut *lock(told)));
        let result = match self.violation() {
            None => Ok(tally),
            Some(violation) => Err(violation),
        };
        (result, told.unwrap_or_default())
    }

    /// How long a write to files takes that nobody syncs.
    pub fn write_time(&self, machine: &Machine) -> Duration {
        let slow = lock(&machine.state).slow;
        self.roll(|dice| {
            if slow {
                dice.time(100, 20_000)
            } else {
                dice.time(10, 200)
            }
        })
    }

    /// How long an fsync takes.
    pub fn sync_time(&self, machine: &Machine) -> Duration {
        let slow = lock(&machine.state).slow;
        self.roll(|dice| {
            if slow {
                dice.time(10_000, 350_000)
            } else {
                dice.time(200, 3_000)
            }
        })
    }

    /// How long it takes to copy a whole catalog into files and sync them.
    pub fn copy_time(&self, machine: &Machine) -> Duration {
        let longer = if self.large { 3_000_000 } else { 1 };
        self.roll(|dice| dice.time(0, longer)) + self.sync_time(machine)
    }

    /// Entries were appended to the log of a machine, behind `before`.
    pub fn appended(
        self: &Arc<Self>,
        machine: &Machine,
        office: Option<LeaderId>,
        before: Option<LogId>,
        entries: &[Entry],
    ) {
        let writer = (machine.identity().0, machine.run());
        let mut oracle = lock(&self.oracle);
        let (checked, elected) = oracle.appended(writer, office, before, entries);
        drop(oracle);
        if let Some(leader) = elected {
            tell!(self, "node {} is elected as {leader}", writer.0);
            self.note(2, leader.term * 16 + leader.node_id);
            self.risk(Risk::Election, None);
        }
        self.check(checked);
    }

    /// A machine has applied entries, which gave `replies` and led to `view`.
    pub fn applied(&self, machine: &Machine, entries: &[Entry], replies: &[Reply], view: &MemView) {
        let new = lock(&self.oracle).applied(entries, replies, view);
        match new {
            Ok(new) => {
                for entry in entries.iter().rev().take(new).rev() {
                    let what = entry_text(entry);
                    tell!(self, "#{} committed: {what}", entry.log_id);
                }
            }
            Err(violation) => {
                tell!(self, "on machine {}:", machine.index);
                self.broke(violation);
            }
        }
        let last = entries.last().map_or(0, |entry| entry.log_id.index);
        self.note(3, last * 16 + machine.index as u64);
    }

    /// A machine has another catalog now, from a snapshot.
    pub fn installed(&self, machine: &Machine, state: &CatalogState) {
        tell!(
            self,
            "machine {} installs a snapshot of {:?}",
            machine.index,
            state.applied
        );
        self.count("snapshots installed");
        let checked = lock(&self.oracle).installed(state);
        self.check(checked);
    }

    /// Arms, or disarms, a crash at a moment at which it hurts.
    pub fn arm(&self, risk: Risk, armed: bool) {
        let mut risks = lock(&self.risks);
        match armed {
            true => drop(risks.insert(risk)),
            false => drop(risks.remove(&risk)),
        }
    }

    /// Such a moment has come: some machine, or this one, may lose its power in a moment.
    pub fn risk(self: &Arc<Self>, risk: Risk, machine: Option<&Arc<Machine>>) {
        if !lock(&self.risks).remove(&risk) {
            return;
        }
        let running: Vec<&Arc<Machine>> = self
            .machines
            .iter()
            .filter(|machine| machine.process().is_some())
            .collect();
        let some = self.roll(|dice| running.get(dice.below(running.len())).copied());
        let Some(machine) = machine.or(some).cloned() else {
            return;
        };
        let moment = self.roll(|dice| dice.time(0, 30_000));
        let world = self.clone();
        spawn_free(async move {
            true_sleep(moment).await;
            world.fault(risk.name());
            world.crash_for_a_while(machine);
        });
    }

    /// A machine loses its power, and gets it back.
    fn crash_for_a_while(self: &Arc<Self>, machine: Arc<Machine>) {
        machine.lose_power(self);
        let (world, down) = (self.clone(), self.roll(|dice| dice.time(50_000, 1_500_000)));
        spawn_free(async move {
            true_sleep(down).await;
            machine.start(&world);
        });
    }

    /// Whether a machine is to die in the middle of an installation, which it does then.
    pub fn dies_while_installing(self: &Arc<Self>, machine: &Arc<Machine>) -> bool {
        let dies = std::mem::take(&mut lock(&machine.state).dies_installing);
        if dies {
            self.fault("crash while installing a snapshot");
            let (world, machine) = (self.clone(), machine.clone());
            spawn_free(async move { world.crash_for_a_while(machine) });
        }
        dies
    }
}

/// A moment at which a crash hurts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Risk {
    /// Somebody has just been elected.
    Election,
    /// A node has just cut off the end of its log.
    Truncation,
}

impl Risk {
    fn name(self) -> &'static str {
        match self {
            Risk::Election => "crash after an election",
            Risk::Truncation => "crash after truncating",
        }
    }
}

fn entry_text(entry: &Entry) -> String {
    match &entry.payload {
        openraft::EntryPayload::Blank => "blank".into(),
        openraft::EntryPayload::Normal(logged) => {
            let mut text = format!("{:?}", logged.0.command);
            text.truncate(220);
            format!("{} {text}", logged.0.at_ms)
        }
        openraft::EntryPayload::Membership(members) => format!("{members}"),
    }
}

/// A machine: a disk, and the process that runs on it, if one does.
pub(crate) struct Machine {
    pub index: usize,
    pub disk: Mutex<Disk>,
    pub state: Mutex<MachineState>,
    rate: u64,
}

/// What changes of a machine.
pub(crate) struct MachineState {
    pub id: Option<u64>,
    pub instance: InstanceId,
    /// How often its disk was emptied.
    pub emptied: u64,
    pub slow: bool,
    pub dies_installing: bool,
    process: Option<Arc<Process>>,
    node: Option<Arc<Node>>,
    run: u64,
    lost_power: bool,
    joined: bool,
}

impl Machine {
    fn new(index: usize, rate: u64, dice: &mut Dice) -> Self {
        Self {
            index,
            rate,
            disk: Mutex::default(),
            state: Mutex::new(MachineState {
                id: None,
                instance: InstanceId(dice.id()),
                emptied: 0,
                slow: false,
                dies_installing: false,
                process: None,
                node: None,
                run: 0,
                lost_power: false,
                joined: false,
            }),
        }
    }

    /// The number and data folder of its node; a machine without a number has no node.
    pub fn identity(&self) -> (u64, InstanceId) {
        let state = lock(&self.state);
        (state.id.unwrap_or_default(), state.instance)
    }

    pub fn has_number(&self) -> bool {
        lock(&self.state).id.is_some()
    }

    pub fn name(&self) -> String {
        let emptied = lock(&self.state).emptied;
        match emptied {
            0 => format!("n{}", self.index + 1),
            times => format!("n{}.{times}", self.index + 1),
        }
    }

    pub fn member(&self) -> Member {
        let name = self.name();
        Member {
            name,
            instance: Some(lock(&self.state).instance),
            machine: self.index,
        }
    }

    /// The node, if it has started and was not killed.
    pub fn node(&self) -> Option<Arc<Node>> {
        lock(&self.state).node.clone()
    }

    pub fn process(&self) -> Option<Arc<Process>> {
        lock(&self.state).process.clone()
    }

    /// How many processes it has had.
    pub fn run(&self) -> u64 {
        lock(&self.state).run
    }

    pub fn lost_power(&self) -> bool {
        lock(&self.state).lost_power
    }

    pub fn has_joined(&self) -> bool {
        lock(&self.state).joined
    }

    pub fn mark_joined(&self) {
        lock(&self.state).joined = true;
    }

    /// Whether a process runs on it and is not stopped.
    pub fn works(&self) -> bool {
        self.process().is_some_and(|process| !process.is_paused())
    }

    /// Starts the node's process, unless one runs or it has no number yet.
    pub fn start(self: &Arc<Self>, world: &Arc<World>) {
        let process = {
            let mut state = lock(&self.state);
            if state.process.is_some() || state.id.is_none() {
                return;
            }
            state.run += 1;
            state.lost_power = false;
            let process = Process::new(self.rate);
            state.process = Some(process.clone());
            process
        };
        tell!(world, "machine {} starts node {}", self.index, self.identity().0);
        let (world, machine, within) = (world.clone(), self.clone(), process.clone());
        spawn_on(&process, async move {
            match Node::start(&world, &machine, &within).await {
                Ok(node) => {
                    lock(&machine.state).node = Some(node.clone());
                    crate::manager::run(node);
                }
                Err(why) => {
                    let found = format!("node {} does not start: {why}", machine.identity().0);
                    world.broke(Violation::new("START: a node starts with what its disk kept", found));
                }
            }
        });
    }

    /// Ends the process; what it had written stays.
    pub fn kill(&self, world: &World) {
        let (process, node) = {
            let mut state = lock(&self.state);
            (state.process.take(), state.node.take())
        };
        if let Some(process) = process {
            tell!(world, "machine {} loses its process", self.index);
            process.kill();
            world.tally(|tally| tally.steps += process.polls());
        }
        drop(node);
    }

    /// Ends the process; what it had not synced is gone.
    pub fn lose_power(&self, world: &World) {
        lock(&self.state).lost_power = true;
        self.kill(world);
        world.roll(|dice| lock(&self.disk).lose_unsynced(dice));
    }

    /// Its disk is replaced by an empty one. What comes back is another node.
    pub fn empty(&self, world: &World) {
        self.lose_power(world);
        *lock(&self.disk) = Disk::default();
        if world.mutant == Some(Mutant::EmptiedNodeComesBack) {
            lock(&self.state).joined = false;
            return;
        }
        self.renew(world);
    }

    /// Makes the data folder that of another node, which has no number yet.
    pub fn renew(&self, world: &World) {
        let instance = InstanceId(world.roll(Dice::id));
        let mut state = lock(&self.state);
        (state.id, state.instance, state.joined) = (None, instance, false);
        state.emptied += 1;
    }
}
