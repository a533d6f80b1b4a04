//! Tools to forge a history: find things in it by chance, and change them.

use crate::history::{Entry, Kind, Who};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;

/// See the module's page.
pub struct Forge<'h> {
    pub entries: &'h mut Vec<Entry>,
    pub chance: StdRng,
}

/// A row in a note: the entry and its place there.
#[derive(Clone, Copy, Debug)]
pub struct At {
    pub entry: usize,
    pub place: usize,
}

impl<'h> Forge<'h> {
    pub fn new(seed: u64, entries: &'h mut Vec<Entry>) -> Self {
        // Not the stream that the history was made of.
        let chance = StdRng::seed_from_u64(seed ^ 0x00f0_4a6e);
        Self { entries, chance }
    }

    /// Entries of an operation or a note, with how they ended.
    pub fn all(&self, f: &str, kind: Kind) -> Vec<usize> {
        let is = |e: &Entry| e.f == f && e.kind == kind;
        (0..self.entries.len()).filter(|at| is(&self.entries[*at])).collect()
    }

    /// One of them.
    pub fn one<T: Clone>(&mut self, of: &[T]) -> Option<T> {
        of.choose(&mut self.chance).cloned()
    }

    pub fn value(&mut self, entry: usize) -> &mut Value {
        &mut self.entries[entry].value
    }

    /// All rows that notes tell, of the topic or of a writer.
    pub fn rows(&self, direct: bool) -> Vec<At> {
        let notes = self
            .all("rows", Kind::Info)
            .into_iter()
            .filter(|at| self.entries[*at].value.get("writer").is_some() == direct);
        notes
            .flat_map(|entry| {
                let count = self.entries[entry].value["rows"].as_array().map_or(0, Vec::len);
                (0..count).map(move |place| At { entry, place })
            })
            .collect()
    }

    pub fn row(&mut self, at: At) -> &mut Value {
        &mut self.entries[at.entry].value["rows"][at.place]
    }

    /// A number in a row of the topic: 0 is the partition, 1 the offset, 2 the id.
    pub fn field(&self, at: At, field: usize) -> u64 {
        self.entries[at.entry].value["rows"][at.place][field]
            .as_u64()
            .unwrap_or_default()
    }

    /// The row of a writer.
    pub fn written(&self, at: At) -> (String, u64) {
        let note = &self.entries[at.entry].value;
        let writer = note["writer"].as_str().unwrap_or_default().to_owned();
        (writer, note["rows"][at.place].as_u64().unwrap_or_default())
    }

    /// Takes a row out of its note.
    pub fn remove(&mut self, at: At) {
        if let Some(rows) = self.entries[at.entry].value["rows"].as_array_mut() {
            rows.remove(at.place);
        }
    }

    /// Puts one more row into a note.
    pub fn add(&mut self, entry: usize, row: Value) {
        if let Some(rows) = self.entries[entry].value["rows"].as_array_mut() {
            rows.push(row);
        }
    }

    /// Takes an entry out, without a trace.
    pub fn cut(&mut self, entry: usize) {
        self.entries.remove(entry);
        self.number();
    }

    /// Takes all entries out that are as said; gives how many.
    pub fn cut_all(&mut self, is: impl Fn(&Entry) -> bool) -> usize {
        let before = self.entries.len();
        self.entries.retain(|e| !is(e));
        self.number();
        before - self.entries.len()
    }

    fn number(&mut self) {
        for (at, entry) in self.entries.iter_mut().enumerate() {
            entry.index = at as u64;
        }
    }

    /// Everything behind an entry comes later.
    pub fn delay_behind(&mut self, entry: usize, ms: u64) {
        for later in self.entries.iter_mut().skip(entry + 1) {
            later.time += ms * 1_000_000;
            later.wall_ms += ms;
        }
    }

    /// The beginning of the operation that ends at an entry.
    pub fn begin_of(&self, end: usize) -> Option<usize> {
        let process = &self.entries[end].process;
        (0..end).rev().find(|at| self.entries[*at].process == *process)
    }

    /// True if the nemesis or an operator did something like this.
    pub fn happened(&self, f: &str, text: &str) -> bool {
        self.entries
            .iter()
            .any(|e| e.f == f && e.kind != Kind::Fail && e.value.to_string().contains(text))
    }

    /// A number up to `most`.
    pub fn up_to(&mut self, most: u64) -> u64 {
        self.chance.random_range(1..=most.max(1))
    }

    /// Notes by the monitor at the end of the history.
    pub fn note(&mut self, f: &str, value: Value) {
        let Some(last) = self.entries.last().cloned() else {
            return;
        };
        self.entries.push(Entry {
            index: last.index + 1,
            time: last.time + 1,
            process: Who::Named("monitor".to_owned()),
            kind: Kind::Info,
            f: f.to_owned(),
            value,
            node: None,
            error: None,
            ..last
        });
    }
}
