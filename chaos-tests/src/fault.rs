//! Faults: what the nemesis does to real processes, their network, their disks, their clocks and their brokers.
//!
//! [`Fault::begin`] strikes a world at random and gives a [`Running`]; [`Running::end`] mends what was broken, waits for nothing
//! else, and says so in the history. Dropping it, also in a panic, mends what outlives the processes. A world in which every fault
//! can happen is made by [`stage`]. Which part of the world is struck is decided by the random numbers that are given.
//!
//! Whatever a fault destroys of a topic it notes as `log-lost`, so that a checker does not miss it.

mod brokers;
pub mod clock;
mod combined;
mod damage;
pub mod disk;
mod disks;
pub mod link;
pub mod network;
mod process;
pub mod proxy;
mod running;
mod stage;
mod wires;

pub use running::Running;
pub use stage::{Plan, stage};

use crate::history::History;
use crate::world::World;
use anyhow::{Context, bail};
use rand::rngs::StdRng;
use running::Stroke;
use std::fmt;
use std::str::FromStr;

/// What a world must have for a fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Network namespaces.
    pub network: bool,
    /// Disks in user space.
    pub disks: bool,
    /// Clocks that can be shifted.
    pub clocks: bool,
    /// So many brokers.
    pub brokers: u32,
}

impl Needs {
    /// What both need.
    pub fn and(self, other: Self) -> Self {
        Self {
            network: self.network || other.network,
            disks: self.disks || other.disks,
            clocks: self.clocks || other.clocks,
            brokers: self.brokers.max(other.brokers),
        }
    }
}

macro_rules! faults {
    ($($fault:ident $name:literal $needs:ident $text:literal;)*) => {
        /// What can be done to a world.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Fault {
            $(#[doc = $text] $fault,)*
        }

        impl Fault {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$fault),*];

            /// Its name on the command line, in histories and in reports.
            pub fn name(self) -> &'static str {
                match self { $(Self::$fault => $name,)* }
            }

            /// What it does.
            pub fn describe(self) -> &'static str {
                match self { $(Self::$fault => $text,)* }
            }

            fn needed(self) -> Needed {
                match self { $(Self::$fault => Needed::$needs,)* }
            }
        }
    };
}

#[derive(Clone, Copy, PartialEq)]
enum Needed {
    Nothing,
    Network,
    Disks,
    Clocks,
    Brokers,
    NetworkAndBrokers,
    Everything,
}

faults! {
    Kill "kill" Nothing "A node is killed (kill -9) and started again at the end.";
    KillAll "kill-all" Nothing "All nodes are killed at once and started again at the end.";
    Pause "pause" Nothing "A node's process is stopped (SIGSTOP) and goes on at the end.";
    Terminate "terminate" Nothing "A node is asked to end (SIGTERM), and started again at the end.";
    RollingRestart "rolling-restart" Nothing "One node after the other is asked to end and started again as soon as it has ended; each is waited for.";
    ReplaceNode "replace-node" Nothing "A node, which is killed or not, is replaced by a new one for good.";

    Cut "cut" Network "Nothing passes between two, of which one is a node and the other a node or a broker.";
    CutOneWay "cut-one-way" Network "Nothing that one of such two sends reaches the other.";
    CutBrokers "cut-brokers" Brokers "Nothing passes between two brokers.";
    Isolate "isolate" Network "A node is cut off from all nodes and brokers; clients reach it.";
    IsolateOneWay "isolate-one-way" Network "Nothing that a node sends reaches another node or a broker, while it hears them.";
    Split "split" Network "The nodes are split into a majority and a minority, which do not reach each other; both reach all brokers.";
    Ring "ring" Network "Each node reaches its two neighbours alone; of three nodes, the two ends of a line do not reach each other.";
    Unplug "unplug" Network "No node reaches any broker.";
    Loss "loss" Network "A part of all packets, 5 to 30 percent, between a node and all others is lost.";
    Delay "delay" Network "What a node exchanges with nodes and brokers comes 50 to 400 ms late.";
    Jitter "jitter" Network "The same comes 0 to 500 ms late, a different time for each piece.";
    Bandwidth "bandwidth" Network "The same passes at 32 to 256 KiB per second and direction.";
    HalfOpen "half-open" Network "Connections between a node and the others stay open, and nothing that is answered on them arrives.";
    Resets "resets" Network "Connections between a node and the others are reset after 0 to 2 s, again and again.";
    Duplication "duplication" Network "What nodes and clients ask a node arrives twice, the second time on another connection.";

    SlowSync "slow-sync" Disks "Every sync of a node's disk takes 50 to 500 ms longer.";
    FailingSync "failing-sync" Disks "One sync of a node's disk fails (EIO); if that ends the node, it is started again at the end.";
    FailingSyncs "failing-syncs" Disks "All syncs of a node's disk fail (EIO) until the end, when the node is started again if it has ended.";
    LyingSync "lying-sync" Disks "A node's disk says that it has synced parts and write-ahead log, and has not; at the end, the node is killed, loses that, and is started again.";
    PowerCut "power-cut" Disks "A node is killed and its disk loses what was not synced, but for the first so many writes and a torn one; it is started again at the end.";
    DiskFull "disk-full" Disks "A node's disk has 0 to 64 KiB left (ENOSPC) until the end, when the node is started again if it has ended.";
    ReadErrors "read-errors" Disks "One of 10 to 200 reads from a node's disk fails (EIO) until the end, when the node is started again if it has ended.";

    CorruptParts "corrupt-parts" Nothing "A byte flips in a third of the part files of a node that runs.";
    TruncateParts "truncate-parts" Nothing "A third of the part files of a node that runs are cut off.";
    CorruptWal "corrupt-wal" Nothing "A node is killed and a byte of its write-ahead log flips; at the end, the log is moved away, as the node demands, and the node started again.";
    TruncateWal "truncate-wal" Nothing "A node is killed and the end of its write-ahead log is gone, synced as it was; it is started again at the end.";
    CorruptRaftLog "corrupt-raft-log" Nothing "A node is killed and a byte of its Raft log flips; if it does not start with that, it is wiped, removed and joins as a new node at the end.";
    WipeDisk "wipe-disk" Nothing "A node is killed and loses its disk; at the end it is removed and joins as a new node.";

    ClockJump "clock-jump" Clocks "The wall clock of a node jumps by an hour, forwards or backwards, and jumps back at the end.";
    ClockDrift "clock-drift" Clocks "The wall clock of a node runs twice or half as fast, and is right again at the end.";

    KillBroker "kill-broker" Nothing "A broker is killed and started again at the end.";
    PauseBroker "pause-broker" Nothing "A broker's process is stopped (SIGSTOP) and goes on at the end.";
    MoveLeaders "move-leaders" Brokers "The broker that leads a partition of a topic ends in an orderly way, others lead; at the end it leads again.";
    UncleanElection "unclean-election" NetworkAndBrokers "The followers of a leader fall behind, it is killed, and a follower leads with what it has: acknowledged records are lost, and their offsets are given to others.";
    Retention "retention" NetworkAndBrokers "No node reaches the brokers until records that were not read have expired.";
    DeleteRecords "delete-records" Nothing "The records of a topic before some offset, often before the last one, are deleted.";
    RecreateTopic "recreate-topic" Nothing "A topic is deleted and created again.";
    GrowTopic "grow-topic" Nothing "A topic gets one to three more partitions.";

    Combined "combined" Everything "Three faults at once, or two where no more can begin: of processes, links, disks and clocks, and brokers, one each of three of these.";
}

