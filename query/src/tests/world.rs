//! A small cluster in memory: the catalog is core's own `apply`, parts are written by storage, and
//! every leader has a real memtable.

use crate::*;
use arrow::array::{
    BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::util::pretty::pretty_format_batches;
use async_trait::async_trait;
use futures::TryStreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tidemill_core::catalog::*;
use tidemill_core::command::*;
use tidemill_core::view::{CatalogSnapshot, CatalogView, Kind, MemView, Overlay, ViewError, Visit};
use tidemill_core::*;
use tidemill_storage::memtable::{Chunk, Memtable, PinnedShard};
use tidemill_storage::store::{LocalStore, PartStore};
use tidemill_storage::{arrow_schema, reject_schema, write_parts, write_rejects};

/// A state of the catalog and its version.
pub(super) struct Snapshot(pub MemView, pub Version);

impl CatalogView for Snapshot {
    fn get_bytes(&self, kind: Kind, key: &[u8]) -> Result<Option<Vec<u8>>, ViewError> {
        self.0.get_bytes(kind, key)
    }
    fn scan_bytes(&self, kind: Kind, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), ViewError> {
        self.0.scan_bytes(kind, prefix, visit)
    }
}

impl CatalogSnapshot for Snapshot {
    fn version(&self) -> Version {
        self.1
    }
}

pub(super) struct World {
    state: Mutex<(MemView, Version)>,
    pub memtables: Mutex<BTreeMap<ShardId, Memtable>>,
    pub progress: Mutex<Option<Vec<NodeProgress>>>,
    pub store: Arc<LocalStore>,
    pub unreachable: AtomicBool,
    /// Where each partition of the source ends.
    pub source_end: AtomicU64,
    next_id: Mutex<u128>,
    _dir: tempfile::TempDir,
}

#[async_trait]
impl Catalog for World {
    async fn linearizable(&self) -> Result<Arc<dyn CatalogSnapshot>, CatalogError> {
        self.local()
    }
    fn local(&self) -> Result<Arc<dyn CatalogSnapshot>, CatalogError> {
        let state = self.state.lock().unwrap();
        Ok(Arc::new(Snapshot(state.0.clone(), state.1)))
    }
    async fn propose(&self, command: Command) -> Result<(Version, Outcome), CatalogError> {
        Ok(self.apply(command))
    }
}

#[async_trait]
impl FreshRows for World {
    async fn pin(
        &self,
        _: NodeId,
        shard: ShardId,
        epoch: Epoch,
        columns: Option<&BTreeSet<String>>,
    ) -> Result<PinnedShard, PinError> {
        if self.unreachable.load(Ordering::SeqCst) {
            return Err(PinError::Unreachable("connection refused".into()));
        }
        let memtables = self.memtables.lock().unwrap();
        let pin = memtables
            .get(&shard)
            .and_then(Memtable::pin)
            .filter(|pin| pin.epoch == epoch);
        let pin = pin.ok_or(PinError::NotLeading)?;
        Ok(columns.map_or(pin.clone(), |columns| pin.with_columns(columns)))
    }
}

#[async_trait]
impl Progress for World {
    async fn progress(&self) -> Option<SoftState> {
        let nodes = self.progress.lock().unwrap().clone()?;
        let headroom = vec![(PipeId(1), PartitionId(0), 120)];
        let arriving = vec![(PipeId(1), PartitionId(0), 2048.5)];
        Some(SoftState {
            nodes,
            headroom,
            arriving,
        })
    }
}

#[async_trait]
impl Sources for World {
    async fn kafka_start(&self, source: &KafkaSource, start: &StartPosition) -> Result<SourceOffsets, SourceError> {
        let offset = match start {
            StartPosition::Latest => Offset(self.source_end.load(Ordering::SeqCst)),
            _ => Offset(0),
        };
        match source.topic.as_str() {
            "missing" => Err(SourceError("brokers 'h:1' have no topic 'missing'".into())),
            _ => Ok(SourceOffsets {
                topic: None,
                partitions: (0..4).map(|p| (PartitionId(p), offset)).collect(),
            }),
        }
    }
}

#[async_trait]
impl Replayer for World {
    async fn replay(
        &self,
        _: &Pipe,
        _: &Table,
        _: &RejectPart,
        _: Epoch,
        _: &RecordBatch,
        _: &BooleanArray,
    ) -> Result<Replayed, String> {
        Err("this world has no decoder".into())
    }
}

impl World {
    /// Three nodes, table `events` with two shards, pipe `p` with four partitions; shards are led.
    pub fn new() -> (Arc<Self>, Engine) {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalStore::open(dir.path()).unwrap());
        let world = Arc::new(Self {
            state: Mutex::default(),
            memtables: Mutex::default(),
            progress: Mutex::default(),
            store: store.clone(),
            unreachable: AtomicBool::new(false),
            source_end: AtomicU64::new(0),
            next_id: Mutex::new(1),
            _dir: dir,
        });
        found(&mut |command| world.apply(command).1);
        let config = EngineConfig {
            memory_limit_bytes: 32 << 20,
            target_partitions: 2,
            spill_dir: None,
            pin_timeout: Duration::from_millis(300),
        };
        let parts: Arc<dyn PartStore> = store;
        let engine = Engine::new(
            config,
            world.clone(),
            world.clone(),
            world.clone(),
            world.clone(),
            world.clone(),
            parts,
            "n1".into(),
        );
        (world, engine.unwrap())
    }

    /// The same, with `events` and `p`.
    pub async fn with_events() -> (Arc<Self>, Engine) {
        let (world, engine) = Self::new();
        let sql = "CREATE TABLE events (id BIGINT NOT NULL, name VARCHAR, price DOUBLE, at TIMESTAMP)
                   ORDER BY (id) WITH (shards = 2)";
        done(&engine, sql).await;
        done(
            &engine,
            "CREATE PIPE p INTO events FROM KAFKA (brokers = 'h:1', topic = 'clicks')",
        )
        .await;
        world.lead_all();
        (world, engine)
    }

    pub fn apply(&self, command: Command) -> (Version, Outcome) {
        apply_to(&mut self.state.lock().unwrap(), command)
    }

    pub fn snapshot(&self) -> Snapshot {
        let state = self.state.lock().unwrap();
        Snapshot(state.0.clone(), state.1)
    }

    pub fn table(&self) -> Table {
        self.snapshot().table_named("events").unwrap().unwrap()
    }

    /// Gives every shard of `events` a new leader with an empty memtable.
    pub fn lead_all(&self) {
        let snapshot = self.snapshot();
        for shard in snapshot.shards_of(self.table().id).unwrap() {
            let leader = NodeId(1 + u64::from(shard.id.index) % 3);
            let assign = AssignLeader {
                shard: shard.id,
                replaces: shard.epoch,
                leader: Some(leader),
                because: String::new(),
            };
            let Ok(Response::Epoch(epoch)) = self.apply(Command::AssignLeader(assign)).1 else {
                panic!("no leader")
            };
            self.memtables
                .lock()
                .unwrap()
                .insert(shard.id, Memtable::new(shard.id, epoch));
        }
        self.open_partitions();
    }

    pub fn open_partitions(&self) {
        let snapshot = self.snapshot();
        let memtables = self.memtables.lock().unwrap();
        for pipe in snapshot.pipes_into(self.table().id).unwrap() {
            for p in snapshot.partitions_of(pipe.id).unwrap() {
                let key = SpanKey {
                    pipe: pipe.id,
                    partition: p.partition,
                    incarnation: p.incarnation,
                };
                memtables[&p.shard].open_partition(key, p.offset);
            }
        }
    }

    /// `count` more records of a partition; every tenth is one that cannot be decoded.
    pub fn consume(&self, partition: u32, count: u64) {
        let table = self.table();
        let shard = ShardId {
            table: table.id,
            index: partition % table.shards,
        };
        let memtables = self.memtables.lock().unwrap();
        let positions = memtables[&shard].positions();
        let (key, start) = positions
            .into_iter()
            .find(|(key, _)| key.partition.0 == partition)
            .unwrap();
        let offsets: Vec<u64> = (start.0..start.0 + count).collect();
        let (bad, good): (Vec<u64>, Vec<u64>) = offsets.into_iter().partition(|offset| offset % 10 == 9);
        let span = Span {
            key,
            start,
            end: Offset(start.0 + count),
            counts: Counts {
                delivered: count,
                absent: 0,
                stored: good.len() as u64,
                rejected: bad.len() as u64,
                filtered: 0,
                rows: good.len() as u64,
            },
            topic: None,
            source_epoch: None,
        };
        let rows = Some(rows(&table, "clicks", partition, &good));
        memtables[&shard]
            .append(Chunk {
                span,
                rows,
                rejects: Some(rejects(partition, &bad)),
            })
            .unwrap();
    }

    /// Writes and commits what a shard has in memory.
    pub async fn flush(&self, index: u32) {
        let table = self.table();
        let shard = ShardId { table: table.id, index };
        let (cut, epoch) = {
            let memtables = self.memtables.lock().unwrap();
            let epoch = memtables[&shard].pin().unwrap().epoch;
            match memtables[&shard].cut() {
                Some(cut) => (cut, epoch),
                None => return,
            }
        };
        let mut new_id = || PartId(self.id());
        let mut parts = write_parts(&table, shard, epoch, &cut.rows, &mut new_id).unwrap();
        let mut reject_parts = Vec::new();
        let mut files = Vec::new();
        let mut rejects: BTreeMap<PipeId, Vec<RecordBatch>> = BTreeMap::new();
        for (pipe, batch) in &cut.rejects {
            rejects.entry(*pipe).or_default().push(batch.clone());
        }
        for (pipe, batches) in rejects {
            let written = write_rejects(pipe, shard, epoch, &batches, &mut new_id).unwrap();
            reject_parts.push((pipe, written.file.clone()));
            files.push(written);
        }
        let commit = CommitPart {
            commit: CommitId(self.id()),
            shard,
            epoch,
            schema_version: table.schema_version,
            parts: parts.iter().map(|part| part.file.clone()).collect(),
            reject_parts,
            spans: cut.spans,
            holders: vec![],
        };
        for part in parts.drain(..).chain(files) {
            self.store.put(&part.file.path, part.bytes).await.unwrap();
        }
        assert_eq!(self.apply(Command::CommitPart(commit)).1, Ok(Response::Done));
        self.memtables.lock().unwrap()[&shard].commit_cut();
    }

    fn id(&self) -> u128 {
        let mut next = self.next_id.lock().unwrap();
        *next += 1;
        *next
    }
}

