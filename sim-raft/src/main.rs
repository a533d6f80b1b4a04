//! `sim-raft`: runs simulated histories and says what came of them. Ends in failure when a rule is broken.

fn main() -> std::process::ExitCode {
    tidemill_sim::command::main::<tidemill_sim_raft::ReplicatedCatalog>()
}
