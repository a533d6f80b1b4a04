//! Faults of the brokers and of what they keep.

mod topics;

use super::Fault;
use super::link::{Link, cut_all};
use super::network::Place;
use super::process::running;
use super::running::{After, PATIENCE, Stroke};
use crate::history::History;
use crate::world::{World, checkout, output};
use anyhow::{Context, ensure};
use rand::Rng;
use rand::seq::IndexedRandom;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
pub(super) use topics::Topic;
use topics::log_end;

/// What a topic gets so that its records expire at once.
const EXPIRE: [&str; 4] = [
    "cleanup.policy=delete",
    "retention.ms=1000",
    "segment.ms=1000",
    "file.delete.delay.ms=1000",
];
/// What it has so that a broker may lead that lacks records.
const MAY_LOSE: [&str; 2] = ["unclean.leader.election.enable=true", "min.insync.replicas=1"];
/// So many records at least are to be lost in an unclean election, if they come in time.
const TO_LOSE: u64 = 20;

/// A broker that stands still until this is dropped.
struct Stopped {
    folder: PathBuf,
    broker: u32,
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let mut kafka = Command::new(checkout().join("scripts/kafka"));
        kafka
            .arg("--dir")
            .arg(&self.folder)
            .args(["resume", &self.broker.to_string()]);
        // It may have been ended meanwhile.
        drop(output(&mut kafka));
    }
}

/// Runs `scripts/kafka` without holding up what else this thread has to do.
pub(super) fn kafka(world: &World, arguments: &[&str]) -> anyhow::Result<String> {
    tokio::task::block_in_place(|| world.kafka(arguments))
}

pub(super) async fn strike(stroke: &mut Stroke<'_>) -> anyhow::Result<()> {
    match stroke.fault() {
        Fault::KillBroker | Fault::PauseBroker => stop_broker(stroke),
        Fault::MoveLeaders => move_leaders(stroke).await,
        Fault::UncleanElection => elect_uncleanly(stroke).await,
        Fault::Retention => expire(stroke).await,
        Fault::DeleteRecords => delete_records(stroke),
        Fault::RecreateTopic => recreate(stroke).await,
        _ => grow(stroke),
    }
}

fn stop_broker(stroke: &mut Stroke<'_>) -> anyhow::Result<()> {
    let broker = stroke.rng.random_range(1..=stroke.world.broker_count());
    stroke.tell(json!(Place::Broker(broker).to_string()));
    let number = broker.to_string();
    if stroke.fault() == Fault::KillBroker {
        stroke.after(After::StartBroker(broker));
        return kafka(stroke.world, &["kill", &number]).map(drop);
    }
    kafka(stroke.world, &["pause", &number])?;
    let folder = stroke.world.folder().join("kafka");
    stroke.until_the_end(Stopped { folder, broker });
    Ok(())
}

pub(super) fn start(world: &World, broker: u32) -> anyhow::Result<()> {
    kafka(world, &["start", &broker.to_string()]).map(drop)
}

/// A topic that may be harmed: one of those that were harmed least, so that each of them is met.
fn any_topic(stroke: &mut Stroke<'_>) -> anyhow::Result<Topic> {
    let mut names = stroke.world.topics.clone();
    if names.is_empty() {
        let said = kafka(stroke.world, &["topic", "list"])?;
        names = said
            .lines()
            .filter(|name| !name.starts_with("__"))
            .map(str::to_owned)
            .collect();
    }
    let harmed = |name: &String| stroke.world.harmed.get(name).copied().unwrap_or_default();
    let least = names.iter().map(harmed).min();
    names.retain(|name| Some(harmed(name)) == least);
    let name = names.choose(stroke.rng).context("there is no topic")?;
    *stroke.world.harmed.entry(name.clone()).or_default() += 1;
    Topic::look(stroke.world, name)
}

/// A topic with replicas, and a broker that leads some of it.
fn any_leader(stroke: &mut Stroke<'_>) -> anyhow::Result<(Topic, u32)> {
    let topic = any_topic(stroke)?;
    ensure!(topic.replication > 1, "the topic {} has one replica", topic.name);
    let led: Vec<u32> = topic
        .partitions
        .iter()
        .filter_map(|partition| partition.leader)
        .collect();
    let leader = led.choose(stroke.rng).copied().context("nobody leads the topic")?;
    Ok((topic, leader))
}

