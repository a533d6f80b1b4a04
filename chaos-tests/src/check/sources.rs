//! What the topics hold in truth, and what became of every record that was sent.

use super::decode::{Log, LogLost, Produce, Transaction};
use super::facts::Operation;
use crate::history::Kind;
use std::collections::{BTreeMap, HashMap};

/// A partition of a topic.
pub type Place = (String, u32);

/// What its producer knows of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Kafka acknowledged it, at this offset if that was said.
    Acknowledged(Option<u64>),
    /// It was never sent, or refused.
    Refused,
    /// Its transaction was aborted.
    Aborted,
    /// Nobody knows.
    Unknown,
}

/// A record that was sent.
#[derive(Clone, Debug)]
pub struct Sent {
    pub topic: Option<String>,
    pub partition: u32,
    pub key: Option<String>,
    pub seq: Option<u64>,
    /// Whether it can be decoded, where that is said.
    pub bad: Option<bool>,
    pub fate: Fate,
    /// The entry that says so.
    pub entry: usize,
}

/// What a partition of a topic holds in the end.
#[derive(Clone, Debug, Default)]
pub struct PartitionLog {
    pub topic_id: Option<String>,
    pub low: u64,
    pub high: u64,
    pub compacted: bool,
    /// Offset, id and the entry that says so, in order.
    pub records: Vec<(u64, Option<u64>, usize)>,
    /// Records of topics of the same name that are gone.
    pub former: Vec<(u64, Option<u64>)>,
    /// Offsets that the harness destroyed, `from..to`.
    pub destroyed: Vec<(u64, u64)>,
    /// The log was read.
    pub known: bool,
}

impl PartitionLog {
    /// The record at `offset`.
    pub fn at(&self, offset: u64) -> Option<&(u64, Option<u64>, usize)> {
        let at = self.records.partition_point(|(o, ..)| *o < offset);
        self.records.get(at).filter(|(o, ..)| *o == offset)
    }

    /// How many records `offset` may have had, one after the other.
    pub fn lives(&self, offset: u64) -> usize {
        let destroyed = self
            .destroyed
            .iter()
            .filter(|(from, to)| (*from..*to).contains(&offset));
        1 + destroyed.count() + usize::from(!self.former.is_empty())
    }

    /// True if the harness destroyed what was at `offset`.
    pub fn is_destroyed(&self, offset: u64) -> bool {
        self.destroyed.iter().any(|(from, to)| (*from..*to).contains(&offset))
    }

    /// True if a record may have been at `offset` that is not there any more.
    pub fn may_have_held(&self, offset: u64) -> bool {
        self.compacted || offset < self.low || self.is_destroyed(offset)
    }
}

/// See the module's page.
#[derive(Default)]
pub struct Sources {
    /// By id.
    pub sent: HashMap<u64, Sent>,
    /// By topic and partition.
    pub logs: BTreeMap<Place, PartitionLog>,
    problems: Vec<String>,
}

impl Sources {
    pub fn produce(&mut self, o: Operation, asked: Produce, answer: Option<Produce>) {
        let fate = match o.kind {
            Kind::Ok => Fate::Acknowledged(answer.as_ref().and_then(|a| a.offset)),
            Kind::Fail => Fate::Refused,
            Kind::Info | Kind::Invoke => Fate::Unknown,
        };
        let partition = answer.as_ref().map_or(asked.partition, |a| a.partition);
        let sent = Sent {
            topic: Some(asked.topic),
            partition,
            key: asked.key,
            seq: asked.seq,
            bad: asked.bad,
            fate,
            entry: o.end.unwrap_or(o.invoke),
        };
        self.send(asked.id, sent);
    }

