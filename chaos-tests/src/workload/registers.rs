//! Settings of tables as registers: the catalog must behave as if every statement happened at one moment. Each table has two, so that
//! whoever sets one must not undo what another has set beside it.

use super::Work;
use super::operators::end;
use super::stage::Stage;
use anyhow::Context;
use rand::Rng;
use serde_json::json;
use std::time::Duration;
use tidemill_client::{Answer, Client};
use tokio::time::sleep;

const TABLES: u32 = 3;
const SETTINGS: [&str; 2] = ["flush_age_ms", "flush_rows"];
/// What each begins with.
const FIRST: u64 = 1_000;

/// The tables.
pub async fn prepare(stage: &Stage) -> anyhow::Result<()> {
    let mut process = stage.history.process();
    for table in 0..TABLES {
        let settings = SETTINGS.map(|setting| format!("{setting} = {FIRST}")).join(", ");
        let create = format!("CREATE TABLE register{table} (id BIGINT) WITH (shards = 1, {settings})");
        stage.run(&create).await?;
    }
    for key in keys() {
        let asked = json!({ "key": key.to_string(), "value": FIRST });
        process.invoke("set", asked.clone(), None).ok(asked);
    }
    Ok(())
}

/// A setting of a table.
#[derive(Clone, Copy)]
struct Key {
    table: u32,
    setting: &'static str,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "register{}.{}", self.table, self.setting)
    }
}

fn keys() -> impl Iterator<Item = Key> {
    (0..TABLES).flat_map(|table| SETTINGS.map(|setting| Key { table, setting }))
}

/// Clients at every node, which set and get.
pub fn set_and_get(stage: &Stage) -> anyhow::Result<Vec<Work>> {
    let client = |number: u64| -> anyhow::Result<Work> {
        let client = stage.client(number as usize)?;
        Ok(Box::pin(one(stage.clone(), client, number)))
    };
    (0..5).map(client).collect()
}

async fn one(stage: Stage, client: Client, number: u64) -> anyhow::Result<()> {
    let mut process = stage.history.process();
    let mut chance = stage.chance("registers", number);
    let keys: Vec<Key> = keys().collect();
    while !stage.is_over() {
        let key = keys[chance.random_range(0..keys.len())];
        let name = key.to_string();
        if chance.random_bool(0.4) {
            // No two of them write the same.
            let value = FIRST + stage.id();
            let invoked = process.invoke("set", json!({ "key": name, "value": value }), stage.node_of(&client));
            let set = format!("ALTER TABLE register{} SET ({} = {value})", key.table, key.setting);
            match client.query(&set).await {
                Ok(_) => invoked
                    .by(stage.node_of(&client))
                    .ok(json!({ "key": name, "value": value })),
                Err(error) => end(invoked, &error),
            }
        } else {
            let invoked = process.invoke("get", json!({ "key": name }), stage.node_of(&client));
            match get(&client, key).await {
                Ok(value) => invoked
                    .by(stage.node_of(&client))
                    .ok(json!({ "key": name, "value": value })),
                Err(error) => invoked.fail(format!("{error:#}")),
            }
        }
        sleep(Duration::from_millis(chance.random_range(20..200))).await;
    }
    Ok(())
}

async fn get(client: &Client, key: Key) -> anyhow::Result<u64> {
    let sql = format!("SHOW CREATE TABLE register{}", key.table);
    let found = match client.query(&sql).await? {
        Answer::Rows(found) => found.collect().await?,
        Answer::Message(message) => anyhow::bail!("rows expected, got: {message}"),
    };
    let text = found
        .iter()
        .flat_map(|batch| batch.columns())
        .filter_map(|column| arrow::util::display::array_value_to_string(column, 0).ok())
        .collect::<Vec<_>>()
        .join(" ");
    value(&text, key.setting).with_context(|| format!("no {} in: {text}", key.setting))
}

/// The value of `setting = …`.
fn value(text: &str, setting: &str) -> Option<u64> {
    let (_, rest) = text.split_once(&format!("{setting} = "))?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}
