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
/// The shortest time over which the rate of new records is taken: a burst is no rate.
const SHORTEST_RATE_MS: i64 = 60_000;

/// Looks at every pipe's source once.
pub async fn look(catalog: &Catalog, reports: &Reports, state: &dyn CatalogSnapshot) -> anyhow::Result<()> {
    let mut known = Vec::new();
    for pipe in state.list::<Pipe>(&[])? {
        let Some(source) = pipe.source.kafka().cloned() else {
            continue;
        };
        let partitions = state.partitions_of(pipe.id)?;
        let places: Vec<(PartitionId, Offset)> = partitions
            .iter()
            .filter(|p| p.stop.is_none() && !p.is_complete())
            .map(|p| (p.partition, p.offset))
            .collect();
        if places.is_empty() {
            continue;
        }
        let found = match tokio::task::spawn_blocking(move || unread(&source, &places)).await? {
            Ok(found) => found,
            Err(error) => {
                debug!(pipe = %pipe.name, %error, "the source does not say how long it keeps records");
                continue;
            }
        };
        reports.know_answer(pipe.source.brokers());
        for unread in found {
            let Some(Room { seconds, half_used }) = room(&unread, now_ms()) else {
                continue;
            };
            let alarming = seconds < i64::from(pipe.settings.headroom_alert_s);
            known.push(Headroom {
                pipe: pipe.id.0,
                partition: unread.partition.0,
                seconds,
                urgent: alarming && half_used,
            });
            if alarming && let Err(error) = alert(catalog, state, &pipe, &unread, seconds).await {
                warn!(pipe = %pipe.name, %error, "an event about its headroom is not written");
            }
        }
    }
    reports.know_headroom(known);
    Ok(())
}

/// What is left of the time for which a source keeps the oldest unread record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    seconds: i64,
    /// Whether half of the time, or of the size, is used up. Where it is not, nobody needs to hurry, however short it is.
    half_used: bool,
}

/// The room at `now_ms`; `None` if the record never expires, or if nobody knows.
fn room(unread: &Unread, now_ms: i64) -> Option<Room> {
    let (by_time, by_size) = (by_time(unread, now_ms), by_size(unread, now_ms));
    by_time.into_iter().chain(by_size).min_by_key(|room| room.seconds)
}

/// By its age.
fn by_time(unread: &Unread, now_ms: i64) -> Option<Room> {
    let (oldest, retention) = (unread.oldest_ms?, unread.retention_ms?);
    let left = oldest.checked_add(retention)?.saturating_sub(now_ms);
    Some(Room {
        seconds: left / 1000,
        half_used: left <= retention / 2,
    })
}

/// By what comes behind it, if that comes as fast as it did since then.
fn by_size(unread: &Unread, now_ms: i64) -> Option<Room> {
    let kept = unread.retention_bytes? as f64 / unread.record_bytes?.max(1.0);
    let records = unread.records as f64;
    let age_ms = now_ms.saturating_sub(unread.oldest_ms?);
    let seconds = age_ms.max(SHORTEST_RATE_MS) as f64 / 1000.0;
    Some(Room {
        // `records` came in so many seconds; as long as what is left takes at that rate.
        seconds: ((kept - records) / records.max(1.0) * seconds).max(0.0) as i64,
        half_used: records >= kept / 2.0,
    })
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
        let is = |unread: &Unread, now: i64| room(unread, now).map(|room| (room.seconds, room.half_used));
        // 1,000 records in 100 s, and 2,000 are kept: another 100 s.
        let now = 100_000;
        assert_eq!(is(&unread(), now), None);
        let by_size = Unread {
            retention_bytes: Some(200_000),
            ..unread()
        };
        assert_eq!(is(&by_size, now), Some((100, true)));
        let by_both = |retention_ms| Unread {
            retention_ms: Some(retention_ms),
            ..by_size.clone()
        };
        assert_eq!(is(&by_both(150_000), now), Some((50, true)));
        assert_eq!(is(&by_both(900_000), now), Some((100, true)));
        // A short retention of which little is used is no hurry.
        let young = Unread {
            retention_ms: Some(300_000),
            ..unread()
        };
        assert_eq!(is(&young, now), Some((200, false)));
        let too_many = Unread {
            records: 3_000,
            ..by_size.clone()
        };
        assert_eq!(is(&too_many, now), Some((0, true)));
        // A thousand within a second are a burst, not a thousand each second.
        assert_eq!(is(&by_size, 1_000), Some((60, true)));
        let unknown = Unread {
            record_bytes: None,
            ..by_size
        };
        assert_eq!(is(&unknown, now), None);
    }
}
