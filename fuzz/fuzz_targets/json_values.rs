//! Random columns and JSON that fits them more or less: what is decoded is what a slow reading says.
#![no_main]

#[allow(dead_code, reason = "the other target uses the rest")]
#[path = "../../ingest/tests/json/property.rs"]
mod property;

libfuzzer_sys::fuzz_target!(|data: &[u8]| property::random_values(data));
