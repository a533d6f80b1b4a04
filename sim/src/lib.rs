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
mod dice;
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
pub mod report;
mod source;
mod stranded;
mod supervisor;
mod task;
mod time;
mod together;
mod wal;
mod world;
mod writer;

pub use oracle::Violation;
pub use world::Tally;

use mutant::Mutant;
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
    ended(seed, World::new(seed, mutant, false)).0
}

/// As [`run`], and what happens, line by line.
pub fn tell(seed: u64, mutant: Option<Mutant>) -> (Result<Tally, Failure>, Vec<String>) {
    ended(seed, World::new(seed, mutant, true))
}

fn ended(seed: u64, mut world: World) -> (Result<Tally, Failure>, Vec<String>) {
    let ran = world.run().map_err(|violation| Failure { seed, violation });
    (ran.map(|()| world.tally), world.told.unwrap_or_default())
}