/// Takes a partition back to `to` and deletes the rows that are there from that offset on.
pub(super) fn read_anew(pipe: &Pipe, p: &SourcePartition, to: Offset) -> Command {
    let target = ResetTarget {
        partition: p.partition,
        incarnation: p.incarnation,
        to: Some(to),
        topic: None,
        old_rows: Some(OldRows::Delete),
        source_epoch: None,
    };
    Command::ResetOffsets(ResetOffsets {
        name: pipe.name.clone(),
        pipe: Some(pipe.id),
        targets: vec![target],
        because: "reset".into(),
    })
}

/// Applies a command to a catalog in memory.
pub(super) fn apply_to(state: &mut (MemView, Version), command: Command) -> (Version, Outcome) {
    let version = state.1.next();
    let (outcome, writes) = {
        let mut overlay = Overlay::new(&state.0);
        let proposal = Proposal::new(1_700_000_000_000 + version.0 as i64, command);
        (
            tidemill_core::apply(&mut overlay, version, &proposal).unwrap(),
            overlay.into_writes(),
        )
    };
    state.0.write(writes);
    state.1 = version;
    (version, outcome)
}

/// A cluster of three nodes that run.
pub(super) fn found(apply: &mut dyn FnMut(Command) -> Outcome) {
    let member = |n: u64| FoundingMember {
        node: NodeId(n),
        name: format!("n{n}"),
        instance: InstanceId(n.into()),
        warehouse: "default".into(),
        addresses: Addresses {
            raft: format!("h{n}:1"),
            api: format!("h{n}:2"),
            http: format!("h{n}:3"),
        },
    };
    let members: Vec<_> = (1..=3).map(member).collect();
    let up: Vec<_> = members
        .iter()
        .map(|m| (m.node, m.instance, m.addresses.clone()))
        .collect();
    apply(Command::FoundCluster(FoundCluster {
        cluster: ClusterId(1),
        name: "test".into(),
        members,
        replication: None,
    }))
    .unwrap();
    for (node, instance, addresses) in up {
        let boot = BootId(node.0.into());
        apply(Command::NodeUp(NodeUp {
            node,
            instance,
            boot,
            addresses,
            disk: None,
            warehouse: None,
        }))
        .unwrap();
    }
}

