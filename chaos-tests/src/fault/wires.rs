//! Faults of the network, between places that are chosen at random.

use super::Fault;
use super::link::{Link, cut_all};
use super::network::{Network, Place};
use super::process::{any, running};
use super::proxy::{Behaviour, Proxy, Way};
use super::running::Stroke;
use crate::world::World;
use anyhow::{Context, ensure};
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

fn network(world: &World) -> anyhow::Result<Arc<Network>> {
    world.network.clone().context("there is no network of namespaces")
}

fn nodes(world: &World) -> Vec<Place> {
    running(world).into_iter().map(Place::Node).collect()
}

fn brokers(world: &World) -> Vec<Place> {
    (1..=world.broker_count()).map(Place::Broker).collect()
}

/// Every one with every one of the others.
fn between(some: &[Place], others: &[Place]) -> Vec<(Place, Place)> {
    let pairs = some.iter().flat_map(|one| others.iter().map(|other| (*one, *other)));
    pairs.filter(|(one, other)| one != other).collect()
}

fn names(places: &[Place]) -> Vec<String> {
    places.iter().map(Place::to_string).collect()
}

pub(super) async fn strike(stroke: &mut Stroke<'_>) -> anyhow::Result<()> {
    match stroke.fault() {
        Fault::Cut | Fault::CutOneWay | Fault::CutBrokers => cut_two(stroke),
        Fault::Isolate | Fault::IsolateOneWay | Fault::Loss => around_a_node(stroke),
        Fault::Split => split(stroke),
        Fault::Ring => ring(stroke),
        Fault::Unplug => {
            let (nodes, brokers) = (nodes(stroke.world), brokers(stroke.world));
            stroke.tell(json!({ "nodes": names(&nodes), "brokers": names(&brokers) }));
            cut(stroke, &between(&nodes, &brokers))
        }
        _ => slow_down(stroke).await,
    }
}

fn cut(stroke: &mut Stroke<'_>, pairs: &[(Place, Place)]) -> anyhow::Result<()> {
    let links = cut_all(&network(stroke.world)?, pairs)?;
    stroke.until_the_end(links);
    Ok(())
}

fn cut_two(stroke: &mut Stroke<'_>) -> anyhow::Result<()> {
    let (mut some, mut others) = (nodes(stroke.world), brokers(stroke.world));
    match stroke.fault() {
        Fault::CutBrokers => some.clone_from(&others),
        // As often a node as a broker, however many there are of each.
        _ if stroke.rng.random_bool(0.5) && some.len() > 1 => others.clone_from(&some),
        _ => {}
    }
    some.shuffle(stroke.rng);
    let mut pairs = between(&some, &others);
    pairs.shuffle(stroke.rng);
    let (one, other) = pairs
        .first()
        .copied()
        .context("there are not two to be cut off from each other")?;
    let (from, to) = if stroke.rng.random_bool(0.5) {
        (one, other)
    } else {
        (other, one)
    };
    stroke.tell(json!({ "from": from.to_string(), "to": to.to_string() }));
    if stroke.fault() == Fault::CutOneWay {
        let link = Link::cut(&network(stroke.world)?, from, to)?;
        stroke.until_the_end(link);
        return Ok(());
    }
    cut(stroke, &[(from, to)])
}

fn around_a_node(stroke: &mut Stroke<'_>) -> anyhow::Result<()> {
    let node = Place::Node(any(stroke)?);
    let others = [nodes(stroke.world), brokers(stroke.world)].concat();
    let pairs = between(&[node], &others);
    let network = network(stroke.world)?;
    let percent = [5, 10, 20, 30].choose(stroke.rng).copied().unwrap_or(10);
    match stroke.fault() {
        Fault::Loss => stroke.tell(json!({ "node": node.to_string(), "percent": percent })),
        _ => stroke.tell(json!(node.to_string())),
    }
    for (one, other) in pairs {
        match stroke.fault() {
            Fault::IsolateOneWay => stroke.until_the_end(Link::cut(&network, one, other)?),
            Fault::Loss => {
                stroke.until_the_end(Link::lossy(&network, one, other, percent)?);
                stroke.until_the_end(Link::lossy(&network, other, one, percent)?);
            }
            _ => stroke.until_the_end(cut_all(&network, &[(one, other)])?),
        }
    }
    Ok(())
}

