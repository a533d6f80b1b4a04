//! What is said of pipes.

use super::*;

#[test]
fn a_pipe_with_everything() {
    let Statement::CreatePipe(pipe) = parsed(
        "CREATE PIPE p INTO events FROM KAFKA (brokers = 'a:9092,b:9092', topic = 'x', format = 'json',
         start = '2026-01-02T03:04:05Z', client.security.protocol = 'ssl')",
    ) else {
        panic!("not a pipe")
    };
    assert_eq!((pipe.name.name.as_str(), pipe.table.name.as_str()), ("p", "events"));
    assert_eq!(
        (pipe.source.brokers.as_str(), pipe.source.topic.as_str()),
        ("a:9092,b:9092", "x")
    );
    assert_eq!(pipe.source.client["security.protocol"], "ssl");
    assert_eq!(pipe.start, StartPosition::TimestampMs(1_767_323_045_000));
    let Statement::CreatePipe(pipe) = parsed("CREATE PIPE p INTO t FROM KAFKA (topic='x', brokers='a:1')") else {
        panic!("not a pipe")
    };
    assert_eq!(pipe.start, StartPosition::Earliest);
}

#[test]
fn a_pipe_says_how_records_become_rows() {
    let Statement::CreatePipe(pipe) = parsed(
        "CREATE PIPE p INTO t FROM KAFKA (brokers = 'a:1', topic = 'x', On_Unknown_Field = 'Capture', capture_column = 'Rest',
         records = 'many', tombstones = 'reject', timestamp_unit = 's', timestamp_unit.seenAt = 'ns',
         timestamp_unit.\"a b\" = 'us', quoted_numbers = 'accept', key_column = 'k', header.\"Trace-Id\" = 'trace')",
    ) else {
        panic!("not a pipe")
    };
    let options: Vec<_> = pipe.format.options();
    let options: Vec<_> = options
        .iter()
        .map(|(option, name, value)| (option.as_str(), name.as_deref(), value.as_str()))
        .collect();
    assert_eq!(
        options,
        [
            ("on_unknown_field", None, "capture"),
            ("capture_column", None, "Rest"),
            ("records", None, "many"),
            ("tombstones", None, "reject"),
            ("timestamp_unit", None, "s"),
            ("timestamp_unit", Some("a b"), "us"),
            ("timestamp_unit", Some("seenAt"), "ns"),
            ("quoted_numbers", None, "accept"),
            ("key_column", None, "k"),
            ("header", Some("Trace-Id"), "trace"),
        ]
    );
    let pipe = |option: &str| format!("CREATE PIPE p INTO t FROM KAFKA ({option})");
    assert_refused(
        &pipe("records = 'two'"),
        "'two'",
        "records is 'one' or 'many', not 'two'",
    );
    assert_refused(&pipe("record = 'many'"), "record", "did you mean records?");
    assert_refused(&pipe("header = 'a'"), "header", "header.name = 'column'");
    assert_refused(&pipe("timestamp_unit.a = 'm'"), "'m'", "'s', 'ms', 'us' or 'ns'");
    assert_refused(&pipe("header.a = ''"), "''", "must not be empty");
}

