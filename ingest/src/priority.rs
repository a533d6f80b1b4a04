//! Who reads first while something is about to expire at its source.
//!
//! The manager knows for how long sources keep what is unread (retention headroom), and tells every node which
//! partitions are in danger. A consumer thread that catches up with such a partition claims to read first; while somebody
//! on the node does, the other threads read in a tenth of the time only. So processors, memory and network go to what
//! would be lost. What the others read is a second older meanwhile; one that needs more than a tenth of its time falls
//! behind until the danger is over.
//!
//! Likewise a thread that reads for a standby lets those go first that read for leaders, as long as they have something to
//! catch up with: what they read can be queried, what it reads is a copy.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tidemill_core::{PartitionId, PipeId};

/// How often those who give way have their turn.
const ROUND: Duration = Duration::from_secs(1);
/// How long it lasts.
const TURN: Duration = Duration::from_millis(100);
/// How long a claim holds that is not renewed; longer than a run of records takes.
const LEASE: Duration = Duration::from_millis(500);
/// The same for the claim of leaders over standbys; short, since leaders catch up with a little all the time.
const LEAD_LEASE: Duration = Duration::from_millis(100);
/// For how long a claim is renewed without anything being read: whoever cannot read, keeps nobody from reading.
const IDLE: Duration = Duration::from_secs(2);

/// Partitions whose oldest unread record expires soon.
pub type Urgent = BTreeSet<(PipeId, PartitionId)>;

/// What the consumer threads of a node know of each other's hurry.
#[derive(Debug)]
pub struct Priority {
    urgent: Mutex<Arc<Urgent>>,
    /// Until when somebody reads first, in milliseconds since `began`. It runs out by itself: a thread that has no
    /// partition any more, or no broker, or has ended, keeps nobody waiting.
    claimed_until: AtomicU64,
    /// Until when leaders read before standbys, likewise.
    led_until: AtomicU64,
    began: Instant,
}

impl Default for Priority {
    fn default() -> Self {
        Self {
            urgent: Mutex::default(),
            claimed_until: AtomicU64::new(0),
            led_until: AtomicU64::new(0),
            began: Instant::now(),
        }
    }
}

impl Priority {
    /// Replaces the partitions whose oldest unread record expires soon.
    pub fn set_urgent(&self, urgent: Urgent) {
        *self.urgent.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(urgent);
    }

    /// The partitions whose oldest unread record expires soon.
    pub fn urgent(&self) -> Arc<Urgent> {
        self.urgent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A claim for one thread, which it does not hold yet.
    pub fn claim(self: &Arc<Self>) -> Claim {
        Claim {
            priority: self.clone(),
            held: false,
            read_at: Instant::now(),
        }
    }
}

/// One thread's right to read before others, as long as it says again and again that it wants it.
#[derive(Debug)]
pub struct Claim {
    priority: Arc<Priority>,
    held: bool,
    read_at: Instant,
}

impl Claim {
    /// Takes note that the thread has read something, or could but for memory.
    pub fn progressed(&mut self) {
        self.read_at = Instant::now();
    }

    /// Holds it for a while if it is `wanted` and the thread gets on.
    pub fn hold(&mut self, wanted: bool) {
        self.held = wanted && self.read_at.elapsed() < IDLE;
        if self.held {
            self.extend(&self.priority.claimed_until, LEASE);
        }
    }

    /// Goes before standbys for a while: it reads for a leader that has something to catch up with.
    pub fn lead(&self) {
        if self.read_at.elapsed() < IDLE {
            self.extend(&self.priority.led_until, LEAD_LEASE);
        }
    }

    fn extend(&self, until: &AtomicU64, by: Duration) {
        let to = self.priority.began.elapsed() + by;
        until.fetch_max(to.as_millis() as u64, Ordering::Relaxed);
    }

    /// Whether the thread, which reads for a standby, has to let leaders read now.
    pub fn gives_way_to_leaders(&self) -> bool {
        self.lets(&self.priority.led_until)
    }

    /// Whether the thread has to let others read now.
    pub fn gives_way(&self) -> bool {
        !self.held && self.lets(&self.priority.claimed_until)
    }

    fn lets(&self, others_until: &AtomicU64) -> bool {
        let now = self.priority.began.elapsed();
        (now.as_millis() as u64) < others_until.load(Ordering::Relaxed) && !is_turn(now)
    }
}

fn is_turn(elapsed: Duration) -> bool {
    elapsed.as_millis() % ROUND.as_millis() < TURN.as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_hurry_gives_way_but_for_a_tenth_of_the_time() {
        let turns = (0..10_000).filter(|ms| is_turn(Duration::from_millis(*ms))).count();
        assert_eq!(turns, 1_000);
        let priority = Arc::new(Priority::default());
        let (mut hurried, other) = (priority.claim(), priority.claim());
        let gives_way = |claim: &Claim| {
            let mut looks = (0..60).map(|_| {
                std::thread::sleep(Duration::from_millis(5));
                claim.gives_way()
            });
            looks.any(|gives_way| gives_way)
        };
        assert!(!gives_way(&other), "nobody is in a hurry");
        hurried.hold(true);
        assert!(gives_way(&other) && !gives_way(&hurried));
        // Whoever says nothing more, for whatever reason, is not waited for.
        std::thread::sleep(LEASE);
        assert!(!gives_way(&other), "a claim outlives its lease");
        hurried.read_at -= IDLE;
        hurried.hold(true);
        assert!(!gives_way(&other), "a claim holds although nothing is read");
        hurried.progressed();
        hurried.hold(true);
        assert!(gives_way(&other));
    }

    #[test]
    fn standbys_give_way_to_leaders_that_get_on() {
        let priority = Arc::new(Priority::default());
        let (mut leader, standby) = (priority.claim(), priority.claim());
        // Whatever part of the round it is, a turn is over within two looks.
        let gives_way = || {
            let first = standby.gives_way_to_leaders();
            first || (is_turn(priority.began.elapsed()) && !is_turn(priority.began.elapsed() + TURN))
        };
        assert!(!standby.gives_way_to_leaders());
        leader.lead();
        assert!(
            gives_way() && !leader.gives_way(),
            "leaders do not give way to each other"
        );
        std::thread::sleep(LEAD_LEASE);
        assert!(!standby.gives_way_to_leaders(), "a claim outlives its lease");
        leader.read_at -= IDLE;
        leader.lead();
        assert!(
            !standby.gives_way_to_leaders(),
            "a leader that reads nothing is waited for"
        );
    }

    #[test]
    fn only_what_the_manager_names_is_urgent() {
        let priority = Priority::default();
        let (pipe, partition) = (PipeId(1), PartitionId(2));
        let is_urgent = |partition: PartitionId| priority.urgent().contains(&(pipe, partition));
        assert!(!is_urgent(partition));
        priority.set_urgent([(pipe, partition)].into());
        assert!(is_urgent(partition) && !is_urgent(PartitionId(1)));
        priority.set_urgent(Urgent::new());
        assert!(!is_urgent(partition));
    }
}
