//! A TCP proxy in the hub, put between two places without either knowing it: `nft` gives the connections that `from` opens to
//! `to` to the proxy, which connects on. So links get slow, narrow or unreliable where the kernel has no `netem`.
//!
//! Only the connections of one direction are taken, with the bytes of both. Those that were there before are reset, so that
//! the next ones come this way; when the proxy ends, all of its own are.

use super::link::Link;
use super::network::{HUB, Network, PROXY, Place, differ};
use rand::Rng;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedWriteHalf, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How much is on the way in one direction of one connection before its sender has to wait.
const ON_THE_WAY: usize = 64;
/// So much is read at once.
const CHUNK: usize = 16 * 1024;
/// What the two directions of a connection are called.
const WAYS: [Way; 2] = [Way::Asked, Way::Answered];

/// Which bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Those that the one that opened it sends.
    Asked,
    /// Those that it gets.
    Answered,
}

/// How the link behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Behaviour {
    /// Every byte arrives so much later.
    pub delay: Duration,
    /// And later than that by up to so much, at random, in order.
    pub jitter: Duration,
    /// So many bytes per second and direction, of all connections together.
    pub bandwidth: Option<u64>,
    /// Of these bytes nothing arrives, while the connection stays.
    pub swallow: Option<Way>,
    /// A connection is reset after a time of up to so much, at random.
    pub reset_within: Option<Duration>,
    /// What is sent on a connection arrives a second time, on another one whose answers nobody hears.
    pub duplicate: bool,
}

/// What went through.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections that were taken.
    pub connections: AtomicU64,
    /// Bytes that were passed on, in both directions.
    pub passed: AtomicU64,
    /// Bytes that were swallowed.
    pub swallowed: AtomicU64,
    /// Connections that were reset.
    pub resets: AtomicU64,
    /// Bytes that were sent a second time.
    pub repeated: AtomicU64,
}

/// A proxy between two places, until it is dropped. See the module's page.
#[derive(Debug)]
#[must_use = "the proxy ends when this is dropped"]
pub struct Proxy {
    /// Mended first, so that whoever connects again connects directly.
    _redirected: Link,
    tasks: Vec<JoinHandle<()>>,
    behaviour: watch::Sender<Behaviour>,
    /// What went through so far.
    pub counts: Arc<Counts>,
}

struct Shared {
    behaviour: watch::Receiver<Behaviour>,
    counts: Arc<Counts>,
    /// When each direction's line is free again.
    free: [tokio::sync::Mutex<Instant>; 2],
}

impl Proxy {
    /// Takes the connections that `from` opens to `to` at `ports`. To be called in the hub.
    ///
    /// # Errors
    /// If the rules are refused, or nothing can listen in the hub.
    pub async fn between(
        network: &Arc<Network>,
        from: Place,
        to: Place,
        ports: &[u16],
        behaviour: Behaviour,
    ) -> anyhow::Result<Self> {
        differ(from, to)?;
        let (sender, receiver) = watch::channel(behaviour);
        let counts = Arc::new(Counts::default());
        let now = Instant::now();
        let shared = Arc::new(Shared {
            behaviour: receiver,
            counts: counts.clone(),
            free: [now, now].map(tokio::sync::Mutex::new),
        });
        let (mut tasks, mut taken) = (Vec::new(), Vec::new());
        for port in ports {
            let listener = TcpListener::bind((HUB, 0)).await?;
            taken.push((*port, listener.local_addr()?.port()));
            let target = SocketAddr::from((to.address(), *port));
            tasks.push(tokio::spawn(accept(listener, target, shared.clone())));
        }
        let redirected = Link::load(network, from, &redirect(to.address(), &taken))?;
        Ok(Self {
            _redirected: redirected,
            tasks,
            behaviour: sender,
            counts,
        })
    }

