//! Hot standbys: whoever takes over has the rows in memory already, and every row is there once all the same.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use tidemill_chaos_tests::failover::{self, Fault, Standby, measure};
use tidemill_chaos_tests::scenario::{self, exactly_once};

/// Flushes are so far apart that there is much to be read again, were anything read again.
async fn nothing_is_read_again(fault: Fault, rounds: u32) {
    let options = failover::Options {
        fault,
        rounds,
        rate: 5_000,
        flush_age_ms: 5_000,
        standby: Standby::Hot,
    };
    for (i, round) in measure(&options).await.unwrap().iter().enumerate() {
        assert!(round.takeovers.kept > 0, "round {i}: {round:?}");
        assert_eq!(round.takeovers.read_again, 0, "round {i}: {round:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_from_a_node_that_is_killed() {
    nothing_is_read_again(Fault::Kill, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_from_a_node_that_is_stopped_and_goes_on() {
    nothing_is_read_again(Fault::Pause, 1).await;
}

/// Whatever the standbys have when nodes are killed in any order, also nothing: with rejected records, a producer and a
/// reader that believes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn every_row_is_there_once() {
    let options = scenario::Options {
        seed: 3,
        rows: 300_000,
        bad: 40,
        rate: Some(20_000),
        kills_per_node: 2,
        flush_age_ms: 3_000,
        standby: Standby::Hot,
    };
    let outcome = exactly_once(&options).await.unwrap();
    println!("recovered after {:?}", outcome.recoveries);
}
