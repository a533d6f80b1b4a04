//! `ALTER`, `WAIT FOR` and `REPLAY REJECTED`: what is said to things that exist.

use super::words::Cursor;
use super::{Named, Statement, create_pipe, create_table, quantity};
use crate::error::{Place, QueryError};
use crate::nearest::did_you_mean;
use crate::ports::StartPosition;
use std::time::Duration;
use tidemill_core::command::OldRows;
use tidemill_core::{Offset, PartitionId};

/// How long a `WAIT` takes at most when it does not say.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// What to do with a pipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PipeChange {
    /// `PAUSE`
    Pause,
    /// `RESUME`
    Resume,
    /// `REPAIR`: let stopped partitions go on where nothing new is passed over.
    Repair {
        /// Only these; all when empty.
        partitions: Vec<PartitionId>,
    },
    /// `RESET OFFSETS TO …`, `SKIP TO LATEST`
    Reset {
        /// Where to.
        to: ResetTo,
        /// Only these; all when empty.
        partitions: Vec<PartitionId>,
        /// `KEEP ROWS` or `DELETE ROWS`: what becomes of rows that are there from that offset on.
        old_rows: Option<OldRows>,
    },
    /// `BACKFILL`: read what was skipped.
    Backfill {
        /// Only these; all when empty.
        partitions: Vec<PartitionId>,
    },
    /// `SET (…)`
    Set(Vec<Given>),
}

/// Where a reset goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResetTo {
    /// To what the source says.
    Position(StartPosition),
    /// To exact offsets.
    Exact(Vec<(PartitionId, Offset)>),
}

/// A setting and the value that it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Its name, in small letters.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Where the value stands.
    pub place: Place,
}

/// What to wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// Until everything that is in the source now can be queried.
    CaughtUp,
    /// Until these offsets can be queried.
    Offsets(Vec<(PartitionId, Offset)>),
}

const CHANGES: &[&str] = &["PAUSE", "RESUME", "REPAIR", "RESET", "SKIP", "BACKFILL", "SET"];

/// Reads what follows `ALTER`.
pub(super) fn alter(cursor: &mut Cursor<'_>) -> Result<Statement, QueryError> {
    if cursor.accept("TABLE") {
        let table = cursor.table_name("a table")?;
        if !cursor.accept("SET") {
            let why =
                "a table's columns cannot be altered yet: create another one and a pipe that fills it from the start";
            return Err(match cursor.peek_word().map(|word| word.to_uppercase()).as_deref() {
                Some("ADD" | "DROP" | "RENAME" | "ALTER" | "MODIFY") => QueryError::invalid(why).at(cursor.place()),
                _ => cursor.expected("SET and settings in brackets", &["SET"]),
            });
        }
        let settings = given(cursor, "a table", create_table::check_alterable)?;
        cursor.end()?;
        return Ok(Statement::AlterTable { table, settings });
    }
    if cursor.accept("CLUSTER") {
        cursor.expect("SET", &["SET"])?;
        let settings = given(cursor, "the cluster", check_cluster)?;
        cursor.end()?;
        return Ok(Statement::AlterCluster { settings });
    }
    if !cursor.accept("PIPE") {
        return Err(cursor.expected("TABLE, PIPE or CLUSTER", &["TABLE", "PIPE", "CLUSTER"]));
    }
    let pipe = cursor.name("a pipe")?;
    let change = change(cursor)?;
    cursor.end()?;
    Ok(Statement::AlterPipe { pipe, change })
}

/// Whether `key` is a setting of the cluster.
fn check_cluster(name: &Named, key: &str) -> Result<(), QueryError> {
    const SETTINGS: &[&str] = &["replicas", "min_replicas"];
    if SETTINGS.contains(&key) {
        return Ok(());
    }
    let hint = did_you_mean(key, SETTINGS.iter().copied());
    Err(QueryError::invalid(format!("the cluster has no setting '{}'{hint}", name.name)).at(name.place))
}

