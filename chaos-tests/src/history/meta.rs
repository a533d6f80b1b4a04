//! What a run was meant to be: `run.json`, beside its history.

use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The name of the description in the folder of a run.
pub const DESCRIPTION: &str = "run.json";

/// A run: its name, what was done in it and what it has to show before it proves anything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunMeta {
    /// What people call it.
    pub name: String,
    /// Decides what was left to chance.
    #[serde(default)]
    pub seed: u64,
    /// What was asked of the cluster.
    #[serde(default)]
    pub workloads: Vec<String>,
    /// What was done to it.
    #[serde(default)]
    pub fault: String,
    /// The names of its nodes.
    #[serde(default)]
    pub nodes: Vec<String>,
    /// What must have happened in it.
    #[serde(default)]
    pub requires: Requires,
    /// The most that may be, by name: times in milliseconds, amounts as numbers.
    #[serde(default)]
    pub bounds: BTreeMap<String, f64>,
    /// Of what build.
    #[serde(default)]
    pub version: String,
}

/// What must have happened, or the run proves nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Requires {
    /// Faults that must have begun: their names, each followed by the topic that it must have harmed if it is about one.
    #[serde(default)]
    pub faults: Vec<String>,
    /// Operations that must have ended well, once at least: `f`, or `f` and words. Of each word, the topic, table or register it was
    /// done to, or a word of the statement, must begin with that; or the word is `field=value`, of what was asked.
    #[serde(default)]
    pub ok: Vec<String>,
    /// Those that must have ended well after all was healed.
    #[serde(default)]
    pub ok_when_healed: Vec<String>,
}

impl RunMeta {
    /// Writes it into `folder`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(folder.join(DESCRIPTION), text).with_context(|| format!("cannot write {DESCRIPTION}"))
    }

    /// Reads that of `folder`.
    ///
    /// # Errors
    /// If there is none, or if it is something else.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(DESCRIPTION);
        let text = std::fs::read(&path).with_context(|| format!("cannot open {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no description of a run", path.display()))
    }
}
