//! Copies of part files: who shall keep them, who does, and what may be committed, led or removed by that.
//!
//! The one rule behind all others: a holder counts only while its node is a replica of the shard and the disk is the
//! node's present one. A commit needs `min_replicas` holders that count (CAT-1); a replica leads only when it has
//! been complete (REP-1); and no replica is given up while a live file has no more than the others need.
//!
//! In a cluster whose nodes share one part store there are no replicas and no holders, and nothing here refuses anything.

use super::cluster::known_node;
use super::definitions::founded;
use super::events::note;
use super::{At, Stop, Verdict};
use crate::catalog::*;
use crate::command::{Refusal, ReplicaOf, Response, SetHoldings, SetReplication};
use crate::ids::{NodeId, ShardId};
use crate::view::{CatalogRead, Overlay};
use std::collections::BTreeMap;

/// The most files of one command that get an event of their own; the rest is counted in the last.
const EVENTS: usize = 5;

fn no(why: String) -> Stop {
    Refusal::Replication(why).into()
}

/// The rule of a cluster that has one.
fn replicating(state: &Overlay<'_>) -> Result<Replication, Stop> {
    let shared = "the nodes of this cluster share one part store: there are no replicas of parts";
    state.replication()?.ok_or_else(|| no(shared.into()))
}

fn shard_of(state: &Overlay<'_>, id: ShardId) -> Result<Shard, Stop> {
    Ok(state.get::<Shard>(&id)?.ok_or(Refusal::NoShard(id))?)
}

/// The disks by node of the replicas of `shard`: of holders, those that are among these count.
fn disks_of(state: &Overlay<'_>, shard: &Shard) -> Result<Vec<Holder>, Stop> {
    let mut disks = Vec::with_capacity(shard.replicas.len());
    for replica in &shard.replicas {
        disks.extend(known_node(state, replica.node)?.holder());
    }
    Ok(disks)
}

/// Those of `named` that count, in the order of nodes; refuses if there are too few of them. `None` where nobody has to hold
/// anything: the part store is shared, or there are no `files`, as when all records were filtered.
pub(super) fn holders_that_count(
    state: &Overlay<'_>,
    table: &Table,
    shard: &Shard,
    named: &[Holder],
    files: usize,
) -> Result<Option<Vec<Holder>>, Stop> {
    let Some(rule) = state.replication()?.filter(|_| files > 0) else {
        return Ok(None);
    };
    let disks = disks_of(state, shard)?;
    let mut counted: Vec<Holder> = named.iter().filter(|holder| disks.contains(holder)).copied().collect();
    counted.sort();
    counted.dedup();
    let needed = table.settings.disks_needed(rule);
    if counted.len() >= needed as usize {
        return Ok(Some(counted));
    }
    let mut ignored = Vec::new();
    for holder in named.iter().filter(|holder| !disks.contains(holder)) {
        let name = state.get::<Node>(&holder.node)?.map(|node| node.name);
        let name = name.unwrap_or_else(|| holder.node.to_string());
        ignored.push(match shard.replica(holder.node) {
            None => format!("node '{name}' is no replica of shard {}", shard.id),
            Some(_) => format!("disk {} is not the present one of node '{name}'", holder.disk),
        });
    }
    if ignored.is_empty() {
        ignored.push("no other was named".into());
    }
    Err(Refusal::TooFewHolders {
        counted: counted.len() as u32,
        needed,
        ignored,
    }
    .into())
}

/// Notes who holds `files`, which have just become live, if anybody has to.
pub(super) fn put_copies<'f>(
    state: &mut Overlay<'_>,
    shard: ShardId,
    files: impl Iterator<Item = &'f PartFile>,
    holders: Option<Vec<Holder>>,
) -> Result<(), Stop> {
    let Some(holders) = holders else {
        return Ok(());
    };
    for file in files {
        state.put(&(shard, file.id), &Copies::of(file, holders.clone()))?;
    }
    Ok(())
}

/// Refuses a leader that is no complete replica (REP-1).
pub(super) fn check_may_lead(state: &Overlay<'_>, shard: &Shard, node: &Node) -> Result<(), Stop> {
    if state.replication()?.is_none() || shard.ready_replicas().any(|ready| ready == node.id) {
        return Ok(());
    }
    let why = match shard.replica(node.id) {
        Some(_) => "still copies its files",
        None => "is no replica of it",
    };
    Err(no(format!(
        "node '{}' cannot lead shard {}: it {why}",
        node.name, shard.id
    )))
}

/// Takes a node whose disk is another now for an empty one in all its shards.
pub(super) fn begin_anew(state: &mut Overlay<'_>, node: NodeId) -> Result<(), Stop> {
    for mut shard in state.list::<Shard>(&[])? {
        let replica = shard.replicas.iter_mut().find(|replica| replica.node == node);
        let Some(replica) = replica.filter(|replica| replica.state == ReplicaState::Ready) else {
            continue;
        };
        replica.state = ReplicaState::Copying;
        shard.standby = shard.standby.filter(|standby| *standby != node);
        state.put(&shard.id, &shard)?;
    }
    Ok(())
}

