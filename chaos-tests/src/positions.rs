//! Watches how far nodes have read their partitions, by their metrics: whether ingestion stands still.
//!
//! Unlike a query, which shares the processors with all that runs, looking at a few counters takes about a millisecond. So what
//! is measured is when records were read, and not when somebody could be told.

use crate::world::metrics;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often they are looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(500);
/// The metric.
const POSITION: &str = "tidemill_partition_position";

/// When each partition was seen to be read further, and how far.
type Seen = BTreeMap<String, (u64, Vec<Instant>)>;

/// See the module's page. Ends when it is dropped.
pub struct Positions {
    seen: Arc<Mutex<Seen>>,
    nodes: Arc<Mutex<Vec<SocketAddr>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Positions {
    /// Watches the nodes that serve their metrics at these addresses.
    pub fn watch(nodes: Vec<SocketAddr>) -> Self {
        let (seen, nodes) = (Arc::<Mutex<Seen>>::default(), Arc::new(Mutex::new(nodes)));
        let stop = Arc::<AtomicBool>::default();
        let (known, asked, told) = (seen.clone(), nodes.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Acquire) {
                let nodes = asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
                for node in nodes {
                    // A node may be down.
                    if let Ok(text) = metrics(node, ANSWER) {
                        note(
                            &mut known.lock().unwrap_or_else(PoisonError::into_inner),
                            &text,
                            Instant::now(),
                        );
                    }
                }
                std::thread::sleep(LOOK);
            }
        });
        Self {
            seen,
            nodes,
            stop,
            thread: Some(thread),
        }
    }

    /// Watches this node too.
    pub fn add(&self, node: SocketAddr) {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).push(node);
    }

    /// The longest time between `from` and `until` in which a partition that was read before was not read further.
    pub fn longest_pause(&self, from: Instant, until: Instant) -> Duration {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        longest(&seen, from, until)
    }
}

impl Drop for Positions {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // It has nothing to tell that is not known already.
            drop(thread.join());
        }
    }
}

/// Takes what a node says. A new leader may begin behind the one before: what was read once is not news.
fn note(seen: &mut Seen, text: &str, now: Instant) {
    let lines = text.lines().filter_map(|line| line.strip_prefix(POSITION));
    for (partition, position) in lines.filter_map(|line| line.rsplit_once(' ')) {
        let Ok(position) = position.parse::<u64>() else {
            continue;
        };
        let (furthest, times) = seen.entry(partition.to_owned()).or_default();
        if position > *furthest {
            *furthest = position;
            times.push(now);
        }
    }
}

fn longest(seen: &Seen, from: Instant, until: Instant) -> Duration {
    let mut longest = Duration::ZERO;
    for (_, times) in seen.values() {
        // Of one that has nothing to read at all nobody can say that it stands still.
        if !times.iter().any(|at| (from..=until).contains(at)) {
            continue;
        }
        let gaps = times.windows(2).filter(|pair| pair[1] >= from && pair[0] <= until);
        longest = gaps
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap_or_default()
            .max(longest);
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_the_longest_time_in_which_nothing_new_was_read() {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let mut seen = Seen::new();
        let line = |partition: u32, position: u64| {
            format!("# HELP {POSITION} x\n{POSITION}{{pipe=\"1\",partition=\"{partition}\"}} {position}\nother 7\n")
        };
        note(&mut seen, &line(0, 10), at(0));
        note(&mut seen, &line(1, 10), at(0));
        for (position, ms) in [(20, 100), (15, 200), (20, 300), (21, 400), (22, 450)] {
            note(&mut seen, &line(0, position), at(ms));
        }
        // Read again from 15 on: only what is beyond 20 is new.
        assert_eq!(longest(&seen, at(0), at(450)), Duration::from_millis(300));
        assert_eq!(longest(&seen, at(410), at(450)), Duration::from_millis(50));
        assert_eq!(longest(&seen, at(500), at(600)), Duration::ZERO);
    }
}
