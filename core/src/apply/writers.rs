//! Programs that write rows themselves: admitting them, and ending them with an exact account.

use super::cluster::check_term;
use super::events::note;
use super::{At, Stop, Verdict, control, definitions};
use crate::catalog::*;
use crate::command::{CloseWriter, OpenWriter, PassGap, Refusal, Response};
use crate::format::JsonFormat;
use crate::ids::{Offset, PipeId, WriterId};
use crate::ledger::ClosedLedger;
use crate::view::{CatalogRead, Overlay};

/// The most writers that a table has at a time: each is a partition in every shard.
pub const MAX_WRITERS: usize = 256;

pub(super) fn open(state: &mut Overlay<'_>, at: At, c: &OpenWriter) -> Verdict {
    let table = state.table_named(&c.table)?;
    let table = table.ok_or_else(|| Refusal::NoTable(c.table.clone()))?;
    let known = state.writers_of(table.id)?;
    if let Some(writer) = known.iter().find(|writer| writer.token == c.token) {
        return Ok(Response::Writer(writer.id));
    }
    if c.acks == Acks::Leader && table.settings.wal == WalMode::Off {
        return Err(Refusal::Definition(format!(
            "acks = leader is answered from the write-ahead log, and table '{}' has none: ALTER TABLE {} SET (wal = 'local')",
            table.name, table.name
        ))
        .into());
    }
    if known.len() >= MAX_WRITERS {
        return Err(Refusal::TooManyWriters {
            table: table.name,
            count: known.len(),
        }
        .into());
    }
    let mut pipe = match state.direct_pipe(table.id)? {
        Some(pipe) => pipe,
        None => direct_pipe(definitions::next_pipe(state)?, &table, at),
    };
    let number = match pipe.source {
        Source::Writers { next } => next,
        Source::Kafka(_) => 0,
    };
    pipe.source = Source::Writers {
        next: number.saturating_add(1),
    };
    let mut cluster = definitions::founded(state)?;
    let id = WriterId(cluster.next_writer.0.max(1));
    cluster.next_writer = id.next();
    let writer = Writer {
        id,
        table: table.id,
        pipe: pipe.id,
        number,
        acks: c.acks,
        token: c.token,
        opened_at_ms: at.ms,
    };
    for shard in 0..table.shards {
        let partition = writer.partition(&table, shard).ok_or_else(|| {
            Refusal::Definition(format!(
                "table '{}' has had {number} writers: there are no numbers left for another",
                table.name
            ))
        })?;
        definitions::begin_partition(state, at, &pipe, &table, partition, Offset(0), None)?;
    }
    state.put(&pipe.id, &pipe)?;
    state.put(&ClusterKey, &cluster)?;
    state.put(&id, &writer)?;
    Ok(Response::Writer(id))
}

fn direct_pipe(id: PipeId, table: &Table, at: At) -> Pipe {
    Pipe {
        id,
        name: format!("{DIRECT} {}", table.name),
        table: table.id,
        source: Source::Writers { next: 0 },
        topic: None,
        state: PipeState::Running,
        settings: PipeSettings {
            commit_to_group: false,
            ..PipeSettings::default()
        },
        backfills: None,
        format: JsonFormat::default(),
        created_at_ms: at.ms,
    }
}

pub(super) fn close(state: &mut Overlay<'_>, at: At, c: &CloseWriter) -> Verdict {
    let Some(writer) = state.get::<Writer>(&c.writer)? else {
        return Ok(Response::Unchanged);
    };
    let table = definitions::table_of(state, writer.table)?;
    let mut partitions = Vec::new();
    for shard in 0..table.shards {
        partitions.extend(partition_in(state, &table, &writer, shard)?);
    }
    if let Some(since) = c.if_idle_since_ms
        && partitions.iter().any(|p| p.committed_at_ms > since)
    {
        return Ok(Response::Unchanged);
    }
    for mut partition in partitions {
        let told = c.acknowledged.iter().find(|(shard, _)| *shard == partition.shard.index);
        if let Some((_, end)) = told {
            lose(state, at, &table, &writer, &mut partition, *end)?;
        }
        if partition.offset > partition.ledger.start {
            control::close_life(state, at, &partition, "the writer was closed")?;
        }
        state.delete::<SourcePartition>(&(partition.pipe, partition.partition));
    }
    state.delete::<Writer>(&writer.id);
    Ok(Response::Done)
}

