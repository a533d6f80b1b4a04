//! Mistakes in queries: what is said, and where it points.

use super::world::*;

/// What is wrong with the error of `sql`, if anything.
async fn wrong(engine: &crate::Engine, sql: &str, pointed: &str, message: &str) -> Option<String> {
    let error = error_of(engine, sql).await;
    let found = error.place.map(|place| {
        let line = sql.lines().nth(place.line as usize - 1).unwrap_or("");
        line.chars()
            .skip(place.column as usize - 1)
            .take(place.length as usize)
            .collect::<String>()
    });
    let right = error.message.contains(message) && found.as_deref() == Some(pointed);
    (!right).then(|| format!("{sql}\n  says: {error}\n  at:   {found:?}\n  not:  {message} at {pointed}"))
}

#[tokio::test]
async fn mistakes_in_queries_point_at_the_word() {
    let (world, engine) = World::with_events().await;
    world.consume(0, 10);
    let mut all = Vec::new();
    for (sql, pointed, message) in [
        ("SELEC * FROM events", "SELEC", "did you mean SELECT?"),
        (
            "SELECT cout(*) FROM events",
            "cout",
            "there is no function 'cout'; did you mean count?",
        ),
        (
            "SELECT nme FROM events",
            "nme",
            "there is no column 'nme'; did you mean name?",
        ),
        (
            "SELECT id\nFROM events\nWHERE pirce > 1",
            "pirce",
            "there is no column 'pirce'; did you mean price?",
        ),
        ("SELECT e.nme FROM events e", "nme", "did you mean name?"),
        (
            "SELECT * FROM evnts",
            "evnts",
            "there is no table 'evnts'; did you mean events?",
        ),
        ("SELECT * FROM nodes", "nodes", "did you mean system.nodes?"),
        (
            "SELECT * FROM system.nods",
            "nods",
            "there is no system table 'nods'; did you mean nodes?",
        ),
        ("SELECT * FROM sytem.nodes", "sytem", "there is no schema 'sytem'"),
        ("SELECT Name FROM events", "Name", "did you mean name?"),
        ("SELECT xyzzy FROM events", "xyzzy", "there are id, name, price, at"),
        (
            "SELECT id FROM events a JOIN events b ON a.id = b.id",
            "id",
            "several of the tables",
        ),
        ("SELECT * FROM events WHRE id = 1", "WHRE", "did you mean WHERE?"),
        ("DESCRIBE evnts", "evnts", "did you mean events?"),
        ("DROP TABLE evnts", "evnts", "did you mean events?"),
        ("DROP TABLE events", "events", "pipe 'p'"),
        ("DROP PIPE q", "q", "there is no pipe 'q'"),
        ("ALTER PIPE pp PAUSE", "pp", "there is no pipe 'pp'"),
        ("SHOW SHARDS FROM event", "event", "did you mean events?"),
        ("CREATE TABLE events (a INT)", "events", "already a table"),
        ("CREATE TABLE \"a b\" (a INT)", "\"a b\"", "cannot name a table"),
        (
            "CREATE PIPE p INTO events FROM KAFKA (brokers='h:1', topic='x')",
            "p",
            "already a pipe",
        ),
        (
            "CREATE PIPE q INTO evnts FROM KAFKA (brokers='h:1', topic='x')",
            "evnts",
            "did you mean events?",
        ),
        (
            "CREATE PIPE q INTO events FROM KAFKA (brokers='h:1', topic='missing')",
            "'h:1'",
            "no topic 'missing'",
        ),
    ] {
        all.extend(wrong(&engine, sql, pointed, message).await);
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[tokio::test]
async fn nothing_can_be_changed_inside_a_query() {
    let (_world, engine) = World::with_events().await;
    for sql in [
        "EXPLAIN ANALYZE INSERT INTO events VALUES (1)",
        "WITH a AS (SELECT 1) INSERT INTO events SELECT * FROM a",
    ] {
        let error = error_of(&engine, sql).await;
        assert_eq!(error.kind, crate::ErrorKind::Invalid, "{sql}: {error}");
    }
    assert_eq!(query(&engine, "SELECT count(*) FROM events").await, ["0"]);
}

#[tokio::test]
async fn errors_of_values_are_mistakes_of_the_query() {
    let (world, engine) = World::with_events().await;
    world.consume(0, 5);
    for sql in [
        "SELECT id / 0 FROM events",
        "SELECT CAST(name AS BIGINT) FROM events",
        "SELECT id + 'x' FROM events",
    ] {
        let error = error_of(&engine, sql).await;
        assert_eq!(error.kind, crate::ErrorKind::Invalid, "{sql}: {error}");
    }
}
