//! What breaks: which faults a run has is decided by its seed, so that some runs have many of few kinds.

use crate::dice::Dice;
use crate::event::Event;
use crate::seeds::Violation;
use crate::time::{MS, Time};
use crate::world::{World, tell};

/// A fault; what it has to be ended for is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// kill -9, and a start later.
    Kill(usize),
    /// A loss of power everywhere.
    KillAll,
    /// SIGSTOP, and SIGCONT later.
    Pause(usize),
    /// Nothing goes from one node to the other.
    CutOneWay(usize, usize),
    /// Nothing goes between a node and all others.
    Isolate(usize),
    /// Some nodes here, the others there.
    Split(u64),
    /// It takes long from one node to the other.
    Delay(usize, usize),
    /// Messages are lost.
    Loss,
    /// Writing takes long.
    SlowDisk(usize),
    /// Nothing can be written.
    FullDisk(usize),
    /// A node that is down gets an empty disk.
    WipeDisk(usize),
    /// A file is not what was written.
    Corrupt,
    /// A clock jumps.
    ClockJump(usize),
    /// A clock goes wrong.
    ClockDrift(usize),
    /// The brokers do not answer.
    BrokersDown,
    /// A broker that lacks the newest records leads.
    Truncate,
    /// Records expire, whether they were read or not.
    Expire,
    /// Records are compacted.
    Compact,
    /// The topic is created again.
    Recreate,
    /// The topic gets a partition.
    Grow,
    /// A node is lost with everything that it has.
    LoseNode(usize),
    /// A node does not reach the brokers.
    NoBrokers(usize),
    /// Some proposals travel for long.
    Late,
    /// A shard gets another leader, although the one that it has works.
    Move,
    /// A standby reads nothing for a while, in which the log is cut and another leads.
    StaleStandby(usize),
    /// A node is told to leave, and to stay after all.
    Hasty(usize),
    /// A node whose log has acknowledged rows is away until others pass over them, and what those say of that comes late.
    LateGap(usize),
    /// A node whose log has rows that are not committed is away until the source's log is cut below them, has grown, and another
    /// leader has committed a little of that; then it leads again.
    StaleLog(usize),
    /// A node copies everything anew, says late what it has, and has to give that up while it copies.
    LateClaim(usize),
    /// Messages arrive twice.
    Duplicate,
    /// A node that led nothing is given a shard, told to leave and killed, while what it said before arrives once more.
    LateBeats(usize),
}

/// How many kinds there are.
pub(crate) const KINDS: usize = 31;

/// Which faults a run has.
#[derive(Debug)]
pub(crate) struct Nemesis {
    enabled: Vec<usize>,
    pause: Time,
    healed_at: Time,
}

/// Kinds that bring about more together than among all others: what happens to the source while leaders change, to disks while
/// nodes come and go, to leaders, to standbys, and what a leader says when it is none any more.
const THEMES: [&[usize]; 10] = [
    &[0, 2, 15, 16, 21, 23],
    &[0, 8, 10, 11, 20, 22, 25],
    &[0, 1, 2, 3, 4, 9, 22, 23],
    &[15, 23, 24],
    &[0, 2, 15, 22, 23],
    &[0, 23, 26, 26],
    &[23, 26, 26, 26],
    &[8, 27, 27],
    &[STALE_LOG, STALE_LOG, 21, 23],
    &[22, 25, LATE_BEATS, LATE_BEATS],
];
/// The number of [`Fault::StaleLog`].
const STALE_LOG: usize = 28;
/// The number of [`Fault::LateBeats`].
const LATE_BEATS: usize = 30;

impl Nemesis {
    pub fn new(dice: &mut Dice) -> Self {
        if dice.one_in(2) {
            let theme = dice.pick(&THEMES).copied().unwrap_or_default();
            return Self {
                enabled: theme.to_vec(),
                pause: dice.between(300, 1_200) * MS,
                healed_at: 0,
            };
        }
        let share = dice.between(1, 5);
        let mut enabled: Vec<usize> = (0..KINDS).filter(|_| dice.one_in(share)).collect();
        if enabled.is_empty() {
            enabled.push(0);
        }
        Self {
            enabled,
            pause: dice.between(300, 3_000) * MS,
            healed_at: 0,
        }
    }

