//! Numbers, digit by digit.

use super::Fault;

/// A number of JSON's grammar, cut into its digits.
struct Number<'t> {
    negative: bool,
    whole: &'t [u8],
    fraction: &'t [u8],
    exponent: i64,
}

/// Exponents beyond this are as good as this one: no type has so many digits, and no text so many zeros.
const FAR: i64 = 1 << 40;

impl<'t> Number<'t> {
    fn of(text: &'t str) -> Option<Self> {
        let (negative, rest) = match text.as_bytes() {
            [b'-', rest @ ..] => (true, rest),
            rest => (false, rest),
        };
        let (whole, rest) = digits(rest);
        if whole.is_empty() || (whole.len() > 1 && whole[0] == b'0') {
            return None;
        }
        let (fraction, rest) = match rest {
            [b'.', rest @ ..] => {
                let (fraction, rest) = digits(rest);
                if fraction.is_empty() {
                    return None;
                }
                (fraction, rest)
            }
            rest => (&rest[..0], rest),
        };
        let exponent = match rest {
            [] => 0,
            [b'e' | b'E', rest @ ..] => {
                let (sign, rest) = match rest {
                    [b'-', rest @ ..] => (-1, rest),
                    [b'+', rest @ ..] => (1, rest),
                    rest => (1, rest),
                };
                let (exponent, rest) = digits(rest);
                if exponent.is_empty() || !rest.is_empty() {
                    return None;
                }
                let value = exponent
                    .iter()
                    .fold(0, |value, digit| (value * 10 + i64::from(digit - b'0')).min(FAR));
                sign * value
            }
            _ => return None,
        };
        Some(Self {
            negative,
            whole,
            fraction,
            exponent,
        })
    }
}

/// The digits at the beginning, and what follows them.
fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|c| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

/// Whether `text` is a number as JSON writes them.
pub fn is_number(text: &str) -> bool {
    Number::of(text).is_some()
}

/// The value of a short whole number in plain digits; `None` says only that it must be read more carefully.
#[inline]
pub(super) fn plain(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes() {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    // So many digits cannot overflow.
    if digits.is_empty() || digits.len() > 18 || (digits[0] == b'0' && digits.len() > 1) {
        return None;
    }
    let mut value = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value * 10 + i64::from(digit - b'0');
    }
    Some(if negative { -value } else { value })
}

/// `text * 10^shift` without its fraction, and whether there was one. The whole part is cut towards zero.
pub(super) fn shifted(text: &str, shift: i64) -> Result<(i128, Cut), Fault> {
    let number = Number::of(text).ok_or(Fault::NotANumber)?;
    let kept = number.whole.len() as i64 + number.exponent + shift;
    let (mut value, mut cut) = (0_i128, false);
    let mut place = 0;
    for digit in number.whole.iter().chain(number.fraction) {
        if place < kept {
            value = ten_times(value, digit - b'0')?;
        } else if *digit != b'0' {
            cut = true;
            break;
        }
        place += 1;
    }
    if value != 0 {
        // Ends soon: a number other than zero overflows after 39 steps.
        while place < kept {
            value = ten_times(value, 0)?;
            place += 1;
        }
    }
    let cut = match (cut, number.negative) {
        (false, _) => Cut::Nothing,
        (true, false) => Cut::FromPositive,
        (true, true) => Cut::FromNegative,
    };
    Ok((if number.negative { -value } else { value }, cut))
}

/// What was cut off a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Nothing, or zeros.
    Nothing,
    /// Something of a number above zero.
    FromPositive,
    /// Something of a number below zero.
    FromNegative,
}

fn ten_times(value: i128, digit: u8) -> Result<i128, Fault> {
    value
        .checked_mul(10)
        .and_then(|value| value.checked_add(i128::from(digit)))
        .ok_or(Fault::OutOfRange)
}