    /// Has the link behave otherwise from now on, connections that are there included.
    pub fn behave(&self, behaviour: Behaviour) {
        self.behaviour.send_replace(behaviour);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Each listener's task owns its connections; their sockets close with them.
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// New connections go to the proxy; packets of the ones before are answered with a reset.
fn redirect(to: Ipv4Addr, ports: &[(u16, u16)]) -> String {
    let here = format!("ip daddr {to} ip saddr != {PROXY} tcp dport");
    let lines = |rule: &dyn Fn(&(u16, u16)) -> String| ports.iter().map(rule).collect::<Vec<_>>().join("\n");
    let translate = lines(&|(port, proxy)| format!("{here} {port} dnat to {HUB}:{proxy}"));
    let reset = lines(&|(port, _)| format!("{here} {port} reject with tcp reset"));
    format!(
        "chain from_now_on {{\ntype nat hook output priority -100; policy accept;\n{translate}\n}}\n\
         chain before {{\ntype filter hook output priority 0; policy accept;\n{reset}\n}}"
    )
}

async fn accept(listener: TcpListener, target: SocketAddr, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                shared.counts.connections.fetch_add(1, Ordering::Relaxed);
                let shared = shared.clone();
                // What happens to one connection is no news to the others.
                connections.spawn(async move { drop(carry(client, target, shared).await) });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(target: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((PROXY, 0)))?;
    let stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Both sides of a connection, which are reset unless it has ended by itself: nobody is to take a connection that was broken off
/// for one that ended well.
struct Pair {
    client: TcpStream,
    server: TcpStream,
    ended: bool,
}

impl Drop for Pair {
    fn drop(&mut self) {
        if !self.ended {
            // Where it cannot be, the connection is closed instead.
            drop(self.client.set_zero_linger());
            drop(self.server.set_zero_linger());
        }
    }
}

/// Carries one connection to its end.
async fn carry(client: TcpStream, target: SocketAddr, shared: Arc<Shared>) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let Ok(server) = connect(target).await else {
        // As if nobody listened there.
        return client.set_zero_linger();
    };
    let mut pair = Pair {
        client,
        server,
        ended: false,
    };
    let double = double(target, &shared).await;
    let life = shared.behaviour.borrow().reset_within;
    let life = life.map(|within| within.mul_f64(rand::rng().random()));
    let (from_client, to_client) = pair.client.split();
    let (from_server, to_server) = pair.server.split();
    let both = async {
        tokio::try_join!(
            pump(from_client, to_server, Way::Asked, &shared, double),
            pump(from_server, to_client, Way::Answered, &shared, None),
        )
    };
    match life {
        None => drop(both.await?),
        Some(life) => match tokio::time::timeout(life, both).await {
            Ok(ended) => drop(ended?),
            Err(_) => {
                shared.counts.resets.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
        },
    }
    pair.ended = true;
    Ok(())
}

/// A second connection to the same place, of which the answers are read and dropped.
async fn double(target: SocketAddr, shared: &Shared) -> Option<OwnedWriteHalf> {
    if !shared.behaviour.borrow().duplicate {
        return None;
    }
    let (mut answers, asked) = connect(target).await.ok()?.into_split();
    tokio::spawn(async move {
        let mut buffer = vec![0; CHUNK];
        while answers.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    });
    Some(asked)
}

/// Carries one direction of one connection: what is read waits in line until its time has come. A chunk without bytes is the end.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    way: Way,
    shared: &Shared,
    mut double: Option<OwnedWriteHalf>,
) -> std::io::Result<()> {
    let (line, mut arriving) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
    let read = async {
        let mut last = Instant::now();
        loop {
            let mut bytes = vec![0; CHUNK];
            let count = from.read(&mut bytes).await?;
            bytes.truncate(count);
            last = due(way, count, last, shared).await;
            if line.send((last, bytes)).await.is_err() || count == 0 {
                drop(line);
                return Ok::<(), std::io::Error>(());
            }
        }
    };
    let write = async {
        let mut dead = false;
        while let Some((due, bytes)) = arriving.recv().await {
            tokio::time::sleep_until(due).await;
            let count = bytes.len() as u64;
            // For good: what comes after a gap is not what the other side waits for.
            dead |= shared.behaviour.borrow().swallow == Some(way);
            if dead {
                shared.counts.swallowed.fetch_add(count, Ordering::Relaxed);
                continue;
            }
            if bytes.is_empty() {
                break;
            }
            // Counted first: whoever has got bytes finds them counted.
            shared.counts.passed.fetch_add(count, Ordering::Relaxed);
            to.write_all(&bytes).await?;
            if let Some(second) = &mut double
                && second.write_all(&bytes).await.is_ok()
            {
                shared.counts.repeated.fetch_add(count, Ordering::Relaxed);
            }
        }
        if dead {
            // Its end does not arrive either.
            std::future::pending::<()>().await;
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write).map(drop)
}

/// When what was just read arrives: never before what was read earlier.
async fn due(way: Way, count: usize, last: Instant, shared: &Shared) -> Instant {
    let behaviour = *shared.behaviour.borrow();
    let late = behaviour.delay + behaviour.jitter.mul_f64(rand::rng().random());
    let mut ready = Instant::now();
    if let Some(bandwidth) = behaviour.bandwidth {
        let which = WAYS.iter().position(|w| *w == way).unwrap_or_default();
        let mut free = shared.free[which].lock().await;
        *free = (*free).max(ready) + Duration::from_secs_f64(count as f64 / bandwidth.max(1) as f64);
        ready = *free;
    }
    last.max(ready + late)
}
