//! A node is killed, stopped or cut off while events flow: another takes over, and what the old one still believes, when it
//! comes back, changes nothing. How long it takes is measured by `scripts/bench failover`, not judged here.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::time::Duration;
use tidemill_chaos_tests::failover::{Fault, Options, Standby, measure};
use tidemill_chaos_tests::world::World;

const PATIENCE: Duration = Duration::from_secs(30);

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

/// What a node has under way when it stops by itself, since it hears nobody, is of no account when it leads again.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_alone_leads_in_another_epoch() {
    let world = &mut World::start(3).await.unwrap();
    // A shard for each node: none is moved for the sake of evenness meanwhile.
    world.run("CREATE TABLE t (id BIGINT) WITH (shards = 3)").await.unwrap();
    world.all_lead(PATIENCE).await.unwrap();
    let name = world.name(0).to_owned();
    let shard = world
        .ask(&format!("SELECT min(shard) FROM system.shards WHERE leader = '{name}'"))
        .await
        .unwrap();
    let epoch =
        format!("SELECT coalesce(max(epoch), 0) FROM system.shards WHERE shard = {shard} AND leader IS NOT NULL");
    let before = world.ask(&epoch).await.unwrap();
    for other in [1, 2] {
        world.signal(other, "STOP").unwrap();
    }
    // Nobody can take its shards meanwhile: there is no quorum.
    let stopped = async |world: &World| Ok(world.log(0)?.contains("tasks stop"));
    world.wait_for("it to stop its tasks", PATIENCE, stopped).await.unwrap();
    for other in [1, 2] {
        world.signal(other, "CONT").unwrap();
    }
    let another = async |world: &World| Ok(world.ask(&epoch).await? > before);
    let what = "the shard to be led in another epoch";
    world.wait_for(what, PATIENCE, another).await.unwrap();
    // It has lost its leader first, which is an epoch, too: it was not merely moved for the sake of evenness.
    assert!(world.ask(&epoch).await.unwrap() >= before + 2);
}
