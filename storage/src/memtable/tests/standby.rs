//! A standby that takes over from any leader, at any offset: what goes on is exact, or does not go on.

use super::*;
use std::collections::BTreeSet;

fn standby() -> Memtable {
    Memtable::standby(ShardId {
        table: TableId(1),
        index: 0,
    })
}

fn committed(offset: u64) -> Committed {
    Committed {
        key: key(0, 1),
        offset: Offset(offset),
        source_epoch: None,
    }
}

/// What became of an offset.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Rows(u64),
    Rejected,
    Filtered,
    Absent,
}

fn counted(fates: &[Fate]) -> Counts {
    let mut counts = Counts::default();
    for fate in fates {
        counts.delivered += u64::from(*fate != Fate::Absent);
        match fate {
            Fate::Rows(rows) => (counts.stored, counts.rows) = (counts.stored + 1, counts.rows + rows),
            Fate::Rejected => counts.rejected += 1,
            Fate::Filtered => counts.filtered += 1,
            Fate::Absent => counts.absent += 1,
        }
    }
    counts
}

/// The offset of every row from `start` on.
fn row_offsets(start: u64, fates: &[Fate]) -> Vec<i64> {
    let rows = fates.iter().enumerate().flat_map(|(i, fate)| match fate {
        Fate::Rows(rows) => vec![start as i64 + i as i64; *rows as usize],
        _ => Vec::new(),
    });
    rows.collect()
}

fn read(start: u64, fates: &[Fate], source_epoch: Option<i32>) -> Chunk {
    let (row_offsets, mut rejected) = (row_offsets(start, fates), Vec::new());
    for (i, _) in fates.iter().enumerate().filter(|(_, fate)| **fate == Fate::Rejected) {
        rejected.push(start as i64 + i as i64);
    }
    Chunk {
        span: Span {
            key: key(0, 1),
            start: Offset(start),
            end: Offset(start + fates.len() as u64),
            counts: counted(fates),
            topic: None,
            source_epoch,
        },
        rows: (!row_offsets.is_empty()).then(|| rows(&row_offsets)),
        rejects: (!rejected.is_empty()).then(|| rejects(&rejected)),
    }
}

#[test]
fn a_standby_shows_nothing_and_is_never_cut() {
    let m = standby();
    m.open_partition(key(0, 1), Offset(0));
    m.append(full(key(0, 1), 0, 5)).unwrap();
    assert!(m.pin().is_none() && m.cut().is_none());
    assert_eq!(m.lead(Epoch(4), &[committed(2)]), BTreeSet::from([key(0, 1)]));
    let pin = m.pin().unwrap();
    assert_eq!(pin.epoch, Epoch(4));
    assert_eq!(pinned(&m)[&key(0, 1)], (2, 5, vec![2, 3, 4]));
    m.append(full(key(0, 1), 5, 6)).unwrap();
    let cut = m.cut().unwrap();
    assert_eq!((cut.spans[0].start, cut.spans[0].end), (Offset(2), Offset(6)));
    assert_eq!(cut.spans[0].counts, Counts::stored(4));
}

#[test]
fn what_is_committed_is_forgotten_piece_by_piece() {
    let m = standby();
    m.open_partition(key(0, 1), Offset(0));
    for start in [0, 10, 20] {
        m.append(full(key(0, 1), start, start + 10)).unwrap();
    }
    m.release_below(key(0, 1), Offset(15));
    assert_eq!(m.stats().uncut_rows, 20, "the piece across the offset stays");
    m.release_below(key(0, 2), Offset(30));
    assert_eq!(
        m.stats().uncut_rows,
        20,
        "another incarnation says nothing about this one"
    );
    m.lead(Epoch(4), &[committed(17)]);
    assert_eq!(pinned(&m)[&key(0, 1)], (17, 30, (17..30).collect()));
    m.release_below(key(0, 1), Offset(30));
    assert_eq!(
        pinned(&m)[&key(0, 1)].0,
        17,
        "a leader's rows go when its own commit is through"
    );
}

#[test]
fn what_does_not_hold_the_committed_offset_does_not_go_on() {
    let cases = [
        (committed(21), "it is behind"),
        (committed(4), "it began later"),
        (
            Committed {
                key: key(0, 2),
                ..committed(15)
            },
            "the incarnation has changed",
        ),
        (
            Committed {
                key: key(1, 1),
                ..committed(15)
            },
            "nobody reads the partition any more",
        ),
    ];
    for (c, why) in cases {
        let m = standby();
        m.open_partition(key(0, 1), Offset(5));
        m.append(full(key(0, 1), 5, 20)).unwrap();
        assert_eq!(m.lead(Epoch(4), &[c]), BTreeSet::new(), "{why}");
        assert_eq!(pinned(&m), BTreeMap::new(), "{why}");
        // It is opened as by any new leader, and late chunks of the reader before are refused.
        assert_eq!(m.append(full(key(0, 1), 20, 21)), Err(AppendError::NotOpen), "{why}");
        m.open_partition(c.key, c.offset);
        m.append(full(c.key, c.offset.0, c.offset.0 + 1)).unwrap();
    }
}

#[test]
fn at_its_very_ends_it_goes_on() {
    for offset in [5, 20] {
        let m = standby();
        m.open_partition(key(0, 1), Offset(5));
        m.append(full(key(0, 1), 5, 20)).unwrap();
        m.lead(Epoch(4), &[committed(offset)]);
        assert_eq!(pinned(&m)[&key(0, 1)], (offset, 20, (offset..20).collect()));
        m.append(full(key(0, 1), 20, 21)).unwrap();
    }
}