/// Rows of `events` (or any table whose columns begin like its), one per offset.
pub(super) fn rows(table: &Table, topic: &str, partition: u32, offsets: &[u64]) -> RecordBatch {
    let n = offsets.len();
    let numbers = || offsets.iter().map(|offset| *offset as i64);
    let all: Vec<arrow::array::ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(
            numbers().map(|o| i64::from(partition) * 1_000_000 + o),
        )),
        Arc::new(StringArray::from_iter(
            numbers().map(|o| (o % 3 != 0).then(|| format!("name{}", o % 5))),
        )),
        Arc::new(Float64Array::from_iter_values(numbers().map(|o| o as f64 / 2.0))),
        Arc::new(TimestampMicrosecondArray::from_iter_values(
            numbers().map(|o| o * 1_000_000),
        )),
    ];
    let mut columns = all[..table.columns.len()].to_vec();
    columns.push(Arc::new(StringArray::from_iter_values(std::iter::repeat_n(topic, n))));
    columns.push(Arc::new(Int32Array::from_iter_values(std::iter::repeat_n(
        partition as i32,
        n,
    ))));
    columns.push(Arc::new(Int64Array::from_iter_values(numbers())));
    columns.push(Arc::new(TimestampMicrosecondArray::from_iter_values(numbers())));
    columns.push(Arc::new(StringArray::from_iter(std::iter::repeat_n(None::<&str>, n))));
    RecordBatch::try_new(arrow_schema(table), columns).unwrap()
}

