//! What operators say to a pipe: pause, reset, repair, backfill, change, wait.
//!
//! A pause and a reset first let the pipe settle: its tasks read no further and commit what they have read, so that no
//! row that a query has shown goes away. That is a courtesy with a time limit; what makes it safe is the command that
//! follows, which raises the incarnation of the partitions that it names.

use crate::administer::{Failed, again_if_outdated, propose};
use crate::engine::Engine;
use crate::error::QueryError;
use crate::ports::{NodeProgress, PartitionProgress, SourceOffsets, StartPosition};
use crate::show;
use crate::statement::{Given, Named, PipeChange, ResetTo, WaitFor, create_pipe, create_table};
use futures::FutureExt;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tidemill_core::catalog::{CatalogQuestions, KafkaSource, Pipe, PipeState, Replication, SourcePartition};
use tidemill_core::command::{
    AlterPipe, AlterTable, Backfill, OldRows, PipeOptions, ResetOffsets, ResetTarget, SetPipeState, SetReplication,
};
use tidemill_core::view::{CatalogRead, CatalogSnapshot};
use tidemill_core::{Command, Offset, PartitionId, Response, SpanKey};
use tokio::time::{Instant, sleep};

/// How long a pipe may take to commit what it has read.
const SETTLE: Duration = Duration::from_secs(20);
/// How often progress is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(100);

/// Does `change` to `pipe`; gives what was done, for people.
pub(crate) async fn alter_pipe(engine: &Engine, named: Named, change: PipeChange) -> Result<String, QueryError> {
    let snapshot = engine.reader.snapshot(engine.deadline()).await?;
    let pipe = show::pipe(&*snapshot, &named)?;
    match change {
        PipeChange::Pause => pause(engine, pipe).await,
        PipeChange::Resume => resume(engine, pipe).await,
        PipeChange::Reset {
            to,
            partitions,
            old_rows,
        } => reset(engine, &pipe, to, &partitions, old_rows).await,
        PipeChange::Repair { partitions } => repair(engine, &*snapshot, &pipe, &partitions).await,
        PipeChange::Backfill { partitions } => backfill(engine, &pipe, partitions).await,
        PipeChange::Set(settings) => {
            let (named, settings) = (&named, &settings);
            let change = || async move { set(engine, show::pipe(&*fresh(engine).await?, named)?, settings).await };
            again_if_outdated(|| change().boxed()).await
        }
    }
}

async fn fresh(engine: &Engine) -> Result<Arc<dyn CatalogSnapshot>, QueryError> {
    engine.reader.snapshot(engine.deadline()).await
}

/// Gives a table other settings.
pub(crate) async fn alter_table(engine: &Engine, named: Named, settings: Vec<Given>) -> Result<String, QueryError> {
    again_if_outdated(|| set_table(engine, &named, &settings).boxed()).await
}

async fn set_table(engine: &Engine, named: &Named, settings: &[Given]) -> Result<String, Failed> {
    let snapshot = fresh(engine).await?;
    let Some(table) = snapshot.table_named(&named.name)? else {
        return Err(crate::fresh::no_table(&*snapshot, &named.name)?.at(named.place).into());
    };
    let mut changed = table.settings.clone();
    for given in settings {
        create_table::set_later(&mut changed, &given.key, &given.value).map_err(|e| e.at(given.place))?;
    }
    let command = AlterTable {
        name: table.name.clone(),
        table: Some(table.id),
        settings: changed,
        from: Some(table.settings),
    };
    Ok(match propose(engine, Command::AlterTable(command)).await? {
        Response::Unchanged => format!("table '{}' has these settings already", table.name),
        _ => format!("table '{}' changed; its tasks go by it from now on", table.name),
    })
}

/// Gives the cluster other settings.
pub(crate) async fn alter_cluster(engine: &Engine, settings: Vec<Given>) -> Result<String, QueryError> {
    again_if_outdated(|| set_cluster(engine, &settings).boxed()).await
}

