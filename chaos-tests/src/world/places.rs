//! Where the processes of a world are, and on what disks and by what clocks: what faults need to know of it.

use super::{BROKER_PORT, World, as_user, binary, output};
use crate::fault::clock::Clock;
use crate::fault::disk::Disk;
use crate::fault::network::{Network, Place};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

impl World {
    /// The same, each in a namespace of its own, where the nodes will be, too. To be called in the hub ([`Network::inside`]).
    pub fn in_network(network: &Arc<Network>, count: u32, settings: &[&str]) -> anyhow::Result<Self> {
        let brokers = (1..=count).map(Place::Broker);
        brokers.clone().try_for_each(|broker| network.add(broker))?;
        let names = brokers.clone().map(|broker| network.name_of(broker));
        let names = names.collect::<anyhow::Result<Vec<_>>>()?.join(",");
        let hosts: Vec<String> = brokers.map(|broker| broker.address().to_string()).collect();
        let mut options = vec!["--port".to_owned(), BROKER_PORT.to_string()];
        options.extend(["--hosts".to_owned(), hosts.join(","), "--netns".to_owned(), names]);
        let mut world = match count {
            0 => Self::without_broker()?,
            _ => Self::brokers_with(count, settings, &options)?,
        };
        world.network = Some(network.clone());
        Ok(world)
    }

    /// A configuration as `tidemill init` wrote it, with the addresses that the nodes have here.
    pub(super) fn addressed(&self, mut text: String, nodes: u16) -> String {
        for (i, port) in (1..=nodes).flat_map(|i| [0, 100, 200].map(|kind| (i, self.base_port + kind + i))) {
            let host = self.place_host(i as usize - 1);
            text = text.replace(&format!("127.0.0.1:{port}\""), &format!("{host}:{port}\""));
        }
        text
    }

    /// Where node `i` is to be.
    pub(super) fn place_host(&self, i: usize) -> Ipv4Addr {
        match self.network {
            Some(_) => Place::Node(i).address(),
            None => Ipv4Addr::LOCALHOST,
        }
    }

    /// The binary, as the process that node `i` is to be, where that is to be.
    pub(super) fn node_command(&mut self, i: usize) -> anyhow::Result<Command> {
        let folder = self.folder.path();
        let home = folder.join(&self.nodes[i].name);
        let mut command = match &self.network {
            Some(network) => network.command(Place::Node(i), &binary()?)?,
            None if self.as_users => as_user(self.user(i), folder, &home)?,
            None => Command::new(binary()?),
        };
        let node = &mut self.nodes[i];
        if self.with_disks && node.disk.is_none() {
            node.disk = Some(Arc::new(Disk::mount(&home.join("data"), &home.join("disk"))?));
        }
        if self.with_clocks {
            let clock = match node.clock.take() {
                Some(clock) => clock,
                None => Arc::new(Clock::new(folder, &node.name)?),
            };
            clock.give(&mut command);
            node.clock = Some(clock);
        }
        Ok(command)
    }

    /// Has node `i` join the cluster as a new one when it is started, whatever it was before: one that founded the cluster and
    /// was removed cannot come back with the configuration that it had.
    pub fn configure_anew(&self, i: usize) -> anyhow::Result<()> {
        let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != i);
        let others: Vec<&str> = others.map(|(_, node)| node.api.as_str()).collect();
        let node = &self.nodes[i];
        let mut init = Command::new(binary()?);
        init.arg("init").arg("--dir").arg(self.folder.path()).arg("--force");
        init.args(["--join", &others.join(","), "--name", &node.name]);
        init.args([
            "--host",
            &node.host.to_string(),
            "--base-port",
            &self.base_port.to_string(),
        ]);
        output(&mut init)?;
        let config = self.folder.path().join(&node.name).join("node.toml");
        let text = std::fs::read_to_string(&config)?;
        Ok(std::fs::write(config, format!("{text}\n{}", self.settings))?)
    }

    /// The disk of node `i`, if it has one that can be made to misbehave.
    pub fn disk(&self, i: usize) -> Option<&Arc<Disk>> {
        self.nodes[i].disk.as_ref()
    }

    /// The clock of node `i`, if it has one that can be shifted.
    pub fn clock(&self, i: usize) -> Option<&Arc<Clock>> {
        self.nodes[i].clock.as_ref()
    }

    /// Where the data of node `i` lies, to be looked at or damaged behind its back.
    pub fn data(&self, i: usize) -> PathBuf {
        let home = self.folder.path().join(&self.nodes[i].name);
        let disk = self.disk(i).map(|disk| disk.folder().to_owned());
        disk.unwrap_or_else(|| home.join("data"))
    }

    /// How many brokers there are, some of which may be down.
    pub fn broker_count(&self) -> u32 {
        self.brokers_count
    }

    /// The ports of node `i`: Raft, api, http.
    pub fn node_ports(&self, i: usize) -> [u16; 3] {
        [0, 100, 200].map(|kind| self.base_port + kind + i as u16 + 1)
    }

    /// The ports of broker `i` (from 1), where brokers have addresses of their own: for clients, and for controllers.
    pub fn broker_ports(&self, i: u32) -> [u16; 2] {
        let first = BROKER_PORT + 2 * (i as u16 - 1);
        [first, first + 1]
    }

    /// Whether node `i` runs. One that has ended by itself does not, from then on.
    pub fn is_alive(&mut self, i: usize) -> anyhow::Result<bool> {
        let node = &mut self.nodes[i];
        if let Some(child) = &mut node.child
            && child.try_wait()?.is_some()
        {
            node.child = None;
        }
        Ok(node.child.is_some())
    }

    /// Waits for the end of node `i`, which was killed.
    pub fn collect(&mut self, i: usize) -> anyhow::Result<()> {
        if let Some(mut child) = self.nodes[i].child.take() {
            child.wait()?;
        }
        Ok(())
    }
}
