//! Faults of brokers, in a world of three brokers without nodes: each does what it says to Kafka.

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tidemill_chaos_tests::fault::{Fault, Needs, Plan, stage};
use tidemill_chaos_tests::history::{self, History};
use tidemill_chaos_tests::script::Script;
use tidemill_chaos_tests::world::World;

const TOPIC: &str = "struck";

struct Brokers<'w> {
    world: &'w mut World,
    history: History,
    rng: StdRng,
}

fn brokers(work: impl AsyncFnOnce(&mut Brokers<'_>) -> anyhow::Result<()> + Send) {
    let needs = Needs {
        network: true,
        brokers: 3,
        ..Needs::default()
    };
    let plan = Plan {
        nodes: 0,
        brokers: 3,
        needs,
        settings: String::new(),
    };
    let done = stage(&plan, async |world| {
        let history = History::create(world.folder())?;
        let rng = StdRng::seed_from_u64(3);
        let mut brokers = Brokers { world, history, rng };
        brokers
            .world
            .kafka(&["topic", "create", TOPIC, "--partitions", "2", "--replication", "3"])?;
        work(&mut brokers).await
    });
    done.unwrap();
}

impl Brokers<'_> {
    fn status(&self) -> String {
        // It fails unless all are up.
        self.world
            .kafka(&["status"])
            .unwrap_or_else(|error| format!("{error:#}"))
    }

    fn describe(&self) -> String {
        self.world.kafka(&["topic", "describe", TOPIC]).unwrap()
    }

    fn offsets(&self, which: &[&str]) -> Vec<u64> {
        let said = self.world.kafka(&[&["offsets", TOPIC], which].concat()).unwrap();
        let mut lines: Vec<&str> = said.lines().filter(|line| line.starts_with(TOPIC)).collect();
        lines.sort_unstable();
        lines
            .iter()
            .map(|line| line.rsplit(':').next().unwrap().parse().unwrap())
            .collect()
    }

    fn write(&self, ids: std::ops::Range<u64>) {
        let mut source = Script::plain(&self.world.brokers, TOPIC).unwrap();
        source.send_ids(0, ids.clone()).unwrap();
        source.write_ids(1, ids).unwrap();
    }

    /// What the history says is lost: partition, from, to.
    fn lost(&self) -> Vec<(u64, u64, u64)> {
        let notes = history::read(self.world.folder()).unwrap();
        let number = |value: &Value, name: &str| value[name].as_u64().unwrap();
        let lost = notes
            .iter()
            .filter(|entry| entry.f == "log-lost")
            .map(|entry| &entry.value);
        lost.map(|value| (number(value, "partition"), number(value, "from"), number(value, "to")))
            .collect()
    }
}

#[test]
fn brokers_are_killed_and_stand_still_and_come_back() {
    brokers(async |b| {
        for (fault, sign) in [(Fault::KillBroker, "down"), (Fault::PauseBroker, "paused")] {
            let running = fault.begin(b.world, &mut b.rng, &b.history).await?;
            let number = running.target().as_str().unwrap().trim_start_matches('b').to_owned();
            let status = std::process::Command::new(tidemill_chaos_tests::world::checkout().join("scripts/kafka"))
                .arg("--dir")
                .arg(b.world.folder().join("kafka"))
                .arg("status")
                .output()?;
            let said = String::from_utf8_lossy(&status.stdout).into_owned();
            let line = said
                .lines()
                .find(|line| line.starts_with(&format!("broker {number} ")))
                .unwrap();
            assert!(line.contains(sign), "{fault}: {said}");
            running.end(b.world).await?;
            assert!(b.status().matches("up, pid").count() == 3, "{fault}: {}", b.status());
        }
        Ok(())
    });
}

