//! `system.pipes` and `system.partitions`.

use super::cluster::table_names;
use super::columns::Columns;
use crate::error::QueryError;
use crate::ports::{NodeProgress, PartitionProgress};
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
        .text("source", text(|_| "kafka".to_owned()))
        .text("topic", text(|pipe| pipe.source.topic.clone()))
        .text("brokers", text(|pipe| pipe.source.brokers.clone()))
        .text(
            "state",
            text(|pipe| if pipe.paused { "paused" } else { "running" }.to_owned()),
        )
        .text("format", text(|_| "json".to_owned()))
        .text(
            "options",
            text(|pipe| format_options(pipe).collect::<Vec<_>>().join(", ")),
        )
        .number("partitions", counts.into_iter())
        .time("created_at", pipes.iter().map(|pipe| pipe.created_at_ms))
        .finish()
}

/// The source partitions: what is committed of each, and how far its task has read.
pub(super) fn partitions(
    snapshot: &dyn CatalogSnapshot,
    progress: Option<&[NodeProgress]>,
) -> Result<RecordBatch, QueryError> {
    let partitions: Vec<SourcePartition> = snapshot.list(&[])?;
    let pipes: BTreeMap<PipeId, String> = snapshot
        .list::<Pipe>(&[])?
        .into_iter()
        .map(|pipe| (pipe.id, pipe.name))
        .collect();
    let tables = table_names(snapshot)?;
    let said = said_by_leaders(snapshot, progress)?;
    let of = |p: &SourcePartition| {
        said.get(&SpanKey {
            pipe: p.pipe,
            partition: p.partition,
            incarnation: p.incarnation,
        })
        .copied()
    };
    let lag = |said: &PartitionProgress| said.end.map(|end| end.0.saturating_sub(said.position.0));
    let all = || partitions.iter();
    Columns::default()
        .text("pipe", all().map(|p| pipes.get(&p.pipe).cloned()))
        .number("partition", all().map(|p| Some(p.partition.0.into())))
        .text("table", all().map(|p| tables.get(&p.shard.table).cloned()))
        .number("shard", all().map(|p| Some(p.shard.index.into())))
        .number("incarnation", all().map(|p| Some(p.incarnation.0)))
        .number("start", all().map(|p| Some(p.start.0)))
        .number("committed", all().map(|p| Some(p.offset.0)))
        .number("position", all().map(|p| of(p).map(|said| said.position.0)))
        .number("end", all().map(|p| of(p).and_then(|said| said.end).map(|end| end.0)))
        .number("lag", all().map(|p| of(p).and_then(lag)))
        .number("stored", all().map(|p| Some(p.stored)))
        .number("rejected", all().map(|p| Some(p.rejected)))
        .text("waiting_for", all().map(|p| of(p).map(|said| said.waiting_for.clone())))
        .time("committed_at", all().map(|p| p.committed_at_ms))
        .finish()
}

/// What the present leaders say of their partitions; a deposed one may still say something.
fn said_by_leaders<'p>(
    snapshot: &dyn CatalogSnapshot,
    progress: Option<&'p [NodeProgress]>,
) -> Result<BTreeMap<SpanKey, &'p PartitionProgress>, QueryError> {
    let leaders: BTreeMap<ShardId, Option<NodeId>> = snapshot
        .list::<Shard>(&[])?
        .into_iter()
        .map(|shard| (shard.id, shard.leader))
        .collect();
    let mut said = BTreeMap::new();
    for node in progress.unwrap_or_default() {
        let led = node
            .partitions
            .iter()
            .filter(|p| leaders.get(&p.shard) == Some(&Some(node.node)));
        said.extend(led.map(|partition| (partition.key, partition)));
    }
    Ok(said)
}
