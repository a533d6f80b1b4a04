//! `sim-raft`: runs simulated histories and says what came of them. Ends in failure when a rule is broken.

fn main() -> std::process::ExitCode {
    use clap::Parser;
    match tidemill_sim_raft::command::run(&tidemill_sim_raft::command::Arguments::parse()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            std::process::ExitCode::FAILURE
        }
    }
}
