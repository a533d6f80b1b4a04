//! The node's metrics, each declared here with its unit and meaning.

use crate::http::Pages;
use crate::memory::{Memory, resident};
use crate::parts::KeeperState;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tidemill_core::catalog::{CatalogQuestions, Pipe};
use tidemill_core::view::CatalogRead;
use tidemill_core::{Ledger, Offset, PartitionId};
use tidemill_ingest::task::Takeovers;
use tidemill_raft::Catalog;
use tidemill_storage::wal::WalStats;

type Labels = Vec<(String, String)>;

/// All metrics of a node.
pub struct Metrics {
    registry: Registry,
    queries: Counter,
    query_errors: Counter,
    query_seconds: Histogram,
    raft_term: Gauge,
    raft_is_leader: Gauge,
    raft_log_losses: Gauge,
    catalog_version: Gauge,
    memory_limit: Gauge,
    memory_share: Family<Labels, Gauge>,
    memory_used: Family<Labels, Gauge>,
    memory_resident: Gauge,
    shards_led: Gauge,
    shards_stuck: Gauge,
    shards_standing_by: Gauge,
    takeover_kept: Gauge,
    takeover_read_again: Gauge,
    takeover_kept_offsets: Gauge,
    partition_position: Family<Labels, Gauge>,
    partition_lag: Family<Labels, Gauge>,
    partition_waiting: Family<Labels, Gauge>,
    partition_stopped: Family<Labels, Gauge>,
    ledger_absent: Family<Labels, Gauge>,
    ledger_lost: Family<Labels, Gauge>,
    ledger_rejected: Family<Labels, Gauge>,
    ledger_imbalances: Gauge,
    missing_files: Gauge,
    missing_bytes: Gauge,
    copied_bytes: Gauge,
    scrubbed_bytes: Gauge,
    lost_copies: Gauge,
    wal: WalMetrics,
}

/// The write-ahead log.
#[derive(Default)]
struct WalMetrics {
    entries: Gauge,
    bytes: Gauge,
    appended_bytes: Gauge,
    appends: Gauge,
    syncs: Gauge,
    sync_seconds: Gauge<f64, AtomicU64>,
    replayed_rows: Gauge,
}

impl WalMetrics {
    fn declare(&self, r: &mut Registry) {
        let gauges = [
            (
                "entries",
                "Entries of the write-ahead log that are not committed yet",
                &self.entries,
            ),
            ("bytes", "Bytes of these entries", &self.bytes),
            (
                "appended_bytes",
                "Bytes appended to the write-ahead log since the process began",
                &self.appended_bytes,
            ),
            (
                "appends",
                "Appends to the write-ahead log since the process began",
                &self.appends,
            ),
            (
                "syncs",
                "Fsyncs of the write-ahead log since the process began; one serves many appends",
                &self.syncs,
            ),
            (
                "replayed_rows",
                "Rows that came from the write-ahead log instead of the source since the process began",
                &self.replayed_rows,
            ),
        ];
        for (name, help, gauge) in gauges {
            r.register(format!("tidemill_wal_{name}"), help, gauge.clone());
        }
        let help = "Seconds spent in fsyncs of the write-ahead log since the process began";
        r.register("tidemill_wal_sync_seconds", help, self.sync_seconds.clone());
    }

