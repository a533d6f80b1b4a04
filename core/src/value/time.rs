//! Days and times, in the proleptic Gregorian calendar and in UTC.

use super::Fault;
use super::number::{Cut, integer, plain, shifted};
use crate::format::TimestampUnit;

/// 0001-01-01 and 9999-12-31 as days since 1970-01-01.
const DAYS: std::ops::RangeInclusive<i32> = -719_162..=2_932_896;
const MICROS_PER_DAY: i64 = 86_400_000_000;

/// The day that `YYYY-MM-DD` is, counted from 1970-01-01.
///
/// # Errors
/// When it is not written so, or there is no such day.
pub fn date(text: &str) -> Result<i32, Fault> {
    match text.len() {
        10 => day_of(text.as_bytes()).ok_or(Fault::NotADate),
        _ => Err(Fault::NotADate),
    }
}

/// The day with the number `text`, counted from 1970-01-01.
///
/// # Errors
/// When it is no whole number, or outside of the years 1 to 9999.
pub fn day(text: &str) -> Result<i32, Fault> {
    let outside = |fault| match fault {
        Fault::OutOfRange => Fault::OutsideYears,
        other => other,
    };
    let day = i32::try_from(integer(text).map_err(outside)?).map_err(|_| Fault::OutsideYears)?;
    match DAYS.contains(&day) {
        true => Ok(day),
        false => Err(Fault::OutsideYears),
    }
}

/// The microseconds from 1970-01-01 00:00 UTC to the time that `text` is: a date and a time of day as in RFC 3339,
/// in UTC unless an offset follows. Also taken: a blank for the `T`, no seconds, offsets without a colon or
/// without minutes, and a date alone, which is its midnight. Digits behind the sixth of a second are dropped.
///
/// # Errors
/// When it is not written so, there is no such time, or it is outside of the years 1 to 9999.
pub fn timestamp(text: &str) -> Result<i64, Fault> {
    read_timestamp(text.as_bytes()).ok_or(Fault::NotATime).and_then(within)
}

/// The microseconds from 1970-01-01 00:00 UTC to `text` units after it; below zero, before it. What is finer than
/// a microsecond is dropped, towards the past.
///
/// # Errors
/// When it is no number, or outside of the years 1 to 9999.
#[inline]
pub fn epoch(text: &str, unit: TimestampUnit) -> Result<i64, Fault> {
    let shift = match unit {
        TimestampUnit::Seconds => 6,
        TimestampUnit::Milliseconds => 3,
        TimestampUnit::Microseconds => 0,
        TimestampUnit::Nanoseconds => -3,
    };
    if let Some(value) = plain(text) {
        return within(match unit {
            TimestampUnit::Nanoseconds => value.div_euclid(1_000),
            // Beyond this it is outside of the years anyway.
            _ => value.saturating_mul(10_i64.pow(shift as u32)),
        });
    }
    let (value, cut) = shifted(text, i64::from(shift)).map_err(|fault| match fault {
        Fault::OutOfRange => Fault::OutsideYears,
        other => other,
    })?;
    let value = if cut == Cut::FromNegative { value - 1 } else { value };
    i64::try_from(value).map_err(|_| Fault::OutsideYears).and_then(within)
}

fn within(micros: i64) -> Result<i64, Fault> {
    let first = i64::from(*DAYS.start()) * MICROS_PER_DAY;
    let end = (i64::from(*DAYS.end()) + 1) * MICROS_PER_DAY;
    match first <= micros && micros < end {
        true => Ok(micros),
        false => Err(Fault::OutsideYears),
    }
}

/// The number in `text`, which is digits only.
fn number(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0, |value, c| {
        c.is_ascii_digit().then(|| value * 10 + i64::from(c - b'0'))
    })
}

fn day_of(text: &[u8]) -> Option<i32> {
    let [y0, y1, y2, y3, b'-', m0, m1, b'-', d0, d1] = text else {
        return None;
    };
    let year = number(&[*y0, *y1, *y2, *y3])?;
    let month = number(&[*m0, *m1])?;
    let day = number(&[*d0, *d1])?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + i64::from(leap),
        _ => return None,
    };
    if year < 1 || !(1..=days).contains(&day) {
        return None;
    }
    // Howard Hinnant's `days_from_civil`, https://howardhinnant.github.io/date_algorithms.html; for years after 0.
    let shifted = if month > 2 { year } else { year - 1 };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    i32::try_from(era * 146_097 + day_of_era - 719_468).ok()
}

fn read_timestamp(text: &[u8]) -> Option<i64> {
    let (date, time) = text.split_at_checked(10)?;
    let midnight = i64::from(day_of(date)?) * MICROS_PER_DAY;
    let ([b'T' | b't' | b' ', h0, h1, b':', m0, m1], mut rest) = (match time.split_at_checked(6) {
        Some(split) => split,
        None if time.is_empty() => return Some(midnight),
        None => return None,
    }) else {
        return None;
    };
    let hour = number(&[*h0, *h1]).filter(|hour| *hour <= 23)?;
    let minute = number(&[*m0, *m1]).filter(|minute| *minute <= 59)?;
    let (mut second, mut micros) = (0, 0);
    if let [b':', s0, s1, after @ ..] = rest {
        // A leap second counts as the first of the next minute.
        second = number(&[*s0, *s1]).filter(|second| *second <= 60)?;
        rest = after;
        if let [b'.', after @ ..] = rest {
            let end = after.iter().position(|c| !c.is_ascii_digit()).unwrap_or(after.len());
            let (digits, after) = after.split_at(end);
            if digits.is_empty() {
                return None;
            }
            let known = digits.len().min(6);
            micros = number(&digits[..known])? * 10_i64.pow(6 - known as u32);
            rest = after;
        }
    }
    let offset = offset_minutes(rest)?;
    Some(midnight + ((hour * 60 + minute - offset) * 60 + second) * 1_000_000 + micros)
}

