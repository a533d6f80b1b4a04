//! How the records of a pipe become rows: its options, what they may be, and which table they fit.
//!
//! Pure rules; the decoder that follows them is in `tidemill-ingest`.

use crate::catalog::Table;
use crate::schema::{Column, ColumnType};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The column for unknown fields, if the pipe names no other.
pub const CAPTURE_COLUMN: &str = "_extra";

/// A choice of an option: its values and their names in SQL.
macro_rules! choice {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $value:ident = $word:literal),+ $(,)? }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$doc])* $value,)+
        }

        impl $name {
            const WORDS: &[(&str, $name)] = &[$(($word, $name::$value)),+];
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $($name::$value => $word),+ })
            }
        }
    };
}

choice! {
    /// What becomes of fields that the table does not have.
    OnUnknownField {
        /// They are passed over.
        #[default]
        Ignore = "ignore",
        /// They are kept as text in a column.
        Capture = "capture",
        /// They reject the record.
        Reject = "reject",
    }
}

choice! {
    /// How many objects a record has.
    Records {
        /// One, which becomes a row.
        #[default]
        One = "one",
        /// Any number, one after the other or in an array; each becomes a row.
        Many = "many",
    }
}

choice! {
    /// What becomes of records without a payload.
    Tombstones {
        /// They are counted and passed over.
        #[default]
        Filter = "filter",
        /// They are rejected.
        Reject = "reject",
    }
}

choice! {
    /// What a number in a TIMESTAMP column counts, from 1970-01-01 00:00 UTC on.
    TimestampUnit {
        /// Seconds.
        Seconds = "s",
        /// Milliseconds.
        #[default]
        Milliseconds = "ms",
        /// Microseconds.
        Microseconds = "us",
        /// Nanoseconds.
        Nanoseconds = "ns",
    }
}

choice! {
    /// What becomes of numbers in quotes, for columns of numbers.
    QuotedNumbers {
        /// They reject the record; DECIMAL takes them all the same.
        #[default]
        Reject = "reject",
        /// They are taken as numbers.
        Accept = "accept",
    }
}

/// How JSON records become rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JsonFormat {
    /// What becomes of fields that the table does not have.
    pub on_unknown_field: OnUnknownField,
    /// Where captured fields go; [`CAPTURE_COLUMN`] if it is not said.
    pub capture_column: Option<String>,
    /// How many objects a record has.
    pub records: Records,
    /// What becomes of records without a payload.
    pub tombstones: Tombstones,
    /// What a number in a TIMESTAMP column counts.
    pub timestamp_unit: TimestampUnit,
    /// The same for single columns, by their names.
    pub timestamp_units: BTreeMap<String, TimestampUnit>,
    /// What becomes of numbers in quotes.
    pub quoted_numbers: QuotedNumbers,
    /// The column that is filled from the key of a record.
    pub key_column: Option<String>,
    /// The columns that are filled from headers, by the names of the headers.
    pub headers: BTreeMap<String, String>,
}

impl JsonFormat {
    /// The names of its options in `CREATE PIPE`.
    pub const OPTIONS: &[&str] = &[
        "on_unknown_field",
        "capture_column",
        "records",
        "tombstones",
        "timestamp_unit",
        "quoted_numbers",
        "key_column",
    ];
    /// Options that are followed by a point and a name: of a column, and of a header.
    pub const NAMED_OPTIONS: &[&str] = &["timestamp_unit", "header"];

    /// Sets an option to `value`; `name` is what follows the option and a point.
    ///
    /// # Errors
    /// When there is no such option, or no such value of it; the text says which there are.
    pub fn set(&mut self, option: &str, name: Option<&str>, value: &str) -> Result<(), String> {
        match (option, name) {
            ("on_unknown_field", None) => self.on_unknown_field = one_of(option, OnUnknownField::WORDS, value)?,
            ("capture_column", None) => self.capture_column = Some(value.to_owned()),
            ("records", None) => self.records = one_of(option, Records::WORDS, value)?,
            ("tombstones", None) => self.tombstones = one_of(option, Tombstones::WORDS, value)?,
            ("timestamp_unit", None) => self.timestamp_unit = one_of(option, TimestampUnit::WORDS, value)?,
            ("timestamp_unit", Some(column)) => {
                let unit = one_of(option, TimestampUnit::WORDS, value)?;
                self.timestamp_units.insert(column.to_owned(), unit);
            }
            ("quoted_numbers", None) => self.quoted_numbers = one_of(option, QuotedNumbers::WORDS, value)?,
            ("key_column", None) => self.key_column = Some(value.to_owned()),
            ("header", Some(header)) => {
                self.headers.insert(header.to_owned(), value.to_owned());
            }
            _ => return Err(format!("there is no option '{option}'")),
        }
        Ok(())
    }

