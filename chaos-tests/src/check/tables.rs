//! What the tables hold in the end.

use super::decode::{Rejects, Rows};
use std::collections::BTreeMap;

/// A row of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    pub offset: u64,
    pub id: Option<u64>,
    /// The entry that says so.
    pub entry: usize,
}

/// What a table holds of a topic.
#[derive(Clone, Debug, Default)]
pub struct Filled {
    /// By partition, by offset.
    pub rows: BTreeMap<u32, Vec<Row>>,
    /// What was set aside: by partition, offset and entry.
    pub rejects: BTreeMap<u32, Vec<(u64, usize)>>,
}

impl Filled {
    /// The rows at an offset.
    pub fn at(&self, partition: u32, offset: u64) -> &[Row] {
        let rows = self.rows.get(&partition).map_or(&[][..], Vec::as_slice);
        let from = rows.partition_point(|row| row.offset < offset);
        let to = rows.partition_point(|row| row.offset <= offset);
        &rows[from..to]
    }

    /// The entry that says that the record at this offset was set aside.
    pub fn rejected(&self, partition: u32, offset: u64) -> Option<usize> {
        let rejects = self.rejects.get(&partition)?;
        let at = rejects.partition_point(|(o, _)| *o < offset);
        rejects.get(at).filter(|(o, _)| *o == offset).map(|(_, entry)| *entry)
    }

    /// How many rows it has of a partition.
    pub fn count(&self, partition: u32) -> u64 {
        self.rows.get(&partition).map_or(0, Vec::len) as u64
    }

    /// How many records of a partition were set aside.
    pub fn count_rejected(&self, partition: u32) -> u64 {
        self.rejects.get(&partition).map_or(0, Vec::len) as u64
    }
}

/// See the module's page.
#[derive(Default)]
pub struct Tables {
    /// By table and topic.
    pub filled: BTreeMap<(String, String), Filled>,
    /// What programs wrote themselves: by table and writer, numbers and entries.
    pub direct: BTreeMap<(String, String), Vec<(u64, usize)>>,
    /// What was set aside, of which table, of which topic if that is said.
    rejects: Vec<(usize, Rejects)>,
}

impl Tables {
    pub fn rows(&mut self, at: usize, rows: Rows) {
        match rows {
            Rows::OfTopic { table, topic, rows } => {
                let of = self.filled.entry((table, topic)).or_default();
                for (partition, offset, id) in rows {
                    of.rows
                        .entry(partition)
                        .or_default()
                        .push(Row { offset, id, entry: at });
                }
            }
            Rows::Direct { table, writer, rows } => {
                let of = self.direct.entry((table, writer)).or_default();
                of.extend(rows.into_iter().map(|row| (row, at)));
            }
        }
    }

    pub fn rejects(&mut self, at: usize, rejects: Rejects) {
        self.rejects.push((at, rejects));
    }

    /// Puts everything in order once all is there, and says what does not fit together.
    pub fn finish(&mut self) -> Vec<String> {
        let mut problems = Vec::new();
        for (at, rejects) in std::mem::take(&mut self.rejects) {
            let mut of = self.filled.iter_mut().filter(|((table, topic), _)| {
                *table == rejects.table && rejects.topic.as_ref().is_none_or(|named| named == topic)
            });
            match (of.next(), of.next()) {
                (Some((_, filled)), None) => {
                    for (partition, offset) in rejects.rows {
                        filled.rejects.entry(partition).or_default().push((offset, at));
                    }
                }
                _ if rejects.rows.is_empty() => {}
                (None, _) => problems.push(format!(
                    "entry {at} has rejects of {}, whose rows nobody told",
                    rejects.table
                )),
                _ => problems.push(format!(
                    "entry {at} does not say of which topic of {} its rejects are",
                    rejects.table
                )),
            }
        }
        for filled in self.filled.values_mut() {
            filled.rows.values_mut().for_each(|rows| rows.sort_unstable());
            filled.rejects.values_mut().for_each(|rejects| rejects.sort_unstable());
        }
        self.direct.values_mut().for_each(|rows| rows.sort_unstable());
        problems
    }
}