    /// Whether a fault of this run is one of write-ahead logs, also of those that only spare reading again.
    pub fn needs_logs(&self) -> bool {
        self.enabled.contains(&STALE_LOG)
    }
}

impl World {
    pub fn healed_at(&self) -> Time {
        self.nemesis.healed_at
    }

    fn some_fault(&mut self) -> Fault {
        let count = self.nodes.len();
        let (a, b) = (self.dice.below(count), self.dice.below(count));
        let kinds = self.nemesis.enabled.clone();
        match self.dice.pick(&kinds).copied().unwrap_or_default() {
            0 => Fault::Kill(a),
            1 => Fault::KillAll,
            2 => Fault::Pause(a),
            3 => Fault::CutOneWay(a, b),
            4 => Fault::Isolate(a),
            5 => Fault::Split(self.dice.between(1, (1 << count) - 1)),
            6 => Fault::Delay(a, b),
            7 => Fault::Loss,
            8 => Fault::SlowDisk(a),
            9 => Fault::FullDisk(a),
            10 => Fault::WipeDisk(a),
            11 => Fault::Corrupt,
            12 => Fault::ClockJump(a),
            13 => Fault::ClockDrift(a),
            14 => Fault::BrokersDown,
            15 => Fault::Truncate,
            16 => Fault::Expire,
            17 => Fault::Compact,
            18 => Fault::Recreate,
            19 => Fault::Grow,
            20 => Fault::LoseNode(a),
            21 => Fault::NoBrokers(a),
            22 => Fault::Late,
            23 => Fault::Move,
            24 => Fault::StaleStandby(a),
            25 => Fault::Hasty(a),
            26 => Fault::LateGap(a),
            27 => Fault::LateClaim(a),
            STALE_LOG => Fault::StaleLog(a),
            LATE_BEATS => Fault::LateBeats(a),
            _ => Fault::Duplicate,
        }
    }

    pub fn break_something(&mut self) -> Result<(), Violation> {
        if self.healed {
            return Ok(());
        }
        let pause = self.nemesis.pause;
        let time = self.dice.between(pause / 4, pause * 2);
        self.after(time, Event::Nemesis);
        let fault = self.some_fault();
        self.begin_for_a_while(fault)
    }

    /// Begins a fault, and has it mended later.
    pub fn begin_for_a_while(&mut self, fault: Fault) -> Result<(), Violation> {
        if self.healed {
            return Ok(());
        }
        let lasts = match fault {
            Fault::Pause(_) => self.dice.between(200, 8_000) * MS,
            Fault::StaleStandby(_) => self.dice.between(5_000, 10_000) * MS,
            // Long enough to be given up.
            Fault::LateGap(_) => self.dice.between(11_000, 15_000) * MS,
            Fault::StaleLog(_) | Fault::LateBeats(_) => self.dice.between(4_000, 8_000) * MS,
            _ => self.dice.between(50, 6_000) * MS,
        };
        if self.begin(fault)? {
            tell!(self, "{fault:?} for {} ms", lasts / MS);
            self.note(6, lasts);
            let name: &'static str = name_of(fault);
            *self.tally.faults.entry(name).or_default() += 1;
            self.after(lasts, Event::Mend(fault));
        }
        Ok(())
    }