async fn set_cluster(engine: &Engine, settings: &[Given]) -> Result<String, Failed> {
    let from = fresh(engine).await?.replication()?;
    let mut rule = from.unwrap_or(Replication::of_founders(1));
    for Given { key, value, place } in settings {
        let number: u32 = value
            .parse()
            .map_err(|_| QueryError::invalid(format!("{key} is a number of nodes, not '{value}'")).at(*place))?;
        match key.as_str() {
            "replicas" => rule.replicas = number,
            _ => rule.min_replicas = number,
        }
    }
    let Replication { replicas, min_replicas } = rule;
    let command = SetReplication { wanted: rule, from };
    Ok(match propose(engine, Command::SetReplication(command)).await? {
        Response::Unchanged => "the cluster has these settings already".to_owned(),
        _ => {
            format!("every file is kept on {replicas} nodes, if there are as many, and {min_replicas} before it counts")
        }
    })
}

async fn set(engine: &Engine, pipe: Pipe, given: &[Given]) -> Result<String, Failed> {
    let present = kafka_of(&pipe)?;
    let (mut source, mut settings, mut format) = (present.clone(), pipe.settings.clone(), pipe.format.clone());
    for Given { key, value, place } in given {
        create_pipe::change(&mut source, &mut settings, &mut format, key, value).map_err(|e| e.at(*place))?;
    }
    if source != *present {
        // Brokers that do not have the topic are refused now, not found out later.
        ask(engine, &pipe, &source, StartPosition::Earliest).await?;
    }
    let command = AlterPipe {
        name: pipe.name.clone(),
        pipe: Some(pipe.id),
        settings,
        format,
        source,
        from: PipeOptions::of(&pipe),
    };
    Ok(match propose(engine, Command::AlterPipe(command)).await? {
        Response::Unchanged => format!("pipe '{}' has these settings already", pipe.name),
        _ => format!("pipe '{}' changed; its tasks go by it from now on", pipe.name),
    })
}

async fn pause(engine: &Engine, pipe: Pipe) -> Result<String, QueryError> {
    if pipe.state == PipeState::Paused {
        return Ok(format!("pipe '{}' was paused already", pipe.name));
    }
    let settled = settle(engine, &pipe).await?;
    set_state(engine, &pipe, None, PipeState::Paused).await?;
    Ok(match settled {
        true => format!("pipe '{}' paused; everything that it has read is committed", pipe.name),
        false => format!(
            "pipe '{}' paused; not all that it has read could be committed in {} s: that is read again when it is resumed",
            pipe.name,
            SETTLE.as_secs()
        ),
    })
}

async fn resume(engine: &Engine, pipe: Pipe) -> Result<String, QueryError> {
    Ok(match set_state(engine, &pipe, None, PipeState::Running).await? {
        Response::Unchanged => format!("pipe '{}' was running already", pipe.name),
        _ => format!("pipe '{}' resumed", pipe.name),
    })
}

/// Sets the state of a pipe; only if it is in the state `from`, if that is given.
async fn set_state(
    engine: &Engine,
    pipe: &Pipe,
    from: Option<PipeState>,
    state: PipeState,
) -> Result<Response, Failed> {
    let command = SetPipeState {
        name: pipe.name.clone(),
        pipe: Some(pipe.id),
        from,
        state,
    };
    propose(engine, Command::SetPipeState(command)).await
}

/// Has the tasks of `pipe` read no further and commit what they have read. Whether they could, in time.
async fn settle(engine: &Engine, pipe: &Pipe) -> Result<bool, QueryError> {
    set_state(engine, pipe, None, PipeState::Pausing).await?;
    let until = Instant::now() + SETTLE;
    loop {
        let snapshot = engine.reader.snapshot(engine.deadline()).await?;
        let partitions = snapshot.partitions_of(pipe.id)?;
        if let Some(progress) = engine.progress.progress().await {
            let said = said(&progress.nodes);
            let rests = |p: &SourcePartition| {
                said.get(&p.key())
                    .is_none_or(|said| !said.reading && said.position == p.offset)
            };
            if partitions.iter().all(rests) {
                return Ok(true);
            }
        }
        if Instant::now() >= until {
            return Ok(false);
        }
        sleep(LOOK).await;
    }
}

fn said(progress: &[NodeProgress]) -> BTreeMap<SpanKey, &PartitionProgress> {
    progress
        .iter()
        .flat_map(|node| &node.partitions)
        .map(|p| (p.key, p))
        .collect()
}

