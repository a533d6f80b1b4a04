//! Logs that are not what they were: expired, created again, cut.

use crate::Done;
use tidemill_chaos_tests::script::Script;
use tidemill_chaos_tests::stage::{Stage, TOPIC};

pub async fn expired_offsets_are_lost_and_nothing_else(stage: &mut Stage) -> Done {
    let mut source = stage.begin(2).await?;
    source.send_ids(0, 0..100)?;
    source.write_ids(1, 1000..1100)?;
    stage.caught_up().await?;
    stage.run("ALTER PIPE p PAUSE").await?;
    source.send_ids(0, 100..300)?;
    source.write_ids(1, 1100..1300)?;
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
    // The manager looks every 15 s, and Kafka's tools take ten where much runs beside: both have to fit in before anything expires.
    stage.topic(1, &["retention.ms=60000", "segment.ms=1000"])?;
    stage.pipe("").await?;
    let mut source = stage.source()?;
    source.write_ids(0, 0..100)?;
    stage.caught_up().await?;
    stage.run("ALTER PIPE p PAUSE").await?;
    source.write_ids(0, 100..200)?;
    // The alarm comes while everything is still there.
    stage
        .wait("SELECT count(*) FROM system.events WHERE kind = 'headroom'", 1)
        .await?;
    // The event may be of the first records, if the manager looked before those were read; it is written once in an hour. Of
    // those that wait now it knows at its next look.
    stage
        .wait(
            "SELECT count(*) FROM system.partitions WHERE headroom_alert AND headroom_seconds <= 60",
            1,
        )
        .await?;
    assert_eq!(earliest(stage)?, 0, "the records had expired before the alarm");
    stage.disturb().await?;
    stage
        .world
        .wait_for(
            "the records to expire",
            std::time::Duration::from_secs(90),
            async |world| Ok(offset_of(&world.kafka(&["offsets", TOPIC, "--earliest"])?)? >= 200),
        )
        .await?;
    source.write_ids(0, 200..250)?;
    stage.run("ALTER PIPE p RESUME").await?;
    stage.stopped("expired", 1).await?;
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
    let mut source = stage.begin(1).await?;
    source.write_ids(0, 0..100)?;
    stage.caught_up().await?;
    stage.run("ALTER PIPE p PAUSE").await?;
    drop(source);
    stage.recreate_topic(1)?;
    let mut source = stage.source()?;
    source.write_ids(0, 5000..5500)?;
    stage.run("ALTER PIPE p RESUME").await?;
    stage.disturb().await?;
    stage.stopped("topic_recreated", 1).await?;
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
    let mut source = stage.begin(1).await?;
    source.write_ids(0, 0..100)?;
    stage.caught_up().await?;
    // What is not committed when its topic goes is read again or lost with it; here nothing is.
    stage.wait("SELECT sum(committed) FROM system.partitions", 100).await?;
    drop(source);
    stage.recreate_topic(1)?;
    // More than the old one had, so that the next offset is there.
    let mut source = stage.source()?;
    source.write_ids(0, 5000..5500)?;
    stage.disturb().await?;
    stage.stopped("topic_recreated", 1).await?;
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
    let mut source = stage.begin(3).await?;
    for partition in 0..3 {
        source.send_ids(partition, 0..10)?;
    }
    source.flush()?;
    stage.caught_up().await?;
    // What is not committed when its topic goes is read again or lost with it; here nothing is.
    stage.wait("SELECT sum(committed) FROM system.partitions", 30).await?;
    drop(source);
    stage.recreate_topic(1)?;
    let mut source = stage.source()?;
    source.write_ids(0, 100..105)?;
    stage.disturb().await?;
    stage.stopped("topic_recreated", 3).await?;
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
    let mut source = stage.source()?;
    source.write_ids(0, 0..100)?;
    stage.caught_up().await?;
    let election = UncleanElection::prepare(stage)?;
    source.write_ids(0, 100..200)?;
    stage.caught_up().await?;
    stage.run("ALTER PIPE p PAUSE").await?;
    assert_eq!(stage.ask("SELECT count(*) FROM t").await?, 200);
    drop(source);
    // The only copy of the second hundred goes, the old follower leads with the first hundred alone, and the log
    // grows past the old end: offsets 100 to 199 are other records now.
    let mut source = election.hold(stage)?;
    source.write_ids(0, 7000..7300)?;
    stage.run("ALTER PIPE p RESUME").await?;
    stage.disturb().await?;
    stage.stopped("truncated", 1).await?;
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
    let mut source = stage.source()?;
    source.write_ids(0, 0..100)?;
    let election = UncleanElection::prepare(stage)?;
    source.write_ids(0, 100..200)?;
    // It begins behind the last record, so that it knows no leader epoch to compare.
    stage.pipe(", start = 'latest'").await?;
    stage.run("ALTER PIPE p PAUSE").await?;
    drop(source);
    let mut source = election.hold(stage)?;
    source.write_ids(0, 7000..7010)?;
    stage.run("ALTER PIPE p RESUME").await?;
    stage.disturb().await?;
    stage.stopped("end_below", 1).await?;
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

/// An election in which a broker wins that lacks acknowledged records.
struct UncleanElection {
    leader: String,
    follower: String,
}

impl UncleanElection {
    /// Stops the follower: what is acknowledged from now on has one copy.
    fn prepare(stage: &Stage) -> anyhow::Result<Self> {
        let (leader, follower) = replicas(stage)?;
        stage.world.kafka(&["stop", &follower])?;
        Ok(Self { leader, follower })
    }

    /// Kills the leader, and has the follower lead with what it has; gives a producer for what comes then.
    fn hold(self, stage: &Stage) -> anyhow::Result<Script> {
        stage.world.kafka(&["kill", &self.leader])?;
        stage.world.kafka(&["start", &self.follower])?;
        stage.source()
    }
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
