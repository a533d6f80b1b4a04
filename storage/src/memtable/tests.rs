//! The memtable against a simple model of it, in thousands of random steps, and the cases that are
//! easy to get wrong, each by itself.

mod standby;

use super::*;
use arrow::array::{BinaryArray, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema};
use std::collections::BTreeMap;
use tidemill_core::{Counts, Incarnation, TableId};

fn key(partition: u32, incarnation: u64) -> SpanKey {
    SpanKey {
        pipe: PipeId(1),
        partition: PartitionId(partition),
        incarnation: Incarnation(incarnation),
    }
}

fn memtable() -> Memtable {
    Memtable::new(
        ShardId {
            table: TableId(1),
            index: 0,
        },
        Epoch(3),
    )
}

fn rows(offsets: &[i64]) -> RecordBatch {
    let schema = Schema::new(vec![Field::new(OFFSET, DataType::Int64, false)]);
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(Int64Array::from(offsets.to_vec()))]).unwrap()
}

fn rejects(offsets: &[i64]) -> RecordBatch {
    let n = offsets.len();
    RecordBatch::try_new(
        crate::reject_schema(),
        vec![
            Arc::new(StringArray::from(vec!["t"; n])),
            Arc::new(Int32Array::from(vec![0; n])),
            Arc::new(Int64Array::from(offsets.to_vec())),
            Arc::new(TimestampMicrosecondArray::from(vec![None; n])),
            Arc::new(BinaryArray::from_opt_vec(vec![None; n])),
            Arc::new(StringArray::from(vec![None::<&str>; n])),
            Arc::new(BinaryArray::from_opt_vec(vec![Some(&b"?"[..]); n])),
            Arc::new(StringArray::from(vec!["broken"; n])),
        ],
    )
    .unwrap()
}

fn counts(width: u64, stored: u64, rejected: u64) -> Counts {
    Counts {
        delivered: stored + rejected,
        absent: width - stored - rejected,
        stored,
        rejected,
        filtered: 0,
        rows: stored,
    }
}

/// A chunk over `start..end`; what `fate` says of each offset: 0 row, 1 reject, else absent.
fn chunk(key: SpanKey, start: u64, end: u64, fate: impl Fn(u64) -> u64) -> Chunk {
    let with = |wanted: u64| {
        (start..end)
            .filter(|o| fate(*o) == wanted)
            .map(|o| o as i64)
            .collect::<Vec<_>>()
    };
    let (stored, rejected) = (with(0), with(1));
    let span = Span {
        key,
        start: Offset(start),
        end: Offset(end),
        counts: counts(end - start, stored.len() as u64, rejected.len() as u64),
        topic: None,
        source_epoch: None,
    };
    Chunk {
        span,
        rows: (!stored.is_empty()).then(|| rows(&stored)),
        rejects: (!rejected.is_empty()).then(|| rejects(&rejected)),
    }
}

fn full(key: SpanKey, start: u64, end: u64) -> Chunk {
    chunk(key, start, end, |_| 0)
}

fn offsets(batch: &RecordBatch, column: &str) -> Vec<u64> {
    let column = batch.column_by_name(column).unwrap().as_primitive::<Int64Type>();
    column.values().iter().map(|o| *o as u64).collect()
}

fn pinned(memtable: &Memtable) -> BTreeMap<SpanKey, (u64, u64, Vec<u64>)> {
    let pin = memtable.pin().unwrap();
    let mut seen: BTreeMap<_, _> = pin
        .partitions
        .iter()
        .map(|p| (p.key, (p.from.0, p.to.0, Vec::new())))
        .collect();
    for batch in &pin.batches {
        assert!(batch.rows.num_rows() > 0);
        seen.get_mut(&batch.key).unwrap().2.extend(offsets(&batch.rows, OFFSET));
    }
    seen
}

