//! `tidemill init`: writes ready configurations for a cluster on this machine, one folder per node, or
//! for one node that joins a cluster, and says how to start them. It starts nothing and never overwrites without
//! being told to.

mod joining;

pub(super) use joining::Joining;

use anyhow::{Context, bail, ensure};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

/// The command that starts a node; the path of its configuration follows.
const START: &str = "tidemill node --config";

/// Writes the configuration of a new cluster on this machine, or of a node that joins one
#[derive(Clone, Debug, clap::Args)]
#[command(mut_arg("port", |port| port.requires("join")), mut_arg("host", |host| host.requires("join")))]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    nodes: u16,
    /// Overwrite configurations that are already there
    #[arg(long)]
    force: bool,
    /// Instead of a new cluster, one node that joins the cluster with these api addresses
    #[arg(
        long,
        value_name = "HOST:PORT,…",
        value_delimiter = ',',
        requires = "name",
        conflicts_with = "nodes"
    )]
    join: Vec<String>,
    /// The name of the node that joins; no other node of the cluster has it
    #[arg(long, value_name = "NAME", requires = "join")]
    name: Option<String>,
}

/// Where nodes are and what they have in common: of a new cluster, or of one that a node joins.
#[derive(Clone, Debug, clap::Args)]
pub struct Place {
    /// The folder that gets n1/node.toml, n2/node.toml, …
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// The name of the cluster [default: `demo` for a new one; one that is joined is asked]
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Node i listens on PORT+i (raft), PORT+100+i (api) and PORT+200+i (http)
    #[arg(long, value_name = "PORT", default_value_t = 7300)]
    base_port: u16,
    /// Where parts lie: `replicated` on the nodes themselves, or a store that all nodes share: s3://bucket/prefix, file:///… or local:///…
    /// [default: `replicated` for a new cluster; one that is joined is asked]
    #[arg(long, value_name = "URL")]
    parts: Option<String>,
    /// The node that joins listens on PORT (raft), PORT+100 (api) and PORT+200 (http) [default: the base port and the
    /// number at the end of its name]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Where the others reach the node that joins
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    host: String,
}

impl Place {
    fn cluster(&self) -> &str {
        self.cluster.as_deref().unwrap_or("demo")
    }

    fn parts(&self) -> &str {
        self.parts.as_deref().unwrap_or("replicated")
    }

    /// The folder, which is there afterwards.
    fn folder(&self) -> anyhow::Result<PathBuf> {
        let dir = &self.dir;
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        dir.canonicalize()
            .with_context(|| format!("cannot resolve {}", dir.display()))
    }

    fn check(&self) -> anyhow::Result<()> {
        check_name("cluster", self.cluster())?;
        let url = self.parts();
        let known = url.split_once("://").is_some_and(|(scheme, rest)| {
            !scheme.is_empty()
                && !rest.is_empty()
                && (!["file", "local", "replicated"].contains(&scheme) || rest.starts_with('/'))
        });
        ensure!(
            known || url == "replicated",
            "--parts '{url}' is neither `replicated` nor an absolute URL such as file:///srv/parts"
        );
        Ok(())
    }
}

/// Writes the files and prints what to do next.
///
/// # Errors
/// When a name or port makes no sense, a file is there already or cannot be written, or the cluster to join does not answer.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(name) = &args.name {
        let joining = Joining {
            addresses: &args.join,
            name,
            place: &args.place,
        };
        let path = joining.path();
        if path.exists() && !args.force {
            bail!("already there: {}; --force overwrites", path.display());
        }
        print!("{}", joining.next_steps(&joining.write().await?));
        return Ok(ExitCode::SUCCESS);
    }
    let made = write(&args)?;
    print!("{}", next_steps(&args, &made));
    Ok(ExitCode::SUCCESS)
}

