//! Any bytes as records: every one is counted once, and none disturbs another.
#![no_main]

#[path = "../../ingest/tests/json/property.rs"]
mod property;

libfuzzer_sys::fuzz_target!(|data: &[u8]| property::any_bytes(data));
