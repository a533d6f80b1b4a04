//! The settings of a query: their names, values and meaning, declared once. They come with each
//! call; nothing is kept here between calls.

use crate::error::QueryError;
use crate::nearest::did_you_mean;
use std::collections::BTreeMap;

/// What a query is allowed to see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Committed rows and those in the memtables of the shard leaders.
    #[default]
    Fresh,
    /// Committed rows only.
    Committed,
}

/// A setting that clients may give.
pub(crate) struct Setting {
    pub(crate) name: &'static str,
    pub(crate) default: &'static str,
    pub(crate) values: &'static [&'static str],
    pub(crate) description: &'static str,
}

/// Name of the setting that chooses a [`Consistency`].
pub(crate) const CONSISTENCY: &str = "tidemill.consistency";

/// Every setting.
pub(crate) const SETTINGS: &[Setting] = &[Setting {
    name: CONSISTENCY,
    default: "fresh",
    values: &["fresh", "committed"],
    description: "fresh: committed rows and those still in memory, which needs the leaders of all shards; \
                  committed: committed rows only, which needs no leader of a shard",
}];

/// The settings of one call, checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// What the query is allowed to see.
    pub consistency: Consistency,
}

impl Settings {
    /// Checks names and values. Names outside `tidemill.` are refused like unknown ones.
    pub fn parse(given: &BTreeMap<String, String>) -> Result<Self, QueryError> {
        let mut settings = Self::default();
        for (name, value) in given {
            settings.set(name, value)?;
        }
        Ok(settings)
    }

    /// The value of the setting called `name`, as clients spell it.
    pub(crate) fn value(&self, name: &str) -> Option<&'static str> {
        (name == CONSISTENCY).then_some(match self.consistency {
            Consistency::Fresh => "fresh",
            Consistency::Committed => "committed",
        })
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), QueryError> {
        let setting = find(name)?;
        let value = check_value(setting, value)?;
        if setting.name == CONSISTENCY {
            self.consistency = match value {
                "committed" => Consistency::Committed,
                _ => Consistency::Fresh,
            };
        }
        Ok(())
    }
}

/// The setting called `name`, or an error with the nearest one.
pub(crate) fn find(name: &str) -> Result<&'static Setting, QueryError> {
    SETTINGS
        .iter()
        .find(|setting| setting.name.eq_ignore_ascii_case(name))
        .ok_or_else(|| {
            let names = SETTINGS.iter().map(|setting| setting.name);
            let last_words = SETTINGS
                .iter()
                .map(|setting| (setting.name.rsplit('.').next().unwrap_or_default(), setting.name));
            let hint = match last_words.clone().find(|(word, _)| word.eq_ignore_ascii_case(name)) {
                Some((_, full)) => format!("; did you mean {full}?"),
                None => did_you_mean(name, names),
            };
            QueryError::invalid(format!("there is no setting called '{name}'{hint}"))
        })
}

/// The value as the setting spells it, or an error with the nearest one.
pub(crate) fn check_value(setting: &Setting, value: &str) -> Result<&'static str, QueryError> {
    setting
        .values
        .iter()
        .copied()
        .find(|known| known.eq_ignore_ascii_case(value))
        .ok_or_else(|| {
            let hint = did_you_mean(value, setting.values.iter().copied());
            QueryError::invalid(format!(
                "{} is {}, not '{value}'{hint}",
                setting.name,
                setting.values.join(" or ")
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str, value: &str) -> Result<Settings, String> {
        Settings::parse(&BTreeMap::from([(name.to_owned(), value.to_owned())])).map_err(|e| e.message)
    }

    #[test]
    fn settings_are_checked_by_name_and_value() {
        assert_eq!(
            Settings::parse(&BTreeMap::new()).unwrap().consistency,
            Consistency::Fresh
        );
        assert_eq!(
            parse("tidemill.consistency", "committed").unwrap().consistency,
            Consistency::Committed
        );
        assert_eq!(
            parse("tidemill.consistncy", "fresh").unwrap_err(),
            "there is no setting called 'tidemill.consistncy'; did you mean tidemill.consistency?"
        );
        assert_eq!(
            parse("consistency", "fresh").unwrap_err(),
            "there is no setting called 'consistency'; did you mean tidemill.consistency?"
        );
        assert_eq!(
            parse("tidemill.consistency", "comitted").unwrap_err(),
            "tidemill.consistency is fresh or committed, not 'comitted'; did you mean committed?"
        );
    }
}
