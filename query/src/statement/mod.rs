//! Statements: from text to what is meant, or to an error that points at the word.
//!
//! Tidemill's own statements are parsed here by recursive descent over the tokens of DataFusion's SQL
//! tokenizer; queries go to DataFusion's parser with the same tokens, so that places agree. Nothing
//! here looks at the catalog. Names keep their letters as they are written, quoted or not, since
//! columns are named as in the source's records.

mod alter;
mod column_type;
mod columns;
pub(crate) mod create_pipe;
pub(crate) mod create_table;
pub(crate) mod pipe_settings;
mod quantity;
mod refused;
#[cfg(test)]
mod tests;
pub(crate) mod words;

use crate::diagnosis;
use crate::error::{Place, QueryError};
use crate::nearest::nearest;
use crate::ports::StartPosition;
use crate::settings;
pub use alter::{Given, PipeChange, ResetTo, WaitFor};
use datafusion::sql::parser::DFParserBuilder;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use std::time::Duration;
use tidemill_core::catalog::{KafkaSource, PipeSettings};
use tidemill_core::command::CreateTable;
use tidemill_core::format::JsonFormat;
use words::{Cursor, Words};

/// A name and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The name.
    pub name: String,
    /// Where it stands in the text.
    pub place: Option<Place>,
}

/// What a statement asks for.
#[derive(Debug)]
pub enum Statement {
    /// `CREATE TABLE`
    CreateTable(CreateTable),
    /// `CREATE PIPE`
    CreatePipe(PipeDefinition),
    /// `ALTER PIPE`
    AlterPipe {
        /// The pipe.
        pipe: Named,
        /// What to do with it.
        change: PipeChange,
    },
    /// `ALTER TABLE … SET (…)`
    AlterTable {
        /// The table.
        table: Named,
        /// The new values.
        settings: Vec<Given>,
    },
    /// `ALTER CLUSTER SET (…)`
    AlterCluster {
        /// The new values.
        settings: Vec<Given>,
    },
    /// `REPLAY REJECTED`
    ReplayRejected {
        /// The pipe that rejected them.
        pipe: Named,
        /// Which of them; all without.
        condition: Option<String>,
    },
    /// `WAIT FOR`
    Wait {
        /// The pipe.
        pipe: Named,
        /// What to wait for.
        until: WaitFor,
        /// For how long at most.
        timeout: Duration,
    },
    /// `DROP TABLE`
    DropTable {
        /// The table.
        table: Named,
        /// Whether a missing one is fine.
        if_exists: bool,
    },
    /// `DROP PIPE`
    DropPipe {
        /// The pipe.
        pipe: Named,
        /// Whether a missing one is fine.
        if_exists: bool,
    },
    /// `SHOW …` and `DESCRIBE`
    Show(Show),
    /// `SET name = value`; checked
    Set {
        /// Name of the setting.
        name: &'static str,
        /// Its value.
        value: &'static str,
    },
    /// A query, or `EXPLAIN` of one.
    Query(Box<datafusion::sql::parser::Statement>),
}

/// A pipe as it is asked for; its start is not yet resolved to offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipeDefinition {
    /// Its name.
    pub name: Named,
    /// Whether an existing pipe of that name is fine.
    pub if_not_exists: bool,
    /// The table that it fills.
    pub table: Named,
    /// What it reads.
    pub source: KafkaSource,
    /// What may be changed later.
    pub settings: PipeSettings,
    /// How its records become rows.
    pub format: JsonFormat,
    /// Where it begins.
    pub start: StartPosition,
}

/// What to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Show {
    /// All tables.
    Tables,
    /// All pipes.
    Pipes,
    /// All nodes.
    Nodes,
    /// All settings.
    Settings,
    /// Shards, of one table or all.
    Shards(Option<Named>),
    /// `EXPLAIN ASSIGNMENT`: who leads the shards of one table or all, and why.
    Assignment(Option<Named>),
    /// Source partitions, of one pipe or all.
    Partitions(Option<Named>),
    /// The statement that makes a table.
    CreateTable(Named),
    /// The statement that makes a pipe.
    CreatePipe(Named),
    /// The columns of a table.
    Columns(Named),
}

/// The words that begin a statement.
const BEGINNINGS: &[&str] = &[
    "SELECT", "WITH", "VALUES", "EXPLAIN", "CREATE", "ALTER", "DROP", "SHOW", "DESCRIBE", "DESC", "SET", "WAIT",
    "REPLAY",
];

/// Parses one statement.
pub(crate) fn parse(words: &Words) -> Result<Statement, QueryError> {
    let mut cursor = words.cursor();
    let Some(first) = cursor.peek_word() else {
        return match cursor.at_end() {
            true => Err(QueryError::invalid("there is no statement here").at(cursor.place())),
            false if cursor.peek_is("(") => query(words),
            false => Err(cursor.expected("a statement", BEGINNINGS)),
        };
    };
    match first.to_uppercase().as_str() {
        "SELECT" | "WITH" | "VALUES" => query(words),
        "EXPLAIN" => {
            cursor.bump();
            match cursor.accept("ASSIGNMENT") {
                true => assignment(&mut cursor),
                false => query(words),
            }
        }
        "CREATE" => create(&mut cursor),
        "ALTER" => {
            cursor.bump();
            alter::alter(&mut cursor)
        }
        "WAIT" => {
            cursor.bump();
            alter::wait(&mut cursor)
        }
        "REPLAY" => {
            cursor.bump();
            alter::replay(&mut cursor)
        }
        "DROP" => drop_statement(&mut cursor),
        "SHOW" => show(&mut cursor),
        "DESCRIBE" | "DESC" => {
            cursor.bump();
            cursor.accept("TABLE");
            let table = cursor.table_name("a table")?;
            cursor.end()?;
            Ok(Statement::Show(Show::Columns(table)))
        }
        "SET" => set(&mut cursor),
        other => match refused::why(other) {
            Some(why) => Err(QueryError::invalid(why).at(cursor.place())),
            None => {
                let hint = nearest(&first, BEGINNINGS.iter().copied());
                let hint = hint.map(|h| format!("; did you mean {h}?")).unwrap_or_default();
                Err(QueryError::invalid(format!("'{first}' does not begin a statement{hint}")).at(cursor.place()))
            }
        },
    }
}

