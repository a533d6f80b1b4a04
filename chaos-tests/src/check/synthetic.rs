//! Histories that are correct, made up from a seed: a model of a cluster and of the clients of a run, in one thread.
//!
//! They prove the checkers: every one of them must pass, and must not pass once something in it is forged ([`super::proof`]).
//! Operations overlap, clients lose their answers, transactions are aborted, nodes are killed and lose what was not flushed,
//! operators reset partitions, and the log loses its beginning.

mod clients;
mod cluster;
mod script;

use crate::history::{Entry, Requires, RunMeta};
use cluster::Cluster;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use script::Script;
use serde_json::json;

/// How large a history is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Steps until everything is healed.
    pub steps: u32,
    /// Milliseconds that a step takes, about.
    pub step_ms: u64,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            steps: 1_500,
            step_ms: 10,
        }
    }
}

type Step = fn(&mut Model);

/// What a step does, with how often.
const STEPS: [(Step, u32); 9] = [
    (Model::advance, 420),
    (Model::produce, 190),
    (Model::transact, 25),
    (Model::write, 70),
    (Model::read, 90),
    (Model::register, 90),
    (Model::work, 110),
    (Model::observe, 40),
    (Model::disturb, 5),
];

/// A run that is going on.
struct Model {
    script: Script,
    chance: StdRng,
    cluster: Cluster,
    pending: Vec<clients::Pending>,
    /// Faults that have begun: name, node and the step at which they end.
    faults: Vec<(&'static str, String, u32)>,
    step: u32,
    ids: u64,
    values: u64,
}

/// The correct history of `seed`.
pub fn history(seed: u64, size: Size) -> (RunMeta, Vec<Entry>) {
    let mut model = Model {
        script: Script::new(),
        chance: StdRng::seed_from_u64(seed),
        cluster: Cluster::new(),
        pending: Vec::new(),
        faults: Vec::new(),
        step: 0,
        ids: 0,
        values: 0,
    };
    let weights: u32 = STEPS.iter().map(|(_, weight)| weight).sum();
    for step in 0..size.steps {
        model.step = step;
        model
            .script
            .pass(model.chance.random_range(1..2 * size.step_ms * 1_000_000));
        model.mend(false);
        // One of each is sure, so that no run lacks what it requires.
        match (step * 3).checked_div(size.steps) {
            Some(1) if step % (size.steps / 3) == 0 => {
                model.mend(true);
                model.kill();
            }
            _ => {
                let mut pick = model.chance.random_range(0..weights);
                for (act, weight) in STEPS {
                    if pick < weight {
                        act(&mut model);
                        break;
                    }
                    pick -= weight;
                }
            }
        }
        if step % 25 == 0 {
            model.sample();
        }
        if step % 100 == 0 {
            model.cluster.flush();
        }
    }
    model.end();
    (description(seed), model.script.entries)
}

fn description(seed: u64) -> RunMeta {
    let names = |of: &[&str]| of.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let bounds = [
        ("recovery_ms", 5_000.0),
        ("visible_ms", 40_000.0),
        ("lag_ms", 20_000.0),
        ("healed_ms", 20_000.0),
        ("caught_up_ms", 30_000.0),
        ("normal_lag", 60.0),
    ];
    RunMeta {
        name: format!("synthetic-{seed}"),
        seed,
        workloads: names(&["counter", "transactions", "direct", "registers", "readers"]),
        fault: "kill".to_owned(),
        nodes: names(&cluster::NODES),
        requires: Requires {
            faults: names(&["kill"]),
            ok: names(&["produce", "transaction", "write", "read", "get", "set"]),
            ok_when_healed: names(&["read"]),
        },
        bounds: bounds.into_iter().map(|(name, most)| (name.to_owned(), most)).collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

impl Model {
    /// True once in `n` times.
    fn one_in(&mut self, n: u32) -> bool {
        self.chance.random_range(0..n) == 0
    }

    /// The cluster reads and commits, unless it is disturbed too much.
    fn work(&mut self) {
        let stalled = self.faults.iter().any(|(_, _, until)| self.step + 60 < *until);
        if !stalled {
            self.cluster.ingest(&mut self.chance);
        }
    }

    /// Somebody compares the nodes.
    fn observe(&mut self) {
        let version = self.cluster.version;
        for node in cluster::NODES {
            // A node may be behind.
            let version = version.saturating_sub(self.chance.random_range(0..3));
            let digest = format!("{:016x}", version.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            self.script.note(
                "monitor",
                "digest",
                json!({ "node": node, "version": version, "digest": digest }),
            );
        }
    }

    fn sample(&mut self) {
        let down: Vec<String> = self.faults.iter().map(|(_, node, _)| node.clone()).collect();
        let rate = self.cluster.take_rate() as f64 / (self.script.since_sample_ms().max(1) as f64 / 1_000.0);
        let sample = self.cluster.sample(rate, &down);
        self.script.note("monitor", "sample", sample);
        for claim in self.cluster.claims(&down) {
            self.script.note("monitor", "claim", claim);
        }
    }

    fn disturb(&mut self) {
        match self.chance.random_range(0..8) {
            0..3 => self.kill(),
            3..5 => self.lose_disk(),
            5 => self.expire(),
            _ => self.operate(),
        }
    }

    fn kill(&mut self) {
        self.begin("kill");
    }

    /// A node loses its disk, and with it what it had not flushed.
    fn lose_disk(&mut self) {
        if let Some(node) = self.begin("lose-disk") {
            self.cluster.lose_unflushed(&node);
        }
    }

    fn begin(&mut self, fault: &'static str) -> Option<String> {
        if !self.faults.is_empty() {
            return None;
        }
        let node = cluster::NODES[self.chance.random_range(0..cluster::NODES.len())].to_owned();
        self.script
            .note("nemesis", &format!("begin {fault}"), json!({ "node": node }));
        self.cluster.depose(&node);
        let until = self.step + self.chance.random_range(70..160);
        self.faults.push((fault, node.clone(), until));
        Some(node)
    }

    /// Ends faults whose time has come, or all.
    fn mend(&mut self, all: bool) {
        let (over, still) = std::mem::take(&mut self.faults)
            .into_iter()
            .partition(|(_, _, until)| all || *until <= self.step);
        self.faults = still;
        let over: Vec<(&str, String, u32)> = over;
        for (fault, node, _) in over {
            self.script
                .note("nemesis", &format!("end {fault}"), json!({ "node": node }));
        }
    }

    /// The log loses its beginning.
    fn expire(&mut self) {
        let partition = self.chance.random_range(0..cluster::PARTITIONS);
        let up_to = self
            .chance
            .random_range(0..=self.cluster.partitions[partition].log.len() as u64);
        if let Some((from, to)) = self.cluster.expire(partition, up_to) {
            let lost =
                json!({ "topic": cluster::TOPIC, "partition": partition, "from": from, "to": to, "why": "retention" });
            self.script.note("nemesis", "log-lost", lost);
        }
    }

    /// Everything is mended, caught up and told.
    fn end(&mut self) {
        self.mend(true);
        self.script.note("nemesis", "healed", json!({}));
        while !self.pending.is_empty() {
            self.script.pass(3_000_000);
            self.advance();
        }
        for _ in 0..3 {
            self.script.pass(20_000_000);
            self.read();
            while !self.pending.is_empty() {
                self.advance();
            }
            self.cluster.catch_up();
            self.sample();
        }
        self.script.note("monitor", "caught-up", json!({}));
        self.cluster.tell(&mut self.script);
        self.script
            .note("monitor", "check", json!({ "ok": true, "said": "all agrees" }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{self, Run};

    #[test]
    fn a_seed_is_a_history() {
        let one = history(3, Size::default()).1;
        assert_eq!(one, history(3, Size::default()).1);
        assert_ne!(one, history(4, Size::default()).1);
    }

    #[test]
    fn correct_histories_pass() {
        let mut seen = std::collections::BTreeMap::<&str, u64>::new();
        for seed in 0..150 {
            let (meta, entries) = history(seed, Size::default());
            let judgement = check::judge(&Run::new(meta, entries));
            assert_eq!(judgement.verdict, check::Verdict::Passed, "seed {seed}");
            for outcome in judgement.outcomes {
                *seen.entry(outcome.name).or_default() += u64::from(outcome.saw_something());
            }
        }
        assert!(
            seen.values().all(|count| *count == 150),
            "checkers that had nothing to look at: {seen:?}"
        );
    }
}