#[test]
fn what_is_shown_when_it_is_committed_is_never_shown_from_here() {
    let m = memtable();
    m.open_partition(key(0, 1), Offset(0));
    m.open(key(1, 1), Show::WhenCommitted, Offset(0), None);
    m.append(full(key(0, 1), 0, 3)).unwrap();
    assert!(m.stats().awaited_age.is_none());
    m.append(full(key(1, 1), 0, 4)).unwrap();
    assert!(m.stats().awaited_age.is_some());
    let seen = || {
        let seen = pinned(&m);
        (seen[&key(0, 1)].clone(), seen[&key(1, 1)].clone())
    };
    assert_eq!(seen(), ((0, 3, vec![0, 1, 2]), (0, 0, vec![])));
    // Only those whose writers wait are cut; they are not shown while that is under way, either.
    let cut = m.cut_of(Extent::Awaited).unwrap();
    assert_eq!(cut.spans.iter().map(|span| span.key).collect::<Vec<_>>(), [key(1, 1)]);
    assert_eq!(seen().1, (0, 0, vec![]));
    assert_eq!(
        m.history(PipeId(1), PartitionId(1)).map(|h| (h.from.0, h.to.0)),
        Some((0, 4))
    );
    m.commit_cut();
    assert_eq!(seen(), ((0, 3, vec![0, 1, 2]), (4, 4, vec![])));
    assert!(m.cut_of(Extent::Awaited).is_none());
    assert_eq!(m.cut().unwrap().spans[0].key, key(0, 1));
}

#[test]
fn a_history_says_of_which_leader_epoch_of_its_source_its_end_is() {
    let m = memtable();
    m.open(key(0, 1), Show::AtOnce, Offset(0), Some(1));
    let end = || m.history(PipeId(1), PartitionId(0)).unwrap().source_epoch;
    assert_eq!(end(), Some(1), "nothing is behind what is committed");
    let read_in = |epoch, start, end| {
        let mut chunk = full(key(0, 1), start, end);
        chunk.span.source_epoch = epoch;
        chunk
    };
    m.append(read_in(Some(2), 0, 3)).unwrap();
    m.append(read_in(None, 3, 4)).unwrap();
    assert_eq!(end(), Some(2), "of those that say it");
    m.cut().unwrap();
    assert_eq!(end(), Some(2), "while it is flushed");
    m.append(read_in(Some(3), 4, 5)).unwrap();
    assert_eq!(end(), Some(3));
    m.commit_cut();
    m.cut().unwrap();
    m.commit_cut();
    assert_eq!(end(), Some(3), "when it is committed, and nothing of it is here");
}

#[test]
fn chunks_are_refused_when_they_do_not_fit() {
    let m = memtable();
    assert_eq!(m.append(full(key(0, 1), 5, 7)), Err(AppendError::NotOpen));
    m.open_partition(key(0, 1), Offset(5));
    assert_eq!(m.append(full(key(0, 2), 5, 7)), Err(AppendError::OtherIncarnation));
    let gap = AppendError::NotNext {
        expected: Offset(5),
        given: Offset(6),
    };
    assert_eq!(m.append(full(key(0, 1), 6, 7)), Err(gap));
    let mut miscounted = full(key(0, 1), 5, 7);
    miscounted.rows = Some(rows(&[5]));
    assert!(matches!(m.append(miscounted), Err(AppendError::Unsound(_))));
    let mut outside = full(key(0, 1), 5, 7);
    outside.rows = Some(rows(&[5, 7]));
    assert!(matches!(m.append(outside), Err(AppendError::Unsound(_))));
    let mut backwards = full(key(0, 1), 5, 7);
    backwards.span.end = Offset(4);
    assert!(matches!(m.append(backwards), Err(AppendError::Unsound(_))));
    assert_eq!(m.append(full(key(0, 1), 5, 7)), Ok(()));
    assert_eq!(pinned(&m)[&key(0, 1)], (5, 7, vec![5, 6]));
    m.close_partition(PipeId(1), PartitionId(0));
    assert_eq!(m.append(full(key(0, 1), 7, 8)), Err(AppendError::NotOpen));
}

#[test]
fn a_cut_stays_visible_until_it_is_committed() {
    let m = memtable();
    m.open_partition(key(0, 1), Offset(0));
    assert!(m.cut().is_none(), "nothing to cut");
    m.append(full(key(0, 1), 0, 3)).unwrap();
    let cut = m.cut().unwrap();
    assert_eq!(
        (cut.spans[0].start, cut.spans[0].end, cut.spans[0].counts.stored),
        (Offset(0), Offset(3), 3)
    );
    m.append(full(key(0, 1), 3, 5)).unwrap();
    assert!(m.cut().is_none(), "one cut at a time");
    assert_eq!(pinned(&m)[&key(0, 1)], (0, 5, vec![0, 1, 2, 3, 4]));
    let stats = m.stats();
    assert_eq!((stats.rows, stats.uncut_rows), (5, 2));
    assert!(stats.bytes > stats.uncut_bytes && stats.oldest_age.is_some());
    m.commit_cut();
    assert_eq!(pinned(&m)[&key(0, 1)], (3, 5, vec![3, 4]));
    assert_eq!(m.cut().unwrap().spans[0].start, Offset(3));
    assert_eq!(m.stats().oldest_age, None);
}

