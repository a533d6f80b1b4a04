//! The clients of the model: each operation begins, has its effect at one moment, and ends; others do the same in between.

use super::Model;
use super::cluster::{NODES, PARTITIONS, Slot, TOPIC};
use crate::history::{Kind, Who};
use rand::Rng;
use serde_json::{Value, json};

/// Keys of the counter; each has a producer of its own, so that what it sends stays in order.
const KEYS: u64 = 7;
/// Readers of each level.
const READERS: u64 = 2;
const LEVELS: [&str; 3] = ["all", "leader", "none"];

/// An operation that has begun.
pub struct Pending {
    process: u64,
    f: &'static str,
    asked: Value,
    node: Option<String>,
    /// What came of it, once it has had its effect.
    done: Option<Value>,
    /// Who does nothing else meanwhile.
    who: String,
    /// How it ends.
    ends: Kind,
    /// Its client has given up, and it may still happen.
    is_late: bool,
}

impl Model {
    /// An operation goes on: has its effect, or ends.
    pub fn advance(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let at = self.chance.random_range(0..self.pending.len());
        let mut pending = self.pending.swap_remove(at);
        let has_effect = match pending.ends {
            Kind::Fail => false,
            // Nobody knows: it may or may not.
            Kind::Info => pending.done.is_none() && self.one_in(2),
            Kind::Ok | Kind::Invoke => pending.done.is_none(),
        };
        if has_effect {
            let done = self.effect(&pending);
            // A comparison that did not hold has changed nothing.
            pending.ends = if done.is_null() { Kind::Fail } else { pending.ends };
            pending.done = Some(done);
            if !pending.is_late {
                self.pending.push(pending);
            }
            return;
        }
        if pending.is_late {
            return;
        }
        let may_come_late = pending.ends == Kind::Info && pending.done.is_none() && pending.f != "produce";
        let late = (may_come_late && self.one_in(2)).then(|| Pending {
            asked: pending.asked.clone(),
            node: pending.node.clone(),
            done: None,
            who: String::new(),
            is_late: true,
            ..pending
        });
        self.pending.extend(late);
        let value = match pending.ends {
            Kind::Ok => pending.done.unwrap_or_default(),
            _ => pending.asked,
        };
        self.script.entry(
            Who::Process(pending.process),
            pending.ends,
            pending.f,
            value,
            pending.node,
        );
    }

    fn begin_operation(&mut self, who: String, f: &'static str, asked: Value, node: Option<String>) {
        let ends = match self.chance.random_range(0..30) {
            0 => Kind::Fail,
            1 => Kind::Info,
            _ => Kind::Ok,
        };
        let process = self.script.process();
        self.script
            .entry(Who::Process(process), Kind::Invoke, f, asked.clone(), node.clone());
        self.pending.push(Pending {
            process,
            f,
            asked,
            node,
            done: None,
            who,
            ends,
            is_late: false,
        });
    }

    fn is_busy(&self, who: &str) -> bool {
        self.pending.iter().any(|pending| pending.who == who)
    }

    pub fn produce(&mut self) {
        let key = self.chance.random_range(0..KEYS);
        let who = format!("producer {key}");
        if self.is_busy(&who) {
            return;
        }
        self.ids += 1;
        let bad = self.one_in(40);
        let record = json!({
            "topic": TOPIC, "partition": key as usize % PARTITIONS, "key": format!("k{key}"), "id": self.ids, "seq": self.ids, "bad": bad,
        });
        self.begin_operation(who, "produce", record, None);
    }

    pub fn transact(&mut self) {
        if self.is_busy("transactions") {
            return;
        }
        let count = self.chance.random_range(1..5);
        let records: Vec<Value> = (0..count)
            .map(|_| {
                self.ids += 1;
                json!([self.chance.random_range(0..PARTITIONS), self.ids])
            })
            .collect();
        let commit = !self.one_in(4);
        let asked = json!({ "topic": TOPIC, "records": records, "commit": commit });
        self.begin_operation("transactions".to_owned(), "transaction", asked, None);
    }

    pub fn write(&mut self) {
        let level = self.chance.random_range(0..LEVELS.len());
        let who = format!("w{level}");
        if self.is_busy(&who) {
            return;
        }
        let rows: Vec<u64> = (0..self.chance.random_range(1..4))
            .map(|_| {
                self.values += 1;
                self.values
            })
            .collect();
        let node = NODES[self.chance.random_range(0..NODES.len())].to_owned();
        let asked = json!({ "table": "direct", "writer": who, "acks": LEVELS[level], "rows": rows });
        self.begin_operation(who, "write", asked, Some(node));
    }

    pub fn read(&mut self) {
        let reader = self.chance.random_range(0..2 * READERS);
        let who = format!("reader {reader}");
        if self.is_busy(&who) {
            return;
        }
        let consistency = if reader < READERS { "fresh" } else { "committed" };
        let node = NODES[self.chance.random_range(0..NODES.len())].to_owned();
        let asked =
            json!({ "table": TOPIC, "consistency": consistency, "reader": reader, "floor": self.cluster.floor() });
        self.begin_operation(who, "read", asked, Some(node));
    }

