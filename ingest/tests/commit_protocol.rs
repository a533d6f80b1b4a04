//! The commit protocol against an adversary: requests get lost, replies get lost, requests arrive twice and
//! late, pipes are paused between reading and committing, and the shard changes its leader, to one that begins anew or
//! to a standby that has read at its own pace. The catalog is the real
//! `apply`, the memtable and the parts are the real ones. In the end every offset below the committed
//! one is in exactly one committed part, once.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use arrow::array::{ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Int32Type, Int64Type};
use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tidemill_core::catalog::*;
use tidemill_core::command::*;
use tidemill_core::invariants::{check_state, check_step};
use tidemill_core::schema::{Column, ColumnType};
use tidemill_core::view::{CatalogRead, MemView, Overlay};
use tidemill_core::*;
use tidemill_ingest::budget::Budget;
use tidemill_ingest::writer::{CommitUnknown, Committer, Flushed, ShardWriter, TopicChecks};
use tidemill_storage::memtable::{Chunk, Committed, Extent, Memtable};
use tidemill_storage::part::read_part;
use tidemill_storage::schema::arrow_schema;
use tidemill_storage::store::{self, PartStore};

const SHARD: ShardId = ShardId {
    table: TableId(1),
    index: 0,
};
const PARTITIONS: u32 = 3;

struct Catalog {
    state: MemView,
    index: u64,
    rng: StdRng,
    /// Commits that are still on their way although their sender gave up on them.
    late: Vec<CommitPart>,
}

impl Catalog {
    fn apply(&mut self, command: Command) -> Outcome {
        self.index += 1;
        let before = self.state.clone();
        let mut overlay = Overlay::new(&before);
        let outcome = apply(&mut overlay, Version(self.index), &Proposal::new(0, command)).unwrap();
        self.state.write(overlay.into_writes());
        assert_eq!(check_state(&self.state).unwrap(), vec![]);
        assert_eq!(check_step(&before, &self.state).unwrap(), vec![]);
        outcome
    }

    fn pause_and_resume(&mut self) {
        for state in [PipeState::Paused, PipeState::Running] {
            self.apply(Command::SetPipeState(SetPipeState {
                name: "p".into(),
                pipe: None,
                from: None,
                state,
            }))
            .unwrap();
        }
    }

    fn partitions(&self) -> Vec<SourcePartition> {
        self.state.partitions_of(PipeId(1)).unwrap()
    }

    fn new_leader(&mut self) -> Epoch {
        let epoch = self.state.get::<Shard>(&SHARD).unwrap().unwrap().epoch;
        let assign = AssignLeader {
            shard: SHARD,
            replaces: epoch,
            leader: Some(NodeId(1)),
            because: String::new(),
        };
        self.apply(Command::AssignLeader(assign)).unwrap();
        epoch.next()
    }
}

struct Network(Mutex<Catalog>);

#[async_trait]
impl Committer for Network {
    async fn commit(&self, commit: CommitPart) -> Result<Outcome, CommitUnknown> {
        let catalog = &mut *self.0.lock().unwrap();
        let lost = |what: &str| Err(CommitUnknown(what.to_owned()));
        // What was late may arrive at any time.
        if !catalog.late.is_empty() && catalog.rng.random_bool(0.3) {
            let late = catalog.late.remove(0);
            let _ = catalog.apply(Command::CommitPart(late));
        }
        match catalog.rng.random_range(0..100) {
            0..15 => lost("the request is lost"),
            15..25 => {
                catalog.late.push(commit);
                lost("the request is late")
            }
            25..45 => {
                let _ = catalog.apply(Command::CommitPart(commit));
                lost("the reply is lost")
            }
            45..55 => {
                let first = catalog.apply(Command::CommitPart(commit.clone()));
                let second = catalog.apply(Command::CommitPart(commit));
                assert!(
                    first.is_err() || matches!(second, Err(Refusal::AlreadyCommitted(_))),
                    "{first:?} {second:?}"
                );
                Ok(second)
            }
            55..60 => {
                catalog.pause_and_resume();
                Ok(catalog.apply(Command::CommitPart(commit)))
            }
            60..64 => {
                catalog.new_leader();
                Ok(catalog.apply(Command::CommitPart(commit)))
            }
            _ => Ok(catalog.apply(Command::CommitPart(commit))),
        }
    }

    async fn stop(&self, stop: StopPartition) -> Result<Outcome, CommitUnknown> {
        Ok(self.0.lock().unwrap().apply(Command::StopPartition(stop)))
    }
}

