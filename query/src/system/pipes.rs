//! `system.pipes` and `system.partitions`.

use super::cluster::table_names;
use super::columns::Columns;
use crate::error::QueryError;
use crate::ports::{NodeProgress, PartitionProgress, SoftState};
use crate::show::format_options;
use arrow::array::RecordBatch;
use std::collections::BTreeMap;
use tidemill_core::catalog::{CatalogQuestions, Pipe, Shard, SourcePartition};
use tidemill_core::view::{CatalogRead, CatalogSnapshot};
use tidemill_core::{NodeId, PipeId, ShardId, SpanKey};

/// The pipes.
pub(super) fn pipes(snapshot: &dyn CatalogSnapshot) -> Result<RecordBatch, QueryError> {
    let pipes: Vec<Pipe> = snapshot.list(&[])?;
    let tables = table_names(snapshot)?;
    let mut counts = Vec::with_capacity(pipes.len());
    for pipe in &pipes {
        counts.push(Some(snapshot.partitions_of(pipe.id)?.len() as u64));
    }
    let text = |of: fn(&Pipe) -> String| pipes.iter().map(move |pipe| Some(of(pipe)));
    Columns::default()
        .text("pipe", text(|pipe| pipe.name.clone()))
        .text("table", pipes.iter().map(|pipe| tables.get(&pipe.table).cloned()))
        .text("source", text(|pipe| pipe.source.kind().to_owned()))
        .text("topic", text(|pipe| pipe.source.topic().to_owned()))
        .text("brokers", text(|pipe| pipe.source.brokers().to_owned()))
        .text("state", text(|pipe| pipe.state.name().to_owned()))
        .text("format", text(|_| "json".to_owned()))
        .text(
            "options",
            text(|pipe| format_options(pipe).collect::<Vec<_>>().join(", ")),
        )
        .number("partitions", counts.into_iter())
        .text("standby", text(|pipe| pipe.settings.standby.name().to_owned()))
        .time("created_at", pipes.iter().map(|pipe| pipe.created_at_ms))
        .finish()
}

/// The source partitions: what is committed of each, and how far its task has read.
pub(super) fn partitions(snapshot: &dyn CatalogSnapshot, soft: &SoftState) -> Result<RecordBatch, QueryError> {
    let partitions: Vec<SourcePartition> = snapshot.list(&[])?;
    let pipes = snapshot.list::<Pipe>(&[])?.into_iter();
    let pipes: BTreeMap<PipeId, Pipe> = pipes.map(|pipe| (pipe.id, pipe)).collect();
    let name = |p: &SourcePartition| pipes.get(&p.pipe).map(|pipe| pipe.name.as_str());
    let tables = table_names(snapshot)?;
    let said = said_by_leaders(snapshot, &soft.nodes)?;
    let of = |p: &SourcePartition| said.get(&p.key()).copied();
    let mut totals: BTreeMap<(PipeId, u32), (u64, u64)> = BTreeMap::new();
    for life in super::ledger::lives(snapshot)? {
        let total = totals.entry((life.pipe, life.partition)).or_default();
        total.0 += life.ledger.counts.stored;
        total.1 += life.ledger.counts.rejected;
    }
    let total = |p: &SourcePartition| totals.get(&(p.pipe, p.partition.0)).copied().unwrap_or_default();
    let waits = |p: &SourcePartition| match &p.stop {
        Some(stop) => Some(stop.reason.explain(name(p).unwrap_or_default(), p.partition, p.offset)),
        None => of(p).map(|said| said.waiting_for.clone()),
    };
    let lag = |said: &PartitionProgress| said.end.map(|end| end.0.saturating_sub(said.position.0));
    // How long ago the newest record that was read was produced, while there is more to read.
    let now_ms = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64);
    let lag_seconds = |said: &PartitionProgress| match lag(said)? {
        0 => Some(0),
        _ => Some((now_ms.saturating_sub(said.read_to_ms?).max(0) / 1000).unsigned_abs()),
    };
    let room = |p: &SourcePartition| {
        let mut found = soft.headroom.iter();
        let found = found.find(|(pipe, n, _)| (*pipe, *n) == (p.pipe, p.partition));
        found.map(|(_, _, seconds)| *seconds)
    };
    let arriving = |p: &SourcePartition| {
        let mut found = soft.arriving.iter();
        let found = found.find(|(pipe, n, _)| (*pipe, *n) == (p.pipe, p.partition));
        found.map(|(_, _, rate)| *rate)
    };
    let alert_below = |p: &SourcePartition| {
        pipes
            .get(&p.pipe)
            .map_or(0, |pipe| i64::from(pipe.settings.headroom_alert_s))
    };
    let all = || partitions.iter();
    Columns::default()
        .text("pipe", all().map(|p| name(p).map(str::to_owned)))
        .number("partition", all().map(|p| Some(p.partition.0.into())))
        .text("table", all().map(|p| tables.get(&p.shard.table).cloned()))
        .number("shard", all().map(|p| Some(p.shard.index.into())))
        .number("incarnation", all().map(|p| Some(p.incarnation.0)))
        .number("start", all().map(|p| Some(p.ledger.start.0)))
        .number("committed", all().map(|p| Some(p.offset.0)))
        .number("position", all().map(|p| of(p).map(|said| said.position.0)))
        .number("end", all().map(|p| of(p).and_then(|said| said.end).map(|end| end.0)))
        .number("lag", all().map(|p| of(p).and_then(lag)))
        .number(
            "lag_bytes",
            all().map(|p| of(p).and_then(|said| Some((lag(said)? as f64 * said.record_bytes?) as u64))),
        )
        .number("lag_seconds", all().map(|p| of(p).and_then(lag_seconds)))
        .float("arriving_bytes_per_second", all().map(arriving))
        .number(
            "headroom_seconds",
            all().map(|p| room(p).map(|s| s.max(0).unsigned_abs())),
        )
        .boolean("headroom_alert", all().map(|p| room(p).map(|s| s < alert_below(p))))
        .number("stored", all().map(|p| Some(total(p).0)))
        .number("rejected", all().map(|p| Some(total(p).1)))
        .text(
            "stopped",
            all().map(|p| p.stop.as_ref().map(|stop| stop.reason.name().to_owned())),
        )
        .text(
            "wait",
            all().map(|p| of(p).and_then(|said| said.wait).map(|kind| kind.name().to_owned())),
        )
        .text("waiting_for", all().map(waits))
        .time("committed_at", all().map(|p| p.committed_at_ms))
        .finish()
}

/// What the present leaders say of their partitions; a deposed one may still say something.
fn said_by_leaders<'p>(
    snapshot: &dyn CatalogSnapshot,
    progress: &'p [NodeProgress],
) -> Result<BTreeMap<SpanKey, &'p PartitionProgress>, QueryError> {
    let leaders: BTreeMap<ShardId, Option<NodeId>> = snapshot
        .list::<Shard>(&[])?
        .into_iter()
        .map(|shard| (shard.id, shard.leader))
        .collect();
    let mut said = BTreeMap::new();
    for node in progress {
        let led = node
            .partitions
            .iter()
            .filter(|p| leaders.get(&p.shard) == Some(&Some(node.node)));
        said.extend(led.map(|partition| (partition.key, partition)));
    }
    Ok(said)
}
