//! Programs that write rows themselves: each is a source, exactly accounted for from its first row to its end.

use crate::world::*;
use tidemill_core::apply::MAX_WRITERS;
use tidemill_core::catalog::*;
use tidemill_core::command::*;
use tidemill_core::ledger::ClosedLedger;
use tidemill_core::view::CatalogRead;
use tidemill_core::*;

fn refused(outcome: Outcome, text: &str) {
    let refusal = outcome.unwrap_err().to_string();
    assert!(refusal.contains(text), "{refusal}");
}

fn open(world: &mut World, token: u128) -> Writer {
    match world.apply(open_writer("t", token)) {
        Ok(Response::Writer(id)) => world.state.get(&id).unwrap().unwrap(),
        other => panic!("{other:?}"),
    }
}

fn partitions(world: &World, writer: &Writer) -> Vec<SourcePartition> {
    world.partitions_of_writer(writer)
}

fn write(world: &mut World, partition: &SourcePartition, id: u128, rows: u64) -> Outcome {
    world.write_directly(partition, 0, rows, id)
}

fn close(writer: &Writer, acknowledged: &[(u32, u64)]) -> Command {
    Command::CloseWriter(CloseWriter {
        writer: writer.id,
        acknowledged: acknowledged.iter().map(|(shard, end)| (*shard, Offset(*end))).collect(),
        if_idle_since_ms: None,
    })
}

#[test]
fn a_writer_is_a_partition_of_every_shard_and_its_wish_is_recognised() {
    let mut world = World::replicating();
    let (a, again, b) = (open(&mut world, 1), open(&mut world, 1), open(&mut world, 2));
    assert_eq!(a, again);
    assert_ne!((a.id, a.number), (b.id, b.number));
    assert_eq!(a.pipe, b.pipe, "a table has one pipe of writers");
    for writer in [&a, &b] {
        let own = partitions(&world, writer);
        let shards: Vec<u32> = own.iter().map(|p| p.shard.index).collect();
        assert_eq!(shards, [0, 1]);
        assert!(own.iter().all(|p| p.offset == Offset(0)));
    }
    refused(world.apply(open_writer("u", 3)), "no table called 'u'");
    // It has no name, so no statement for pipes can reach it.
    assert_eq!(world.state.pipe_named("(direct) t").unwrap(), None);
}

#[test]
fn rows_count_once_and_what_was_acknowledged_and_is_not_there_is_lost() {
    let mut world = World::replicating();
    let writer = open(&mut world, 1);
    let of = partitions(&world, &writer);
    write(&mut world, &of[0], 100, 10).unwrap();
    // The same rows once more, as another leader might have got them.
    refused(write(&mut world, &of[0], 101, 10), "the next offset is 10");
    let first = partitions(&world, &writer).remove(0);
    write(&mut world, &first, 102, 5).unwrap();
    // Of the second shard 7 rows were acknowledged and none is there.
    world.apply(close(&writer, &[(0, 15), (1, 7)])).unwrap();
    let closed: Vec<ClosedLedger> = world.state.closed_ledgers_of(writer.pipe).unwrap();
    let lines: Vec<_> = closed
        .iter()
        .map(|c| (c.ledger.counts.stored, c.ledger.lost, c.end.0))
        .collect();
    assert_eq!(lines, [(15, 0, 15), (0, 7, 7)]);
    let events: Vec<Event> = world.state.list(&[]).unwrap();
    assert!(events.last().unwrap().text.starts_with("7 rows of writer 1"));
    // It is over: nothing of it can be committed, and a repetition changes nothing.
    refused(write(&mut world, &of[1], 103, 7), "there is no such pipe or partition");
    assert_eq!(world.apply(close(&writer, &[])), Ok(Response::Unchanged));
}

#[test]
fn numbers_are_not_used_twice_and_writers_are_limited() {
    let mut world = World::new();
    let first = open(&mut world, 1);
    world.apply(close(&first, &[])).unwrap();
    let second = open(&mut world, 1);
    assert!(second.id > first.id && second.number > first.number);
    for token in 2..=MAX_WRITERS as u128 {
        open(&mut world, token);
    }
    refused(world.apply(open_writer("t", 9999)), "256 writers, which is the limit");
}