async fn move_leaders(stroke: &mut Stroke<'_>) -> anyhow::Result<()> {
    let (topic, broker) = any_leader(stroke)?;
    stroke.tell(json!({ "topic": topic.name, "broker": Place::Broker(broker).to_string() }));
    stroke.after(After::StartBroker(broker));
    stroke.after(After::PreferredLeaders);
    kafka(stroke.world, &["stop", &broker.to_string()])?;
    let moved = |now: &Topic| {
        now.partitions
            .iter()
            .all(|partition| partition.leader.is_some_and(|leader| leader != broker))
    };
    until(stroke.world, &topic.name, "others to lead", moved).await
}

/// Waits until a topic is so.
async fn until(world: &World, topic: &str, what: &str, holds: impl Fn(&Topic) -> bool) -> anyhow::Result<()> {
    let is_so = async |world: &World| {
        let now = Topic::look(world, topic)?;
        ensure!(holds(&now), "{now:?}");
        Ok(true)
    };
    world.wait_for(&format!("{what} of {topic}"), PATIENCE, is_so).await
}

pub(super) async fn prefer(world: &World) -> anyhow::Result<()> {
    // A broker that has just started has to catch up before it may lead.
    let elected = async |world: &World| {
        let all = ["elect", "--election-type", "preferred", "--all-topic-partitions"];
        kafka(world, &all).map(|_| true)
    };
    world.wait_for("the preferred leaders to lead", PATIENCE, elected).await
}

/// The followers do not hear the leader any more, so that it goes on alone; then it is killed.
async fn elect_uncleanly(stroke: &mut Stroke<'_>) -> anyhow::Result<()> {
    let (topic, leader) = any_leader(stroke)?;
    let led: Vec<u32> = topic.led_by(leader).collect();
    let name = topic.name.clone();
    stroke.tell(json!({ "topic": name, "partitions": led, "leader": Place::Broker(leader).to_string() }));
    stroke.after(After::Restore(topic.clone(), &MAY_LOSE));
    kafka(stroke.world, &[&["topic", "config", &name], &MAY_LOSE[..]].concat())?;
    let apart = followers_apart(stroke.world, leader)?;
    let alone = |now: &Topic| {
        now.led_by(leader)
            .all(|p| now.partitions[p as usize].in_sync == [leader])
    };
    until(stroke.world, &name, "the leader to be alone", alone).await?;
    wait_for_records(stroke.world, &name, &led, leader).await;
    stroke.after(After::StartBroker(leader));
    kafka(stroke.world, &["kill", &leader.to_string()])?;
    let ends: Vec<Ends> = led
        .iter()
        .map(|p| Ends::look(stroke.world, &topic, *p, leader))
        .collect();
    drop(apart);
    let elected = |now: &Topic| {
        led.iter()
            .all(|p| now.partitions[*p as usize].leader.is_some_and(|l| l != leader))
    };
    until(stroke.world, &name, "a follower to lead", elected).await?;
    for of in ends {
        let lost = (of.followers, of.leader);
        tell_lost(stroke.history(), &name, of.partition, lost, "unclean election");
    }
    Ok(())
}

/// Up to where a partition is there.
struct Ends {
    partition: u32,
    leader: u64,
    /// At the follower that has least: it may have led for a moment, and cut the others down to that.
    followers: u64,
}

impl Ends {
    fn look(world: &World, topic: &Topic, partition: u32, leader: u32) -> Self {
        let end = |broker: u32| log_end(&log_folder(world, broker, &topic.name, partition));
        let replicas = topic.partitions[partition as usize].replicas.iter().copied();
        let followers = replicas.filter(|broker| *broker != leader).map(end);
        Self {
            partition,
            leader: end(leader),
            followers: followers.min().unwrap_or_default(),
        }
    }
}

