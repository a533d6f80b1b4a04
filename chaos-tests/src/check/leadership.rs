//! One leader by shard and epoch, by what the catalog says and by what the nodes say themselves; and epochs that never go back.

use super::{Outcome, Run};
use std::collections::BTreeMap;

/// Who led a shard in an epoch, and the entry that said so first.
#[derive(Default)]
struct Leaders<'r>(BTreeMap<(String, u64), (&'r str, usize)>);

impl<'r> Leaders<'r> {
    /// Takes that `leader` led `shard` in `epoch`, as the entry `at` says.
    fn take(&mut self, outcome: &mut Outcome, at: usize, shard: String, epoch: u64, leader: &'r str) {
        let (first, entry) = *self.0.entry((shard.clone(), epoch)).or_insert((leader, at));
        if first != leader {
            let text = format!("shard {shard} was led by {first} and by {leader} in epoch {epoch}");
            outcome.find(&[entry, at], text);
        }
    }
}

/// See the module's page.
pub fn check(run: &Run) -> Outcome {
    let mut outcome = Outcome::new("leadership");
    let mut leaders = Leaders::default();
    let mut newest: BTreeMap<String, (u64, usize)> = BTreeMap::new();
    for (at, sample) in &run.facts.samples {
        for shard in &sample.shards {
            let Some(epoch) = shard.epoch else { continue };
            let key = shard.key();
            let before = newest.entry(key.clone()).or_insert((epoch, *at));
            if epoch < before.0 {
                let text = format!("shard {key} was in epoch {} and then in {epoch}", before.0);
                outcome.find(&[before.1, *at], text);
            } else {
                *before = (epoch, *at);
            }
            if let Some(leader) = &shard.leader {
                leaders.take(&mut outcome, *at, key, epoch, leader);
            }
        }
    }
    let mut claimed = 0;
    for (at, claim) in &run.facts.claims {
        claimed += claim.leading.len();
        for led in &claim.leading {
            leaders.take(&mut outcome, *at, led.id.clone(), led.epoch, &claim.node);
        }
    }
    outcome.looked(run.facts.samples.len(), "samples");
    outcome.looked(newest.len(), "shards");
    outcome.looked(leaders.0.len(), "epochs");
    outcome.looked(claimed, "times that a node said it leads one");
    if !newest.is_empty() && claimed == 0 {
        outcome.doubt("no node said what it leads".to_owned());
    }
    outcome
}