    /// Begins a fault. Returns whether it is one at the moment.
    fn begin(&mut self, fault: Fault) -> Result<bool, Violation> {
        let count = self.nodes.len();
        match fault {
            Fault::LoseNode(index) => {
                let voters = &self.group.voters;
                let others = voters.iter().filter(|voter| **voter != index && self.nodes[**voter].up);
                let quorum_stays = others.count() * 2 > voters.len();
                return Ok(quorum_stays && self.may_lose_disk(index)? && self.lose_node(index));
            }
            Fault::Kill(index) => {
                if !self.nodes[index].up {
                    return Ok(false);
                }
                self.kill(index);
            }
            Fault::KillAll => (0..count).for_each(|index| self.kill(index)),
            Fault::Pause(index) => {
                if !self.nodes[index].up || self.nodes[index].paused {
                    return Ok(false);
                }
                self.nodes[index].paused = true;
            }
            Fault::CutOneWay(a, b) => return Ok(a != b && self.cut.insert((a, b))),
            Fault::Isolate(index) => {
                for other in (0..count).filter(|other| *other != index) {
                    self.cut.insert((index, other));
                    self.cut.insert((other, index));
                }
            }
            Fault::Split(sides) => {
                for a in 0..count {
                    for b in 0..count {
                        if (sides >> a) & 1 != (sides >> b) & 1 {
                            self.cut.insert((a, b));
                        }
                    }
                }
            }
            Fault::Delay(a, b) => {
                let time = self.dice.between(5, 4_000) * MS;
                self.slow.insert((a, b), time);
            }
            Fault::Loss => self.loss = self.dice.between(2, 20),
            Fault::Duplicate => self.twice = self.dice.between(1, 6),
            Fault::SlowDisk(index) => self.nodes[index].sync = self.dice.between(20, 1_500) * MS,
            Fault::FullDisk(index) => self.nodes[index].full = true,
            Fault::NoBrokers(index) => self.nodes[index].reads_nothing = true,
            Fault::Move => return self.move_some_shard(None, |_| true),
            Fault::StaleStandby(index) => return self.make_stale(index),
            Fault::LateGap(index) => return Ok(self.hide_log(index)),
            Fault::StaleLog(index) => return self.make_log_stale(index),
            Fault::LateClaim(index) => {
                let begins = self.wipe(index)?;
                self.late_claims |= begins;
                return Ok(begins);
            }
            Fault::LateBeats(index) => return self.repeat_beats(index),
            Fault::Hasty(index) => return Ok(self.tell_to_leave_and_stay(index)),
            Fault::Late => self.late = self.dice.between(1, 5),
            Fault::WipeDisk(index) => return self.wipe(index),
            Fault::Corrupt => return self.corrupt(),
            Fault::ClockJump(index) => {
                let far = self.dice.between(0, 7_200_000) as i64;
                self.nodes[index].wall_ms = far - 3_600_000;
            }
            Fault::ClockDrift(index) => self.nodes[index].rate = self.dice.between(60, 160),
            Fault::BrokersDown => self.topic.down = true,
            Fault::Truncate => self.cut_some_log()?,
            Fault::Expire => {
                let partition = self.dice.below(self.topic.logs.len());
                let log = &self.topic.logs[partition];
                let to = log.high().saturating_sub(self.dice.between(0, 30));
                self.topic.expire(partition, to);
            }
            Fault::Compact => {
                let partition = self.dice.below(self.topic.logs.len());
                let log = &self.topic.logs[partition];
                let (low, high) = (log.low, log.high());
                for _ in 0..10 {
                    let offset = self.dice.between(low, high);
                    self.topic.compact(partition, offset);
                }
            }
            Fault::Recreate => {
                if self.dice.one_in(2) {
                    return Ok(false);
                }
                self.topic.recreate();
            }
            Fault::Grow => {
                if self.topic.logs.len() >= 6 {
                    return Ok(false);
                }
                self.topic.logs.push(Default::default());
            }
        }
        Ok(true)
    }