    /// The options that are not at their defaults: name and value, as [`JsonFormat::set`] takes them.
    pub fn options(&self) -> Vec<(String, Option<String>, String)> {
        let plain = Self::default();
        let mut options = Vec::new();
        let mut say = |option: &str, name: Option<&str>, value: &dyn fmt::Display| {
            options.push((option.to_owned(), name.map(str::to_owned), value.to_string()));
        };
        if self.on_unknown_field != plain.on_unknown_field {
            say("on_unknown_field", None, &self.on_unknown_field);
        }
        if let Some(column) = &self.capture_column {
            say("capture_column", None, column);
        }
        if self.records != plain.records {
            say("records", None, &self.records);
        }
        if self.tombstones != plain.tombstones {
            say("tombstones", None, &self.tombstones);
        }
        if self.timestamp_unit != plain.timestamp_unit {
            say("timestamp_unit", None, &self.timestamp_unit);
        }
        for (column, unit) in &self.timestamp_units {
            say("timestamp_unit", Some(column), unit);
        }
        if self.quoted_numbers != plain.quoted_numbers {
            say("quoted_numbers", None, &self.quoted_numbers);
        }
        if let Some(column) = &self.key_column {
            say("key_column", None, column);
        }
        for (header, column) in &self.headers {
            say("header", Some(header), column);
        }
        options
    }

    /// The column that takes unknown fields, if one does.
    pub fn captures_into(&self) -> Option<&str> {
        let column = self.capture_column.as_deref().unwrap_or(CAPTURE_COLUMN);
        (self.on_unknown_field == OnUnknownField::Capture).then_some(column)
    }

    /// What a number in `column` counts, if it is a TIMESTAMP.
    pub fn timestamp_unit_of(&self, column: &str) -> TimestampUnit {
        self.timestamp_units.get(column).copied().unwrap_or(self.timestamp_unit)
    }

    /// Whether the options can be used together, for `table`.
    ///
    /// # Errors
    /// When they cannot; the text names the option and says what to do.
    pub fn check(&self, table: &Table) -> Result<(), String> {
        let find = |name: &str| table.columns.iter().find(|column| column.name == name);
        if let Some(column) = self.captures_into() {
            check_capture(self, table, find(column))?;
        } else if let Some(column) = &self.capture_column {
            return Err(format!(
                "capture_column = '{column}' needs on_unknown_field = 'capture'"
            ));
        }
        for column in self.timestamp_units.keys() {
            let is_time = |data_type: &ColumnType| *data_type == ColumnType::Timestamp;
            match find(column) {
                None => return Err(no_column(&format!("timestamp_unit.{column}"), table, column)),
                Some(found) if found.data_type.any(&is_time) => {}
                Some(found) => {
                    return Err(format!(
                        "timestamp_unit.{column}: column '{column}' is {}, not TIMESTAMP",
                        found.data_type
                    ));
                }
            }
        }
        let key = self.key_column.iter().map(|column| ("key_column".to_owned(), column));
        let headers = self
            .headers
            .iter()
            .map(|(name, column)| (format!("header.{name}"), column));
        let mut taken: BTreeSet<&str> = self.captures_into().into_iter().collect();
        for (option, column) in key.chain(headers) {
            match find(column) {
                None => return Err(no_column(&option, table, column)),
                Some(found) if found.data_type.is_nested() => {
                    return Err(format!(
                        "{option}: column '{column}' is {}; text becomes no such value",
                        found.data_type
                    ));
                }
                Some(_) => {}
            }
            if !taken.insert(column) {
                return Err(format!(
                    "{option}: column '{column}' is filled by another option already"
                ));
            }
        }
        Ok(())
    }
}

fn check_capture(format: &JsonFormat, table: &Table, found: Option<&Column>) -> Result<(), String> {
    match (found, format.captures_into().unwrap_or_default()) {
        (None, column) if format.capture_column.is_some() => Err(no_column("capture_column", table, column)),
        (None, column) => Err(format!(
            "on_unknown_field = 'capture' needs a column for the fields: table '{}' has no column '{column}'; \
             declare it as VARCHAR, or name another by capture_column",
            table.name
        )),
        (Some(found), _) if found.data_type == ColumnType::Text && found.nullable => Ok(()),
        (Some(found), column) => Err(format!(
            "capture_column: column '{column}' is {}{}; it must be VARCHAR and may be NULL",
            found.data_type,
            if found.nullable { "" } else { " NOT NULL" },
        )),
    }
}

fn no_column(option: &str, table: &Table, column: &str) -> String {
    format!("{option}: table '{}' has no column '{column}'", table.name)
}

