//! The invariants, each with the name it has everywhere: in tests, in simulation, in production counters.
//!
//! [`check_state`] looks at one state, [`check_step`] at two that follow each other. A violation is a bug in
//! Tidemill, never a user's mistake.

use crate::catalog::*;
use crate::ids::*;
use crate::ledger::ClosedLedger;
use crate::span::SpanKey;
use crate::view::{CatalogRead, CatalogView, Key, ViewError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its name, such as `OFF-2`.
    pub invariant: &'static str,
    /// What was found.
    pub found: String,
}

fn violation(invariant: &'static str, found: String) -> Violation {
    Violation { invariant, found }
}

/// What must hold in every state of the catalog.
pub fn check_state<V: CatalogView + ?Sized>(view: &V) -> Result<Vec<Violation>, ViewError> {
    let mut found = Vec::new();
    let parts = view.all::<Part>(&[])?;
    let rejects = view.all::<RejectPart>(&[])?;
    let mut rejected: BTreeMap<_, u64> = BTreeMap::new();
    for part in &rejects {
        if part.of.iter().map(|of| of.records).sum::<u64>() != part.file.rows {
            found.push(violation(
                "LED-1",
                format!("reject part {} holds other than it says", part.file.id),
            ));
        }
        for of in &part.of {
            let key = SpanKey {
                pipe: part.pipe,
                partition: of.partition,
                incarnation: of.incarnation,
            };
            *rejected.entry(key).or_default() += of.records;
        }
    }
    let partitions = view.all::<SourcePartition>(&[])?;
    for partition in &partitions {
        let name = format!("pipe {} partition {}", partition.pipe, partition.partition);
        match view.find::<Pipe>(&partition.pipe)?.as_deref().map(|pipe| &pipe.source) {
            None => found.push(violation("OFF-2", format!("{name} has no pipe"))),
            Some(Source::Writers { .. }) if !is_of_a_writer(view, partition)? => {
                found.push(violation("OFF-2", format!("{name} has no writer")));
            }
            Some(_) => {}
        }
        if view.find::<Shard>(&partition.shard)?.is_none() {
            found.push(violation(
                "OWN-1",
                format!("{name} belongs to shard {}, which is not there", partition.shard),
            ));
        }
        if partition.until.is_some_and(|until| until < partition.offset) {
            found.push(violation("OFF-1", format!("{name} has passed its end: {partition:?}")));
        }
    }
    let closed = view.all::<ClosedLedger>(&[])?;
    let lives = partitions.iter().map(|p| (p.key(), p.ledger, p.offset));
    for (key, ledger, end) in lives.chain(closed.iter().map(|c| (c.key(), c.ledger, c.end))) {
        let broken = |what: String| violation("LED-1", format!("{key:?}: {what}"));
        found.extend(ledger.imbalance(end).map(broken));
        let held = rejected.remove(&key).unwrap_or_default();
        let counted = ledger.counts.rejected;
        if held != counted {
            found.push(broken(format!(
                "counts {counted} rejected records, reject parts hold {held}"
            )));
        }
    }
    for shard in view.all::<Shard>(&[])? {
        if view.find::<Table>(&shard.id.table)?.is_none() {
            found.push(violation("OWN-1", format!("shard {} has no table", shard.id)));
        }
        if let Some(leader) = shard.leader {
            let node = view.find::<Node>(&leader)?;
            if node.is_none_or(|node| !node.state.is_up()) {
                found.push(violation(
                    "OWN-1",
                    format!("shard {} is led by node {leader}, which cannot lead", shard.id),
                ));
            }
        }
    }
    found.extend(check_standbys(view)?);
    found.extend(check_nodes(view)?);
    found.extend(check_copies(view, &parts, &rejects)?);
    let mut ids = BTreeMap::new();
    for (id, what) in parts
        .iter()
        .map(|p| (p.file.id, "part"))
        .chain(rejects.iter().map(|p| (p.file.id, "reject part")))
    {
        if let Some(other) = ids.insert(id, what) {
            found.push(violation("CAT-1", format!("{what} {id} is also a {other}")));
        }
        if view.find::<Tombstone>(&id)?.is_some() {
            found.push(violation("CAT-1", format!("{what} {id} is live and buried")));
        }
    }
    Ok(found)
}

fn is_of_a_writer<V: CatalogView + ?Sized>(view: &V, partition: &SourcePartition) -> Result<bool, ViewError> {
    let table = partition.shard.table;
    let shards = view.find::<Table>(&table)?.map_or(1, |table| table.shards);
    let number = Writer::number_of(partition.partition, shards);
    Ok(view.writers_of(table)?.iter().any(|writer| writer.number == number))
}

