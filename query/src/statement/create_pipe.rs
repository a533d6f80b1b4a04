//! `CREATE PIPE`: which source fills which table, and from where on.

use super::words::Cursor;
use super::{Named, PipeDefinition, create_table, pipe_settings, quantity};
use crate::error::QueryError;
use crate::nearest::did_you_mean;
use crate::ports::StartPosition;
use std::collections::BTreeMap;
use tidemill_core::catalog::{KafkaSource, PipeSettings};
use tidemill_core::format::JsonFormat;

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
    format: JsonFormat,
    client: BTreeMap<String, String>,
    settings: PipeSettings,
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
        settings: options.settings,
        format: options.format,
        start: options.start.unwrap_or(StartPosition::Earliest),
    })
}

fn options(cursor: &mut Cursor<'_>) -> Result<Options, QueryError> {
    let mut options = Options::default();
    let mut seen: Vec<String> = Vec::new();
    cursor.expect("(", &[])?;
    loop {
        let name = cursor.dotted_name("an option")?;
        let key = key_of(&name.name);
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

/// Whether a pipe has a setting of that name that may be changed later.
pub(super) fn check_alterable(name: &Named, key: &str) -> Result<(), QueryError> {
    if ["topic", "format", "start"].contains(&key) {
        let message = format!("{key} is fixed when a pipe is created; create another pipe");
        return Err(QueryError::invalid(message).at(name.place));
    }
    check_name(name, key)
}

/// Gives `source` and `settings` the value of an option that may be changed later.
pub(crate) fn change(
    source: &mut KafkaSource,
    settings: &mut PipeSettings,
    format: &mut JsonFormat,
    key: &str,
    value: &str,
) -> Result<(), QueryError> {
    if let Some((option, name)) = format_option(key) {
        return format.set(option, name, value).map_err(QueryError::invalid);
    }
    if let Some(name) = key.strip_prefix(CLIENT) {
        source.client.insert(name.to_owned(), value.to_owned());
        return Ok(());
    }
    match key {
        "brokers" if value.trim().is_empty() => Err(QueryError::invalid("brokers must not be empty")),
        "brokers" => {
            value.clone_into(&mut source.brokers);
            Ok(())
        }
        _ => pipe_settings::set(settings, key, value),
    }
}

/// The option, in small letters. What names a column or a header keeps its own.
pub(super) fn key_of(name: &str) -> String {
    match name.split_once('.') {
        Some((option, rest)) => {
            let option = option.to_lowercase();
            match JsonFormat::NAMED_OPTIONS.contains(&option.as_str()) {
                true => format!("{option}.{rest}"),
                false => name.to_lowercase(),
            }
        }
        None => name.to_lowercase(),
    }
}

/// An option of the format, and the name behind its point.
fn format_option(key: &str) -> Option<(&str, Option<&str>)> {
    match key.split_once('.') {
        Some((option, name)) => {
            (JsonFormat::NAMED_OPTIONS.contains(&option) && !name.is_empty()).then_some((option, Some(name)))
        }
        None => JsonFormat::OPTIONS.contains(&key).then_some((key, None)),
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
    if OPTIONS.contains(&key) || pipe_settings::NAMES.contains(&key) || format_option(key).is_some() {
        return Ok(());
    }
    let hint = match key.contains('.') {
        true => format!("; settings of the client library are written client.{key}"),
        false if key == "header" => "; a header is named behind a point: header.name = 'column'".to_owned(),
        false => {
            let known = OPTIONS.iter().chain(pipe_settings::NAMES).chain(JsonFormat::OPTIONS);
            did_you_mean(key, known.copied())
        }
    };
    Err(QueryError::invalid(format!("KAFKA has no option '{}'{hint}", name.name)).at(name.place))
}

fn take(options: &mut Options, key: &str, value: String) -> Result<(), QueryError> {
    let of_format = format_option(key);
    if value.trim().is_empty() && (OPTIONS.contains(&key) || of_format.is_some()) {
        return Err(QueryError::invalid(format!("{key} must not be empty")));
    }
    if let Some((option, name)) = of_format {
        return options.format.set(option, name, &value).map_err(QueryError::invalid);
    }
    match key {
        "brokers" => options.brokers = Some(value),
        "topic" => options.topic = Some(value),
        "format" if value.eq_ignore_ascii_case("json") => {}
        "format" => return Err(QueryError::invalid(format!("the format is 'json', not '{value}'"))),
        "start" => options.start = Some(start(&value)?),
        setting if pipe_settings::NAMES.contains(&setting) => {
            pipe_settings::set(&mut options.settings, setting, &value)?;
        }
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