    pub fn transaction(&mut self, o: Operation, asked: &Transaction, answer: Option<&Transaction>) {
        let said = answer.unwrap_or(asked);
        for record in &said.records {
            let (Some(Some(partition)), Some(Some(id))) = (record.first(), record.last()) else {
                self.problems
                    .push(format!("entry {}: a record without partition or id", o.invoke));
                continue;
            };
            let offset = if record.len() > 2 { record[1] } else { None };
            let fate = match o.kind {
                Kind::Ok if said.commit => Fate::Acknowledged(offset),
                Kind::Ok => Fate::Aborted,
                Kind::Fail => Fate::Refused,
                // Whoever never asks for a commit gets none.
                Kind::Info | Kind::Invoke if !asked.commit => Fate::Aborted,
                Kind::Info | Kind::Invoke => Fate::Unknown,
            };
            let sent = Sent {
                topic: said.topic.clone().or_else(|| asked.topic.clone()),
                partition: u32::try_from(*partition).unwrap_or(u32::MAX),
                key: None,
                seq: None,
                bad: None,
                fate,
                entry: o.end.unwrap_or(o.invoke),
            };
            self.send(*id, sent);
        }
    }

    fn send(&mut self, id: u64, sent: Sent) {
        let entry = sent.entry;
        if let Some(before) = self.sent.insert(id, sent) {
            let text = format!("id {id} was sent twice, in entries {} and {entry}", before.entry);
            self.problems.push(text);
        }
    }

    pub fn log(&mut self, at: usize, log: Log) {
        let of = self.logs.entry((log.topic, log.partition)).or_default();
        if of.known && log.topic_id.is_some() && log.topic_id != of.topic_id {
            let gone = std::mem::take(&mut of.records);
            of.former.extend(gone.into_iter().map(|(offset, id, _)| (offset, id)));
        }
        of.topic_id = log.topic_id;
        (of.low, of.high, of.known) = (log.low, log.high, true);
        of.compacted |= log.compacted;
        of.records
            .extend(log.records.into_iter().map(|(offset, id)| (offset, id, at)));
    }

    pub fn lost(&mut self, lost: LogLost) {
        let of = self.logs.entry((lost.topic, lost.partition)).or_default();
        of.destroyed.push((lost.from, lost.to));
    }

    /// Puts everything in order once all is there, and says what does not fit together.
    pub fn finish(&mut self) -> Vec<String> {
        let mut problems = std::mem::take(&mut self.problems);
        for ((topic, partition), log) in &mut self.logs {
            log.records.sort_unstable();
            log.former.sort_unstable();
            if !log.known {
                problems.push(format!("nobody read the log of {topic}/{partition}"));
            }
            if let Some(pair) = log.records.windows(2).find(|pair| pair[0].0 == pair[1].0) {
                let offset = pair[0].0;
                problems.push(format!("the log of {topic}/{partition} has offset {offset} twice"));
            }
            if let Some((offset, ..)) = log.records.iter().find(|(o, ..)| !(log.low..log.high).contains(o)) {
                problems.push(format!(
                    "the log of {topic}/{partition} has offset {offset} outside of its ends"
                ));
            }
        }
        problems.extend(self.contradictions());
        problems
    }

    /// What producers say and the log does not: then the truth is not known.
    fn contradictions(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let topics = |topic: &Option<String>| topic.clone();
        for (id, sent) in &self.sent {
            let (Some(topic), Fate::Acknowledged(Some(offset))) = (topics(&sent.topic), sent.fate) else {
                continue;
            };
            match self.logs.get(&(topic.clone(), sent.partition)) {
                None => problems.push(format!("nobody read the log of {topic}/{}", sent.partition)),
                Some(log) => {
                    let there = log
                        .at(offset)
                        .is_some_and(|(_, known, _)| known.is_none_or(|known| known == *id));
                    let former = log.former.iter().any(|(o, i)| *o == offset && *i == Some(*id));
                    if !there && !former && !log.compacted && !log.is_destroyed(offset) {
                        problems.push(format!(
                            "entry {}: Kafka acknowledged id {id} at {topic}/{}/{offset}, which its log does not have, and nobody \
                             says that it was destroyed",
                            sent.entry, sent.partition
                        ));
                    }
                }
            }
        }
        for ((topic, partition), log) in &self.logs {
            for (offset, id, _) in &log.records {
                let fate = id.and_then(|id| self.sent.get(&id)).map(|sent| sent.fate);
                if let Some(fate @ (Fate::Refused | Fate::Aborted)) = fate {
                    problems.push(format!(
                        "the log of {topic}/{partition} has at {offset} what was {fate:?}"
                    ));
                }
            }
        }
        problems.sort();
        problems.dedup();
        problems
    }
}