/// Reads what follows `EXPLAIN ASSIGNMENT`.
fn assignment(cursor: &mut Cursor<'_>) -> Result<Statement, QueryError> {
    if cursor.end().is_ok() {
        return Ok(Statement::Show(Show::Assignment(None)));
    }
    let table = cursor.table_name("a table")?;
    cursor.end()?;
    Ok(Statement::Show(Show::Assignment(Some(table))))
}

fn query(words: &Words) -> Result<Statement, QueryError> {
    let mut parser = DFParserBuilder::new(words.tokens().to_vec())
        .with_dialect(&GenericDialect {})
        .build()
        .map_err(|e| diagnosis::explain(e, words, None))?;
    let mut statements = parser
        .parse_statements()
        .map_err(|e| diagnosis::explain(e, words, None))?;
    match (statements.pop_front(), statements.is_empty()) {
        (Some(statement), true) => Ok(Statement::Query(Box::new(statement))),
        (None, _) => Err(QueryError::invalid("there is no statement here")),
        (Some(_), false) => Err(words.several_statements()),
    }
}

fn create(cursor: &mut Cursor<'_>) -> Result<Statement, QueryError> {
    cursor.bump();
    if cursor.accept("TABLE") {
        return create_table::parse(cursor).map(Statement::CreateTable);
    }
    if cursor.accept("PIPE") {
        return create_pipe::parse(cursor).map(Statement::CreatePipe);
    }
    Err(refused_object(cursor, "created").unwrap_or_else(|| cursor.expected("TABLE or PIPE", &["TABLE", "PIPE"])))
}

fn drop_statement(cursor: &mut Cursor<'_>) -> Result<Statement, QueryError> {
    cursor.bump();
    let is_table = cursor.accept("TABLE");
    if !is_table && !cursor.accept("PIPE") {
        let other = refused_object(cursor, "dropped");
        return Err(other.unwrap_or_else(|| cursor.expected("TABLE or PIPE", &["TABLE", "PIPE"])));
    }
    let if_exists = cursor.accept("IF");
    if if_exists {
        cursor.expect("EXISTS", &["EXISTS"])?;
    }
    let statement = match is_table {
        true => Statement::DropTable {
            table: cursor.table_name("a table")?,
            if_exists,
        },
        false => Statement::DropPipe {
            pipe: cursor.name("a pipe")?,
            if_exists,
        },
    };
    cursor.end()?;
    Ok(statement)
}

/// The error for a kind of thing that other systems have and this one does not.
fn refused_object(cursor: &Cursor<'_>, done: &str) -> Option<QueryError> {
    let word = cursor.peek_word()?.to_uppercase();
    let why = refused::object(&word, done)?;
    Some(QueryError::invalid(why).at(cursor.place()))
}

fn show(cursor: &mut Cursor<'_>) -> Result<Statement, QueryError> {
    const SHOWN: &[&str] = &[
        "TABLES",
        "PIPES",
        "NODES",
        "SHARDS",
        "PARTITIONS",
        "SETTINGS",
        "CREATE",
        "COLUMNS",
    ];
    cursor.bump();
    let place = cursor.place();
    let Some(what) = cursor.peek_word().map(|word| word.to_uppercase()) else {
        return Err(cursor.expected("what to show", SHOWN));
    };
    cursor.bump();
    let shown = match what.as_str() {
        "TABLES" => Show::Tables,
        "PIPES" => Show::Pipes,
        "NODES" => Show::Nodes,
        "SETTINGS" | "ALL" => Show::Settings,
        "SHARDS" => Show::Shards(cursor.from("a table")?),
        "PARTITIONS" => Show::Partitions(cursor.from("a pipe")?),
        "COLUMNS" => match cursor.from("a table")? {
            Some(table) => Show::Columns(table),
            None => return Err(cursor.expected("FROM and a table", &["FROM"])),
        },
        "CREATE" => match (cursor.accept("TABLE"), cursor.accept("PIPE")) {
            (true, _) => Show::CreateTable(cursor.table_name("a table")?),
            (_, true) => Show::CreatePipe(cursor.name("a pipe")?),
            _ => return Err(cursor.expected("TABLE or PIPE", &["TABLE", "PIPE"])),
        },
        other => {
            let hint = crate::nearest::did_you_mean(other, SHOWN.iter().copied());
            let message = format!("SHOW knows {}, not '{other}'{hint}", SHOWN.join(", "));
            return Err(QueryError::invalid(message).at(place));
        }
    };
    cursor.end()?;
    Ok(Statement::Show(shown))
}

fn set(cursor: &mut Cursor<'_>) -> Result<Statement, QueryError> {
    cursor.bump();
    let name = cursor.dotted_name("the name of a setting")?;
    let setting = settings::find(&name.name).map_err(|e| e.at(name.place))?;
    if !cursor.accept("=") {
        cursor.expect("TO", &["TO"])?;
    }
    let place = cursor.place();
    let value = match cursor.accept("DEFAULT") {
        true => setting.default,
        false => {
            let value = cursor.word_or_literal("a value")?;
            settings::check_value(setting, &value).map_err(|e| e.at(place))?
        }
    };
    cursor.end()?;
    Ok(Statement::Set {
        name: setting.name,
        value,
    })
}
