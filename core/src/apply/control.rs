//! What operators and tasks do to a pipe that exists: pause, stop, reset, backfill, change.
//!
//! Whatever makes work begun before it worthless raises the incarnation of the partitions concerned, in the
//! same step: a commit that was under way is refused then, whoever holds it. A life that ends leaves its
//! ledger behind. Partitions that a command does not name are not touched.

use super::cluster::check_term;
use super::deletion::{delete_rows, forget_skips};
use super::events::note;
use super::{At, Stop, Verdict, definitions, writers};
use crate::catalog::*;
use crate::command::{
    AlterPipe, AlterTable, Backfill, OldRows, PipeOptions, Refusal, ResetOffsets, ResetTarget, Response, SetPipeState,
    StopPartition,
};
use crate::ids::*;
use crate::ledger::{ClosedLedger, Ledger};
use crate::stop::StopReason;
use crate::view::{CatalogRead, Overlay};
use std::collections::BTreeMap;

pub(super) fn set_pipe_state(state: &mut Overlay<'_>, at: At, c: &SetPipeState) -> Verdict {
    let mut pipe = still(state, &c.name, c.pipe)?;
    let is_from = c.from.is_none_or(|from| from == pipe.state);
    // Pausing is the way to paused, never back.
    if !is_from || pipe.state == c.state || (pipe.state == PipeState::Paused && c.state == PipeState::Pausing) {
        return Ok(Response::Unchanged);
    }
    // Whatever was read before this point in the log and is not committed yet never will be: it is read
    // again after the resume. A pause that waited for its last commits finds nothing left to drop.
    if c.state == PipeState::Paused || pipe.state == PipeState::Paused {
        for mut partition in state.partitions_of(pipe.id)? {
            // Of what has expired nothing is read again: what a log still has of it would be given up.
            if partition.has_expired() {
                continue;
            }
            begin_life(state, at, &mut partition, c.state.name())?;
            state.put(&(pipe.id, partition.partition), &partition)?;
        }
    }
    pipe.state = c.state;
    state.put(&pipe.id, &pipe)?;
    note(
        state,
        at,
        "pipe",
        &pipe.name,
        None,
        format!("the pipe is {}", c.state.name()),
    )?;
    Ok(Response::Done)
}

pub(super) fn stop_partition(state: &mut Overlay<'_>, at: At, c: &StopPartition) -> Verdict {
    let place = (c.key.pipe, c.key.partition);
    let pipe = definitions::pipe_of(state, c.key.pipe)?;
    let partition = state.get::<SourcePartition>(&place)?;
    let Some(mut partition) = partition.filter(|p| p.incarnation == c.key.incarnation) else {
        return Err(changed(&pipe, c.key.partition));
    };
    // A leader that was deposed measures by what it had read itself, and the next may have committed beyond that.
    check_term(state, partition.shard, c.epoch)?;
    if partition.stop.is_some() {
        return Ok(Response::Unchanged);
    }
    // Of a source that has only deleted its oldest records, what was read stays good, wherever it is: a write-ahead log may have
    // more of it than the leader that stops here, and the repair ends the life.
    if c.reason.drops_what_was_read() {
        begin_life(state, at, &mut partition, c.reason.name())?;
    }
    let text = c.reason.explain(&pipe.name, partition.partition, partition.offset);
    partition.stop = Some(crate::stop::Stop {
        reason: c.reason.clone(),
        at_ms: at.ms,
    });
    state.put(&place, &partition)?;
    note(state, at, c.reason.name(), &pipe.name, Some(partition.partition), text)?;
    Ok(Response::Done)
}

pub(super) fn reset_offsets(state: &mut Overlay<'_>, at: At, c: &ResetOffsets) -> Verdict {
    let mut pipe = still(state, &c.name, c.pipe)?;
    if c.targets.is_empty() {
        return Ok(Response::Unchanged);
    }
    let mut deleted = BTreeMap::new();
    for (i, target) in c.targets.iter().enumerate() {
        let place = (pipe.id, target.partition);
        let known = state.get::<SourcePartition>(&place)?;
        let named_twice = c.targets[..i].iter().any(|t| t.partition == target.partition);
        let Some(partition) = known.filter(|p| p.incarnation == target.incarnation && !named_twice) else {
            return Err(changed(&pipe, target.partition));
        };
        reset_one(state, at, &pipe, partition, target, &c.because)?;
        if let (Some(to), Some(OldRows::Delete)) = (target.to, target.old_rows) {
            deleted.insert(target.partition, to);
        }
    }
    if !deleted.is_empty() {
        delete_rows(state, at, &pipe, deleted)?;
    }
    // The pipe follows the topic of what it reads now.
    if let Some(topic) = c.targets.iter().find_map(|t| t.topic) {
        pipe.topic = Some(topic);
        state.put(&pipe.id, &pipe)?;
    }
    Ok(Response::Done)
}

