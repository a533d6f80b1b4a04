//! A task as its node sees it, without a catalog that it could reach: one that stands by and then leads, what it takes
//! over, what its log keeps of it, and what it does for programs that write rows themselves; and one that is offered what another node
//! has in its log.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::Int64Type;
use async_trait::async_trait;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tempfile::TempDir;
use tidemill_core::catalog::*;
use tidemill_core::command::*;
use tidemill_core::format::JsonFormat;
use tidemill_core::schema::{Column, ColumnType, OFFSET};
use tidemill_core::stop::{Stop, StopReason};
use tidemill_core::*;
use tidemill_ingest::budget::Budget;
use tidemill_ingest::direct::{Body, Incoming, WriteError};
use tidemill_ingest::task::{AdoptError, ShardTask, TaskContext, WantedPipe};
use tidemill_ingest::writer::{CommitUnknown, Committer};
use tidemill_storage::memtable::Chunk;
use tidemill_storage::store::LocalStore;
use tidemill_storage::wal::{Wal, WalOptions};

const SHARD: ShardId = ShardId {
    table: TableId(1),
    index: 0,
};

/// A catalog that cannot be reached.
struct Nobody;

#[async_trait]
impl Committer for Nobody {
    async fn commit(&self, _: CommitPart) -> Result<Outcome, CommitUnknown> {
        Err(CommitUnknown("nobody is there".into()))
    }

    async fn stop(&self, _: StopPartition) -> Result<Outcome, CommitUnknown> {
        Err(CommitUnknown("nobody is there".into()))
    }
}

fn table() -> Table {
    let column = Column {
        name: "x".into(),
        data_type: ColumnType::Int64,
        nullable: false,
        default: None,
    };
    Table {
        id: SHARD.table,
        name: "t".into(),
        columns: vec![column],
        schema_version: SchemaVersion(1),
        min_schema: SchemaVersion(1),
        order_by: vec![],
        partition_by: None,
        shards: 1,
        settings: TableSettings {
            flush: FlushPolicy {
                age_ms: 3_600_000,
                ..FlushPolicy::default()
            },
            wal: WalMode::Local,
            ..TableSettings::default()
        },
        deleted: vec![],
        former: vec![],
        created_at_ms: 0,
    }
}

/// A pipe with one partition, which is committed up to `offset`.
fn wanted(id: u64, source: Source, offset: u64, writers: Vec<Writer>) -> WantedPipe {
    let pipe = Pipe {
        id: PipeId(id),
        name: format!("p{id}"),
        table: SHARD.table,
        source,
        topic: None,
        state: PipeState::Running,
        settings: PipeSettings::default(),
        backfills: None,
        format: JsonFormat::default(),
        created_at_ms: 0,
    };
    let partition = SourcePartition {
        pipe: pipe.id,
        partition: PartitionId(0),
        shard: SHARD,
        incarnation: Incarnation(1),
        offset: Offset(offset),
        until: None,
        topic: None,
        source_epoch: None,
        ledger: Ledger::default(),
        stop: None,
        committed_at_ms: 0,
    };
    WantedPipe {
        pipe,
        partitions: vec![partition],
        writers,
    }
}

fn chunk(key: SpanKey, start: u64, end: u64) -> Chunk {
    let offsets: ArrayRef = Arc::new(Int64Array::from_iter_values((start..end).map(|o| o as i64)));
    let span = Span {
        key,
        start: Offset(start),
        end: Offset(end),
        counts: Counts::stored(end - start),
        topic: None,
        source_epoch: None,
    };
    Chunk {
        span,
        rows: Some(RecordBatch::try_from_iter([(OFFSET, offsets)]).unwrap()),
        rejects: None,
    }
}

/// The histories that a query sees: pipe, from, to.
fn pinned(task: &ShardTask) -> Vec<(u64, u64, u64)> {
    let pin = task.memtable().pin().unwrap();
    assert_eq!(pin.epoch, Epoch(2));
    let partitions = pin.partitions.iter();
    partitions.map(|p| (p.key.pipe.0, p.from.0, p.to.0)).collect()
}

