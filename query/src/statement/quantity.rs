//! Amounts with units: bytes, durations and times, as people write them.

use datafusion::arrow::compute::kernels::cast_utils::string_to_timestamp_nanos;

/// Bytes: `1048576`, `64MiB`, `64 MB` (a million), `1.5GiB`.
pub(super) fn bytes(text: &str) -> Option<u64> {
    scaled(text, |unit| {
        Some(match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            _ => return None,
        })
    })
}

/// A duration in milliseconds: `500ms`, `10s`, `1.5 min`, `1h`. A bare number is refused.
pub(super) fn milliseconds(text: &str) -> Option<u64> {
    scaled(text, |unit| {
        Some(match unit.to_ascii_lowercase().as_str() {
            "ms" => 1,
            "s" | "sec" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        })
    })
}

/// A time (RFC 3339; UTC where no zone is given) as milliseconds since 1970.
pub(super) fn timestamp_ms(text: &str) -> Option<i64> {
    string_to_timestamp_nanos(text)
        .ok()
        .map(|nanos| nanos.div_euclid(1_000_000))
}

fn scaled(text: &str, factor: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number = number.replace('_', "");
    let factor = factor(unit.trim())?;
    match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(factor),
        Err(_) => {
            let product = number.parse::<f64>().ok()? * factor as f64;
            (product >= 0.0 && product < u64::MAX as f64).then_some(product.round() as u64)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_with_their_units() {
        assert_eq!(bytes("64MiB"), Some(64 << 20));
        assert_eq!(bytes("64 MB"), Some(64_000_000));
        assert_eq!(bytes("1.5GiB"), Some(3 << 29));
        assert_eq!(bytes("100_000"), Some(100_000));
        assert_eq!(bytes("64 parsecs"), None);
        assert_eq!(bytes("many"), None);
        assert_eq!(milliseconds("10s"), Some(10_000));
        assert_eq!(milliseconds("500ms"), Some(500));
        assert_eq!(milliseconds("10"), None);
        assert_eq!(timestamp_ms("2026-01-02T03:04:05Z"), Some(1_767_323_045_000));
        assert_eq!(timestamp_ms("1969-12-31T23:59:59.999Z"), Some(-1));
        assert_eq!(timestamp_ms("2026-01-02T03:04:05+01:00"), Some(1_767_319_445_000));
        assert_eq!(timestamp_ms("soon"), None);
    }
}