async fn reset(
    engine: &Engine,
    pipe: &Pipe,
    to: ResetTo,
    only: &[PartitionId],
    old_rows: Option<OldRows>,
) -> Result<String, QueryError> {
    let offsets = async || match &to {
        ResetTo::Position(start) => ask(engine, pipe, kafka_of(pipe)?, *start).await,
        ResetTo::Exact(offsets) => exact(engine, pipe, offsets).await,
    };
    // Nothing is paused for what the source will not have.
    let found = offsets().await?;
    if pipe.state != PipeState::Running {
        return reset_to(engine, pipe, &found, only, old_rows).await;
    }
    settle(engine, pipe).await?;
    let reset = async {
        let found = match to {
            // The pipe may have read past what was the end before, and the earliest may have expired.
            ResetTo::Position(_) => offsets().await?,
            ResetTo::Exact(_) => found,
        };
        reset_to(engine, pipe, &found, only, old_rows).await
    }
    .await;
    // Also when the reset was refused: it must not leave the pipe standing. Who has paused it meanwhile means it.
    set_state(engine, pipe, Some(PipeState::Pausing), PipeState::Running).await?;
    reset
}

async fn reset_to(
    engine: &Engine,
    pipe: &Pipe,
    found: &SourceOffsets,
    only: &[PartitionId],
    old_rows: Option<OldRows>,
) -> Result<String, QueryError> {
    let snapshot = engine.reader.snapshot(engine.deadline()).await?;
    let partitions = chosen(snapshot.partitions_of(pipe.id)?, pipe, only)?;
    let mut targets = Vec::new();
    let mut lost = 0;
    for p in partitions {
        let Some((_, to)) = found.partitions.iter().find(|(number, _)| *number == p.partition) else {
            continue;
        };
        let is_there = *to == p.offset && p.stop.is_none() && found.topic == p.topic;
        if is_there && old_rows != Some(OldRows::Delete) {
            continue;
        }
        lost += to.0.saturating_sub(p.offset.0);
        targets.push(ResetTarget {
            partition: p.partition,
            incarnation: p.incarnation,
            to: Some(*to),
            topic: found.topic,
            old_rows,
            source_epoch: None,
        });
    }
    let count = targets.len();
    let command = ResetOffsets {
        name: pipe.name.clone(),
        pipe: Some(pipe.id),
        targets,
        because: "reset".to_owned(),
    };
    Ok(match propose(engine, Command::ResetOffsets(command)).await? {
        Response::Unchanged => format!("pipe '{}' is there already", pipe.name),
        _ if lost > 0 => format!(
            "pipe '{}': {count} partitions go on elsewhere, {lost} offsets are skipped; ALTER PIPE {0} BACKFILL reads them later",
            pipe.name
        ),
        _ => format!("pipe '{}': {count} partitions go on elsewhere", pipe.name),
    })
}

/// The stopped partitions of `pipe`; each with whether something was read of it that its source does not have any more and
/// that is not committed. That is waited for a while.
async fn stopped(
    engine: &Engine,
    pipe: &Pipe,
    only: &[PartitionId],
) -> Result<Vec<(SourcePartition, bool)>, QueryError> {
    let until = Instant::now() + SETTLE;
    loop {
        let snapshot = engine.reader.snapshot(engine.deadline()).await?;
        let partitions = chosen(snapshot.partitions_of(pipe.id)?, pipe, only)?.into_iter();
        let progress = engine.progress.progress().await;
        let said = progress
            .as_ref()
            .map(|progress| said(&progress.nodes))
            .unwrap_or_default();
        let holds = |p: &SourcePartition| said.get(&p.key()).is_some_and(|said| said.position != p.offset);
        let stopped = partitions.filter(|p| p.stop.is_some());
        let stopped: Vec<(SourcePartition, bool)> =
            stopped.map(|p| (p.clone(), p.has_expired() && holds(&p))).collect();
        if !stopped.iter().any(|(_, holds)| *holds) || Instant::now() >= until {
            return Ok(stopped);
        }
        sleep(LOOK).await;
    }
}

