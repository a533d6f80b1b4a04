//! Good statements and what they mean; bad ones, what they say and where they point.

mod pipes;

use super::*;
use tidemill_core::catalog::WalMode;
use tidemill_core::command::OldRows;
use tidemill_core::schema::{ColumnType, PartitionBy, TimeUnit};
use tidemill_core::{Offset, PartitionId};

fn parsed(sql: &str) -> Statement {
    let words = Words::of(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    parse(&words).unwrap_or_else(|e| panic!("{sql}: {e:?}"))
}

/// The message and the text that it points at.
fn refused(sql: &str) -> (String, String) {
    let error = match Words::of(sql) {
        Ok(words) => parse(&words).err(),
        Err(error) => Some(error),
    };
    let error = error.unwrap_or_else(|| panic!("{sql} is accepted"));
    let place = error.place.unwrap_or_else(|| panic!("{sql}: no place: {error}"));
    let line = sql.lines().nth(place.line as usize - 1).unwrap_or("");
    let pointed = line
        .chars()
        .skip(place.column as usize - 1)
        .take(place.length as usize)
        .collect();
    (error.message, pointed)
}

fn assert_refused(sql: &str, pointed: &str, message: &str) {
    let (found, at) = refused(sql);
    assert!(found.contains(message), "{sql}\n  says: {found}\n  not:  {message}");
    assert_eq!(at, pointed, "{sql}: {found}");
}

#[test]
fn a_table_with_everything() {
    let Statement::CreateTable(table) = parsed(
        "create table if not exists events (
            id BIGINT not null, \"user name\" varchar(20), price DECIMAL(18, 2), n INT UNSIGNED NULL,
            at TIMESTAMP, d DOUBLE PRECISION, ok bool -- a comment
        ) ORDER BY (id, at) PARTITION BY date_trunc('day', at)
        WITH (shards = 6, flush_rows = 100_000, flush_bytes = '64MiB', flush_age = '2s', wal = 'Local');",
    ) else {
        panic!("not a table")
    };
    assert_eq!(
        (table.name.as_str(), table.if_not_exists, table.shards),
        ("events", true, 6)
    );
    let columns: Vec<_> = table
        .columns
        .iter()
        .map(|c| (c.name.as_str(), c.data_type.clone(), c.nullable))
        .collect();
    assert_eq!(
        columns,
        [
            ("id", ColumnType::Int64, false),
            ("user name", ColumnType::Text, true),
            (
                "price",
                ColumnType::Decimal {
                    precision: 18,
                    scale: 2
                },
                true
            ),
            ("n", ColumnType::UInt32, true),
            ("at", ColumnType::Timestamp, true),
            ("d", ColumnType::Float64, true),
            ("ok", ColumnType::Boolean, true),
        ]
    );
    assert_eq!(table.order_by, ["id", "at"]);
    assert_eq!(
        table.partition_by,
        Some(PartitionBy::Truncated {
            unit: TimeUnit::Day,
            column: "at".into()
        })
    );
    assert_eq!(
        (
            table.settings.flush.rows,
            table.settings.flush.bytes,
            table.settings.flush.age_ms
        ),
        (100_000, 64 << 20, 2000)
    );
    assert_eq!(table.settings.wal, WalMode::Local);
}

#[test]
fn clauses_come_in_any_order_and_without_brackets() {
    let Statement::CreateTable(table) = parsed("CREATE TABLE t (a INT, b DATE) PARTITION BY b ORDER BY a, _offset")
    else {
        panic!("not a table")
    };
    assert_eq!(table.order_by, ["a", "_offset"]);
    assert_eq!(table.partition_by, Some(PartitionBy::Column("b".into())));
    assert_eq!(table.shards, 4);
}

#[test]
fn names_keep_their_letters() {
    let Statement::CreateTable(table) = parsed("CREATE TABLE T (userId INT)") else {
        panic!("not a table")
    };
    assert_eq!((table.name.as_str(), table.columns[0].name.as_str()), ("T", "userId"));
}

