//! Retention headroom: how long until a record that is still to be read expires at its source.
//!
//! Asked of the source for every pipe, also for one that is paused: that is when it matters. The manager does it, since
//! nobody else is sure to exist. What it finds is soft; that a limit was passed is an event.

use crate::adapters::propose;
use crate::manager::Reports;
use crate::time::now_ms;
use std::time::Duration;
use tidemill_core::catalog::{CatalogQuestions, Event, Pipe};
use tidemill_core::command::RecordEvent;
use tidemill_core::view::{CatalogRead, CatalogSnapshot};
use tidemill_core::{Command, Offset, PartitionId};
use tidemill_ingest::kafka::{Unread, unread};
use tidemill_proto::api::Headroom;
use tidemill_raft::Catalog;
use tracing::{debug, warn};

/// The kind of its events.
const KIND: &str = "headroom";

/// Looks at every pipe's source once.
pub async fn look(catalog: &Catalog, reports: &Reports, state: &dyn CatalogSnapshot) -> anyhow::Result<()> {
    let mut known = Vec::new();
    for pipe in state.list::<Pipe>(&[])? {
        let partitions = state.partitions_of(pipe.id)?;
        let places: Vec<(PartitionId, Offset)> = partitions
            .iter()
            .filter(|p| p.stop.is_none() && !p.is_complete())
            .map(|p| (p.partition, p.offset))
            .collect();
        let source = pipe.source.clone();
        let found = match tokio::task::spawn_blocking(move || unread(&source, &places)).await? {
            Ok(found) => found,
            Err(error) => {
                debug!(pipe = %pipe.name, %error, "the source does not say how long it keeps records");
                continue;
            }
        };
        for unread in found {
            let Some(seconds) = headroom_s(&unread) else { continue };
            known.push(Headroom {
                pipe: pipe.id.0,
                partition: unread.partition.0,
                seconds,
            });
            if seconds < i64::from(pipe.settings.headroom_alert_s) {
                alert(catalog, state, &pipe, &unread, seconds).await?;
            }
        }
    }
    reports.know_headroom(known);
    Ok(())
}

/// How long until the oldest unread record expires; `None` if there is none, or if it never does.
fn headroom_s(unread: &Unread) -> Option<i64> {
    let expires = unread.oldest_ms?.checked_add(unread.retention_ms?)?;
    Some(expires.saturating_sub(now_ms()) / 1000)
}

/// Writes the alert down, unless that was done within the time that the limit gives.
async fn alert(
    catalog: &Catalog,
    state: &dyn CatalogSnapshot,
    pipe: &Pipe,
    unread: &Unread,
    seconds: i64,
) -> anyhow::Result<()> {
    let since = now_ms() - i64::from(pipe.settings.headroom_alert_s) * 1000;
    let same = |e: &Event| e.kind == KIND && e.subject == pipe.name && e.partition == Some(unread.partition);
    if state.list::<Event>(&[])?.iter().any(|e| same(e) && e.at_ms > since) {
        return Ok(());
    }
    let text = format!(
        "the oldest unread record, at offset {} or later, expires at the source in {seconds} s, which is below headroom_alert: \
         let the pipe read, or raise the topic's retention",
        unread.next
    );
    warn!(pipe = %pipe.name, partition = %unread.partition, "{text}");
    let command = Command::RecordEvent(RecordEvent {
        kind: KIND.to_owned(),
        subject: pipe.name.clone(),
        partition: Some(unread.partition),
        text,
    });
    propose(catalog, command, Duration::from_secs(5)).await?.1?;
    Ok(())
}
