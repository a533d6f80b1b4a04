//! A network of namespaces: each node and each broker has one of its own, with an address of its own, and all of them are
//! joined by a bridge in one more, the *hub*, in which the clients of the harness live. No packet leaves what was made here.
//!
//! Needs root and `ip`. The namespaces carry the pid of the harness in their names. They are removed at the end, and those of
//! a run that ended without doing so are removed when the next one begins, with the processes that were left in them.

use crate::world::output;
use anyhow::{Context, ensure};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Where `ip` keeps the names of namespaces.
const NAMES: &str = "/run/netns";
/// What all names of namespaces begin with; the pid of the harness follows.
const PREFIX: &str = "tidemill-";
/// The address of the harness, and of the proxies that it puts in the way.
pub const HUB: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);
/// The address from which proxies connect on, so that rules can tell them from clients.
pub const PROXY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 253);
/// Networks that this process has made.
static MADE: AtomicU32 = AtomicU32::new(0);

/// Who takes part. Nodes count from 0, as in a world; brokers from 1, as in `scripts/kafka`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The clients of the harness.
    Hub,
    /// A node.
    Node(usize),
    /// A broker.
    Broker(u32),
}

impl Place {
    /// The address, which is the same in every network, since none of them sees another.
    pub fn address(self) -> Ipv4Addr {
        match self {
            Self::Hub => HUB,
            Self::Node(i) => Ipv4Addr::new(10, 77, 0, (i % 100) as u8 + 1),
            Self::Broker(i) => Ipv4Addr::new(10, 77, 0, 100 + (i % 100) as u8),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub => to.write_str("hub"),
            Self::Node(i) => write!(to, "n{}", i + 1),
            Self::Broker(i) => write!(to, "b{i}"),
        }
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct Network {
    /// What the names of its namespaces begin with.
    name: String,
    members: Mutex<BTreeMap<Place, String>>,
}

impl Network {
    /// Why there can be none here, if that is so.
    pub fn missing() -> Option<String> {
        if !nix::unistd::geteuid().is_root() {
            return Some("network namespaces need root".to_owned());
        }
        let programs = [("ip", "netns"), ("nft", "--version"), ("nsenter", "--version")];
        let missing = programs
            .iter()
            .find(|(program, argument)| output(Command::new(program).arg(argument)).is_err());
        if let Some((program, _)) = missing {
            return Some(format!("{program} does not work here: scripts/setup faults"));
        }
        Self::make().err().map(|error| format!("{error:#}"))
    }

    /// A hub alone.
    ///
    /// # Errors
    /// Without root, or on a machine without network namespaces.
    pub fn make() -> anyhow::Result<Arc<Self>> {
        sweep();
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let network = Self {
            name: format!("{PREFIX}{}-{number}-", std::process::id()),
            members: Mutex::default(),
        };
        let hub = network.namespace(Place::Hub)?;
        ip(&["-n", &hub, "link", "add", "bridge", "type", "bridge"])?;
        for address in [HUB, PROXY] {
            ip(&["-n", &hub, "address", "add", &format!("{address}/24"), "dev", "bridge"])?;
        }
        ip(&["-n", &hub, "link", "set", "bridge", "up"])?;
        Ok(Arc::new(network))
    }

    /// Makes a namespace with a loopback of its own.
    fn namespace(&self, place: Place) -> anyhow::Result<String> {
        let name = format!("{}{place}", self.name);
        ip(&["netns", "add", &name])?;
        self.members().insert(place, name.clone());
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        // From the first packet on, so that a connection is known when its address is to be translated.
        rules(
            &name,
            "table ip track {\nchain out {\ntype filter hook output priority 0; policy accept;\nct state invalid counter\n}\n}",
        )?;
        Ok(name)
    }

    fn members(&self) -> std::sync::MutexGuard<'_, BTreeMap<Place, String>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins a node or a broker to the bridge.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn add(&self, place: Place) -> anyhow::Result<()> {
        if self.members().contains_key(&place) {
            return Ok(());
        }
        let (hub, name, link) = (self.name_of(Place::Hub)?, self.namespace(place)?, place.to_string());
        let address = format!("{}/24", place.address());
        ip(&[
            "-n", &hub, "link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &name,
        ])?;
        ip(&["-n", &hub, "link", "set", &link, "master", "bridge", "up"])?;
        ip(&["-n", &name, "address", "add", &address, "dev", "eth0"])?;
        ip(&["-n", &name, "link", "set", "eth0", "up"])
    }

    /// The name of a namespace.
    ///
    /// # Errors
    /// If `place` does not take part.
    pub fn name_of(&self, place: Place) -> anyhow::Result<String> {
        let name = self.members().get(&place).cloned();
        name.with_context(|| format!("{place} is not in the network"))
    }

    /// All who take part, but for the hub.
    pub fn places(&self) -> Vec<Place> {
        self.members()
            .keys()
            .copied()
            .filter(|place| *place != Place::Hub)
            .collect()
    }

    /// `program`, as a process in the namespace of `place`.
    ///
    /// # Errors
    /// If `place` does not take part.
    pub fn command(&self, place: Place, program: &Path) -> anyhow::Result<Command> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", path(&self.name_of(place)?).display()));
        command.arg("--").arg(program);
        Ok(command)
    }

