//! Deterministic simulation of the control plane.
//!
//! Three or five nodes and those that take their place, their disks, their network and the topic that they read, in one thread and
//! without real time. What decides is the program's own: the catalog and its commands, placement of leaders, standbys and
//! replicas, who votes, and the invariants, all from `core`. What surrounds them is modelled: the Raft group as what it promises
//! (`group.rs`), tasks that lead or stand by (`task.rs`), write-ahead logs (`wal.rs`), manager (`manager.rs`), members
//! (`members.rs`), the supervisor and the keeper of a node, programs that write (`writer.rs`), the topic (`source.rs`).
//!
//! A seed decides everything: which faults a run has, when, and what chance does in between. After every command the invariants are
//! checked; queries are asked all the time; and in the end everything is mended, and must become well within a
//! minute of simulated time, with every record there once.
//!
//! What it cannot find: mistakes in Raft, in the code that the models stand for, and in anything about bytes. For those there
//! are the tests of `raft`, and the fault tests on real processes in `chaos-tests`.

mod checks;
mod client;
pub mod command;
pub mod dice;
mod disks;
mod event;
mod group;
mod keeper;
mod manager;
mod members;
pub mod mutant;
mod nemesis;
mod node;
mod operator;
mod oracle;
mod proposals;
pub mod seeds;
mod source;
mod stranded;
mod supervisor;
mod tally;
mod task;
mod time;
mod together;
mod wal;
mod world;
mod writer;

pub use seeds::Simulation;
pub use tally::Tally;

use mutant::Mutant;
use seeds::Violation;
use world::World;

/// The simulation of this crate.
#[derive(Clone, Copy, Debug)]
pub struct ControlPlane;

impl Simulation for ControlPlane {
    const WORD: &'static str = "sim";
    const SEEDS: u64 = 1_000;
    const SEEDS_FOR_MUTANTS: u64 = 12_000;
    const ENOUGH: u64 = 1_000;
    type Mutant = Mutant;
    type Tally = Tally;

    fn history(seed: u64, mutant: Option<Mutant>, tells: bool) -> (Result<Tally, Violation>, Vec<String>) {
        let mut world = World::new(seed, mutant, tells);
        let ran = world.run();
        (ran.map(|()| world.tally), world.told.unwrap_or_default())
    }
}
