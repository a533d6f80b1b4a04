//! Faults that strike a cluster of three nodes with three brokers, each in a network namespace of its own: each strikes whom it says,
//! ends when it is told to, and every row is there once.

use anyhow::{Context, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tidemill_chaos_tests::events::{self, Events};
use tidemill_chaos_tests::fault::link::Link;
use tidemill_chaos_tests::fault::network::Place;
use tidemill_chaos_tests::fault::{Fault, Needs, Plan, stage};
use tidemill_chaos_tests::history::{self, History};
use tidemill_chaos_tests::reader::{busiest_node, count};
use tidemill_chaos_tests::scenario::{TABLE, create, wait_until_read};
use tidemill_chaos_tests::world::{World, output};

const PATIENCE: Duration = Duration::from_secs(120);

/// A cluster that takes in what is produced all the time, while `work` disturbs it; afterwards every row is there, once.
fn flowing(needs: Needs, work: impl AsyncFnOnce(&mut World, &History) -> anyhow::Result<()> + Send) {
    let plan = Plan {
        needs,
        ..Plan::default()
    };
    let began = Instant::now();
    let done = stage(&plan, async |world| {
        eprintln!("the world is there after {:?}", began.elapsed());
        let history = History::create(world.folder())?;
        let plan = events::Plan {
            topic: TABLE.into(),
            partitions: 6,
            count: 10_000_000,
            bad: 0,
            rate: Some(500),
            seed: 5,
        };
        create(world, &plan, 500).await?;
        let events = Events::start(world.folder(), &world.brokers, &plan)?;
        world.all_lead(PATIENCE).await?;
        let done = async {
            work(world, &history).await?;
            exact(world, events).await
        };
        done.await
            .inspect_err(|_| eprintln!("the world is kept in {}", world.keep().display()))
    });
    done.unwrap();
}

async fn exact(world: &mut World, events: Events) -> anyhow::Result<()> {
    world.all_ready().await?;
    let produced = events.stop().await?;
    wait_until_read(world, &produced).await?;
    let counted = count(&world.client()?, TABLE).await?;
    let rows = produced.count as i64;
    ensure!(
        (counted.rows, counted.distinct) == (rows, rows),
        "{counted:?} of {rows}"
    );
    ensure!(
        counted.sum_event_id == produced.sum_event_id,
        "{counted:?} of {produced:?}"
    );
    eprintln!("{rows} rows are there, once");
    Ok(())
}

async fn rows_grow(world: &World) -> anyhow::Result<()> {
    let client = world.client()?;
    let before = count(&client, TABLE).await?.rows;
    let grown = world.wait_for("more rows", PATIENCE, async |world| {
        Ok(count(&world.client()?, TABLE).await?.rows > before + 200)
    });
    grown.await
}

#[test]
fn a_cluster_that_is_split_one_way_takes_in_every_row_once() {
    let needs = Needs {
        network: true,
        brokers: 3,
        ..Needs::default()
    };
    flowing(needs, async |world, _| {
        rows_grow(world).await?;
        let name = busiest_node(&world.client()?).await?;
        let node = world.index_of(&name).context("no such node")?;
        let network = world.network.clone().context("no network")?;
        let others = (0..3).filter(|other| *other != node).map(Place::Node);
        let others: Vec<Place> = others.chain((1..=3).map(Place::Broker)).collect();
        // What it says is not heard; it hears what the others say.
        let links: Vec<Link> = others
            .iter()
            .map(|other| Link::cut(&network, Place::Node(node), *other))
            .collect::<anyhow::Result<_>>()?;
        let began = Instant::now();
        let led = format!("SELECT count(*) FROM system.shards WHERE leader = '{name}'");
        let others = world.client_without(node)?;
        let moved = world.wait_for("its shards to move", PATIENCE, async |_| {
            let found = tidemill_chaos_tests::reader::rows(&others, &led).await?;
            Ok(tidemill_chaos_tests::reader::number(&found, 0)? == 0)
        });
        moved.await?;
        eprintln!("{name} lost its shards after {:?}", began.elapsed());
        drop(links);
        world.all_ready().await?;
        rows_grow(world).await
    });
}

/// Begins and ends these one after the other; `shows` says whether the fault can be seen, while it is there and afterwards.
fn one_after_the_other(
    needs: Needs,
    faults: &[Fault],
    shows: impl AsyncFn(&mut World, Fault, &Value) -> anyhow::Result<bool> + Sync,
) {
    flowing(needs, async |world, history| {
        let mut rng = StdRng::seed_from_u64(11);
        for fault in faults {
            let began = Instant::now();
            let running = fault.begin(world, &mut rng, history).await?;
            let target = running.target().clone();
            eprintln!("{fault}: {target}, after {:?}", began.elapsed());
            // For longer than a moment, and not as long as it takes to give a node up for good.
            let until = Instant::now() + Duration::from_secs(20);
            while !shows(world, *fault, &target).await? {
                ensure!(Instant::now() < until, "{fault} does not show");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
            let ending = Instant::now();
            running.end(world).await?;
            world.all_ready().await.with_context(|| format!("after {fault}"))?;
            rows_grow(world).await.with_context(|| format!("after {fault}"))?;
            eprintln!("{fault}: all is well {:?} after its end", ending.elapsed());
            ensure!(!shows(world, *fault, &target).await?, "{fault} shows after its end");
        }
        let told = history::read(world.folder())?;
        let begun: Vec<&str> = told.iter().filter_map(|entry| entry.f.strip_prefix("begin ")).collect();
        let ended: Vec<&str> = told.iter().filter_map(|entry| entry.f.strip_prefix("end ")).collect();
        let names: Vec<&str> = faults.iter().map(|fault| fault.name()).collect();
        ensure!(begun == names && ended == names, "{begun:?} and {ended:?} of {names:?}");
        Ok(())
    });
}

/// The node that a target names.
fn node(world: &World, target: &Value) -> anyhow::Result<usize> {
    let name = target
        .as_str()
        .or_else(|| target["node"].as_str())
        .context("no node is named")?;
    world.index_of(name).context("no such node")
}

#[test]
fn processes_end_and_stand_still() {
    let needs = Needs {
        network: true,
        brokers: 3,
        ..Needs::default()
    };
    let faults = [Fault::Kill, Fault::Pause, Fault::Terminate, Fault::KillAll];
    one_after_the_other(needs, &faults, async |world, fault, target| match fault {
        Fault::Pause => {
            let pid = world.pid(node(world, target)?).context("it does not run")?;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
            Ok(stat.contains(") T "))
        }
        Fault::KillAll => Ok((0..3).all(|node| world.pid(node).is_none())),
        _ => {
            let node = node(world, target)?;
            Ok(!world.is_alive(node)?)
        }
    });
}

#[test]
fn links_are_cut_and_go_bad() {
    let needs = Needs {
        network: true,
        brokers: 3,
        ..Needs::default()
    };
    let faults: Vec<Fault> = Fault::ALL
        .iter()
        .copied()
        .filter(|fault| fault.needs().network && !fault.calls_for_repair())
        .collect();
    assert!(faults.len() > 12, "{faults:?}");
    one_after_the_other(needs, &faults, async |world, _, _| {
        let network = world.network.clone().context("no network")?;
        let mut rules = 0;
        for place in network.places() {
            let mut command = network.command(place, std::path::Path::new("nft"))?;
            rules += output(command.args(["list", "tables"]))?.matches("ip fault").count();
        }
        Ok(rules > 0)
    });
}

/// Whether a disk was asked for something that it did not do, or was slow to do, since it was asked the last time.
fn disk_shows(world: &World, fault: Fault, target: &Value) -> anyhow::Result<bool> {
    let disk = world.disk(node(world, target)?).context("no disk")?;
    let done = disk.done();
    let count = match fault {
        Fault::SlowSync => return Ok(disk.has_trouble() && done.syncs.load(Ordering::Relaxed) > 0),
        Fault::DiskFull => &done.refused,
        Fault::ReadErrors => return Ok(disk.has_trouble()),
        _ => &done.bad_syncs,
    };
    Ok(disk.has_trouble() && count.load(Ordering::Relaxed) > 0)
}

#[test]
fn disks_lie_and_fail_and_lose_what_was_not_synced() {
    let needs = Needs {
        network: true,
        disks: true,
        brokers: 3,
        ..Needs::default()
    };
    let faults = [Fault::SlowSync, Fault::DiskFull, Fault::FailingSyncs, Fault::ReadErrors];
    one_after_the_other(needs, &faults, async |world, fault, target| {
        disk_shows(world, fault, target)
    });
}

#[test]
fn power_is_cut_and_nothing_is_lost_that_was_synced() {
    let needs = Needs {
        network: true,
        disks: true,
        brokers: 3,
        ..Needs::default()
    };
    one_after_the_other(
        needs,
        &[Fault::PowerCut, Fault::PowerCut, Fault::PowerCut],
        async |world, _, target| {
            let node = node(world, target)?;
            Ok(!world.is_alive(node)?)
        },
    );
}

#[test]
fn clocks_jump_and_drift() {
    let needs = Needs {
        network: true,
        clocks: true,
        brokers: 3,
        ..Needs::default()
    };
    one_after_the_other(
        needs,
        &[Fault::ClockJump, Fault::ClockDrift],
        async |world, _, target| {
            let node = node(world, target)?;
            let asked = ["sql", "--format", "csv", "-c", "SELECT CAST(now() AS BIGINT) AS t"];
            let now = || std::time::UNIX_EPOCH.elapsed().map(|now| now.as_nanos() as i64);
            let before = now()?;
            let said = world.tidemill_at(node, &asked)?;
            let after = now()?;
            let then: i64 = said.lines().last().context("no answer")?.parse()?;
            // Whatever the unit of the answer is.
            let scale = [1, 1_000, 1_000_000, 1_000_000_000]
                .into_iter()
                .min_by_key(|scale| (then.saturating_mul(*scale) - before).abs());
            let then = then.saturating_mul(scale.unwrap_or(1));
            // By its clock, it answered before it was asked, or after the answer was there.
            let slack = 300_000_000;
            Ok(then < before - slack || then > after + slack)
        },
    );
}

#[test]
fn damage_is_noticed_and_mended() {
    let needs = Needs {
        network: true,
        brokers: 3,
        ..Needs::default()
    };
    let faults = [
        Fault::CorruptParts,
        Fault::TruncateParts,
        Fault::WipeDisk,
        Fault::ReplaceNode,
    ];
    flowing(needs, async |world, history| {
        let mut rng = StdRng::seed_from_u64(12);
        for fault in faults {
            rows_grow(world).await?;
            let began = Instant::now();
            let lost = "SELECT count(*) FROM system.events WHERE kind = 'copy lost'";
            let before = world.ask(lost).await?;
            let running = fault.begin(world, &mut rng, history).await?;
            eprintln!("{fault}: {}", running.target());
            if matches!(fault, Fault::CorruptParts | Fault::TruncateParts) {
                let noticed = world.wait_for("the damage to be noticed", PATIENCE, async |world| {
                    Ok(world.ask(lost).await? > before)
                });
                noticed.await?;
            }
            running.end(world).await?;
            world.all_ready().await.with_context(|| format!("after {fault}"))?;
            eprintln!("{fault}: all is well after {:?}", began.elapsed());
        }
        Ok(())
    });
}

#[test]
fn nothing_stays_broken_when_a_test_panics() {
    let names = std::sync::Mutex::new(String::new());
    let plan = Plan {
        nodes: 0,
        brokers: 0,
        needs: Needs {
            network: true,
            ..Needs::default()
        },
        settings: String::new(),
    };
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        stage(&plan, async |world| -> anyhow::Result<()> {
            let network = world.network.clone().context("no network")?;
            network.add(Place::Node(0))?;
            network.add(Place::Node(1))?;
            let _link = Link::cut(&network, Place::Node(0), Place::Node(1))?;
            *names.lock().unwrap() = network.name_of(Place::Hub)?;
            panic!("as a test does");
        })
    }));
    assert!(panicked.is_err());
    let listed = output(Command::new("ip").args(["netns", "list"])).unwrap();
    assert!(!listed.contains(&*names.lock().unwrap()), "{listed}");
}

#[test]
fn every_fault_has_a_name_that_finds_it() {
    for fault in Fault::ALL {
        assert_eq!(fault.name().parse::<Fault>().unwrap(), *fault);
        assert!(
            fault.name().chars().all(|c| c.is_ascii_lowercase() || c == '-'),
            "{fault}"
        );
        assert!(fault.describe().ends_with('.'), "{fault}");
    }
    assert!("none".parse::<Fault>().unwrap_err().contains("kill-all"));
}