#[test]
fn it_leads_but_once_and_not_after_its_end() {
    let m = standby();
    m.open_partition(key(0, 1), Offset(0));
    m.append(full(key(0, 1), 0, 5)).unwrap();
    m.lead(Epoch(4), &[committed(0)]);
    assert_eq!(m.lead(Epoch(5), &[committed(3)]), BTreeSet::new());
    assert_eq!(m.pin().unwrap().epoch, Epoch(4));
    let m = standby();
    m.close();
    m.lead(Epoch(4), &[]);
    assert!(m.pin().is_none());
}

#[test]
fn a_piece_is_split_only_where_its_counts_are_known() {
    use Fate::{Absent, Filtered, Rejected, Rows};
    // Of offsets without a row or a reject, some were filtered and some absent: which, is not kept.
    let fates = [Rows(2), Filtered, Rejected, Absent, Rows(1)];
    for (offset, goes_on) in [(0, true), (1, true), (2, false), (3, false), (4, true), (5, true)] {
        let m = standby();
        m.open_partition(key(0, 1), Offset(0));
        m.append(read(0, &fates, None)).unwrap();
        let kept = m.lead(Epoch(4), &[committed(offset)]);
        assert_eq!(!kept.is_empty(), goes_on, "at {offset}");
        if let Some(cut) = m.cut() {
            assert_eq!(cut.spans[0].counts, counted(&fates[offset as usize..]), "at {offset}");
        }
    }
}

#[test]
fn a_history_of_another_leader_epoch_of_the_source_does_not_go_on() {
    let m = || {
        let m = standby();
        m.open(key(0, 1), Show::AtOnce, Offset(0), Some(3));
        m.append(read(0, &[Fate::Rows(1); 10], Some(3))).unwrap();
        m.append(read(10, &[Fate::Rows(1); 10], Some(5))).unwrap();
        m
    };
    let at = |offset: u64, epoch: i32| Committed {
        source_epoch: Some(epoch),
        ..committed(offset)
    };
    let goes_on = |m: Memtable, c: Committed| !m.lead(Epoch(4), &[c]).is_empty();
    assert!(goes_on(m(), at(7, 3)) && goes_on(m(), at(10, 3)) && goes_on(m(), at(20, 5)));
    // The leader read other records there: the log was cut and written anew between the two.
    assert!(!goes_on(m(), at(7, 2)) && !goes_on(m(), at(10, 5)) && !goes_on(m(), at(20, 3)));
    // Somewhere inside the second piece the epoch rises, and where is not known.
    assert!(!goes_on(m(), at(15, 5)) && !goes_on(m(), at(15, 3)));
    // What was forgotten is remembered by its epoch.
    let later = m();
    later.release_below(key(0, 1), Offset(10));
    assert!(goes_on(later, at(10, 3)));
    // The broker gives no epochs: then nobody compares them.
    assert!(goes_on(m(), committed(15)));
    let unknown = standby();
    unknown.open_partition(key(0, 1), Offset(0));
    assert!(!goes_on(unknown, at(0, 3)), "the broker has to be asked");
}

#[test]
fn whatever_was_read_and_committed_the_takeover_is_exact() {
    let mut state = 11_u64;
    let mut random = move |below: u64| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    let mut went_on = 0;
    for round in 0..3_000 {
        // A source with or without filtered records and gaps, all in all or one of them.
        let kinds = 2 + random(3);
        let fate = |kind: u64| match kind {
            0 => Fate::Rows(1),
            1 => Fate::Rejected,
            2 if round % 2 == 0 => Fate::Filtered,
            2 => Fate::Absent,
            3 => Fate::Rows(3),
            _ => Fate::Absent,
        };
        let log: Vec<Fate> = (0..120).map(|_| fate(random(kinds))).collect();
        let m = standby();
        let begin = random(20);
        m.open_partition(key(0, 1), Offset(begin));
        let (mut at, mut offset) = (begin, random(40));
        for _ in 0..random(25) {
            let to = (at + 1 + random(12)).min(100);
            m.append(read(at, &log[at as usize..to as usize], None)).unwrap();
            at = to.max(at);
            if random(4) == 0 {
                offset = (offset + random(15)).min(100);
                m.release_below(key(0, 1), Offset(offset));
            }
        }
        // The leader may have committed since the standby last looked.
        offset = (offset + random(10)).min(100);
        if m.lead(Epoch(4), &[committed(offset)]).is_empty() {
            continue;
        }
        went_on += 1;
        m.append(read(at, &log[at as usize..at as usize + 5], None)).unwrap();
        let pin = &pinned(&m)[&key(0, 1)];
        let expected = row_offsets(offset, &log[offset as usize..at as usize + 5]);
        assert_eq!((pin.0, pin.1), (offset, at + 5));
        assert_eq!(pin.2, expected.iter().map(|o| *o as u64).collect::<Vec<_>>());
        let cut = m.cut().unwrap();
        assert_eq!(cut.spans[0].start, Offset(offset));
        assert_eq!(cut.spans[0].counts, counted(&log[offset as usize..at as usize + 5]));
        assert!(cut.spans[0].is_sound());
        let rejected: u64 = cut.rejects.iter().map(|(_, batch)| batch.num_rows() as u64).sum();
        assert_eq!(rejected, cut.spans[0].counts.rejected);
    }
    assert!(went_on > 1_000, "hardly any went on: {went_on}");
}
