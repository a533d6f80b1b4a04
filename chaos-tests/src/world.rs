//! A world: Kafka brokers and one Tidemill cluster, as processes in a folder of their own; on loopback, or in network namespaces
//! ([`crate::fault::network`]) where faults are to come between any two of them.
//!
//! It ends only processes that it started. Dropping it ends them all and removes the folder, unless
//! told to keep it.

mod asking;
mod places;

pub use asking::{metrics, page};

use crate::fault::clock::Clock;
use crate::fault::disk::Disk;
use crate::fault::network::{Network, Place};
use anyhow::{Context, bail, ensure};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tidemill_client::{Client, ClientConfig};

/// Broker and nodes.
pub struct World {
    folder: tempfile::TempDir,
    /// Bootstrap servers of the broker.
    pub brokers: String,
    /// The URL of a part store that all nodes share; without, parts are replicated.
    pub parts: Option<String>,
    /// What is added to the configuration of every founding node.
    pub settings: String,
    /// Whether each node runs as a user of its own, so that it can be cut off. Needs root.
    pub as_users: bool,
    /// The network namespaces that everything is in; without, everything is on loopback.
    pub network: Option<Arc<Network>>,
    /// Whether the data of each node that is started from now on lies on a disk that can be made to misbehave.
    pub with_disks: bool,
    /// Whether each node that is started from now on has a clock that can be shifted.
    pub with_clocks: bool,
    /// The topics that faults may harm; all, where none is named.
    pub topics: Vec<String>,
    /// How often faults have harmed a topic.
    pub harmed: BTreeMap<String, u32>,
    /// Partitions that faults have added to topics.
    pub grown: Vec<Added>,
    /// How many brokers there are.
    brokers_count: u32,
    /// Below the ports of the nodes.
    base_port: u16,
    nodes: Vec<NodeProcess>,
}

/// Partitions that were added to a topic.
pub type Added = (String, Range<u32>);

/// Ports are kept free for so many nodes at least, since some may join later.
const MOST_NODES: u16 = 9;

/// The user of the first node, where each has its own; nobody else's on an ordinary machine.
const FIRST_USER: u32 = 61_701;

/// Below the ports of nodes that have addresses of their own.
const BASE_PORT: u16 = 7300;
/// The first port of brokers that have addresses of their own.
const BROKER_PORT: u16 = 9092;

struct NodeProcess {
    name: String,
    host: Ipv4Addr,
    api: String,
    disk: Option<Arc<Disk>>,
    clock: Option<Arc<Clock>>,
    child: Option<Child>,
}

/// The root of the checkout: the folder above this package when cargo runs it, else the current folder. Asked when
/// run, not when built: checkouts may share a target folder, and then one must not use the scripts of another.
pub fn checkout() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let root = package.and_then(|package| package.parent().map(Path::to_path_buf));
    root.or_else(|| std::env::current_dir().ok()).unwrap_or_default()
}

/// All files below a folder, in no order; none if there is no such folder.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => found.extend(files_below(&path)),
            false => found.push(path),
        }
    }
    found
}

/// The binary under test: `TIDEMILL_BIN`, or the one built beside this program.
pub fn binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("TIDEMILL_BIN") {
        return Ok(path.into());
    }
    let me = std::env::current_exe()?;
    let folders = me.ancestors().skip(1).take(2);
    let found = folders
        .map(|folder| folder.join("tidemill"))
        .find(|path| path.is_file());
    found.context("the tidemill binary is not built: cargo build -p tidemill-node")
}

