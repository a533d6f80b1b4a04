//! Statements that are decided when what they were worked out from is not so any more.

use crate::rules::{refused, reset};
use crate::world::*;
use tidemill_core::catalog::*;
use tidemill_core::command::*;
use tidemill_core::view::CatalogRead;
use tidemill_core::*;

#[test]
fn what_was_worked_out_for_a_pipe_does_not_touch_the_one_that_took_its_name() {
    let mut world = World::new();
    let pipe = world.state.get::<Pipe>(&PipeId(1)).unwrap().unwrap();
    // A repair, say, of which nobody knows the outcome, since it is decided much later. Lives of the new pipe have the same numbers.
    let Command::ResetOffsets(repair) = reset(&world, 0, 5, Some(OldRows::Keep)) else {
        panic!()
    };
    let repair = ResetOffsets {
        pipe: Some(pipe.id),
        ..repair
    };
    let alter_pipe = AlterPipe {
        name: "p".into(),
        pipe: Some(pipe.id),
        settings: pipe.settings.clone(),
        format: pipe.format.clone(),
        source: pipe.source.kafka().unwrap().clone(),
        from: None,
    };
    let alter_table = AlterTable {
        name: "t".into(),
        table: Some(pipe.table),
        settings: TableSettings::default(),
        from: None,
    };
    let pause = SetPipeState {
        name: "p".into(),
        pipe: Some(pipe.id),
        from: None,
        state: PipeState::Pausing,
    };
    let drop_again = ByName {
        name: "p".into(),
        if_exists: true,
        id: Some(pipe.id),
    };
    let drop_table_again = ByName {
        name: "t".into(),
        if_exists: true,
        id: Some(pipe.table),
    };
    let Command::CreatePipe(fill) = create_pipe("q", "t") else {
        panic!()
    };
    let fill = CreatePipe {
        table_id: Some(pipe.table),
        ..fill
    };
    let backfill = Backfill {
        name: "p".into(),
        pipe: Some(pipe.id),
        partitions: vec![],
    };
    world.apply(drop_pipe("p")).unwrap();
    world.apply(drop_table("t")).unwrap();
    world.apply(create_table("t")).unwrap();
    world.apply(create_pipe("p", "t")).unwrap();
    for late in [
        Command::ResetOffsets(repair),
        Command::AlterPipe(alter_pipe),
        Command::AlterTable(alter_table),
        Command::SetPipeState(pause),
        Command::DropPipe(drop_again),
        Command::DropTable(drop_table_again),
        Command::CreatePipe(fill),
        Command::Backfill(backfill),
    ] {
        refused(world.apply(late), "was dropped and created again meanwhile");
    }
}

#[test]
fn settings_that_somebody_else_has_changed_are_not_undone() {
    let mut world = World::replicating();
    let pipe = world.state.get::<Pipe>(&PipeId(1)).unwrap().unwrap();
    let from = PipeOptions::of(&pipe).unwrap();
    // Both were worked out from the same: other brokers, and a hot standby.
    let alter = |settings: PipeSettings, brokers: &str| {
        Command::AlterPipe(AlterPipe {
            name: "p".into(),
            pipe: Some(pipe.id),
            settings,
            format: from.format.clone(),
            source: KafkaSource {
                brokers: brokers.into(),
                ..from.source.clone()
            },
            from: Some(from.clone()),
        })
    };
    let hot = PipeSettings {
        standby: Standby::Hot,
        ..from.settings.clone()
    };
    world.apply(alter(from.settings.clone(), "elsewhere:1")).unwrap();
    refused(
        world.apply(alter(hot, &from.source.brokers)),
        "were changed by somebody else",
    );

    let table = world.state.get::<Table>(&TableId(1)).unwrap().unwrap();
    let alter = |wal| {
        Command::AlterTable(AlterTable {
            name: "t".into(),
            table: Some(table.id),
            settings: TableSettings {
                wal,
                ..table.settings.clone()
            },
            from: Some(TableSettings {
                wal: WalMode::Local,
                ..table.settings.clone()
            }),
        })
    };
    refused(
        world.apply(alter(WalMode::Off)),
        "of table 't' were changed by somebody else",
    );

    let rule = world.state.replication().unwrap().unwrap();
    let wanted = |from| {
        let wanted = Replication {
            replicas: rule.replicas + 1,
            ..rule
        };
        Command::SetReplication(SetReplication {
            wanted,
            from: Some(from),
        })
    };
    world.apply(wanted(rule)).unwrap();
    refused(
        world.apply(wanted(rule)),
        "of the cluster were changed by somebody else",
    );
}

#[test]
fn a_pause_that_somebody_else_has_said_is_not_undone() {
    let mut world = World::new();
    let set = |from, state| {
        Command::SetPipeState(SetPipeState {
            name: "p".into(),
            pipe: Some(PipeId(1)),
            from,
            state,
        })
    };
    // A reset has the pipe settle, and resumes it; meanwhile somebody pauses it for good.
    world.apply(set(None, PipeState::Pausing)).unwrap();
    world.apply(set(None, PipeState::Paused)).unwrap();
    let resume = set(Some(PipeState::Pausing), PipeState::Running);
    assert_eq!(world.apply(resume), Ok(Response::Unchanged));
    let pipe = world.state.get::<Pipe>(&PipeId(1)).unwrap().unwrap();
    assert_eq!(pipe.state, PipeState::Paused);
}

#[test]
fn what_was_created_and_dropped_is_not_created_again_by_the_same_statement() {
    let mut world = World::new();
    let cluster = world.state.get::<Cluster>(&ClusterKey).unwrap().unwrap();
    let (Command::CreateTable(table), Command::CreatePipe(pipe)) = (create_table("u"), create_pipe("q", "u")) else {
        panic!()
    };
    let table = Command::CreateTable(CreateTable {
        id: Some(cluster.next_table),
        ..table
    });
    let pipe = Command::CreatePipe(CreatePipe {
        id: Some(cluster.next_pipe),
        ..pipe
    });
    world.apply(table.clone()).unwrap();
    world.apply(pipe.clone()).unwrap();
    world.apply(drop_pipe("q")).unwrap();
    // It would read once more what has been read.
    refused(world.apply(pipe), "another pipe was created by somebody else");
    world.apply(drop_table("u")).unwrap();
    refused(world.apply(table), "another table was created by somebody else");
}