#[test]
fn only_the_idle_are_closed_for_being_idle() {
    let mut world = World::new();
    let writer = open(&mut world, 1);
    let opened_at = world.index as i64;
    let first = partitions(&world, &writer).remove(0);
    write(&mut world, &first, 100, 10).unwrap();
    let idle_since = |ms| {
        Command::CloseWriter(CloseWriter {
            writer: writer.id,
            acknowledged: vec![],
            if_idle_since_ms: Some(ms),
        })
    };
    assert_eq!(world.apply(idle_since(opened_at)), Ok(Response::Unchanged));
    assert_eq!(world.apply(idle_since(opened_at + 1)), Ok(Response::Done));
    assert_eq!(world.state.writers_of(writer.table).unwrap(), []);
}

#[test]
fn a_dropped_table_takes_its_writers_along() {
    let mut world = World::new();
    let writer = open(&mut world, 1);
    let second = partitions(&world, &writer).remove(1);
    write(&mut world, &second, 100, 10).unwrap();
    world.apply(drop_pipe("p")).unwrap();
    world.apply(drop_table("t")).unwrap();
    assert_eq!(world.state.get::<Writer>(&writer.id).unwrap(), None);
    assert_eq!(world.state.get::<Pipe>(&writer.pipe).unwrap(), None);
    assert_eq!(world.state.partitions_of(writer.pipe).unwrap(), []);
}

#[test]
fn a_table_may_ask_for_more_replicas_than_the_cluster() {
    let mut world = World::replicating();
    let alter = |least| {
        Command::AlterTable(AlterTable {
            name: "t".into(),
            table: None,
            from: None,
            settings: TableSettings {
                min_insync_replicas: Some(least),
                ..TableSettings::default()
            },
        })
    };
    refused(world.apply(alter(4)), "from 1 to 3");
    world.apply(alter(3)).unwrap();
    let writer = open(&mut world, 1);
    let partition = &partitions(&world, &writer)[0];
    let commit = |world: &World, holders| {
        let epoch = world.shard(0).unwrap().epoch;
        Command::CommitPart(CommitPart {
            commit: CommitId(7),
            shard: partition.shard,
            epoch,
            schema_version: SchemaVersion(1),
            parts: some_file(3, 7),
            reject_parts: vec![],
            spans: vec![Span {
                key: partition.key(),
                start: Offset(0),
                end: Offset(3),
                counts: Counts::stored(3),
                topic: None,
                source_epoch: None,
            }],
            holders,
        })
    };
    let all = world.holders(0);
    refused(world.apply(commit(&world, all[..2].to_vec())), "on 2 of 3 disks");
    world.apply(commit(&world, all)).unwrap();
}

#[test]
fn a_gap_is_passed_where_it_is_and_ends_the_life_of_what_was_before() {
    let mut world = World::replicating();
    let writer = open(&mut world, 1);
    let before = partitions(&world, &writer).remove(0);
    write(&mut world, &before, 100, 10).unwrap();
    let pass = |from, to| {
        Command::PassGap(PassGap {
            writer: writer.id,
            shard: 0,
            epoch: None,
            from: Offset(from),
            to: Offset(to),
        })
    };
    refused(world.apply(pass(9, 20)), "is number 10, not 9");
    refused(world.apply(pass(10, 10)), "is number 10");
    world.apply(pass(10, 25)).unwrap();
    refused(world.apply(pass(10, 25)), "is number 25, not 10");
    let after = partitions(&world, &writer).remove(0);
    assert_eq!(
        (after.offset, after.incarnation),
        (Offset(25), before.incarnation.next())
    );
    let closed: Vec<ClosedLedger> = world.state.closed_ledgers_of(writer.pipe).unwrap();
    let lines: Vec<_> = closed
        .iter()
        .map(|c| (c.ledger.counts.stored, c.ledger.lost, c.end.0))
        .collect();
    assert_eq!(lines, [(10, 15, 25)]);
    // What the old leader still has of these rows cannot be committed behind them.
    let late = SourcePartition {
        offset: Offset(25),
        ..before
    };
    refused(write(&mut world, &late, 101, 5), "it is at incarnation 2");
    write(&mut world, &after, 102, 5).unwrap();
}
