//! Tables and pipes: creating, dropping, pausing, growing.

use super::{At, Stop, Verdict};
use crate::catalog::*;
use crate::command::{AddPartitions, ByName, CreatePipe, CreateTable, Refusal, Response};
use crate::ids::*;
use crate::ledger::{ClosedLedger, Ledger};
use crate::schema::{ColumnType, METADATA_COLUMNS, PartitionBy};
use crate::view::{CatalogRead, Key, Overlay};
use std::collections::BTreeSet;

/// The most shards that a table may have.
const MAX_SHARDS: u32 = 1024;

pub(super) fn create_table(state: &mut Overlay<'_>, at: At, c: &CreateTable) -> Verdict {
    let mut cluster = founded(state)?;
    if let Some(table) = state.table_named(&c.name)? {
        return match c.if_not_exists {
            true => Ok(Response::Table(table.id)),
            false => Err(Refusal::NameTaken {
                what: "table".into(),
                name: c.name.clone(),
            }
            .into()),
        };
    }
    check_name("table", &c.name)?;
    check_columns(c)?;
    check_settings(state, &c.settings)?;
    check_warehouse(state, c.settings.warehouse.as_deref())?;
    let id = cluster.next_table;
    check_next("table", id, c.id)?;
    cluster.next_table = id.next();
    state.put(&ClusterKey, &cluster)?;
    state.put(&Name(c.name.clone()), &TableName(id))?;
    let table = Table {
        id,
        name: c.name.clone(),
        columns: c.columns.clone(),
        schema_version: SchemaVersion(1),
        min_schema: SchemaVersion(1),
        order_by: c.order_by.clone(),
        partition_by: c.partition_by.clone(),
        shards: c.shards,
        settings: c.settings.clone(),
        deleted: Vec::new(),
        former: Vec::new(),
        created_at_ms: at.ms,
    };
    state.put(&id, &table)?;
    for index in 0..c.shards {
        let shard = Shard {
            id: ShardId { table: id, index },
            epoch: Epoch(0),
            leader: None,
            last_leader: None,
            assigned: None,
            last_commit: None,
            replicas: Vec::new(),
            standby: None,
        };
        state.put(&shard.id, &shard)?;
    }
    Ok(Response::Table(id))
}

pub(super) fn drop_table(state: &mut Overlay<'_>, at: At, c: &ByName<TableId>) -> Verdict {
    let Some(table) = state.table_named(&c.name)? else {
        return match c.if_exists {
            true => Ok(Response::Unchanged),
            false => Err(Refusal::NoTable(c.name.clone()).into()),
        };
    };
    check_same("table", &c.name, table.id, c.id)?;
    let mut pipes = state.pipes_into(table.id)?;
    pipes.retain(|pipe| pipe.source.kafka().is_some());
    if !pipes.is_empty() {
        let names = pipes
            .iter()
            .map(|p| format!("pipe '{}'", p.name))
            .collect::<Vec<_>>()
            .join(", ");
        return Err(Refusal::TableInUse {
            table: table.name,
            pipes: names,
        }
        .into());
    }
    super::writers::forget(state, &table)?;
    for part in state.parts_of(table.id)? {
        state.delete::<Part>(&(part.shard, part.file.id));
        bury(state, at, part.shard, part.file)?;
    }
    for shard in state.shards_of(table.id)? {
        state.delete::<Shard>(&shard.id);
    }
    state.delete::<TableName>(&Name(table.name));
    state.delete::<Table>(&table.id);
    Ok(Response::Done)
}

