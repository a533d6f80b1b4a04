//! One limit for the memory of a node, and who gets which share of it.
//!
//! The shares are fixed, so that neither queries nor ingestion can push the other out: whoever uses up its share waits,
//! flushes, spills or fails, each by itself. What is counted by nobody, such as code, stacks, buffers of connections, copies
//! of parts on their way and what the allocator loses, has a share as well.

use anyhow::{Context, ensure};
use std::path::Path;
use std::sync::Arc;
use tidemill_ingest::budget::Budget;
use tidemill_query::Engine;
use tidemill_raft::Catalog;

/// The least that a node works with.
const LEAST: u64 = 320 << 20;
/// What is left to what nobody counts: a fifth, but at least so much.
const UNCOUNTED: u64 = 192 << 20;
/// The most that the databases of the Raft log and of the catalog make use of.
const CATALOG: u64 = tidemill_raft::DEFAULT_MEMORY;

/// Bytes for each of those that share the memory of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// All of it.
    pub limit: u64,
    /// The databases of the Raft log and of the catalog.
    pub catalog: u64,
    /// Queries.
    pub queries: u64,
    /// What consumers have fetched and decode.
    pub decoding: u64,
    /// Memtables, and the encoding of their cuts.
    pub rows: u64,
}

impl Shares {
    /// The shares of `limit`: what is said for `queries`, else a third of what is not taken beforehand, and the rest for
    /// ingestion.
    ///
    /// # Errors
    /// When there is too little to work with, or too little left for ingestion.
    pub fn of(limit: u64, queries: Option<u64>) -> anyhow::Result<Self> {
        ensure!(limit >= LEAST, "[memory] limit: a node needs {} at least", mib(LEAST));
        let catalog = (limit / 16).min(CATALOG);
        let left = limit - catalog - (limit / 5).max(UNCOUNTED);
        let queries = queries.unwrap_or(left / 3);
        ensure!(
            queries <= left / 4 * 3,
            "[memory] queries = {} leaves too little for ingestion: of the limit of {}, {} are for both",
            mib(queries),
            mib(limit),
            mib(left)
        );
        let decoding = (left - queries) / 4;
        Ok(Self {
            limit,
            catalog,
            queries,
            decoding,
            rows: left - queries - decoding,
        })
    }
}

fn mib(bytes: u64) -> String {
    format!("{}MiB", bytes >> 20)
}

/// The limit where none is set: half of what this process may use.
pub fn default_limit() -> anyhow::Result<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo cannot be read")?;
    let machine = total(&meminfo).context("/proc/meminfo does not say how much memory there is")?;
    // Without control groups of version 2, nothing but the machine limits the process.
    let group = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let allowed = group_limit(Path::new("/sys/fs/cgroup"), &group).unwrap_or(u64::MAX);
    Ok((machine.min(allowed) / 2).max(LEAST))
}

/// The memory of this node, to be looked at.
pub struct Memory {
    /// Who may have how much.
    pub shares: Shares,
    /// What ingestion uses.
    pub budget: Arc<Budget>,
    /// The catalog.
    pub catalog: Catalog,
    /// The queries.
    pub engine: Arc<Engine>,
}

impl Memory {
    /// Each share by its name, in bytes.
    pub fn shares(&self) -> [(&'static str, u64); 4] {
        let of = &self.shares;
        [
            ("rows", of.rows),
            ("decoding", of.decoding),
            ("queries", of.queries),
            ("catalog", of.catalog),
        ]
    }

    /// What is in use by kind, in bytes. Memtables and encoding are both of the share for rows.
    pub fn used(&self) -> [(&'static str, u64); 5] {
        let used = self.budget.used();
        [
            ("memtables", used.memtables),
            ("encoding", used.encoding),
            ("decoding", used.decoding),
            ("queries", self.engine.memory_used() as u64),
            ("catalog", self.catalog.memory_used()),
        ]
    }
}

/// `MemTotal` of proc(5), in bytes.
fn total(meminfo: &str) -> Option<u64> {
    kib(meminfo, "MemTotal:")
}

/// The bytes behind `name` in a file of proc(5), which counts in KiB.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The least `memory.max` of a process's control group, of which /proc/self/cgroup says `group`, and of those above it.
fn group_limit(root: &Path, group: &str) -> Option<u64> {
    let own = group.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let folders = root.join(own);
    let above = folders.ancestors().take_while(|folder| folder.starts_with(root));
    let limit = |folder: &Path| {
        std::fs::read_to_string(folder.join("memory.max"))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    above.filter_map(limit).min()
}

/// Bytes of memory that this process has now, files of code among them (`VmRSS` of proc(5)).
pub fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    kib(&status, "VmRSS:")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_shares_fit_the_limit_and_everybody_has_one() {
        for limit in [320, 400, 512, 2 << 10, 64 << 10].map(|mib| mib * MIB) {
            let s = Shares::of(limit, None).unwrap();
            assert!(
                s.catalog + s.queries + s.decoding + s.rows + UNCOUNTED <= limit,
                "{s:?}"
            );
            assert!(
                [s.catalog, s.queries, s.rows].iter().all(|share| *share >= 16 * MIB),
                "{s:?}"
            );
            assert!(s.decoding >= 12 * MIB, "{s:?}");
        }
        let chosen = Shares::of(1 << 30, Some(400 * MIB)).unwrap();
        assert_eq!(chosen.queries, 400 * MIB);
    }

    #[test]
    fn too_little_is_refused() {
        let few = Shares::of(100 * MIB, None).unwrap_err().to_string();
        assert_eq!(few, "[memory] limit: a node needs 320MiB at least");
        let all = Shares::of(512 * MIB, Some(300 * MIB)).unwrap_err().to_string();
        assert!(
            all.contains("queries = 300MiB leaves too little for ingestion"),
            "{all}"
        );
    }

    #[test]
    fn the_tightest_group_around_the_process_counts() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("system.slice/tidemill.service");
        std::fs::create_dir_all(&folder).unwrap();
        let limit = || group_limit(root.path(), "1:cpu:/x\n0::/system.slice/tidemill.service\n");
        assert_eq!(limit(), None);
        std::fs::write(folder.join("memory.max"), "max\n").unwrap();
        assert_eq!(limit(), None);
        std::fs::write(root.path().join("system.slice/memory.max"), "1048576\n").unwrap();
        assert_eq!(limit(), Some(MIB));
        std::fs::write(folder.join("memory.max"), "524288\n").unwrap();
        assert_eq!(limit(), Some(MIB / 2));
        assert_eq!(total("MemTotal:       1024 kB\nMemFree: 1 kB\n"), Some(MIB));
        assert!(default_limit().unwrap() >= LEAST && resident().unwrap() > 0);
    }
}