/// Lets stopped partitions go on where nothing new is passed over.
async fn repair(
    engine: &Engine,
    snapshot: &dyn CatalogSnapshot,
    pipe: &Pipe,
    only: &[PartitionId],
) -> Result<String, QueryError> {
    let nothing = format!("pipe '{}' has no stopped partition; nothing was changed", pipe.name);
    let partitions = chosen(snapshot.partitions_of(pipe.id)?, pipe, only)?;
    if partitions.iter().all(|p| p.stop.is_none()) {
        return Ok(nothing);
    }
    let source = ask(engine, pipe, kafka_of(pipe)?, StartPosition::Earliest).await?;
    // After the source was asked, which may take a while: what is committed meanwhile, is.
    let stopped = stopped(engine, pipe, only).await?;
    if stopped.is_empty() {
        return Ok(nothing);
    }
    let mut targets = Vec::new();
    let (mut told, mut left) = (Vec::new(), Vec::new());
    for (p, holds) in &stopped {
        let Some(stop) = &p.stop else { continue };
        if *holds {
            // They would be given up, and the source does not have them any more.
            left.push(format!(
                "partition {} still stands: rows that were read of it are not committed yet; say it again when they are",
                p.partition
            ));
            continue;
        }
        let earliest = source.partitions.iter().find(|(number, _)| *number == p.partition);
        let earliest = earliest.map(|(_, offset)| *offset);
        let (to, source_epoch) = match earliest.map(|earliest| p.goes_on(source.topic, earliest)) {
            // The topic does not have it any more.
            None => (None, None),
            Some(Some((to, epoch))) => (Some(to), epoch),
            Some(None) => {
                let why = stop.reason.explain(&pipe.name, p.partition, p.offset);
                left.push(format!("partition {} still stands: {why}", p.partition));
                continue;
            }
        };
        told.push(match to {
            Some(to) => format!("partition {} at {to}", p.partition),
            None => format!("partition {} is forgotten, the topic has it no more", p.partition),
        });
        targets.push(ResetTarget {
            partition: p.partition,
            incarnation: p.incarnation,
            to,
            topic: source.topic,
            // Where more was committed since, going back there would read rows once more: then it is refused.
            old_rows: to
                .filter(|to| *to < p.offset || source.topic != p.topic)
                .map(|_| OldRows::Keep),
            source_epoch,
        });
    }
    // What can go on must not wait for what cannot: its records may be about to expire.
    if targets.is_empty() {
        return Err(QueryError::invalid(left.join("; ")));
    }
    let command = ResetOffsets {
        name: pipe.name.clone(),
        pipe: Some(pipe.id),
        targets,
        because: "repair".to_owned(),
    };
    propose(engine, Command::ResetOffsets(command)).await?;
    let all: Vec<String> = std::iter::once(told.join(", ")).chain(left).collect();
    Ok(format!("pipe '{}' goes on: {}", pipe.name, all.join("; ")))
}

async fn backfill(engine: &Engine, pipe: &Pipe, partitions: Vec<PartitionId>) -> Result<String, QueryError> {
    let command = Backfill {
        name: pipe.name.clone(),
        pipe: Some(pipe.id),
        partitions,
    };
    match propose(engine, Command::Backfill(command)).await? {
        Response::Pipe(id) => {
            let snapshot = engine.reader.snapshot(engine.deadline()).await?;
            let name = snapshot
                .get::<Pipe>(&id)?
                .map_or_else(|| id.to_string(), |pipe| pipe.name);
            let spans = snapshot.partitions_of(id)?;
            let offsets: u64 = spans.iter().filter_map(|p| Some(p.until?.0 - p.offset.0)).sum();
            Ok(format!(
                "pipe '{name}' reads {offsets} skipped offsets of {} partitions; drop it when it has caught up",
                spans.len()
            ))
        }
        _ => Ok(format!(
            "pipe '{}' has skipped nothing that is there and not read already",
            pipe.name
        )),
    }
}