fn split(stroke: &mut Stroke<'_>) -> anyhow::Result<()> {
    let mut nodes = nodes(stroke.world);
    ensure!(nodes.len() > 1, "one node cannot be split");
    nodes.shuffle(stroke.rng);
    let (minority, majority) = nodes.split_at((nodes.len() - 1) / 2);
    // Of two nodes, neither is the majority.
    let (minority, majority) = if minority.is_empty() {
        nodes.split_at(1)
    } else {
        (minority, majority)
    };
    stroke.tell(json!([names(minority), names(majority)]));
    cut(stroke, &between(minority, majority))
}

fn ring(stroke: &mut Stroke<'_>) -> anyhow::Result<()> {
    let mut nodes = nodes(stroke.world);
    ensure!(nodes.len() > 2, "a ring needs three nodes");
    nodes.shuffle(stroke.rng);
    stroke.tell(json!(names(&nodes)));
    // Each of three is a neighbour of both others: the ring is open there.
    let last = nodes.len() - 1;
    let apart = |i: usize, k: usize| k - i > 1 && (last == 2 || (i, k) != (0, last));
    let places = nodes.iter().enumerate();
    let pairs: Vec<(Place, Place)> = places
        .flat_map(|(i, one)| {
            nodes
                .iter()
                .enumerate()
                .skip(i + 1)
                .map(move |(k, other)| (i, one, k, other))
        })
        .filter(|(i, _, k, _)| apart(*i, *k))
        .map(|(_, one, _, other)| (*one, *other))
        .collect();
    cut(stroke, &pairs)
}

/// How a link behaves under a fault, by chance.
fn behaviour(stroke: &mut Stroke<'_>) -> Behaviour {
    let fault = stroke.fault();
    let rng = &mut *stroke.rng;
    let mut behaviour = Behaviour::default();
    match fault {
        Fault::Delay => behaviour.delay = Duration::from_millis(rng.random_range(50..=400)),
        Fault::Jitter => behaviour.jitter = Duration::from_millis(500),
        Fault::Bandwidth => behaviour.bandwidth = Some(1024 * rng.random_range(32..=256)),
        Fault::HalfOpen => behaviour.swallow = Some(Way::Answered),
        Fault::Resets => behaviour.reset_within = Some(Duration::from_secs(2)),
        _ => behaviour.duplicate = true,
    }
    behaviour
}

/// Puts proxies between a node and the others: on what they ask it, and on what it asks them.
async fn slow_down(stroke: &mut Stroke<'_>) -> anyhow::Result<()> {
    let node = any(stroke)?;
    let behaviour = behaviour(stroke);
    let network = network(stroke.world)?;
    let place = Place::Node(node);
    let ports = stroke.world.node_ports(node);
    let target = json!({ "node": place.to_string(), "link": format!("{behaviour:?}") });
    stroke.tell(target);
    let others: Vec<Place> = nodes(stroke.world)
        .into_iter()
        .filter(|other| *other != place)
        .collect();
    for other in &others {
        stroke.until_the_end(Proxy::between(&network, *other, place, &ports, behaviour).await?);
    }
    if behaviour.duplicate {
        // A broker that is asked the same twice takes it for an error of the client.
        let api = &ports[1..2];
        stroke.until_the_end(Proxy::between(&network, Place::Hub, place, api, behaviour).await?);
        return Ok(());
    }
    for other in others.into_iter().chain(brokers(stroke.world)) {
        let ports: Vec<u16> = match other {
            Place::Node(other) => stroke.world.node_ports(other).to_vec(),
            Place::Broker(broker) => stroke.world.broker_ports(broker).to_vec(),
            Place::Hub => vec![],
        };
        stroke.until_the_end(Proxy::between(&network, place, other, &ports, behaviour).await?);
    }
    Ok(())
}
