//! The settings of a pipe that may be given when it is created and changed later.

use super::quantity;
use crate::error::QueryError;
use crate::nearest::did_you_mean;
use tidemill_core::catalog::{Gaps, OnError, PipeSettings, Standby};
use tidemill_core::format;

/// Their names.
pub(crate) const NAMES: &[&str] = &[
    "on_error",
    "max_rejected_ratio",
    "gaps",
    "commit_to_group",
    "headroom_alert",
    "standby",
];

/// Sets the setting called `key`.
pub(crate) fn set(settings: &mut PipeSettings, key: &str, value: &str) -> Result<(), QueryError> {
    match key {
        "on_error" => {
            settings.on_error = one_of(key, value, &[("reject", OnError::Reject), ("halt", OnError::Halt)])?;
        }
        "gaps" => settings.gaps = one_of(key, value, &[("alarm", Gaps::Alarm), ("expect", Gaps::Expect)])?,
        "commit_to_group" => settings.commit_to_group = one_of(key, value, &[("true", true), ("false", false)])?,
        "standby" => settings.standby = one_of(key, value, &[("cold", Standby::Cold), ("hot", Standby::Hot)])?,
        "max_rejected_ratio" if value.eq_ignore_ascii_case("none") => settings.max_rejected_permille = None,
        "max_rejected_ratio" => {
            let share = value.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
            let wrong = || {
                QueryError::invalid(format!(
                    "max_rejected_ratio is a number from 0 to 1 or 'none', not '{value}'"
                ))
            };
            settings.max_rejected_permille = Some((share.ok_or_else(wrong)? * 1000.0).round() as u16);
        }
        _ => {
            let seconds = quantity::milliseconds(value)
                .map(|ms| ms / 1000)
                .and_then(|s| u32::try_from(s).ok());
            let wrong = || QueryError::invalid(format!("headroom_alert is a duration such as '1h', not '{value}'"));
            settings.headroom_alert_s = seconds.ok_or_else(wrong)?;
        }
    }
    Ok(())
}

/// The settings as they are written in a statement, but for those at their default.
pub(crate) fn written(settings: &PipeSettings) -> Vec<String> {
    let usual = PipeSettings::default();
    let mut out = Vec::new();
    if settings.on_error != usual.on_error {
        out.push("on_error = 'halt'".to_owned());
    }
    if let Some(permille) = settings.max_rejected_permille {
        out.push(format!("max_rejected_ratio = '{}'", f64::from(permille) / 1000.0));
    }
    if settings.gaps != usual.gaps {
        out.push("gaps = 'expect'".to_owned());
    }
    if settings.commit_to_group != usual.commit_to_group {
        out.push("commit_to_group = 'false'".to_owned());
    }
    if settings.headroom_alert_s != usual.headroom_alert_s {
        out.push(format!("headroom_alert = '{}s'", settings.headroom_alert_s));
    }
    if settings.standby != usual.standby {
        out.push(format!("standby = '{}'", settings.standby.name()));
    }
    out
}

fn one_of<T: Copy>(key: &str, value: &str, known: &[(&str, T)]) -> Result<T, QueryError> {
    format::one_of(key, known, value).map_err(|wrong| {
        let hint = did_you_mean(value, known.iter().map(|(name, _)| *name));
        QueryError::invalid(wrong + &hint)
    })
}