    pub fn register(&mut self) {
        let client = self.chance.random_range(0..4);
        let who = format!("registers {client}");
        if self.is_busy(&who) {
            return;
        }
        let key = format!("r{}", self.chance.random_range(0..3));
        let held = self.cluster.registers.get(&key).cloned().unwrap_or_default();
        self.values += 1;
        let (f, asked) = match self.chance.random_range(0..4) {
            0 => ("set", json!({ "key": key, "value": self.values })),
            1 => ("cas", json!({ "key": key, "from": held, "to": self.values })),
            _ => ("get", json!({ "key": key })),
        };
        self.begin_operation(who, f, asked, None);
    }

    /// An operator does something to a partition, or to all.
    pub fn operate(&mut self) {
        if self.is_busy("operator") {
            return;
        }
        let partition = self.chance.random_range(0..PARTITIONS);
        let sql = match self.chance.random_range(0..6) {
            0 => format!("ALTER PIPE {TOPIC} RESET OFFSETS TO EARLIEST PARTITION ({partition}) KEEP ROWS"),
            1 => format!("ALTER PIPE {TOPIC} RESET OFFSETS TO EARLIEST PARTITION ({partition}) DELETE ROWS"),
            2 => format!("ALTER PIPE {TOPIC} PAUSE"),
            _ => format!("ALTER PIPE {TOPIC} RESUME"),
        };
        self.begin_operation("operator".to_owned(), "operate", json!({ "sql": sql }), None);
    }

    /// The moment at which an operation happens.
    fn effect(&mut self, pending: &Pending) -> Value {
        let asked = &pending.asked;
        let number = |value: &Value| value.as_u64().unwrap_or_default();
        match pending.f {
            "produce" => {
                let (partition, id) = (number(&asked["partition"]) as usize, number(&asked["id"]));
                let slot = if asked["bad"] == true {
                    Slot::Bad(id)
                } else {
                    Slot::Record(id)
                };
                let mut answer = asked.clone();
                answer["offset"] = json!(self.append(partition, slot));
                answer
            }
            "transaction" => self.finish_transaction(asked),
            "write" => {
                let (writer, acks) = (
                    asked["writer"].as_str().unwrap_or_default(),
                    asked["acks"].as_str().unwrap_or_default(),
                );
                for row in asked["rows"].as_array().into_iter().flatten() {
                    let arrives = acks != "none" || !self.one_in(10);
                    if arrives {
                        self.cluster
                            .store(writer, number(row), acks, pending.node.as_deref().unwrap_or_default());
                    } else {
                        self.cluster.lost_rows += 1;
                    }
                }
                asked.clone()
            }
            "read" => {
                let fresh = asked["consistency"] == "fresh";
                let mut answer = asked.clone();
                answer["version"] = json!(self.cluster.version);
                answer["partitions"] = self.cluster.count(fresh);
                answer
            }
            "operate" => {
                let sql = asked["sql"].as_str().unwrap_or_default();
                let partition = (0..PARTITIONS).find(|p| sql.contains(&format!("({p})")));
                if let Some(partition) = partition {
                    self.cluster.reset(partition, sql.ends_with("KEEP ROWS"));
                }
                asked.clone()
            }
            _ => self.at_register(pending),
        }
    }

    fn append(&mut self, partition: usize, slot: Slot) -> u64 {
        let log = &mut self.cluster.partitions[partition].log;
        log.push(slot);
        log.len() as u64 - 1
    }

    fn finish_transaction(&mut self, asked: &Value) -> Value {
        let commit = asked["commit"] == true;
        let mut records = Vec::new();
        let mut touched = Vec::new();
        for record in asked["records"].as_array().into_iter().flatten() {
            let (partition, id) = (
                record[0].as_u64().unwrap_or_default() as usize,
                record[1].as_u64().unwrap_or_default(),
            );
            let offset = self.append(partition, if commit { Slot::Record(id) } else { Slot::Nothing });
            records.push(json!([partition, offset, id]));
            touched.push(partition);
        }
        touched.sort_unstable();
        touched.dedup();
        for partition in touched {
            self.append(partition, Slot::Nothing);
        }
        json!({ "records": records, "commit": commit })
    }

    fn at_register(&mut self, pending: &Pending) -> Value {
        let asked = &pending.asked;
        let key = asked["key"].as_str().unwrap_or_default().to_owned();
        let held = self.cluster.registers.entry(key.clone()).or_default();
        match pending.f {
            "set" => *held = asked["value"].clone(),
            "cas" if *held == asked["from"] => *held = asked["to"].clone(),
            "cas" => return Value::Null,
            _ => return json!({ "key": key, "value": held }),
        }
        asked.clone()
    }
}
