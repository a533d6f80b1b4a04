//! What the adversary can do, and how often it does it.

use proptest::prelude::*;
use tidemill_core::catalog::*;
use tidemill_core::command::*;
use tidemill_core::stop::StopReason;
use tidemill_core::*;

/// What the adversary does next.
#[derive(Clone, Debug)]
pub enum Act {
    Commit {
        shard: u32,
        width: u64,
    },
    CommitSpoiled {
        shard: u32,
        width: u64,
        how: Spoil,
    },
    Replay {
        which: usize,
    },
    ReuseId {
        shard: u32,
        which: usize,
    },
    Assign {
        shard: u32,
        behind: u64,
        leader: Option<u64>,
    },
    Standby {
        shard: u32,
        behind: u64,
        node: Option<u64>,
    },
    NodeUp {
        node: u64,
        boot: u128,
        disk: u128,
    },
    NodeState {
        node: u64,
        boot: u128,
        state: NodeState,
    },
    SetState(PipeState),
    Stop {
        partition: u32,
        behind: u64,
        reason: StopReason,
    },
    Reset {
        partition: u32,
        behind: u64,
        to: Option<u64>,
        topic: Option<u128>,
        old_rows: Option<OldRows>,
    },
    Backfill,
    CommitBackfill {
        width: u64,
    },
    ReplayRejects {
        spoil: u8,
        take: u64,
    },
    AddPartition(u32),
    DropPipe,
    DropTable,
    Create,
    AddNode {
        name: u64,
        instance: u128,
        port: u64,
    },
    Intent {
        node: u64,
        intent: NodeIntent,
    },
    RemoveNode(u64),
    Replica {
        shard: u32,
        node: u64,
        what: u8,
    },
    Holdings {
        node: u64,
        disk: u128,
        holds: usize,
        lost: usize,
    },
    Replication {
        replicas: u32,
        min_replicas: u32,
    },
    OpenWriter(u128),
    WriteDirectly {
        width: u64,
        ahead: u64,
    },
    CloseWriter {
        which: u64,
        acknowledged: u64,
    },
    PassGap {
        which: u64,
        behind: u64,
        width: u64,
    },
}

/// What makes a good commit a bad one.
#[derive(Clone, Copy, Debug)]
pub enum Spoil {
    OldEpoch,
    NewEpoch,
    Later,
    Earlier,
    Backwards,
    OtherLife,
    ForeignPartition,
    UnknownPipe,
    Twice,
    TooManyRows,
    HiddenGap,
    UncountedReject,
    MorePartRows,
    EmptyPart,
    EmptyRejectPart,
    TwoRejectParts,
    OneHolder,
    OtherDisk,
    NoReplica,
}