#[test]
fn a_recut_forgets_what_was_refused_and_all_after_it() {
    let m = memtable();
    for p in 0..2 {
        m.open_partition(key(p, 1), Offset(0));
        m.append(full(key(p, 1), 0, 3)).unwrap();
    }
    m.cut().unwrap();
    m.append(full(key(0, 1), 3, 6)).unwrap();
    let left = m.recut(&[key(0, 1)]).unwrap();
    assert_eq!(left.spans.iter().map(|s| s.key).collect::<Vec<_>>(), [key(1, 1)]);
    assert_eq!(left.rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 3);
    assert_eq!(m.append(full(key(0, 1), 6, 7)), Err(AppendError::NotOpen));
    assert!(m.recut(&[key(1, 1)]).is_none());
    m.open_partition(key(1, 2), Offset(9));
    m.append(full(key(1, 2), 9, 10)).unwrap();
    assert_eq!(
        m.cut().unwrap().spans[0].start,
        Offset(9),
        "no cut is outstanding after an empty recut"
    );
}

#[test]
fn a_new_incarnation_forgets_the_one_being_flushed() {
    let m = memtable();
    m.open_partition(key(0, 1), Offset(0));
    m.append(full(key(0, 1), 0, 3)).unwrap();
    m.cut().unwrap();
    m.open_partition(key(0, 2), Offset(1));
    m.append(full(key(0, 2), 1, 2)).unwrap();
    assert_eq!(pinned(&m), BTreeMap::from([(key(0, 2), (1, 2, vec![1]))]));
    assert!(m.recut(&[key(0, 1)]).is_none());
    assert_eq!(pinned(&m), BTreeMap::from([(key(0, 2), (1, 2, vec![1]))]));
    assert_eq!(m.cut().unwrap().spans[0].key, key(0, 2));
}

#[test]
fn opening_where_a_history_ends_keeps_it() {
    let m = memtable();
    m.open_partition(key(0, 1), Offset(0));
    m.append(full(key(0, 1), 0, 3)).unwrap();
    m.open_partition(key(0, 1), Offset(3));
    assert_eq!(pinned(&m)[&key(0, 1)], (0, 3, vec![0, 1, 2]));
    m.open_partition(key(0, 1), Offset(2));
    assert_eq!(pinned(&m)[&key(0, 1)], (2, 2, vec![]));
}

#[test]
fn nothing_is_taken_or_shown_after_close() {
    let m = memtable();
    m.open_partition(key(0, 1), Offset(0));
    m.append(full(key(0, 1), 0, 3)).unwrap();
    let before = m.pin().unwrap();
    m.close();
    m.open_partition(key(0, 1), Offset(0));
    assert_eq!(m.append(full(key(0, 1), 3, 4)), Err(AppendError::Closed));
    assert!(m.pin().is_none() && m.cut().is_none());
    assert_eq!(m.stats().rows, 0);
    assert_eq!(before.batches[0].rows.num_rows(), 3, "a pin holds its own references");
}

#[test]
fn many_tiny_chunks_become_few_batches() {
    let m = memtable();
    m.open_partition(key(0, 1), Offset(0));
    for o in 0..20_000 {
        m.append(full(key(0, 1), o, o + 1)).unwrap();
    }
    let pin = m.pin().unwrap();
    assert!(pin.batches.len() <= 35, "{} batches", pin.batches.len());
    assert_eq!(pinned(&m)[&key(0, 1)].2, (0..20_000).collect::<Vec<_>>());
}

#[test]
fn pins_are_whole_while_others_append_and_flush() {
    let m = memtable();
    for p in 0..2 {
        m.open_partition(key(p, 1), Offset(0));
    }
    std::thread::scope(|scope| {
        let m = &m;
        let writers: Vec<_> = (0..2)
            .map(|p| {
                scope.spawn(move || {
                    for o in 0..3_000 {
                        m.append(full(key(p, 1), o * 3, o * 3 + 3)).unwrap();
                    }
                })
            })
            .collect();
        scope.spawn(move || {
            let mut next = [0, 0];
            while next != [9_000, 9_000] {
                let Some(cut) = m.cut() else { continue };
                for span in &cut.spans {
                    let next = &mut next[span.key.partition.0 as usize];
                    assert_eq!(span.start.0, *next, "committed spans tile the history");
                    *next = span.end.0;
                }
                m.commit_cut();
            }
        });
        while !writers.iter().all(|w| w.is_finished()) {
            for (from, to, seen) in pinned(m).into_values() {
                assert_eq!(seen, (from..to).collect::<Vec<_>>());
            }
        }
    });
}