    fn set(&self, stats: WalStats) {
        let pairs = [
            (&self.entries, stats.entries),
            (&self.bytes, stats.bytes),
            (&self.appended_bytes, stats.appended_bytes),
            (&self.appends, stats.appends),
            (&self.syncs, stats.syncs),
            (&self.replayed_rows, stats.replayed_rows),
        ];
        for (gauge, value) in pairs {
            gauge.set(value as i64);
        }
        self.sync_seconds.set(stats.sync_time.as_secs_f64());
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            queries: Counter::default(),
            query_errors: Counter::default(),
            query_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            raft_term: Gauge::default(),
            raft_is_leader: Gauge::default(),
            raft_log_losses: Gauge::default(),
            catalog_version: Gauge::default(),
            memory_limit: Gauge::default(),
            memory_share: Family::default(),
            memory_used: Family::default(),
            memory_resident: Gauge::default(),
            shards_led: Gauge::default(),
            shards_stuck: Gauge::default(),
            shards_standing_by: Gauge::default(),
            takeover_kept: Gauge::default(),
            takeover_read_again: Gauge::default(),
            takeover_kept_offsets: Gauge::default(),
            partition_position: Family::default(),
            partition_lag: Family::default(),
            partition_waiting: Family::default(),
            partition_stopped: Family::default(),
            ledger_absent: Family::default(),
            ledger_lost: Family::default(),
            ledger_rejected: Family::default(),
            ledger_imbalances: Gauge::default(),
            missing_files: Gauge::default(),
            missing_bytes: Gauge::default(),
            copied_bytes: Gauge::default(),
            scrubbed_bytes: Gauge::default(),
            lost_copies: Gauge::default(),
            wal: WalMetrics::default(),
        };
        metrics.declare();
        metrics
    }
}

impl Metrics {
    fn declare(&mut self) {
        let r = &mut self.registry;
        r.register("tidemill_queries", "Statements executed", self.queries.clone());
        r.register(
            "tidemill_query_errors",
            "Statements that ended in an error",
            self.query_errors.clone(),
        );
        r.register(
            "tidemill_query_start_seconds",
            "Time until a statement was done or its first rows could be sent, in seconds",
            self.query_seconds.clone(),
        );
        r.register("tidemill_raft_term", "Term of the Raft group", self.raft_term.clone());
        r.register(
            "tidemill_raft_is_leader",
            "1 if this node leads the Raft group",
            self.raft_is_leader.clone(),
        );
        r.register(
            "tidemill_raft_log_losses",
            "Times, since the start of this node, that a follower of it had lost entries that it had acknowledged",
            self.raft_log_losses.clone(),
        );
        r.register(
            "tidemill_catalog_version",
            "Log index that this node has applied",
            self.catalog_version.clone(),
        );
        r.register(
            "tidemill_shards_led",
            "Shards that this node leads",
            self.shards_led.clone(),
        );
        r.register(
            "tidemill_shards_stuck",
            "Shards that do not get on at any node that may lead them; from the Raft leader",
            self.shards_stuck.clone(),
        );
        r.register(
            "tidemill_partition_position",
            "Next source offset to be read",
            self.partition_position.clone(),
        );
        r.register(
            "tidemill_partition_lag_records",
            "Records in the source not yet read",
            self.partition_lag.clone(),
        );
        r.register(
            "tidemill_partition_waiting",
            "1 if something keeps the partition from going on, with what it waits for",
            self.partition_waiting.clone(),
        );
        r.register(
            "tidemill_partition_stopped",
            "1 if the partition has stopped until somebody says how it goes on, with the reason; from the Raft leader",
            self.partition_stopped.clone(),
        );
        r.register(
            "tidemill_ledger_absent_offsets",
            "Offsets of the present life that held no record; from the Raft leader",
            self.ledger_absent.clone(),
        );
        r.register(
            "tidemill_ledger_lost_offsets",
            "Offsets that were passed over unread, in all lives; from the Raft leader",
            self.ledger_lost.clone(),
        );
        r.register(
            "tidemill_ledger_rejected_records",
            "Records in reject parts, in all lives; from the Raft leader",
            self.ledger_rejected.clone(),
        );
        r.register(
            "tidemill_ledger_imbalances",
            "Ledgers that do not balance: any is a bug; from the Raft leader",
            self.ledger_imbalances.clone(),
        );
        self.declare_memory();
        self.declare_standbys();
        self.declare_parts();
    }

    fn declare_memory(&mut self) {
        let r = &mut self.registry;
        r.register(
            "tidemill_memory_limit_bytes",
            "Bytes of memory that this node may use, as configured",
            self.memory_limit.clone(),
        );
        r.register(
            "tidemill_memory_share_bytes",
            "Bytes of the limit that are for rows (memtables and encoding), decoding, queries and the catalog",
            self.memory_share.clone(),
        );
        r.register(
            "tidemill_memory_used_bytes",
            "Bytes counted by kind: memtables, encoding, decoding, queries, catalog",
            self.memory_used.clone(),
        );
        r.register(
            "tidemill_memory_resident_bytes",
            "Bytes of memory that the process has, code among them",
            self.memory_resident.clone(),
        );
    }

