//! What the nodes said of themselves: soft, in the memory of whoever is the manager.

use super::SILENT;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tidemill_core::catalog::{Addresses, Node};
use tidemill_core::membership::Heard;
use tidemill_core::{BootId, DiskId, InstanceId, NodeId, Version};
use tidemill_proto::api::{BeatRequest, Headroom, NodeProgress, NodeReport, PartitionRate, ProgressReply};
use tracing::info;

/// What the nodes last said, as the manager heard it.
#[derive(Debug, Default)]
pub struct Reports {
    heard: Mutex<BTreeMap<NodeId, Report>>,
    refused: Mutex<BTreeMap<BootId, String>>,
    headroom: Mutex<Vec<Headroom>>,
    rates: Mutex<Vec<PartitionRate>>,
    /// Since when this node is the manager; `None` while it is not.
    since: Mutex<Option<Instant>>,
    /// What a change of membership waits for.
    waiting: Mutex<Option<String>>,
    /// How many shards stand still on every node that may lead them.
    stuck: AtomicUsize,
    /// When brokers last answered this node.
    answered: Mutex<BTreeMap<String, Instant>>,
}

#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) boot: BootId,
    pub(super) instance: InstanceId,
    pub(super) addresses: Addresses,
    pub(super) disk: Option<DiskId>,
    /// Empty if it does not say.
    pub(super) warehouse: String,
    pub(super) draining: bool,
    pub(super) handed_over: Option<Version>,
    pub(super) progress: NodeProgress,
    pub(super) at: Instant,
}

impl Reports {
    /// Takes a heartbeat. `Some` says why the sender must stop.
    pub fn take(&self, beat: BeatRequest) -> Option<String> {
        let disk = match beat.disk.as_str() {
            "" => Ok(None),
            disk => disk.parse().map(Some),
        };
        let (Ok(boot), Ok(instance), Ok(disk)) = (beat.boot.parse(), beat.instance.parse(), disk) else {
            return Some("the heartbeat is not readable: the nodes run versions that do not fit together".into());
        };
        let report = Report {
            boot,
            instance,
            addresses: Addresses {
                raft: beat.raft,
                api: beat.api,
                http: beat.http,
            },
            disk,
            warehouse: beat.warehouse,
            draining: beat.draining,
            handed_over: Some(Version(beat.handed_over)).filter(|by| *by > Version(0)),
            progress: beat.progress.unwrap_or_default(),
            at: Instant::now(),
        };
        self.heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(NodeId(beat.node), report);
        self.refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&boot)
    }

    /// What is known of sources: for each partition with unread records, how long until the oldest of them expires.
    pub fn know_headroom(&self, headroom: Vec<Headroom>) {
        *self.headroom.lock().unwrap_or_else(PoisonError::into_inner) = headroom;
    }

    /// What arrives at the sources.
    pub(super) fn know_rates(&self, rates: Vec<PartitionRate>) {
        *self.rates.lock().unwrap_or_else(PoisonError::into_inner) = rates;
    }

    /// How many shards stand still on every node that may lead them; none where this node is not the manager.
    pub fn stuck(&self) -> usize {
        self.stuck.load(Ordering::Relaxed)
    }

    pub(super) fn know_stuck(&self, shards: usize) {
        self.stuck.store(shards, Ordering::Relaxed);
    }

    /// `brokers` have answered this node.
    pub fn know_answer(&self, brokers: &str) {
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        answered.insert(brokers.to_owned(), Instant::now());
    }

    /// Whether `brokers` answered this node not long ago.
    pub(super) fn has_answered(&self, brokers: &str, within: Duration) -> bool {
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        answered.get(brokers).is_some_and(|at| at.elapsed() < within)
    }

    /// Those whose oldest unread record is in danger.
    pub fn urgent(&self) -> Vec<Headroom> {
        let headroom = self.headroom.lock().unwrap_or_else(PoisonError::into_inner);
        headroom.iter().filter(|room| room.urgent).copied().collect()
    }

    /// Everything that the manager knows, as it is told to others.
    pub fn reply(&self) -> ProgressReply {
        ProgressReply {
            manager: true,
            nodes: self.all(),
            headroom: self.headroom.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            rates: self.rates.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Everything heard, for queries and status.
    pub fn all(&self) -> Vec<NodeReport> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard
            .iter()
            .map(|(node, report)| NodeReport {
                node: node.0,
                silent_ms: report.at.elapsed().as_millis() as u64,
                progress: Some(report.progress.clone()),
            })
            .collect()
    }

    /// What `node` last said, if it is not silent.
    pub(super) fn get(&self, node: NodeId) -> Option<Report> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(&node).filter(|report| report.at.elapsed() < SILENT).cloned()
    }

    /// Whether `node` is heard in the run of its process, and with the disk, that the catalog knows.
    pub(super) fn hears(&self, node: &Node) -> bool {
        self.get(node.id)
            .is_some_and(|report| node.boot == Some(report.boot) && node.disk == report.disk)
    }

    pub(super) fn refuse(&self, boot: BootId, why: String) {
        self.refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(boot, why);
    }

    /// Who is heard; `None` while that is not known, since this node is not the manager or has only just become it.
    pub fn heard(&self) -> Option<Heard> {
        let since = *self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.filter(|since| since.elapsed() >= SILENT)?;
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let alive = heard.iter().filter(|(_, report)| report.at.elapsed() < SILENT);
        let handed_over = alive
            .clone()
            .filter_map(|(node, report)| Some((*node, report.handed_over?)));
        Some(Heard {
            handed_over: handed_over.collect(),
            alive: alive.map(|(node, _)| *node).collect(),
        })
    }

    /// How long until the next node is silent for too long, if nothing more is heard of it.
    pub(super) fn until_silence(&self) -> Option<Duration> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let left = heard
            .values()
            .filter_map(|report| SILENT.checked_sub(report.at.elapsed()));
        left.min()
    }

    /// What a change of membership waits for, if anything.
    pub fn waiting(&self) -> Option<String> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says what a change of membership waits for; logs what is new.
    pub(super) fn wait_for(&self, what: Option<String>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = what.as_ref().filter(|_| *waiting != what) {
            info!("a change of membership waits: {why}");
        }
        *waiting = what;
    }

    pub(super) fn forget(&self, node: NodeId) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
    }

    /// Forgets what was heard before this term of management.
    pub(super) fn begin(&self) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clear();
        // Of an earlier term.
        self.know_headroom(Vec::new());
        self.know_rates(Vec::new());
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    pub(super) fn end(&self) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.know_stuck(0);
        self.wait_for(None);
    }
}
