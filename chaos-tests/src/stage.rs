//! A small stage for tests of what sources do: one topic, one table `t`, one pipe `p`, and a node that may be killed in
//! the middle.

use crate::reader::busiest_node;
use crate::script::Script;
use crate::world::{World, binary};
use anyhow::{Context, ensure};
use std::process::Command;
use std::time::Duration;

/// The topic of every stage.
pub const TOPIC: &str = "source";

/// See the module's page.
pub struct Stage {
    /// The processes.
    pub world: World,
    /// Whether the source has had several histories with the same offsets: then a pair of partition and offset is no
    /// name for a row.
    pub several_histories: bool,
    kill: bool,
}

impl Stage {
    /// Brokers with these settings (`name=value`) and three nodes, nothing else. With `kill`, a node is killed where the
    /// test says.
    pub async fn new(brokers: u32, settings: &[&str], kill: bool) -> anyhow::Result<Self> {
        let mut world = World::with_brokers(brokers, settings)?;
        world.start_cluster(3).await?;
        Ok(Self {
            world,
            several_histories: false,
            kill,
        })
    }

    /// Creates the topic.
    pub fn topic(&self, partitions: u32, config: &[&str]) -> anyhow::Result<()> {
        let partitions = partitions.to_string();
        let mut arguments = vec!["topic", "create", TOPIC, "--partitions", &partitions];
        arguments.extend(config.iter().flat_map(|setting| ["--config", setting]));
        self.world.kafka(&arguments).map(drop)
    }

    /// Deletes the topic and creates it again.
    pub fn recreate_topic(&self, partitions: u32) -> anyhow::Result<()> {
        self.world.kafka(&["topic", "delete", TOPIC])?;
        self.topic(partitions, &[])
    }

    /// A producer for the topic.
    pub fn source(&self) -> anyhow::Result<Script> {
        Script::plain(&self.world.brokers, TOPIC)
    }

    /// Creates the table and the pipe, with these further options (`", name = 'value'"`).
    pub async fn pipe(&self, options: &str) -> anyhow::Result<()> {
        let table =
            "CREATE TABLE t (id BIGINT NOT NULL, note VARCHAR) ORDER BY (id) WITH (shards = 2, flush_age = '1s')";
        self.run(table).await?;
        let brokers = &self.world.brokers;
        let pipe = format!("CREATE PIPE p INTO t FROM KAFKA (brokers = '{brokers}', topic = '{TOPIC}'{options})");
        self.run(&pipe).await
    }

    /// Creates the topic with these partitions, table and pipe; gives a producer.
    pub async fn begin(&self, partitions: u32) -> anyhow::Result<Script> {
        self.topic(partitions, &[])?;
        self.pipe("").await?;
        self.source()
    }

    /// Runs a statement.
    pub async fn run(&self, sql: &str) -> anyhow::Result<()> {
        self.world.run(sql).await
    }

    /// The first column of the only row.
    pub async fn ask(&self, sql: &str) -> anyhow::Result<i64> {
        self.world.ask(sql).await
    }

    /// Waits until `sql` gives `wanted`.
    pub async fn wait(&self, sql: &str, wanted: i64) -> anyhow::Result<()> {
        let what = format!("{sql} to give {wanted}");
        let holds = async |world: &World| {
            let found = world.ask(sql).await?;
            ensure!(found == wanted, "it gives {found}");
            Ok(true)
        };
        self.world.wait_for(&what, Duration::from_secs(60), holds).await
    }

    /// Waits until so many partitions have stopped for this reason.
    pub async fn stopped(&self, reason: &str, partitions: i64) -> anyhow::Result<()> {
        let sql = format!("SELECT count(*) FROM system.partitions WHERE stopped = '{reason}'");
        self.wait(&sql, partitions).await
    }

    /// Waits until everything in the topic can be queried.
    pub async fn caught_up(&self) -> anyhow::Result<()> {
        self.run("WAIT FOR PIPE p CAUGHT UP TIMEOUT '50s'").await
    }

    /// Kills the busiest node with SIGKILL and starts it again, if this stage is for that.
    pub async fn disturb(&mut self) -> anyhow::Result<()> {
        if !self.kill {
            return Ok(());
        }
        // A table that was just created has no leaders for a moment.
        self.wait("SELECT count(*) FROM system.shards WHERE leader IS NULL", 0)
            .await?;
        let name = busiest_node(&self.world.client()?).await?;
        let node = self
            .world
            .index_of(&name)
            .with_context(|| format!("there is no node {name}"))?;
        self.world.kill_node(node)?;
        self.world.start_node(node)
    }

    /// What must hold whatever happened: every ledger balances, and the files agree with it.
    pub async fn finish(self) -> anyhow::Result<()> {
        self.caught_up().await?;
        self.run("ALTER PIPE p PAUSE").await?;
        ensure!(
            self.ask("SELECT count(*) FROM system.ledger WHERE NOT balanced")
                .await?
                == 0,
            "a ledger does not balance"
        );
        let twice =
            "SELECT count(*) FROM (SELECT count(*) FROM t GROUP BY _topic, _partition, _offset HAVING count(*) > 1)";
        let doubled = self.ask(twice).await?;
        self.check()?;
        ensure!(
            doubled == 0 || self.several_histories,
            "{doubled} offsets are there twice"
        );
        Ok(())
    }

    /// `tidemill check`, as a user runs it.
    pub fn check(&self) -> anyhow::Result<()> {
        let done = Command::new(binary()?)
            .args(["check", "--connect", &self.world.connect()])
            .output()?;
        let said = [done.stdout, done.stderr].concat();
        ensure!(
            done.status.success(),
            "tidemill check: {}",
            String::from_utf8_lossy(&said)
        );
        Ok(())
    }
}
