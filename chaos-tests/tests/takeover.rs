//! A node is killed, stopped or cut off while events flow: another takes over, and what the old one still believes, when it
//! comes back, changes nothing. How long it takes is measured by `scripts/bench failover`, not judged here.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use tidemill_chaos_tests::failover::{Fault, Options, Standby, measure};

async fn every_row_is_there_once(fault: Fault, rounds: u32) {
    let options = Options {
        fault,
        rounds,
        rate: 5_000,
        flush_age_ms: 500,
        standby: Standby::Cold,
    };
    let done = measure(&options).await.unwrap();
    assert_eq!(done.len(), rounds as usize);
}

#[tokio::test(flavor = "multi_thread")]
async fn from_the_leader_of_the_raft_group() {
    every_row_is_there_once(Fault::KillRaft, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_node_that_is_stopped_and_goes_on() {
    every_row_is_there_once(Fault::Pause, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_node_that_is_cut_off() {
    every_row_is_there_once(Fault::Cut, 2).await;
}