fn reset_one(
    state: &mut Overlay<'_>,
    at: At,
    pipe: &Pipe,
    mut partition: SourcePartition,
    target: &ResetTarget,
    because: &str,
) -> Result<(), Stop> {
    let place = (pipe.id, partition.partition);
    let from = partition.offset;
    let same_topic = target.topic.is_none() || partition.topic.is_none() || target.topic == partition.topic;
    let stop = partition.stop.take().map(|stop| stop.reason);
    // What is known to have been in the source, was not read, and will not be.
    let unread_until = match (&stop, target.to) {
        (Some(StopReason::TopicRecreated { known_end, .. }), _) if !same_topic => *known_end,
        (_, Some(to)) if same_topic => Some(to),
        _ => None,
    };
    let lost = unread_until.map_or(0, |end| end.0.saturating_sub(from.0));
    match (target.to, target.old_rows) {
        // Of another topic, what was skipped is something else, and no backfill reads it.
        (Some(to), Some(OldRows::Delete)) if same_topic => forget_skips(state, pipe.id, partition.partition, to)?,
        (Some(to), None) if same_topic && to < from => {
            return Err(Refusal::Definition(format!(
                "partition {} of pipe '{}' would go back from offset {from} to {to} and read {} offsets once more: say DELETE \
                 ROWS if the new rows shall replace those that are there, KEEP ROWS if they shall stand beside them",
                partition.partition,
                pipe.name,
                from.0 - to.0
            ))
            .into());
        }
        _ => {}
    }
    partition.ledger.lost += lost;
    partition.offset = Offset(from.0 + lost);
    match target.to {
        Some(_) => begin_life(state, at, &mut partition, because)?,
        // Always kept: should the topic get this partition again, its next life must not be one that was lived.
        None => close_life(state, at, &partition, because)?,
    }
    let expired = matches!(stop, Some(StopReason::Expired { .. }));
    if lost > 0 && same_topic && !expired {
        let skip = Skip {
            pipe: pipe.id,
            partition: partition.partition,
            start: from,
            end: Offset(from.0 + lost),
            topic: partition.topic,
            backfill: None,
            at_ms: at.ms,
        };
        state.put(&(pipe.id, partition.partition, from), &skip)?;
    }
    let deleted = match target.old_rows {
        Some(OldRows::Delete) => "; rows that were there from that offset on are deleted",
        _ => "",
    };
    let text = match target.to {
        Some(to) => format!("goes on at offset {to} instead of {from}: {because}; {lost} offsets are lost{deleted}"),
        None => format!("is forgotten at offset {from}: {because}; {lost} offsets are lost"),
    };
    note(state, at, "reset", &pipe.name, Some(partition.partition), text)?;
    match target.to {
        Some(to) => {
            partition.offset = to;
            partition.ledger = Ledger::opened(to);
            partition.topic = target.topic.or(partition.topic);
            // The epoch belongs to the record before the offset, which is another one now.
            partition.source_epoch = target.source_epoch;
            state.put(&place, &partition)?;
        }
        None => state.delete::<SourcePartition>(&place),
    }
    Ok(())
}

/// The pipe that reads what `c.name` skipped: it has the same source and table, and an end.
pub(super) fn backfill(state: &mut Overlay<'_>, at: At, c: &Backfill) -> Verdict {
    let parent = still(state, &c.name, c.pipe)?;
    let wanted = |skip: &Skip| c.partitions.is_empty() || c.partitions.contains(&skip.partition);
    // Offsets of a topic that was created again since are other records now, and the pipe itself reads those.
    let is_there = |skip: &Skip| skip.topic.is_none() || parent.topic.is_none() || skip.topic == parent.topic;
    let mut open = state.skips_of(parent.id)?;
    open.retain(|skip| skip.backfill.is_none() && wanted(skip) && is_there(skip));
    // One span of each partition: a partition of a pipe has one history. Others take another statement.
    open.dedup_by_key(|skip| skip.partition);
    if open.is_empty() {
        return Ok(Response::Unchanged);
    }
    let table = definitions::table_of(state, parent.table)?;
    let id = definitions::next_pipe(state)?;
    let pipe = Pipe {
        id,
        name: format!("{}_backfill_{id}", parent.name),
        state: PipeState::Running,
        backfills: Some(parent.id),
        created_at_ms: at.ms,
        ..parent.clone()
    };
    if state.pipe_named(&pipe.name)?.is_some() {
        return Err(Refusal::NameTaken {
            what: "pipe".into(),
            name: pipe.name,
        }
        .into());
    }
    definitions::put_new_pipe(state, &pipe)?;
    for mut skip in open {
        definitions::begin_partition(state, at, &pipe, &table, skip.partition, skip.start, Some(skip.end))?;
        let text = format!(
            "offsets {} to {} are read by pipe '{}'",
            skip.start, skip.end, pipe.name
        );
        note(state, at, "backfill", &parent.name, Some(skip.partition), text)?;
        // From here on nobody else can begin to read this span.
        skip.backfill = Some(id);
        state.put(&(parent.id, skip.partition, skip.start), &skip)?;
    }
    Ok(Response::Pipe(id))
}