pub(super) fn create_pipe(state: &mut Overlay<'_>, at: At, c: &CreatePipe) -> Verdict {
    founded(state)?;
    if let Some(pipe) = state.pipe_named(&c.name)? {
        return match c.if_not_exists {
            true => Ok(Response::Pipe(pipe.id)),
            false => Err(Refusal::NameTaken {
                what: "pipe".into(),
                name: c.name.clone(),
            }
            .into()),
        };
    }
    check_name("pipe", &c.name)?;
    super::control::check_settings(&c.settings)?;
    let table = state
        .table_named(&c.table)?
        .ok_or_else(|| Refusal::NoTable(c.table.clone()))?;
    check_same("table", &c.table, table.id, c.table_id)?;
    c.format.check(&table).map_err(Refusal::Definition)?;
    let id = next_pipe(state)?;
    check_next("pipe", id, c.id)?;
    let pipe = Pipe {
        id,
        name: c.name.clone(),
        table: table.id,
        source: Source::Kafka(c.source.clone()),
        topic: c.topic,
        state: PipeState::Running,
        settings: c.settings.clone(),
        backfills: None,
        format: c.format.clone(),
        created_at_ms: at.ms,
    };
    put_new_pipe(state, &pipe)?;
    for (partition, start) in &c.partitions {
        begin_partition(state, at, &pipe, &table, *partition, *start, None)?;
    }
    Ok(Response::Pipe(id))
}

pub(super) fn drop_pipe(state: &mut Overlay<'_>, at: At, c: &ByName<PipeId>) -> Verdict {
    let Some(pipe) = state.pipe_named(&c.name)? else {
        return match c.if_exists {
            true => Ok(Response::Unchanged),
            false => Err(Refusal::NoPipe(c.name.clone()).into()),
        };
    };
    check_same("pipe", &c.name, pipe.id, c.id)?;
    for partition in state.partitions_of(pipe.id)? {
        state.delete::<SourcePartition>(&(pipe.id, partition.partition));
    }
    for closed in state.closed_ledgers_of(pipe.id)? {
        state.delete::<ClosedLedger>(&(pipe.id, closed.partition, closed.incarnation));
    }
    for skip in state.skips_of(pipe.id)? {
        state.delete::<Skip>(&(pipe.id, skip.partition, skip.start));
    }
    for part in state.list::<RejectPart>(&pipe.id.bytes())? {
        state.delete::<RejectPart>(&(pipe.id, part.file.id));
        bury(state, at, part.shard, part.file)?;
    }
    state.delete::<PipeName>(&Name(pipe.name.clone()));
    state.delete::<Pipe>(&pipe.id);
    let mut table = table_of(state, pipe.table)?;
    let former = FormerSource {
        pipe: pipe.name,
        topic: pipe.source.topic().to_owned(),
        id: pipe.topic,
        brokers: pipe.source.brokers().to_owned(),
    };
    let same = |f: &FormerSource| (&f.topic, f.id, &f.brokers) == (&former.topic, former.id, &former.brokers);
    if !table.former.iter().any(same) {
        table.former.push(former);
        state.put(&table.id, &table)?;
    }
    Ok(Response::Done)
}

pub(super) fn add_partitions(state: &mut Overlay<'_>, at: At, c: &AddPartitions) -> Verdict {
    let pipe = pipe_of(state, c.pipe)?;
    let table = table_of(state, pipe.table)?;
    let mut added = false;
    for (partition, start) in &c.partitions {
        if state.get::<SourcePartition>(&(pipe.id, *partition))?.is_none() {
            begin_partition(state, at, &pipe, &table, *partition, *start, None)?;
            added = true;
        }
    }
    Ok(if added { Response::Done } else { Response::Unchanged })
}

pub(super) fn forget_tombstones(state: &mut Overlay<'_>, parts: &[PartId]) -> Verdict {
    for part in parts {
        state.delete::<Tombstone>(part);
    }
    Ok(Response::Done)
}

pub(super) fn begin_partition(
    state: &mut Overlay<'_>,
    at: At,
    pipe: &Pipe,
    table: &Table,
    partition: PartitionId,
    start: Offset,
    until: Option<Offset>,
) -> Result<(), Stop> {
    let lived: Vec<ClosedLedger> = state.list(&(pipe.id, partition).bytes())?;
    let record = SourcePartition {
        pipe: pipe.id,
        partition,
        shard: ShardId {
            table: table.id,
            index: partition.0 % table.shards,
        },
        incarnation: lived.last().map_or(Incarnation(0), |closed| closed.incarnation).next(),
        offset: start,
        until,
        topic: pipe.topic,
        source_epoch: None,
        ledger: Ledger::opened(start),
        stop: None,
        committed_at_ms: at.ms,
    };
    state.put(&(pipe.id, partition), &record)?;
    Ok(())
}

