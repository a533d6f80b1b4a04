//! The commands of the catalog, against all invariants: by an adversary, and case by case.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod fences;
mod hostile;
mod outdated;
mod replicas;
mod rules;
mod world;
mod writers;
