//! A node's configuration: what `node.toml` may say, and what is wrong with it when it is.
//!
//! Every setting is declared in [`settings`], with its default and its meaning.

pub mod settings;

pub use settings::{SETTINGS, Setting, reference};

use crate::memory::{Shares, default_limit};
use crate::parts::KeeperConfig;
use anyhow::{Context, bail};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use tidemill_raft::{MemberConfig, Origin};
use tidemill_storage::store::S3Options;

/// A node's configuration, checked.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Name of the cluster.
    pub cluster: String,
    /// This node as the others see it.
    pub own: MemberConfig,
    /// Its own folder.
    pub data_dir: PathBuf,
    /// Where parts lie.
    pub part_store: PartStoreConfig,
    /// Where the write-ahead log of the memtables lies.
    pub wal_dir: PathBuf,
    /// How much of the machine copying and verifying parts may take.
    pub keeper: KeeperConfig,
    /// Its warehouse.
    pub warehouse: String,
    /// Addresses to bind.
    pub listen: Listen,
    /// How much memory it may use, and for what.
    pub memory: Shares,
    /// The founding members; empty for a node that joins.
    pub members: Vec<MemberConfig>,
    /// Api addresses of nodes of the cluster to join; empty for a founding member.
    pub join: Vec<String>,
}

/// Where parts lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartStoreConfig {
    /// In a folder of this node, and of some of the others.
    Replicated(PathBuf),
    /// In a store with this URL that all nodes share; how a bucket is reached.
    Shared(String, S3Options),
}

impl PartStoreConfig {
    /// What every node of the cluster writes for it. On which disk replicas lie is each node's own affair.
    pub fn of_cluster(&self) -> &str {
        match self {
            PartStoreConfig::Replicated(_) => "replicated",
            PartStoreConfig::Shared(url, _) => url,
        }
    }
}

impl std::fmt::Display for PartStoreConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PartStoreConfig::Replicated(folder) => folder.display().fmt(f),
            PartStoreConfig::Shared(url, _) => f.write_str(url),
        }
    }
}

/// Addresses to bind, each `host:port`.
#[derive(Clone, Debug)]
pub struct Listen {
    /// Raft and heartbeats.
    pub raft: String,
    /// Clients and queries.
    pub api: String,
    /// Health and metrics.
    pub http: String,
}

#[derive(Deserialize)]
struct FileConfig {
    cluster: String,
    name: String,
    data_dir: PathBuf,
    #[serde(default = "default_part_store")]
    part_store: String,
    wal_dir: Option<PathBuf>,
    #[serde(default)]
    parts: FileParts,
    #[serde(default)]
    s3: FileS3,
    #[serde(default = "default_warehouse")]
    warehouse: String,
    #[serde(default)]
    listen: FileListen,
    #[serde(default)]
    memory: FileMemory,
    #[serde(default)]
    join: Vec<String>,
    advertise: Option<FileAdvertise>,
    #[serde(default)]
    members: Vec<FileMember>,
}

#[derive(Deserialize)]
struct FileAdvertise {
    raft: String,
    api: String,
    http: String,
}

fn default_part_store() -> String {
    "replicated".into()
}

fn default_warehouse() -> String {
    "default".into()
}

#[derive(Default, Deserialize)]
struct FileListen {
    raft: Option<String>,
    api: Option<String>,
    http: Option<String>,
}

#[derive(Default, Deserialize)]
struct FileMemory {
    limit: Option<String>,
    queries: Option<String>,
}

#[derive(Default, Deserialize)]
struct FileS3 {
    endpoint: Option<String>,
    region: Option<String>,
    access_key_id: Option<String>,
    secret_access_key: Option<String>,
}

#[derive(Default, Deserialize)]
struct FileParts {
    copy_rate: Option<String>,
    scrub_rate: Option<String>,
}

#[derive(Deserialize)]
struct FileMember {
    name: String,
    raft: String,
    api: String,
    http: String,
}