pub(super) fn set_replication(state: &mut Overlay<'_>, at: At, c: SetReplication) -> Verdict {
    let mut cluster = founded(state)?;
    let (present, wanted) = (replicating(state)?, c.wanted);
    if c.from.is_some_and(|from| from != present) {
        return Err(Refusal::Outdated("settings of the cluster were changed".into()).into());
    }
    wanted.check().map_err(no)?;
    if wanted == present {
        return Ok(Response::Unchanged);
    }
    if wanted.min_replicas > present.min_replicas {
        for shard in state.list::<Shard>(&[])? {
            check_enough(state, &shard, &disks_of(state, &shard)?, wanted.min_replicas, None)?;
        }
    }
    cluster.replication = Some(wanted);
    state.put(&ClusterKey, &cluster)?;
    let Replication { replicas, min_replicas } = wanted;
    let text = format!(
        "replicas = {replicas}, min_replicas = {min_replicas} (before: {}, {})",
        present.replicas, present.min_replicas
    );
    note(state, at, "replication", &cluster.name, None, text)?;
    Ok(Response::Done)
}

/// Refuses if a live file of `shard`, or a new one, would have fewer than `needed` holders among `disks`; not if `given_up`
/// has nothing to do with that.
fn check_enough(
    state: &Overlay<'_>,
    shard: &Shard,
    disks: &[Holder],
    needed: u32,
    given_up: Option<Holder>,
) -> Result<(), Stop> {
    let needed = needed as usize;
    if disks.len() < needed {
        return Err(no(format!(
            "shard {} would have {} replicas, min_replicas is {needed}",
            shard.id,
            disks.len()
        )));
    }
    let held = |copies: &Copies| copies.holders.iter().filter(|holder| disks.contains(holder)).count();
    let copies = state.copies_of(shard.id)?;
    let matters = |copies: &Copies| given_up.is_none_or(|disk| copies.on(disk));
    if let Some(short) = copies.iter().find(|copies| held(copies) < needed && matters(copies)) {
        return Err(no(format!(
            "file {} of shard {} would be on {} disks, min_replicas is {needed}",
            short.path,
            shard.id,
            held(short)
        )));
    }
    Ok(())
}

pub(super) fn add(state: &mut Overlay<'_>, at: At, c: &ReplicaOf) -> Verdict {
    replicating(state)?;
    let mut shard = shard_of(state, c.shard)?;
    let node = known_node(state, c.node)?;
    if shard.replica(node.id).is_some() {
        return Ok(Response::Unchanged);
    }
    let stays = node.intent == NodeIntent::Serve && node.state != NodeState::Removed;
    let Some(disk) = node.holder().filter(|_| stays) else {
        return Err(no(format!(
            "node '{}' cannot keep parts: it is {} and shall {}",
            node.name, node.state, node.intent
        )));
    };
    // Nothing was ever put there, so a shard that has files is never complete here.
    let complete = state.copies_of(shard.id)?.iter().all(|copies| copies.on(disk));
    shard.replicas.push(Replica {
        since: at.version,
        node: node.id,
        state: if complete {
            ReplicaState::Ready
        } else {
            ReplicaState::Copying
        },
    });
    shard.replicas.sort_by_key(|replica| replica.node);
    state.put(&shard.id, &shard)?;
    Ok(Response::Done)
}

pub(super) fn complete(state: &mut Overlay<'_>, at: At, c: &ReplicaOf) -> Verdict {
    replicating(state)?;
    let mut shard = shard_of(state, c.shard)?;
    let node = known_node(state, c.node)?;
    let none = || no(format!("node '{}' is no replica of shard {}", node.name, c.shard));
    let disk = node.holder().ok_or_else(none)?;
    let disks = disks_of(state, &shard)?;
    let replica = shard.replicas.iter_mut().find(|replica| replica.node == node.id);
    let replica = replica.ok_or_else(none)?;
    if replica.state == ReplicaState::Ready {
        return Ok(Response::Unchanged);
    }
    let copies = state.copies_of(c.shard)?;
    // What nobody has any more can be copied from nobody: it must not keep the shard from being led for ever.
    let there = |copies: &&Copies| copies.holders.iter().any(|holder| disks.contains(holder));
    let gone = copies.iter().filter(|copies| !there(copies)).count();
    let missing = copies.iter().filter(there).filter(|copies| !copies.on(disk)).count();
    if missing > 0 {
        return Err(no(format!(
            "node '{}' lacks {missing} of {} files of shard {}",
            node.name,
            copies.len(),
            c.shard
        )));
    }
    replica.state = ReplicaState::Ready;
    state.put(&shard.id, &shard)?;
    if gone > 0 {
        let text = format!(
            "{gone} files of shard {} are on no disk any more; the replica is complete without",
            c.shard
        );
        note(state, at, "files lost", &node.name, None, text)?;
    }
    Ok(Response::Done)
}

