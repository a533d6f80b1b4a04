//! The decoder under random input, bounded: the properties that `scripts/fuzz` looks for longer.

mod property;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_counted_once_and_disturb_nothing(data in proptest::collection::vec(any::<u8>(), 0..400)) {
        property::any_bytes(&data);
    }

    /// Bytes that look like JSON get further than others.
    #[test]
    fn broken_json_is_counted_once_and_disturbs_nothing(
        choices in proptest::collection::vec(any::<u8>(), 40),
        words in proptest::collection::vec(proptest::sample::select(WORDS), 0..60),
    ) {
        let mut data = choices;
        for word in words {
            data.extend_from_slice(word.as_bytes());
        }
        property::any_bytes(&data);
    }

    #[test]
    fn decoded_values_are_those_of_a_slow_reading(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        property::random_values(&data);
    }
}

const WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"a\"",
    "\"b\"",
    "\"c\"",
    "\"a\":",
    "\"b\":",
    "\"zz\":",
    "\"_extra\":",
    "null",
    "true",
    "1",
    "-2.5e3",
    "\"\\ud83d\\ude00\"",
    "\"\\ud800\"",
    "\"2026-01-31T08:00:00Z\"",
    "\u{0}",
    "\u{0}{",
    "}\u{0}",
    "\u{0}~\u{0}",
    "é",
    " ",
    "\n",
    "\"",
    "\\",
    "{\"a\":1}",
    "{\"b\":[1,2]}",
    "99999999999999999999",
    "{}",
];
