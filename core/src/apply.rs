//! Applying a command: the only way in which the catalog changes.
//!
//! [`apply`] is total and deterministic. It reads the state, decides, and either writes everything
//! the command stands for or writes nothing and says why. It must never read a clock, a random
//! number or the order of a hash map; what a command needs of those travels inside it.
//!
//! The commit of parts and offsets is in `apply/commit.rs`; it is the heart of exactly-once.

mod cluster;
mod commit;
mod control;
mod definitions;
mod deletion;
mod events;
mod membership;
mod rejects;
mod replicas;
mod writers;

pub use events::EVENTS_KEPT;
pub use writers::MAX_WRITERS;

use crate::command::{COMMAND_FORMAT, Command, Outcome, Proposal, Refusal, Response};
use crate::ids::Version;
use crate::view::{Overlay, ViewError};

/// A command either fails with a [`Refusal`] or, when the state cannot be read, with a [`ViewError`].
enum Stop {
    No(Refusal),
    Broken(ViewError),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Stop::No(refusal)
    }
}

impl From<ViewError> for Stop {
    fn from(error: ViewError) -> Self {
        Stop::Broken(error)
    }
}

type Verdict = Result<Response, Stop>;

/// When and at which place in the log a command is applied.
#[derive(Clone, Copy)]
struct At {
    version: Version,
    ms: i64,
}

/// Applies the command at log index `at` to `state`.
///
/// A refusal leaves `state` untouched. An error says that the state cannot be read; the caller
/// must not go on, since other nodes may have read it well.
pub fn apply(state: &mut Overlay<'_>, at: Version, proposal: &Proposal) -> Result<Outcome, ViewError> {
    // The command writes into an overlay of its own, which is thrown away when it is refused.
    let mut draft = Overlay::new(state);
    match decide(
        &mut draft,
        At {
            version: at,
            ms: proposal.at_ms,
        },
        proposal,
    ) {
        Ok(response) => {
            let writes = draft.into_writes();
            if !writes.is_empty() {
                state.absorb(writes)?;
            }
            Ok(Ok(response))
        }
        Err(Stop::No(refusal)) => Ok(Err(refusal)),
        Err(Stop::Broken(error)) => Err(error),
    }
}

fn decide(state: &mut Overlay<'_>, at: At, proposal: &Proposal) -> Verdict {
    if proposal.format != COMMAND_FORMAT {
        return Err(Refusal::UnknownFormat(proposal.format).into());
    }
    match &proposal.command {
        Command::FoundCluster(c) => cluster::found(state, c),
        Command::NodeUp(c) => cluster::node_up(state, at, c),
        Command::SetNodeState(c) => cluster::set_node_state(state, at, c),
        Command::AssignLeader(c) => cluster::assign_leader(state, at, c),
        Command::AssignStandby(c) => cluster::assign_standby(state, c),
        Command::CreateTable(c) => definitions::create_table(state, at, c),
        Command::DropTable(c) => definitions::drop_table(state, at, c),
        Command::CreatePipe(c) => definitions::create_pipe(state, at, c),
        Command::DropPipe(c) => definitions::drop_pipe(state, at, c),
        Command::SetPipeState(c) => control::set_pipe_state(state, at, c),
        Command::AddPartitions(c) => definitions::add_partitions(state, at, c),
        Command::CommitPart(c) => commit::commit_part(state, at, c),
        Command::ForgetTombstones(parts) => definitions::forget_tombstones(state, parts),
        Command::StopPartition(c) => control::stop_partition(state, at, c),
        Command::ResetOffsets(c) => control::reset_offsets(state, at, c),
        Command::Backfill(c) => control::backfill(state, at, c),
        Command::AlterPipe(c) => control::alter_pipe(state, at, c),
        Command::AlterTable(c) => control::alter_table(state, at, c),
        Command::ReplayRejects(c) => rejects::replay(state, at, c),
        Command::RecordEvent(c) => events::record(state, at, c),
        Command::AddNode(c) => membership::add_node(state, c),
        Command::SetNodeIntent(c) => membership::set_node_intent(state, at, c),
        Command::RemoveNode(c) => membership::remove_node(state, at, c),
        Command::SetReplication(c) => replicas::set_replication(state, at, *c),
        Command::AddReplica(c) => replicas::add(state, at, c),
        Command::CompleteReplica(c) => replicas::complete(state, at, c),
        Command::DropReplica(c) => replicas::drop_replica(state, c),
        Command::SetHoldings(c) => replicas::set_holdings(state, at, c),
        Command::OpenWriter(c) => writers::open(state, at, c),
        Command::CloseWriter(c) => writers::close(state, at, c),
        Command::PassGap(c) => writers::pass_gap(state, at, c),
    }
}
