//! The configuration of one node that joins a cluster: written by `tidemill init --join` and `tidemill node join`.

use super::{OPTIONAL, Place, START, check_name, quoted, shell_word};
use anyhow::{Context, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use tidemill_client::{Client, ClientConfig};

/// A node that joins, as the command line has it.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) struct Joining<'a> {
    /// Where nodes of the cluster serve clients.
    pub addresses: &'a [String],
    /// Its name.
    pub name: &'a str,
    /// Where it is, and what it has in common with the other nodes.
    pub place: &'a Place,
}

/// A configuration that was written.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Written {
    /// The name of the cluster.
    pub cluster: String,
    /// The file.
    pub path: PathBuf,
}

/// What all nodes of a cluster have in common.
struct Common {
    cluster: String,
    parts: String,
}

impl Joining<'_> {
    /// The file that has the configuration, or gets it.
    pub fn path(&self) -> PathBuf {
        self.place.dir.join(self.name).join("node.toml")
    }

    /// Writes the configuration. Asks the cluster for what is not said.
    ///
    /// # Errors
    /// When a name or port makes no sense, nobody answers, or the file cannot be written.
    pub async fn write(&self) -> anyhow::Result<Written> {
        let port = self.check()?;
        self.write_with(port, &self.common().await?)
    }

    fn check(&self) -> anyhow::Result<u16> {
        check_name("node", self.name)?;
        self.place.check()?;
        self.port()
    }

    async fn common(&self) -> anyhow::Result<Common> {
        let (cluster, parts) = (self.place.cluster.clone(), self.place.parts.clone());
        if let (Some(cluster), Some(parts)) = (&cluster, &parts) {
            let (cluster, parts) = (cluster.clone(), parts.clone());
            return Ok(Common { cluster, parts });
        }
        let client = Client::new(ClientConfig::new(self.addresses.iter().cloned()))?;
        let asked = client.cluster_status().await.context(
            "the cluster could not be asked for its name and where its parts lie; it need not be if --cluster and \
             --parts say it",
        )?;
        ensure!(
            !asked.cluster.is_empty() && !asked.part_store.is_empty(),
            "node '{}' does not know its cluster yet: try again",
            asked.node
        );
        Ok(Common {
            cluster: cluster.unwrap_or(asked.cluster),
            parts: parts.unwrap_or(asked.part_store),
        })
    }

    fn write_with(&self, port: u16, common: &Common) -> anyhow::Result<Written> {
        let folder = self.place.folder()?.join(self.name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let path = folder.join("node.toml");
        // In one step: whoever finds the file, after a crash too, finds all of it.
        let part = folder.join("node.toml.part");
        let written = fs::write(&part, self.node_toml(port, common)).and_then(|()| fs::rename(&part, &path));
        written.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Written {
            cluster: common.cluster.clone(),
            path,
        })
    }

    /// What the configuration in `file` says otherwise than the command line, a line each. Settings that the command line
    /// says nothing of may be anything.
    ///
    /// # Errors
    /// When a name or port makes no sense, or the file cannot be read.
    pub fn differences(&self, file: &Path) -> anyhow::Result<Vec<String>> {
        let port = self.check()?;
        let there = fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
        let mut there: toml::Table = there.parse().with_context(|| format!("in {}", file.display()))?;
        there
            .entry("part_store")
            .or_insert_with(|| toml::Value::String("replicated".to_owned()));
        let common = Common {
            cluster: self.place.cluster().to_owned(),
            parts: self.place.parts().to_owned(),
        };
        let said: toml::Table = self.node_toml(port, &common).parse()?;
        let compared = [
            ("cluster", self.place.cluster.is_some()),
            ("name", true),
            ("part_store", self.place.parts.is_some()),
            ("join", true),
            ("advertise", true),
        ];
        let of =
            |table: &toml::Table, key: &str| table.get(key).map_or_else(|| "nothing".to_owned(), ToString::to_string);
        Ok(compared
            .iter()
            .filter(|(key, is_said)| *is_said && there.get(*key) != said.get(*key))
            .map(|(key, _)| format!("{key}: {} there, {} here", of(&there, key), of(&said, key)))
            .collect())
    }

    /// The Raft port; the others must fit above it.
    fn port(&self) -> anyhow::Result<u16> {
        let number = self.name.trim_start_matches(|c: char| !c.is_ascii_digit());
        let number = number.parse::<u16>().ok();
        let port = self.place.port.or_else(|| self.place.base_port.checked_add(number?));
        let port =
            port.with_context(|| format!("no port can be made of the name '{}': say it with --port", self.name))?;
        ensure!(
            port.checked_add(200).is_some(),
            "the port {port} is too high: ports end at 65535"
        );
        Ok(port)
    }

    fn node_toml(&self, port: u16, common: &Common) -> String {
        let name = self.name;
        let join: Vec<String> = self.addresses.iter().map(|address| quoted(address)).collect();
        let host = &self.place.host;
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
        cluster = quoted(&common.cluster),
        quoted_name = quoted(name),
        parts = quoted(&common.parts),
        join = join.join(", "),
        raft = quoted(&format!("{host}:{port}")),
        api_address = quoted(&format!("{host}:{api}")),
        http_address = quoted(&format!("{host}:{http}")),
    )
    }

    pub fn next_steps(&self, written: &Written) -> String {
        format!(
            "Node '{}' is configured to join cluster '{}'. Start it:\n  {START} {}\nthen watch it come:\n  \
             tidemill node list --connect {}\n",
            self.name,
            written.cluster,
            shell_word(&written.path.display().to_string()),
            self.addresses.join(",")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::init::tests::args;
    use crate::config::NodeConfig;

    fn place(dir: &Path) -> Place {
        args(dir).place
    }

    fn addresses() -> [String; 2] {
        ["127.0.0.1:7401".into(), "h:7402".into()]
    }

    fn demo() -> Common {
        Common {
            cluster: "demo".into(),
            parts: "replicated".into(),
        }
    }

    #[test]
    fn the_node_accepts_what_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let (addresses, place) = (addresses(), place(folder.path()));
        let joining = Joining {
            addresses: &addresses,
            name: "n4",
            place: &place,
        };
        let written = joining.write_with(7304, &demo()).unwrap();
        let config = NodeConfig::load(&written.path).unwrap();
        assert_eq!(config.join, ["127.0.0.1:7401", "h:7402"]);
        assert_eq!((config.own.name.as_str(), config.cluster.as_str()), ("n4", "demo"));
        assert_eq!(
            (config.own.raft_addr.as_str(), config.listen.http.as_str()),
            ("127.0.0.1:7304", "127.0.0.1:7504")
        );
        let said = joining.next_steps(&written);
        assert!(said.contains("node list --connect 127.0.0.1:7401,h:7402\n"), "{said}");
    }

    #[tokio::test]
    async fn nobody_is_asked_for_what_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let nobody = ["127.0.0.1:1".to_owned()];
        let mut place = place(folder.path());
        place.cluster = Some("prod".into());
        place.parts = Some("s3://bucket/parts".into());
        let joining = Joining {
            addresses: &nobody,
            name: "n4",
            place: &place,
        };
        let written = joining.write().await.unwrap();
        assert_eq!(written.cluster, "prod");
        let config = NodeConfig::load(&written.path).unwrap();
        assert_eq!(config.part_store.of_cluster(), "s3://bucket/parts");
    }

    #[test]
    fn only_what_the_command_line_says_can_differ() {
        let folder = tempfile::tempdir().unwrap();
        let (addresses, mut place) = (addresses(), place(folder.path()));
        let differences = |place: &Place, addresses: &[String]| {
            let joining = Joining {
                addresses,
                name: "n4",
                place,
            };
            joining.differences(&joining.path()).unwrap()
        };
        let other = Common {
            cluster: "prod".into(),
            parts: "file:///srv".into(),
        };
        let joining = Joining {
            addresses: &addresses,
            name: "n4",
            place: &place,
        };
        let path = joining.write_with(7304, &other).unwrap().path;
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}\n[memory]\nlimit = \"1GiB\"\n")).unwrap();
        assert_eq!(differences(&place, &addresses), Vec::<String>::new());

        place.cluster = Some("demo".into());
        place.host = "10.0.0.4".into();
        let found = differences(&place, &addresses[..1]).join("\n");
        for part in [
            "cluster: \"prod\" there, \"demo\" here",
            "join: [\"127.0.0.1:7401\", \"h:7402\"] there, [\"127.0.0.1:7401\"] here",
            "\"127.0.0.1:7404\"",
            "\"10.0.0.4:7404\"",
        ] {
            assert!(found.contains(part), "{part} is not in {found}");
        }
        assert!(!found.contains("part_store"), "{found}");
    }

    #[test]
    fn a_port_is_found_or_asked_for() {
        let at = |name: &str, port| {
            let place = Place {
                port,
                ..place(Path::new("."))
            };
            let addresses = addresses();
            let joining = Joining {
                addresses: &addresses,
                name,
                place: &place,
            };
            joining.port()
        };
        assert_eq!(at("worker-12", None).unwrap(), 7312);
        assert_eq!(at("a", Some(9000)).unwrap(), 9000);
        assert!(at("a", None).unwrap_err().to_string().contains("--port"));
        assert!(at("a", Some(65_500)).unwrap_err().to_string().contains("too high"));
    }
}