/// The one of `words` that `value` is; an error that names them all, if it is none.
pub fn one_of<T: Copy>(option: &str, words: &[(&str, T)], value: &str) -> Result<T, String> {
    let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(value));
    found.map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<_> = words.iter().map(|(word, _)| format!("'{word}'")).collect();
        let (last, others) = known
            .split_last()
            .map_or(("", &[][..]), |(last, others)| (last.as_str(), others));
        format!("{option} is {} or {last}, not '{value}'", others.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::TableSettings;
    use crate::{SchemaVersion, TableId};

    fn table(columns: &[(&str, ColumnType, bool)]) -> Table {
        let column = |(name, data_type, nullable): &(&str, ColumnType, bool)| Column {
            name: (*name).to_owned(),
            data_type: data_type.clone(),
            nullable: *nullable,
            default: None,
        };
        Table {
            id: TableId(1),
            name: "t".to_owned(),
            columns: columns.iter().map(column).collect(),
            schema_version: SchemaVersion(1),
            min_schema: SchemaVersion(1),
            order_by: Vec::new(),
            partition_by: None,
            shards: 1,
            settings: TableSettings::default(),
            deleted: Vec::new(),
            former: Vec::new(),
            created_at_ms: 0,
        }
    }

    fn format(options: &[(&str, Option<&str>, &str)]) -> JsonFormat {
        let mut format = JsonFormat::default();
        for (option, name, value) in options {
            format.set(option, *name, value).unwrap();
        }
        format
    }

    #[test]
    fn options_are_set_and_said_again() {
        let all = [
            ("on_unknown_field", None, "capture"),
            ("capture_column", None, "rest"),
            ("records", None, "many"),
            ("tombstones", None, "reject"),
            ("timestamp_unit", None, "s"),
            ("timestamp_unit", Some("at"), "ns"),
            ("quoted_numbers", None, "accept"),
            ("key_column", None, "k"),
            ("header", Some("trace-id"), "trace"),
        ];
        let set = format(&all);
        let said = set.options();
        let said: Vec<_> = said
            .iter()
            .map(|(option, name, value)| (option.as_str(), name.as_deref(), value.as_str()))
            .collect();
        assert_eq!(said, all);
        assert_eq!(set.timestamp_unit_of("at"), TimestampUnit::Nanoseconds);
        assert_eq!(set.timestamp_unit_of("other"), TimestampUnit::Seconds);
        assert!(JsonFormat::default().options().is_empty());
        assert_eq!(
            JsonFormat::default().set("records", None, "two"),
            Err("records is 'one' or 'many', not 'two'".to_owned())
        );
        assert_eq!(
            JsonFormat::default().set("timestamp_unit", None, "m"),
            Err("timestamp_unit is 's', 'ms', 'us' or 'ns', not 'm'".to_owned())
        );
    }

    #[test]
    fn options_must_fit_the_table() {
        use ColumnType as T;
        let table = table(&[
            ("id", T::Int64, false),
            ("_extra", T::Text, true),
            ("strict", T::Text, false),
            ("at", T::Timestamp, true),
            ("list", T::Array(Box::new(T::Timestamp)), true),
        ]);
        for fits in [
            &[("on_unknown_field", None, "capture")][..],
            &[
                ("timestamp_unit", Some("at"), "s"),
                ("timestamp_unit", Some("list"), "s"),
            ],
            &[("key_column", None, "id"), ("header", Some("a"), "strict")],
        ] {
            assert_eq!(format(fits).check(&table), Ok(()));
        }
        for (refused, says) in [
            (
                &[("capture_column", None, "_extra")][..],
                "needs on_unknown_field = 'capture'",
            ),
            (
                &[("on_unknown_field", None, "capture"), ("capture_column", None, "rest")],
                "capture_column: table 't' has no column 'rest'",
            ),
            (
                &[
                    ("on_unknown_field", None, "capture"),
                    ("capture_column", None, "strict"),
                ],
                "column 'strict' is VARCHAR NOT NULL; it must be VARCHAR and may be NULL",
            ),
            (
                &[("timestamp_unit", Some("id"), "s")],
                "column 'id' is BIGINT, not TIMESTAMP",
            ),
            (&[("timestamp_unit", Some("no"), "s")], "has no column 'no'"),
            (&[("header", Some("h"), "no")], "header.h: table 't' has no column 'no'"),
            (&[("header", Some("h"), "list")], "column 'list' is ARRAY<TIMESTAMP>"),
            (
                &[("header", Some("a"), "id"), ("header", Some("b"), "id")],
                "header.b: column 'id' is filled by another option already",
            ),
            (
                &[("on_unknown_field", None, "capture"), ("key_column", None, "_extra")],
                "key_column: column '_extra' is filled by another option already",
            ),
        ] {
            let said = format(refused).check(&table).unwrap_err();
            assert!(said.contains(says), "{said}");
        }
        let without = format(&[("on_unknown_field", None, "capture")]);
        let mut bare = table;
        bare.columns.remove(1);
        assert!(
            without
                .check(&bare)
                .unwrap_err()
                .contains("has no column '_extra'; declare it as VARCHAR")
        );
    }
}
