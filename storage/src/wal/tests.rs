//! The log: what comes back, what is forgotten, what it refuses.

mod crash;
mod damage;
mod measure;
mod replay;

use super::*;
use arrow::array::{
    BinaryArray, Int32Array, Int64Array, ListArray, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use proptest::prelude::*;
use tempfile::TempDir;
use tidemill_core::schema::OFFSET;
use tidemill_core::{Counts, Incarnation, Span, TableId, TopicId};

const EPOCH: Epoch = Epoch(3);

fn shard(index: u32) -> ShardId {
    ShardId {
        table: TableId(1),
        index,
    }
}

fn key(partition: u32, incarnation: u64) -> SpanKey {
    SpanKey {
        pipe: PipeId(1),
        partition: PartitionId(partition),
        incarnation: Incarnation(incarnation),
    }
}

fn open(folder: &Path) -> Wal {
    Wal::open(folder, WalOptions::default()).unwrap()
}

fn rows(offsets: &[i64]) -> RecordBatch {
    let schema = Schema::new(vec![
        Field::new(OFFSET, DataType::Int64, false),
        Field::new("text", DataType::Utf8, true),
        Field::new(
            "numbers",
            DataType::List(Field::new("item", DataType::Int32, true).into()),
            true,
        ),
    ]);
    let text = offsets
        .iter()
        .map(|o| (o % 5 != 0).then(|| format!("the row of offset {o}")));
    let numbers = offsets
        .iter()
        .map(|o| (o % 3 != 0).then(|| vec![Some(*o as i32), None]));
    let columns: Vec<arrow::array::ArrayRef> = vec![
        Arc::new(Int64Array::from(offsets.to_vec())),
        Arc::new(text.collect::<StringArray>()),
        Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(numbers)),
    ];
    RecordBatch::try_new(Arc::new(schema), columns).unwrap()
}

fn rejects(offsets: &[i64]) -> RecordBatch {
    let n = offsets.len();
    RecordBatch::try_new(
        crate::reject_schema(),
        vec![
            Arc::new(StringArray::from(vec!["t"; n])),
            Arc::new(Int32Array::from(vec![0; n])),
            Arc::new(Int64Array::from(offsets.to_vec())),
            Arc::new(TimestampMicrosecondArray::from(vec![Some(7); n])),
            Arc::new(BinaryArray::from_opt_vec(vec![None; n])),
            Arc::new(StringArray::from(vec![None::<&str>; n])),
            Arc::new(BinaryArray::from_opt_vec(vec![Some(&b"?"[..]); n])),
            Arc::new(StringArray::from(vec!["broken"; n])),
        ],
    )
    .unwrap()
}

/// The offsets `start..end`, of which `fate` says what they became: 0 a row, 1 a reject, else nothing.
fn chunk(key: SpanKey, start: u64, end: u64, fate: impl Fn(u64) -> u64) -> Chunk {
    let of = |what: u64| -> Vec<i64> { (start..end).filter(|o| fate(*o) == what).map(|o| o as i64).collect() };
    let (stored, rejected) = (of(0), of(1));
    let counts = Counts {
        delivered: (stored.len() + rejected.len()) as u64,
        absent: end - start - (stored.len() + rejected.len()) as u64,
        stored: stored.len() as u64,
        rejected: rejected.len() as u64,
        filtered: 0,
        rows: stored.len() as u64,
    };
    let span = Span {
        key,
        start: Offset(start),
        end: Offset(end),
        counts,
        topic: Some(TopicId(5)),
        source_epoch: Some(2),
    };
    Chunk {
        span,
        rows: (!stored.is_empty()).then(|| rows(&stored)),
        rejects: (!rejected.is_empty()).then(|| rejects(&rejected)),
    }
}

fn full(key: SpanKey, start: u64, end: u64) -> Chunk {
    chunk(key, start, end, |o| u64::from(o % 7 == 0))
}

