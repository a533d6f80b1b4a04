//! Several faults at once.

use super::Fault::{self, *};
use super::running::{After, Stroke};
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use serde_json::json;
use std::time::Duration;

/// Faults of different kinds. None that takes away for good what another may have left as the last copy, and none of several steps, each
/// of which waits for nodes or brokers that are well: disks that lie or are emptied, nodes that are replaced or restarted one after the
/// other, topics that are created again or led by who lacks records have cells of their own.
const KINDS: [&[Fault]; 4] = [
    &[Kill, KillAll, Pause, Terminate],
    &[
        Cut,
        CutOneWay,
        CutBrokers,
        Isolate,
        IsolateOneWay,
        Split,
        Ring,
        Unplug,
        Loss,
        Delay,
        Jitter,
        Bandwidth,
        HalfOpen,
        Resets,
        Duplication,
    ],
    &[
        SlowSync,
        FailingSync,
        PowerCut,
        DiskFull,
        ReadErrors,
        CorruptParts,
        ClockJump,
        ClockDrift,
    ],
    &[KillBroker, PauseBroker, DeleteRecords, GrowTopic],
];
/// So many at once.
const AT_ONCE: usize = 3;

pub(super) async fn strike(stroke: &mut Stroke<'_>) -> anyhow::Result<()> {
    let mut kinds = KINDS;
    kinds.shuffle(stroke.rng);
    let faults: Vec<Fault> = kinds[..AT_ONCE]
        .iter()
        .filter_map(|kind| kind.choose(stroke.rng).copied())
        .collect();
    let names: Vec<&str> = faults.iter().map(|fault| fault.name()).collect();
    stroke.tell(json!(names));
    for fault in faults {
        let history = stroke.history().clone();
        let begun = Box::pin(fault.begin(stroke.world, stroke.rng, &history)).await;
        match begun {
            Ok(running) => stroke.after(After::End(Box::new(running))),
            // What the one before has left may be too little for the next: no node runs, or a broker does not answer.
            Err(why) => history.note(
                "monitor",
                "not-broken",
                json!({ "fault": fault.name(), "why": format!("{why:#}") }),
            ),
        }
        tokio::time::sleep(Duration::from_millis(stroke.rng.random_range(0..1_500))).await;
    }
    // Also those that ended when something could not begin.
    for node in 0..stroke.world.node_count() {
        stroke.after(After::Start(node));
    }
    Ok(())
}