fn context(folder: &TempDir, wal: &Arc<Wal>) -> Arc<TaskContext> {
    Arc::new(TaskContext {
        cluster: "c".into(),
        committer: Arc::new(Nobody),
        store: Arc::new(LocalStore::open(&folder.path().join("parts")).unwrap()),
        wal: wal.clone(),
        budget: Arc::new(Budget::new(1 << 30, 1 << 30)),
        priority: Arc::default(),
        attention: Arc::default(),
        takeovers: Arc::default(),
    })
}

fn topic() -> Source {
    Source::Kafka(KafkaSource {
        brokers: "127.0.0.1:1".into(),
        topic: "s".into(),
        client: Default::default(),
    })
}

#[tokio::test]
async fn a_standby_takes_over_its_rows_without_the_log_and_the_writers_rows_from_it() {
    let folder = TempDir::new().unwrap();
    let wal = Arc::new(Wal::open(&folder.path().join("wal"), WalOptions::default()).unwrap());
    let context = context(&folder, &wal);
    let writer = Writer {
        id: WriterId(1),
        table: SHARD.table,
        pipe: PipeId(2),
        number: 0,
        acks: Acks::Leader,
        token: WriterToken(1),
        opened_at_ms: 0,
    };
    let tailed = wanted(1, topic(), 2, vec![]);
    let direct = || wanted(2, Source::Writers { next: 1 }, 0, vec![writer.clone()]);
    let (of_topic, of_writer) = (tailed.partitions[0].key(), direct().partitions[0].key());
    // From when this node led before.
    wal.append(
        SHARD,
        Epoch(1),
        &[chunk(of_topic, 0, 5), chunk(of_topic, 5, 9), chunk(of_writer, 0, 3)],
    )
    .unwrap();

    let task = ShardTask::stand_by(context.clone(), table(), SHARD);
    task.reconcile(&table(), vec![direct()]);
    assert_eq!(task.memtable().positions(), [], "rows of writers are not tailed");
    let sent = |sequence: u64| Incoming {
        sequence: Offset(sequence),
        rows: 1,
        body: Body::JsonLines("{\"x\": 1}".into()),
    };
    let refused = task.write(&writer, sent(0)).await;
    assert!(matches!(refused, Err(WriteError::Retry(_))), "{refused:?}");
    task.memtable().open_partition(of_topic, Offset(0));
    task.memtable().append(chunk(of_topic, 0, 7)).unwrap();

    task.take_over(Epoch(2), &[tailed, direct()]);
    assert_eq!(pinned(&task), [(1, 2, 7)]);
    let counts = &context.takeovers;
    let counts = [&counts.kept, &counts.read_again, &counts.kept_offsets];
    assert_eq!(counts.map(|count| count.load(Ordering::Relaxed)), [1, 0, 5]);
    let left = wal.recover(SHARD, of_topic, Offset(0)).unwrap();
    assert!(left.chunks.is_empty() && left.unused.is_empty(), "{left:?}");

    task.reconcile(&table(), vec![direct()]);
    assert_eq!(pinned(&task), [(2, 0, 3)], "what was acknowledged is shown again");
    assert_eq!(task.write(&writer, sent(2)).await, Ok(Offset(3)), "it is here");
    assert_eq!(task.write(&writer, sent(3)).await, Ok(Offset(4)));
    assert_eq!(pinned(&task), [(2, 0, 4)]);
    let logged = wal.recover(SHARD, of_writer, Offset(0)).unwrap().chunks;
    assert_eq!(logged.last().map(|chunk| chunk.span.end), Some(Offset(4)));
}