    pub fn mend(&mut self, fault: Fault) -> Result<(), Violation> {
        let count = self.nodes.len();
        match fault {
            Fault::Kill(index) | Fault::WipeDisk(index) | Fault::StaleLog(index) => self.start(index)?,
            Fault::KillAll => {
                for index in 0..count {
                    self.start(index)?;
                }
            }
            Fault::LateGap(index) => self.show_log(index)?,
            Fault::LateClaim(index) => {
                self.start(index)?;
                let time = self.dice.between(300, 4_000) * MS;
                self.after(time, Event::GiveUpCopies(index));
            }
            Fault::Pause(index) => self.resume(index),
            Fault::CutOneWay(a, b) => _ = self.cut.remove(&(a, b)),
            Fault::Isolate(_) | Fault::Split(_) => self.cut.clear(),
            Fault::Delay(a, b) => _ = self.slow.remove(&(a, b)),
            Fault::Loss => self.loss = 0,
            Fault::Duplicate => self.twice = 0,
            Fault::SlowDisk(index) => self.nodes[index].sync = 5 * MS,
            Fault::FullDisk(index) => self.nodes[index].full = false,
            Fault::NoBrokers(index) | Fault::StaleStandby(index) => self.nodes[index].reads_nothing = false,
            Fault::Late => self.late = 0,
            Fault::LateBeats(_) => self.late_beats = None,
            Fault::ClockDrift(index) => self.nodes[index].rate = 100,
            Fault::BrokersDown => self.topic.down = false,
            Fault::ClockJump(_)
            | Fault::Corrupt
            | Fault::Truncate
            | Fault::Expire
            | Fault::Compact
            | Fault::Recreate
            | Fault::Grow
            | Fault::LoseNode(_)
            | Fault::Move
            | Fault::Hasty(_) => {}
        }
        Ok(())
    }

    /// Mends everything.
    pub fn heal(&mut self) -> Result<(), Violation> {
        self.nemesis.healed_at = self.now;
        self.cut.clear();
        self.slow.clear();
        (self.loss, self.twice, self.late) = (0, 0, 0);
        (self.late_gaps, self.late_claims) = (false, false);
        (self.late_beats, self.quiet) = (None, None);
        self.topic.down = false;
        for index in 0..self.nodes.len() {
            self.resume(index);
            self.start(index)?;
            let node = &mut self.nodes[index];
            (node.sync, node.full, node.rate, node.reads_nothing) = (5 * MS, false, 100, false);
        }
        Ok(())
    }

    pub fn kill(&mut self, index: usize) {
        if self.nodes[index].up {
            let (synced, written) = self.nodes[index].wal.ends();
            // As far as it got to the disk: all that was not synced may be lost, or the last of it.
            let torn = if self.dice.one_in(2) {
                synced
            } else {
                self.dice.between(synced, written + 1)
            };
            self.nodes[index].crash(&self.group, torn);
            if self.group.leader == Some(index) {
                self.group.leader = None;
            }
        }
    }

    fn resume(&mut self, index: usize) {
        if !std::mem::take(&mut self.nodes[index].paused) {
            return;
        }
        // Who waited there to ask is served first, by what was known before.
        self.after(1, Event::AskAt(index));
        // What has come meanwhile, and what was due, all at once.
        for event in std::mem::take(&mut self.nodes[index].deferred) {
            self.after(10, event);
        }
    }
}

fn name_of(fault: Fault) -> &'static str {
    match fault {
        Fault::Kill(_) => "kill",
        Fault::KillAll => "kill all",
        Fault::Pause(_) => "pause",
        Fault::CutOneWay(..) => "cut one way",
        Fault::Isolate(_) => "isolate",
        Fault::Split(_) => "split",
        Fault::Delay(..) => "delay",
        Fault::Loss => "loss",
        Fault::SlowDisk(_) => "slow disk",
        Fault::FullDisk(_) => "full disk",
        Fault::WipeDisk(_) => "wiped disk",
        Fault::Corrupt => "corrupt file",
        Fault::ClockJump(_) => "clock jump",
        Fault::ClockDrift(_) => "clock drift",
        Fault::BrokersDown => "brokers down",
        Fault::Truncate => "truncated log",
        Fault::Expire => "expired records",
        Fault::Compact => "compaction",
        Fault::Recreate => "topic recreated",
        Fault::Grow => "partition growth",
        Fault::LoseNode(_) => "lost node",
        Fault::NoBrokers(_) => "no brokers for a node",
        Fault::Late => "late proposals",
        Fault::Move => "moved shard",
        Fault::StaleStandby(_) => "stale standby",
        Fault::Hasty(_) => "hasty leave",
        Fault::LateGap(_) => "late gap",
        Fault::LateClaim(_) => "late claim",
        Fault::StaleLog(_) => "stale log",
        Fault::Duplicate => "duplication",
        Fault::LateBeats(_) => "late heartbeats",
    }
}