/// Where the history goes on after a replay from `committed`; every offset on the way must be there once.
fn replayed_to(wal: &Wal, shard: ShardId, key: SpanKey, committed: u64) -> u64 {
    let mut next = committed;
    for found in wal.recover(shard, key, Offset(committed)).unwrap().chunks {
        let (start, end) = (found.span.start.0, found.span.end.0);
        assert_eq!((found.span.key, start), (key, next));
        assert_eq!(found, full(key, start, end));
        next = end;
    }
    next
}

#[test]
fn everything_survives_a_restart_until_it_is_trimmed() {
    let folder = TempDir::new().unwrap();
    let wal = open(folder.path());
    wal.append(shard(0), EPOCH, &[full(key(0, 1), 10, 20), full(key(1, 1), 0, 5)])
        .unwrap();
    wal.append(shard(0), EPOCH, &[full(key(0, 1), 20, 25)]).unwrap();
    wal.append(shard(1), EPOCH, &[full(key(2, 1), 0, 7), full(key(2, 1), 7, 7)])
        .unwrap();
    assert_eq!(wal.stats().entries, 4);
    drop(wal);

    let wal = open(folder.path());
    assert_eq!(wal.stats().entries, 4);
    assert_eq!(replayed_to(&wal, shard(0), key(0, 1), 10), 25);
    assert_eq!(replayed_to(&wal, shard(0), key(1, 1), 0), 5);
    assert_eq!(replayed_to(&wal, shard(1), key(2, 1), 0), 7);
    assert_eq!(
        wal.stats().replayed_rows,
        full(key(0, 1), 10, 25).span.counts.rows + 4 + 6
    );
    wal.trim(shard(0), &[(key(0, 1), Offset(20)), (key(1, 2), Offset(0))])
        .unwrap();
    assert_eq!(
        wal.lanes(),
        [
            (shard(0), PipeId(1), PartitionId(0)),
            (shard(1), PipeId(1), PartitionId(2))
        ]
    );
    wal.drop_lane(shard(1), PipeId(1), PartitionId(2)).unwrap();
    // A synced write behind them, since a trim is not waited for.
    wal.append(shard(0), EPOCH, &[full(key(0, 1), 25, 26)]).unwrap();
    drop(wal);

    let wal = open(folder.path());
    let stats = wal.stats();
    assert_eq!(stats.entries, 2);
    assert_eq!(replayed_to(&wal, shard(0), key(0, 1), 20), 26);
    wal.trim(shard(0), &[(key(0, 1), Offset(26))]).unwrap();
    assert_eq!((wal.stats().entries, wal.stats().bytes, wal.lanes()), (0, 0, vec![]));
}

#[test]
fn nothing_is_acknowledged_before_it_is_on_disk() {
    let folder = TempDir::new().unwrap();
    let wal = open(folder.path());
    for o in 0..10 {
        let before = wal.stats().syncs;
        wal.append(shard(0), EPOCH, &[full(key(0, 1), o, o + 1), full(key(1, 1), o, o + 1)])
            .unwrap();
        assert_eq!(wal.stats().syncs, before + 1, "once for all chunks of an append");
    }
    let before = wal.stats().syncs;
    wal.trim(shard(0), &[(key(0, 1), Offset(10))]).unwrap();
    assert_eq!(wal.stats().syncs, before, "a trim waits for nothing");
}

#[test]
fn sequences_go_on_behind_what_is_there() {
    let folder = TempDir::new().unwrap();
    for round in 0..4 {
        let wal = open(folder.path());
        // The epochs do not grow: only the sequence keeps the entries apart.
        wal.append(
            shard(round % 2),
            EPOCH,
            &[full(key(round % 2, 1), u64::from(round), u64::from(round) + 1)],
        )
        .unwrap();
        assert_eq!(wal.stats().entries, u64::from(round) + 1);
    }
}