impl NodeConfig {
    /// Reads and checks `file`.
    ///
    /// # Errors
    /// Names the file, the setting and what to do about it.
    pub fn load(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("the configuration {} cannot be read", file.display()))?;
        let folder = file.parent().unwrap_or(Path::new("."));
        Self::parse(&text, folder).with_context(|| format!("in the configuration {}", file.display()))
    }

    /// How the node comes into its cluster.
    pub fn origin(&self) -> Origin {
        if self.join.is_empty() {
            Origin::Founding(self.members.clone())
        } else {
            Origin::Joining(self.own.clone())
        }
    }

    fn parse(text: &str, folder: &Path) -> anyhow::Result<Self> {
        let table: toml::Table = text.parse().context("it is not valid TOML")?;
        settings::refuse_unknown_keys(&table)?;
        let file: FileConfig = toml::from_str(text)?;
        let (own, members) = place(&file)?;
        let bytes = |section, name, given: &Option<String>, default| {
            given_bytes(section, name, given).map(|given| given.unwrap_or(default))
        };
        let data_dir = folder.join(&file.data_dir);
        let s3 = S3Options {
            endpoint: file.s3.endpoint,
            region: file.s3.region,
            access_key_id: file.s3.access_key_id,
            secret_access_key: file.s3.secret_access_key,
        };
        Ok(Self {
            part_store: part_store(&file.part_store, &data_dir, s3)?,
            wal_dir: file
                .wal_dir
                .map_or_else(|| data_dir.join("wal"), |wal_dir| folder.join(wal_dir)),
            keeper: KeeperConfig {
                copy_rate: bytes("parts", "copy_rate", &file.parts.copy_rate, 128 << 20)?,
                scrub_rate: bytes("parts", "scrub_rate", &file.parts.scrub_rate, 16 << 20)?,
            },
            data_dir,
            listen: Listen {
                raft: file.listen.raft.unwrap_or_else(|| own.raft_addr.clone()),
                api: file.listen.api.unwrap_or_else(|| own.api_addr.clone()),
                http: file.listen.http.unwrap_or_else(|| own.http_addr.clone()),
            },
            memory: memory(&file.memory)?,
            own,
            members,
            join: file.join,
            cluster: file.cluster,
            warehouse: file.warehouse,
        })
    }
}

/// A number of bytes, where one is given.
fn given_bytes(section: &str, name: &str, given: &Option<String>) -> anyhow::Result<Option<u64>> {
    let parse = |text: &String| parse_bytes(text).with_context(|| format!("[{section}] {name} = \"{text}\""));
    given.as_ref().map(parse).transpose()
}

fn memory(given: &FileMemory) -> anyhow::Result<Shares> {
    let limit = match given_bytes("memory", "limit", &given.limit)? {
        Some(limit) => limit,
        None => default_limit()?,
    };
    Shares::of(limit, given_bytes("memory", "queries", &given.queries)?)
}

/// What `part_store` says. URLs of shared stores are checked when the store is opened.
fn part_store(text: &str, data_dir: &Path, s3: S3Options) -> anyhow::Result<PartStoreConfig> {
    match text.split_once("://") {
        None if text == "replicated" => Ok(PartStoreConfig::Replicated(data_dir.join("parts"))),
        Some(("replicated", folder)) if folder.starts_with('/') => Ok(PartStoreConfig::Replicated(folder.into())),
        Some((scheme, _)) if scheme != "replicated" => Ok(PartStoreConfig::Shared(text.to_owned(), s3)),
        _ => bail!(
            "part_store = \"{text}\" is no part store: write \"replicated\", \"replicated:///absolute/folder\", or the URL of \
             a store that all nodes share, such as \"s3://bucket/prefix\""
        ),
    }
}

