//! What can happen, and what nodes say to each other.

use crate::nemesis::Fault;
use crate::source::RecordId;
use crate::task::{Answer, Piece, PinnedLane};
use crate::time::Time;
use tidemill_core::catalog::{Acks, Holder};
use tidemill_core::command::Outcome;
use tidemill_core::{BootId, DiskId, Epoch, InstanceId, NodeId, PartId, Proposal, ShardId, Version};

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
    Mend(Fault),
    /// Who leads this shard is lost.
    LoseLeader(ShardId),
    /// A node whose log is not that of the source any more is back, and is to lead this shard instead of who does.
    ShowStaleLog(usize, ShardId),
    /// A node is to keep no more what it has not copied yet.
    GiveUpCopies(usize),
    /// A node is to lead this shard.
    Lead(ShardId, NodeId),
    /// A node that was told to leave is told to stay.
    Stay(NodeId),
    /// A node is told to leave, and killed.
    LeaveAndDie(usize),
    /// Operators do something.
    Operate,
    /// A node that is not admitted asks again.
    Join(usize),
    /// Somebody asks what is there.
    Ask,
    /// Somebody asks this node, which has just woken up.
    AskAt(usize),
    /// A program writes.
    Write(usize),
    /// A program hears what came of its request.
    Reply {
        client: usize,
        request: u64,
        node: usize,
        epoch: Option<Epoch>,
        answer: Answer,
    },
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
    /// Rows are in the log for good.
    Logged(u64),
    /// A partition of a writer may be opened again.
    Release(u64),
    /// Looks what is in its log and led elsewhere.
    Offer,
}

/// A message from one node to another.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub from: usize,
    pub to: usize,
    pub body: Body,
}

/// What a node tells the manager.
#[derive(Clone, Debug)]
pub(crate) struct Beat {
    pub boot: BootId,
    pub disk: DiskId,
    pub instance: InstanceId,
    /// The shards that it says it leads.
    pub led: Vec<(ShardId, Epoch)>,
    /// The version of the catalog by which it led nothing, if others had all that its log had for them after that.
    pub handed_over: Option<Version>,
}

/// What it says.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Beat(Beat),
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
    PassGap {
        client: usize,
        request: u64,
        shard: ShardId,
        from: u64,
        to: u64,
    },
    Offer {
        shard: ShardId,
        acks: Option<Acks>,
        pieces: Vec<Piece>,
    },
}

/// An event with its time. Of two at the same time, the one that was made first comes first.
#[derive(Debug)]
pub(crate) struct Scheduled {
    pub at: Time,
    pub number: u64,
    pub event: Event,
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