fn change(cursor: &mut Cursor<'_>) -> Result<PipeChange, QueryError> {
    let Some(word) = cursor.peek_word().map(|word| word.to_uppercase()) else {
        return Err(cursor.expected("what to do with the pipe", CHANGES));
    };
    if !CHANGES.contains(&word.as_str()) {
        return Err(cursor.expected(&CHANGES.join(", "), CHANGES));
    }
    cursor.bump();
    Ok(match word.as_str() {
        "PAUSE" => PipeChange::Pause,
        "RESUME" => PipeChange::Resume,
        "REPAIR" => PipeChange::Repair {
            partitions: partitions(cursor)?,
        },
        "BACKFILL" => PipeChange::Backfill {
            partitions: partitions(cursor)?,
        },
        "SKIP" => {
            cursor.expect("TO", &["TO"])?;
            cursor.expect("LATEST", &["LATEST"])?;
            PipeChange::Reset {
                to: ResetTo::Position(StartPosition::Latest),
                partitions: partitions(cursor)?,
                old_rows: None,
            }
        }
        "RESET" => reset(cursor)?,
        _ => PipeChange::Set(given(cursor, "a pipe", create_pipe::check_alterable)?),
    })
}

fn reset(cursor: &mut Cursor<'_>) -> Result<PipeChange, QueryError> {
    const TARGETS: &[&str] = &["EARLIEST", "LATEST", "TIMESTAMP"];
    cursor.expect("OFFSETS", &["OFFSETS"])?;
    cursor.expect("TO", &["TO"])?;
    let to = if cursor.peek_is("(") {
        ResetTo::Exact(offsets(cursor)?)
    } else if cursor.accept("EARLIEST") {
        ResetTo::Position(StartPosition::Earliest)
    } else if cursor.accept("LATEST") {
        ResetTo::Position(StartPosition::Latest)
    } else if cursor.accept("TIMESTAMP") {
        let place = cursor.place();
        let value = cursor.literal("a time in single quotes")?;
        let wrong = || QueryError::invalid(format!("'{value}' is no time such as '2026-01-31T08:00:00Z'")).at(place);
        ResetTo::Position(StartPosition::TimestampMs(
            quantity::timestamp_ms(&value).ok_or_else(wrong)?,
        ))
    } else {
        return Err(cursor.expected("EARLIEST, LATEST, TIMESTAMP '…' or (partition = offset, …)", TARGETS));
    };
    let partitions = match to {
        ResetTo::Exact(_) => Vec::new(),
        ResetTo::Position(_) => partitions(cursor)?,
    };
    let old_rows = if cursor.accept("KEEP") {
        Some(OldRows::Keep)
    } else if cursor.accept("DELETE") {
        Some(OldRows::Delete)
    } else {
        None
    };
    match old_rows {
        Some(_) => cursor.expect("ROWS", &["ROWS"])?,
        None => cursor.end_or(&["PARTITION", "KEEP", "DELETE"])?,
    };
    Ok(PipeChange::Reset {
        to,
        partitions,
        old_rows,
    })
}

/// `PARTITION n` or `PARTITION (n, …)`, if it stands here; empty if not.
fn partitions(cursor: &mut Cursor<'_>) -> Result<Vec<PartitionId>, QueryError> {
    if !cursor.accept("PARTITION") && !cursor.accept("PARTITIONS") {
        return Ok(Vec::new());
    }
    if !cursor.accept("(") {
        return Ok(vec![PartitionId(cursor.number("the number of a partition")?)]);
    }
    let mut numbers = Vec::new();
    loop {
        numbers.push(PartitionId(cursor.number("the number of a partition")?));
        if cursor.accept(")") {
            return Ok(numbers);
        }
        cursor.expect(",", &[])?;
    }
}