#[test]
fn leaders_move_away_and_back() {
    brokers(async |b| {
        let led = |said: String| -> Vec<String> {
            let leaders = said
                .lines()
                .filter_map(|line| line.split("Leader: ").nth(1))
                .map(|rest| rest[..1].to_owned());
            leaders.collect()
        };
        let before = led(b.describe());
        let running = Fault::MoveLeaders.begin(b.world, &mut b.rng, &b.history).await?;
        let broker = running.target()["broker"].as_str().unwrap()[1..].to_owned();
        let now = led(b.describe());
        assert!(
            before.contains(&broker) && !now.contains(&broker),
            "{broker}: {before:?}, then {now:?}"
        );
        running.end(b.world).await?;
        assert_eq!(led(b.describe()), before);
        Ok(())
    });
}

#[test]
fn an_unclean_election_loses_what_the_history_says() {
    brokers(async |b| {
        b.write(0..100);
        let (brokers, stop) = (b.world.brokers.clone(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        // Somebody writes all the time, as in a run. A thread of the hub starts in the hub.
        let writer = std::thread::spawn(move || {
            let mut ids = 100..;
            while !stopped.load(Ordering::Relaxed) {
                let Ok(mut source) = Script::plain(&brokers, TOPIC) else {
                    continue;
                };
                for id in ids.by_ref().take(50) {
                    // It fails while nobody leads.
                    drop(source.send_ids((id % 2) as u32, [id]).and_then(|()| source.flush()));
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        });
        let running = Fault::UncleanElection.begin(b.world, &mut b.rng, &b.history).await;
        stop.store(true, Ordering::Relaxed);
        let running = running?;
        tokio::task::spawn_blocking(|| writer.join().unwrap()).await?;
        let lost = b.lost();
        eprintln!("{:?}: lost {lost:?}", running.target());
        assert!(!lost.is_empty(), "nothing was lost");
        running.end(b.world).await?;
        let said = b.describe();
        assert!(
            !said.contains("unclean") && !said.contains("min.insync.replicas=1"),
            "{said}"
        );
        Ok(())
    });
}

#[test]
fn records_expire_that_nobody_has_read() {
    brokers(async |b| {
        b.write(0..100);
        let running = Fault::Retention.begin(b.world, &mut b.rng, &b.history).await?;
        assert_eq!(b.offsets(&["--earliest"]), [100, 100]);
        running.end(b.world).await?;
        let mut lost = b.lost();
        lost.sort_unstable();
        assert_eq!(lost, [(0, 0, 100), (1, 0, 100)]);
        b.write(100..110);
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(
            (b.offsets(&["--earliest"]), b.offsets(&[])),
            (vec![100, 100], vec![110, 110]),
            "{}",
            b.describe()
        );
        Ok(())
    });
}

#[test]
fn records_are_deleted_topics_grow_and_are_created_again() {
    brokers(async |b| {
        b.write(0..100);
        let running = Fault::DeleteRecords.begin(b.world, &mut b.rng, &b.history).await?;
        let earliest = b.offsets(&["--earliest"]);
        for (partition, from, to) in b.lost() {
            assert_eq!((from, to), (0, earliest[partition as usize]));
        }
        assert!(earliest.iter().any(|offset| *offset > 0), "{:?}", running.target());
        running.end(b.world).await?;

        let running = Fault::GrowTopic.begin(b.world, &mut b.rng, &b.history).await?;
        let (said, to) = (b.describe(), running.target()["to"].as_u64().unwrap());
        assert!(to > 2 && said.contains(&format!("PartitionCount: {to}")), "{said}");
        running.end(b.world).await?;

        b.world.kafka(&["topic", "config", TOPIC, "retention.ms=77777777"])?;
        let before = b.describe();
        let running = Fault::RecreateTopic.begin(b.world, &mut b.rng, &b.history).await?;
        let now = b.describe();
        let id = running.target()["id"].as_str().unwrap();
        assert!(before.contains(id) && !now.contains(id), "{now}");
        assert!(
            now.contains(&format!("PartitionCount: {to}")) && now.contains("retention.ms=77777777"),
            "{now}"
        );
        assert_eq!(b.offsets(&[]), vec![0; to as usize]);
        assert!(
            b.lost().contains(&(0, 0, 100)) && b.lost().contains(&(1, 0, 100)),
            "{:?}",
            b.lost()
        );
        running.end(b.world).await
    });
}