#[test]
fn mistakes_in_a_pipe_point_at_the_word() {
    assert_refused(
        "CREATE PIPE p INTO t FROM KAFKA (topic = 'x')",
        "KAFKA",
        "needs brokers",
    );
    assert_refused(
        "CREATE PIPE p INTO t FROM KAFKA (brokers = 'a:1')",
        "KAFKA",
        "needs topic",
    );
    assert_refused(
        "CREATE PIPE p INTO t FROM KAFAK (topic = 'x')",
        "KAFAK",
        "did you mean KAFKA?",
    );
    assert_refused(
        "CREATE PIPE p INTO t FROM KAFKA (broker = 'a:1')",
        "broker",
        "did you mean brokers?",
    );
    assert_refused(
        "CREATE PIPE p INTO t FROM KAFKA (security.protocol = 'ssl')",
        "security.protocol",
        "client.security.protocol",
    );
    assert_refused(
        "CREATE PIPE p INTO t FROM KAFKA (client.group.id = 'g')",
        "client.group.id",
        "exactly-once",
    );
    assert_refused(
        "CREATE PIPE p INTO t FROM KAFKA (start = 'latset')",
        "'latset'",
        "did you mean latest?",
    );
    assert_refused(
        "CREATE PIPE p INTO t FROM KAFKA (format = 'avro')",
        "'avro'",
        "the format is 'json'",
    );
    assert_refused("CREATE PIPE p INTO t FROM KAFKA (topic = x)", "x", "in single quotes");
    assert_refused("ALTER PIPE p PUASE", "PUASE", "did you mean PAUSE?");
}

#[test]
fn what_is_said_to_pipes() {
    let change = |sql: &str| match parsed(sql) {
        Statement::AlterPipe { change, .. } => change,
        other => panic!("{sql}: {other:?}"),
    };
    assert_eq!(
        change("ALTER PIPE p REPAIR PARTITION (1, 2)"),
        PipeChange::Repair {
            partitions: vec![PartitionId(1), PartitionId(2)]
        }
    );
    assert_eq!(
        change("ALTER PIPE p SKIP TO LATEST"),
        PipeChange::Reset {
            to: ResetTo::Position(StartPosition::Latest),
            partitions: vec![],
            old_rows: None
        }
    );
    assert_eq!(
        change("ALTER PIPE p RESET OFFSETS TO (0 = 5, 3 = 7) KEEP ROWS;"),
        PipeChange::Reset {
            to: ResetTo::Exact(vec![(PartitionId(0), Offset(5)), (PartitionId(3), Offset(7))]),
            partitions: vec![],
            old_rows: Some(OldRows::Keep)
        }
    );
    assert_eq!(
        change("ALTER PIPE p RESET OFFSETS TO EARLIEST PARTITION 1 DELETE ROWS"),
        PipeChange::Reset {
            to: ResetTo::Position(StartPosition::Earliest),
            partitions: vec![PartitionId(1)],
            old_rows: Some(OldRows::Delete)
        }
    );
    assert!(matches!(
        parsed("WAIT FOR OFFSET (0 = 5) OF PIPE p TIMEOUT '5s'"),
        Statement::Wait { timeout, .. } if timeout == std::time::Duration::from_secs(5)
    ));
    let Statement::ReplayRejected { condition, .. } = parsed("REPLAY REJECTED p WHERE error LIKE '%x''y%' ;") else {
        panic!("not a replay")
    };
    assert_eq!(condition.as_deref(), Some("error LIKE '%x''y%'"));
    assert_refused("ALTER PIPE p RESE", "RESE", "did you mean RESET?");
    assert_refused("ALTER PIPE p RESET OFFSETS TO LATES", "LATES", "did you mean LATEST?");
    assert_refused("ALTER PIPE p RESET OFFSETS TO (0 = 5, 0 = 6)", "0", "given twice");
    assert_refused(
        "ALTER PIPE p RESET OFFSETS TO EARLIEST DELET ROWS",
        "DELET",
        "did you mean DELETE?",
    );
    assert_refused("ALTER PIPE p RESET OFFSETS TO EARLIEST DELETE", "", "expected ROWS");
    assert_refused(
        "ALTER PIPE p SET (on_eror = 'halt')",
        "on_eror",
        "did you mean on_error?",
    );
    assert_refused(
        "ALTER PIPE p SET (topic = 'x')",
        "topic",
        "fixed when a pipe is created",
    );
    assert_refused(
        "ALTER TABLE t SET (shards = 5)",
        "shards",
        "fixed when a table is created",
    );
    assert_refused("WAIT FOR PIPE p CAUGHT", "", "expected UP");
    assert_refused("REPLAY REJECTED p WHERE", "", "a condition");
}
