//! What has an excuse, and what looks the same and has none.

use super::{Judgement, Run, judge};
use crate::history::{Entry, Kind, RunMeta, Who};
use serde_json::{Value, json};

/// A history by hand: entries are 100 ms apart.
#[derive(Default)]
struct Told {
    meta: RunMeta,
    entries: Vec<Entry>,
}

impl Told {
    fn new() -> Self {
        let nodes = ["n1", "n2", "n3"].map(str::to_owned).to_vec();
        Self {
            meta: RunMeta {
                nodes,
                ..RunMeta::default()
            },
            entries: Vec::new(),
        }
    }

    fn entry(&mut self, process: Who, kind: Kind, f: &str, value: Value) -> &mut Self {
        let index = self.entries.len() as u64;
        self.entries.push(Entry {
            index,
            time: index * 100_000_000,
            wall_ms: 0,
            process,
            kind,
            f: f.to_owned(),
            value,
            node: None,
            error: None,
        });
        self
    }

    fn note(&mut self, f: &str, value: Value) -> &mut Self {
        self.entry(Who::Named("monitor".into()), Kind::Info, f, value)
    }

    fn nemesis(&mut self, f: &str, value: Value) -> &mut Self {
        self.entry(Who::Named("nemesis".into()), Kind::Info, f, value)
    }

    fn ended(&mut self, f: &str, asked: Value, kind: Kind, answer: Value) -> &mut Self {
        let process = Who::Process(self.entries.len() as u64);
        self.entry(process.clone(), Kind::Invoke, f, asked);
        self.entry(process, kind, f, answer)
    }

    fn ok(&mut self, f: &str, value: Value) -> &mut Self {
        self.ended(f, value.clone(), Kind::Ok, value)
    }

    /// Records with these offsets and ids, acknowledged.
    fn produced(&mut self, records: &[(u64, u64)]) -> &mut Self {
        for (offset, id) in records {
            self.ok(
                "produce",
                json!({ "topic": "t", "partition": 0, "key": "k", "id": id, "seq": id, "offset": offset }),
            );
        }
        self
    }

    fn log(&mut self, high: u64, records: &[(u64, u64)]) -> &mut Self {
        self.note(
            "log",
            json!({ "topic": "t", "partition": 0, "low": 0, "high": high, "records": records }),
        )
    }

    fn rows(&mut self, rows: &[(u64, u64)]) -> &mut Self {
        let rows: Vec<Value> = rows.iter().map(|(offset, id)| json!([0, offset, id])).collect();
        self.note("rows", json!({ "table": "t", "topic": "t", "rows": rows }))
    }

    fn read(&mut self, consistency: &str, rows: u64) -> &mut Self {
        let partitions = json!({ "0": { "rows": rows, "distinct": rows, "max_offset": rows as i64 - 1 } });
        self.ok(
            "read",
            json!({ "reader": 1, "table": "t", "consistency": consistency, "partitions": partitions }),
        )
    }

    fn judge(&mut self) -> Judgement {
        judge(&Run::new(self.meta.clone(), self.entries.clone()))
    }

    /// What a checker says of it.
    fn word(&mut self, checker: &str) -> &'static str {
        let judgement = self.judge();
        judgement
            .outcomes
            .iter()
            .find(|o| o.name == checker)
            .map_or("no such checker", |o| o.word())
    }
}

#[test]
fn a_record_may_be_missing_where_its_log_was_destroyed() {
    let run = |from: u64| {
        let mut told = Told::new();
        told.produced(&[(0, 1), (1, 2)])
            .log(2, &[(0, 1), (1, 2)])
            .rows(&[(0, 1)]);
        told.nemesis(
            "log-lost",
            json!({ "topic": "t", "partition": 0, "from": from, "to": from + 1, "why": "cut" }),
        );
        told.word("lost")
    };
    assert_eq!((run(1), run(0)), ("passed", "failed"));
}

