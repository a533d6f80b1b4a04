//! The configuration of one node that joins a cluster.

use super::{Args, OPTIONAL, START, check_name, check_parts, quoted, shell_word};
use anyhow::{Context, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// Writes `NAME/node.toml`. Returns its path.
pub(super) fn write(args: &Args, name: &str) -> anyhow::Result<PathBuf> {
    check_name("cluster", &args.cluster)?;
    check_name("node", name)?;
    check_parts(args)?;
    let port = port(args, name)?;
    fs::create_dir_all(&args.dir).with_context(|| format!("cannot create {}", args.dir.display()))?;
    let dir = args
        .dir
        .canonicalize()
        .with_context(|| format!("cannot resolve {}", args.dir.display()))?;
    let folder = dir.join(name);
    let path = folder.join("node.toml");
    if path.exists() && !args.force {
        bail!("already there: {}; --force overwrites", path.display());
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::write(&path, node_toml(args, name, port)).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// The Raft port; the others must fit above it.
fn port(args: &Args, name: &str) -> anyhow::Result<u16> {
    let number = name
        .trim_start_matches(|c: char| !c.is_ascii_digit())
        .parse::<u16>()
        .ok();
    let port = args.port.or_else(|| args.base_port.checked_add(number?));
    let port = port.with_context(|| format!("no port can be made of the name '{name}': say it with --port"))?;
    ensure!(
        port.checked_add(200).is_some(),
        "the port {port} is too high: ports end at 65535"
    );
    Ok(port)
}

fn node_toml(args: &Args, name: &str, port: u16) -> String {
    let join: Vec<String> = args.join.iter().map(|address| quoted(address)).collect();
    let host = &args.host;
    let (api, http) = (port + 100, port + 200);
    format!(
        "\
# Node {name} of a Tidemill cluster, which it joins. Start it with
#   {START} {name}/node.toml

# The name of the cluster. A data folder belongs to one cluster and is refused by any other.
cluster = {cluster}
# The name of this node; no other node of the cluster has it.
name = {quoted_name}
# The folder for the Raft log, the catalog, parts and temporary files, relative to this file. Wiping it makes this a new node.
data_dir = \"data\"
# Where parts lie, as the other nodes have it: \"replicated\", or the URL of the store that all nodes share.
part_store = {parts}
# The set of nodes that this one works with.
warehouse = \"default\"
# Where nodes of the cluster serve clients: asked at the first start only, whichever answers.
join = [{join}]

# Where the others reach this node.
[advertise]
raft = {raft}
api  = {api_address}
http = {http_address}

# The addresses to listen on, when they differ from those that the others connect to (containers, NAT).
# [listen]
# raft = \"0.0.0.0:{port}\"
# api  = \"0.0.0.0:{api}\"
# http = \"0.0.0.0:{http}\"

{OPTIONAL}",
        cluster = quoted(&args.cluster),
        quoted_name = quoted(name),
        parts = quoted(&args.parts),
        join = join.join(", "),
        raft = quoted(&format!("{host}:{port}")),
        api_address = quoted(&format!("{host}:{api}")),
        http_address = quoted(&format!("{host}:{http}")),
    )
}

pub(super) fn next_steps(args: &Args, name: &str, path: &Path) -> String {
    format!(
        "Node '{name}' is configured to join cluster '{}'. Start it:\n  {START} {}\nthen watch it come:\n  \
         tidemill node list --connect {}\n",
        args.cluster,
        shell_word(&path.display().to_string()),
        args.join.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::init::tests::args;
    use crate::config::NodeConfig;

    fn joining(dir: &Path, name: &str) -> Args {
        Args {
            join: vec!["127.0.0.1:7401".into(), "h:7402".into()],
            name: Some(name.into()),
            ..args(dir)
        }
    }

    #[test]
    fn the_node_accepts_what_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let args = joining(folder.path(), "n4");
        let path = write(&args, "n4").unwrap();
        let config = NodeConfig::load(&path).unwrap();
        assert_eq!(config.join, ["127.0.0.1:7401", "h:7402"]);
        assert_eq!(config.own.name, "n4");
        assert_eq!(
            (config.own.raft_addr.as_str(), config.listen.http.as_str()),
            ("127.0.0.1:7304", "127.0.0.1:7504")
        );
        assert!(write(&args, "n4").unwrap_err().to_string().contains("--force"));
        let said = next_steps(&args, "n4", &path);
        assert!(said.contains("node list --connect 127.0.0.1:7401,h:7402\n"), "{said}");
    }

    #[test]
    fn a_port_is_found_or_asked_for() {
        let at = |name: &str, port| Args {
            port,
            ..joining(Path::new("."), name)
        };
        assert_eq!(port(&at("worker-12", None), "worker-12").unwrap(), 7312);
        assert_eq!(port(&at("a", Some(9000)), "a").unwrap(), 9000);
        assert!(port(&at("a", None), "a").unwrap_err().to_string().contains("--port"));
        assert!(
            port(&at("a", Some(65_500)), "a")
                .unwrap_err()
                .to_string()
                .contains("too high")
        );
    }
}
