//! What workloads share: where brokers and nodes are, the history, the seed, and whether it is over.

use crate::history::History;
use crate::world::{Added, World, checkout, output};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tidemill_client::{Answer, Client, ClientConfig};

/// See the module's page. Clones share all of it.
#[derive(Clone)]
pub struct Stage {
    /// Where operations are written down.
    pub history: History,
    /// Bootstrap servers.
    pub brokers: String,
    /// What to ask first at each node.
    pub clients: Vec<ClientConfig>,
    /// How many copies a topic has.
    pub replication: u32,
    /// Decides what clients do.
    pub seed: u64,
    kafka: PathBuf,
    /// The names of the nodes that there were at the beginning, by the address at which clients ask them.
    names: Arc<BTreeMap<String, String>>,
    pages: Arc<Mutex<BTreeMap<String, SocketAddr>>>,
    grown: Arc<Mutex<Vec<Added>>>,
    over: Arc<AtomicBool>,
    ids: Arc<AtomicU64>,
}

impl Stage {
    /// The stage of `world`.
    pub fn new(world: &World, history: History, seed: u64) -> Self {
        let nodes = 0..world.node_count();
        let names = nodes.clone().flat_map(|i| {
            let first = world.beginning_at(i).addresses.into_iter().next();
            first.map(|address| (address, world.name(i).to_owned()))
        });
        let stage = Self {
            history,
            brokers: world.brokers.clone(),
            clients: nodes.clone().map(|i| patient_for(world.beginning_at(i), 5)).collect(),
            replication: world.broker_count().clamp(1, 3),
            seed,
            kafka: world.folder().join("kafka"),
            names: Arc::new(names.collect()),
            pages: Arc::default(),
            grown: Arc::default(),
            over: Arc::default(),
            ids: Arc::new(AtomicU64::new(1)),
        };
        stage.look_around(world);
        stage
    }

    /// Takes note of the nodes that there are, of which some may have been replaced, and of the partitions that topics got.
    pub fn look_around(&self, world: &World) {
        let there = (0..world.node_count()).map(|i| (world.name(i).to_owned(), world.http(i)));
        *self.pages() = there.collect();
        *self.grown() = world.grown.clone();
    }

    /// The partitions that faults have added to a topic.
    pub fn added(&self, topic: &str) -> Vec<u32> {
        let grown = self.grown();
        let added = grown.iter().filter(|(of, _)| of == topic);
        added.flat_map(|(_, added)| added.clone()).collect()
    }

    fn grown(&self) -> std::sync::MutexGuard<'_, Vec<Added>> {
        // Replaced or read as a whole.
        self.grown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where each node that there is serves its pages, by its name.
    pub fn pages_of_nodes(&self) -> BTreeMap<String, SocketAddr> {
        self.pages().clone()
    }

    fn pages(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, SocketAddr>> {
        // Replaced or copied as a whole.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of the node that a client asks first, which is the one that has answered it last.
    pub fn node_of(&self, client: &Client) -> Option<&str> {
        self.names.get(client.address()).map(String::as_str)
    }

    /// Whether clients shall end.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Has all clients end.
    pub fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// A number that no other record of the run has.
    pub fn id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// Chance for the client called `name`, by the seed.
    pub fn chance(&self, name: &str, number: u64) -> StdRng {
        let name = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        StdRng::seed_from_u64(self.seed ^ name ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A client that asks node `i` first, and others when that does not answer.
    ///
    /// # Errors
    /// If the address is none.
    pub fn client(&self, i: usize) -> anyhow::Result<Client> {
        Ok(Client::new(self.clients[i % self.clients.len()].clone())?)
    }

    /// Runs a statement while nothing is broken, or until it is clear that it will not do.
    ///
    /// # Errors
    /// What the cluster said.
    pub async fn run(&self, sql: &str) -> anyhow::Result<()> {
        let client = Client::new(patient_for(self.clients[0].clone(), 60))?;
        match client.query(sql).await? {
            Answer::Message(_) => {}
            Answer::Rows(rows) => drop(rows.collect().await?),
        }
        Ok(())
    }

    /// Runs `scripts/kafka`, off the threads on which clients run.
    ///
    /// # Errors
    /// What it said.
    pub async fn kafka(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut kafka = Command::new(checkout().join("scripts/kafka"));
        kafka.arg("--dir").arg(&self.kafka).args(arguments);
        tokio::task::spawn_blocking(move || output(&mut kafka)).await?
    }
}

fn patient_for(mut config: ClientConfig, seconds: u64) -> ClientConfig {
    config.retry_for = Duration::from_secs(seconds);
    config
}
