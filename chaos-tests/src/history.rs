//! The history of a run: every operation, when it was invoked, when it ended and how, as one file that any checker can read.
//!
//! Operations are those of [Jepsen](https://github.com/jepsen-io/jepsen): a process invokes one, and it ends as `ok`, as `fail` (it
//! did not happen) or as `info` (nobody knows). A process whose operation ended as `info` is never heard of again; the next
//! operation has another process number. What the nemesis does, and what is sampled, is `info` of a process with a name.
//!
//! Everything is written at once as JSON Lines (`history.jsonl`) and as EDN (`history.edn`), so a run that ends badly has its
//! history, too. The order in the file is the order in which operations were invoked and ended, by one clock: that of the harness.

mod edn;
mod meta;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

pub use meta::{DESCRIPTION, Requires, RunMeta};

/// The name of the history in the folder of a run.
pub const JSON_LINES: &str = "history.jsonl";
/// The same for tools that read EDN.
pub const EDN: &str = "history.edn";

/// What an entry says of its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It begins.
    Invoke,
    /// It has happened.
    Ok,
    /// It has not happened, and never will.
    Fail,
    /// Nobody knows; or, of the nemesis and of samples: this is so.
    Info,
}

/// Who acts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Who {
    /// A client's process.
    Process(u64),
    /// `nemesis`, which breaks things, or `monitor`, which looks at them.
    Named(String),
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its place in the history, from 0 on.
    pub index: u64,
    /// Nanoseconds since the run began, by a clock that only goes forward.
    pub time: u64,
    /// Milliseconds since 1970, by the clock on the wall.
    pub wall_ms: u64,
    /// Who acts.
    pub process: Who,
    /// What it says.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The operation.
    pub f: String,
    /// What was asked, or what came of it.
    pub value: Value,
    /// The node that is asked first, and of what has happened, the one that answered; where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Why it failed, or why nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// See the module's page. Clones write to the same files.
#[derive(Clone)]
pub struct History {
    began: Instant,
    files: Arc<Mutex<Files>>,
}

struct Files {
    json_lines: File,
    edn: File,
    entries: u64,
    processes: u64,
    /// The first thing that could not be written.
    failed: Option<std::io::Error>,
}

impl History {
    /// Begins a history in `folder`.
    pub fn create(folder: &Path) -> anyhow::Result<Self> {
        let create = |name| File::create(folder.join(name)).with_context(|| format!("cannot write {name}"));
        let files = Files {
            json_lines: create(JSON_LINES)?,
            edn: create(EDN)?,
            entries: 0,
            processes: 0,
            failed: None,
        };
        Ok(Self {
            began: Instant::now(),
            files: Arc::new(Mutex::new(files)),
        })
    }

    /// A process that has not done anything.
    pub fn process(&self) -> Process {
        let number = self.files.lock().unwrap_or_else(PoisonError::into_inner).next_process();
        Process {
            history: self.clone(),
            number,
        }
    }

    /// The nemesis begins to break something; ended by [`Fault::end`], or when it is dropped.
    pub fn fault(&self, f: &str, target: Value) -> Fault {
        self.note("nemesis", &format!("begin {f}"), target.clone());
        Fault {
            history: self.clone(),
            f: f.to_owned(),
            target: Some(target),
        }
    }

    /// Somebody with a name (`monitor`, `nemesis`) says that something is so.
    pub fn note(&self, who: &str, f: &str, value: Value) {
        self.write(Who::Named(who.to_owned()), Kind::Info, f, value, None, None);
    }

    /// Ends it.
    ///
    /// # Errors
    /// If anything of it could not be written: then it proves nothing.
    pub fn finish(self) -> anyhow::Result<()> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        match files.failed.take() {
            Some(error) => Err(error).context("the history could not be written"),
            None => Ok(()),
        }
    }

    fn write(&self, process: Who, kind: Kind, f: &str, value: Value, node: Option<String>, error: Option<String>) {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = Entry {
            index: files.entries,
            // Under the lock, so that times do not go backwards in the file.
            time: self.began.elapsed().as_nanos() as u64,
            wall_ms: wall.as_millis() as u64,
            process,
            kind,
            f: f.to_owned(),
            value,
            node,
            error,
        };
        files.entries += 1;
        if let Err(error) = files.put(&entry) {
            files.failed.get_or_insert(error);
        }
    }
}

impl Files {
    fn next_process(&mut self) -> u64 {
        self.processes += 1;
        self.processes - 1
    }

    fn put(&mut self, entry: &Entry) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        self.json_lines.write_all(&line)?;
        self.edn.write_all(edn::line(entry).as_bytes())
    }
}

/// A process: does one thing after the other.
pub struct Process {
    history: History,
    number: u64,
}

impl Process {
    /// Begins an operation, which ends by one of the methods of what this gives; as `info` if that is dropped.
    pub fn invoke<'p>(&'p mut self, f: &'static str, value: Value, node: Option<&str>) -> Invoked<'p> {
        let node = node.map(str::to_owned);
        let who = Who::Process(self.number);
        self.history
            .write(who, Kind::Invoke, f, value.clone(), node.clone(), None);
        Invoked {
            process: self,
            f,
            node,
            asked: Some(value),
        }
    }
}