/// OWN-1: a shard's standby is another node than its leader, and has not been removed. REP-1: it is a complete replica.
fn check_standbys<V: CatalogView + ?Sized>(view: &V) -> Result<Vec<Violation>, ViewError> {
    let mut found = Vec::new();
    let replicates = view.replication()?.is_some();
    for shard in view.all::<Shard>(&[])? {
        let Some(standby) = shard.standby else { continue };
        let node = view.find::<Node>(&standby)?;
        let gone = node.is_none_or(|node| node.state == NodeState::Removed);
        if gone || shard.leader == Some(standby) {
            found.push(violation("OWN-1", format!("{shard:?} has a standby that cannot be")));
        }
        if replicates && shard.ready_replicas().all(|ready| ready != standby) {
            let what = format!("the standby of {shard:?} is no complete replica");
            found.push(violation("REP-1", what));
        }
    }
    Ok(found)
}

/// CAT-1: where parts are replicated, exactly the live files have copies, at most one on each node. REP-1: only a
/// complete replica leads.
fn check_copies<V: CatalogView + ?Sized>(
    view: &V,
    parts: &[Arc<Part>],
    rejects: &[Arc<RejectPart>],
) -> Result<Vec<Violation>, ViewError> {
    let mut found = Vec::new();
    let replicates = view.replication()?;
    let live = parts.iter().map(|p| (p.shard, &p.file));
    let live = live.chain(rejects.iter().map(|p| (p.shard, &p.file)));
    let live: BTreeMap<_, _> = live.map(|(shard, file)| ((shard, file.id), file)).collect();
    let mut copied = 0;
    for shard in view.all::<Shard>(&[])? {
        for copies in view.all::<Copies>(&shard.id.bytes())? {
            copied += 1;
            let twice = copies.holders.windows(2).any(|pair| pair[0].node == pair[1].node);
            let file = live.get(&(shard.id, copies.part));
            if twice || !file.is_some_and(|file| copies.are_of(file)) {
                found.push(violation("CAT-1", format!("{copies:?} are copies of {file:?}")));
            }
        }
        let led_by_other = shard
            .leader
            .is_some_and(|leader| shard.ready_replicas().all(|ready| ready != leader));
        if replicates.is_some() && led_by_other {
            found.push(violation(
                "REP-1",
                format!("{shard:?} is not led by a complete replica"),
            ));
        }
    }
    if view.all::<Copies>(&[])?.len() != copied || copied != replicates.map_or(0, |_| live.len()) {
        found.push(violation(
            "CAT-1",
            format!("{copied} files have copies, {} are live", live.len()),
        ));
    }
    Ok(found)
}

/// The present disk of every node that has one.
fn present_disks<V: CatalogView + ?Sized>(view: &V) -> Result<BTreeSet<Holder>, ViewError> {
    let nodes = view.all::<Node>(&[])?;
    Ok(nodes.iter().filter_map(|node| node.holder()).collect())
}

/// How many disks of `copies` count: those that replicas of `shard` have now.
fn counted(present: &BTreeSet<Holder>, shard: &Shard, copies: &Copies) -> usize {
    let counts = |holder: &&Holder| present.contains(*holder) && shard.replica(holder.node).is_some();
    copies.holders.iter().filter(counts).count()
}

/// CAT-1: what becomes live is on enough disks. REP-1: a replica becomes ready only when it holds everything, and
/// nobody is given up whom the files need.
fn check_copies_step<A, B>(before: &A, after: &B) -> Result<Vec<Violation>, ViewError>
where
    A: CatalogView + ?Sized,
    B: CatalogView + ?Sized,
{
    let mut found = Vec::new();
    let Some(rule) = after.replication()? else {
        return Ok(found);
    };
    let (present_before, present) = (present_disks(before)?, present_disks(after)?);
    for new in after.all::<Shard>(&[])? {
        let old = before.find::<Shard>(&new.id)?;
        let was_ready = |node: &NodeId| {
            old.iter()
                .flat_map(|old| old.ready_replicas())
                .any(|ready| ready == *node)
        };
        let begin: Vec<NodeId> = new.ready_replicas().filter(|node| !was_ready(node)).collect();
        let mut replicas_before = old.iter().flat_map(|old| &old.replicas);
        let gave_up = replicas_before.any(|r| new.replica(r.node).is_none());
        let copies_before = before.all::<Copies>(&new.id.bytes())?;
        // Both are in the order of parts.
        let mut known = copies_before.iter().peekable();
        for copies in after.all::<Copies>(&new.id.bytes())? {
            while known.next_if(|known| known.part < copies.part).is_some() {}
            let known = known.next_if(|known| known.part == copies.part);
            if known.is_some() && !gave_up && begin.is_empty() {
                continue;
            }
            let count = counted(&present, &new, &copies);
            let before_count = match (&old, known) {
                (Some(old), Some(known)) => counted(&present_before, old, known),
                _ => usize::MAX,
            };
            let enough = count >= rule.min_replicas as usize || count >= before_count;
            if (known.is_none() || gave_up) && !enough {
                found.push(violation("CAT-1", format!("{copies:?} of {new:?} are too few")));
            }
            for ready in &begin {
                if count > 0 && copies.holders.iter().all(|holder| holder.node != *ready) {
                    found.push(violation(
                        "REP-1",
                        format!("node {ready} became ready without {copies:?}"),
                    ));
                }
            }
        }
    }
    Ok(found)
}