#[test]
fn what_does_not_continue_a_history_is_told_and_can_be_forgotten() {
    let folder = TempDir::new().unwrap();
    let wal = open(folder.path());
    let chunks = [
        full(key(0, 1), 0, 9),
        full(key(0, 2), 0, 10),
        full(key(0, 2), 10, 20),
        full(key(0, 2), 25, 30),
    ];
    wal.append(shard(0), EPOCH, &chunks).unwrap();
    let found = wal.recover(shard(0), key(0, 2), Offset(10)).unwrap();
    assert_eq!(found.chunks, chunks[2..3]);
    let unused: Vec<_> = found
        .unused
        .iter()
        .map(|e| (e.history.incarnation.0, e.start.0))
        .collect();
    assert_eq!(unused, [(1, 0), (2, 0), (2, 25)]);
    wal.forget(&found.unused).unwrap();
    wal.append(shard(0), EPOCH, &[full(key(0, 2), 20, 25)]).unwrap();
    drop(wal);
    let wal = open(folder.path());
    assert_eq!(
        replayed_to(&wal, shard(0), key(0, 2), 10),
        25,
        "what was forgotten does not fill in behind 25"
    );
}

#[test]
fn a_log_belongs_to_one_owner() {
    let folder = TempDir::new().unwrap();
    open(folder.path()).claim("cluster a").unwrap();
    let wal = open(folder.path());
    wal.claim("cluster a").unwrap();
    let error = wal.claim("cluster b").unwrap_err().to_string();
    assert!(error.contains("belongs to cluster a, not to cluster b"), "{error}");
}

#[test]
fn a_failed_write_acknowledges_nothing_from_then_on() {
    let folder = TempDir::new().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let broken = Arc::new(AtomicBool::new(false));
    let options = {
        let (told, broken) = (told.clone(), broken.clone());
        WalOptions {
            on_failure: Arc::new(move |message| told.lock().unwrap().push(message.to_owned())),
            fault: Some(Arc::new(move || {
                broken.load(Ordering::SeqCst).then(|| io::Error::other("no space"))
            })),
        }
    };
    let wal = Wal::open(folder.path(), options).unwrap();
    wal.append(shard(0), EPOCH, &[full(key(0, 1), 0, 3)]).unwrap();
    broken.store(true, Ordering::SeqCst);
    assert!(matches!(
        wal.append(shard(0), EPOCH, &[full(key(0, 1), 3, 6)]),
        Err(WalError::Failed { .. })
    ));
    // Even if the disk comes back: nothing may be written behind what is unknown.
    broken.store(false, Ordering::SeqCst);
    assert!(matches!(
        wal.append(shard(0), EPOCH, &[full(key(0, 1), 6, 9)]),
        Err(WalError::Failed { .. })
    ));
    let told = told.lock().unwrap();
    assert!(
        told.len() == 1 && told[0].contains("no space") && told[0].contains("check the disk"),
        "{told:?}"
    );
    drop(wal);
    assert_eq!(replayed_to(&open(folder.path()), shard(0), key(0, 1), 0), 3);
}

#[test]
fn many_append_at_once_and_share_what_they_wait_for() {
    let folder = TempDir::new().unwrap();
    let wal = open(folder.path());
    std::thread::scope(|scope| {
        for p in 0..8 {
            let wal = &wal;
            scope.spawn(move || {
                for o in 0..40 {
                    wal.append(shard(p % 2), EPOCH, &[full(key(p, 1), o * 3, o * 3 + 3)])
                        .unwrap();
                    // Somebody else is trimmed meanwhile.
                    wal.trim(shard(p % 2), &[(key((p + 2) % 8, 1), Offset(30))]).unwrap();
                }
            });
        }
    });
    drop(wal);
    let wal = open(folder.path());
    for p in 0..8 {
        assert_eq!(replayed_to(&wal, shard(p % 2), key(p, 1), 30), 120);
    }
}