/// Writes all files, or none when one of them exists. Returns their paths.
fn write(args: &Args) -> anyhow::Result<Vec<PathBuf>> {
    check(args)?;
    let dir = args.place.folder()?;
    let paths: Vec<PathBuf> = (1..=args.nodes)
        .map(|i| dir.join(format!("n{i}")).join("node.toml"))
        .collect();
    let there: Vec<String> = paths
        .iter()
        .filter(|path| path.exists())
        .map(|path| path.display().to_string())
        .collect();
    if !args.force && !there.is_empty() {
        bail!("already there: {}; --force overwrites", there.join(", "));
    }
    for (path, i) in paths.iter().zip(1..) {
        // Each path was made by joining two names to a folder, so it has a parent.
        let folder = path.parent().unwrap_or(&dir);
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let text = node_toml(args, i);
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(paths)
}

fn check_name(what: &str, name: &str) -> anyhow::Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    ensure!(
        !name.is_empty() && name.chars().all(fits),
        "the {what} name '{name}' may have letters, digits, '-' and '_' only"
    );
    Ok(())
}

fn check(args: &Args) -> anyhow::Result<()> {
    let base_port = args.place.base_port;
    ensure!(
        base_port
            .checked_add(200)
            .and_then(|port| port.checked_add(args.nodes))
            .is_some(),
        "--base-port {base_port} is too high: ports end at 65535"
    );
    args.place.check()
}

/// The settings that a node may have beside those that it must have, commented out.
const OPTIONAL: &str = "\
# What this node may use: half of the machine where nothing is said.
# [memory]
# limit = \"2GiB\"
";

