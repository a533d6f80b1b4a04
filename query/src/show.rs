//! `SHOW` and `DESCRIBE`: most are queries over the system tables, the others are rows made here.

use crate::error::QueryError;
use crate::fresh::no_table;
use crate::nearest::did_you_mean;
use crate::statement::{Named, Show};
use crate::system::Columns;
use arrow::array::RecordBatch;
use std::fmt::Write;
use tidemill_core::catalog::{CatalogQuestions, Pipe, SourcePartition, Table, TableSettings};
use tidemill_core::schema::{METADATA_COLUMNS, quoted as word};
use tidemill_core::view::{CatalogRead, CatalogSnapshot};
use tidemill_storage::schema::arrow_schema;

/// What a `SHOW` comes to.
pub(crate) enum Shown {
    /// A query to run.
    Query(String),
    /// These rows.
    Rows(RecordBatch),
}

/// Prepares what is shown; the tables and pipes that it names are looked up in `snapshot`.
pub(crate) fn prepare(shown: Show, snapshot: &dyn CatalogSnapshot) -> Result<Shown, QueryError> {
    let query = |sql: &str| Ok(Shown::Query(sql.to_owned()));
    match shown {
        Show::Tables => query("SELECT * FROM system.tables ORDER BY name"),
        Show::Pipes => query("SELECT * FROM system.pipes ORDER BY pipe"),
        Show::Nodes => query("SELECT * FROM system.nodes ORDER BY name"),
        Show::Settings => query("SELECT * FROM system.settings ORDER BY name"),
        Show::Shards(None) => query("SELECT * FROM system.shards ORDER BY \"table\", shard"),
        Show::Shards(Some(name)) => {
            let name = table(snapshot, &name)?.name.replace('\'', "''");
            let sql = format!("SELECT * FROM system.shards WHERE \"table\" = '{name}' ORDER BY shard");
            Ok(Shown::Query(sql))
        }
        Show::Assignment(table_of) => {
            let of = match table_of {
                Some(name) => format!(
                    " WHERE \"table\" = '{}'",
                    table(snapshot, &name)?.name.replace('\'', "''")
                ),
                None => String::new(),
            };
            let columns = "\"table\", shard, leader, standby, epoch, since, reason, may_lead";
            Ok(Shown::Query(format!(
                "SELECT {columns} FROM system.shards{of} ORDER BY \"table\", shard"
            )))
        }
        Show::Partitions(None) => query("SELECT * FROM system.partitions ORDER BY pipe, \"partition\""),
        Show::Partitions(Some(name)) => {
            let name = pipe(snapshot, &name)?.name.replace('\'', "''");
            let sql = format!("SELECT * FROM system.partitions WHERE pipe = '{name}' ORDER BY \"partition\"");
            Ok(Shown::Query(sql))
        }
        Show::CreateTable(name) => {
            let table = table(snapshot, &name)?;
            Ok(Shown::Rows(statement(&table.name, table_statement(&table))?))
        }
        Show::CreatePipe(name) => {
            let pipe = pipe(snapshot, &name)?;
            let table = snapshot
                .get::<Table>(&pipe.table)?
                .map_or_else(|| pipe.table.to_string(), |table| table.name);
            let partitions = snapshot.partitions_of(pipe.id)?;
            Ok(Shown::Rows(statement(
                &pipe.name,
                pipe_statement(&pipe, &table, &partitions),
            )?))
        }
        Show::Columns(name) => Ok(Shown::Rows(columns(&table(snapshot, &name)?)?)),
    }
}

fn table(snapshot: &dyn CatalogSnapshot, named: &Named) -> Result<Table, QueryError> {
    match snapshot.table_named(&named.name)? {
        Some(table) => Ok(table),
        None => Err(no_table(snapshot, &named.name)?.at(named.place)),
    }
}

/// The pipe of that name, or an error that names the nearest.
pub(crate) fn pipe(snapshot: &dyn CatalogSnapshot, named: &Named) -> Result<Pipe, QueryError> {
    if let Some(pipe) = snapshot.pipe_named(&named.name)? {
        return Ok(pipe);
    }
    let pipes: Vec<Pipe> = snapshot.list(&[])?;
    let hint = did_you_mean(&named.name, pipes.iter().map(|pipe| pipe.name.as_str()));
    let hint = if hint.is_empty() {
        "; SHOW PIPES lists them".to_owned()
    } else {
        hint
    };
    Err(QueryError::invalid(format!("there is no pipe '{}'{hint}", named.name)).at(named.place))
}

fn statement(name: &str, text: String) -> Result<RecordBatch, QueryError> {
    let one = |text: String| std::iter::once(Some(text));
    Columns::default()
        .text("name", one(name.to_owned()))
        .text("statement", one(text))
        .finish()
}