/// `(partition = offset, …)`
fn offsets(cursor: &mut Cursor<'_>) -> Result<Vec<(PartitionId, Offset)>, QueryError> {
    cursor.expect("(", &[])?;
    let mut offsets: Vec<(PartitionId, Offset)> = Vec::new();
    loop {
        let place = cursor.place();
        let partition = PartitionId(cursor.number("the number of a partition")?);
        if offsets.iter().any(|(known, _)| *known == partition) {
            return Err(QueryError::invalid(format!("partition {partition} is given twice")).at(place));
        }
        cursor.expect("=", &[])?;
        offsets.push((partition, Offset(cursor.number("an offset")?)));
        if cursor.accept(")") {
            return Ok(offsets);
        }
        cursor.expect(",", &[])?;
    }
}

/// `(name = value, …)`; `check` says whether a setting of that name can be given here.
fn given(
    cursor: &mut Cursor<'_>,
    of: &str,
    check: fn(&Named, &str) -> Result<(), QueryError>,
) -> Result<Vec<Given>, QueryError> {
    cursor.expect("(", &[])?;
    let mut settings: Vec<Given> = Vec::new();
    loop {
        let name = cursor.dotted_name(&format!("a setting of {of}"))?;
        let key = create_pipe::key_of(&name.name);
        if settings.iter().any(|known| known.key == key) {
            return Err(QueryError::invalid(format!("'{}' is given twice", name.name)).at(name.place));
        }
        check(&name, &key)?;
        cursor.expect("=", &[])?;
        let place = cursor.place();
        let value = cursor.word_or_literal(&format!("the value of {key}"))?;
        settings.push(Given { key, value, place });
        if cursor.accept(")") {
            return Ok(settings);
        }
        if !cursor.accept(",") {
            return Err(cursor.expected("',' or ')'", &[]));
        }
    }
}

/// Reads what follows `WAIT`.
pub(super) fn wait(cursor: &mut Cursor<'_>) -> Result<Statement, QueryError> {
    cursor.expect("FOR", &["FOR"])?;
    let (pipe, until) = if cursor.accept("PIPE") {
        let pipe = cursor.name("a pipe")?;
        cursor.expect("CAUGHT", &["CAUGHT"])?;
        cursor.expect("UP", &["UP"])?;
        (pipe, WaitFor::CaughtUp)
    } else if cursor.accept("OFFSET") || cursor.accept("OFFSETS") {
        let offsets = offsets(cursor)?;
        cursor.expect("OF", &["OF"])?;
        cursor.expect("PIPE", &["PIPE"])?;
        (cursor.name("a pipe")?, WaitFor::Offsets(offsets))
    } else {
        let known = &["PIPE", "OFFSET"];
        return Err(cursor.expected(
            "PIPE name CAUGHT UP, or OFFSET (partition = offset, …) OF PIPE name",
            known,
        ));
    };
    let mut timeout = WAIT_TIMEOUT;
    if cursor.accept("TIMEOUT") {
        let place = cursor.place();
        let value = cursor.literal("a duration, such as '30s'")?;
        let wrong = || QueryError::invalid(format!("'{value}' is no duration such as '30s'")).at(place);
        timeout = Duration::from_millis(quantity::milliseconds(&value).ok_or_else(wrong)?);
    }
    cursor.end_or(&["TIMEOUT"])?;
    Ok(Statement::Wait { pipe, until, timeout })
}

/// Reads what follows `REPLAY`.
pub(super) fn replay(cursor: &mut Cursor<'_>) -> Result<Statement, QueryError> {
    cursor.expect("REJECTED", &["REJECTED"])?;
    let pipe = cursor.name("a pipe")?;
    let condition = match cursor.accept("WHERE") {
        true => Some(cursor.rest()),
        false => {
            cursor.end_or(&["WHERE"])?;
            None
        }
    };
    if condition.as_deref() == Some("") {
        return Err(cursor.expected("a condition over the columns of system.rejected", &[]));
    }
    Ok(Statement::ReplayRejected { pipe, condition })
}