/// Cuts the followers off from what the leader serves to clients and followers; the controllers go on.
fn followers_apart(world: &World, leader: u32) -> anyhow::Result<Vec<Link>> {
    let network = world.network.as_ref().context("there is no network of namespaces")?;
    let port = world.broker_ports(leader)[0];
    let followers = (1..=world.broker_count()).filter(|broker| *broker != leader);
    followers
        .map(|broker| Link::cut_port(network, Place::Broker(broker), Place::Broker(leader), port))
        .collect()
}

/// Waits until the leader has some records that nobody else has; not for long, since perhaps nobody writes.
async fn wait_for_records(world: &World, topic: &str, partitions: &[u32], leader: u32) {
    let folder = |broker: u32, partition: u32| log_folder(world, broker, topic, partition);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        let more = partitions.iter().map(|partition| {
            let others = (1..=world.broker_count()).filter(|broker| *broker != leader);
            let behind = others
                .map(|broker| log_end(&folder(broker, *partition)))
                .max()
                .unwrap_or_default();
            log_end(&folder(leader, *partition)).saturating_sub(behind)
        });
        if more.max().unwrap_or_default() >= TO_LOSE {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn data_folder(world: &World, broker: u32) -> PathBuf {
    world.folder().join(format!("kafka/broker-{broker}/data"))
}

fn log_folder(world: &World, broker: u32, topic: &str, partition: u32) -> PathBuf {
    data_folder(world, broker).join(format!("{topic}-{partition}"))
}

/// Says that offsets of a topic are gone, or are those of other records now.
fn tell_lost(history: &History, topic: &str, partition: u32, (from, to): (u64, u64), why: &str) {
    if from < to {
        let lost = json!({ "topic": topic, "partition": partition, "from": from, "to": to, "why": why });
        history.note("monitor", "log-lost", lost);
    }
}

/// Records expire that nobody has read: nobody can read meanwhile.
async fn expire(stroke: &mut Stroke<'_>) -> anyhow::Result<()> {
    let topic = any_topic(stroke)?;
    let name = topic.name.clone();
    stroke.tell(json!({ "topic": name }));
    let network = stroke
        .world
        .network
        .clone()
        .context("there is no network of namespaces")?;
    let nodes = running(stroke.world).into_iter().map(Place::Node);
    let pairs: Vec<(Place, Place)> = nodes
        .flat_map(|node| (1..=stroke.world.broker_count()).map(move |broker| (node, Place::Broker(broker))))
        .collect();
    let before = topics::earliest(stroke.world, &name)?;
    let links = cut_all(&network, &pairs)?;
    let read = topics::latest(stroke.world, &name)?;
    // Something is to come that nobody has read.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) && topics::latest(stroke.world, &name)? == read {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let unread = topics::latest(stroke.world, &name)?;
    stroke.after(After::Restore(topic, &EXPIRE));
    stroke.after(After::TellExpired(name.clone(), before));
    stroke.until_the_end(links);
    kafka(stroke.world, &[&["topic", "config", &name], &EXPIRE[..]].concat())?;
    let expired = async |world: &World| {
        let now = topics::earliest(world, &name)?;
        // It may have got more partitions meanwhile.
        let is_gone = |(partition, end): &(u32, u64)| now.iter().any(|(p, offset)| p == partition && offset >= end);
        ensure!(unread.iter().all(is_gone), "{now:?} of {unread:?}");
        Ok(true)
    };
    let what = format!("the records of {name} to expire");
    stroke.world.wait_for(&what, PATIENCE, expired).await
}

/// Gives a topic back what it had before settings were `changed`.
pub(super) fn restore(world: &World, topic: &Topic, changed: &[&str]) -> anyhow::Result<()> {
    let mut had = Vec::new();
    let mut had_not = Vec::new();
    for name in changed.iter().filter_map(|setting| setting.split('=').next()) {
        let is_it = |setting: &&str| setting.split('=').next() == Some(name);
        match topic.settings.split(',').find(is_it) {
            Some(setting) => had.push(setting),
            None => had_not.push(name),
        }
    }
    if !had.is_empty() {
        kafka(world, &[&["topic", "config", &topic.name], &had[..]].concat())?;
    }
    if !had_not.is_empty() {
        let topic = [
            "config",
            "--alter",
            "--entity-type",
            "topics",
            "--entity-name",
            &topic.name,
        ];
        let had_not = had_not.join(",");
        kafka(world, &[&topic[..], &["--delete-config", &had_not]].concat())?;
    }
    Ok(())
}

pub(super) fn tell_expired(world: &World, history: &History, topic: &str, before: &[(u32, u64)]) -> anyhow::Result<()> {
    for (partition, now) in topics::earliest(world, topic)? {
        let then = before
            .iter()
            .find(|(p, _)| *p == partition)
            .map_or(0, |(_, offset)| *offset);
        tell_lost(history, topic, partition, (then, now), "retention");
    }
    Ok(())
}

fn delete_records(stroke: &mut Stroke<'_>) -> anyhow::Result<()> {
    let topic = any_topic(stroke)?.name;
    let (first, last) = (
        topics::earliest(stroke.world, &topic)?,
        topics::latest(stroke.world, &topic)?,
    );
    let mut marks = Vec::new();
    for (partition, first) in first {
        let last = last
            .iter()
            .find(|(p, _)| *p == partition)
            .map_or(first, |(_, offset)| *offset);
        // Up to the end as often as not: there lie those that were not read.
        let to = if stroke.rng.random_bool(0.5) {
            last
        } else {
            stroke.rng.random_range(first..=last)
        };
        marks.push((partition, first, to));
    }
    stroke.tell(
        json!({ "topic": topic, "to": marks.iter().map(|(partition, _, to)| (partition, to)).collect::<Vec<_>>() }),
    );
    let words: Vec<String> = marks
        .iter()
        .map(|(partition, _, to)| format!("{partition}:{to}"))
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    kafka(
        stroke.world,
        &[&["delete-records", topic.as_str()], &words[..]].concat(),
    )?;
    for (partition, first, to) in marks {
        tell_lost(stroke.history(), &topic, partition, (first, to), "delete-records");
    }
    Ok(())
}

async fn recreate(stroke: &mut Stroke<'_>) -> anyhow::Result<()> {
    let topic = any_topic(stroke)?;
    stroke.tell(json!({ "topic": topic.name, "id": topic.id }));
    kafka(stroke.world, &["topic", "delete", &topic.name])?;
    // It may take a moment until the name is free.
    let created = async |world: &World| topic.create(world).map(|_| true);
    let what = format!("{} to be created again", topic.name);
    stroke.world.wait_for(&what, PATIENCE, created).await?;
    for (partition, end) in deleted_ends(stroke.world, &topic).await? {
        tell_lost(stroke.history(), &topic.name, partition, (0, end), "topic recreated");
    }
    Ok(())
}

/// Up to where the logs of a deleted topic went, what came while it was being deleted included: brokers set them aside first.
async fn deleted_ends(world: &World, topic: &Topic) -> anyhow::Result<BTreeMap<u32, u64>> {
    let logs = || -> Vec<topics::Kept> {
        let brokers = 1..=world.broker_count();
        brokers
            .flat_map(|broker| topics::kept(&data_folder(world, broker), topic))
            .collect()
    };
    let aside = async |_: &World| {
        let logs = logs();
        ensure!(!logs.is_empty() && logs.iter().all(|log| log.deleted), "{logs:?}");
        Ok(true)
    };
    let what = format!("the brokers to set the logs of {} aside", topic.name);
    world.wait_for(&what, PATIENCE, aside).await?;
    let mut ends = BTreeMap::new();
    for log in logs() {
        let end: &mut u64 = ends.entry(log.partition).or_default();
        *end = log.end.max(*end);
    }
    Ok(ends)
}

fn grow(stroke: &mut Stroke<'_>) -> anyhow::Result<()> {
    let topic = any_topic(stroke)?;
    let (from, to) = (
        topic.partitions.len(),
        topic.partitions.len() + stroke.rng.random_range(1..=3),
    );
    stroke.tell(json!({ "topic": topic.name, "from": from, "to": to }));
    kafka(stroke.world, &["topic", "grow", &topic.name, &to.to_string()])?;
    // From now on somebody writes into them.
    stroke.world.grown.push((topic.name, from as u32..to as u32));
    Ok(())
}