fn columns(table: &Table) -> Result<RecordBatch, QueryError> {
    let schema = arrow_schema(table);
    let fields = || schema.fields().iter();
    let declared = |name: &str| table.columns.iter().find(|column| column.name == name);
    let data_type = |name: &str| match declared(name) {
        Some(column) => column.data_type.to_string(),
        None => match name {
            tidemill_core::schema::PARTITION => "INT".to_owned(),
            tidemill_core::schema::OFFSET => "BIGINT".to_owned(),
            tidemill_core::schema::TIMESTAMP => "TIMESTAMP".to_owned(),
            _ => "VARCHAR".to_owned(),
        },
    };
    let default = |name: &str| Some(declared(name)?.default.as_ref()?.to_string());
    let role = |name: &str| {
        let mut roles = Vec::new();
        if let Some(at) = table.order_by.iter().position(|column| column == name) {
            roles.push(format!("sort key {}", at + 1));
        }
        if table.partition_by.as_ref().is_some_and(|by| by.column() == name) {
            roles.push("partition".to_owned());
        }
        if METADATA_COLUMNS.contains(&name) {
            roles.push("from the source".to_owned());
        }
        roles.join(", ")
    };
    Columns::default()
        .text("column", fields().map(|field| Some(field.name().clone())))
        .text("type", fields().map(|field| Some(data_type(field.name()))))
        .boolean("nullable", fields().map(|field| Some(field.is_nullable())))
        .text("default", fields().map(|field| default(field.name())))
        .text("role", fields().map(|field| Some(role(field.name()))))
        .finish()
}

fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// The statement that makes `table`.
fn table_statement(table: &Table) -> String {
    let column = |column: &tidemill_core::schema::Column| {
        let not_null = if column.nullable { "" } else { " NOT NULL" };
        let default = column.default.as_ref();
        let default = default.map_or_else(String::new, |default| format!(" DEFAULT {default}"));
        format!("  {} {}{not_null}{default}", word(&column.name), column.data_type)
    };
    let columns: Vec<_> = table.columns.iter().map(column).collect();
    let mut out = format!("CREATE TABLE {} (\n{}\n)", word(&table.name), columns.join(",\n"));
    // Writing to a String has no way to fail.
    if !table.order_by.is_empty() {
        let keys: Vec<_> = table.order_by.iter().map(|name| word(name)).collect();
        _ = write!(out, "\nORDER BY ({})", keys.join(", "));
    }
    if let Some(by) = &table.partition_by {
        let expression = by.to_string().replace(by.column(), &word(by.column()));
        _ = write!(out, "\nPARTITION BY {expression}");
    }
    let TableSettings {
        flush,
        min_insync_replicas,
        wal,
        warehouse,
    } = &table.settings;
    _ = write!(
        out,
        "\nWITH (shards = {}, flush_rows = {}, flush_bytes = {}, flush_age_ms = {}, flush_acks_ms = {}, wal = '{}'",
        table.shards, flush.rows, flush.bytes, flush.age_ms, flush.acks_ms, wal
    );
    if let Some(least) = min_insync_replicas {
        _ = write!(out, ", min_insync_replicas = {least}");
    }
    if let Some(warehouse) = warehouse {
        _ = write!(out, ", warehouse = {}", text(warehouse));
    }
    out.push(')');
    out
}

/// The options of a pipe's format that are not at their defaults, as they are written.
pub(crate) fn format_options(pipe: &Pipe) -> impl Iterator<Item = String> {
    pipe.format.options().into_iter().map(|(option, name, value)| {
        let name = name.map_or_else(String::new, |name| format!(".{}", word(&name)));
        format!("{option}{name} = {}", text(&value))
    })
}

/// The statement that makes `pipe`, from the oldest record on, and where it did begin as comments.
fn pipe_statement(pipe: &Pipe, table: &str, partitions: &[SourcePartition]) -> String {
    let mut options = vec![
        format!("  brokers = {}", text(pipe.source.brokers())),
        format!("  topic = {}", text(pipe.source.topic())),
        "  format = 'json'".to_owned(),
    ];
    options.extend(format_options(pipe).map(|option| format!("  {option}")));
    for (name, value) in pipe.source.kafka().into_iter().flat_map(|source| &source.client) {
        let secret = ["password", "secret", "key.pem"].iter().any(|word| name.contains(word));
        options.push(format!(
            "  client.{name} = {}",
            if secret { "'…'".to_owned() } else { text(value) }
        ));
    }
    let settings = crate::statement::pipe_settings::written(&pipe.settings);
    options.extend(settings.into_iter().map(|setting| format!("  {setting}")));
    let starts: Vec<_> = partitions
        .iter()
        .map(|partition| format!("{}: {}", partition.partition, partition.ledger.start))
        .collect();
    format!(
        "CREATE PIPE {} INTO {} FROM KAFKA (\n{}\n)\n-- began at offsets {}",
        word(&pipe.name),
        word(table),
        options.join(",\n"),
        starts.join(", ")
    )
}