/// The node as the others see it, and the founding members if it is one of them.
fn place(file: &FileConfig) -> anyhow::Result<(MemberConfig, Vec<MemberConfig>)> {
    let members: Vec<MemberConfig> = file
        .members
        .iter()
        .map(|m| MemberConfig {
            name: m.name.clone(),
            raft_addr: m.raft.clone(),
            api_addr: m.api.clone(),
            http_addr: m.http.clone(),
            warehouse: file.warehouse.clone(),
        })
        .collect();
    match (&file.join[..], &file.advertise, &members[..]) {
        ([], None, []) => bail!(
            "neither `join` nor [[members]] is given: a node either founds a cluster with the members, or joins one. \
             tidemill init writes both kinds of file"
        ),
        ([], None, _) => {}
        ([], Some(_), _) => bail!("[advertise] is for nodes that join; the address of a member stands in [[members]]"),
        ([_, ..], _, [_, ..]) => {
            bail!("`join` and [[members]] exclude each other: a node founds a cluster or joins one")
        }
        ([_, ..], None, []) => bail!("with `join`, [advertise] must say where the others reach this node"),
        (join, Some(advertise), []) => {
            for address in join {
                check_address("join", address)?;
            }
            let own = MemberConfig {
                name: file.name.clone(),
                raft_addr: advertise.raft.clone(),
                api_addr: advertise.api.clone(),
                http_addr: advertise.http.clone(),
                warehouse: file.warehouse.clone(),
            };
            for address in [&advertise.raft, &advertise.api, &advertise.http] {
                check_address("[advertise]", address)?;
            }
            return Ok((own, vec![]));
        }
    }
    check_members(&file.members)?;
    match members.iter().find(|m| m.name == file.name) {
        Some(own) => Ok((own.clone(), members)),
        None => {
            let names: Vec<&str> = file.members.iter().map(|m| m.name.as_str()).collect();
            bail!(
                "name = \"{}\" is not one of the members ({})",
                file.name,
                names.join(", ")
            )
        }
    }
}

fn check_members(members: &[FileMember]) -> anyhow::Result<()> {
    for (i, member) in members.iter().enumerate() {
        if members[..i].iter().any(|other| other.name == member.name) {
            bail!(
                "two members are called \"{}\"; every node needs a name of its own",
                member.name
            );
        }
        for address in [&member.raft, &member.api, &member.http] {
            check_address(&format!("member \"{}\"", member.name), address)?;
        }
    }
    Ok(())
}

fn check_address(of: &str, address: &str) -> anyhow::Result<()> {
    let valid = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if !valid {
        bail!("{of}: \"{address}\" is not an address; write host:port");
    }
    Ok(())
}

