//! Random columns and JSON that fits them more or less: what is decoded is what a slow reading says.
#![no_main]

#[path = "../../ingest/tests/json/property.rs"]
mod property;

libfuzzer_sys::fuzz_target!(|data: &[u8]| property::random_values(data));