/// The source partition of `writer` in a shard of `table`.
fn partition_in(
    state: &Overlay<'_>,
    table: &Table,
    writer: &Writer,
    shard: u32,
) -> Result<Option<SourcePartition>, Stop> {
    match writer.partition(table, shard) {
        Some(partition) => Ok(state.get(&(writer.pipe, partition))?),
        None => Ok(None),
    }
}

/// Passes over the rows of `writer` from the next one up to `end`, if there are any: nobody has them.
fn lose(
    state: &mut Overlay<'_>,
    at: At,
    table: &Table,
    writer: &Writer,
    partition: &mut SourcePartition,
    end: Offset,
) -> Result<(), Stop> {
    let lost = end.0.saturating_sub(partition.offset.0);
    if lost == 0 {
        return Ok(());
    }
    let text = format!(
        "{lost} rows of writer {} from {} on were acknowledged with acks = {} and not committed before the leader of shard {} \
         was lost",
        writer.id,
        partition.offset,
        writer.acks.name(),
        partition.shard
    );
    partition.ledger.lost += lost;
    partition.offset = end;
    note(state, at, "lost", &table.name, Some(partition.partition), text)
}

pub(super) fn pass_gap(state: &mut Overlay<'_>, at: At, c: &PassGap) -> Verdict {
    let writer = state.get::<Writer>(&c.writer)?.ok_or(Refusal::NoWriter(c.writer))?;
    let table = definitions::table_of(state, writer.table)?;
    let partition = partition_in(state, &table, &writer, c.shard)?;
    let mut partition = partition.ok_or(Refusal::NoWriter(c.writer))?;
    // Whoever leads by now may have what was missing, and more behind it.
    check_term(state, partition.shard, c.epoch)?;
    if partition.offset != c.from || c.to <= c.from {
        return Err(Refusal::Definition(format!(
            "the next row of writer {} in shard {} is number {}, not {}",
            writer.id, partition.shard, partition.offset, c.from
        ))
        .into());
    }
    lose(state, at, &table, &writer, &mut partition, c.to)?;
    // Another life: whoever still has something of this one, in memory or in a log, must not go on with it.
    control::begin_life(state, at, &mut partition, "rows were lost with a leader")?;
    state.put(&(writer.pipe, partition.partition), &partition)?;
    Ok(Response::Done)
}

/// Refuses to take the log away from a table whose writers rely on it.
pub(super) fn check_log_is_not_needed(state: &Overlay<'_>, table: &Table) -> Result<(), Stop> {
    let writers = state.writers_of(table.id)?;
    match writers.iter().filter(|writer| writer.acks == Acks::Leader).count() {
        0 => Ok(()),
        count => Err(Refusal::Definition(format!(
            "{count} writers of table '{}' have acks = leader, which needs its log; close them first",
            table.name
        ))
        .into()),
    }
}

/// Forgets the writers of a table that is dropped, and their pipe.
pub(super) fn forget(state: &mut Overlay<'_>, table: &Table) -> Result<(), Stop> {
    for writer in state.writers_of(table.id)? {
        state.delete::<Writer>(&writer.id);
    }
    let Some(pipe) = state.direct_pipe(table.id)? else {
        return Ok(());
    };
    for partition in state.partitions_of(pipe.id)? {
        state.delete::<SourcePartition>(&(pipe.id, partition.partition));
    }
    for closed in state.closed_ledgers_of(pipe.id)? {
        state.delete::<ClosedLedger>(&(pipe.id, closed.partition, closed.incarnation));
    }
    state.delete::<Pipe>(&pipe.id);
    Ok(())
}