/// An operation under way.
#[must_use = "an operation ends as ok, fail or info"]
pub struct Invoked<'p> {
    process: &'p mut Process,
    f: &'static str,
    node: Option<String>,
    asked: Option<Value>,
}

impl Invoked<'_> {
    /// This node has answered, whichever was asked first.
    pub fn by(mut self, node: Option<&str>) -> Self {
        self.node = node.map(str::to_owned);
        self
    }

    /// It has happened, and this came of it.
    pub fn ok(mut self, value: Value) {
        self.asked = None;
        self.end(Kind::Ok, value, None);
    }

    /// It has not happened and never will.
    pub fn fail(mut self, why: impl Into<String>) {
        let asked = self.asked.take().unwrap_or_default();
        self.end(Kind::Fail, asked, Some(why.into()));
    }

    /// Nobody knows whether it has happened.
    pub fn info(mut self, why: impl Into<String>) {
        let asked = self.asked.take().unwrap_or_default();
        self.end(Kind::Info, asked, Some(why.into()));
    }

    fn end(&mut self, kind: Kind, value: Value, error: Option<String>) {
        let who = Who::Process(self.process.number);
        let history = &self.process.history;
        history.write(who, kind, self.f, value, self.node.take(), error);
        if kind == Kind::Info {
            self.process.number = history
                .files
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .next_process();
        }
    }
}

impl Drop for Invoked<'_> {
    fn drop(&mut self) {
        if let Some(asked) = self.asked.take() {
            self.end(Kind::Info, asked, Some("given up".to_owned()));
        }
    }
}

/// Something that is broken at the moment.
#[must_use = "a fault ends when this is dropped"]
pub struct Fault {
    history: History,
    f: String,
    target: Option<Value>,
}

impl Fault {
    /// It is mended.
    pub fn end(self) {}
}

impl Drop for Fault {
    fn drop(&mut self) {
        if let Some(target) = self.target.take() {
            self.history.note("nemesis", &format!("end {}", self.f), target);
        }
    }
}

/// Writes a history that is there already into `folder`, in both forms.
///
/// # Errors
/// If a file cannot be written.
pub fn write(folder: &Path, entries: &[Entry]) -> anyhow::Result<()> {
    let (mut json_lines, mut edn) = (Vec::new(), Vec::new());
    for entry in entries {
        serde_json::to_writer(&mut json_lines, entry)?;
        json_lines.push(b'\n');
        edn.extend_from_slice(edn::line(entry).as_bytes());
    }
    let put =
        |name, bytes: Vec<u8>| std::fs::write(folder.join(name), bytes).with_context(|| format!("cannot write {name}"));
    put(JSON_LINES, json_lines)?;
    put(EDN, edn)
}

/// Reads the history in `folder`.
///
/// # Errors
/// If a line of it is no entry. A last line that was cut off while it was written is left out.
pub fn read(folder: &Path) -> anyhow::Result<Vec<Entry>> {
    let path = folder.join(JSON_LINES);
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut lines = BufReader::new(file).split(b'\n').peekable();
    let mut entries = Vec::new();
    while let Some(line) = lines.next() {
        let line = line?;
        match serde_json::from_slice(&line) {
            Ok(entry) => entries.push(entry),
            Err(_) if lines.peek().is_none() => {}
            Err(error) => anyhow::bail!("line {} of {}: {error}", entries.len() + 1, path.display()),
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_process_that_does_not_know_is_never_heard_of_again() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::create(folder.path()).unwrap();
        let mut process = history.process();
        process.invoke("read", Value::Null, Some("n1")).ok(json!({ "rows": 3 }));
        process.invoke("write", json!([1]), None).info("timed out");
        drop(process.invoke("write", json!([2]), None));
        process.invoke("write", json!([3]), None).fail("refused");
        history.fault("kill", json!("n1")).end();
        history.finish().unwrap();

        let entries = read(folder.path()).unwrap();
        let said: Vec<(Kind, String)> = entries
            .iter()
            .map(|e| (e.kind, format!("{:?} {}", e.process, e.f)))
            .collect();
        let process = |n: u64, f: &str| format!("Process({n}) {f}");
        let expected = [
            (Kind::Invoke, process(0, "read")),
            (Kind::Ok, process(0, "read")),
            (Kind::Invoke, process(0, "write")),
            (Kind::Info, process(0, "write")),
            (Kind::Invoke, process(1, "write")),
            (Kind::Info, process(1, "write")),
            (Kind::Invoke, process(2, "write")),
            (Kind::Fail, process(2, "write")),
            (Kind::Info, "Named(\"nemesis\") begin kill".to_owned()),
            (Kind::Info, "Named(\"nemesis\") end kill".to_owned()),
        ];
        assert_eq!(said, expected);
        assert!(entries.is_sorted_by_key(|e| (e.index, e.time)));
        assert_eq!(entries[0].node.as_deref(), Some("n1"));
    }

    #[test]
    fn a_line_that_was_cut_off_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::create(folder.path()).unwrap();
        history.note("monitor", "lag", json!(1));
        let path = folder.path().join(JSON_LINES);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [whole.as_slice(), b"{\"index\":1,"].concat()).unwrap();
        assert_eq!(read(folder.path()).unwrap().len(), 1);
        std::fs::write(&path, [b"{\"index\":1,\n".as_slice(), whole.as_slice()].concat()).unwrap();
        assert!(read(folder.path()).is_err());
    }
}