/// Waits until what was asked for can be queried.
pub(crate) async fn wait(
    engine: &Engine,
    named: Named,
    until: WaitFor,
    timeout: Duration,
) -> Result<String, QueryError> {
    let deadline = Instant::now() + timeout;
    let snapshot = engine.reader.snapshot(engine.deadline()).await?;
    let pipe = show::pipe(&*snapshot, &named)?;
    let wanted: BTreeMap<PartitionId, Offset> = match until {
        // An offset can be queried when the next one is the next to be read.
        WaitFor::Offsets(offsets) => offsets.into_iter().map(|(p, offset)| (p, offset.next())).collect(),
        WaitFor::CaughtUp => {
            let ends = ask(engine, &pipe, kafka_of(&pipe)?, StartPosition::Latest).await?;
            ends.partitions.into_iter().collect()
        }
    };
    loop {
        let snapshot = engine.reader.snapshot(engine.deadline()).await?;
        let partitions = snapshot.partitions_of(pipe.id)?;
        let progress = engine.progress.progress().await.unwrap_or_default();
        let said = said(&progress.nodes);
        let mut behind = Vec::new();
        for (number, wanted) in &wanted {
            let Some(p) = partitions.iter().find(|p| p.partition == *number) else {
                // New partitions of the topic are taken up within seconds.
                behind.push(format!("partition {number} is not known yet"));
                continue;
            };
            if let Some(stop) = &p.stop {
                let why = stop.reason.explain(&pipe.name, *number, p.offset);
                return Err(QueryError::unavailable(format!(
                    "partition {number} has stopped: {why}"
                )));
            }
            let wanted = p.until.map_or(*wanted, |until| until.min(*wanted));
            let position = said.get(&p.key()).map_or(p.offset, |said| said.position).max(p.offset);
            if position < wanted {
                behind.push(format!("partition {number} is at {position} of {wanted}"));
            }
        }
        if behind.is_empty() {
            return Ok(format!("pipe '{}' is there", pipe.name));
        }
        if Instant::now() >= deadline {
            return Err(QueryError::unavailable(format!(
                "pipe '{}' is not there after {} s: {}",
                pipe.name,
                timeout.as_secs_f64(),
                behind.join(", ")
            )));
        }
        sleep(LOOK).await;
    }
}

/// What a pipe reads that has a name: those of direct writers have none that a statement could use.
fn kafka_of(pipe: &Pipe) -> Result<&KafkaSource, QueryError> {
    let none = || QueryError::invalid(format!("pipe '{}' reads nothing: programs write to it", pipe.name));
    pipe.source.kafka().ok_or_else(none)
}

async fn ask(
    engine: &Engine,
    pipe: &Pipe,
    source: &KafkaSource,
    start: StartPosition,
) -> Result<SourceOffsets, QueryError> {
    let found = engine.sources.kafka_start(source, &start).await;
    found.map_err(|error| QueryError::invalid(format!("pipe '{}': {}", pipe.name, error.0)))
}

/// Exact offsets, if the source has them.
async fn exact(engine: &Engine, pipe: &Pipe, offsets: &[(PartitionId, Offset)]) -> Result<SourceOffsets, QueryError> {
    let low = ask(engine, pipe, kafka_of(pipe)?, StartPosition::Earliest).await?;
    let high = ask(engine, pipe, kafka_of(pipe)?, StartPosition::Latest).await?;
    for (partition, offset) in offsets {
        let of = |all: &SourceOffsets| all.partitions.iter().find(|(p, _)| p == partition).map(|(_, o)| *o);
        let (Some(low), Some(high)) = (of(&low), of(&high)) else {
            let message = format!("topic '{}' has no partition {partition}", pipe.source.topic());
            return Err(QueryError::invalid(message));
        };
        if !(low..=high).contains(offset) {
            return Err(QueryError::invalid(format!(
                "offset {offset} is not in partition {partition}: the source has {low} to {high}"
            )));
        }
    }
    Ok(SourceOffsets {
        topic: low.topic,
        partitions: offsets.to_vec(),
    })
}

/// Those of `partitions` that are named in `only`, or all.
fn chosen(
    partitions: Vec<SourcePartition>,
    pipe: &Pipe,
    only: &[PartitionId],
) -> Result<Vec<SourcePartition>, QueryError> {
    if let Some(unknown) = only.iter().find(|n| !partitions.iter().any(|p| p.partition == **n)) {
        return Err(QueryError::invalid(format!(
            "pipe '{}' has no partition {unknown}",
            pipe.name
        )));
    }
    let named = |p: &SourcePartition| only.is_empty() || only.contains(&p.partition);
    Ok(partitions.into_iter().filter(named).collect())
}