/// Minutes east of UTC.
fn offset_minutes(text: &[u8]) -> Option<i64> {
    let (sign, hours, minutes) = match text {
        [] | [b'Z' | b'z'] => return Some(0),
        [sign @ (b'+' | b'-'), h0, h1, b':', m0, m1] | [sign @ (b'+' | b'-'), h0, h1, m0, m1] => {
            (sign, number(&[*h0, *h1])?, number(&[*m0, *m1])?)
        }
        [sign @ (b'+' | b'-'), h0, h1] => (sign, number(&[*h0, *h1])?, 0),
        _ => return None,
    };
    let minutes = (hours <= 23 && minutes <= 59).then_some(hours * 60 + minutes)?;
    Some(if *sign == b'-' { -minutes } else { minutes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_read_and_checked() {
        for (text, day) in [
            ("1970-01-01", 0),
            ("1969-12-31", -1),
            ("2000-02-29", 11_016),
            ("2026-03-31", 20_543),
            ("0001-01-01", *DAYS.start()),
            ("9999-12-31", *DAYS.end()),
        ] {
            assert_eq!(date(text), Ok(day), "{text}");
        }
        for text in [
            "",
            "2026-1-1",
            "2026-02-29",
            "1900-02-29",
            "2026-13-01",
            "2026-00-01",
            "2026-01-00",
            "2026-01-32",
            "0000-01-01",
            "2026/01/01",
            "2026-01-01T",
            "20260101",
            "2026-01-0é",
        ] {
            assert_eq!(date(text), Err(Fault::NotADate), "{text}");
        }
        assert_eq!(day("20543"), Ok(20_543));
        assert_eq!(day("-1.0"), Ok(-1));
        assert_eq!(day("0.5"), Err(Fault::Fraction));
        assert_eq!(day("2932897"), Err(Fault::OutsideYears));
        assert_eq!(day("1e50"), Err(Fault::OutsideYears));
    }

    #[test]
    fn times_are_read_in_utc() {
        let eight = 1_769_846_400_000_000;
        for (text, micros) in [
            ("2026-01-31T08:00:00Z", eight),
            ("2026-01-31T08:00:00", eight),
            ("2026-01-31 08:00:00z", eight),
            ("2026-01-31t08:00", eight),
            ("2026-01-31T09:30:00+01:30", eight),
            ("2026-01-31T06:00:00-0200", eight),
            ("2026-01-31T10:00+02", eight),
            ("2026-01-31T08:00:00.25Z", eight + 250_000),
            ("2026-01-31T08:00:00.123456999Z", eight + 123_456),
            ("2026-01-31T07:59:60Z", eight),
            ("2026-01-31", eight - 8 * 3_600_000_000),
            ("1969-12-31T23:59:59.999999Z", -1),
        ] {
            assert_eq!(timestamp(text), Ok(micros), "{text}");
        }
        for text in [
            "",
            "soon",
            "2026-01-31T",
            "2026-01-31T8:00:00",
            "2026-01-31T24:00:00",
            "2026-01-31T08:60:00",
            "2026-01-31T08:00:61",
            "2026-01-31T08:00:00.",
            "2026-01-31T08:00:00.Z",
            "2026-01-31T08:00:00+25:00",
            "2026-01-31T08:00:00 Z",
            "2026-01-31T08:00:00ZZ",
            "2026-02-30T08:00:00Z",
            "2026-01-31x08:00:00",
            "1769846400",
        ] {
            assert_eq!(timestamp(text), Err(Fault::NotATime), "{text}");
        }
        assert_eq!(timestamp("0001-01-01T00:00:00+01:00"), Err(Fault::OutsideYears));
        assert_eq!(timestamp("9999-12-31T23:59:59-01:00"), Err(Fault::OutsideYears));
    }

    #[test]
    fn epochs_have_their_unit() {
        let eight = 1_769_846_400_000_000;
        assert_eq!(epoch("1769846400", TimestampUnit::Seconds), Ok(eight));
        assert_eq!(epoch("1769846400000", TimestampUnit::Milliseconds), Ok(eight));
        assert_eq!(epoch("1769846400000000", TimestampUnit::Microseconds), Ok(eight));
        assert_eq!(epoch("1769846400000000999", TimestampUnit::Nanoseconds), Ok(eight));
        assert_eq!(epoch("1769846400.1234567", TimestampUnit::Seconds), Ok(eight + 123_456));
        assert_eq!(epoch("1.7698464e12", TimestampUnit::Milliseconds), Ok(eight));
        assert_eq!(epoch("-0.0000001", TimestampUnit::Seconds), Ok(-1));
        assert_eq!(epoch("-1", TimestampUnit::Nanoseconds), Ok(-1));
        // The wrong unit is noticed when it is off by a thousand or more.
        assert_eq!(
            epoch("1769846400000000", TimestampUnit::Milliseconds),
            Err(Fault::OutsideYears)
        );
        assert_eq!(epoch("1769846400000", TimestampUnit::Seconds), Err(Fault::OutsideYears));
        assert_eq!(epoch("1e300", TimestampUnit::Seconds), Err(Fault::OutsideYears));
        assert_eq!(epoch("soon", TimestampUnit::Seconds), Err(Fault::NotANumber));
    }
}
