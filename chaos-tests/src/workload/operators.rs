//! Operators: statements that change pipes and tables while records flow, and the one who looks after partitions that have stopped.

use super::readers::{self, Floor};
use super::stage::Stage;
use super::topics::{self, OPERATED};
use super::{Work, clerk};
use crate::history::{Invoked, Process};
use crate::reader::{number, rows};
use rand::Rng;
use rand::seq::SliceRandom;
use serde_json::{Value, json};
use std::time::Duration;
use tidemill_client::{Client, ClientError};
use tokio::time::sleep;

/// Rows of the topic that [`create_drop`] reads again and again.
const STILL: u64 = 600;
/// The topic, and a table with its pipe that stay.
pub const STILL_TOPIC: &str = "still";
const STILL_PARTITIONS: u32 = 3;

/// Says statement after statement.
pub struct Operator {
    stage: Stage,
    process: Process,
    client: Client,
}

impl Operator {
    /// One who asks node `i` first.
    ///
    /// # Errors
    /// If its address is none.
    pub fn at(stage: &Stage, i: usize) -> anyhow::Result<Self> {
        Ok(Self {
            stage: stage.clone(),
            process: stage.history.process(),
            client: stage.client(i)?,
        })
    }

    /// Runs a statement. Gives why it did not work, if it did not.
    pub async fn say(&mut self, sql: &str) -> Result<(), ClientError> {
        let Self { stage, process, client } = self;
        let invoked = process.invoke("operate", json!({ "sql": sql }), stage.node_of(client));
        match client.query(sql).await {
            Ok(_) => {
                invoked.by(stage.node_of(client)).ok(json!({ "sql": sql }));
                Ok(())
            }
            Err(error) => {
                end(invoked, &error);
                Err(error)
            }
        }
    }
}

/// Ends an operation that changes something: *no* is not *don't know*.
pub fn end(invoked: Invoked<'_>, error: &ClientError) {
    match error {
        ClientError::Config { .. } | ClientError::Invalid { .. } | ClientError::Unavailable { .. } => {
            invoked.fail(error.to_string());
        }
        ClientError::Unknown { .. } | ClientError::Server { .. } => invoked.info(error.to_string()),
    }
}

/// Counters into a pipe, and an operator who does all sorts of things to it.
pub async fn operate(stage: &Stage) -> anyhow::Result<Vec<Work>> {
    let mut work = readers::of(stage, OPERATED.name, 3, Floor::Unknown)?;
    work.extend(topics::counters(stage, OPERATED, 24)?);
    let operator = Operator::at(stage, 1)?;
    work.push(Box::pin(meddle(stage.clone(), operator)));
    Ok(work)
}

async fn meddle(stage: Stage, mut operator: Operator) -> anyhow::Result<()> {
    let mut chance = stage.chance("operators", 0);
    let pipe = OPERATED.name;
    let mut kinds: Vec<u32> = Vec::new();
    while !stage.is_over() {
        let partition = OPERATED.any_partition(&stage, &mut chance);
        // Each kind until it worked once, in any order, then each once more.
        if kinds.is_empty() {
            kinds = (0..10).collect();
            kinds.shuffle(&mut chance);
        }
        let kind = kinds.pop().unwrap_or_default();
        let sql = match kind {
            0 | 1 => format!("ALTER PIPE {pipe} PAUSE"),
            2 => format!("ALTER PIPE {pipe} SET (standby = 'hot')"),
            3 => format!("ALTER PIPE {pipe} SET (standby = 'cold')"),
            4 => format!(
                "ALTER TABLE {pipe} SET (flush_age_ms = {})",
                chance.random_range(200..3_000)
            ),
            5 => format!(
                "ALTER TABLE {pipe} SET (wal = '{}')",
                ["off", "local"][chance.random_range(0..2)]
            ),
            6 => format!("ALTER PIPE {pipe} RESET OFFSETS TO EARLIEST DELETE ROWS"),
            7 => format!("ALTER PIPE {pipe} RESET OFFSETS TO EARLIEST PARTITION ({partition}) DELETE ROWS"),
            // Back or forth, wherever it is.
            8 => {
                let offset = chance.random_range(0..1_000);
                format!("ALTER PIPE {pipe} RESET OFFSETS TO ({partition} = {offset}) DELETE ROWS")
            }
            _ => format!("ALTER PIPE {pipe} SKIP TO LATEST PARTITION ({partition})"),
        };
        // What did not work stands in the history. What is refused comes again after the other kinds, at another offset perhaps; whoever gets
        // no answer says it again, since faults can take more time than is left for a round of all kinds.
        match operator.say(&sql).await {
            Ok(()) => {}
            Err(ClientError::Invalid { .. }) => kinds.insert(0, kind),
            Err(_) => kinds.push(kind),
        }
        clerk::pause(&stage, Duration::from_millis(chance.random_range(300..2_500))).await;
        if sql.ends_with("PAUSE") {
            drop(operator.say(&format!("ALTER PIPE {pipe} RESUME")).await);
            clerk::pause(&stage, Duration::from_millis(chance.random_range(500..2_000))).await;
        }
    }
    Ok(())
}