#[test]
fn a_record_may_be_missing_where_an_operator_skipped_it_and_the_ledger_says_so() {
    let run = |lost: u64, sql: &str| {
        let mut told = Told::new();
        told.produced(&[(0, 1), (1, 2)])
            .log(2, &[(0, 1), (1, 2)])
            .rows(&[(1, 2)]);
        told.ok("operate", json!({ "sql": sql }));
        told.note(
            "ledger",
            json!({ "pipe": "t", "partition": 0, "incarnation": 1, "passed": 2, "delivered": 2 - lost, "absent": 0, "lost": lost,
                    "stored": 2 - lost, "rejected": 0, "filtered": 0, "balanced": true }),
        );
        told.word("lost")
    };
    assert_eq!(run(1, "ALTER PIPE t RESET OFFSETS TO (0 = 1)"), "passed");
    assert_eq!(run(0, "ALTER PIPE t RESET OFFSETS TO (0 = 1)"), "failed");
    assert_eq!(run(1, "ALTER PIPE t RESET OFFSETS TO (3 = 1)"), "failed");
    assert_eq!(run(1, "ALTER PIPE t PAUSE"), "failed");
}

#[test]
fn a_row_whose_record_was_compacted_is_no_phantom() {
    let run = |compacted: bool, id: u64| {
        let mut told = Told::new();
        told.produced(&[(0, 1), (1, 2)]).rows(&[(0, id), (1, 2)]);
        told.note(
            "log",
            json!({ "topic": "t", "partition": 0, "low": 0, "high": 2, "compacted": compacted, "records": [[1, 2]] }),
        );
        told.word("phantom")
    };
    assert_eq!(
        (run(true, 1), run(false, 1), run(true, 9)),
        ("passed", "failed", "failed")
    );
}

#[test]
fn rows_may_be_there_again_where_an_operator_keeps_them() {
    let run = |sql: &str| {
        let mut told = Told::new();
        told.produced(&[(0, 1)])
            .ok("operate", json!({ "sql": sql }))
            .log(1, &[(0, 1)])
            .rows(&[(0, 1), (0, 1)]);
        told.word("duplicated")
    };
    assert_eq!(run("ALTER PIPE t RESET OFFSETS TO EARLIEST KEEP ROWS"), "passed");
    assert_eq!(
        run("ALTER PIPE t RESET OFFSETS TO EARLIEST PARTITION (1) KEEP ROWS"),
        "failed"
    );
    assert_eq!(run("ALTER PIPE t RESET OFFSETS TO EARLIEST DELETE ROWS"), "failed");
}

#[test]
fn a_topic_that_was_created_again_has_had_two_records_at_an_offset() {
    let run = |rows: &[(u64, u64)]| {
        let mut told = Told::new();
        let log = |id: &str, record: u64| json!({ "topic": "t", "topic_id": id, "partition": 0, "low": 0, "high": 1, "records": [[0, record]] });
        told.produced(&[(0, 1), (0, 2)])
            .note("log", log("a", 1))
            .note("log", log("b", 2))
            .rows(rows);
        (told.word("duplicated"), told.word("phantom"))
    };
    assert_eq!(run(&[(0, 1), (0, 2)]), ("passed", "passed"));
    assert_eq!(run(&[(0, 2), (0, 2)]), ("failed", "passed"));
    assert_eq!(run(&[(0, 2), (0, 3)]), ("passed", "failed"));
}

#[test]
fn rows_that_go_back_are_excused_by_a_deletion_meanwhile_only() {
    let run = |sql: &str, kind: Kind| {
        let mut told = Told::new();
        told.read("committed", 5)
            .ended("operate", json!({ "sql": sql }), kind, json!({ "sql": sql }))
            .read("committed", 2);
        told.word("reads")
    };
    let delete = "ALTER PIPE t RESET OFFSETS TO EARLIEST DELETE ROWS";
    assert_eq!(
        (run(delete, Kind::Ok), run(delete, Kind::Info), run(delete, Kind::Fail)),
        ("passed", "passed", "failed")
    );
    assert_eq!(run("ALTER PIPE t PAUSE", Kind::Ok), "failed");
    assert_eq!(run("DROP TABLE other", Kind::Ok), "failed");
    let mut late = Told::new();
    late.ok("operate", json!({ "sql": delete }))
        .read("committed", 5)
        .read("committed", 2);
    assert_eq!(late.word("reads"), "failed", "it was over before");
}