    /// Loads rules of `nft` in the namespace of `place`.
    ///
    /// # Errors
    /// If `nft` refuses them.
    pub fn rules(&self, place: Place, text: &str) -> anyhow::Result<()> {
        rules(&self.name_of(place)?, text)
    }

    /// Moves this thread, and whatever it starts from now on, to `place`.
    ///
    /// # Errors
    /// If `place` does not take part.
    pub fn enter(&self, place: Place) -> anyhow::Result<()> {
        let path = path(&self.name_of(place)?);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("{place} cannot be entered"))
    }

    /// Does `work` in the hub: on a thread of its own, in a runtime all of whose threads, and all processes that they start,
    /// are there.
    ///
    /// # Errors
    /// If the thread cannot get there; and what `work` gives.
    pub fn inside<T: Send>(
        self: &Arc<Self>,
        work: impl AsyncFnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let run = || {
            self.enter(Place::Hub)?;
            super::stage::runtime()?.block_on(work())
        };
        std::thread::scope(|scope| match scope.spawn(run).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in std::mem::take(&mut *self.members()).into_values() {
            if let Err(error) = remove(&name) {
                eprintln!("the namespace {name} stays: {error:#}");
            }
        }
    }
}

fn path(name: &str) -> PathBuf {
    Path::new(NAMES).join(name)
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    output(Command::new("ip").args(arguments)).map(drop)
}

fn rules(namespace: &str, text: &str) -> anyhow::Result<()> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", path(namespace).display()));
    output(command.args(["--", "nft", text])).map(drop)
}

/// Removes a namespace, and ends what still runs in it.
fn remove(name: &str) -> anyhow::Result<()> {
    let left = output(Command::new("ip").args(["netns", "pids", name]))?;
    // This process may have a thread in its own hub, which is about to end.
    let me = std::process::id().to_string();
    for pid in left.split_whitespace().filter(|pid| **pid != me) {
        // It may have ended meanwhile.
        drop(output(Command::new("kill").args(["-KILL", pid])));
    }
    ip(&["netns", "delete", name])
}

/// Removes what runs left that have ended.
fn sweep() {
    let names = fs::read_dir(NAMES).into_iter().flatten().flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok()) else {
            continue;
        };
        if !Path::new(&format!("/proc/{pid}")).exists() {
            eprintln!("removing {name}, which a run left that has ended");
            // Another run may be doing the same.
            drop(remove(&name));
        }
    }
}

/// Whether the two are told apart.
///
/// # Errors
/// If they are the same.
pub(super) fn differ(from: Place, to: Place) -> anyhow::Result<()> {
    ensure!(from != to, "{from} cannot be cut off from itself");
    Ok(())
}
