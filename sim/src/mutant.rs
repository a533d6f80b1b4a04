//! Behaviours that are broken on purpose: a harness that does not notice them proves nothing.
//!
//! Each undoes one rule, and nothing else. Rules of the catalog are undone from outside, by changing the command or the state
//! just before it is applied so that the check passes: the program under test has no switch for being wrong.

use tidemill_core::Version;
use tidemill_core::catalog::*;
use tidemill_core::command::{Command, ReplicaOf};
use tidemill_core::view::{CatalogRead, MemView, Overlay, ViewError, WriteSet};

/// A behaviour that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Mutant {
    /// A commit is taken wherever it begins.
    NoOffsetCheck,
    /// A commit of a deposed leader is taken.
    NoEpochCheck,
    /// A commit of an earlier life of its partition is taken.
    NoLifeCheck,
    /// A commit is taken although too few disks have its files.
    NoHolderCheck,
    /// A replica is said to be complete while it copies.
    CopyingIsComplete,
    /// A replica is given up although the others do not have its files.
    NeededReplicaIsDropped,
    /// A node with another disk is taken to hold what it held.
    OtherDiskHoldsTheSame,
    /// Offsets that an operator skips are not counted as lost.
    SkippedIsNotLost,
    /// What is applied depends on which node applies it, and when.
    ApplyReadsTheClock,
    /// A disk says that it has a file before it is synced.
    AcknowledgesBeforeFsync,
    /// Files that nothing refers to are deleted however young they are.
    YoungFilesAreDeleted,
    /// A program is told that its rows are there before they are committed.
    AcknowledgesBeforeCommit,
    /// Rows that a program sends again are taken again.
    RepeatedRowsAreTaken,
    /// Rows that come again are known by the last few alone.
    OldRepeatsAreTaken,
    /// A commit of which nobody knows the outcome is taken for done.
    UnknownIsTakenForDone,
    /// Spans that are refused are taken for committed.
    RefusedSpansAreTakenForDone,
    /// Records that cannot be decoded are left out in silence.
    RejectedAreForgotten,
    /// Offsets are committed, and their rows are not.
    OffsetsGoAhead,
    /// A reader whose offset has expired goes on at the earliest, in silence.
    ResetsToEarliest,
    /// A reader whose offset has expired goes on at the newest, in silence.
    ResetsToLatest,
    /// Records of aborted transactions are read.
    AbortedRecordsAreRead,
    /// A topic that was created again is read on.
    OtherTopicIsRead,
    /// A log that was cut and has grown again is read on.
    CutLogIsRead,
    /// A repair of a log that was cut does not say up to where the old one is the same.
    RepairForgetsTheEpoch,
    /// A query takes its snapshot of the catalog before it asks for rows in memory.
    SnapshotComesFirst,
    /// A query uses all rows that are in memory, also those that are committed by now.
    PinsAreNotCut,
    /// A leader that was deposed keeps serving, and nobody compares epochs.
    OldLeaderServes,
    /// Rows are forgotten in memory before the part with them is visible.
    MemtableIsDroppedEarly,
    /// A file is written again under the same id, with more in it.
    FilesAreWrittenAgain,
    /// A commit is proposed before its files are known to be on the disks.
    CommitsBeforePut,
    /// A commit that is refused moves offsets all the same.
    RefusalMovesOffsets,
    /// A reader waits for ever at an offset that holds no record.
    GapsWedge,
    /// A node that starts deletes what the catalog on its disk, which may be old, does not name.
    StartsByDeleting,
    /// A late claim about a disk counts for a replica that is younger.
    LateClaimCounts,
    /// A log is trimmed before the commit with its rows is decided.
    TrimsBeforeCommit,
    /// A program is told that its rows are in the log before they are synced.
    AcknowledgesBeforeLogSync,
    /// Logs of nodes that lead no more are not handed over.
    LogsAreNotHandedOver,
    /// A standby takes over rows without comparing the leader epochs of the source.
    StandbyIgnoresTheEpoch,
    /// A log is replayed without comparing the leader epochs of the source.
    ReplayIgnoresTheEpoch,
    /// A leader that was deposed stops a partition.
    StopsAreNotFenced,
    /// A leader that was deposed passes over a gap.
    GapsAreNotFenced,
    /// A leader that does not hear what came of passing over a gap takes rows again all the same.
    GapsAreGivenUp,
    /// A node that has lost everything is taken for the one that had its name.
    LostNodeKeepsItsId,
    /// A node is removed although it keeps files that the others do not have.
    KeeperIsRemoved,
    /// A node is removed although its log has acknowledged rows that nobody else has.
    LogHolderIsRemoved,
    /// What a node says of its log counts also when it was found out before the node was to leave.
    OldHandOverCounts,
    /// A pipe that is dropped leaves its partitions behind.
    DroppedPipeLeavesPartitions,
    /// A pipe that is created again begins at the beginning, whatever was read before.
    CreatedAgainFromTheStart,
}

