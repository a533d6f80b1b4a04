//! Pipes that are left *pausing*: the node that was to pause or reset one has ended between its steps.
//!
//! Such a pipe reads nothing, and nobody would let it go on. A statement that is alive is done with this step within half of
//! [`PATIENCE`]; after that the pipe runs again, as if nobody had asked. That is no matter of safety: what follows the step
//! is checked by itself, and who comes late finds a pipe that reads, and pauses or resets that.

use super::{Manager, Term};
use crate::adapters::propose;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tidemill_core::catalog::{Pipe, PipeState};
use tidemill_core::command::{RecordEvent, SetPipeState};
use tidemill_core::view::{CatalogRead, CatalogSnapshot, ViewError};
use tidemill_core::{Command, PipeId, Response};
use tracing::{debug, warn};

/// For how long a pipe may be pausing: a statement waits for 20 s until what was read is committed.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often pipes are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a command may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Since when pipes are pausing, as far as this manager has seen.
#[derive(Debug, Default)]
pub struct Pausing(BTreeMap<PipeId, Instant>);

impl Pausing {
    /// Looks at all pipes, at the time `now`; gives those that have been pausing for too long.
    fn look<'a>(&mut self, now: Instant, pipes: &'a [Pipe]) -> Vec<&'a Pipe> {
        let pausing = |pipe: &&Pipe| pipe.state == PipeState::Pausing;
        self.0
            .retain(|id, _| pipes.iter().filter(pausing).any(|pipe| pipe.id == *id));
        let too_long = |pipe: &&Pipe| now.duration_since(*self.0.entry(pipe.id).or_insert(now)) >= PATIENCE;
        pipes.iter().filter(pausing).filter(too_long).collect()
    }
}

impl Manager {
    /// Lets pipes run again that nobody pauses or resets any more.
    pub(super) async fn resume_abandoned(&self, term: &mut Term, state: &dyn CatalogSnapshot) -> Result<(), ViewError> {
        if term.pausing_seen.elapsed() < LOOK {
            return Ok(());
        }
        term.pausing_seen = Instant::now();
        for pipe in term.pausing.look(Instant::now(), &state.list::<Pipe>(&[])?) {
            let resume = Command::SetPipeState(SetPipeState {
                name: pipe.name.clone(),
                pipe: Some(pipe.id),
                // Who has paused it meanwhile means it.
                from: Some(PipeState::Pausing),
                state: PipeState::Running,
            });
            match propose(&self.catalog, resume, TIMEOUT).await {
                Ok((_, Ok(Response::Done))) => {}
                // The state has moved on, or nobody decides at present; the next look sees how.
                other => {
                    debug!(pipe = %pipe.name, ?other, "the pipe does not run again yet");
                    continue;
                }
            }
            let text = format!(
                "the pipe was pausing for {} s, and who asked for that is gone: it runs again; \
                 if it was to be paused or reset, say so again",
                PATIENCE.as_secs()
            );
            warn!(pipe = %pipe.name, "{text}");
            let event = RecordEvent {
                kind: "pipe".to_owned(),
                subject: pipe.name.clone(),
                partition: None,
                text,
            };
            let recorded = propose(&self.catalog, Command::RecordEvent(event), TIMEOUT).await;
            if !matches!(recorded, Ok((_, Ok(_)))) {
                debug!(pipe = %pipe.name, ?recorded, "the event may be missing");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
