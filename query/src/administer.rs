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
use crate::statement::{PipeDefinition, Statement};
use tidemill_core::catalog::CatalogQuestions;
use tidemill_core::command::{ByName, CreatePipe, Refusal};
use tidemill_core::{Command, Response};

/// Runs a change; gives what was done, for people.
pub(crate) async fn run(engine: &Engine, statement: Statement) -> Result<String, QueryError> {
    match statement {
        Statement::CreateTable(table) => {
            let (name, shards) = (table.name.clone(), table.shards);
            let existed = table.if_not_exists && exists(engine, &name).await?;
            propose(engine, Command::CreateTable(table)).await?;
            Ok(match existed {
                true => format!("table '{name}' exists already; nothing was changed"),
                false => format!("table '{name}' created with {shards} shards"),
            })
        }
        Statement::CreatePipe(pipe) => create_pipe(engine, pipe).await,
        Statement::AlterPipe { pipe, change } => control::alter_pipe(engine, pipe, change).await,
        Statement::AlterTable { table, settings } => control::alter_table(engine, table, settings).await,
        Statement::AlterCluster { settings } => control::alter_cluster(engine, settings).await,
        Statement::ReplayRejected { pipe, condition } => replay::run(engine, pipe, condition).await,
        Statement::Wait { pipe, until, timeout } => control::wait(engine, pipe, until, timeout).await,
        Statement::DropTable { table, if_exists } => {
            let name = table.name;
            let command = Command::DropTable(ByName {
                name: name.clone(),
                if_exists,
            });
            match propose(engine, command).await {
                Ok(Response::Unchanged) => Ok(format!("there is no table '{name}'; nothing was dropped")),
                Ok(_) => Ok(format!("table '{name}' dropped")),
                Err(Failed::No(Refusal::NoTable(_))) => Err(engine.missing_table(&name).await?.at(table.place)),
                Err(other) => Err(QueryError::from(other).at(table.place)),
            }
        }
        Statement::DropPipe { pipe, if_exists } => {
            let command = Command::DropPipe(ByName {
                name: pipe.name.clone(),
                if_exists,
            });
            match propose(engine, command).await {
                Ok(Response::Unchanged) => Ok(format!("there is no pipe '{}'; nothing was dropped", pipe.name)),
                Ok(_) => Ok(format!("pipe '{}' dropped; the rows that it delivered stay", pipe.name)),
                Err(Failed::No(Refusal::NoPipe(_))) => {
                    let snapshot = engine.reader.snapshot(engine.deadline()).await?;
                    Err(show::pipe(&*snapshot, &pipe)
                        .err()
                        .unwrap_or_else(|| gone("pipe", &pipe.name)))
                }
                Err(other) => Err(QueryError::from(other).at(pipe.place)),
            }
        }
        Statement::Show(_) | Statement::Set { .. } | Statement::Query(_) => {
            Err(QueryError::internal("this statement changes nothing"))
        }
    }
}

async fn create_pipe(engine: &Engine, pipe: PipeDefinition) -> Result<String, QueryError> {
    let snapshot = engine.reader.snapshot(engine.deadline()).await?;
    let name = pipe.name.name;
    if snapshot.pipe_named(&name)?.is_some() {
        return match pipe.if_not_exists {
            true => Ok(format!("pipe '{name}' exists already; nothing was changed")),
            false => {
                let taken = Refusal::NameTaken {
                    what: "pipe".to_owned(),
                    name,
                };
                Err(QueryError::from(taken).at(pipe.name.place))
            }
        };
    }
    let Some(table) = snapshot.table_named(&pipe.table.name)? else {
        return Err(no_table(&*snapshot, &pipe.table.name)?.at(pipe.table.place));
    };
    // The catalog checks it as well, but only after the source was asked.
    pipe.format.check(&table).map_err(QueryError::invalid)?;
    let found = engine.sources.kafka_start(&pipe.source, &pipe.start).await;
    let found = found.map_err(|error| QueryError::invalid(error.0))?;
    let partitions = found.partitions;
    if partitions.is_empty() {
        return Err(QueryError::invalid(format!(
            "topic '{}' has no partitions",
            pipe.source.topic
        )));
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
        if_not_exists: pipe.if_not_exists,
        table: pipe.table.name,
        source: pipe.source,
        settings: pipe.settings,
        topic: found.topic,
        format: pipe.format,
        partitions,
    };
    propose(engine, Command::CreatePipe(command)).await?;
    Ok(message)
}

async fn exists(engine: &Engine, table: &str) -> Result<bool, QueryError> {
    let snapshot = engine.reader.snapshot(engine.deadline()).await?;
    Ok(snapshot.table_named(table)?.is_some())
}

fn gone(what: &str, name: &str) -> QueryError {
    QueryError::unavailable(format!("{what} '{name}' has changed meanwhile; try again"))
}

/// A command was refused, or got no answer.
pub(crate) enum Failed {
    /// It was refused.
    No(Refusal),
    /// Nobody knows, or nobody was there.
    NoAnswer(QueryError),
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
