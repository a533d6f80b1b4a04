//! `tidemill cluster status`: what one node knows of the cluster, for people and for scripts, and
//! whether it is well. It asks once and changes nothing.

use super::table::Table;
use super::{Connect, exit_code};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::process::ExitCode;
use tidemill_client::{ClusterStatusReply, NodeStatus, ShardStatus};

/// Shows the nodes and shards; exits with 0 if all is well, 1 if not, 2 if no node answers
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    connect: Connect,
    /// How to show it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// How the status is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns, for people
    Table,
    /// One JSON object
    Json,
}

/// Asks the cluster and prints what it says.
///
/// # Errors
/// When the output cannot be written.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let status = match args.connect.status().await {
        Ok(status) => status,
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(exit_code(&error));
        }
    };
    let problems = problems(&status);
    let mut out = io::stdout().lock();
    match args.format {
        Format::Table => write(&status, &problems, &mut out)?,
        Format::Json => writeln!(out, "{:#}", json(&status, &problems))?,
    }
    Ok(if problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

/// What is not as it should be, one line each. A removed node is no problem: somebody removed it.
fn problems(status: &ClusterStatusReply) -> Vec<String> {
    let mut problems = Vec::new();
    if status.leader.is_empty() {
        problems.push("the Raft group has no leader".to_owned());
    }
    for node in &status.nodes {
        if !["ready", "removed"].contains(&node.state.to_ascii_lowercase().as_str()) {
            problems.push(format!("node {} is {}", node.name, node.state));
        }
    }
    for shard in status.shards.iter().filter(|shard| shard.leader.is_empty()) {
        problems.push(format!("shard {}/{} has no leader", shard.table, shard.index));
    }
    problems
}

fn write(status: &ClusterStatusReply, problems: &[String], out: &mut impl Write) -> io::Result<()> {
    let leader = if status.leader.is_empty() {
        "none"
    } else {
        &status.leader
    };
    writeln!(
        out,
        "cluster {}: leader {leader}, term {}, applied {} (says {})\n",
        status.cluster, status.term, status.applied, status.node
    )?;
    let mut nodes = Table::new(&[
        "node",
        "state",
        "role",
        "warehouse",
        ">shards",
        ">rows/s",
        ">memtable",
        ">silent",
        "raft",
        "api",
        "http",
    ]);
    for node in &status.nodes {
        nodes.row(node_row(status, node));
    }
    nodes.write(out)?;
    let legend = if status.leader.is_empty() {
        ""
    } else {
        "* leads the Raft group\n"
    };
    writeln!(out, "{legend}")?;
    if !status.shards.is_empty() {
        let mut shards = Table::new(&["shard", "leader", ">epoch", ">lag"]);
        for shard in &status.shards {
            shards.row(shard_row(status, shard));
        }
        shards.write(out)?;
        writeln!(out)?;
    }
    if !status.progress_known {
        writeln!(
            out,
            "the manager did not answer: rows, memtables, silence and lags are unknown"
        )?;
    }
    for problem in problems {
        writeln!(out, "problem: {problem}")?;
    }
    if problems.is_empty() {
        writeln!(out, "all is well")?;
    }
    Ok(())
}

fn node_row(status: &ClusterStatusReply, node: &NodeStatus) -> [String; 11] {
    let mark = if node.name == status.leader { " *" } else { "" };
    let known = |text: String| if status.progress_known { text } else { "?".to_owned() };
    [
        format!("{}{mark}", node.name),
        node.state.clone(),
        node.role.clone(),
        node.warehouse.clone(),
        node.shards.to_string(),
        known(format!("{:.0}", node.rows_per_second)),
        known(bytes(node.memtable_bytes)),
        known(if node.silent_ms == 0 {
            "?".to_owned()
        } else {
            milliseconds(node.silent_ms)
        }),
        node.raft.clone(),
        node.api.clone(),
        node.http.clone(),
    ]
}

fn shard_row(status: &ClusterStatusReply, shard: &ShardStatus) -> [String; 4] {
    [
        format!("{}/{}", shard.table, shard.index),
        if shard.leader.is_empty() {
            "none".to_owned()
        } else {
            shard.leader.clone()
        },
        shard.epoch.to_string(),
        if status.progress_known {
            shard.lag.to_string()
        } else {
            "?".to_owned()
        },
    ]
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

fn milliseconds(count: u64) -> String {
    match count {
        0..1000 => format!("{count} ms"),
        1000..60_000 => format!("{:.1} s", count as f64 / 1e3),
        _ => format!("{} min", count / 60_000),
    }
}

/// Names as in `api.proto`. What only the manager knows is null while it is unknown.
fn json(status: &ClusterStatusReply, problems: &[String]) -> Value {
    let known = |value: Value| if status.progress_known { value } else { Value::Null };
    let nodes = status.nodes.iter().map(|node| {
        json!({
            "id": node.id,
            "name": node.name,
            "state": node.state,
            "role": node.role,
            "warehouse": node.warehouse,
            "leader": node.name == status.leader,
            "raft": node.raft,
            "api": node.api,
            "http": node.http,
            "shards": node.shards,
            "rows_per_second": known(json!(node.rows_per_second)),
            "memtable_bytes": known(json!(node.memtable_bytes)),
            "silent_ms": known(if node.silent_ms == 0 { Value::Null } else { json!(node.silent_ms) }),
        })
    });
    let shards = status.shards.iter().map(|shard| {
        json!({
            "table": shard.table,
            "index": shard.index,
            "epoch": shard.epoch,
            "leader": if shard.leader.is_empty() { Value::Null } else { json!(shard.leader) },
            "lag": known(json!(shard.lag)),
        })
    });
    json!({
        "cluster": status.cluster,
        "node": status.node,
        "leader": if status.leader.is_empty() { Value::Null } else { json!(status.leader) },
        "term": status.term,
        "applied": status.applied,
        "progress_known": status.progress_known,
        "nodes": nodes.collect::<Vec<_>>(),
        "shards": shards.collect::<Vec<_>>(),
        "problems": problems,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> ClusterStatusReply {
        let node = |id: u64| NodeStatus {
            id,
            name: format!("n{id}"),
            state: "Ready".to_owned(),
            role: "voter".to_owned(),
            warehouse: "default".to_owned(),
            api: format!("127.0.0.1:740{id}"),
            rows_per_second: 1234.5,
            memtable_bytes: 5 << 20,
            silent_ms: 120,
            ..NodeStatus::default()
        };
        let shard = ShardStatus {
            table: "t".to_owned(),
            index: 0,
            epoch: 4,
            leader: "n2".to_owned(),
            lag: 17,
        };
        ClusterStatusReply {
            cluster: "demo".to_owned(),
            node: "n1".to_owned(),
            leader: "n3".to_owned(),
            term: 2,
            applied: 99,
            nodes: (1..=3).map(node).collect(),
            shards: vec![shard],
            progress_known: true,
            part_store: "replicated".to_owned(),
        }
    }

    fn written(status: &ClusterStatusReply) -> String {
        let mut out = Vec::new();
        write(status, &problems(status), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_healthy_cluster() {
        let text = written(&status());
        assert!(
            text.starts_with("cluster demo: leader n3, term 2, applied 99 (says n1)\n"),
            "{text}"
        );
        let line = text.lines().find(|line| line.contains("n3 *")).unwrap();
        for cell in [
            "Ready",
            "voter",
            "default",
            "1234",
            "5.0 MiB",
            "120 ms",
            "127.0.0.1:7403",
        ] {
            assert!(line.contains(cell), "{cell} in {line}");
        }
        assert!(
            text.contains(" t/0   | n2     |     4 |  17\n") && text.ends_with("all is well\n"),
            "{text}"
        );
    }

    #[test]
    fn problems_are_named() {
        let mut status = status();
        status.leader.clear();
        status.nodes[0].state = "Down".to_owned();
        status.nodes[1].state = "Removed".to_owned();
        status.shards[0].leader.clear();
        status.progress_known = false;
        assert_eq!(
            problems(&status),
            [
                "the Raft group has no leader",
                "node n1 is Down",
                "shard t/0 has no leader"
            ]
        );
        let text = written(&status);
        assert!(
            text.contains("problem: node n1 is Down\n") && text.contains("are unknown"),
            "{text}"
        );
        assert!(!text.contains("120 ms"), "{text}");
        let value = json(&status, &problems(&status));
        assert_eq!(value["nodes"][0]["silent_ms"], Value::Null);
        assert_eq!(value["shards"][0]["leader"], Value::Null);
        assert_eq!(value["problems"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn units() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!(milliseconds(1500), "1.5 s");
        assert_eq!(milliseconds(180_000), "3 min");
    }
}
