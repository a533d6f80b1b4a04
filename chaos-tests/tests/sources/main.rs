//! What sources do, one test for each class of complaint about other systems: transaction markers, compaction, expired
//! and recreated and truncated logs, bad records, operators who skip and come back. Each runs once as it is and once
//! with a node killed in its middle; after each the ledgers balance and `tidemill check` agrees.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod losses;
mod operators;
mod records;

use losses::*;
use operators::*;
use records::*;
use tidemill_chaos_tests::stage::Stage;

type Done = anyhow::Result<()>;

/// Two tests for each case: as it is, and with a node killed where the case says.
macro_rules! cases {
    ($($(#[$doc:meta])* $name:ident: $brokers:expr $(, $settings:expr)*;)*) => {
        $($(#[$doc])* mod $name {
            #[tokio::test(flavor = "multi_thread")]
            async fn undisturbed() {
                super::run($brokers, &[$($settings),*], false, super::$name).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn with_a_node_killed() {
                super::run($brokers, &[$($settings),*], true, super::$name).await;
            }
        })*
    };
}

cases! {
    transactions_leave_gaps_and_no_lag: 1;
    a_compacted_topic_is_read_to_its_end: 1;
    expired_offsets_are_lost_and_nothing_else: 1;
    retention_shorter_than_a_pause_loses_what_expired_and_warns_before: 1;
    a_recreated_topic_with_a_longer_log_is_not_read_on: 1;
    a_topic_recreated_while_it_is_read_gives_no_row_to_the_old_one: 1;
    partitions_that_a_recreated_topic_lacks_are_forgotten: 1;
    an_unclean_election_is_noticed_after_the_log_has_regrown: 3;
    bad_records_halt_when_asked_and_are_replayed_once: 1;
    many_bad_records_block_nothing: 1;
    idle_partitions_hold_nothing_up: 1;
    a_hot_partition_starves_nobody: 1;
    what_was_skipped_is_backfilled_exactly: 1;
    rows_that_are_read_again_take_the_place_of_the_old_ones: 1;
    a_log_that_ends_below_the_next_offset_is_noticed: 3;
    a_kafka_that_denies_groups_is_read_all_the_same: 1,
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found=true";
    what_expires_first_is_read_first: 1;
}

async fn run(brokers: u32, settings: &[&str], kill: bool, case: impl AsyncFnOnce(&mut Stage) -> Done) {
    let mut stage = Stage::new(brokers, settings, kill).await.unwrap();
    if let Err(error) = case(&mut stage).await {
        let folder = stage.world.keep();
        panic!("{error:#}; the world is kept in {}", folder.display());
    }
    stage.finish().await.unwrap();
}
