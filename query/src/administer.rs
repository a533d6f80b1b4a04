//! Statements that change the catalog: each becomes one command.
//!
//! What can be said better before the command (a name that is nearly right, a source that cannot be
//! reached) is looked up first; the catalog decides all the same.

use crate::control;
use crate::engine::Engine;
use crate::error::QueryError;
use crate::fresh::no_table;
use crate::ports::StartPosition;
use crate::replay;
use crate::show;
use crate::statement::{Named, PipeDefinition, Statement};
use futures::FutureExt;
use futures::future::BoxFuture;
use tidemill_core::catalog::{CatalogQuestions, Cluster, ClusterKey};
use tidemill_core::command::{ByName, CreatePipe, CreateTable, Refusal};
use tidemill_core::view::{CatalogRead, ViewError};
use tidemill_core::{Command, Response};

/// How often a command is worked out anew.
const ATTEMPTS: usize = 8;

/// Runs a change; gives what was done, for people.
pub(crate) async fn run(engine: &Engine, statement: Statement) -> Result<String, QueryError> {
    match statement {
        Statement::CreateTable(table) => again_if_outdated(|| create_table(engine, &table).boxed()).await,
        Statement::CreatePipe(pipe) => again_if_outdated(|| create_pipe(engine, &pipe).boxed()).await,
        Statement::AlterPipe { pipe, change } => control::alter_pipe(engine, pipe, change).await,
        Statement::AlterTable { table, settings } => control::alter_table(engine, table, settings).await,
        Statement::AlterCluster { settings } => control::alter_cluster(engine, settings).await,
        Statement::ReplayRejected { pipe, condition } => replay::run(engine, pipe, condition).await,
        Statement::Wait { pipe, until, timeout } => control::wait(engine, pipe, until, timeout).await,
        Statement::DropTable { table, if_exists } => drop_table(engine, table, if_exists).await,
        Statement::DropPipe { pipe, if_exists } => drop_pipe(engine, pipe, if_exists).await,
        Statement::Show(_) | Statement::Set { .. } | Statement::Query(_) => {
            Err(QueryError::internal("this statement changes nothing"))
        }
    }
}

async fn drop_table(engine: &Engine, named: Named, if_exists: bool) -> Result<String, QueryError> {
    let Named { name, place } = named;
    let snapshot = engine.reader.snapshot(engine.deadline()).await?;
    let nothing = format!("there is no table '{name}'; nothing was dropped");
    let Some(table) = snapshot.table_named(&name)? else {
        return match if_exists {
            true => Ok(nothing),
            false => Err(no_table(&*snapshot, &name)?.at(place)),
        };
    };
    let dropped = ByName {
        name: name.clone(),
        if_exists,
        id: Some(table.id),
    };
    match propose(engine, Command::DropTable(dropped)).await {
        Ok(Response::Unchanged) => Ok(nothing),
        Ok(_) => Ok(format!("table '{name}' dropped")),
        Err(other) => Err(QueryError::from(other).at(place)),
    }
}

async fn drop_pipe(engine: &Engine, named: Named, if_exists: bool) -> Result<String, QueryError> {
    let snapshot = engine.reader.snapshot(engine.deadline()).await?;
    let nothing = format!("there is no pipe '{}'; nothing was dropped", named.name);
    let pipe = match snapshot.pipe_named(&named.name)? {
        None if if_exists => return Ok(nothing),
        _ => show::pipe(&*snapshot, &named)?,
    };
    let dropped = ByName {
        name: pipe.name.clone(),
        if_exists,
        id: Some(pipe.id),
    };
    match propose(engine, Command::DropPipe(dropped)).await {
        Ok(Response::Unchanged) => Ok(nothing),
        Ok(_) => Ok(format!("pipe '{}' dropped; the rows that it delivered stay", pipe.name)),
        Err(other) => Err(QueryError::from(other).at(named.place)),
    }
}

