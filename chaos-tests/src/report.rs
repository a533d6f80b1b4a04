//! What came of runs, for people to look at: a page for each run and one over all of them, in HTML that needs nothing from
//! elsewhere, and a table in Markdown.

pub mod command;
mod index;
mod page;
pub mod record;
mod svg;
#[cfg(test)]
mod tests;
mod timeline;

pub use index::{html as index_html, markdown as index_markdown};
pub use page::html as page_html;

use crate::check::{self, Judgement, Run};
use anyhow::Context;
use record::Record;
use std::path::{Path, PathBuf};

/// The page in the folder of a run.
pub const PAGE: &str = "report.html";
/// The page over all runs.
pub const INDEX: &str = "index.html";
/// The table of all runs.
pub const TABLE: &str = "matrix.md";

const STYLE: &str = include_str!("report/style.css");

/// A run that was judged.
pub struct Judged {
    /// Where it is.
    pub folder: PathBuf,
    /// What it is, if it could be read.
    pub run: Option<Run>,
    /// What came of it.
    pub judgement: Judgement,
}

impl Judged {
    /// Reads and judges the run in `folder`.
    pub fn read(folder: &Path) -> Self {
        let (run, judgement) = check::folder(folder);
        Self {
            folder: folder.to_owned(),
            run,
            judgement,
        }
    }

    /// What people call it: its folder, if it does not say.
    pub fn name(&self) -> String {
        let folder = || {
            self.folder
                .file_name()
                .unwrap_or(self.folder.as_os_str())
                .to_string_lossy()
                .into_owned()
        };
        let said = self.run.as_ref().map(|run| run.meta.name.clone());
        said.filter(|name| !name.is_empty()).unwrap_or_else(folder)
    }

    /// Writes what came of it, and then its page; gives what came of it.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self) -> anyhow::Result<Record> {
        let record = Record::of(self);
        record.write(&self.folder)?;
        write(&self.folder.join(PAGE), &page::html(self))?;
        Ok(record)
    }
}

/// Writes the pages over all runs into `folder`.
///
/// # Errors
/// If a file cannot be written.
pub fn write_index(folder: &Path, runs: &[index::Line]) -> anyhow::Result<()> {
    write(&folder.join(INDEX), &index::html(runs))?;
    write(&folder.join(TABLE), &index::markdown(runs))
}

pub use index::Line;

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// A whole page.
fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, \
         initial-scale=1\">\n<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        svg::escape(title)
    )
}

/// Milliseconds as people say them: `840 ms`, `12.3 s`, `2 h 05 min`.
fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{:.1} s", ms as f64 / 1_000.0),
        120_000..7_200_000 => format!("{} min {:02} s", ms / 60_000, ms / 1_000 % 60),
        _ => format!("{} h {:02} min", ms / 3_600_000, ms / 60_000 % 60),
    }
}
