//! A task that stands by: it reads beside the leader, shows nothing, commits nothing, and may lead one day.
//!
//! A model of `ingest/src/task/standby.rs` and `storage/src/memtable/standby.rs`. Memory, which a standby gives back when it is
//! short, is not modelled.

use super::lane::{Lane, epoch_after};
use super::{Hands, Task, Wanted};
use crate::mutant::Mutant;
use crate::time::Time;
use std::collections::BTreeSet;
use std::time::Duration;
use tidemill_core::catalog::{PipeState, SourcePartition, Standby};
use tidemill_core::{Epoch, Offset, SpanKey};

/// Whether a partition is to be read on.
fn is_read(p: &SourcePartition) -> bool {
    p.stop.is_none() && !p.is_complete()
}

impl Task {
    /// Of what the catalog says, that which a standby reads now.
    pub(super) fn worth_tailing(&mut self, wanted: Vec<Wanted>, now: Time) -> Vec<Wanted> {
        let now = Duration::from_micros(now);
        let hot = |w: &Wanted| w.pipe.settings.standby == Standby::Hot && w.pipe.state == PipeState::Running;
        let mut worth: Vec<Wanted> = wanted.into_iter().filter(hot).collect();
        for Wanted { pipe, partitions, .. } in &mut worth {
            // What was read by other settings is read anew by these.
            let altered = self
                .pipes
                .insert(pipe.id, pipe.clone())
                .is_some_and(|known| known != *pipe);
            let (lanes, tail) = (&mut self.lanes, &mut self.tail);
            partitions.retain(|p| is_read(p));
            partitions.retain(|p| {
                let (key, place) = (p.key(), (p.pipe, p.partition));
                let lane = lanes.get(&place).filter(|lane| lane.key == key);
                let mut to = lane.map(|lane| lane.to);
                if altered || to.is_some_and(|to| tail.is_too_far_behind(key, Offset(to), p.offset, now)) {
                    lanes.remove(&place);
                    to = None;
                }
                if let Some(lane) = lanes.get_mut(&place).filter(|_| to.is_some()) {
                    lane.release_below(p.offset.0);
                }
                to.is_some() || tail.may_begin(key, now)
            });
        }
        let known: BTreeSet<SpanKey> = worth
            .iter()
            .flat_map(|w| w.partitions.iter().map(|p| p.key()))
            .collect();
        self.tail.keep(&known);
        worth
    }

    /// Leads from now on, in `epoch`; `wanted` is of a state that says so. Gives how many histories go on.
    pub fn take_over(&mut self, epoch: Epoch, wanted: &[Wanted], hands: &mut Hands<'_>) -> u64 {
        self.epoch = Some(epoch);
        let running = |w: &&Wanted| w.pipe.state == PipeState::Running && w.pipe.source.kafka().is_some();
        let committed: Vec<&SourcePartition> = wanted
            .iter()
            .filter(running)
            .flat_map(|w| w.partitions.iter().map(|p| &**p).filter(|p| is_read(p)))
            .collect();
        let before = std::mem::take(&mut self.lanes);
        for (place, lane) in before {
            let known = committed.iter().find(|p| p.key() == lane.key);
            if let Some(lane) = known.and_then(|p| lane.going_on(p, hands.mutant)) {
                // Before anything is logged behind the rows taken over.
                hands.wal.drop_lane((self.shard, place.0, place.1));
                self.lanes.insert(place, lane);
            }
        }
        self.lanes.len() as u64
    }
}

impl Lane {
    /// The history from the committed offset on, if that is in it and it is the same history.
    fn going_on(&self, committed: &SourcePartition, mutant: Option<Mutant>) -> Option<Lane> {
        let offset = committed.offset.0;
        if !(self.from..=self.to).contains(&offset) {
            return None;
        }
        let compares = committed.source_epoch.is_some() && mutant != Some(Mutant::StandbyIgnoresTheEpoch);
        let below = self.fresh.partition_point(|piece| piece.span.end.0 <= offset);
        let before = epoch_after(self.before, &self.fresh[..below]);
        let mut fresh = self.fresh[below..].to_vec();
        if let Some(across) = fresh.first_mut().filter(|piece| piece.span.start.0 < offset) {
            let same = across.span.source_epoch.is_none_or(|epoch| before == Some(epoch));
            if compares && !same {
                return None;
            }
            *across = across.starting_at(offset)?;
        }
        if compares && committed.source_epoch != before {
            return None;
        }
        Some(Lane {
            from: offset,
            before,
            frozen: Vec::new(),
            fresh,
            ..self.clone()
        })
    }
}