/// MEM-1: ids are given out once, data folders are known once, living nodes have names of their own, and a node
/// that shall give up its shards is not ready for more.
fn check_nodes<V: CatalogView + ?Sized>(view: &V) -> Result<Vec<Violation>, ViewError> {
    let mut found = Vec::new();
    let next = view.find::<Cluster>(&ClusterKey)?.map(|cluster| cluster.next_node);
    let (mut names, mut folders) = (BTreeMap::new(), BTreeMap::new());
    for node in view.all::<Node>(&[])? {
        let mut broken =
            |what: String| found.push(violation("MEM-1", format!("node {} ({}): {what}", node.id, node.name)));
        if next.is_none_or(|next| node.id >= next) {
            broken(format!("its id would be given out again, next is {next:?}"));
        }
        if let Some(other) = folders.insert(node.instance, node.id) {
            broken(format!("node {other} has the same data folder"));
        }
        if node.state != NodeState::Removed
            && let Some(other) = names.insert(node.name.clone(), node.id)
        {
            broken(format!("node {other} has the same name"));
        }
        if node.intent != NodeIntent::Serve && node.state == NodeState::Ready {
            broken(format!("it is ready although it shall {}", node.intent));
        }
    }
    Ok(found)
}

/// What must hold between a state and the next.
pub fn check_step<A, B>(before: &A, after: &B) -> Result<Vec<Violation>, ViewError>
where
    A: CatalogView + ?Sized,
    B: CatalogView + ?Sized,
{
    let mut found = Vec::new();
    for old in before.all::<Shard>(&[])? {
        let Some(new) = after.find::<Shard>(&old.id)? else {
            continue;
        };
        if new.epoch < old.epoch || (new.leader != old.leader && new.epoch == old.epoch) {
            found.push(violation("OWN-1", format!("shard {}: {old:?} became {new:?}", old.id)));
        }
    }
    for old in before.all::<Node>(&[])? {
        let new = after.find::<Node>(&old.id)?;
        let same = new
            .as_ref()
            .is_some_and(|new| new.instance == old.instance && new.name == old.name);
        if !same || (old.state == NodeState::Removed && new.as_ref() != Some(&old)) {
            found.push(violation("MEM-2", format!("{old:?} became {new:?}")));
        }
    }
    for old in before.all::<SourcePartition>(&[])? {
        let Some(new) = after.find::<SourcePartition>(&(old.pipe, old.partition))? else {
            continue;
        };
        if new.incarnation < old.incarnation || (new.incarnation == old.incarnation && new.offset < old.offset) {
            found.push(violation("OFF-2", format!("{old:?} went back to {new:?}")));
        }
        if new.shard != old.shard && new.incarnation == old.incarnation {
            found.push(violation("OWN-1", format!("{old:?} changed its shard within a life")));
        }
    }
    found.extend(check_copies_step(before, after)?);
    // Rows and counts move together: the rows of a table grow by what its partitions count (LED-1, QRY-1).
    for table in after.all::<Table>(&[])? {
        let pipes_before: Vec<PipeId> = before.pipes_into(table.id)?.iter().map(|p| p.id).collect();
        let pipes_after: Vec<PipeId> = after.pipes_into(table.id)?.iter().map(|p| p.id).collect();
        if pipes_before != pipes_after {
            continue;
        }
        let rows = |parts: Vec<Arc<Part>>| parts.iter().map(|p| p.file.rows).sum::<u64>();
        let grown = rows(after.all::<Part>(&table.id.bytes())?) - rows(before.all::<Part>(&table.id.bytes())?);
        let mut counted = 0;
        for pipe in pipes_after {
            counted += rows_counted(after, pipe)? - rows_counted(before, pipe)?;
        }
        if grown != counted {
            found.push(violation(
                "LED-1",
                format!("table '{}' grew by {grown} rows, counted {counted}", table.name),
            ));
        }
    }
    Ok(found)
}

/// The rows that the ledgers of a pipe count, in all lives of its partitions.
fn rows_counted<V: CatalogView + ?Sized>(view: &V, pipe: PipeId) -> Result<u64, ViewError> {
    let present = view.partitions_of(pipe)?.into_iter().map(|p| p.ledger.counts.rows);
    let closed = view.closed_ledgers_of(pipe)?.into_iter().map(|c| c.ledger.counts.rows);
    Ok(present.chain(closed).sum())
}