pub(super) fn drop_replica(state: &mut Overlay<'_>, c: &ReplicaOf) -> Verdict {
    let rule = replicating(state)?;
    let mut shard = shard_of(state, c.shard)?;
    if shard.replica(c.node).is_none() {
        return Ok(Response::Unchanged);
    }
    if shard.leader == Some(c.node) {
        return Err(no(format!("node {} leads shard {}", c.node, c.shard)));
    }
    shard.replicas.retain(|replica| replica.node != c.node);
    shard.standby = shard.standby.filter(|standby| *standby != c.node);
    let Some(given_up) = known_node(state, c.node)?.holder() else {
        return Err(no(format!("node {} has no disk", c.node)));
    };
    let disks = disks_of(state, &shard)?;
    check_enough(state, &shard, &disks, rule.min_replicas, Some(given_up))?;
    if shard.ready_replicas().next().is_none() {
        return Err(no(format!("shard {} would have no complete replica", c.shard)));
    }
    state.put(&shard.id, &shard)?;
    // Its files may go from now on. Were it to become a replica again, it must not count for what it had.
    for mut copies in state.copies_of(c.shard)? {
        let before = copies.holders.len();
        copies.holders.retain(|holder| holder.node != c.node);
        if copies.holders.len() < before {
            state.put(&(c.shard, copies.part), &copies)?;
        }
    }
    Ok(Response::Done)
}

pub(super) fn set_holdings(state: &mut Overlay<'_>, at: At, c: &SetHoldings) -> Verdict {
    replicating(state)?;
    let node = known_node(state, c.disk.node)?;
    if node.disk != Some(c.disk.disk) {
        return Err(no(format!(
            "disk {} is not the present one of node '{}'",
            c.disk.disk, node.name
        )));
    }
    let mut shards: BTreeMap<ShardId, Option<Shard>> = BTreeMap::new();
    let mut changed = false;
    for (shard, part) in &c.holds {
        if !shards.contains_key(shard) {
            shards.insert(*shard, state.get::<Shard>(shard)?);
        }
        let keeps = shards.get(shard).and_then(Option::as_ref);
        // A claim may come late: if the node was no replica in between, it may have deleted the file.
        let replica = keeps.and_then(|shard| shard.replica(node.id));
        if replica.is_none_or(|replica| c.seen < replica.since) {
            continue;
        }
        let Some(mut copies) = state
            .get::<Copies>(&(*shard, *part))?
            .filter(|copies| !copies.on(c.disk))
        else {
            continue;
        };
        copies.holders.retain(|holder| holder.node != node.id);
        copies.holders.push(c.disk);
        copies.holders.sort();
        state.put(&(*shard, *part), &copies)?;
        changed = true;
    }
    let mut lost = Vec::new();
    for (shard, part, why) in &c.lost {
        let Some(mut copies) = state
            .get::<Copies>(&(*shard, *part))?
            .filter(|copies| copies.on(c.disk))
        else {
            continue;
        };
        copies.holders.retain(|holder| holder.node != node.id);
        state.put(&(*shard, *part), &copies)?;
        lost.push((copies, why));
        changed = true;
    }
    let more = lost.len().saturating_sub(EVENTS);
    for (i, (copies, why)) in lost.into_iter().take(EVENTS).enumerate() {
        let others = copies.holders.len();
        let mut text = format!("{}: {why}; {others} other disks hold it", copies.path);
        if i + 1 == EVENTS && more > 0 {
            text.push_str(&format!("; and so with {more} more files"));
        }
        note(state, at, "copy lost", &node.name, None, text)?;
    }
    Ok(if changed { Response::Done } else { Response::Unchanged })
}

/// Refuses that a node leaves if too few would stay for new files.
pub(super) fn check_may_leave(state: &Overlay<'_>, node: &Node) -> Result<(), Stop> {
    let Some(rule) = state.replication()? else {
        return Ok(());
    };
    let stays = |other: &&Node| other.id != node.id && other.stays();
    let others = state.list::<Node>(&[])?.iter().filter(stays).count();
    if others >= rule.min_replicas as usize {
        return Ok(());
    }
    Err(no(format!(
        "without node '{}' there would be {others} nodes, and every file must be on {}: let another node join first, or \
         say ALTER CLUSTER SET (min_replicas = {others})",
        node.name, rule.min_replicas
    )))
}

/// Refuses to remove a node that still keeps files of a shard.
pub(super) fn check_keeps_nothing(state: &Overlay<'_>, node: &Node) -> Result<(), Stop> {
    let shards = state.list::<Shard>(&[])?;
    let kept = shards.iter().filter(|shard| shard.replica(node.id).is_some()).count();
    match kept {
        0 => Ok(()),
        _ => Err(no(format!("node '{}' is still a replica of {kept} shards", node.name))),
    }
}