impl Fault {
    /// What the world must have.
    pub fn needs(self) -> Needs {
        let needed = self.needed();
        Needs {
            network: matches!(needed, Needed::Network | Needed::NetworkAndBrokers | Needed::Everything)
                || self == Self::CutBrokers,
            disks: matches!(needed, Needed::Disks | Needed::Everything),
            clocks: matches!(needed, Needed::Clocks | Needed::Everything),
            brokers: match needed {
                Needed::Brokers | Needed::NetworkAndBrokers | Needed::Everything => 3,
                _ => 1,
            },
        }
    }

    /// Whether pipes may have stopped because of it, until an operator says `ALTER PIPE … REPAIR`: what they were to read is gone.
    pub fn calls_for_repair(self) -> bool {
        matches!(
            self,
            Self::UncleanElection | Self::Retention | Self::DeleteRecords | Self::RecreateTopic | Self::Combined
        )
    }

    /// Whether it harms one topic alone, a different one each time as far as there are more.
    pub fn harms_a_topic(self) -> bool {
        matches!(
            self,
            Self::UncleanElection | Self::Retention | Self::DeleteRecords | Self::RecreateTopic | Self::GrowTopic
        )
    }

    /// Why it cannot happen in this world, if that is so.
    pub fn impossible(self, world: &World) -> Option<String> {
        let needs = self.needs();
        let lacks = [
            (needs.network && world.network.is_none(), "network namespaces"),
            (needs.disks && !world.with_disks, "disks in user space"),
            (needs.clocks && !world.with_clocks, "clocks that can be shifted"),
            (needs.brokers > world.broker_count(), "as many brokers"),
        ];
        let lack = lacks.iter().find(|(lacks, _)| *lacks);
        lack.map(|(_, what)| format!("{self} needs {what}"))
    }

    /// Begins it. Needs a runtime of several threads: tools are waited for.
    ///
    /// # Errors
    /// If the world lacks something for it, or somebody refuses what was asked. Nothing stays broken then, but for processes that
    /// have ended.
    pub async fn begin(self, world: &mut World, rng: &mut StdRng, history: &History) -> anyhow::Result<Running> {
        if let Some(why) = self.impossible(world) {
            bail!("{why}");
        }
        let mut stroke = Stroke::new(self, world, rng, history);
        let begun = stroke.strike().await;
        begun.with_context(|| format!("{self} could not begin"))?;
        Ok(stroke.into_running())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|fault| fault.name() == text);
        found.copied().ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|fault| fault.name()).collect();
            format!("there is no fault '{text}'; there are {}", names.join(", "))
        })
    }
}
