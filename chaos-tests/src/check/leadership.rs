//! One leader by shard and epoch, and epochs that never go back.

use super::{Outcome, Run};
use std::collections::BTreeMap;

/// See the module's page.
pub fn check(run: &Run) -> Outcome {
    let mut outcome = Outcome::new("leadership");
    let mut leaders: BTreeMap<(String, u64), (&str, usize)> = BTreeMap::new();
    let mut newest: BTreeMap<String, (u64, usize)> = BTreeMap::new();
    for (at, sample) in &run.facts.samples {
        for shard in &sample.shards {
            let Some(epoch) = shard.epoch else { continue };
            let name = shard.name();
            let before = newest.entry(name.clone()).or_insert((epoch, *at));
            if epoch < before.0 {
                let text = format!("shard {name} was in epoch {} and then in {epoch}", before.0);
                outcome.find(&[before.1, *at], text);
            } else {
                *before = (epoch, *at);
            }
            let Some(leader) = &shard.leader else { continue };
            let (first, entry) = *leaders.entry((name.clone(), epoch)).or_insert((leader, *at));
            if first != leader {
                let text = format!("shard {name} was led by {first} and by {leader} in epoch {epoch}");
                outcome.find(&[entry, *at], text);
            }
        }
    }
    outcome.looked(run.facts.samples.len(), "samples");
    outcome.looked(newest.len(), "shards");
    outcome.looked(leaders.len(), "epochs");
    outcome
}
