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
use tidemill_proto::api::{Headroom, SourcePartition};
use tidemill_raft::Catalog;
use tracing::{debug, warn};

/// The kind of its events.
const KIND: &str = "headroom";
/// The shortest time over which the rate of new records is taken: a burst is no rate.
const SHORTEST_RATE_MS: i64 = 60_000;

/// Looks at every pipe's source once.
pub async fn look(catalog: &Catalog, reports: &Reports, state: &dyn CatalogSnapshot) -> anyhow::Result<()> {
    let (mut known, mut urgent) = (Vec::new(), Vec::new());
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
            let Some(seconds) = headroom_s(&unread, now_ms()) else {
                continue;
            };
            known.push(Headroom {
                pipe: pipe.id.0,
                partition: unread.partition.0,
                seconds,
            });
            if seconds < i64::from(pipe.settings.headroom_alert_s) {
                urgent.push(SourcePartition {
                    pipe: pipe.id.0,
                    partition: unread.partition.0,
                });
                alert(catalog, state, &pipe, &unread, seconds).await?;
            }
        }
    }
    reports.know_headroom(known, urgent);
    Ok(())
}

/// How long until the oldest unread record expires at `now_ms`; `None` if it never does, or if nobody knows.
fn headroom_s(unread: &Unread, now_ms: i64) -> Option<i64> {
    let by_time = by_time_s(unread, now_ms);
    let by_size = by_size_s(unread, now_ms);
    by_time.into_iter().chain(by_size).min()
}

/// By its age.
fn by_time_s(unread: &Unread, now_ms: i64) -> Option<i64> {
    let expires = unread.oldest_ms?.checked_add(unread.retention_ms?)?;
    Some(expires.saturating_sub(now_ms) / 1000)
}

/// By what comes behind it, if that comes as fast as it did since then. Sizes are those of records as they are read;
/// compressed, the source keeps more of them, so this errs towards an early alarm.
fn by_size_s(unread: &Unread, now_ms: i64) -> Option<i64> {
    let kept = unread.retention_bytes? as f64 / unread.record_bytes?.max(1.0);
    let records = unread.records as f64;
    let age_ms = now_ms.saturating_sub(unread.oldest_ms?);
    let seconds = age_ms.max(SHORTEST_RATE_MS) as f64 / 1000.0;
    // `records` came in so many seconds; as long as what is left of the room takes at that rate.
    Some(((kept - records) / records.max(1.0) * seconds).max(0.0) as i64)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn unread() -> Unread {
        Unread {
            partition: PartitionId(0),
            next: Offset(0),
            records: 1_000,
            record_bytes: Some(100.0),
            oldest_ms: Some(0),
            retention_ms: None,
            retention_bytes: None,
        }
    }

    #[test]
    fn records_expire_by_age_or_by_what_comes_behind_them_whichever_is_first() {
        // 1,000 records in 100 s, and 2,000 are kept: another 100 s.
        let now = 100_000;
        assert_eq!(headroom_s(&unread(), now), None);
        let by_size = Unread {
            retention_bytes: Some(200_000),
            ..unread()
        };
        assert_eq!(headroom_s(&by_size, now), Some(100));
        let by_both = |retention_ms| Unread {
            retention_ms: Some(retention_ms),
            ..by_size.clone()
        };
        assert_eq!(headroom_s(&by_both(150_000), now), Some(50));
        assert_eq!(headroom_s(&by_both(900_000), now), Some(100));
        let too_many = Unread {
            records: 3_000,
            ..by_size.clone()
        };
        assert_eq!(headroom_s(&too_many, now), Some(0));
        // A thousand within a second are a burst, not a thousand each second.
        assert_eq!(headroom_s(&by_size, 1_000), Some(60));
        let unknown = Unread {
            record_bytes: None,
            ..by_size
        };
        assert_eq!(headroom_s(&unknown, now), None);
    }
}