/// A topic that nobody writes to any more.
pub async fn prepare_create_drop(stage: &Stage) -> anyhow::Result<()> {
    let replication = stage.replication.to_string();
    let create = ["topic", "create", STILL_TOPIC, "--partitions", "3", "--replication"];
    stage.kafka(&[create.as_slice(), &[&replication]].concat()).await?;
    let producer = super::acked::Acked::start(&stage.brokers, STILL_TOPIC, "")?;
    // Ids that no other record of the run has.
    let ids = (0..STILL).map(|n| (1 << 40) + n);
    let records: Vec<String> = ids
        .map(|id| json!({ "id": id, "k": "s", "seq": id }).to_string())
        .collect();
    let sends = records
        .iter()
        .zip(0..)
        .map(|(record, n)| producer.send(n % STILL_PARTITIONS, None, Some(record)));
    let mut process = stage.history.process();
    let invoked = process.invoke("fill", json!({ "topic": STILL_TOPIC, "records": STILL }), None);
    let said = futures::future::join_all(sends).await;
    let refused = said.iter().find(|said| !matches!(said, super::acked::Said::Ok(_)));
    anyhow::ensure!(
        refused.is_none(),
        "a record was not taken while nothing was broken: {refused:?}"
    );
    invoked.ok(Value::Null);
    topics::create_table(stage, STILL_TOPIC, "").await?;
    topics::create_pipe(stage, STILL_TOPIC, "").await
}

/// Creates a table and a pipe, waits until it holds the whole topic, writes down its rows, and drops both: again and again.
pub fn create_drop(stage: Stage) -> Work {
    Box::pin(async move {
        let mut operator = Operator::at(&stage, 2)?;
        for generation in 0u64.. {
            // Names are used again, so that what was meant for one before is not done to the next.
            let table = format!("generation{}", generation % 3);
            let columns = "id BIGINT NOT NULL, k VARCHAR, seq BIGINT";
            let brokers = &stage.brokers;
            let statements = [
                format!("CREATE TABLE IF NOT EXISTS {table} ({columns}) WITH (shards = 2, flush_age = '500ms')"),
                format!(
                    "CREATE PIPE IF NOT EXISTS {table} INTO {table} FROM KAFKA (brokers = '{brokers}', topic = '{STILL_TOPIC}')"
                ),
                format!("WAIT FOR PIPE {table} CAUGHT UP TIMEOUT '20s'"),
            ];
            for sql in &statements {
                insist(&stage, &mut operator, sql).await;
            }
            if stage.is_over() {
                return Ok(());
            }
            look_at(&stage, &mut operator, &table, generation).await;
            for sql in [
                format!("DROP PIPE IF EXISTS {table}"),
                format!("DROP TABLE IF EXISTS {table}"),
            ] {
                insist(&stage, &mut operator, &sql).await;
            }
            if stage.is_over() {
                return Ok(());
            }
        }
        Ok(())
    })
}

/// Asks for the rows of a table whose pipe has caught up with a topic that does not change, until all of them are committed.
/// Before that, whoever takes over from a leader that is lost has to read them again.
async fn look_at(stage: &Stage, operator: &mut Operator, table: &str, generation: u64) {
    // Each table has a reader of its own.
    let asked = json!({ "table": table, "reader": 1_000 + generation, "consistency": "fresh" });
    while !stage.is_over() {
        let Operator { process, client, .. } = operator;
        if readers::read_once(stage, process, client, (table, Floor::Stored), asked.clone()).await == Some(STILL) {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Says it until it is done: each of these may be said twice.
async fn insist(stage: &Stage, operator: &mut Operator, sql: &str) {
    while !stage.is_over() && operator.say(sql).await.is_err() {
        clerk::pause(stage, Duration::from_millis(500)).await;
    }
}

/// Lets partitions go on that have stopped, again and again, as whoever is on call would.
pub async fn look_after_stops(stage: Stage) -> anyhow::Result<()> {
    let mut operator = Operator::at(&stage, 0)?;
    while !stage.is_over() {
        clerk::pause(&stage, Duration::from_secs(1)).await;
        mend_stops(&stage, &mut operator).await?;
    }
    Ok(())
}

/// Lets partitions go on that have stopped because their source is not what it was.
pub async fn mend_stops(stage: &Stage, operator: &mut Operator) -> anyhow::Result<()> {
    let stopped =
        "SELECT pipe, CAST(\"partition\" AS VARCHAR), stopped FROM system.partitions WHERE stopped IS NOT NULL";
    // Asked again soon.
    let Ok(found) = rows(&operator.client, stopped).await else {
        return Ok(());
    };
    for batch in found {
        for row in 0..batch.num_rows() {
            let text = |column: usize| arrow::util::display::array_value_to_string(batch.column(column), row);
            let (pipe, partition, reason) = (text(0)?, text(1)?, text(2)?);
            let place = json!({ "pipe": pipe, "partition": partition, "reason": reason });
            stage.history.note("monitor", "stopped", place);
            go_on(operator, &pipe, &partition, &reason).await;
        }
    }
    Ok(())
}

/// `REPAIR`, and where that asks for an offset, everything that the source has, in place of the rows that are there.
async fn go_on(operator: &mut Operator, pipe: &str, partition: &str, reason: &str) {
    let repaired = operator
        .say(&format!("ALTER PIPE {pipe} REPAIR PARTITION ({partition})"))
        .await;
    if repaired.is_err() && matches!(reason, "end_below" | "truncated") {
        let anew = format!("ALTER PIPE {pipe} RESET OFFSETS TO EARLIEST PARTITION ({partition}) DELETE ROWS");
        drop(operator.say(&anew).await);
    }
}

/// How many partitions have stopped.
pub async fn count_stopped(client: &Client) -> anyhow::Result<i64> {
    let sql = "SELECT count(*) FROM system.partitions WHERE stopped IS NOT NULL";
    number(&rows(client, sql).await?, 0)
}