/// The whole number that `text` is. Digits behind the point and an exponent are fine as long as the value is
/// whole: `3`, `3.0` and `3e2` are, `3.5` is not.
///
/// # Errors
/// When it is no number, has a fraction, or does not fit 128 bits.
#[inline]
pub fn integer(text: &str) -> Result<i128, Fault> {
    if let Some(value) = plain(text) {
        return Ok(i128::from(value));
    }
    match shifted(text, 0)? {
        (value, Cut::Nothing) => Ok(value),
        _ => Err(Fault::Fraction),
    }
}

/// The decimal that `text` is, times `10^scale`. Zeros at the end do not count as digits.
///
/// # Errors
/// When it is no number, or has more digits than `precision` and `scale` have room for.
pub fn decimal(text: &str, precision: u8, scale: i8) -> Result<i128, Fault> {
    let (value, cut) = shifted(text, i64::from(scale)).map_err(|fault| match fault {
        Fault::OutOfRange => Fault::TooLong,
        other => other,
    })?;
    // 10^38 fits 128 bits.
    if value.unsigned_abs() >= 10_u128.pow(u32::from(precision.min(38))) {
        return Err(Fault::TooLong);
    }
    match cut {
        Cut::Nothing => Ok(value),
        _ => Err(Fault::TooFine),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_exact_however_they_are_written() {
        for (text, value) in [
            ("0", 0),
            ("-0", 0),
            ("7", 7),
            ("-7", -7),
            ("3.0", 3),
            ("-3.000", -3),
            ("1e3", 1000),
            ("1.5E+1", 15),
            ("1200e-2", 12),
            ("0.0", 0),
            ("0e999999999999999999999", 0),
            ("18446744073709551615", i128::from(u64::MAX)),
            ("-9223372036854775808", i128::from(i64::MIN)),
            ("1.8446744073709551615e19", i128::from(u64::MAX)),
            ("99999999999999999999", 99_999_999_999_999_999_999),
        ] {
            assert_eq!(integer(text), Ok(value), "{text}");
        }
        // As a float this would be 3.
        assert_eq!(integer("3.00000000000000000000000000001"), Err(Fault::Fraction));
        assert_eq!(integer("3.5"), Err(Fault::Fraction));
        assert_eq!(integer("1e-1"), Err(Fault::Fraction));
        assert_eq!(integer("1e40"), Err(Fault::OutOfRange));
        assert_eq!(integer("1e999999999999999999999"), Err(Fault::OutOfRange));
        for text in [
            "", "-", "+1", "01", "1.", ".5", "1e", "1e+", "1 ", "0x1", "NaN", "1_000", "-a", "1.5.5",
        ] {
            assert_eq!(integer(text), Err(Fault::NotANumber), "{text}");
            assert!(!is_number(text), "{text}");
        }
    }

    #[test]
    fn decimals_are_never_rounded() {
        assert_eq!(decimal("12.34", 5, 2), Ok(1234));
        assert_eq!(decimal("-0.1", 5, 2), Ok(-10));
        assert_eq!(decimal("1.500", 5, 2), Ok(150));
        assert_eq!(decimal("12e-1", 5, 2), Ok(120));
        assert_eq!(decimal("999.99", 5, 2), Ok(99_999));
        assert_eq!(decimal("1000", 5, 2), Err(Fault::TooLong));
        assert_eq!(decimal("1.005", 5, 2), Err(Fault::TooFine));
        assert_eq!(decimal("1e-3", 5, 2), Err(Fault::TooFine));
        assert_eq!(decimal("1e60", 5, 2), Err(Fault::TooLong));
        let nines = "9".repeat(38);
        assert_eq!(decimal(&nines, 38, 0), Ok(10_i128.pow(38) - 1));
        assert_eq!(decimal(&format!("{nines}9"), 38, 0), Err(Fault::TooLong));
        assert_eq!(decimal(&format!("0.{nines}"), 38, 38), Ok(10_i128.pow(38) - 1));
        assert_eq!(decimal("ten", 5, 2), Err(Fault::NotANumber));
    }
}
