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
mod disk;
mod life;
mod log;
mod manager;
pub mod mutant;
mod nemesis;
mod network;
mod node;
mod oracle;
mod runtime;
mod tally;
#[path = "../../raft/src/timing.rs"]
mod timing;
mod types;
mod world;

pub use tally::Tally;

use mutant::Mutant;
use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};
use tidemill_sim::Simulation;
use tidemill_sim::seeds::Violation;
use world::World;

/// The simulation of this crate.
#[derive(Clone, Copy, Debug)]
pub struct ReplicatedCatalog;

impl Simulation for ReplicatedCatalog {
    const WORD: &'static str = "raft";
    const SEEDS: u64 = 200;
    const SEEDS_FOR_MUTANTS: u64 = 2_000;
    const ENOUGH: u64 = 400;
    type Mutant = Mutant;
    type Tally = Tally;

    fn history(seed: u64, mutant: Option<Mutant>, tells: bool) -> (Result<Tally, Violation>, Vec<String>) {
        hush();
        let world = Arc::new(World::new(seed, mutant, tells));
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
        let gave_up = "the simulated runtime gave up: a task runs without end, or nobody has anything to do";
        lived.unwrap_or_else(|_| (Err(Violation::new("PANIC: nobody panics", gave_up)), vec![]))
    }
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