/// `"512MiB"` and the like as bytes.
fn parse_bytes(text: &str) -> anyhow::Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim();
    let unit = text[digits.len()..].trim();
    let number: u64 = digits
        .parse()
        .with_context(|| "write a number and a unit, such as 512MiB")?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        other => bail!("`{other}` is not a unit of bytes: KiB, MiB, GiB, kB, MB or GB"),
    };
    number
        .checked_mul(factor)
        .filter(|bytes| *bytes > 0)
        .context("it must be more than nothing and fit 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        cluster = "demo"
        name = "n1"
        data_dir = "data"
        part_store = "file:///tmp/parts"
        [memory]
        limit = "512MiB"
        [[members]]
        name = "n1"
        raft = "127.0.0.1:7301"
        api = "127.0.0.1:7401"
        http = "127.0.0.1:7501"
    "#;

    fn error(text: &str) -> String {
        format!("{:#}", NodeConfig::parse(text, Path::new("/etc")).unwrap_err())
    }

    #[test]
    fn a_good_file_is_taken() {
        let config = NodeConfig::parse(GOOD, Path::new("/etc/tidemill")).unwrap();
        assert_eq!(config.data_dir, Path::new("/etc/tidemill/data"));
        assert_eq!(config.listen.api, "127.0.0.1:7401");
        assert_eq!(config.memory, Shares::of(512 << 20, None).unwrap());
    }

    #[test]
    fn the_log_lies_with_the_data_or_on_a_device_of_its_own() {
        let wal_dir = |text: &str| NodeConfig::parse(text, Path::new("/etc")).unwrap().wal_dir;
        assert_eq!(wal_dir(GOOD), Path::new("/etc/data/wal"));
        let own = GOOD.replace("[memory]", "wal_dir = \"/mnt/nvme/wal\"\n[memory]");
        assert_eq!(wal_dir(&own), Path::new("/mnt/nvme/wal"));
    }

    #[test]
    fn parts_are_replicated_unless_a_shared_store_is_named() {
        let store = |line: &str| {
            let text = GOOD.replace("part_store = \"file:///tmp/parts\"", line);
            NodeConfig::parse(&text, Path::new("/etc")).map(|config| config.part_store)
        };
        let own = PartStoreConfig::Replicated("/etc/data/parts".into());
        assert_eq!(store("").unwrap(), own);
        assert_eq!(store("part_store = \"replicated\"").unwrap(), own);
        let disk = PartStoreConfig::Replicated("/mnt/ssd".into());
        assert_eq!(store("part_store = \"replicated:///mnt/ssd\"").unwrap(), disk);
        let shared = PartStoreConfig::Shared("file:///srv".into(), S3Options::default());
        assert_eq!(store("part_store = \"file:///srv\"").unwrap(), shared);
        for wrong in ["replicated://ssd", "/mnt/ssd", "replicate"] {
            let error = store(&format!("part_store = \"{wrong}\"")).unwrap_err().to_string();
            assert!(error.contains("is no part store: write \"replicated\""), "{error}");
        }
    }

    #[test]
    fn an_unknown_setting_is_refused_with_the_nearest() {
        assert!(error(&GOOD.replace("data_dir", "datadir")).contains("did you mean `data_dir`?"));
        let inner = error(&GOOD.replace("limit", "limits"));
        assert!(inner.contains("`limits` in [memory]; did you mean `limit`?"), "{inner}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(
            error(&GOOD.replace("name = \"n1\"\n        data", "name = \"n7\"\n        data"))
                .contains("not one of the members (n1)")
        );
        assert!(error(&GOOD.replace("127.0.0.1:7401", "nowhere")).contains("\"nowhere\" is not an address"));
        assert!(error(&GOOD.replace("512MiB", "64 bananas")).contains("`bananas` is not a unit"));
        let twice = format!("{GOOD}\n[[members]]\nname = \"n1\"\nraft = \"a:1\"\napi = \"a:2\"\nhttp = \"a:3\"");
        assert!(error(&twice).contains("two members are called \"n1\""));
    }

    #[test]
    fn a_node_founds_or_joins() {
        let members = GOOD.find("[[members]]").unwrap();
        let neither = &GOOD[..members];
        assert!(error(neither).contains("neither `join` nor [[members]]"));
        let advertise = "[advertise]\nraft = \"h:1\"\napi = \"h:2\"\nhttp = \"h:3\"\n";
        let join = |text: &str| text.replace("[memory]", "join = [\"a:1\", \"b:1\"]\n[memory]");
        assert!(error(&join(neither)).contains("[advertise] must say"));
        assert!(error(&join(GOOD)).contains("exclude each other"));
        assert!(error(&format!("{GOOD}{advertise}")).contains("for nodes that join"));
        let good = format!("{}{advertise}", join(neither));
        assert!(error(&good.replace("b:1", "b")).contains("join: \"b\" is not an address"));
        assert!(error(&good.replace("h:2", "h")).contains("[advertise]: \"h\" is not an address"));
        let config = NodeConfig::parse(&good, Path::new("/etc")).unwrap();
        assert_eq!((config.join.len(), config.members.len()), (2, 0));
        assert_eq!(config.listen.api, "h:2");
        assert!(matches!(config.origin(), Origin::Joining(own) if own.name == "n1" && own.raft_addr == "h:1"));
    }

    #[test]
    fn the_reference_page_is_up_to_date() {
        // Asked when run: checkouts may share a target folder, and one must not look at the page of another.
        let package = std::env::var("CARGO_MANIFEST_DIR").unwrap();
        let page = Path::new(&package).join("../docs/configuration.md");
        let written = std::fs::read_to_string(page).unwrap_or_default();
        assert_eq!(
            written,
            reference(),
            "run: tidemill config-reference > docs/configuration.md"
        );
    }
}