fn rejects(partition: u32, offsets: &[u64]) -> RecordBatch {
    let n = offsets.len();
    let numbers = || offsets.iter().map(|offset| *offset as i64);
    let text = |s: &'static str| Arc::new(StringArray::from_iter_values(std::iter::repeat_n(s, n)));
    let payload = Arc::new(arrow::array::BinaryArray::from_iter_values(std::iter::repeat_n(
        b"{", n,
    )));
    let columns: Vec<arrow::array::ArrayRef> = vec![
        text("clicks"),
        Arc::new(Int32Array::from_iter_values(std::iter::repeat_n(partition as i32, n))),
        Arc::new(Int64Array::from_iter_values(numbers())),
        Arc::new(TimestampMicrosecondArray::from_iter_values(numbers())),
        Arc::new(arrow::array::BinaryArray::from_iter(std::iter::repeat_n(
            None::<&[u8]>,
            n,
        ))),
        Arc::new(StringArray::from_iter(std::iter::repeat_n(None::<&str>, n))),
        payload,
        text("not JSON"),
    ];
    RecordBatch::try_new(reject_schema(), columns).unwrap()
}

pub(super) async fn done(engine: &Engine, sql: &str) -> String {
    match engine.execute(sql, &BTreeMap::new()).await {
        Ok(Answer::Done { message }) => message,
        Ok(Answer::Rows { .. }) => panic!("{sql}: rows"),
        Err(error) => panic!("{sql}: {error:?}"),
    }
}

pub(super) async fn error_of(engine: &Engine, sql: &str) -> QueryError {
    match engine.execute(sql, &BTreeMap::new()).await {
        Ok(Answer::Done { message }) => panic!("{sql}: {message}"),
        Ok(Answer::Rows { stream, .. }) => match stream.try_collect::<Vec<_>>().await {
            Ok(_) => panic!("{sql}: rows"),
            Err(error) => error.into(),
        },
        Err(error) => error,
    }
}

pub(super) async fn query_with(engine: &Engine, sql: &str, consistency: &str) -> Vec<RecordBatch> {
    let settings = BTreeMap::from([("tidemill.consistency".to_owned(), consistency.to_owned())]);
    match engine.execute(sql, &settings).await {
        Ok(Answer::Rows { schema, stream }) => {
            let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap_or_else(|e| panic!("{sql}: {e}"));
            assert!(
                batches.iter().all(|batch| batch.schema().fields() == schema.fields()),
                "{sql}"
            );
            batches
        }
        Ok(Answer::Done { message }) => panic!("{sql}: {message}"),
        Err(error) => panic!("{sql}: {error:?}"),
    }
}

/// The rows as lines of fields between bars, without borders.
pub(super) async fn query(engine: &Engine, sql: &str) -> Vec<String> {
    lines(&query_with(engine, sql, "fresh").await)
}

pub(super) fn lines(batches: &[RecordBatch]) -> Vec<String> {
    let text = pretty_format_batches(batches).unwrap().to_string();
    let rows = text.lines().filter(|line| line.starts_with('|')).skip(1);
    rows.map(|row| {
        row.trim_matches('|')
            .split('|')
            .map(str::trim)
            .collect::<Vec<_>>()
            .join("|")
    })
    .collect()
}