#[test]
fn nested_types_and_defaults() {
    let types = [
        ("STRUCT<a INT, \"b c\" VARCHAR>", "STRUCT<a INT, \"b c\" VARCHAR>"),
        ("struct(a: int)", "STRUCT<a INT>"),
        ("ROW(a INT NULL, b STRUCT<c DATE>)", "STRUCT<a INT, b STRUCT<c DATE>>"),
        ("ARRAY<INT>", "ARRAY<INT>"),
        ("LIST(INT)", "ARRAY<INT>"),
        ("DECIMAL(5, 2)[][]", "ARRAY<ARRAY<DECIMAL(5, 2)>>"),
        ("BIGINT UNSIGNED[]", "ARRAY<BIGINT UNSIGNED>"),
        ("MAP<VARCHAR(20), TEXT>", "MAP<VARCHAR, VARCHAR>"),
        ("MAP(VARCHAR, INT[])", "MAP<VARCHAR, ARRAY<INT>>"),
        (
            "ARRAY<ARRAY<ARRAY<MAP<TEXT,STRUCT<a INT[]>>>>>",
            "ARRAY<ARRAY<ARRAY<MAP<VARCHAR, STRUCT<a ARRAY<INT>>>>>>",
        ),
    ];
    for (written, shown) in types {
        for written in [written, shown] {
            let sql = format!("CREATE TABLE t (x {written} NOT NULL, y INT)");
            let Statement::CreateTable(table) = parsed(&sql) else {
                panic!("not a table")
            };
            assert_eq!(table.columns[0].data_type.to_string(), shown, "{written}");
            assert!(!table.columns[0].nullable);
        }
    }
    let Statement::CreateTable(table) = parsed(
        "CREATE TABLE t (a INT DEFAULT -1_000 NOT NULL, b TEXT NOT NULL DEFAULT 'it''s', c BOOL DEFAULT TRUE,
         d DATE DEFAULT DATE '2026-01-31', e TIMESTAMP DEFAULT '2026-01-31T08:00:00Z', f INT DEFAULT NULL, g REAL DEFAULT +0.5e1)",
    ) else {
        panic!("not a table")
    };
    let defaults: Vec<_> = table
        .columns
        .iter()
        .map(|c| {
            (
                c.default.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
                c.nullable,
            )
        })
        .collect();
    let expected = [
        ("-1000", false),
        ("'it''s'", false),
        ("true", true),
        ("'2026-01-31'", true),
        ("'2026-01-31T08:00:00Z'", true),
        ("-", true),
        ("0.5e1", true),
    ];
    assert_eq!(defaults, expected.map(|(text, nullable)| (text.to_owned(), nullable)));

    assert_refused("CREATE TABLE t (a ARRAY<INT)", ")", "expected '>'");
    assert_refused("CREATE TABLE t (a ARRAY)", ")", "expected (, found ) (ARRAY<type>)");
    assert_refused("CREATE TABLE t (a ARRAY<BIGINTT>)", "BIGINTT", "did you mean BIGINT?");
    assert_refused(
        "CREATE TABLE t (a MAP<INT, INT>)",
        "INT",
        "the keys of a MAP are VARCHAR",
    );
    assert_refused("CREATE TABLE t (a STRUCT<b INT, b INT>)", "b", "declared twice");
    assert_refused(
        "CREATE TABLE t (a STRUCT<b INT NOT NULL>)",
        "NOT",
        "may be NULL and have no default",
    );
    let deep = format!("CREATE TABLE t (a {}INT{})", "ARRAY<".repeat(5000), ">".repeat(5000));
    assert!(refused(&deep).0.contains("nested more than 16 deep"));
    let deep = format!("CREATE TABLE t (a INT{})", "[]".repeat(5000));
    assert!(refused(&deep).0.contains("nested more than 16 deep"));
    assert_refused(
        "CREATE TABLE t (a INT[]) ORDER BY a",
        "a",
        "values of ARRAY<INT> have no order",
    );
    assert_refused(
        "CREATE TABLE t (a INT[]) PARTITION BY (a)",
        "a",
        "cannot be sorted or split",
    );
    assert_refused(
        "CREATE TABLE t (a TINYINT DEFAULT 300)",
        "300",
        "the default 300 is no TINYINT: it is out of range",
    );
    assert_refused("CREATE TABLE t (a INT DEFAULT '1')", "'1'", "the default '1' is no INT");
    assert_refused(
        "CREATE TABLE t (a TIMESTAMP DEFAULT now())",
        "now",
        "expected a constant",
    );
    assert_refused("CREATE TABLE t (a INT DEFAULT 1 DEFAULT 2)", "DEFAULT", "one default");
    assert_refused("CREATE TABLE t (a INT[] DEFAULT 1)", "1", "no default but NULL");
    assert_refused("CREATE TABLE t (a INT DEFALT 1)", "DEFALT", "did you mean DEFAULT?");
}

