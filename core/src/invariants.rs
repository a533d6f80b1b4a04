//! The invariants, each with the name it has everywhere: in tests, in simulation, in production counters.
//!
//! [`check_state`] looks at one state, [`check_step`] at two that follow each other. A violation is a bug in
//! Tidemill, never a user's mistake.

use crate::catalog::*;
use crate::ids::*;
use crate::view::{CatalogRead, CatalogView, ViewError};
use std::collections::BTreeMap;

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its name, such as `OFF-2`.
    pub invariant: &'static str,
    /// What was found.
    pub found: String,
}

fn violation(invariant: &'static str, found: String) -> Violation {
    Violation { invariant, found }
}

/// What must hold in every state of the catalog.
pub fn check_state<V: CatalogView + ?Sized>(view: &V) -> Result<Vec<Violation>, ViewError> {
    let mut found = Vec::new();
    let parts = view.list::<Part>(&[])?;
    let rejects = view.list::<RejectPart>(&[])?;
    for partition in view.list::<SourcePartition>(&[])? {
        let name = format!("pipe {} partition {}", partition.pipe, partition.partition);
        if view.get::<Pipe>(&partition.pipe)?.is_none() {
            found.push(violation("OFF-2", format!("{name} has no pipe")));
        }
        if view.get::<Shard>(&partition.shard)?.is_none() {
            found.push(violation(
                "OWN-1",
                format!("{name} belongs to shard {}, which is not there", partition.shard),
            ));
        }
        let passed = partition.offset.0.checked_sub(partition.start.0);
        if passed.is_none_or(|passed| partition.stored + partition.rejected > passed) {
            found.push(violation(
                "LED-1",
                format!("{name}: more records than offsets: {partition:?}"),
            ));
        }
    }
    for shard in view.list::<Shard>(&[])? {
        if view.get::<Table>(&shard.id.table)?.is_none() {
            found.push(violation("OWN-1", format!("shard {} has no table", shard.id)));
        }
        if let Some(leader) = shard.leader {
            let node = view.get::<Node>(&leader)?;
            if node.is_none_or(|node| node.state == NodeState::Down || node.state == NodeState::Joining) {
                found.push(violation(
                    "OWN-1",
                    format!("shard {} is led by node {leader}, which cannot lead", shard.id),
                ));
            }
        }
    }
    let mut ids = BTreeMap::new();
    for (id, what) in parts
        .iter()
        .map(|p| (p.file.id, "part"))
        .chain(rejects.iter().map(|p| (p.file.id, "reject part")))
    {
        if let Some(other) = ids.insert(id, what) {
            found.push(violation("CAT-1", format!("{what} {id} is also a {other}")));
        }
        if view.get::<Tombstone>(&id)?.is_some() {
            found.push(violation("CAT-1", format!("{what} {id} is live and buried")));
        }
    }
    Ok(found)
}

/// What must hold between a state and the next.
pub fn check_step<A, B>(before: &A, after: &B) -> Result<Vec<Violation>, ViewError>
where
    A: CatalogView + ?Sized,
    B: CatalogView + ?Sized,
{
    let mut found = Vec::new();
    for old in before.list::<Shard>(&[])? {
        let Some(new) = after.get::<Shard>(&old.id)? else {
            continue;
        };
        if new.epoch < old.epoch || (new.leader != old.leader && new.epoch == old.epoch) {
            found.push(violation("OWN-1", format!("shard {}: {old:?} became {new:?}", old.id)));
        }
    }
    for old in before.list::<SourcePartition>(&[])? {
        let Some(new) = after.get::<SourcePartition>(&(old.pipe, old.partition))? else {
            continue;
        };
        if new.incarnation < old.incarnation || (new.incarnation == old.incarnation && new.offset < old.offset) {
            found.push(violation("OFF-2", format!("{old:?} went back to {new:?}")));
        }
        if new.shard != old.shard && new.incarnation == old.incarnation {
            found.push(violation("OWN-1", format!("{old:?} changed its shard within a life")));
        }
    }
    // Rows and counts move together: the rows of a table grow by what its partitions count (LED-1, QRY-1).
    for table in after.list::<Table>(&[])? {
        let pipes_before: Vec<PipeId> = before.pipes_into(table.id)?.iter().map(|p| p.id).collect();
        let pipes_after: Vec<PipeId> = after.pipes_into(table.id)?.iter().map(|p| p.id).collect();
        if pipes_before != pipes_after {
            continue;
        }
        let rows = |parts: Vec<Part>| parts.iter().map(|p| p.file.rows).sum::<u64>();
        let grown = rows(after.parts_of(table.id)?) - rows(before.parts_of(table.id)?);
        let mut counted = 0;
        for pipe in pipes_after {
            let stored = |ps: Vec<SourcePartition>| ps.iter().map(|p| p.stored).sum::<u64>();
            counted += stored(after.partitions_of(pipe)?) - stored(before.partitions_of(pipe)?);
        }
        if grown != counted {
            found.push(violation(
                "LED-1",
                format!("table '{}' grew by {grown} rows, counted {counted}", table.name),
            ));
        }
    }
    Ok(found)
}