#[test]
fn a_fresh_read_may_lose_sight_of_rows_that_were_not_committed() {
    let mut told = Told::new();
    assert_eq!(told.read("fresh", 5).read("fresh", 2).word("reads"), "passed");
    let mut told = Told::new();
    assert_eq!(told.read("committed", 5).read("committed", 2).word("reads"), "failed");
}

#[test]
fn what_a_leader_lost_needs_a_fault_of_that_leader_before_it_was_committed() {
    let run = |fault: &str, node: &str, before: bool, pause: usize| {
        let mut told = Told::new();
        // The table's other shard, and another table, have other leaders; a node came later.
        let shards = [("d/0", "n2"), ("d/1", "n1"), ("e/0", "n3")];
        let shards = shards.map(|(shard, leader)| json!({ "shard": shard, "leader": leader, "epoch": 1 }));
        let sample = json!({ "lag": 0, "shards": shards, "nodes": { "n1": "Ready", "n2": "Ready", "n4": "Ready" } });
        let fault = |told: &mut Told| {
            let target = json!({ "node": node });
            told.nemesis(&format!("begin {fault}"), target.clone())
                .nemesis(&format!("end {fault}"), target);
        };
        told.note("sample", sample);
        if before {
            fault(&mut told);
        }
        let asked = json!({ "table": "d", "writer": "w", "acks": "leader", "rows": [1] });
        let mut answer = asked.clone();
        answer["shard"] = json!(0);
        told.ended("write", asked, Kind::Ok, answer);
        for _ in 0..pause {
            told.note("nothing", Value::Null);
        }
        if !before {
            fault(&mut told);
        }
        told.note("rows", json!({ "table": "d", "writer": "w", "rows": [] }))
            .word("acknowledged")
    };
    assert_eq!(run("lose-disk", "n2", false, 0), "passed");
    assert_eq!(run("lose-disk", "n2", true, 0), "failed");
    for other in ["n1", "n3", "n4"] {
        assert_eq!(run("lose-disk", other, false, 0), "failed", "{other}");
    }
    // After ten seconds it is committed.
    assert_eq!(run("lose-disk", "n2", false, 99), "passed");
    assert_eq!(run("lose-disk", "n2", false, 100), "failed");
    assert_eq!(run("kill", "n2", false, 0), "failed");
    assert_eq!(run("power-cut", "n2", false, 0), "failed");
    assert_eq!(run("truncate-wal", "n2", false, 0), "passed");
    assert_eq!(run("corrupt-raft-log", "n2", false, 0), "passed");
}

#[test]
fn the_ledger_counts_what_writers_lost_and_nothing_else() {
    let run = |lost: u64, stored: u64| {
        let mut told = Told::new();
        let write = |rows: &[u64]| json!({ "table": "d", "writer": "w", "acks": "none", "rows": rows });
        told.ok("write", write(&[1, 2]));
        told.ended("write", write(&[3]), Kind::Info, write(&[3]));
        told.note("rows", json!({ "table": "d", "writer": "w", "rows": [2] }));
        told.note(
            "ledger",
            json!({
                "pipe": "(direct) d", "table": "d", "topic": "(direct)", "partition": 1, "passed": lost + stored,
                "delivered": stored, "absent": 0, "lost": lost, "stored": stored, "rejected": 0, "filtered": 0, "balanced": true,
            }),
        );
        (told.word("acknowledged"), told.word("ledger"))
    };
    // One is known to be missing, and another may have been sent.
    assert_eq!(run(1, 1), ("passed", "passed"));
    assert_eq!(run(2, 1), ("passed", "passed"));
    assert_eq!(run(0, 1), ("failed", "passed"));
    assert_eq!(run(3, 1), ("failed", "passed"));
    assert_eq!(run(1, 2), ("passed", "failed"));
}