/// The configuration of node `i`, from 1. The ports were checked to fit.
fn node_toml(args: &Args, i: u16) -> String {
    let cluster = quoted(args.place.cluster());
    let parts = quoted(args.place.parts());
    let mut text = format!(
        "\
# Node n{i} of a Tidemill cluster. Start it with
#   {START} n{i}/node.toml

# The name of the cluster. A data folder belongs to one cluster and is refused by any other.
cluster = {cluster}
# The name of this node; must be one of the members below.
name = \"n{i}\"
# The folder for the Raft log, the catalog, parts and temporary files, relative to this file. Wiping it makes this a new node.
data_dir = \"data\"
# Where parts lie: \"replicated\" on the disks of the nodes, or a store that all nodes reach under the same URL.
part_store = {parts}
# The set of nodes that this one works with.
warehouse = \"default\"

# The addresses to listen on, when they differ from those that the others connect to (containers, NAT).
# [listen]
# raft = \"0.0.0.0:{raft}\"
# api  = \"0.0.0.0:{api}\"
# http = \"0.0.0.0:{http}\"

{OPTIONAL}
# The founding members: the same, in the same order, in the files of all nodes.
",
        raft = args.place.base_port + i,
        api = args.place.base_port + 100 + i,
        http = args.place.base_port + 200 + i,
    );
    for member in 1..=args.nodes {
        let port = args.place.base_port + member;
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "[[members]]\nname = \"n{member}\"\nraft = \"127.0.0.1:{port}\"\napi  = \"127.0.0.1:{}\"\nhttp = \"127.0.0.1:{}\"\n\n",
            port + 100,
            port + 200,
        );
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn next_steps(args: &Args, paths: &[PathBuf]) -> String {
    let mut text = format!(
        "The cluster '{}' is configured. Start each node in a terminal of its own:\n",
        args.place.cluster()
    );
    let addresses: Vec<String> = (1..=args.nodes)
        .map(|i| format!("127.0.0.1:{}", args.place.base_port + 100 + i))
        .collect();
    for path in paths {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {START} {}", shell_word(&path.display().to_string()));
    }
    let connect = if args.place.base_port == 7300 && args.nodes == 3 {
        String::new()
    } else {
        format!(" --connect {}", addresses.join(","))
    };
    let _ = write!(
        text,
        "then look and ask:\n  tidemill cluster status{connect}\n  tidemill sql{connect}\n"
    );
    if args.nodes.is_multiple_of(2) {
        let _ = writeln!(
            text,
            "note: {} nodes survive the loss of no more nodes than {} do",
            args.nodes,
            args.nodes - 1
        );
    }
    text
}

fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-._~+:@%".contains(c);
    if text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeConfig;
    use std::path::Path;

    pub(super) fn args(dir: &Path) -> Args {
        Args {
            place: Place {
                dir: dir.to_owned(),
                cluster: None,
                base_port: 7300,
                parts: None,
                port: None,
                host: "127.0.0.1".to_owned(),
            },
            nodes: 3,
            force: false,
            join: vec![],
            name: None,
        }
    }

    #[test]
    fn three_files_that_agree() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("my cluster");
        let paths = write(&args(&dir)).unwrap();
        assert_eq!(paths.len(), 3);
        let tables: Vec<toml::Table> = paths
            .iter()
            .map(|path| fs::read_to_string(path).unwrap().parse().unwrap())
            .collect();
        for (i, table) in tables.iter().enumerate() {
            assert_eq!(table["cluster"].as_str(), Some("demo"));
            assert_eq!(table["name"].as_str().unwrap(), format!("n{}", i + 1));
            assert_eq!(table["members"], tables[0]["members"]);
            assert_eq!(table["part_store"].as_str(), Some("replicated"));
            let keys: Vec<&str> = table.keys().map(String::as_str).collect();
            assert_eq!(
                keys,
                ["cluster", "data_dir", "members", "name", "part_store", "warehouse"]
            );
        }
        let second = &tables[0]["members"][1];
        assert_eq!(second["raft"].as_str(), Some("127.0.0.1:7302"));
        assert_eq!(second["api"].as_str(), Some("127.0.0.1:7402"));
        assert_eq!(second["http"].as_str(), Some("127.0.0.1:7502"));
    }

    #[test]
    fn the_node_accepts_them_with_and_without_what_is_commented_out() {
        let folder = tempfile::tempdir().unwrap();
        for path in write(&args(folder.path())).unwrap() {
            let config = NodeConfig::load(&path).unwrap();
            assert_eq!(
                (config.members.len(), config.data_dir),
                (3, path.with_file_name("data"))
            );

            let hidden = |line: &str| line.starts_with("# [") || (line.starts_with("# ") && line.contains(" = \""));
            let text = fs::read_to_string(&path).unwrap();
            let all: Vec<&str> = text
                .lines()
                .map(|line| if hidden(line) { &line[2..] } else { line })
                .collect();
            let all = all.join("\n");
            assert!(all.contains("\n[listen]\n") && all.contains("\n[memory]\n"), "{all}");
            fs::write(&path, all).unwrap();
            assert!(NodeConfig::load(&path).unwrap().listen.api.starts_with("0.0.0.0:740"));
        }
    }

    #[test]
    fn existing_files_are_kept_unless_forced() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("n2")).unwrap();
        let precious = folder.path().join("n2/node.toml");
        fs::write(&precious, "mine").unwrap();
        let error = write(&args(folder.path())).unwrap_err().to_string();
        assert!(error.contains("n2/node.toml") && error.contains("--force"), "{error}");
        assert_eq!(fs::read_to_string(&precious).unwrap(), "mine");
        assert!(!folder.path().join("n1").exists(), "nothing is half done");

        write(&Args {
            force: true,
            ..args(folder.path())
        })
        .unwrap();
        assert!(fs::read_to_string(&precious).unwrap().contains("name = \"n2\""));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let with = |change: fn(&mut Place)| {
            let mut args = args(folder.path());
            change(&mut args.place);
            write(&args)
        };
        let bad: [fn(&mut Place); 5] = [
            |place| place.cluster = Some("a b".to_owned()),
            |place| place.cluster = Some(String::new()),
            |place| place.base_port = 65_400,
            |place| place.parts = Some("relative/parts".to_owned()),
            |place| place.parts = Some("file://parts".to_owned()),
        ];
        for (i, bad) in bad.into_iter().enumerate() {
            assert!(with(bad).is_err(), "{i}");
        }
        assert!(with(|place| place.parts = Some("s3://bucket/parts".to_owned())).is_ok());
    }

    #[test]
    fn the_next_steps_can_be_pasted() {
        let plain = next_steps(&args(Path::new(".")), &[PathBuf::from("/a b/n1/node.toml")]);
        assert!(
            plain.contains("--config '/a b/n1/node.toml'\n") && plain.contains("  tidemill sql\n"),
            "{plain}"
        );
        let mut other = args(Path::new("."));
        (other.place.base_port, other.nodes) = (8300, 2);
        let text = next_steps(&other, &[]);
        assert!(
            text.contains("tidemill sql --connect 127.0.0.1:8401,127.0.0.1:8402\n"),
            "{text}"
        );
        assert!(text.contains("note: 2 nodes"), "{text}");
    }
}
