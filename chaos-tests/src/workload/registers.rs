//! Settings of tables as registers: the catalog must behave as if every statement happened at one moment.

use super::Work;
use super::operators::end;
use super::stage::Stage;
use anyhow::Context;
use rand::Rng;
use serde_json::json;
use std::time::Duration;
use tidemill_client::{Answer, Client};
use tokio::time::sleep;

const KEYS: u32 = 3;
/// What each begins with.
const FIRST: u64 = 1_000;

/// One table for each register.
pub async fn prepare(stage: &Stage) -> anyhow::Result<()> {
    let mut process = stage.history.process();
    for key in 0..KEYS {
        let asked = json!({ "key": key, "value": FIRST });
        let invoked = process.invoke("set", asked.clone(), None);
        let create = format!("CREATE TABLE register{key} (id BIGINT) WITH (shards = 1, flush_age_ms = {FIRST})");
        stage.run(&create).await?;
        invoked.ok(asked);
    }
    Ok(())
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
    while !stage.is_over() {
        let key = chance.random_range(0..KEYS);
        if chance.random_bool(0.4) {
            // No two of them write the same.
            let value = FIRST + stage.id();
            let invoked = process.invoke("set", json!({ "key": key, "value": value }), None);
            let set = format!("ALTER TABLE register{key} SET (flush_age_ms = {value})");
            match client.query(&set).await {
                Ok(_) => invoked.ok(json!({ "key": key, "value": value })),
                Err(error) => end(invoked, &error),
            }
        } else {
            let invoked = process.invoke("get", json!({ "key": key }), None);
            match get(&client, key).await {
                Ok(value) => invoked.ok(json!({ "key": key, "value": value })),
                Err(error) => invoked.fail(format!("{error:#}")),
            }
        }
        sleep(Duration::from_millis(chance.random_range(20..200))).await;
    }
    Ok(())
}

async fn get(client: &Client, key: u32) -> anyhow::Result<u64> {
    let sql = format!("SHOW CREATE TABLE register{key}");
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
    setting(&text).with_context(|| format!("no flush_age in: {text}"))
}

/// The value of `flush_age_ms = …`.
fn setting(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once("flush_age_ms = ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}