fn found(seed: u64) -> (Catalog, Table) {
    let mut c = Catalog {
        state: MemView::default(),
        index: 0,
        rng: StdRng::seed_from_u64(seed),
        late: vec![],
    };
    let member = FoundingMember {
        node: NodeId(1),
        name: "n1".into(),
        instance: InstanceId(1),
        warehouse: "w".into(),
        addresses: Addresses::default(),
    };
    c.apply(Command::FoundCluster(FoundCluster {
        cluster: ClusterId(1),
        name: "c".into(),
        members: vec![member],
        replication: None,
    }))
    .unwrap();
    let up = NodeUp {
        node: NodeId(1),
        instance: InstanceId(1),
        boot: BootId(1),
        addresses: Addresses::default(),
        disk: None,
        warehouse: None,
    };
    c.apply(Command::NodeUp(up)).unwrap();
    let table = CreateTable {
        name: "t".into(),
        id: None,
        if_not_exists: false,
        columns: vec![Column {
            name: "x".into(),
            data_type: ColumnType::Int64,
            nullable: false,
            default: None,
        }],
        order_by: vec!["x".into()],
        partition_by: None,
        shards: 1,
        settings: TableSettings::default(),
    };
    c.apply(Command::CreateTable(table)).unwrap();
    let source = KafkaSource {
        brokers: "b:1".into(),
        topic: "s".into(),
        client: BTreeMap::new(),
    };
    let partitions = (0..PARTITIONS).map(|p| (PartitionId(p), Offset(0))).collect();
    let pipe = CreatePipe {
        name: "p".into(),
        id: None,
        if_not_exists: false,
        table: "t".into(),
        table_id: None,
        source,
        settings: PipeSettings::default(),
        topic: None,
        format: Default::default(),
        partitions,
    };
    c.apply(Command::CreatePipe(pipe)).unwrap();
    let table = c.state.table_named("t").unwrap().unwrap();
    (c, table)
}

/// The source: the row at an offset is always the same.
fn rows(table: &Table, partition: u32, from: u64, to: u64) -> RecordBatch {
    let n = (to - from) as usize;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(
            (from..to).map(|o| (o as i64 * 7919) % 1000),
        )),
        Arc::new(StringArray::from_iter_values(vec!["s"; n])),
        Arc::new(Int32Array::from_iter_values(vec![partition as i32; n])),
        Arc::new(Int64Array::from_iter_values((from..to).map(|o| o as i64))),
        Arc::new(TimestampMicrosecondArray::from_iter_values(vec![0; n])),
        Arc::new(StringArray::from(vec![None::<&str>; n])),
    ];
    RecordBatch::try_new(arrow_schema(table), columns).unwrap()
}

fn key_of(p: &SourcePartition) -> SpanKey {
    SpanKey {
        pipe: p.pipe,
        partition: p.partition,
        incarnation: p.incarnation,
    }
}

/// Opens what the catalog says and `memtable` has not open, as the task does.
fn reconcile(memtable: &Memtable, partitions: &[SourcePartition]) {
    let open: Vec<SpanKey> = memtable.positions().into_iter().map(|(key, _)| key).collect();
    for p in partitions.iter().filter(|p| !open.contains(&key_of(p))) {
        memtable.open_partition(key_of(p), p.offset);
    }
}

/// Reads some more of every partition, in up to `most` chunks.
fn read_on(memtable: &Memtable, table: &Table, rng: &mut StdRng, most: u32) {
    for (key, mut at) in memtable.positions() {
        for _ in 0..rng.random_range(0..=most) {
            let width = rng.random_range(1..40);
            let end = Offset(at.0 + width);
            let span = Span {
                key,
                start: at,
                end,
                counts: Counts::stored(width),
                topic: None,
                source_epoch: None,
            };
            memtable
                .append(Chunk {
                    span,
                    rows: Some(rows(table, key.partition.0, at.0, end.0)),
                    rejects: None,
                })
                .unwrap();
            at = end;
        }
    }
}

/// The standby leads. Returns how many partitions it need not read again.
fn take_over(standby: &Memtable, epoch: Epoch, partitions: &[SourcePartition]) -> usize {
    let committed = |p: &SourcePartition| Committed {
        key: key_of(p),
        offset: p.offset,
        source_epoch: p.source_epoch,
    };
    let committed: Vec<Committed> = partitions.iter().map(committed).collect();
    standby.lead(epoch, &committed).len()
}