#[test]
fn the_short_statements() {
    assert!(matches!(
        parsed("ALTER PIPE p PAUSE"),
        Statement::AlterPipe {
            change: PipeChange::Pause,
            ..
        }
    ));
    assert!(matches!(
        parsed("alter pipe p resume;"),
        Statement::AlterPipe {
            change: PipeChange::Resume,
            ..
        }
    ));
    assert!(matches!(
        parsed("DROP TABLE IF EXISTS t"),
        Statement::DropTable { if_exists: true, .. }
    ));
    assert!(matches!(
        parsed("DROP PIPE p"),
        Statement::DropPipe { if_exists: false, .. }
    ));
    assert!(matches!(parsed("SHOW TABLES"), Statement::Show(Show::Tables)));
    assert!(matches!(
        parsed("SHOW SHARDS FROM t"),
        Statement::Show(Show::Shards(Some(_)))
    ));
    assert!(matches!(
        parsed("SHOW PARTITIONS"),
        Statement::Show(Show::Partitions(None))
    ));
    assert!(matches!(
        parsed("SHOW CREATE PIPE p"),
        Statement::Show(Show::CreatePipe(_))
    ));
    assert!(matches!(parsed("DESCRIBE t"), Statement::Show(Show::Columns(_))));
    let set = parsed("SET tidemill.consistency = 'committed'");
    assert!(matches!(
        set,
        Statement::Set {
            name: "tidemill.consistency",
            value: "committed"
        }
    ));
    assert!(matches!(
        parsed("SET tidemill.consistency TO Fresh"),
        Statement::Set { value: "fresh", .. }
    ));
}

#[test]
fn the_assignment_and_the_cluster() {
    assert!(matches!(
        parsed("EXPLAIN ASSIGNMENT"),
        Statement::Show(Show::Assignment(None))
    ));
    let of_table = parsed("explain assignment \"a b\";");
    assert!(matches!(of_table, Statement::Show(Show::Assignment(Some(table))) if table.name == "a b"));
    let Statement::AlterCluster { settings } = parsed("ALTER CLUSTER SET (replicas = 5, min_replicas = '3')") else {
        panic!("not a change of the cluster");
    };
    let settings: Vec<_> = settings.iter().map(|s| (s.key.as_str(), s.value.as_str())).collect();
    assert_eq!(settings, [("replicas", "5"), ("min_replicas", "3")]);
    assert_refused("ALTER CLUSTER SET (replica = 5)", "replica", "did you mean replicas?");
    assert_refused("ALTER CLUSTER (replicas = 5)", "(", "SET");
    assert_refused("EXPLAIN ASSIGNMENT t u", "u", "");
}

#[test]
fn queries_go_to_datafusion() {
    for sql in [
        "SELECT 1",
        "with a as (select 1) select * from a;",
        "VALUES (1), (2)",
        "(SELECT 1)",
        "EXPLAIN ANALYZE SELECT 1",
    ] {
        assert!(matches!(parsed(sql), Statement::Query(_)), "{sql}");
    }
}

#[test]
fn the_first_word_is_explained() {
    assert_refused(
        "SELEC * FROM t",
        "SELEC",
        "'SELEC' does not begin a statement; did you mean SELECT?",
    );
    assert_refused("  CRATE TABLE t (a INT)", "CRATE", "did you mean CREATE?");
    assert_refused("INSERT INTO t VALUES (1)", "INSERT", "through a pipe");
    assert_refused("DELETE FROM t", "DELETE", "DROP TABLE");
    assert_refused("COPY t TO 'x'", "COPY", "let the client write");
    assert_refused("CREATE EXTERNAL TABLE t STORED AS CSV", "EXTERNAL", "CREATE PIPE");
    assert_refused("CREATE VIEW v AS SELECT 1", "VIEW", "use WITH");
    assert_refused("DROP DATABASE d", "DATABASE", "one database");
    assert_refused("ALTER TABLE t ADD COLUMN a INT", "ADD", "cannot be altered yet");
    assert_refused("", "", "no statement");
    assert_refused("42", "42", "expected a statement");
}

