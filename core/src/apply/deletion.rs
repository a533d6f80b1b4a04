//! Deleting the rows that a reset reads once more.
//!
//! The files stay: what became visible up to now is left out of what is read, what is committed later is not. Rows
//! know their topic by name and not their pipe. So all that have that name must come from what the pipe reads again, or
//! rows would go that nobody brings back.

use super::{At, Stop, definitions};
use crate::catalog::*;
use crate::command::Refusal;
use crate::ids::*;
use crate::view::{CatalogRead, Overlay};
use std::collections::BTreeMap;

/// The most deletions that a table keeps, counted by partition.
const MAX_DELETED: usize = 65_536;

/// Deletes the rows of these partitions, each from an offset on, in the same step in which the pipe goes back there.
pub(super) fn delete_rows(
    state: &mut Overlay<'_>,
    at: At,
    pipe: &Pipe,
    from: BTreeMap<PartitionId, Offset>,
) -> Result<(), Stop> {
    let mut table = definitions::table_of(state, pipe.table)?;
    check_sources(state, pipe, &table, &from)?;
    let topic = pipe.source.topic();
    // An earlier deletion says nothing any more where it is part of this one.
    for earlier in table.deleted.iter_mut().filter(|earlier| earlier.topic == topic) {
        earlier
            .from
            .retain(|partition, old| from.get(partition).is_none_or(|new| new > old));
    }
    table.deleted.retain(|earlier| !earlier.from.is_empty());
    let lines: usize = table.deleted.iter().map(|earlier| earlier.from.len()).sum();
    if lines + from.len() > MAX_DELETED {
        let why = format!("the table has {lines} deletions, and keeps no more than {MAX_DELETED}");
        return Err(no(pipe, &why));
    }
    table.deleted.push(DeletedRows {
        topic: topic.to_owned(),
        from,
        version: at.version,
        at_ms: at.ms,
    });
    state.put(&table.id, &table)?;
    Ok(())
}

/// Whether all rows that would go are read again by `pipe`.
fn check_sources(
    state: &Overlay<'_>,
    pipe: &Pipe,
    table: &Table,
    from: &BTreeMap<PartitionId, Offset>,
) -> Result<(), Stop> {
    for partition in from.keys() {
        let own = state.get::<SourcePartition>(&(pipe.id, *partition))?;
        if let Some(until) = own.and_then(|own| own.until) {
            return Err(no(
                pipe,
                &format!("it reads partition {partition} up to offset {until} only, and rows behind that would go too"),
            ));
        }
    }
    for other in state.pipes_into(pipe.table)? {
        if other.id == pipe.id || other.source.topic() != pipe.source.topic() {
            continue;
        }
        let other_name = &other.name;
        if other.backfills != Some(pipe.id) {
            return Err(no(
                pipe,
                &format!(
                    "pipe '{other_name}' fills the same table from a topic of the same name, and rows do not say which pipe \
                     they come from"
                ),
            ));
        }
        for partition in from.keys() {
            let read = state.get::<SourcePartition>(&(other.id, *partition))?;
            if read.is_some_and(|p| !p.is_complete()) {
                return Err(no(
                    pipe,
                    &format!(
                        "pipe '{other_name}' reads offsets of partition {partition} that were skipped; wait until it has \
                         caught up, or drop it"
                    ),
                ));
            }
        }
    }
    let elsewhere = |former: &&FormerSource| {
        former.topic == pipe.source.topic()
            && match (former.id, pipe.topic) {
                (Some(then), Some(now)) => then != now,
                _ => former.brokers != pipe.source.brokers(),
            }
    };
    match table.former.iter().find(elsewhere) {
        Some(former) => Err(no(
            pipe,
            &format!(
                "there are rows from another topic of the same name, which pipe '{}' read until it was dropped, and nobody \
                 would read them again",
                former.pipe
            ),
        )),
        None => Ok(()),
    }
}

/// What was skipped from `from` on is read now, and must not be read a second time.
pub(super) fn forget_skips(
    state: &mut Overlay<'_>,
    pipe: PipeId,
    partition: PartitionId,
    from: Offset,
) -> Result<(), Stop> {
    let behind = |skip: &Skip| skip.partition == partition && skip.end > from;
    for mut skip in state.skips_of(pipe)?.into_iter().filter(behind) {
        let place = (pipe, partition, skip.start);
        if skip.start >= from {
            state.delete::<Skip>(&place);
        } else {
            skip.end = from;
            state.put(&place, &skip)?;
        }
    }
    Ok(())
}

fn no(pipe: &Pipe, why: &str) -> Stop {
    Refusal::Definition(format!("rows of pipe '{}' cannot be deleted: {why}", pipe.name)).into()
}
