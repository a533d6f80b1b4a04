//! What sources do, one test for each class of complaint about other systems: transaction markers, compaction, expired
//! and recreated and truncated logs, bad records, operators who skip and come back. Each runs once as it is and once
//! with a node killed in its middle; after each the ledgers balance and `tidemill check` agrees.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use tidemill_chaos_tests::script::Script;
use tidemill_chaos_tests::stage::{Stage, TOPIC};
use tidemill_chaos_tests::world::World;

type Done = anyhow::Result<()>;

/// Two tests for each case: as it is, and with a node killed where the case says.
macro_rules! cases {
    ($($(#[$doc:meta])* $name:ident: $brokers:expr $(, $settings:expr)*;)*) => {
        $($(#[$doc])* mod $name {
            #[tokio::test(flavor = "multi_thread")]
            async fn undisturbed() {
                super::run($brokers, &[$($settings),*], false, super::case::$name).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn with_a_node_killed() {
                super::run($brokers, &[$($settings),*], true, super::case::$name).await;
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

mod case {
    use super::*;

    pub async fn transactions_leave_gaps_and_no_lag(stage: &mut Stage) -> Done {
        stage.topic(1, &[])?;
        stage.pipe("").await?;
        let mut source = Script::transactional(&stage.world.brokers, TOPIC, "tx")?;
        source.begin()?;
        source.send_ids(0, 0..100)?;
        source.commit()?;
        source.begin()?;
        source.send_ids(0, 100..150)?;
        source.abort()?;
        stage.disturb().await?;
        source.begin()?;
        source.send_ids(0, 150..250)?;
        source.commit()?;
        stage.caught_up().await?;
        assert_eq!(stage.ask("SELECT count(*) FROM t").await?, 200);
        // A transaction that stays open holds back what is behind it, and says so.
        source.begin()?;
        source.send_ids(0, 1000..1010)?;
        source.flush()?;
        let held = "SELECT count(*) FROM system.partitions WHERE waiting_for LIKE 'a transaction at the source%'";
        stage.wait(held, 1).await?;
        assert_eq!(
            stage.ask("SELECT count(*) FROM t").await?,
            200,
            "uncommitted records are seen"
        );
        source.commit()?;
        // A tail of nothing but marks and aborted records is no lag.
        source.begin()?;
        source.send_ids(0, 2000..2005)?;
        source.abort()?;
        stage.caught_up().await?;
        stage.wait("SELECT sum(lag) FROM system.partitions", 0).await?;
        assert_eq!(
            stage.ask("SELECT sum(id) FROM t").await?,
            (0..100).sum::<i64>() + (150..250).sum::<i64>() + (1000..1010).sum::<i64>()
        );
        let ends = "SELECT coalesce(max(\"end\") - max(committed), -1) FROM system.partitions";
        stage.wait(ends, 0).await?;
        assert_eq!(stage.ask("SELECT sum(delivered) FROM system.ledger").await?, 210);
        assert_eq!(
            stage.ask("SELECT sum(absent) FROM system.ledger").await?,
            55 + 5,
            "aborted records and five marks"
        );
        assert!(
            stage
                .ask("SELECT count(*) FROM system.events WHERE kind = 'absent'")
                .await?
                >= 1,
            "no alarm"
        );
        stage.run("ALTER PIPE p SET (gaps = 'expect')").await
    }

    pub async fn a_compacted_topic_is_read_to_its_end(stage: &mut Stage) -> Done {
        let config = [
            "cleanup.policy=compact",
            "min.cleanable.dirty.ratio=0.01",
            "segment.ms=1000",
            "min.compaction.lag.ms=0",
            "delete.retention.ms=600000",
        ];
        stage.topic(1, &config)?;
        let mut source = Script::plain(&stage.world.brokers, TOPIC)?;
        for round in 0..20_u64 {
            for key in 0..50_u64 {
                let value = format!(r#"{{"id": {}}}"#, round * 50 + key);
                source.send(0, Some(&format!("k{key}")), Some(&value))?;
            }
            source.flush()?;
        }
        // A segment is compacted once it is not the last one.
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        source.send(0, Some("k0"), None)?;
        source.flush()?;
        let first = async || {
            let said = stage
                .world
                .kafka(&["consume", "--topic", TOPIC, "--from-beginning", "--timeout-ms", "2000"]);
            Ok(said.unwrap_or_default().lines().count() < 500)
        };
        stage
            .world
            .wait_for(
                "the log to be compacted",
                std::time::Duration::from_secs(60),
                async |_| first().await,
            )
            .await?;
        stage.pipe(", gaps = 'expect'").await?;
        stage.disturb().await?;
        stage.caught_up().await?;
        // What was compacted away is absent, what is left is there; the newest of every key is.
        let newest = stage.ask("SELECT count(*) FROM t WHERE id >= 950").await?;
        assert_eq!(newest, 50, "the newest values");
        stage
            .wait(
                "SELECT coalesce(max(\"end\") - max(committed), -1) FROM system.partitions",
                0,
            )
            .await?;
        assert_eq!(stage.ask("SELECT sum(passed) FROM system.ledger").await?, 1001);
        let absent = stage.ask("SELECT sum(absent) FROM system.ledger").await?;
        assert!(absent > 0, "nothing was compacted");
        Ok(())
    }

    pub async fn expired_offsets_are_lost_and_nothing_else(stage: &mut Stage) -> Done {
        stage.topic(2, &[])?;
        stage.pipe("").await?;
        let mut source = Script::plain(&stage.world.brokers, TOPIC)?;
        source.send_ids(0, 0..100)?;
        source.send_ids(1, 1000..1100)?;
        source.flush()?;
        stage.caught_up().await?;
        stage.run("ALTER PIPE p PAUSE").await?;
        source.send_ids(0, 100..300)?;
        source.send_ids(1, 1100..1300)?;
        source.flush()?;
        stage.world.kafka(&["delete-records", TOPIC, "0:150"])?;
        stage.run("ALTER PIPE p RESUME").await?;
        stage
            .wait(
                "SELECT count(*) FROM system.partitions WHERE stopped = 'expired' AND \"partition\" = 0",
                1,
            )
            .await?;
        stage.disturb().await?;
        // The other partition goes on, and the stop is there after the kill too.
        stage.wait("SELECT count(*) FROM t WHERE id >= 1000", 300).await?;
        assert_eq!(
            stage
                .ask("SELECT count(*) FROM system.partitions WHERE stopped = 'expired'")
                .await?,
            1
        );
        assert_eq!(
            stage
                .ask("SELECT count(*) FROM system.events WHERE kind = 'expired'")
                .await?,
            1
        );
        assert_eq!(
            stage.ask("SELECT sum(lost) FROM system.ledger").await?,
            0,
            "lost before anybody said so"
        );
        stage.run("ALTER PIPE p REPAIR").await?;
        stage.caught_up().await?;
        assert_eq!(stage.ask("SELECT count(*) FROM t WHERE id < 1000").await?, 250);
        assert_eq!(stage.ask("SELECT sum(lost) FROM system.ledger").await?, 50);
        Ok(())
    }

    pub async fn retention_shorter_than_a_pause_loses_what_expired_and_warns_before(stage: &mut Stage) -> Done {
        stage.topic(1, &["retention.ms=30000", "segment.ms=1000"])?;
        stage.pipe("").await?;
        let mut source = Script::plain(&stage.world.brokers, TOPIC)?;
        source.send_ids(0, 0..100)?;
        source.flush()?;
        stage.caught_up().await?;
        stage.run("ALTER PIPE p PAUSE").await?;
        source.send_ids(0, 100..200)?;
        source.flush()?;
        // The alarm comes while everything is still there.
        stage
            .wait("SELECT count(*) FROM system.events WHERE kind = 'headroom'", 1)
            .await?;
        assert_eq!(earliest(stage)?, 0, "the records had expired before the alarm");
        assert_eq!(
            stage
                .ask("SELECT count(*) FROM system.partitions WHERE headroom_alert AND headroom_seconds <= 30")
                .await?,
            1
        );
        stage.disturb().await?;
        stage
            .world
            .wait_for(
                "the records to expire",
                std::time::Duration::from_secs(60),
                async |world| Ok(offset_of(&world.kafka(&["offsets", TOPIC, "--earliest"])?)? >= 200),
            )
            .await?;
        source.send_ids(0, 200..250)?;
        source.flush()?;
        stage.run("ALTER PIPE p RESUME").await?;
        stage
            .wait("SELECT count(*) FROM system.partitions WHERE stopped = 'expired'", 1)
            .await?;
        stage.run("ALTER PIPE p REPAIR").await?;
        stage.caught_up().await?;
        assert_eq!(stage.ask("SELECT sum(lost) FROM system.ledger").await?, 100);
        assert_eq!(
            stage.ask("SELECT sum(id) FROM t").await?,
            (0..100).sum::<i64>() + (200..250).sum::<i64>()
        );
        Ok(())
    }

    /// The oldest offset of the only partition.
    fn earliest(stage: &Stage) -> anyhow::Result<u64> {
        offset_of(&stage.world.kafka(&["offsets", TOPIC, "--earliest"])?)
    }

    fn offset_of(said: &str) -> anyhow::Result<u64> {
        let line = said.lines().find(|line| line.starts_with(TOPIC)).unwrap_or_default();
        Ok(line.rsplit(':').next().unwrap_or_default().trim().parse()?)
    }

    pub async fn a_recreated_topic_with_a_longer_log_is_not_read_on(stage: &mut Stage) -> Done {
        stage.topic(1, &[])?;
        stage.pipe("").await?;
        let mut source = Script::plain(&stage.world.brokers, TOPIC)?;
        source.send_ids(0, 0..100)?;
        source.flush()?;
        stage.caught_up().await?;
        stage.run("ALTER PIPE p PAUSE").await?;
        drop(source);
        stage.world.kafka(&["topic", "delete", TOPIC])?;
        stage.topic(1, &[])?;
        let mut source = Script::plain(&stage.world.brokers, TOPIC)?;
        source.send_ids(0, 5000..5500)?;
        source.flush()?;
        stage.run("ALTER PIPE p RESUME").await?;
        stage.disturb().await?;
        stage
            .wait(
                "SELECT count(*) FROM system.partitions WHERE stopped = 'topic_recreated'",
                1,
            )
            .await?;
        stage.wait("SELECT count(*) FROM t", 100).await?;
        stage.run("ALTER PIPE p REPAIR").await?;
        stage.caught_up().await?;
        assert_eq!(
            stage.ask("SELECT count(*) FROM t WHERE id >= 5000").await?,
            500,
            "records of the new topic"
        );
        assert_eq!(
            stage.ask("SELECT count(*) FROM t WHERE id < 5000").await?,
            100,
            "records of the old topic"
        );
        stage.several_histories = true;
        Ok(())
    }

    pub async fn a_topic_recreated_while_it_is_read_gives_no_row_to_the_old_one(stage: &mut Stage) -> Done {
        stage.topic(1, &[])?;
        stage.pipe("").await?;
        let mut source = Script::plain(&stage.world.brokers, TOPIC)?;
        source.send_ids(0, 0..100)?;
        source.flush()?;
        stage.caught_up().await?;
        // What is not committed when its topic goes is read again or lost with it; here nothing is.
        stage.wait("SELECT sum(committed) FROM system.partitions", 100).await?;
        drop(source);
        stage.world.kafka(&["topic", "delete", TOPIC])?;
        stage.topic(1, &[])?;
        // More than the old one had, so that the next offset is there.
        let mut source = Script::plain(&stage.world.brokers, TOPIC)?;
        source.send_ids(0, 5000..5500)?;
        source.flush()?;
        stage.disturb().await?;
        let stopped = "SELECT count(*) FROM system.partitions WHERE stopped = 'topic_recreated'";
        stage.wait(stopped, 1).await?;
        stage.wait("SELECT count(*) FROM t", 100).await?;
        assert_eq!(stage.ask("SELECT max(committed) FROM system.partitions").await?, 100);
        stage.run("ALTER PIPE p REPAIR").await?;
        stage.caught_up().await?;
        assert_eq!(stage.ask("SELECT count(*) FROM t WHERE id >= 5000").await?, 500);
        assert_eq!(stage.ask("SELECT count(*) FROM t WHERE id < 5000").await?, 100);
        stage.several_histories = true;
        Ok(())
    }

    pub async fn partitions_that_a_recreated_topic_lacks_are_forgotten(stage: &mut Stage) -> Done {
        stage.topic(3, &[])?;
        stage.pipe("").await?;
        let mut source = Script::plain(&stage.world.brokers, TOPIC)?;
        for partition in 0..3 {
            source.send_ids(partition, 0..10)?;
        }
        source.flush()?;
        stage.caught_up().await?;
        // What is not committed when its topic goes is read again or lost with it; here nothing is.
        stage.wait("SELECT sum(committed) FROM system.partitions", 30).await?;
        drop(source);
        stage.world.kafka(&["topic", "delete", TOPIC])?;
        stage.topic(1, &[])?;
        let mut source = Script::plain(&stage.world.brokers, TOPIC)?;
        source.send_ids(0, 100..105)?;
        source.flush()?;
        stage.disturb().await?;
        let stopped = "SELECT count(*) FROM system.partitions WHERE stopped = 'topic_recreated'";
        stage.wait(stopped, 3).await?;
        stage.run("ALTER PIPE p REPAIR").await?;
        stage.caught_up().await?;
        assert_eq!(stage.ask("SELECT count(*) FROM system.partitions").await?, 1);
        assert_eq!(stage.ask("SELECT count(*) FROM t").await?, 35);
        // What became of the offsets of those that are gone is not forgotten.
        let ledgers = "SELECT count(DISTINCT \"partition\") FROM system.ledger WHERE stored = 10 AND balanced";
        assert_eq!(stage.ask(ledgers).await?, 3);
        stage.several_histories = true;
        Ok(())
    }

    pub async fn an_unclean_election_is_noticed_after_the_log_has_regrown(stage: &mut Stage) -> Done {
        topic_that_may_lose(stage)?;
        stage.pipe("").await?;
        let mut source = Script::plain(&stage.world.brokers, TOPIC)?;
        source.send_ids(0, 0..100)?;
        source.flush()?;
        stage.caught_up().await?;
        let (leader, follower) = replicas(stage)?;
        stage.world.kafka(&["stop", &follower])?;
        source.send_ids(0, 100..200)?;
        source.flush()?;
        stage.caught_up().await?;
        stage.run("ALTER PIPE p PAUSE").await?;
        assert_eq!(stage.ask("SELECT count(*) FROM t").await?, 200);
        drop(source);
        // The only copy of the second hundred goes, the old follower leads with the first hundred alone, and the log
        // grows past the old end: offsets 100 to 199 are other records now.
        stage.world.kafka(&["kill", &leader])?;
        stage.world.kafka(&["start", &follower])?;
        let mut source = Script::plain(&stage.world.brokers, TOPIC)?;
        source.send_ids(0, 7000..7300)?;
        source.flush()?;
        stage.run("ALTER PIPE p RESUME").await?;
        stage.disturb().await?;
        stage
            .wait("SELECT count(*) FROM system.partitions WHERE stopped = 'truncated'", 1)
            .await?;
        assert_eq!(
            stage.ask("SELECT count(*) FROM t").await?,
            200,
            "records of the other history were read"
        );
        stage.run("ALTER PIPE p REPAIR").await?;
        stage.caught_up().await?;
        assert_eq!(
            stage.ask("SELECT count(*) FROM t WHERE id >= 7000").await?,
            300,
            "new records were skipped"
        );
        assert_eq!(
            stage.ask("SELECT count(*) FROM t WHERE id < 7000").await?,
            200,
            "rows read before"
        );
        stage.several_histories = true;
        Ok(())
    }

    pub async fn a_log_that_ends_below_the_next_offset_is_noticed(stage: &mut Stage) -> Done {
        topic_that_may_lose(stage)?;
        let mut source = Script::plain(&stage.world.brokers, TOPIC)?;
        source.send_ids(0, 0..100)?;
        source.flush()?;
        let (leader, follower) = replicas(stage)?;
        stage.world.kafka(&["stop", &follower])?;
        source.send_ids(0, 100..200)?;
        source.flush()?;
        // It begins behind the last record, so that it knows no leader epoch to compare.
        stage.pipe(", start = 'latest'").await?;
        stage.run("ALTER PIPE p PAUSE").await?;
        drop(source);
        stage.world.kafka(&["kill", &leader])?;
        stage.world.kafka(&["start", &follower])?;
        let mut source = Script::plain(&stage.world.brokers, TOPIC)?;
        source.send_ids(0, 7000..7010)?;
        source.flush()?;
        stage.run("ALTER PIPE p RESUME").await?;
        stage.disturb().await?;
        let stopped = "SELECT count(*) FROM system.partitions WHERE stopped = 'end_below'";
        stage.wait(stopped, 1).await?;
        assert_eq!(stage.ask("SELECT count(*) FROM t").await?, 0);
        // Nobody knows which of the last records are new. So nobody guesses, and nothing is skipped in silence.
        let refused = format!("{:#}", stage.run("ALTER PIPE p REPAIR").await.unwrap_err());
        assert!(refused.contains("RESET OFFSETS TO (0 = offset) KEEP ROWS"), "{refused}");
        stage.run("ALTER PIPE p RESET OFFSETS TO (0 = 100) KEEP ROWS").await?;
        stage.caught_up().await?;
        assert_eq!(stage.ask("SELECT count(*) FROM t WHERE id >= 7000").await?, 10);
        assert_eq!(stage.ask("SELECT count(*) FROM t").await?, 10);
        Ok(())
    }

    /// A topic whose leader may be one that lacks acknowledged records.
    fn topic_that_may_lose(stage: &Stage) -> anyhow::Result<String> {
        stage.world.kafka(&[
            "topic",
            "create",
            TOPIC,
            "--partitions",
            "1",
            "--replication",
            "2",
            "--config",
            "unclean.leader.election.enable=true",
            "--config",
            "min.insync.replicas=1",
        ])
    }

    /// The broker that leads the partition, and the other that has a copy.
    fn replicas(stage: &Stage) -> anyhow::Result<(String, String)> {
        let said = stage.world.kafka(&["topic", "describe", TOPIC])?;
        let word = |name: &str| {
            said.split(name)
                .nth(1)
                .and_then(|rest| rest.split_whitespace().next())
                .unwrap()
                .to_owned()
        };
        let leader = word("Leader:");
        let other = word("Replicas:").split(',').find(|r| **r != leader).unwrap().to_owned();
        Ok((leader, other))
    }

    pub async fn bad_records_halt_when_asked_and_are_replayed_once(stage: &mut Stage) -> Done {
        stage.topic(1, &[])?;
        stage.pipe(", on_error = 'halt'").await?;
        let mut source = Script::plain(&stage.world.brokers, TOPIC)?;
        source.send_ids(0, 0..10)?;
        source.send(0, None, Some(r#"{"id": 10} {"id": 11}"#))?;
        source.send(0, None, Some("not JSON"))?;
        source.send_ids(0, 12..20)?;
        source.flush()?;
        stage
            .wait("SELECT count(*) FROM system.partitions WHERE stopped = 'bad_record'", 1)
            .await?;
        stage.wait("SELECT count(*) FROM t", 10).await?;
        stage.run("ALTER PIPE p REPAIR").await?;
        stage
            .wait("SELECT count(*) FROM system.events WHERE kind = 'bad_record'", 2)
            .await?;
        stage.disturb().await?;
        stage.run("ALTER PIPE p SET (on_error = 'reject')").await?;
        stage.run("ALTER PIPE p REPAIR").await?;
        stage.caught_up().await?;
        assert_eq!(stage.ask("SELECT count(*) FROM t").await?, 18);
        stage.wait("SELECT count(*) FROM system.rejected", 2).await?;
        // The fix: such records hold several rows. What cannot be mended stays where it is.
        stage.run("ALTER PIPE p SET (records = 'many')").await?;
        for _ in 0..2 {
            stage.run("REPLAY REJECTED p WHERE \"offset\" = 10").await?;
        }
        assert_eq!(stage.ask("SELECT count(*) FROM t").await?, 20);
        assert_eq!(stage.ask("SELECT sum(id) FROM t").await?, (0..20).sum::<i64>());
        assert_eq!(stage.ask("SELECT count(*) FROM system.rejected").await?, 1);
        assert_eq!(stage.ask("SELECT sum(rejected) FROM system.ledger").await?, 1);
        assert_eq!(
            stage
                .ask("SELECT count(*) FROM system.events WHERE kind = 'replay'")
                .await?,
            1
        );
        // One record has two rows.
        stage.several_histories = true;
        Ok(())
    }

    pub async fn many_bad_records_block_nothing(stage: &mut Stage) -> Done {
        const BAD: u64 = 65_536;
        stage.topic(1, &[])?;
        stage.pipe("").await?;
        let mut source = Script::plain(&stage.world.brokers, TOPIC)?;
        for n in 0..BAD {
            source.send(0, None, Some(&format!("bad {n}")))?;
            if n == BAD / 2 {
                stage.disturb().await?;
            }
        }
        source.send_ids(0, 1..=3)?;
        source.flush()?;
        stage.caught_up().await?;
        assert_eq!(stage.ask("SELECT sum(id) FROM t").await?, 6);
        stage.wait("SELECT count(*) FROM system.rejected", BAD as i64).await?;
        assert_eq!(stage.ask("SELECT sum(rejected) FROM system.ledger").await?, BAD as i64);
        // Too many of the last ones stop the partition, when that is wanted: at the next record that is read by that rule.
        stage.run("ALTER PIPE p SET (max_rejected_ratio = 0.5)").await?;
        let stopped = "SELECT count(*) FROM system.partitions WHERE stopped = 'too_many_rejected'";
        for _ in 0..100 {
            source.send_ids(0, 0..=0)?;
            source.flush()?;
            if stage.ask(stopped).await? == 1 {
                break;
            }
        }
        stage.wait(stopped, 1).await?;
        stage.run("ALTER PIPE p SET (max_rejected_ratio = 'none')").await?;
        stage.run("ALTER PIPE p REPAIR").await?;
        stage.caught_up().await?;
        assert_eq!(stage.ask("SELECT sum(id) FROM t").await?, 6);
        Ok(())
    }

    pub async fn what_was_skipped_is_backfilled_exactly(stage: &mut Stage) -> Done {
        stage.topic(2, &[])?;
        stage.pipe("").await?;
        let mut source = Script::plain(&stage.world.brokers, TOPIC)?;
        source.send_ids(0, 0..100)?;
        source.flush()?;
        stage.caught_up().await?;
        stage.run("WAIT FOR OFFSET (0 = 99) OF PIPE p").await?;
        // Tools that look at groups see what is committed, some time later.
        let seen = async |world: &World| {
            let said = world.kafka(&["groups", "--describe", "--group", "tidemill.demo.p"])?;
            Ok(said.lines().any(|line| line.split_whitespace().nth(3) == Some("100")))
        };
        let patience = std::time::Duration::from_secs(30);
        stage
            .world
            .wait_for("Kafka to know the offsets", patience, seen)
            .await?;
        stage.run("ALTER PIPE p PAUSE").await?;
        source.send_ids(0, 100..500)?;
        source.send_ids(1, 10_000..10_050)?;
        source.flush()?;
        stage.run("ALTER PIPE p SKIP TO LATEST PARTITION 0").await?;
        stage.run("ALTER PIPE p RESUME").await?;
        source.send_ids(0, 500..510)?;
        source.flush()?;
        stage.caught_up().await?;
        assert_eq!(stage.ask("SELECT count(*) FROM t WHERE id < 10000").await?, 110);
        assert_eq!(
            stage.ask("SELECT count(*) FROM t WHERE id >= 10000").await?,
            50,
            "the other partition"
        );
        assert_eq!(stage.ask("SELECT sum(lost) FROM system.ledger").await?, 400);
        stage.run("ALTER PIPE p BACKFILL").await?;
        stage.disturb().await?;
        stage.run("ALTER PIPE p BACKFILL").await?;
        stage.wait("SELECT count(*) FROM t WHERE id < 10000", 510).await?;
        assert_eq!(
            stage.ask("SELECT sum(id) FROM t WHERE id < 10000").await?,
            (0..510).sum::<i64>()
        );
        assert_eq!(
            stage.ask("SELECT count(*) FROM system.pipes").await?,
            2,
            "a second backfill of the same"
        );
        // Going back is refused until somebody says what shall become of the rows.
        assert!(
            stage
                .run("ALTER PIPE p RESET OFFSETS TO EARLIEST PARTITION 1")
                .await
                .is_err()
        );
        stage
            .wait(
                "SELECT sum(committed) FROM system.partitions WHERE pipe LIKE 'p_backfill%'",
                500,
            )
            .await
    }
    pub async fn rows_that_are_read_again_take_the_place_of_the_old_ones(stage: &mut Stage) -> Done {
        stage.topic(3, &[])?;
        stage.pipe("").await?;
        let mut source = Script::plain(&stage.world.brokers, TOPIC)?;
        source.send_ids(0, 0..100)?;
        source.send(0, None, Some(r#"{"id": "100"}"#))?;
        source.send(0, None, Some("not JSON"))?;
        source.send_ids(1, 1000..1100)?;
        source.send(2, None, Some(r#"{"id": "2000"}"#))?;
        source.flush()?;
        stage.caught_up().await?;
        stage.wait("SELECT count(*) FROM system.rejected", 3).await?;
        // The fix is for all records, also for those that are rows already: everything is read anew.
        stage.run("ALTER PIPE p SET (quoted_numbers = 'accept')").await?;
        let again = "ALTER PIPE p RESET OFFSETS TO EARLIEST PARTITION 0";
        assert!(stage.run(again).await.is_err(), "rows would have been doubled");
        stage.run(&format!("{again} DELETE ROWS")).await?;
        stage.disturb().await?;
        stage.caught_up().await?;
        assert_eq!(
            stage.ask("SELECT sum(id) FROM t WHERE _partition = 0").await?,
            (0..=100).sum::<i64>()
        );
        assert_eq!(stage.ask("SELECT count(*) FROM t").await?, 201);
        stage.wait("SELECT count(*) FROM system.rejected", 2).await?;
        // What is read again is not replayed as well, neither at once nor out of what a replay leaves over: one part
        // holds the rejects of two partitions of a shard.
        for _ in 0..2 {
            stage.run("REPLAY REJECTED p").await?;
            assert_eq!(stage.ask("SELECT count(*) FROM t").await?, 202);
            assert_eq!(stage.ask("SELECT count(*) FROM system.rejected").await?, 1);
        }
        // Once more, from the middle, while records come.
        source.send_ids(0, 102..200)?;
        stage.run("ALTER PIPE p RESET OFFSETS TO (0 = 50) DELETE ROWS").await?;
        source.flush()?;
        stage.caught_up().await?;
        assert_eq!(
            stage.ask("SELECT sum(id) FROM t WHERE _partition = 0").await?,
            (0..200).sum::<i64>() - 101
        );
        assert_eq!(
            stage
                .ask("SELECT count(*) FROM system.ledger WHERE \"partition\" = 1")
                .await?,
            1,
            "the other partition was touched"
        );
        Ok(())
    }

    pub async fn a_kafka_that_denies_groups_is_read_all_the_same(stage: &mut Stage) -> Done {
        stage.topic(1, &[])?;
        let groups = ["--deny-principal", "User:*", "--operation", "All", "--group", "*"];
        stage.world.kafka(&[&["acls", "--add"][..], &groups].concat())?;
        stage.pipe("").await?;
        let mut source = Script::plain(&stage.world.brokers, TOPIC)?;
        source.send_ids(0, 0..100)?;
        source.flush()?;
        stage.caught_up().await?;
        stage.wait("SELECT sum(committed) FROM system.partitions", 100).await?;
        stage.disturb().await?;
        // By now it has told the group more than once, in vain.
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        source.send_ids(0, 100..200)?;
        source.flush()?;
        stage.caught_up().await?;
        assert_eq!(stage.ask("SELECT sum(id) FROM t").await?, (0..200).sum::<i64>());
        stage
            .wait("SELECT count(*) FROM system.partitions WHERE waiting_for <> ''", 0)
            .await?;
        let said = stage
            .world
            .kafka(&["groups", "--describe", "--group", "tidemill.demo.p"]);
        let denied = |said: &str| !said.lines().any(|line| line.contains(TOPIC));
        assert!(said.map_or(true, |said| denied(&said)), "groups are not denied");
        Ok(())
    }

    /// Records of each of the two topics that compete.
    const BACKLOG: i64 = 600_000;

    pub async fn what_expires_first_is_read_first(stage: &mut Stage) -> Done {
        const LASTING: &str = "lasting";
        // More than half of what it keeps is to be read, and at that rate the rest is full within the hour.
        stage.topic(1, &["retention.bytes=150000000"])?;
        let create = ["topic", "create", LASTING, "--partitions", "1"];
        stage.world.kafka(&create)?;
        // Both fill the same shard, so that they compete on the same node.
        stage.pipe("").await?;
        stage.run("ALTER PIPE p PAUSE").await?;
        let brokers = stage.world.brokers.clone();
        let lasting = format!("CREATE PIPE q INTO t FROM KAFKA (brokers = '{brokers}', topic = '{LASTING}')");
        stage.run(&lasting).await?;
        stage.run("ALTER PIPE q PAUSE").await?;
        let payload = stage.world.folder().join("payload");
        std::fs::write(&payload, format!(r#"{{"id": 1, "note": "{}"}}"#, "x".repeat(100)))?;
        let (records, payload) = (BACKLOG.to_string(), payload.display().to_string());
        for topic in [TOPIC, LASTING] {
            let what = ["perf-produce", "--topic", topic, "--num-records", &records];
            let how = ["--throughput", "-1", "--payload-file", &payload];
            stage.world.kafka(&[&what[..], &how[..]].concat())?;
        }
        stage.disturb().await?;
        let alerts = "SELECT count(*) FROM system.partitions WHERE headroom_alert";
        stage.wait(alerts, 1).await?;
        // The nodes hear of it with the next heartbeat.
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        stage.run("ALTER PIPE q RESUME").await?;
        stage.run("ALTER PIPE p RESUME").await?;
        stage.caught_up().await?;
        let read = "SELECT greatest(max(position), max(committed)) FROM system.partitions WHERE pipe = 'q'";
        let read = stage.ask(read).await?;
        assert!(
            read < BACKLOG / 2,
            "{read} records that last were read before {BACKLOG} that expire"
        );
        stage.run("WAIT FOR PIPE q CAUGHT UP TIMEOUT '55s'").await?;
        assert_eq!(stage.ask("SELECT count(*) FROM t").await?, 2 * BACKLOG);
        Ok(())
    }
}