/// Returns how many partitions standbys took over without reading again.
async fn run(seed: u64, hot: bool) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(store::LocalStore::open(folder.path()).unwrap());
    let (mut catalog, table) = found(seed);
    let mut epoch = catalog.new_leader();
    let network = Arc::new(Network(Mutex::new(catalog)));
    let mut rng = StdRng::seed_from_u64(seed ^ 0xfeed);
    let mut memtable = Arc::new(Memtable::new(SHARD, epoch));
    let mut standby = Arc::new(Memtable::standby(SHARD));
    let mut kept = 0;
    for _ in 0..60 {
        let partitions = network.0.lock().unwrap().partitions();
        reconcile(&memtable, &partitions);
        read_on(&memtable, &table, &mut rng, 1);
        // The standby looks at the catalog now and then, and is ahead of the leader at times and behind at others.
        if rng.random_bool(0.7) {
            reconcile(&standby, &partitions);
            for p in &partitions {
                standby.release_below(key_of(p), p.offset);
            }
        }
        read_on(&standby, &table, &mut rng, 2);
        if rng.random_bool(0.1) {
            network.0.lock().unwrap().pause_and_resume();
        }
        let writer = ShardWriter {
            table: tokio::sync::watch::channel(Arc::new(table.clone())).1,
            shard: SHARD,
            epoch,
            memtable: memtable.clone(),
            store: store.clone(),
            committer: network.clone(),
            account: Arc::new(Budget::new(1 << 30, 0)).open(),
            topics: TopicChecks::default(),
            trouble: Default::default(),
            hurry: Arc::default(),
            barrier: Arc::default(),
            settled: tokio::sync::watch::Sender::new(()),
        };
        if let Flushed::Fenced(refusal) = writer.flush(Extent::All).await {
            assert!(matches!(refusal, Refusal::StaleEpoch { .. }), "{refusal}");
            memtable.close();
            let catalog = &mut *network.0.lock().unwrap();
            epoch = catalog.new_leader();
            memtable = match hot {
                true => std::mem::replace(&mut standby, Arc::new(Memtable::standby(SHARD))),
                false => Arc::new(Memtable::standby(SHARD)),
            };
            kept += take_over(&memtable, epoch, &catalog.partitions());
        }
    }
    let parts = network.0.lock().unwrap().state.list::<Part>(&[]).unwrap();
    let mut seen: BTreeMap<u32, Vec<i64>> = BTreeMap::new();
    for part in parts {
        let bytes = store.get(&part.file.path).await.unwrap();
        for batch in read_part(bytes, &part.file).unwrap() {
            let partitions = batch.column_by_name("_partition").unwrap().as_primitive::<Int32Type>();
            let offsets = batch.column_by_name("_offset").unwrap().as_primitive::<Int64Type>();
            for (partition, offset) in partitions.values().iter().zip(offsets.values()) {
                seen.entry(*partition as u32).or_default().push(*offset);
            }
        }
    }
    let mut total = 0;
    // In a statement of its own: a guard in the head of the loop would be held through it.
    let partitions = network.0.lock().unwrap().partitions();
    for p in partitions {
        let mut offsets = seen.remove(&p.partition.0).unwrap_or_default();
        offsets.sort_unstable();
        assert_eq!(
            offsets,
            (0..p.offset.0 as i64).collect::<Vec<_>>(),
            "seed {seed}, partition {}",
            p.partition
        );
        let lives = network.0.lock().unwrap().state.closed_ledgers_of(p.pipe).unwrap();
        let before = lives.iter().filter(|life| life.partition == p.partition);
        let stored: u64 = before.map(|life| life.ledger.counts.stored).sum();
        assert_eq!(stored + p.ledger.counts.stored, p.offset.0);
        total += p.offset.0;
    }
    assert!(total > 100, "seed {seed}: hardly anything was committed: {total}");
    kept
}

async fn run_all(hot: bool) -> usize {
    let seeds: Vec<_> = (0..25).map(|seed| tokio::spawn(run(seed, hot))).collect();
    let mut kept = 0;
    for seed in seeds {
        kept += seed.await.unwrap();
    }
    kept
}

#[tokio::test(flavor = "multi_thread")]
async fn every_offset_is_committed_exactly_once_whatever_the_network_does() {
    assert_eq!(run_all(false).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_takes_over_commits_every_offset_exactly_once() {
    let kept = run_all(true).await;
    assert!(kept > 25, "standbys had to read nearly everything again: {kept}");
}
