//! Deterministic simulation of the replicated catalog with real openraft.
//!
//! Three to six nodes in one thread and without real time. Real are openraft, in the version and with the configuration that the product
//! uses it with (`raft/src/timing.rs` is compiled into this crate), the commands of the catalog and how they are applied, and the rules by
//! which members are changed. Modelled after `raft` are the log and the catalog on disk with their order of writes and syncs
//! (`disk.rs`, `log.rs`, `catalog.rs`), the network (`network.rs`), proposing and reading (`node.rs`), and the manager (`manager.rs`).
//!
//! A seed decides everything: which faults a run has, when, and what chance does in between. Everything that a node appends or applies
//! and every answer that a client gets is checked at once (`oracle.rs`); in the end everything is mended, and must be well
//! within half a minute of simulated time.
//!
//! What it cannot find: mistakes in the code that the models stand for, such as RocksDB and its options, tonic, or the encoding of
//! messages. For those there are the tests of `raft`, and the fault tests on real processes in `chaos-tests`.

mod catalog;
mod client;
pub mod command;
mod dice;
mod disk;
mod life;
mod log;
mod manager;
pub mod mutant;
mod nemesis;
mod network;
mod node;
mod oracle;
pub mod report;
mod runtime;
#[path = "../../raft/src/timing.rs"]
mod timing;
mod types;
mod world;

pub use oracle::Violation;
pub use world::Tally;

use mutant::Mutant;
use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};
use world::World;

/// A run that broke a rule.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// What it broke.
    pub violation: Violation,
}

/// Runs the history of `seed`, broken on purpose if that is asked for.
///
/// # Errors
/// The first rule that is broken.
pub fn run(seed: u64, mutant: Option<Mutant>) -> Result<Tally, Failure> {
    history(seed, mutant, false).0
}

/// As [`run`], and what happens, line by line.
pub fn tell(seed: u64, mutant: Option<Mutant>) -> (Result<Tally, Failure>, Vec<String>) {
    history(seed, mutant, true)
}

fn history(seed: u64, mutant: Option<Mutant>, told: bool) -> (Result<Tally, Failure>, Vec<String>) {
    hush();
    let world = Arc::new(World::new(seed, mutant, told));
    let mut runtime = SimRuntime::with_seed(seed);
    let living = world.clone();
    IS_SIMULATED.set(true);
    let lived = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async move {
            life::live(living.clone()).await;
            living.end()
        })
    }));
    drop(runtime);
    IS_SIMULATED.set(false);
    let (result, told) = match lived {
        Ok(ended) => ended,
        Err(_) => {
            let broken = Violation {
                rule: "PANIC: nobody panics".into(),
                found: "the simulated runtime gave up: a task runs without end, or nobody has anything to do".into(),
            };
            (Err(broken), vec![])
        }
    };
    (result.map_err(|violation| Failure { seed, violation }), told)
}

thread_local! {
    static IS_SIMULATED: Cell<bool> = const { Cell::new(false) };
}

/// A panic within a history is what came of it, and is told as that: nothing of it is printed.
fn hush() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !IS_SIMULATED.get() {
                loud(info);
            }
        }));
    });
}

#[cfg(test)]
mod tests;
