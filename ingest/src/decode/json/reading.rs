//! What goes along while a record is read: what its pipe wants, what was captured, and what is wrong with it.

use super::column::Full;
use super::fields::Slot;
use super::scalar::{Quoted, Why};
use serde::de::Error;
use std::borrow::Cow;
use tidemill_core::format::OnUnknownField;
use tidemill_core::schema::ColumnType;
use tidemill_core::value::{Fault, is_number};

/// Why a record is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It is wrong; the text says where and why.
    Wrong(String),
    /// There is no room left in a column.
    Full,
}

/// What goes along while an object is read.
#[derive(Debug)]
pub(super) struct Reading<'de> {
    pub on_unknown: OnUnknownField,
    pub quoted: Quoted,
    /// Unknown fields by their paths, with their values.
    pub captured: Vec<(String, &'de str)>,
    /// Where in the object something is wrong, and what; the path grows on the way out.
    path: String,
    problem: Option<String>,
    full: bool,
}

impl<'de> Reading<'de> {
    pub fn new(on_unknown: OnUnknownField, quoted: Quoted) -> Self {
        Self {
            on_unknown,
            quoted,
            captured: Vec::new(),
            path: String::new(),
            problem: None,
            full: false,
        }
    }

    /// What went wrong; `error` is the parser's word, which counts if nothing else does.
    pub fn failure(self, error: &serde_json::Error) -> Failure {
        match (self.problem, self.full) {
            (_, true) => Failure::Full,
            (Some(problem), _) if self.path.is_empty() => Failure::Wrong(problem),
            (Some(problem), _) => Failure::Wrong(format!("field \"{}\": {problem}", self.path)),
            (None, _) => Failure::Wrong(format!("not JSON: {error}")),
        }
    }

    /// Notes what is wrong here. The error that it gives only ends the reading.
    pub fn wrong<E: Error>(&mut self, problem: String) -> E {
        self.problem = Some(problem);
        E::custom("")
    }

    pub fn full<E: Error>(&mut self, Full: Full) -> E {
        self.full = true;
        E::custom("")
    }

    pub fn not_appended<E: Error>(&mut self, slot: &Slot, found: &str, why: Why) -> E {
        match why {
            Why::Full => self.full(Full),
            why => self.wrong(not_a_value(slot, found, &why)),
        }
    }

    pub fn within(&mut self, name: &str) {
        self.path = path(name, &self.path);
    }

    pub fn captured_within(&mut self, from: usize, name: &dyn Fn() -> String) {
        for (inner, _) in &mut self.captured[from..] {
            *inner = path(&name(), inner);
        }
    }
}

/// `user`, `age` is `user.age`; `items`, `[2].price` is `items[2].price`.
fn path(outer: &str, inner: &str) -> String {
    let point = if inner.is_empty() || inner.starts_with('[') {
        ""
    } else {
        "."
    };
    format!("{outer}{point}{inner}")
}

/// That `json` is no value for `slot`, as a sentence.
pub(super) fn not_a_value(slot: &Slot, json: &str, why: &Why) -> String {
    let (expected, found) = (slot.expected(), excerpt(json));
    let range = |fault: &Fault| match slot.data_type.whole_range() {
        Some((least, most)) if *fault == Fault::OutOfRange => format!("it is not in {least} to {most}"),
        _ => fault.to_string(),
    };
    match why {
        Why::OtherType if is_quoted_number(slot, json) => {
            format!("expected {expected}, found {found}: a number in quotes, as quoted_numbers = 'accept' takes them")
        }
        Why::OtherType | Why::Full => format!("expected {expected}, found {found}"),
        Why::Fault(fault) => format!("expected {expected}, found {found}: {}", range(fault)),
        Why::Unreadable(error) => format!("expected {expected}, found {found}, which cannot be read: {error}"),
        Why::TooDeep => format!("found {found} that is nested more than 128 deep"),
    }
}

fn is_quoted_number(slot: &Slot, json: &str) -> bool {
    let is_float = matches!(slot.data_type, ColumnType::Float32 | ColumnType::Float64);
    let text = json.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    (is_float || slot.data_type.whole_range().is_some()) && text.is_some_and(is_number)
}

/// A value as messages show it.
pub(super) fn excerpt(json: &str) -> Cow<'_, str> {
    const LONGEST: usize = 64;
    match json.as_bytes().first() {
        Some(b'{') => "an object".into(),
        Some(b'[') => "an array".into(),
        _ if json.len() > LONGEST => format!("{}…", &json[..json.floor_char_boundary(LONGEST)]).into(),
        _ => json.into(),
    }
}