/// Runs a program to its end and gives its output; an error shows what it said.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let shown = format!("{command:?}");
    let done = command.output().with_context(|| format!("cannot run {shown}"))?;
    if !done.status.success() {
        bail!("{shown} failed: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// A port below which `count` ports with the spacing of `tidemill init` are free.
fn free_base_port(nodes: u16) -> anyhow::Result<u16> {
    for _ in 0..200 {
        let base = rand::random_range(12_000..28_000u16);
        let wanted = (1..=nodes).flat_map(|i| [base + i, base + 100 + i, base + 200 + i]);
        if wanted
            .map(|port| TcpListener::bind(("127.0.0.1", port)))
            .all(|bound| bound.is_ok())
        {
            return Ok(base);
        }
    }
    bail!("no free ports")
}

/// The binary, as `user`: in a place, and with a folder, that it can reach.
fn as_user(user: u32, folder: &Path, home: &Path) -> anyhow::Result<Command> {
    let me = output(Command::new("id").arg("-u"))?;
    ensure!(
        me.trim() == "0",
        "nodes run as users of their own here, to be cut off: that needs root"
    );
    let copy = folder.join("tidemill");
    if !copy.exists() {
        std::fs::copy(binary()?, &copy).context("the binary cannot be copied")?;
    }
    output(Command::new("chmod").arg("755").arg(folder).arg(&copy))?;
    output(Command::new("chown").arg("-R").arg(user.to_string()).arg(home))?;
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={user}")).arg("--clear-groups").arg(copy);
    Ok(command)
}

impl World {
    /// A broker and `nodes` nodes, all up, the cluster founded.
    pub async fn start(nodes: u16) -> anyhow::Result<Self> {
        let mut world = Self::with_broker()?;
        world.start_cluster(nodes).await?;
        Ok(world)
    }

    /// Nothing yet: for a cluster that needs no broker.
    pub fn without_broker() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("tidemill-world-").tempdir()?;
        Ok(Self::in_folder(folder, String::new()))
    }

    fn in_folder(folder: tempfile::TempDir, brokers: String) -> Self {
        Self {
            folder,
            brokers,
            parts: None,
            settings: String::new(),
            as_users: false,
            network: None,
            with_disks: false,
            with_clocks: false,
            topics: vec![],
            harmed: BTreeMap::new(),
            grown: vec![],
            brokers_count: 0,
            base_port: 0,
            nodes: vec![],
        }
    }

    /// A broker alone.
    pub fn with_broker() -> anyhow::Result<Self> {
        Self::with_brokers(1, &[])
    }

    /// Brokers alone, with these settings (`name=value`).
    pub fn with_brokers(count: u32, settings: &[&str]) -> anyhow::Result<Self> {
        Self::brokers_with(count, settings, &["--port".to_owned(), "auto".to_owned()])
    }

    fn brokers_with(count: u32, settings: &[&str], options: &[String]) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("tidemill-world-").tempdir()?;
        let mut kafka = Command::new(checkout().join("scripts/kafka"));
        kafka.arg("--dir").arg(folder.path().join("kafka")).args(options);
        kafka.args(settings.iter().flat_map(|setting| ["--set", setting]));
        let up = output(kafka.args(["up", &count.to_string()]))?;
        let brokers = up
            .lines()
            .last()
            .context("scripts/kafka up printed nothing")?
            .to_owned();
        let mut world = Self::in_folder(folder, brokers);
        world.brokers_count = count;
        Ok(world)
    }

    /// Writes configurations, starts the nodes, waits until the cluster answers.
    pub async fn start_cluster(&mut self, nodes: u16) -> anyhow::Result<()> {
        self.base_port = match self.network {
            Some(_) => BASE_PORT,
            None => free_base_port(nodes.max(MOST_NODES))?,
        };
        let base = self.base_port;
        let mut init = Command::new(binary()?);
        init.arg("init").arg("--dir").arg(self.folder.path());
        init.args(self.parts.iter().flat_map(|url| ["--parts", url.as_str()]));
        output(init.args(["--nodes", &nodes.to_string(), "--base-port", &base.to_string()]))?;
        for i in 0..nodes as usize {
            self.name_another()?;
            let config = self.folder.path().join(&self.nodes[i].name).join("node.toml");
            let text = self.addressed(std::fs::read_to_string(&config)?, nodes);
            std::fs::write(config, format!("{text}\n{}", self.settings))?;
        }
        for i in 0..self.nodes.len() {
            self.start_node(i)?;
        }
        self.all_ready().await?;
        let founded = self.client()?.cluster_status().await?.nodes.len();
        ensure!(founded == nodes as usize, "the cluster has {founded} nodes");
        Ok(())
    }

    /// Sends a signal, such as STOP, to node `i`.
    pub fn signal(&self, i: usize, signal: &str) -> anyhow::Result<()> {
        let pid = self.pid(i).context("the node does not run")?;
        output(Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string())).map(drop)
    }

    /// Runs `scripts/kafka` for this world's brokers.
    pub fn kafka(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut kafka = Command::new(checkout().join("scripts/kafka"));
        output(kafka.arg("--dir").arg(self.folder.path().join("kafka")).args(arguments))
    }

    /// Configures one more node, which joins the cluster when it is started; gives its number here.
    pub fn another_node(&mut self) -> anyhow::Result<usize> {
        let cluster = self.connect();
        let node = self.name_another()?;
        let mut init = Command::new(binary()?);
        init.arg("init").arg("--dir").arg(self.folder.path());
        init.args(["--join", &cluster, "--name", &self.nodes[node].name]);
        init.args(["--host", &self.nodes[node].host.to_string()]);
        output(init.args(["--base-port", &self.base_port.to_string()]))?;
        Ok(node)
    }

    /// One more node that has nothing but a name; gives its number here.
    pub fn name_another(&mut self) -> anyhow::Result<usize> {
        let i = self.nodes.len();
        if let Some(network) = &self.network {
            network.add(Place::Node(i))?;
        }
        let host = self.place_host(i);
        self.nodes.push(NodeProcess {
            name: format!("n{}", i + 1),
            host,
            api: format!("{host}:{}", self.base_port + 101 + i as u16),
            disk: None,
            clock: None,
            child: None,
        });
        Ok(i)
    }

    /// Starts node `i` with the command by which it joins the others, in the place that [`World::name_another`] gave it.
    pub fn join_node(&mut self, i: usize) -> anyhow::Result<()> {
        let others = self.nodes.iter().take(i).map(|node| node.api.as_str());
        let others = others.collect::<Vec<_>>().join(",");
        let mut command = self.node_command(i)?;
        command.args(["node", "join", "--connect", &others, "--name", &self.nodes[i].name]);
        command.args(["--host", &self.nodes[i].host.to_string()]);
        command.args(["--base-port", &self.base_port.to_string()]);
        command.arg("--dir").arg(self.folder.path());
        self.spawn(i, command)
    }

    /// Runs the binary with these arguments against the cluster; gives what it says.
    pub fn tidemill(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(binary()?);
        output(command.args(arguments).args(["--connect", &self.connect()]))
    }

    /// The same, asking node `i` alone.
    pub fn tidemill_at(&self, i: usize, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(binary()?);
        output(command.args(arguments).args(["--connect", &self.nodes[i].api]))
    }

    /// What the log of node `i` says.
    pub fn log(&self, i: usize) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(
            self.folder.path().join(&self.nodes[i].name).join("log"),
        )?)
    }

    /// Waits until node `i` ends by itself; says whether it ended well.
    pub async fn wait_for_end(&mut self, i: usize, patience: Duration) -> anyhow::Result<bool> {
        let node = &mut self.nodes[i];
        let child = node
            .child
            .as_mut()
            .with_context(|| format!("{} does not run", node.name))?;
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = child.try_wait()? {
                node.child = None;
                return Ok(status.success());
            }
            ensure!(Instant::now() < until, "{} runs on after {patience:?}", node.name);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Where everything lies.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Keeps the folder for a look, and says where it is.
    pub fn keep(&mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }

    /// How many nodes there are.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// The name of node `i`.
    pub fn name(&self, i: usize) -> &str {
        &self.nodes[i].name
    }

    /// Which node is called `name`.
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|n| n.name == name)
    }

    /// A client that knows all nodes.
    pub fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(self.beginning_at(0))?)
    }

    /// What a client is told that knows all nodes and asks node `i` first.
    pub fn beginning_at(&self, i: usize) -> ClientConfig {
        let from = self.nodes.iter().skip(i).chain(self.nodes.iter().take(i));
        let mut config = ClientConfig::new(from.map(|n| n.api.clone()));
        config.retry_for = Duration::from_secs(30);
        config
    }

    /// A client that knows all nodes but one, and asks but once.
    pub fn client_without(&self, node: usize) -> anyhow::Result<Client> {
        let others = self.nodes.iter().enumerate().filter(|(i, _)| *i != node);
        let mut config = ClientConfig::new(others.map(|(_, n)| n.api.clone()));
        config.retry_for = Duration::ZERO;
        Ok(Client::new(config)?)
    }

    /// Where node `i` serves its metrics.
    pub fn http(&self, i: usize) -> SocketAddr {
        SocketAddr::from((self.nodes[i].host, self.base_port + 201 + i as u16))
    }

    /// The user that node `i` runs as, where nodes have users of their own.
    pub fn user(&self, i: usize) -> u32 {
        FIRST_USER + i as u32
    }

    /// The api addresses, separated by commas.
    pub fn connect(&self) -> String {
        self.nodes.iter().map(|n| n.api.as_str()).collect::<Vec<_>>().join(",")
    }

    /// Starts node `i`; its log goes to a file beside its data.
    pub fn start_node(&mut self, i: usize) -> anyhow::Result<()> {
        let home = self.folder.path().join(&self.nodes[i].name);
        let mut command = self.node_command(i)?;
        command.arg("node").arg("--config").arg(home.join("node.toml"));
        self.spawn(i, command)
    }

    fn spawn(&mut self, i: usize, mut command: Command) -> anyhow::Result<()> {
        let node = &mut self.nodes[i];
        let home = self.folder.path().join(&node.name);
        std::fs::create_dir_all(&home)?;
        let log = File::options().create(true).append(true).open(home.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        node.child = Some(command.spawn()?);
        Ok(())
    }

    /// Ends node `i` with SIGKILL.
    pub fn kill_node(&mut self, i: usize) -> anyhow::Result<()> {
        let node = &mut self.nodes[i];
        let mut child = node
            .child
            .take()
            .with_context(|| format!("{} does not run", node.name))?;
        ensure!(
            child.try_wait()?.is_none(),
            "{} had ended by itself; see its log",
            node.name
        );
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Asks node `i` to end, and waits until it has.
    pub fn stop_node(&mut self, i: usize) -> anyhow::Result<Duration> {
        let node = &mut self.nodes[i];
        let mut child = node
            .child
            .take()
            .with_context(|| format!("{} does not run", node.name))?;
        let began = Instant::now();
        output(Command::new("kill").arg("-TERM").arg(child.id().to_string()))?;
        let ended = child.wait()?;
        ensure!(ended.success(), "{} ended with {ended}", node.name);
        Ok(began.elapsed())
    }

    /// The process id of node `i`, if it runs.
    pub fn pid(&self, i: usize) -> Option<u32> {
        self.nodes[i].child.as_ref().map(Child::id)
    }

    /// Fails if a node that should run has ended.
    pub fn all_alive(&mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            if let Some(child) = &mut node.child
                && let Some(status) = child.try_wait()?
            {
                bail!("{} ended by itself with {status}", node.name);
            }
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                // It may have ended by itself; either way it is gone after this.
                drop(child.kill());
                drop(child.wait());
            }
            // Before the folder that it is mounted in is removed.
            node.disk = None;
        }
        if self.brokers.is_empty() {
            return;
        }
        let mut kafka = Command::new(checkout().join("scripts/kafka"));
        let down = output(
            kafka
                .arg("--dir")
                .arg(self.folder.path().join("kafka"))
                .args(["down", "--wipe"]),
        );
        if let Err(error) = down {
            eprintln!("the broker could not be stopped: {error:#}");
        }
    }
}