#[test]
fn an_operation_is_asked_for_by_what_it_was_done_to() {
    let run = |required: &str, f: &str, value: Value| {
        let mut told = Told::new();
        told.meta.requires.ok.push(required.to_owned());
        told.ok(f, value).nemesis("healed", Value::Null);
        !doubts_of(&mut told).iter().any(|doubt| doubt.contains("ended well"))
    };
    let read = json!({ "table": "t", "consistency": "fresh", "partitions": {} });
    assert!(run("read", "read", read.clone()));
    assert!(run("read t", "read", read.clone()));
    assert!(!run("read u", "read", read.clone()));
    assert!(!run("get t", "read", read));
    let paused = json!({ "sql": "ALTER PIPE operated PAUSE" });
    assert!(run("operate operated", "operate", paused.clone()));
    assert!(!run("operate generation", "operate", paused));
    assert!(run(
        "set register",
        "set",
        json!({ "key": "register0.flush_rows", "value": 1 })
    ));
    let reset = json!({ "sql": "ALTER PIPE operated RESET OFFSETS TO EARLIEST" });
    assert!(run("operate operated RESET", "operate", reset.clone()));
    assert!(!run("operate operated SET", "operate", reset.clone()));
    assert!(!run("operate generation RESET", "operate", reset));
    let aborted = json!({ "topic": "t", "records": [], "commit": false });
    assert!(run("transaction t commit=false", "transaction", aborted.clone()));
    assert!(!run("transaction t commit=true", "transaction", aborted));
}

/// What a run lacks before it proves anything, if that is about operations or faults.
fn doubts_of(told: &mut Told) -> Vec<String> {
    let judgement = told.note("caught-up", Value::Null).judge();
    let coverage = judgement.outcomes.into_iter().find(|o| o.name == "coverage");
    let doubts = coverage.expect("a checker").doubts;
    let about = ["ended well", "happened", "struck", "wrote", "given to"];
    doubts
        .into_iter()
        .filter(|doubt| about.iter().any(|word| doubt.contains(word)))
        .collect()
}

#[test]
fn clients_that_are_silent_after_all_was_healed_prove_nothing() {
    let run = |after: bool| {
        let mut told = Told::new();
        told.meta.requires.ok_when_healed.push("produce t".to_owned());
        told.produced(&[(0, 1)]).nemesis("healed", Value::Null);
        if after {
            told.produced(&[(1, 2)]);
        }
        doubts_of(&mut told).len()
    };
    assert_eq!((run(false), run(true)), (1, 0));
}

#[test]
fn a_fault_that_nobody_felt_proves_nothing() {
    let run = |required: &str, tell: &dyn Fn(&mut Told)| {
        let mut told = Told::new();
        told.meta.requires.faults = vec![required.to_owned()];
        tell(&mut told);
        told.nemesis("healed", Value::Null);
        doubts_of(&mut told).len()
    };
    let fault = |told: &mut Told, name: &str, target: Value| {
        told.nemesis(&format!("begin {name}"), target.clone())
            .nemesis(&format!("end {name}"), target);
    };
    // Another topic was harmed.
    let expire = |topic: &'static str| move |told: &mut Told| fault(told, "retention", json!({ "topic": topic }));
    assert_eq!(run("retention t", &expire("u")), 1);
    assert_eq!(run("retention t", &expire("t")), 0);
    // No read failed.
    let fail_reads = |times: u64| {
        move |told: &mut Told| {
            fault(told, "read-errors", json!({ "node": "n1" }));
            told.note("struck", json!({ "fault": "read-errors", "times": times }));
        }
    };
    assert_eq!(run("read-errors", &fail_reads(0)), 1);
    assert_eq!(run("read-errors", &fail_reads(3)), 0);
    // Nobody wrote into what was added.
    let grow = |partition: u32| {
        move |told: &mut Told| {
            fault(told, "grow-topic", json!({ "topic": "t", "from": 1, "to": 2 }));
            let record = json!({ "topic": "t", "partition": partition, "key": "k", "id": 1, "seq": 1, "offset": 0 });
            told.ok("produce", record);
        }
    };
    assert_eq!(run("grow-topic t", &grow(0)), 1);
    assert_eq!(run("grow-topic t", &grow(1)), 0);
    // The log ends where it was cut.
    let elect = |high: u64| {
        move |told: &mut Told| {
            fault(told, "unclean-election", json!({ "topic": "t" }));
            told.note(
                "log-lost",
                json!({ "topic": "t", "partition": 0, "from": 5, "to": 9, "why": "unclean election" }),
            );
            let log = json!({ "topic": "t", "partition": 0, "low": 0, "high": high, "records": [] });
            told.note("log", log);
        }
    };
    assert_eq!(run("unclean-election t", &elect(5)), 1);
    assert_eq!(run("unclean-election t", &elect(6)), 0);
}