/// Works out a command and says it; again, if what it was worked out from was changed by somebody else meanwhile.
pub(crate) async fn again_if_outdated<'c>(
    change: impl Fn() -> BoxFuture<'c, Result<String, Failed>>,
) -> Result<String, QueryError> {
    for _ in 1..ATTEMPTS {
        match change().await {
            Err(Failed::No(Refusal::Outdated(_))) => {}
            other => return Ok(other?),
        }
    }
    Ok(change().await?)
}

async fn create_table(engine: &Engine, table: &CreateTable) -> Result<String, Failed> {
    let snapshot = engine.reader.snapshot(engine.deadline()).await?;
    let name = &table.name;
    if table.if_not_exists && snapshot.table_named(name)?.is_some() {
        return Ok(format!("table '{name}' exists already; nothing was changed"));
    }
    let command = CreateTable {
        id: snapshot.get::<Cluster>(&ClusterKey)?.map(|cluster| cluster.next_table),
        ..table.clone()
    };
    propose(engine, Command::CreateTable(command)).await?;
    Ok(format!("table '{name}' created with {} shards", table.shards))
}

async fn create_pipe(engine: &Engine, pipe: &PipeDefinition) -> Result<String, Failed> {
    let snapshot = engine.reader.snapshot(engine.deadline()).await?;
    let name = pipe.name.name.clone();
    if snapshot.pipe_named(&name)?.is_some() {
        return match pipe.if_not_exists {
            true => Ok(format!("pipe '{name}' exists already; nothing was changed")),
            false => {
                let taken = Refusal::NameTaken {
                    what: "pipe".to_owned(),
                    name,
                };
                Err(QueryError::from(taken).at(pipe.name.place).into())
            }
        };
    }
    let Some(table) = snapshot.table_named(&pipe.table.name)? else {
        return Err(no_table(&*snapshot, &pipe.table.name)?.at(pipe.table.place).into());
    };
    // The catalog checks it as well, but only after the source was asked.
    pipe.format.check(&table).map_err(QueryError::invalid)?;
    let found = engine.sources.kafka_start(&pipe.source, &pipe.start).await;
    let found = found.map_err(|error| QueryError::invalid(error.0))?;
    let partitions = found.partitions;
    if partitions.is_empty() {
        return Err(QueryError::invalid(format!("topic '{}' has no partitions", pipe.source.topic)).into());
    }
    let from = match pipe.start {
        StartPosition::Earliest => "their oldest records",
        StartPosition::Latest => "the records to come",
        StartPosition::TimestampMs(_) => "the time given",
    };
    let message = format!(
        "pipe '{name}' created: {} partitions of topic '{}' into table '{}', from {from} on",
        partitions.len(),
        pipe.source.topic,
        pipe.table.name
    );
    let command = CreatePipe {
        name,
        id: snapshot.get::<Cluster>(&ClusterKey)?.map(|cluster| cluster.next_pipe),
        if_not_exists: pipe.if_not_exists,
        table: pipe.table.name.clone(),
        table_id: Some(table.id),
        source: pipe.source.clone(),
        settings: pipe.settings.clone(),
        topic: found.topic,
        format: pipe.format.clone(),
        partitions,
    };
    propose(engine, Command::CreatePipe(command)).await?;
    Ok(message)
}

/// A command was refused, or got no answer.
pub(crate) enum Failed {
    /// It was refused.
    No(Refusal),
    /// Nobody knows, or nobody was there; or it was not said, since it is wrong.
    NoAnswer(QueryError),
}

impl From<QueryError> for Failed {
    fn from(error: QueryError) -> Self {
        Failed::NoAnswer(error)
    }
}

impl From<ViewError> for Failed {
    fn from(error: ViewError) -> Self {
        Failed::NoAnswer(error.into())
    }
}

impl From<Failed> for QueryError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::No(refusal) => refusal.into(),
            Failed::NoAnswer(error) => error,
        }
    }
}

pub(crate) async fn propose(engine: &Engine, command: Command) -> Result<Response, Failed> {
    match engine.reader.catalog.propose(command).await {
        Ok((_, Ok(response))) => Ok(response),
        Ok((_, Err(refusal))) => Err(Failed::No(refusal)),
        Err(error) => Err(Failed::NoAnswer(error.into())),
    }
}
