//! Several faults at once.

use super::Fault::{self, *};
use super::running::{After, Stroke};
use anyhow::ensure;
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
/// So many at once; two, if others cannot begin.
const AT_ONCE: usize = 3;

pub(super) async fn strike(stroke: &mut Stroke<'_>) -> anyhow::Result<()> {
    let mut kinds = KINDS;
    kinds.shuffle(stroke.rng);
    let faults: Vec<Fault> = kinds
        .iter()
        .filter_map(|kind| kind.choose(stroke.rng).copied())
        .collect();
    let names: Vec<&str> = faults.iter().map(|fault| fault.name()).collect();
    // The first three of these that can begin.
    stroke.tell(json!(names));
    let mut begun = 0;
    for fault in faults {
        if begun == AT_ONCE {
            break;
        }
        let history = stroke.history().clone();
        match Box::pin(fault.begin(stroke.world, stroke.rng, &history)).await {
            Ok(running) => {
                stroke.after(After::End(Box::new(running)));
                begun += 1;
            }
            // What the one before has left may be too little for it: no node runs, or a broker does not answer. The next is tried.
            Err(why) => history.note(
                "monitor",
                "not-broken",
                json!({ "fault": fault.name(), "why": format!("{why:#}") }),
            ),
        }
        tokio::time::sleep(Duration::from_millis(stroke.rng.random_range(0..1_500))).await;
    }
    ensure!(begun > 1, "{begun} of the faults could begin: nothing is combined");
    // Also those that ended when something could not begin.
    for node in 0..stroke.world.node_count() {
        stroke.after(After::Start(node));
    }
    Ok(())
}
