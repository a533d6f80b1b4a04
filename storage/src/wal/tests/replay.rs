//! Which entries continue a history.

use super::super::replay::{from_offset, plan};
use super::*;

/// Entries of (incarnation, start, end, dense), the oldest first.
fn entries(of: &[(u64, u64, u64, bool)]) -> Vec<WalEntry> {
    let entry = |(sequence, (life, start, end, dense)): (usize, &(u64, u64, u64, bool))| WalEntry {
        shard: shard(0),
        epoch: EPOCH,
        sequence: sequence as u64,
        history: key(0, *life),
        start: Offset(*start),
        end: Offset(*end),
        dense: *dense,
        bytes: 1,
    };
    of.iter().enumerate().map(entry).collect()
}

/// What of `entries` continues life 1 from `committed` on: (from, end).
fn continued(of: &[(u64, u64, u64, bool)], committed: u64) -> Vec<(u64, u64)> {
    let plan = plan(&entries(of), key(0, 1), Offset(committed));
    plan.adopted.iter().map(|(entry, from)| (from.0, entry.end.0)).collect()
}

#[test]
fn what_is_committed_is_passed_over() {
    let of = [(1, 0, 10, true), (1, 10, 20, false), (1, 20, 30, true)];
    assert_eq!(continued(&of, 0), [(0, 10), (10, 20), (20, 30)]);
    assert_eq!(continued(&of, 10), [(10, 20), (20, 30)]);
    assert_eq!(continued(&of, 30), []);
    assert_eq!(continued(&of, 99), []);
}

#[test]
fn another_life_does_not_count() {
    let of = [(2, 0, 10, true), (1, 10, 20, true), (2, 20, 30, true)];
    assert_eq!(continued(&of, 10), [(10, 20)]);
    // And a later one is not this one's to forget.
    let unused = plan(&entries(&of), key(0, 1), Offset(20)).unused;
    assert_eq!(unused.iter().map(|e| e.sequence).collect::<Vec<_>>(), [1]);
}

#[test]
fn nothing_counts_behind_a_hole() {
    let of = [(1, 0, 10, true), (1, 11, 20, true)];
    assert_eq!(continued(&of, 0), [(0, 10)]);
    assert_eq!(continued(&[(1, 5, 10, true)], 4), []);
}

#[test]
fn an_entry_around_the_committed_offset_is_divided_only_if_that_is_exact() {
    assert_eq!(
        continued(&[(1, 0, 10, true), (1, 10, 20, false)], 7),
        [(7, 10), (10, 20)]
    );
    // Whether the absent offsets lie before or behind 7 is not known.
    assert_eq!(continued(&[(1, 0, 10, false), (1, 10, 20, true)], 7), []);
}

#[test]
fn of_two_that_overlap_the_newer_is_taken() {
    // A chunk that came late, then the partition was read again from 10 on.
    let of = [
        (1, 0, 10, true),
        (1, 10, 25, true),
        (1, 10, 20, false),
        (1, 20, 40, false),
    ];
    assert_eq!(continued(&of, 0), [(0, 10), (10, 20), (20, 40)]);
    // The newer ones end first: the older goes on where it can be divided.
    let of = [(1, 0, 30, true), (1, 0, 20, true)];
    assert_eq!(continued(&of, 0), [(0, 20), (20, 30)]);
    // And does not help where it cannot.
    let of = [(1, 0, 30, false), (1, 0, 20, true)];
    assert_eq!(continued(&of, 0), [(0, 20)]);
}

#[test]
fn a_divided_chunk_is_what_would_have_been_appended_there() {
    let whole = full(key(0, 1), 3, 30);
    for from in 3..30 {
        assert_eq!(
            from_offset(whole.clone(), Offset(from)),
            Some(full(key(0, 1), from, 30)),
            "from {from}"
        );
    }
    let sparse = chunk(key(0, 1), 3, 30, |o| o % 3);
    assert_eq!(from_offset(sparse.clone(), Offset(3)), Some(sparse.clone()));
    assert_eq!(from_offset(sparse, Offset(9)), None);
}

#[test]
fn a_record_of_several_rows_is_divided_as_one() {
    let several = |from: i64| {
        let offsets: Vec<i64> = (from..6).flat_map(|o| [o, o]).collect();
        let width = (6 - from) as u64;
        let mut chunk = full(key(0, 1), from as u64, 6);
        (chunk.rows, chunk.rejects) = (Some(rows(&offsets)), None);
        chunk.span.counts = Counts {
            rows: 2 * width,
            ..Counts::stored(width)
        };
        chunk
    };
    assert_eq!(from_offset(several(1), Offset(4)), Some(several(4)));
}

proptest! {
    #[test]
    fn a_plan_is_a_chain_that_goes_as_far_as_it_can(
        of in prop::collection::vec((1u64..3, 0u64..40, 1u64..12, any::<bool>()), 0..40),
        committed in 0u64..40,
    ) {
        let of: Vec<_> = of.into_iter().map(|(life, start, width, dense)| (life, start, start + width, dense)).collect();
        let all = entries(&of);
        let plan = plan(&all, key(0, 1), Offset(committed));
        let mut next = Offset(committed);
        for (entry, from) in &plan.adopted {
            prop_assert_eq!(*from, next);
            prop_assert_eq!(entry.history, key(0, 1));
            prop_assert!(entry.start <= *from && *from < entry.end);
            prop_assert!(entry.start == *from || entry.dense, "divided without knowing how");
            next = entry.end;
        }
        let could = |e: &&WalEntry| e.history == key(0, 1) && (e.start == next || e.dense && e.start < next && next < e.end);
        prop_assert_eq!(all.iter().find(could), None, "it goes on at {}", next);
        let mut seen: Vec<_> = plan.adopted.iter().map(|(e, _)| e.sequence).chain(plan.unused.iter().map(|e| e.sequence)).collect();
        seen.sort();
        let wanted: Vec<_> = all.iter().filter(|e| e.history.incarnation.0 == 1).map(|e| e.sequence).collect();
        prop_assert_eq!(seen, wanted);
    }
}