/// What becomes of the log in random steps: appends in two shards, trims, new lives, drops, restarts.
#[test]
fn random_histories_agree_with_the_model() {
    let folder = TempDir::new().unwrap();
    for seed in 0..12_u64 {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut random = move |below: u64| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        let path = folder.path().join(seed.to_string());
        let mut wal = open(&path);
        // Of each partition its life, what is committed, and where it ends.
        let mut lanes = [(1, 0, 0); 6];
        for step in 0..150 {
            let p = random(6) as u32;
            let (of, lane) = (shard(p % 2), &mut lanes[p as usize]);
            match random(16) {
                0 => {
                    drop(wal);
                    wal = open(&path);
                }
                1 => *lane = (lane.0 + 1, lane.1, lane.1),
                2 => {
                    wal.drop_lane(of, PipeId(1), PartitionId(p)).unwrap();
                    *lane = (lane.0 + 1, lane.1, lane.1);
                }
                3..=6 => {
                    lane.1 += random(lane.2 - lane.1 + 1);
                    let of_shard = (0..6).filter(|n| n % 2 == p % 2);
                    let committed: Vec<_> = of_shard
                        .map(|n| (key(n, lanes[n as usize].0), Offset(lanes[n as usize].1)))
                        .collect();
                    wal.trim(of, &committed).unwrap();
                }
                _ => {
                    let end = lane.2 + random(9);
                    wal.append(of, Epoch(step / 50), &[full(key(p, lane.0), lane.2, end)])
                        .unwrap();
                    lane.2 = end;
                }
            }
            for (p, (life, committed, end)) in lanes.iter().enumerate() {
                let p = p as u32;
                let found = replayed_to(&wal, shard(p % 2), key(p, *life), *committed);
                assert_eq!(found, *end, "seed {seed} step {step} partition {p}");
            }
        }
        let committed: Vec<_> = (0..6)
            .map(|p| (key(p, lanes[p as usize].0), Offset(lanes[p as usize].2)))
            .collect();
        (0..2).for_each(|s| wal.trim(shard(s), &committed).unwrap());
        assert_eq!(
            wal.stats().entries,
            0,
            "seed {seed}: all is committed, so nothing is left"
        );
    }
}

fn any_chunk() -> impl Strategy<Value = Chunk> {
    let offsets = || prop::option::of(prop::collection::vec(any::<i64>(), 0..50));
    let topic = prop::option::of(any::<u128>());
    (
        any::<[u64; 10]>(),
        any::<u32>(),
        topic,
        any::<Option<i32>>(),
        offsets(),
        offsets(),
    )
        .prop_map(|(n, partition, topic, source_epoch, stored, rejected)| {
            let span = Span {
                key: SpanKey {
                    pipe: PipeId(n[0]),
                    partition: PartitionId(partition),
                    incarnation: Incarnation(n[1]),
                },
                start: Offset(n[2]),
                end: Offset(n[3]),
                counts: Counts {
                    delivered: n[4],
                    absent: n[5],
                    stored: n[6],
                    rejected: n[7],
                    filtered: n[8],
                    rows: n[9],
                },
                topic: topic.map(TopicId),
                source_epoch,
            };
            Chunk {
                span,
                rows: stored.map(|offsets| rows(&offsets)),
                rejects: rejected.map(|offsets| rejects(&offsets)),
            }
        })
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(chunk in any_chunk()) {
        let bytes = entry::encode(&chunk).unwrap();
        prop_assert_eq!(entry::decode_span(&bytes).unwrap(), chunk.span);
        prop_assert_eq!(entry::decode(&bytes).unwrap(), chunk);
    }

    #[test]
    fn bytes_that_were_cut_are_told_apart(chunk in any_chunk(), cut in 0.0..1.0) {
        let bytes = entry::encode(&chunk).unwrap();
        let cut = (bytes.len() as f64 * cut) as usize;
        prop_assert!(entry::decode(&bytes[..cut]).map_or(true, |found| found == chunk));
    }
}
