//! `CREATE PIPE`: which source fills which table, and from where on.

use super::words::Cursor;
use super::{Named, PipeDefinition, create_table, quantity};
use crate::error::QueryError;
use crate::nearest::did_you_mean;
use crate::ports::StartPosition;
use std::collections::BTreeMap;
use tidemill_core::catalog::KafkaSource;

const OPTIONS: &[&str] = &["brokers", "topic", "format", "start"];
const CLIENT: &str = "client.";

/// Settings of the client library that exactly-once depends on.
const OURS: &[&str] = &[
    "bootstrap.servers",
    "metadata.broker.list",
    "group.id",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "auto.offset.reset",
    "isolation.level",
];

#[derive(Default)]
struct Options {
    brokers: Option<String>,
    topic: Option<String>,
    start: Option<StartPosition>,
    client: BTreeMap<String, String>,
}

/// Reads what follows `CREATE PIPE`.
pub(super) fn parse(cursor: &mut Cursor<'_>) -> Result<PipeDefinition, QueryError> {
    let if_not_exists = create_table::if_not_exists(cursor)?;
    let name = cursor.name("a pipe")?;
    cursor.expect("INTO", &["INTO"])?;
    let table = cursor.table_name("a table")?;
    cursor.expect("FROM", &["FROM"])?;
    let kafka = cursor.place();
    cursor.expect("KAFKA", &["KAFKA"])?;
    let options = options(cursor)?;
    cursor.end()?;
    let needed = |option: Option<String>, name: &str, example: &str| {
        let missing = format!("KAFKA needs {name}: FROM KAFKA (brokers = 'host:9092', topic = 'name'), here {example}");
        option.ok_or_else(|| QueryError::invalid(missing).at(kafka))
    };
    let source = KafkaSource {
        brokers: needed(options.brokers, "brokers", "brokers is missing")?,
        topic: needed(options.topic, "topic", "topic is missing")?,
        client: options.client,
    };
    Ok(PipeDefinition {
        name,
        if_not_exists,
        table,
        source,
        start: options.start.unwrap_or(StartPosition::Earliest),
    })
}

fn options(cursor: &mut Cursor<'_>) -> Result<Options, QueryError> {
    let mut options = Options::default();
    let mut seen: Vec<String> = Vec::new();
    cursor.expect("(", &[])?;
    loop {
        let name = cursor.dotted_name("an option")?;
        let key = name.name.to_lowercase();
        if seen.contains(&key) {
            return Err(QueryError::invalid(format!("'{}' is given twice", name.name)).at(name.place));
        }
        check_name(&name, &key)?;
        cursor.expect("=", &[])?;
        let place = cursor.place();
        let value = cursor.literal(&format!("the value of {key}, in single quotes"))?;
        take(&mut options, &key, value).map_err(|e| e.at(place))?;
        seen.push(key);
        if cursor.accept(")") {
            return Ok(options);
        }
        if !cursor.accept(",") {
            return Err(cursor.expected("',' or ')'", &[]));
        }
    }
}

fn check_name(name: &Named, key: &str) -> Result<(), QueryError> {
    if let Some(setting) = key.strip_prefix(CLIENT) {
        if OURS.contains(&setting) {
            let message = format!("'{setting}' is set by Tidemill itself: exactly-once depends on it");
            return Err(QueryError::invalid(message).at(name.place));
        }
        return Ok(());
    }
    if OPTIONS.contains(&key) {
        return Ok(());
    }
    let hint = match key.contains('.') {
        true => format!("; settings of the client library are written client.{key}"),
        false => did_you_mean(key, OPTIONS.iter().copied()),
    };
    Err(QueryError::invalid(format!("KAFKA has no option '{}'{hint}", name.name)).at(name.place))
}

fn take(options: &mut Options, key: &str, value: String) -> Result<(), QueryError> {
    if value.trim().is_empty() && OPTIONS.contains(&key) {
        return Err(QueryError::invalid(format!("{key} must not be empty")));
    }
    match key {
        "brokers" => options.brokers = Some(value),
        "topic" => options.topic = Some(value),
        "format" if value.eq_ignore_ascii_case("json") => {}
        "format" => return Err(QueryError::invalid(format!("the format is 'json', not '{value}'"))),
        "start" => options.start = Some(start(&value)?),
        client => {
            options
                .client
                .insert(client.trim_start_matches(CLIENT).to_owned(), value);
        }
    }
    Ok(())
}

fn start(value: &str) -> Result<StartPosition, QueryError> {
    if value.eq_ignore_ascii_case("earliest") {
        return Ok(StartPosition::Earliest);
    }
    if value.eq_ignore_ascii_case("latest") {
        return Ok(StartPosition::Latest);
    }
    quantity::timestamp_ms(value)
        .map(StartPosition::TimestampMs)
        .ok_or_else(|| {
            let hint = did_you_mean(value, ["earliest", "latest"]);
            let known = "'earliest', 'latest' or a time such as '2026-01-31T08:00:00Z'";
            QueryError::invalid(format!("start is {known}, not '{value}'{hint}"))
        })
}