#[test]
fn mistakes_in_a_table_point_at_the_word() {
    assert_refused("CREATE TABEL t (a INT)", "TABEL", "did you mean TABLE?");
    assert_refused(
        "CREATE TABLE t (a BIGINTT)",
        "BIGINTT",
        "no type called 'BIGINTT'; did you mean BIGINT?",
    );
    assert_refused("CREATE TABLE t (a INT,\n  b STRNG)", "STRNG", "did you mean STRING?");
    assert_refused("CREATE TABLE t (a JSONB)", "JSONB", "VARCHAR takes any text");
    assert_refused("CREATE TABLE t (a DECIMAL(50, 2))", "50", "1 to 38 digits");
    assert_refused("CREATE TABLE t (a DECIMAL(5, 9))", "9", "cannot be behind the point");
    assert_refused("CREATE TABLE t (a TIMESTAMP WITH TIME ZONE)", "WITH", "UTC");
    assert_refused("CREATE TABLE t (a DOUBLE, a INT)", "a", "declared twice");
    assert_refused("CREATE TABLE t (_offset INT)", "_offset", "every table has by itself");
    assert_refused(
        "CREATE TABLE t (id INT) ORDER BY (ids)",
        "ids",
        "no column 'ids'; did you mean id?",
    );
    assert_refused("CREATE TABLE t (id INT) PARTITION BY nope", "nope", "no column 'nope'");
    assert_refused(
        "CREATE TABLE t (d DATE) PARTITION BY date_trunc('dya', d)",
        "'dya'",
        "did you mean day?",
    );
    assert_refused(
        "CREATE TABLE t (id INT) WITH (shard = 4)",
        "shard",
        "did you mean shards?",
    );
    assert_refused("CREATE TABLE t (id INT) WITH (shards = 0)", "0", "1 to 1024");
    assert_refused(
        "CREATE TABLE t (id INT) WITH (flush_bytes = '64 apples')",
        "'64 apples'",
        "'64MiB'",
    );
    assert_refused(
        "CREATE TABLE t (id INT) WTIH (shards = 4)",
        "WTIH",
        "did you mean WITH?",
    );
    assert_refused("CREATE TABLE t (id INT PRIMARY KEY)", "PRIMARY", "no keys");
    assert_refused("CREATE TABLE t (id INT", "", "but the statement ends here");
    assert_refused("CREATE TABLE t ()", ")", "expected a column");
}

#[test]
fn other_mistakes_point_at_the_word() {
    assert_refused("SHOW TABELS", "TABELS", "did you mean TABLES?");
    assert_refused(
        "SET tidemill.consistncy = fresh",
        "tidemill.consistncy",
        "did you mean tidemill.consistency?",
    );
    assert_refused("SET tidemill.consistency = frsh", "frsh", "did you mean fresh?");
    assert_refused("SELECT 1; SELECT 2", "SELECT", "one statement at a time");
    assert_refused("DROP TABLE t; DROP TABLE u", "DROP", "one statement at a time");
    assert_refused("SELECT * FORM t", "FORM", "did you mean FROM?");
    assert_refused("SELECT a\nFROM t\nWHER b = 1", "WHER", "did you mean WHERE?");
    assert_refused("SELECT 'abc", "'", "unterminated string");
    assert_refused("SELECT (1", "", "the statement ends here");
}

/// A small generator; what it gives depends on its seed alone.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

#[test]
fn garbled_statements_are_refused_with_a_place_and_nothing_worse() {
    let statements = [
        "CREATE TABLE IF NOT EXISTS t ( a BIGINT NOT NULL DEFAULT - 1 , \"b c\" STRUCT < x INT [ ] , y MAP < VARCHAR , ARRAY < DATE >> > ) ORDER BY ( a ) PARTITION BY date_trunc ( 'day' , a ) WITH ( shards = 4 , flush_age = '2s' ) ;",
        "CREATE PIPE p INTO t FROM KAFKA ( brokers = 'a:1' , topic = 'x' , header . \"h\" = 'c' , timestamp_unit . a = 's' , records = 'many' )",
        "SELECT a [ 1 ] , sum ( b ) FROM t WHERE c = 'x' GROUP BY 1 ORDER BY 2 LIMIT 3",
        "SHOW PARTITIONS FROM p",
        "SET tidemill.consistency = 'fresh'",
    ];
    let words: Vec<&str> = statements.iter().flat_map(|statement| statement.split(' ')).collect();
    let mut random = Random(1);
    let mut refused = 0;
    for _ in 0..20_000 {
        let mut statement: Vec<&str> = statements[random.below(statements.len())].split(' ').collect();
        for _ in 0..1 + random.below(3) {
            let at = random.below(statement.len());
            match random.below(4) {
                0 if statement.len() > 1 => _ = statement.remove(at),
                1 => statement[at] = words[random.below(words.len())],
                2 => statement.insert(at, words[random.below(words.len())]),
                _ => statement.truncate(at + 1),
            }
        }
        let sql = statement.join(" ");
        let outcome = Words::of(&sql).and_then(|words| parse(&words));
        if let Err(error) = outcome {
            assert!(!error.message.is_empty() && error.place.is_some(), "{sql}: {error:?}");
            refused += 1;
        }
    }
    assert!(refused > 5_000, "{refused}");
}