/// Makes the file of a part that is dropped wait for the collector.
pub(super) fn bury(state: &mut Overlay<'_>, at: At, shard: ShardId, file: PartFile) -> Result<(), Stop> {
    state.delete::<Copies>(&(shard, file.id));
    let tombstone = Tombstone {
        part: file.id,
        path: file.path,
        version: at.version,
    };
    state.put(&tombstone.part, &tombstone)?;
    Ok(())
}

/// The id for a pipe that is created; no other is given it again.
pub(super) fn next_pipe(state: &mut Overlay<'_>) -> Result<PipeId, Stop> {
    let mut cluster = founded(state)?;
    let id = cluster.next_pipe;
    cluster.next_pipe = id.next();
    state.put(&ClusterKey, &cluster)?;
    Ok(id)
}

/// Writes a pipe whose name is not taken.
pub(super) fn put_new_pipe(state: &mut Overlay<'_>, pipe: &Pipe) -> Result<(), Stop> {
    state.put(&Name(pipe.name.clone()), &PipeName(pipe.id))?;
    state.put(&pipe.id, pipe)?;
    Ok(())
}

/// Refuses a command that was worked out for `meant` if another has its name now. It may be decided long after that: lives of partitions
/// are counted anew in a pipe that took the name meanwhile, so they do not tell the two apart.
pub(super) fn check_same<Id: PartialEq>(what: &str, name: &str, present: Id, meant: Option<Id>) -> Result<(), Refusal> {
    match meant.is_none_or(|meant| meant == present) {
        true => Ok(()),
        false => Err(Refusal::CreatedAgain {
            what: what.into(),
            name: name.into(),
        }),
    }
}

/// Refuses to create what was to get an id that has been given away since.
fn check_next<Id: PartialEq>(what: &str, next: Id, wanted: Option<Id>) -> Result<(), Refusal> {
    match wanted.is_none_or(|wanted| wanted == next) {
        true => Ok(()),
        false => Err(Refusal::Outdated(format!("another {what} was created"))),
    }
}

pub(super) fn pipe_of(state: &Overlay<'_>, id: PipeId) -> Result<Pipe, Stop> {
    Ok(state.get(&id)?.ok_or_else(|| Refusal::NoPipe(id.to_string()))?)
}

pub(super) fn table_of(state: &Overlay<'_>, id: TableId) -> Result<Table, Stop> {
    Ok(state.get(&id)?.ok_or_else(|| Refusal::NoTable(id.to_string()))?)
}

pub(super) fn founded(state: &Overlay<'_>) -> Result<Cluster, Stop> {
    let cluster = state.get::<Cluster>(&ClusterKey)?;
    Ok(cluster.ok_or_else(|| Refusal::Founding("the cluster is not founded yet".into()))?)
}

fn check_name(what: &str, name: &str) -> Result<(), Refusal> {
    let mut chars = name.chars();
    let first = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if first && chars.all(|c| c.is_ascii_alphanumeric() || c == '_') && name.len() <= 128 {
        return Ok(());
    }
    Err(Refusal::Definition(format!(
        "'{name}' cannot name a {what}: letters, digits and underscores, not a digit first, at most 128"
    )))
}

