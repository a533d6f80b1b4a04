//! Any bytes as records: every one is counted once, and none disturbs another.
#![no_main]

#[allow(dead_code, reason = "the other target uses the rest")]
#[path = "../../ingest/tests/json/property.rs"]
mod property;

libfuzzer_sys::fuzz_target!(|data: &[u8]| property::any_bytes(data));