/// Anything.
pub fn act() -> impl Strategy<Value = Act> {
    let spoil = prop_oneof![
        Just(Spoil::OldEpoch),
        Just(Spoil::NewEpoch),
        Just(Spoil::Later),
        Just(Spoil::Earlier),
        Just(Spoil::Backwards),
        Just(Spoil::OtherLife),
        Just(Spoil::ForeignPartition),
        Just(Spoil::UnknownPipe),
        Just(Spoil::Twice),
        Just(Spoil::TooManyRows),
        Just(Spoil::HiddenGap),
        Just(Spoil::UncountedReject),
        Just(Spoil::MorePartRows),
        Just(Spoil::EmptyPart),
        Just(Spoil::EmptyRejectPart),
        Just(Spoil::TwoRejectParts),
        Just(Spoil::OneHolder),
        Just(Spoil::OtherDisk),
        Just(Spoil::NoReplica),
    ];
    let state = prop_oneof![
        Just(NodeState::Joining),
        Just(NodeState::Ready),
        Just(NodeState::Draining),
        Just(NodeState::Down),
        Just(NodeState::Removed)
    ];
    let intent = prop_oneof![
        Just(NodeIntent::Serve),
        Just(NodeIntent::Drain),
        Just(NodeIntent::Leave)
    ];
    prop_oneof![
        8 => (0u32..2, 0u64..50).prop_map(|(shard, width)| Act::Commit { shard, width }),
        8 => (0u32..2, 1u64..50, spoil).prop_map(|(shard, width, how)| Act::CommitSpoiled { shard, width, how }),
        3 => (0usize..100).prop_map(|which| Act::Replay { which }),
        2 => (0u32..2, 0usize..100).prop_map(|(shard, which)| Act::ReuseId { shard, which }),
        4 => (0u32..3, 0u64..2, proptest::option::of(1u64..8))
            .prop_map(|(shard, behind, leader)| Act::Assign { shard, behind, leader }),
        3 => (0u32..3, 0u64..2, proptest::option::of(1u64..8))
            .prop_map(|(shard, behind, node)| Act::Standby { shard, behind, node }),
        2 => (1u64..8, 1u128..3, 0u128..4).prop_map(|(node, boot, disk)| Act::NodeUp { node, boot, disk }),
        2 => (1u64..8, 1u128..3, state).prop_map(|(node, boot, state)| Act::NodeState { node, boot, state }),
        2 => pipe_state().prop_map(Act::SetState),
        2 => (0u32..4, 0u64..2, stop_reason()).prop_map(|(partition, behind, reason)| Act::Stop { partition, behind, reason }),
        3 => (0u32..4, 0u64..2, proptest::option::of(0u64..300), proptest::option::of(1u128..3), old_rows())
            .prop_map(|(partition, behind, to, topic, old_rows)| Act::Reset { partition, behind, to, topic, old_rows }),
        2 => Just(Act::Backfill),
        4 => (0u64..40).prop_map(|width| Act::CommitBackfill { width }),
        4 => (0u8..8, 0u64..20).prop_map(|(spoil, take)| Act::ReplayRejects { spoil, take }),
        1 => (0u32..8).prop_map(Act::AddPartition),
        1 => Just(Act::DropPipe),
        1 => Just(Act::DropTable),
        1 => Just(Act::Create),
        2 => (1u64..6, 1u128..10, 0u64..4).prop_map(|(name, instance, port)| Act::AddNode { name, instance, port }),
        2 => (1u64..8, intent).prop_map(|(node, intent)| Act::Intent { node, intent }),
        2 => (1u64..8).prop_map(Act::RemoveNode),
        6 => (0u32..2, 1u64..8, 0u8..3).prop_map(|(shard, node, what)| Act::Replica { shard, node, what }),
        6 => (1u64..8, 0u128..4, 0usize..10, 0usize..3)
            .prop_map(|(node, disk, holds, lost)| Act::Holdings { node, disk, holds, lost }),
        1 => (0u32..5, 0u32..5).prop_map(|(replicas, min_replicas)| Act::Replication { replicas, min_replicas }),
        2 => (0u128..6).prop_map(Act::OpenWriter),
        4 => (1u64..20, 0u64..2).prop_map(|(width, ahead)| Act::WriteDirectly { width, ahead }),
        1 => (1u64..6, 0u64..40).prop_map(|(which, acknowledged)| Act::CloseWriter { which, acknowledged }),
        1 => (1u64..6, 0u64..2, 0u64..9).prop_map(|(which, behind, width)| Act::PassGap { which, behind, width }),
    ]
}

fn old_rows() -> impl Strategy<Value = Option<OldRows>> {
    prop_oneof![Just(None), Just(Some(OldRows::Keep)), Just(Some(OldRows::Delete))]
}

fn pipe_state() -> impl Strategy<Value = PipeState> {
    prop_oneof![
        Just(PipeState::Running),
        Just(PipeState::Pausing),
        Just(PipeState::Paused)
    ]
}

fn stop_reason() -> impl Strategy<Value = StopReason> {
    let recreated = |end| StopReason::TopicRecreated {
        topic: TopicId(2),
        known_end: Some(Offset(end)),
    };
    prop_oneof![
        (0u64..300).prop_map(|earliest| StopReason::Expired {
            earliest: Offset(earliest)
        }),
        (0u64..300).prop_map(recreated),
        Just(StopReason::Truncated {
            diverged: Some(Offset(3)),
            epoch: Some(1),
        }),
        Just(StopReason::EndBelow { end: Offset(1) }),
        Just(StopReason::TooManyRejected { rejected: 5, of: 10 }),
    ]
}
