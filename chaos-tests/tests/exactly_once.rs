//! Exactly once while every node is killed in turn: fixed seeds, and a fresh one from `TIDEMILL_SEED`.

use tidemill_chaos_tests::failover::Standby;
use tidemill_chaos_tests::scenario::{Options, exactly_once};

async fn run(seed: u64) {
    let options = Options {
        seed,
        rows: 300_000,
        bad: 40,
        rate: Some(20_000),
        kills_per_node: 1,
        flush_age_ms: 1500,
        standby: Standby::Cold,
    };
    let outcome = exactly_once(&options)
        .await
        .unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
    println!(
        "seed {seed}: {:?}, recovered after {:?}",
        outcome.counted, outcome.recoveries
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn fixed_seed_1() {
    run(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fixed_seed_2() {
    run(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fresh_seed() {
    let given = std::env::var("TIDEMILL_SEED").ok().and_then(|seed| seed.parse().ok());
    run(given.unwrap_or_else(|| rand::random_range(0..1_000_000))).await;
}
