//! Whether the topic is still the one that was read: its id, asked of the broker (KIP-516).
//!
//! A topic that was deleted and created again may have offsets beyond ours, and then the client reads on in it without
//! a word. So a commit waits until the broker has given the same id *after* its records were read: ids are never
//! used twice, so the records between two equal answers came from that topic. When no broker answers, the
//! commit goes on after a while: rows that were read are not given up because a source is gone.

use super::native::Reader;
use rdkafka::error::RDKafkaErrorCode;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tidemill_core::TopicId;
use tracing::debug;

/// How often the broker is asked when nobody wants to know.
const ASK: Duration = Duration::from_secs(2);
/// How long the broker may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What is known of the topic's id.
#[derive(Debug, Default)]
pub struct TopicCheck(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    wanted: bool,
    asked: Option<Instant>,
    /// When the last question was asked that was answered with the expected id, or with none at all.
    verified: Option<Instant>,
    other: Option<TopicId>,
    /// One past the newest record of each partition, from the time when the topic was last known to be the same.
    known_ends: BTreeMap<i32, i64>,
}

impl TopicCheck {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what was found: the partitions are others now, or of another topic.
    pub(super) fn forget(&self) {
        *self.lock() = State::default();
    }

    /// A question under way went with its client; another is asked soon.
    pub(super) fn ask_anew(&self) {
        let mut state = self.lock();
        (state.asked, state.wanted) = (None, true);
    }

    /// Has the broker asked soon.
    pub fn ask(&self) {
        self.lock().wanted = true;
    }

    /// Whether what was read before `since` was surely read from the expected topic.
    pub fn is_verified(&self, since: Instant) -> bool {
        self.lock().verified.is_some_and(|at| at >= since)
    }

    /// Whether another topic is there now.
    pub fn is_other(&self) -> bool {
        self.lock().other.is_some()
    }

    /// The other topic that is there now, and the ends of the old one as last seen.
    pub(super) fn other(&self) -> Option<(TopicId, BTreeMap<i32, i64>)> {
        let state = self.lock();
        state.other.map(|other| (other, state.known_ends.clone()))
    }

    /// Asks when it is time, takes an answer when there is one. `expected` are the ids that the partitions were read from.
    pub(super) fn serve(
        &self,
        reader: &Reader,
        topic: &str,
        expected: &[TopicId],
        highs: impl FnOnce() -> BTreeMap<i32, i64>,
    ) {
        if let Some(reply) = reader.topic_reply() {
            self.take(reply, expected, highs);
        }
        // Nothing to compare with: the broker gave no id when the pipe was made.
        if expected.is_empty() {
            return;
        }
        let mut state = self.lock();
        let idle = state.asked.is_none();
        let due = state.wanted || state.verified.is_none_or(|at| at.elapsed() >= ASK);
        let given_up = state.asked.is_some_and(|at| at.elapsed() >= ANSWER * 2);
        if (idle && due) || given_up {
            state.wanted = false;
            state.asked = Some(Instant::now());
            drop(state);
            reader.ask_topic(topic, ANSWER);
        }
    }

    fn take(
        &self,
        reply: Result<Option<TopicId>, RDKafkaErrorCode>,
        expected: &[TopicId],
        highs: impl FnOnce() -> BTreeMap<i32, i64>,
    ) {
        let mut state = self.lock();
        let asked = state.asked.take();
        match reply {
            Ok(Some(id)) if expected.iter().any(|known| *known != id) => state.other = Some(id),
            Ok(_) => {
                state.other = None;
                state.verified = asked.max(state.verified);
                state.known_ends = highs();
            }
            Err(code) => debug!(%code, "the broker does not say which topic this is"),
        }
    }

    /// Asks now and waits. Whether another topic is there.
    pub(super) fn ask_and_wait(
        &self,
        reader: &Reader,
        topic: &str,
        expected: &[TopicId],
        highs: impl FnOnce() -> BTreeMap<i32, i64>,
    ) -> bool {
        if expected.is_empty() {
            return false;
        }
        self.lock().asked = Some(Instant::now());
        reader.ask_topic(topic, ANSWER);
        let until = Instant::now() + ANSWER;
        while Instant::now() < until {
            if let Some(reply) = reader.topic_reply() {
                self.take(reply, expected, highs);
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.is_other()
    }
}