    fn set_memory(&self, memory: &Memory) {
        let of = |kind: &str| vec![("kind".to_owned(), kind.to_owned())];
        self.memory_limit.set(memory.shares.limit as i64);
        for (kind, bytes) in memory.shares() {
            self.memory_share.get_or_create(&of(kind)).set(bytes as i64);
        }
        for (kind, bytes) in memory.used() {
            self.memory_used.get_or_create(&of(kind)).set(bytes as i64);
        }
        self.memory_resident.set(resident().unwrap_or_default() as i64);
    }

    fn declare_standbys(&mut self) {
        let r = &mut self.registry;
        r.register(
            "tidemill_shards_standing_by",
            "Shards that another node leads and this one stands by for",
            self.shards_standing_by.clone(),
        );
        r.register(
            "tidemill_takeover_kept_partitions",
            "Partitions that a standby here took over without reading again, since the process began",
            self.takeover_kept.clone(),
        );
        r.register(
            "tidemill_takeover_reread_partitions",
            "Partitions that a standby here took over and had to read again, since the process began",
            self.takeover_read_again.clone(),
        );
        r.register(
            "tidemill_takeover_kept_offsets",
            "Offsets beyond the committed ones that standbys here had in memory when they took over",
            self.takeover_kept_offsets.clone(),
        );
    }

    fn set_standbys(&self, standing_by: usize, takeovers: &Takeovers) {
        self.shards_standing_by.set(standing_by as i64);
        let pairs = [
            (&self.takeover_kept, &takeovers.kept),
            (&self.takeover_read_again, &takeovers.read_again),
            (&self.takeover_kept_offsets, &takeovers.kept_offsets),
        ];
        for (gauge, value) in pairs {
            gauge.set(value.load(Ordering::Relaxed) as i64);
        }
    }

    fn declare_parts(&mut self) {
        let r = &mut self.registry;
        r.register(
            "tidemill_parts_missing_files",
            "Part files that this node shall keep and does not hold",
            self.missing_files.clone(),
        );
        r.register(
            "tidemill_parts_missing_bytes",
            "Bytes of the part files that this node shall keep and does not hold",
            self.missing_bytes.clone(),
        );
        r.register(
            "tidemill_parts_copied_bytes",
            "Bytes of part files copied from other nodes since the process began",
            self.copied_bytes.clone(),
        );
        r.register(
            "tidemill_parts_scrubbed_bytes",
            "Bytes of part files verified in the background since the process began",
            self.scrubbed_bytes.clone(),
        );
        r.register(
            "tidemill_parts_lost_copies",
            "Part files that were found damaged or missing on this node since the process began",
            self.lost_copies.clone(),
        );
        self.wal.declare(r);
    }

    fn set_parts(&self, parts: &KeeperState) {
        let pairs = [
            (&self.missing_files, &parts.missing_files),
            (&self.missing_bytes, &parts.missing_bytes),
            (&self.copied_bytes, &parts.copied_bytes),
            (&self.scrubbed_bytes, &parts.scrubbed_bytes),
            (&self.lost_copies, &parts.lost_copies),
        ];
        for (gauge, value) in pairs {
            gauge.set(value.load(Ordering::Relaxed) as i64);
        }
    }

    fn clear_ledgers(&self) {
        for family in [
            &self.partition_stopped,
            &self.ledger_absent,
            &self.ledger_lost,
            &self.ledger_rejected,
        ] {
            family.clear();
        }
        self.ledger_imbalances.set(0);
    }