fn check_columns(c: &CreateTable) -> Result<(), Refusal> {
    let no = |reason: String| Err(Refusal::Definition(reason));
    if c.columns.is_empty() {
        return no("a table needs at least one column".into());
    }
    for (i, column) in c.columns.iter().enumerate() {
        if METADATA_COLUMNS.contains(&column.name.as_str()) {
            return no(format!(
                "column '{}' is one that every table has by itself",
                column.name
            ));
        }
        if c.columns[..i].iter().any(|other| other.name == column.name) {
            return no(format!("column '{}' is declared twice", column.name));
        }
        if let Some(fault) = column.data_type.fault() {
            return no(format!("column '{}': {fault}", column.name));
        }
        if let Some(default) = &column.default
            && let Err(fault) = default.check(&column.data_type)
        {
            return no(format!("column '{}': {fault}", column.name));
        }
    }
    let type_of = |name: &str| {
        let declared = c
            .columns
            .iter()
            .find(|column| column.name == name)
            .map(|column| &column.data_type);
        declared.or(match name {
            crate::schema::TIMESTAMP => Some(&ColumnType::Timestamp),
            crate::schema::OFFSET => Some(&ColumnType::Int64),
            crate::schema::PARTITION => Some(&ColumnType::Int32),
            crate::schema::TOPIC | crate::schema::KEY => Some(&ColumnType::Text),
            _ => None,
        })
    };
    for name in &c.order_by {
        match type_of(name) {
            None => return no(format!("ORDER BY names '{name}', which is not a column of the table")),
            Some(nested) if nested.is_nested() => {
                return no(format!("ORDER BY '{name}': values of {nested} have no order"));
            }
            Some(_) => {}
        }
    }
    if let Some(partition_by) = &c.partition_by {
        let column = partition_by.column();
        match (partition_by, type_of(column)) {
            (_, None) => {
                return no(format!(
                    "PARTITION BY names '{column}', which is not a column of the table"
                ));
            }
            (PartitionBy::Column(_), Some(ColumnType::Float32 | ColumnType::Float64)) => {
                return no(format!(
                    "PARTITION BY '{column}': a floating-point column has no exact values to split by"
                ));
            }
            (PartitionBy::Column(_), Some(nested)) if nested.is_nested() => {
                return no(format!(
                    "PARTITION BY '{column}': rows cannot be split by values of {nested}"
                ));
            }
            (PartitionBy::Truncated { .. }, Some(ColumnType::Date | ColumnType::Timestamp)) => {}
            (PartitionBy::Truncated { .. }, Some(other)) => {
                return no(format!(
                    "PARTITION BY date_trunc takes a DATE or TIMESTAMP, '{column}' is {other}"
                ));
            }
            (PartitionBy::Column(_), Some(_)) => {}
        }
    }
    if !(1..=MAX_SHARDS).contains(&c.shards) {
        return no(format!("a table has 1 to {MAX_SHARDS} shards, not {}", c.shards));
    }
    Ok(())
}

/// Whether a table can be set like that.
pub(super) fn check_settings(state: &Overlay<'_>, settings: &TableSettings) -> Result<(), Stop> {
    let FlushPolicy {
        rows, bytes, age_ms, ..
    } = settings.flush;
    if rows == 0 || bytes == 0 || age_ms == 0 {
        return Err(Refusal::Definition("flush_rows, flush_bytes and flush_age_ms must be at least 1".into()).into());
    }
    let (Some(wanted), rule) = (settings.min_insync_replicas, state.replication()?) else {
        return Ok(());
    };
    let most = rule.map_or(u32::MAX, |rule| rule.replicas);
    match (1..=most).contains(&wanted) {
        true => Ok(()),
        false => Err(Refusal::Definition(format!(
            "min_insync_replicas is a number from 1 to {most}, how many replicas there are, not {wanted}"
        ))
        .into()),
    }
}

/// Whether a node that stays is of the warehouse that a table shall be bound to.
pub(super) fn check_warehouse(state: &Overlay<'_>, wanted: Option<&str>) -> Result<(), Stop> {
    let Some(wanted) = wanted else {
        return Ok(());
    };
    let nodes = state.list::<Node>(&[])?;
    let there: BTreeSet<&str> = nodes
        .iter()
        .filter(|node| node.stays())
        .map(|node| node.warehouse.as_str())
        .collect();
    if there.contains(wanted) {
        return Ok(());
    }
    let there: Vec<String> = there.iter().map(|name| format!("'{name}'")).collect();
    Err(Refusal::Definition(format!(
        "no node is of warehouse '{wanted}': those of the nodes are {}",
        there.join(", ")
    ))
    .into())
}
