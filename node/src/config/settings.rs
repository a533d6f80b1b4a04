//! The settings of `node.toml`: the one list of them. The reference page is generated from it, and a key that is not in it is
//! refused with the nearest one that is.

use anyhow::bail;

/// One setting of `node.toml`.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The table it stands in, empty for the top level.
    pub section: &'static str,
    /// Its key.
    pub key: &'static str,
    /// What holds when it is absent; empty when it must be given.
    pub default: &'static str,
    /// What it means.
    pub meaning: &'static str,
}

const fn setting(section: &'static str, key: &'static str, default: &'static str, meaning: &'static str) -> Setting {
    Setting {
        section,
        key,
        default,
        meaning,
    }
}

/// All settings of `node.toml`.
pub const SETTINGS: &[Setting] = &[
    setting(
        "",
        "cluster",
        "",
        "Name of the cluster. A data folder belongs to one cluster for good.",
    ),
    setting(
        "",
        "name",
        "",
        "Name of this node: one of the members, or, with `join`, one that no node of the cluster has.",
    ),
    setting(
        "",
        "data_dir",
        "",
        "Folder of this node alone: Raft log, catalog, identity. Relative to this file.",
    ),
    setting(
        "",
        "part_store",
        "\"replicated\"",
        "Where parts lie. `replicated`: on the disks of the nodes, several copies each, in `parts` in the data folder, or in \
         the folder of `replicated:///folder` (a disk of this node alone). Or a store that all nodes share, the same for \
         all: `s3://bucket/prefix`, `file:///folder` or `local:///folder`.",
    ),
    setting(
        "",
        "wal_dir",
        "`wal` in the data folder",
        "Folder of the write-ahead log of memtables, for tables with `wal = 'local'`. On a device of its own, its fsyncs do not \
         wait for parts and the Raft log. Relative to this file.",
    ),
    setting(
        "",
        "warehouse",
        "\"default\"",
        "The set of nodes that this one belongs to from this start on. Tables may ask for one (`warehouse` in [their settings](sql.md)).",
    ),
    setting(
        "",
        "join",
        "[]",
        "Api addresses of nodes of a cluster that exists, `[\"host:port\"]`; one that answers is enough. The node asks there \
         to be admitted when its data folder is new. Instead of [[members]].",
    ),
    setting(
        "advertise",
        "raft",
        "required with `join`",
        "Address at which the others reach its Raft, `host:port`.",
    ),
    setting(
        "advertise",
        "api",
        "required with `join`",
        "Address at which clients and the others reach its api, `host:port`.",
    ),
    setting(
        "advertise",
        "http",
        "required with `join`",
        "Address at which its HTTP is reached, `host:port`.",
    ),
    setting(
        "listen",
        "raft",
        "the address for the others",
        "Address to bind for Raft and heartbeats.",
    ),
    setting(
        "listen",
        "api",
        "the address for the others",
        "Address to bind for clients and queries between nodes (gRPC).",
    ),
    setting(
        "listen",
        "http",
        "the address for the others",
        "Address to bind for /healthz, /readyz, /metrics, /catalog and /leading.",
    ),
    setting(
        "memory",
        "limit",
        "half of the machine's, or of the control group's",
        "What this node may use, 320MiB at least: for ingestion, where consumers wait at the limit, for queries, for the catalog, and a fifth \
         for what nobody counts. Say it when several nodes, or other programs, share a machine.",
    ),
    setting(
        "memory",
        "queries",
        "about a quarter of the limit",
        "What all queries of this node may use; they spill beyond it, or fail. The rest is for ingestion.",
    ),
    setting(
        "parts",
        "copy_rate",
        "\"128MiB\"",
        "How much per second this node copies from others when it has to catch up with them.",
    ),
    setting(
        "parts",
        "scrub_rate",
        "\"16MiB\"",
        "How much per second of its parts this node reads and verifies in the background.",
    ),
    setting(
        "s3",
        "endpoint",
        "`AWS_ENDPOINT`, else Amazon's",
        "URL of the S3 server; with `http://` it is spoken to without TLS.",
    ),
    setting(
        "s3",
        "region",
        "`AWS_REGION`, else `us-east-1`",
        "Region of the bucket.",
    ),
    setting(
        "s3",
        "access_key_id",
        "`AWS_ACCESS_KEY_ID`, else the machine's role",
        "Id of the access key.",
    ),
    setting(
        "s3",
        "secret_access_key",
        "`AWS_SECRET_ACCESS_KEY`, else the machine's role",
        "Secret of the access key.",
    ),
    setting(
        "members",
        "name",
        "required without `join`",
        "Name of a founding member; one is enough. The list is the same in all files, in the same order.",
    ),
    setting(
        "members",
        "raft",
        "required without `join`",
        "Address at which the others reach its Raft, `host:port`.",
    ),
    setting(
        "members",
        "api",
        "required without `join`",
        "Address at which clients and the others reach its api, `host:port`.",
    ),
    setting(
        "members",
        "http",
        "required without `join`",
        "Address at which its HTTP is reached, `host:port`.",
    ),
];

/// The reference page of all settings, in Markdown.
pub fn reference() -> String {
    let mut page = String::from(
        "# Settings of node.toml\n\nGenerated by `tidemill config-reference`; declared in `node/src/config/settings.rs`.\n\n\
         | setting | default | meaning |\n|---|---|---|\n",
    );
    for s in SETTINGS {
        let name = match s.section {
            "" => s.key.to_owned(),
            "members" => format!("[[members]] {}", s.key),
            section => format!("[{section}] {}", s.key),
        };
        let default = if s.default.is_empty() { "required" } else { s.default };
        page.push_str(&format!("| `{name}` | {default} | {} |\n", s.meaning));
    }
    page
}

/// Refuses what is no setting, with the nearest one that is.
pub(super) fn refuse_unknown_keys(table: &toml::Table) -> anyhow::Result<()> {
    let sections: Vec<&str> = SETTINGS.iter().map(|s| s.section).filter(|s| !s.is_empty()).collect();
    for (key, value) in table {
        if sections.contains(&key.as_str()) {
            let tables: Vec<&toml::Table> = match value {
                toml::Value::Table(table) => vec![table],
                toml::Value::Array(entries) => entries.iter().filter_map(|e| e.as_table()).collect(),
                _ => bail!("`{key}` is a section: write [{key}]"),
            };
            for inner in tables.iter().flat_map(|t| t.keys()) {
                refuse_unknown(key, inner, SETTINGS.iter().filter(|s| s.section == key).map(|s| s.key))?;
            }
        } else {
            let top = SETTINGS.iter().filter(|s| s.section.is_empty()).map(|s| s.key);
            refuse_unknown("", key, top.chain(sections.iter().copied()))?;
        }
    }
    Ok(())
}

fn refuse_unknown<'k>(section: &str, key: &str, known: impl Iterator<Item = &'k str>) -> anyhow::Result<()> {
    let known: Vec<&str> = known.collect();
    if known.contains(&key) {
        return Ok(());
    }
    let place = if section.is_empty() {
        String::new()
    } else {
        format!(" in [{section}]")
    };
    let nearest = known
        .iter()
        .max_by(|a, b| strsim::jaro_winkler(a, key).total_cmp(&strsim::jaro_winkler(b, key)));
    let hint = nearest.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
    bail!("there is no setting `{key}`{place}{hint}")
}