#[test]
fn what_a_leader_loses_is_the_end_of_its_log() {
    let run = |kept: &[u64], second: &str, epoch: u64| {
        let mut told = Told::new();
        let sample = |leader: &str, epoch: u64| json!({ "shards": [{ "shard": "d/0", "leader": leader, "epoch": epoch }], "nodes": {} });
        let write = |told: &mut Told, row: u64| {
            let asked = json!({ "table": "d", "writer": "w", "acks": "leader", "rows": [row] });
            let mut answer = asked.clone();
            answer["shard"] = json!(0);
            told.ended("write", asked, Kind::Ok, answer);
        };
        told.note("sample", sample("n1", 1));
        write(&mut told, 1);
        told.note("sample", sample(second, epoch));
        write(&mut told, 2);
        told.note("sample", sample(second, epoch));
        told.nemesis("begin lose-disk", json!("n1"))
            .nemesis("end lose-disk", json!("n1"));
        write(&mut told, 3);
        told.note("rows", json!({ "table": "d", "writer": "w", "rows": kept }))
            .word("acknowledged")
    };
    assert_eq!(run(&[3], "n1", 1), "passed");
    assert_eq!(run(&[1, 3], "n1", 1), "passed");
    assert_eq!(run(&[2, 3], "n1", 1), "failed");
    // Another one led by then, or nobody knows that it was the same term of office.
    assert_eq!(run(&[2, 3], "n2", 2), "passed");
    assert_eq!(run(&[2, 3], "n1", 2), "passed");
}

#[test]
fn what_a_writer_of_level_none_sent_may_be_missing() {
    let run = |acks: &str| {
        let mut told = Told::new();
        told.ok(
            "write",
            json!({ "table": "d", "writer": "w", "acks": acks, "rows": [1, 2] }),
        );
        told.note("rows", json!({ "table": "d", "writer": "w", "rows": [2] }))
            .word("acknowledged")
    };
    assert_eq!((run("none"), run("all")), ("passed", "failed"));
}

#[test]
fn a_fault_during_which_the_next_one_begins_is_not_held_against_what_came_later() {
    let run = |bound: f64, next: bool| {
        let mut told = Told::new();
        told.meta.bounds.insert("recovery_ms".to_owned(), bound);
        told.read("fresh", 1).nemesis("begin kill", json!("n1"));
        if next {
            told.nemesis("begin cut", json!("n2"));
        }
        told.note("nothing", Value::Null)
            .note("nothing", Value::Null)
            .read("fresh", 1);
        told.word("recovery")
    };
    assert_eq!((run(400.0, false), run(399.0, false)), ("passed", "failed"));
    // 100 ms until the next fault, and 400 ms from there.
    assert_eq!(
        (run(400.0, true), run(399.0, true), run(99.0, true)),
        ("passed", "failed", "failed")
    );
}

#[test]
fn a_run_that_is_not_there_is_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let (run, judgement) = super::folder(folder.path());
    assert!(run.is_none());
    assert_eq!(judgement.verdict.word(), "unknown");
    std::fs::write(folder.path().join("run.json"), "{\"name\": \"x\"}").unwrap();
    std::fs::write(folder.path().join("history.jsonl"), "{}\n{}\n").unwrap();
    assert_eq!(super::folder(folder.path()).1.verdict.word(), "unknown");
}