    fn set_ledgers(&self, catalog: &Catalog) -> Result<(), String> {
        let state = catalog.snapshot().map_err(|e| e.to_string())?;
        for pipe in state.list::<Pipe>(&[]).map_err(|e| e.to_string())? {
            let labels = |partition: PartitionId| -> Labels {
                vec![
                    ("pipe".into(), pipe.name.clone()),
                    ("partition".into(), partition_label(&pipe, partition)),
                ]
            };
            for p in state.partitions_of(pipe.id).map_err(|e| e.to_string())? {
                self.add_ledger(&labels(p.partition), &p.ledger, p.offset);
                let absent = p.ledger.counts.absent as i64;
                self.ledger_absent.get_or_create(&labels(p.partition)).inc_by(absent);
                if let Some(stop) = &p.stop {
                    let mut labels = labels(p.partition);
                    labels.push(("reason".into(), stop.reason.name().into()));
                    self.partition_stopped.get_or_create(&labels).set(1);
                }
            }
            for closed in state.closed_ledgers_of(pipe.id).map_err(|e| e.to_string())? {
                self.add_ledger(&labels(closed.partition), &closed.ledger, closed.end);
            }
        }
        Ok(())
    }

    fn add_ledger(&self, labels: &Labels, ledger: &Ledger, end: Offset) {
        self.ledger_lost.get_or_create(labels).inc_by(ledger.lost as i64);
        let rejected = ledger.counts.rejected as i64;
        self.ledger_rejected.get_or_create(labels).inc_by(rejected);
        if ledger.imbalance(end).is_some() {
            self.ledger_imbalances.inc();
        }
    }

    /// Counts a statement.
    pub fn query(&self, took: Duration, failed: bool) {
        self.queries.inc();
        self.query_seconds.observe(took.as_secs_f64());
        if failed {
            self.query_errors.inc();
        }
    }

    /// The text that Prometheus scrapes, as of now.
    pub fn text(&self, of: &Pages) -> Result<String, std::fmt::Error> {
        let (catalog, supervisor) = (&of.catalog, &of.supervisor);
        self.shards_stuck.set(of.reports.stuck() as i64);
        self.set_parts(&of.parts);
        self.wal.set(supervisor.wal().stats());
        self.set_memory(&of.memory);
        let raft = catalog.status();
        self.raft_term.set(raft.term as i64);
        self.raft_is_leader.set((raft.leader == Some(raft.node)).into());
        self.raft_log_losses.set(raft.log_losses as i64);
        self.catalog_version.set(raft.applied.0 as i64);
        let (reports, standing_by): (Vec<_>, Vec<_>) =
            supervisor.reports().into_iter().partition(|r| r.epoch.is_some());
        self.shards_led.set(reports.len() as i64);
        self.set_standbys(standing_by.len(), supervisor.takeovers());
        // Partitions come and go with their shards; what is not led here any more must not linger.
        self.partition_position.clear();
        self.partition_lag.clear();
        self.partition_waiting.clear();
        for p in reports.iter().flat_map(|r| &r.partitions) {
            let labels: Labels = vec![
                ("pipe".into(), p.key.pipe.to_string()),
                ("partition".into(), p.key.partition.to_string()),
            ];
            self.partition_position.get_or_create(&labels).set(p.position.0 as i64);
            let mut waiting = labels.clone();
            waiting.extend(
                p.wait
                    .as_ref()
                    .map(|wait| ("wait".to_owned(), wait.kind().name().to_owned())),
            );
            self.partition_waiting
                .get_or_create(&waiting)
                .set(p.wait.is_some().into());
            if let Some(end) = p.end {
                self.partition_lag
                    .get_or_create(&labels)
                    .set(end.0.saturating_sub(p.position.0) as i64);
            }
        }
        // One node speaks for all, so that sums over nodes are right.
        self.clear_ledgers();
        if self.raft_is_leader.get() != 0
            && let Err(error) = self.set_ledgers(catalog)
        {
            tracing::warn!("the ledgers are missing in the metrics: {error}");
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Writers come and go, and each has partitions of its own: they are counted together.
fn partition_label(pipe: &Pipe, partition: PartitionId) -> String {
    match pipe.source.kafka() {
        Some(_) => partition.to_string(),
        None => "all".to_owned(),
    }
}