#[tokio::test]
async fn only_what_continues_a_partition_that_has_expired_is_adopted() {
    let folder = TempDir::new().unwrap();
    let wal = Arc::new(Wal::open(&folder.path().join("wal"), WalOptions::default()).unwrap());
    let stopped = |reason: Option<StopReason>| {
        let mut wanted = wanted(1, topic(), 4, vec![]);
        wanted.partitions[0].source_epoch = Some(2);
        wanted.partitions[0].stop = reason.map(|reason| Stop { reason, at_ms: 0 });
        wanted
    };
    let expired = || stopped(Some(StopReason::Expired { earliest: Offset(50) }));
    let key = expired().partitions[0].key();
    // From when this node led before: less than the other has.
    wal.append(SHARD, Epoch(1), &[chunk(key, 0, 6)]).unwrap();
    let task = ShardTask::start(context(&folder, &wal), table(), SHARD, Epoch(2));
    let not_waiting = |task: &ShardTask| matches!(task.adopt(chunk(key, 4, 9)), Err(AdoptError::NotWaiting));

    assert!(not_waiting(&task), "it does not even know the partition");
    let truncated = Some(StopReason::Truncated {
        diverged: None,
        epoch: None,
    });
    for read_otherwise in [stopped(truncated), stopped(None)] {
        task.reconcile(&table(), vec![read_otherwise]);
        assert!(not_waiting(&task), "nothing is to be taken from logs there");
    }
    task.reconcile(&table(), vec![expired()]);
    assert_eq!(pinned(&task), [(1, 4, 6)], "its own log comes first");

    let mut cut_off = chunk(key, 6, 9);
    cut_off.span.source_epoch = Some(1);
    let other_log = task.adopt(cut_off);
    assert!(matches!(other_log, Err(AdoptError::OtherLog)), "{other_log:?}");
    let hole = task.adopt(chunk(key, 7, 9));
    assert!(matches!(hole, Err(AdoptError::NotNext { next: Offset(6) })), "{hole:?}");
    let other_life = SpanKey {
        incarnation: Incarnation(2),
        ..key
    };
    assert!(matches!(
        task.adopt(chunk(other_life, 6, 9)),
        Err(AdoptError::NotWaiting)
    ));
    for (start, end) in [(4, 6), (5, 9), (5, 9), (9, 12)] {
        task.adopt(chunk(key, start, end)).unwrap();
    }
    // What was adopted stays when the catalog is looked at again.
    task.reconcile(&table(), vec![expired()]);
    assert_eq!(pinned(&task), [(1, 4, 12)]);
    let offsets = |batch: &RecordBatch| batch.column(0).as_primitive::<Int64Type>().values().to_vec();
    let pin = task.memtable().pin().unwrap();
    let rows: Vec<i64> = pin.batches.iter().flat_map(|batch| offsets(&batch.rows)).collect();
    assert_eq!(rows, (4..12).collect::<Vec<_>>());
    assert_eq!(wal.recover(SHARD, key, Offset(4)).unwrap().chunks.len(), 3);

    // What goes on there is compared with what is here, also if that is not committed: found by a simulated history.
    let read_in = |epoch: i32, start, end| {
        let mut chunk = chunk(key, start, end);
        chunk.span.source_epoch = Some(epoch);
        chunk
    };
    task.adopt(read_in(4, 12, 15)).unwrap();
    let older = task.adopt(read_in(3, 15, 18));
    assert!(matches!(older, Err(AdoptError::OtherLog)), "{older:?}");
    task.adopt(read_in(4, 15, 51)).unwrap();
    // From here on the source has what lies in between.
    let newer = task.adopt(read_in(5, 51, 52));
    assert!(matches!(newer, Err(AdoptError::OtherLog)), "{newer:?}");
    task.adopt(read_in(4, 51, 52)).unwrap();
    assert_eq!(pinned(&task), [(1, 4, 52)]);

    // Repaired: another life, which reads the source.
    let mut repaired = stopped(None);
    repaired.partitions[0].incarnation = Incarnation(2);
    task.reconcile(&table(), vec![repaired]);
    assert!(not_waiting(&task));
    task.stop();
    assert!(not_waiting(&task));
}