pub(super) fn alter_pipe(state: &mut Overlay<'_>, at: At, c: &AlterPipe) -> Verdict {
    let mut pipe = still(state, &c.name, c.pipe)?;
    let before = pipe.clone();
    if c.from.is_some() && c.from != PipeOptions::of(&pipe) {
        return Err(Refusal::Outdated(format!("settings of pipe '{}' were changed", pipe.name)).into());
    }
    check_settings(&c.settings)?;
    let table = definitions::table_of(state, pipe.table)?;
    c.format.check(&table).map_err(Refusal::Definition)?;
    if c.source.topic != pipe.source.topic() {
        return Err(Refusal::Definition(format!(
            "pipe '{}' reads topic '{}'; for another topic create another pipe",
            pipe.name,
            pipe.source.topic()
        ))
        .into());
    }
    pipe.settings = c.settings.clone();
    pipe.format = c.format.clone();
    pipe.source = Source::Kafka(c.source.clone());
    if pipe == before {
        return Ok(Response::Unchanged);
    }
    state.put(&pipe.id, &pipe)?;
    note(
        state,
        at,
        "alter",
        &pipe.name,
        None,
        "settings of the pipe were changed".into(),
    )?;
    Ok(Response::Done)
}

pub(super) fn alter_table(state: &mut Overlay<'_>, at: At, c: &AlterTable) -> Verdict {
    let mut table = state
        .table_named(&c.name)?
        .ok_or_else(|| Refusal::NoTable(c.name.clone()))?;
    definitions::check_same("table", &c.name, table.id, c.table)?;
    if c.from.as_ref().is_some_and(|from| *from != table.settings) {
        return Err(Refusal::Outdated(format!("settings of table '{}' were changed", table.name)).into());
    }
    definitions::check_settings(state, &c.settings)?;
    if table.settings == c.settings {
        return Ok(Response::Unchanged);
    }
    if table.settings.warehouse != c.settings.warehouse {
        definitions::check_warehouse(state, c.settings.warehouse.as_deref())?;
    }
    table.settings = c.settings.clone();
    if table.settings.wal == WalMode::Off {
        writers::check_log_is_not_needed(state, &table)?;
    }
    state.put(&table.id, &table)?;
    note(
        state,
        at,
        "alter",
        &table.name,
        None,
        "settings of the table were changed".into(),
    )?;
    Ok(Response::Done)
}

pub(super) fn check_settings(settings: &PipeSettings) -> Result<(), Refusal> {
    match settings.max_rejected_permille {
        Some(ratio) if ratio > 1000 => Err(Refusal::Definition(
            "max_rejected_ratio is a share: a number from 0 to 1".into(),
        )),
        _ => Ok(()),
    }
}

/// Ends the present life of a partition at its offset, keeps its ledger if it passed anything, and begins the next.
pub(super) fn begin_life(
    state: &mut Overlay<'_>,
    at: At,
    partition: &mut SourcePartition,
    ended_by: &str,
) -> Result<(), Stop> {
    if partition.offset > partition.ledger.start {
        close_life(state, at, partition, ended_by)?;
    }
    partition.incarnation = partition.incarnation.next();
    partition.ledger = Ledger::opened(partition.offset);
    Ok(())
}

pub(super) fn close_life(
    state: &mut Overlay<'_>,
    at: At,
    partition: &SourcePartition,
    ended_by: &str,
) -> Result<(), Stop> {
    let closed = ClosedLedger {
        pipe: partition.pipe,
        partition: partition.partition,
        incarnation: partition.incarnation,
        ledger: partition.ledger,
        end: partition.offset,
        ended_by: ended_by.to_owned(),
        ended_at_ms: at.ms,
    };
    state.put(&(closed.pipe, closed.partition, closed.incarnation), &closed)?;
    Ok(())
}

/// The pipe called `name`, if it is the one that a command was worked out for.
fn still(state: &Overlay<'_>, name: &str, id: Option<PipeId>) -> Result<Pipe, Stop> {
    let pipe = named(state, name)?;
    definitions::check_same("pipe", name, pipe.id, id)?;
    Ok(pipe)
}

fn named(state: &Overlay<'_>, name: &str) -> Result<Pipe, Stop> {
    Ok(state
        .pipe_named(name)?
        .ok_or_else(|| Refusal::NoPipe(name.to_owned()))?)
}

fn changed(pipe: &Pipe, partition: PartitionId) -> Stop {
    Refusal::PartitionChanged {
        pipe: pipe.name.clone(),
        partition,
    }
    .into()
}