/// What a lane should be: incarnation, from, end of the cut, to.
#[derive(Clone, Copy)]
struct Model {
    key: SpanKey,
    from: u64,
    cut: Option<u64>,
    to: u64,
}

#[test]
fn random_histories_agree_with_the_model() {
    for seed in 0..60 {
        run_random(seed);
    }
}

fn run_random(seed: u64) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut random = move |below: u64| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    // What becomes of an offset is a function of it, so the model need not remember.
    let fate = |o: u64| if o.is_multiple_of(7) { 1 } else { o % 5 % 3 };
    let m = memtable();
    let mut lanes: BTreeMap<u32, Model> = BTreeMap::new();
    let mut outstanding = false;
    for step in 0..400 {
        let p = random(4) as u32;
        match random(20) {
            0 => {
                let (k, from) = (key(p, 1 + random(3)), random(50));
                m.open_partition(k, Offset(from));
                if lanes.get(&p).is_none_or(|l| l.key != k || l.to != from) {
                    lanes.insert(
                        p,
                        Model {
                            key: k,
                            from,
                            cut: None,
                            to: from,
                        },
                    );
                }
            }
            1 => {
                m.close_partition(PipeId(1), PartitionId(p));
                lanes.remove(&p);
            }
            2..=4 => {
                let cut = m.cut();
                let expect = !outstanding && lanes.values().any(|l| l.to > l.from);
                assert_eq!(cut.is_some(), expect, "seed {seed} step {step}");
                if let Some(cut) = cut {
                    outstanding = true;
                    lanes
                        .values_mut()
                        .filter(|l| l.to > l.from)
                        .for_each(|l| l.cut = Some(l.to));
                    check_cut(&cut, &lanes, &fate);
                }
            }
            5 => {
                let drop: Vec<_> = lanes.values().filter(|_| random(3) == 0).map(|l| l.key).collect();
                let cut = m.recut(&drop);
                lanes.retain(|_, l| !drop.contains(&l.key));
                outstanding = lanes.values().any(|l| l.cut.is_some());
                assert_eq!(cut.is_some(), outstanding, "seed {seed} step {step}");
                cut.inspect(|cut| check_cut(cut, &lanes, &fate));
            }
            6..=7 => {
                m.commit_cut();
                outstanding = false;
                lanes.values_mut().for_each(|l| l.from = l.cut.take().unwrap_or(l.from));
            }
            _ => {
                let Some(lane) = lanes.get_mut(&p) else { continue };
                let end = lane.to + random(6);
                m.append(chunk(lane.key, lane.to, end, fate)).unwrap();
                lane.to = end;
            }
        }
        let expected: BTreeMap<_, _> = lanes
            .values()
            .map(|l| {
                (
                    l.key,
                    (
                        l.from,
                        l.to,
                        (l.from..l.to).filter(|o| fate(*o) == 0).collect::<Vec<_>>(),
                    ),
                )
            })
            .collect();
        assert_eq!(pinned(&m), expected, "seed {seed} step {step}");
        let positions: Vec<_> = lanes.values().map(|l| (l.key, Offset(l.to))).collect();
        assert_eq!(m.positions(), positions);
    }
}

fn check_cut(cut: &Cut, lanes: &BTreeMap<u32, Model>, fate: &impl Fn(u64) -> u64) {
    let cut_lanes: Vec<_> = lanes.values().filter_map(|l| Some((l.key, l.from, l.cut?))).collect();
    let spans: Vec<_> = cut.spans.iter().map(|s| (s.key, s.start.0, s.end.0)).collect();
    assert_eq!(spans, cut_lanes);
    let wanted = |what: u64| {
        cut_lanes
            .iter()
            .flat_map(|l| l.1..l.2)
            .filter(|o| fate(*o) == what)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        cut.rows.iter().flat_map(|b| offsets(b, OFFSET)).collect::<Vec<_>>(),
        wanted(0)
    );
    assert_eq!(
        cut.rejects
            .iter()
            .flat_map(|(_, b)| offsets(b, "offset"))
            .collect::<Vec<_>>(),
        wanted(1)
    );
    assert_eq!(
        cut.spans.iter().map(|s| s.counts.stored).sum::<u64>(),
        wanted(0).len() as u64
    );
    assert_eq!(
        cut.spans.iter().map(|s| s.counts.rejected).sum::<u64>(),
        wanted(1).len() as u64
    );
}
