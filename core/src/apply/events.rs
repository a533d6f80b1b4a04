//! The book of events: what happened, for people to look up. The oldest are forgotten.

use super::{At, Stop};
use crate::catalog::{Cluster, ClusterKey, Event};
use crate::command::{RecordEvent, Response};
use crate::ids::PartitionId;
use crate::view::{CatalogRead, Overlay};

/// How many events are kept.
pub const EVENTS_KEPT: u64 = 10_000;

/// Writes an event down, and forgets the one that is too old for it.
pub(super) fn note(
    state: &mut Overlay<'_>,
    at: At,
    kind: &str,
    subject: &str,
    partition: Option<PartitionId>,
    text: String,
) -> Result<(), Stop> {
    let Some(mut cluster) = state.get::<Cluster>(&ClusterKey)? else {
        return Ok(());
    };
    let number = cluster.next_event;
    cluster.next_event = number.saturating_add(1);
    state.put(&ClusterKey, &cluster)?;
    let event = Event {
        number,
        at_ms: at.ms,
        kind: kind.to_owned(),
        subject: subject.to_owned(),
        partition,
        text,
    };
    state.put(&number, &event)?;
    if let Some(old) = number.checked_sub(EVENTS_KEPT) {
        state.delete::<Event>(&old);
    }
    Ok(())
}

pub(super) fn record(state: &mut Overlay<'_>, at: At, c: &RecordEvent) -> super::Verdict {
    note(state, at, &c.kind, &c.subject, c.partition, c.text.clone())?;
    Ok(Response::Done)
}