impl Mutant {
    /// What is changed in `state`, and in the command, before it is applied.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn before_apply(self, state: &MemView, command: &mut Command) -> Result<WriteSet, ViewError> {
        let mut draft = Overlay::new(state);
        match (self, command) {
            (Mutant::NoEpochCheck, Command::CommitPart(commit)) => {
                if let Some(shard) = state.get::<Shard>(&commit.shard)? {
                    commit.epoch = shard.epoch;
                    if shard.leader.is_none() {
                        let leader = shard.last_leader;
                        draft.put(
                            &shard.id,
                            &Shard {
                                leader,
                                ..shard.clone()
                            },
                        )?;
                    }
                }
            }
            (Mutant::NoLifeCheck, Command::CommitPart(commit)) => {
                for span in &mut commit.spans {
                    if let Some(p) = state.get::<SourcePartition>(&(span.key.pipe, span.key.partition))? {
                        span.key.incarnation = p.incarnation;
                    }
                }
            }
            (Mutant::NoOffsetCheck, Command::CommitPart(commit)) => {
                for span in &commit.spans {
                    let place = (span.key.pipe, span.key.partition);
                    if let Some(mut p) = state.get::<SourcePartition>(&place)?.filter(|p| p.offset != span.start) {
                        p.offset = span.start;
                        draft.put(&place, &p)?;
                    }
                }
            }
            (Mutant::NoHolderCheck, Command::CommitPart(commit)) => {
                if let Some(shard) = state.get::<Shard>(&commit.shard)? {
                    commit.holders.clear();
                    for replica in &shard.replicas {
                        commit
                            .holders
                            .extend(state.get::<Node>(&replica.node)?.and_then(|node| node.holder()));
                    }
                }
            }
            (Mutant::CopyingIsComplete, Command::AddReplica(of)) => {
                hold_all(state, &mut draft, of)?;
            }
            (Mutant::NeededReplicaIsDropped, Command::DropReplica(of)) => {
                for mut copies in state.copies_of(of.shard)? {
                    copies.holders.retain(|holder| holder.node != of.node);
                    draft.put(&(of.shard, copies.part), &copies)?;
                }
            }
            (Mutant::OtherDiskHoldsTheSame, Command::NodeUp(up)) => {
                if let Some(mut node) = state.get::<Node>(&up.node)?.filter(|node| node.disk != up.disk) {
                    let (old, new) = (node.holder(), up.disk.map(|disk| Holder { node: up.node, disk }));
                    for shard in state.list::<Shard>(&[])? {
                        for mut copies in state.copies_of(shard.id)? {
                            for holder in copies.holders.iter_mut().filter(|holder| Some(**holder) == old) {
                                *holder = new.unwrap_or(*holder);
                            }
                            draft.put(&(shard.id, copies.part), &copies)?;
                        }
                    }
                    node.disk = up.disk;
                    draft.put(&up.node, &node)?;
                }
            }
            (Mutant::SkippedIsNotLost, Command::ResetOffsets(reset)) => {
                let Some(pipe) = state.pipe_named(&reset.name)? else {
                    return Ok(WriteSet::new());
                };
                for target in &reset.targets {
                    let place = (pipe.id, target.partition);
                    if let (Some(mut p), Some(to)) = (state.get::<SourcePartition>(&place)?, target.to)
                        && to > p.offset
                    {
                        p.offset = to;
                        draft.put(&place, &p)?;
                    }
                }
            }
            (Mutant::LostNodeKeepsItsId, Command::AddNode(add)) => {
                let living = |node: &&Node| node.name == add.name && node.state != NodeState::Removed;
                if let Some(node) = state.list::<Node>(&[])?.iter().find(living) {
                    let instance = add.instance;
                    draft.put(
                        &node.id,
                        &Node {
                            instance,
                            ..node.clone()
                        },
                    )?;
                }
            }
            (Mutant::KeeperIsRemoved, Command::RemoveNode(gone)) => {
                for mut shard in state.list::<Shard>(&[])? {
                    shard.replicas.retain(|replica| replica.node != gone.node);
                    draft.put(&shard.id, &shard)?;
                }
            }
            (Mutant::LateClaimCounts, Command::SetHoldings(holdings)) => holdings.seen = Version(u64::MAX),
            _ => {}
        }
        Ok(draft.into_writes())
    }
}

impl Mutant {
    /// What is changed once more in `after`, when `command` was applied to `before`, or refused.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn after_apply(
        self,
        before: &MemView,
        after: &MemView,
        command: &Command,
        refused: bool,
    ) -> Result<WriteSet, ViewError> {
        let mut draft = Overlay::new(after);
        match (self, command) {
            (Mutant::RefusalMovesOffsets, Command::CommitPart(commit)) if refused => {
                for span in &commit.spans {
                    let place = (span.key.pipe, span.key.partition);
                    let partition = before.get::<SourcePartition>(&place)?;
                    if let Some(mut p) = partition.filter(|p| p.key() == span.key && p.offset == span.start) {
                        p.offset = span.end;
                        draft.put(&place, &p)?;
                    }
                }
            }
            (Mutant::DroppedPipeLeavesPartitions, Command::DropPipe(dropped)) if !refused => {
                if let Some(pipe) = before.pipe_named(&dropped.name)? {
                    for p in before.partitions_of(pipe.id)? {
                        draft.put(&(pipe.id, p.partition), &p)?;
                    }
                }
            }
            _ => {}
        }
        let changes = draft.into_writes();
        let mut whole = Overlay::new(after);
        if !changes.is_empty() {
            whole.absorb(changes)?;
        }
        Ok(whole.into_writes())
    }
}

/// Writes down that the disk of a node holds every file of a shard.
fn hold_all(state: &MemView, draft: &mut Overlay<'_>, of: &ReplicaOf) -> Result<(), ViewError> {
    let Some(holder) = state.get::<Node>(&of.node)?.and_then(|node| node.holder()) else {
        return Ok(());
    };
    for mut copies in state.copies_of(of.shard)? {
        if !copies.on(holder) {
            copies.holders.push(holder);
            copies.holders.sort();
            draft.put(&(of.shard, copies.part), &copies)?;
        }
    }
    Ok(())
}
