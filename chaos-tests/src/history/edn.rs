//! Entries as [EDN](https://github.com/edn-format/edn), one map on a line, as Jepsen and Elle read them.

use super::{Entry, Kind, Who};
use serde_json::Value;
use std::fmt::Write;

/// One entry, with its line end.
pub fn line(entry: &Entry) -> String {
    let process = match &entry.process {
        Who::Process(number) => number.to_string(),
        Who::Named(name) => keyword(name),
    };
    let kind = match entry.kind {
        Kind::Invoke => ":invoke",
        Kind::Ok => ":ok",
        Kind::Fail => ":fail",
        Kind::Info => ":info",
    };
    let mut out = format!(
        "{{:index {}, :time {}, :wall-ms {}, :process {process}, :type {kind}, :f {}, :value ",
        entry.index,
        entry.time,
        entry.wall_ms,
        keyword(&entry.f)
    );
    put(&mut out, &entry.value);
    for (name, text) in [("node", &entry.node), ("error", &entry.error)] {
        if let Some(text) = text {
            _ = write!(out, ", :{name} ");
            put_text(&mut out, text);
        }
    }
    out.push_str("}\n");
    out
}

/// A keyword may hold neither spaces nor much else.
fn keyword(name: &str) -> String {
    let may = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '?' | '!');
    let name: String = name.chars().map(|c| if may(c) { c } else { '-' }).collect();
    format!(":{name}")
}

fn put(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("nil"),
        Value::Bool(_) | Value::Number(_) => _ = write!(out, "{value}"),
        Value::String(text) => put_text(out, text),
        Value::Array(values) => {
            out.push('[');
            for (i, value) in values.iter().enumerate() {
                if i > 0 {
                    out.push(' ');
                }
                put(out, value);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            out.push('{');
            for (i, (name, value)) in fields.iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                // A name that begins with a digit is no keyword.
                match name.starts_with(|c: char| c.is_ascii_alphabetic()) {
                    true => out.push_str(&keyword(name)),
                    false => put_text(out, name),
                }
                out.push(' ');
                put(out, value);
            }
            out.push('}');
        }
    }
}

/// Strings escape as in JSON, but for characters outside of the basic plane, which stay as they are.
fn put_text(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => _ = write!(out, "\\u{:04x}", c as u32),
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_entry_is_a_map_that_edn_readers_take() {
        let entry = Entry {
            index: 7,
            time: 12,
            wall_ms: 34,
            process: Who::Named("nemesis".into()),
            kind: Kind::Info,
            f: "begin kill -9".into(),
            value: json!({ "node": "n1", "1": [true, null, 2.5], "said \"x\"": "a\nb\u{1}" }),
            node: None,
            error: Some("why\\not".into()),
        };
        assert_eq!(
            line(&entry),
            "{:index 7, :time 12, :wall-ms 34, :process :nemesis, :type :info, :f :begin-kill--9, :value \
             {\"1\" [true nil 2.5], :node \"n1\", :said--x- \"a\\nb\\u0001\"}, :error \"why\\\\not\"}\n"
        );
    }
}
