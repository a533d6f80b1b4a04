//! Nodes are replaced while rows flow and queries run: how long it takes, what those notice who read and write, and whether
//! every row is there when the old node's disk is gone.
//!
//! Gigabytes of parts lie in one table that does not grow any more, and rows flow into another all the time. One node after
//! the other gives its place to a new one: undisturbed, while the new one is killed in the middle of the copy, and while one
//! of those is killed that it copies from. What one may compare this with is measured before: nothing happens, and
//! a node gives up its shards and takes some again.

use crate::events::{Acknowledged, Events, Plan};
use crate::load::{Load, Noticed, Tables};
use crate::positions::Positions;
use crate::reader::{Counted, busiest_node, count};
use crate::scenario::{TABLE, statements_for, wait_until_read};
use crate::world::{World, binary};
use anyhow::{Context, ensure};
use rand::seq::IndexedRandom;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The table that does not grow.
const BALLAST: &str = "ballast";
/// Random characters in each of its rows.
const PAYLOAD: u64 = 4000;
/// Age at which memtables of the table that grows are flushed.
const FLUSH_AGE_MS: u64 = 5000;
/// How long one replacement may take.
const PATIENCE: Duration = Duration::from_secs(900);
/// How long it is watched how things are when nothing happens.
const QUIET: Duration = Duration::from_secs(20);
/// A node is killed when so much of the copy is done.
const MIDDLE: f64 = 0.4;
/// How long a killed node is away.
const ABSENCE: Duration = Duration::from_secs(3);
/// For so much longer than while a node gives up its shards, in the same run, nothing of a partition may be read when nobody is
/// killed and when somebody is: its silence is noticed after 1.5 s, and what waited for it may have to be tried again.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// The same of rows that can be seen: a look takes its time while files are copied.
const UNSEEN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(8));

/// What happens in the middle of the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// Nothing.
    None,
    /// `kill -9` of the new node, which is started again.
    KillNew,
    /// `kill -9` of a node that it copies from, which is started again.
    KillSource,
}

/// How much is there, how much flows, and what happens.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How much the parts are before a node is replaced, such as 2GiB
    #[arg(long, value_name = "BYTES", default_value = "2GiB", value_parser = bytes)]
    pub bytes: u64,
    /// Rows per second that flow
    #[arg(long, default_value_t = 10_000)]
    pub rate: u64,
    /// What happens in the middle of the copy: one node is replaced for each
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Fault::None, Fault::KillNew, Fault::KillSource])]
    pub fault: Vec<Fault>,
    /// How much per second a new node copies [default: as a node has it]
    #[arg(long, value_name = "BYTES")]
    pub copy_rate: Option<String>,
}

fn bytes(text: &str) -> Result<u64, String> {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = units
        .iter()
        .find_map(|(unit, bits)| Some((text.strip_suffix(unit)?, bits)));
    let (number, bits) = unit.ok_or("write a number and KiB, MiB or GiB, such as 2GiB")?;
    let number: u64 = number.trim().parse().map_err(|_| "that is no number")?;
    number
        .checked_mul(1 << bits)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "more than nothing, and what fits 64 bits".to_owned())
}

/// One stretch of the run.
#[derive(Debug)]
pub struct Stretch {
    /// What happened in it.
    pub what: String,
    /// How long that took.
    pub took: Duration,
    /// Bytes that a new node has copied, and in which time.
    pub copied: Option<(u64, Duration)>,
    /// What others noticed, until all was as before.
    pub noticed: Noticed,
    /// For how long nothing was read of some partition.
    pub unread: Duration,
    /// Who was killed meanwhile.
    pub fault: Fault,
}

/// Runs it all. What was measured, in the order in which it happened.
pub async fn measure(options: &Options) -> anyhow::Result<Vec<Stretch>> {
    let mut world = World::start(3).await?;
    let measured = measure_in(&mut world, options).await;
    if measured.is_err() {
        eprintln!("the world is kept in {}", world.keep().display());
    }
    measured
}

async fn measure_in(world: &mut World, options: &Options) -> anyhow::Result<Vec<Stretch>> {
    let ballast = fill(world, options.bytes).await?;
    let plan = Plan {
        topic: TABLE.into(),
        partitions: 8,
        // More than can be produced in the time that all may take.
        count: options.rate * PATIENCE.as_secs() * (2 + options.fault.len() as u64),
        bad: 0,
        rate: Some(options.rate),
        seed: 12,
    };
    Events::create_topic(&world.brokers, &plan)?;
    for sql in statements_for(TABLE, &world.brokers, &plan.topic, FLUSH_AGE_MS) {
        world.run(&sql).await?;
    }
    let events = Events::start(world.folder(), &world.brokers, &plan)?;
    settle(world).await?;
    let tables = Tables {
        growing: TABLE.into(),
        still: BALLAST.into(),
        still_rows: ballast.count as i64,
    };
    let mut run = Run {
        load: Load::start(world, tables)?,
        events,
        positions: Positions::watch((0..world.node_count()).map(|node| world.http(node)).collect()),
        copy_rate: options.copy_rate.clone(),
    };
    for node in 0..world.node_count() {
        run.load.ask_at(world, node);
    }
    let mut done = vec![run.quiet().await, run.drain(world).await?];
    eprintln!("{}", table(&done));
    for fault in &options.fault {
        let replaced = run.replace(world, *fault).await?;
        eprintln!("{}", line(&replaced));
        done.push(replaced);
    }
    let moved = (done[1].unread, done[1].noticed.pause);
    let broken: Vec<String> = done.iter().filter_map(|stretch| stretch.check(moved).err()).collect();
    run.finish(world, &ballast).await?;
    ensure!(broken.is_empty(), "{}\n{}", table(&done), broken.join("\n"));
    Ok(done)
}

/// Fills a table with parts of so many bytes.
async fn fill(world: &World, bytes: u64) -> anyhow::Result<Acknowledged> {
    let plan = Plan {
        topic: BALLAST.into(),
        partitions: 8,
        // The payload does not shrink, and the rest of a row takes some room too.
        count: bytes / PAYLOAD + 1,
        bad: 0,
        rate: None,
        seed: 11,
    };
    Events::create_topic(&world.brokers, &plan)?;
    let [create, pipe] = statements_for(BALLAST, &world.brokers, &plan.topic, 10_000);
    world
        .run(&create.replace("note TEXT)", "note TEXT, payload TEXT)"))
        .await?;
    world.run(&pipe).await?;
    let options = ["--payload", &PAYLOAD.to_string()];
    let produced = Events::start_with(world.folder(), &world.brokers, &plan, &options)?;
    let produced = produced.finish().await?;
    wait_until_read(world, &produced).await?;
    let found = world.ask("SELECT sum(bytes) FROM system.parts").await?;
    let parts = world.ask("SELECT count(*) FROM system.parts").await?;
    println!("{} in {parts} parts", mib(found as u64));
    ensure!(found as u64 >= bytes, "{found} bytes of parts are fewer than {bytes}");
    Ok(produced)
}

/// Waits until every node that is there leads a shard, and what was produced is read.
async fn settle(world: &World) -> anyhow::Result<()> {
    world.all_lead(Duration::from_secs(90)).await?;
    world
        .run(&format!("WAIT FOR PIPE {TABLE} CAUGHT UP TIMEOUT '50s'"))
        .await
}

/// A command of the binary, under way.
struct Asked {
    child: Child,
    said: PathBuf,
}

impl Asked {
    fn start(world: &World, arguments: &[&str]) -> anyhow::Result<Self> {
        let said = world.folder().join("said");
        let out = File::create(&said)?;
        let mut command = Command::new(binary()?);
        command.args(arguments).args(["--connect", &world.connect()]);
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        Ok(Self {
            child: command.spawn()?,
            said,
        })
    }

    /// Whether it has ended; fails if it did not end well.
    fn is_done(&mut self) -> anyhow::Result<bool> {
        let Some(status) = self.child.try_wait()? else {
            return Ok(false);
        };
        ensure!(status.success(), "{status}: {}", fs::read_to_string(&self.said)?);
        Ok(true)
    }

    async fn done(mut self) -> anyhow::Result<()> {
        while !self.is_done()? {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// How much of a copy is done, by the counter of the node that copies, which begins anew with its process.
#[derive(Debug, Default)]
struct Copy {
    before: u64,
    now: u64,
    began: Option<Instant>,
    ended: Option<Instant>,
}

impl Copy {
    fn look(&mut self, world: &World, node: usize) {
        // Nobody answers while it is down.
        let now = tokio::task::block_in_place(|| world.metric(node, "tidemill_parts_copied_bytes"));
        let now = now.unwrap_or_default() as u64;
        if now > self.now {
            self.began.get_or_insert(Instant::now());
            self.ended = Some(Instant::now());
            self.now = now;
        }
    }

    fn restarted(&mut self) {
        self.before += std::mem::take(&mut self.now);
    }

    fn bytes(&self) -> u64 {
        self.before + self.now
    }

    fn took(&self) -> Duration {
        self.ended.zip(self.began).map_or(Duration::ZERO, |(e, b)| e - b)
    }
}

struct Run {
    load: Load,
    events: Events,
    positions: Positions,
    copy_rate: Option<String>,
}

impl Run {
    /// What is noticed when nothing happens.
    async fn quiet(&self) -> Stretch {
        let began = Instant::now();
        tokio::time::sleep(QUIET).await;
        Stretch {
            what: "nothing happens".into(),
            took: QUIET,
            copied: None,
            noticed: self.load.between(began, Instant::now()),
            unread: self.positions.longest_pause(began, Instant::now()),
            fault: Fault::None,
        }
    }

    /// A node gives up its shards, and takes its share again.
    async fn drain(&self, world: &World) -> anyhow::Result<Stretch> {
        let node = busiest_node(&world.client()?).await?;
        let began = Instant::now();
        Asked::start(world, &["node", "drain", &node])?.done().await?;
        let took = began.elapsed();
        Asked::start(world, &["node", "resume", &node])?.done().await?;
        settle(world).await?;
        Ok(Stretch {
            what: format!("{node} gives up its shards, and takes some again"),
            took,
            copied: None,
            noticed: self.load.between(began, Instant::now()),
            unread: self.positions.longest_pause(began, Instant::now()),
            fault: Fault::None,
        })
    }

    /// A new node takes the place of the one that leads most shards.
    async fn replace(&mut self, world: &mut World, fault: Fault) -> anyhow::Result<Stretch> {
        let name = busiest_node(&world.client()?).await?;
        let old = world
            .index_of(&name)
            .with_context(|| format!("there is no node {name}"))?;
        let sql = format!("SELECT sum(bytes) FROM system.replicas WHERE node = '{name}'");
        let total = world.ask(&sql).await? as u64;
        let began = Instant::now();
        let new = self.join(world)?;
        let new_name = world.name(new).to_owned();
        let arguments = ["node", "replace", "--old", &name, "--new", &new_name, "--wait"];
        let wait = PATIENCE.as_secs().to_string();
        let replacing = Asked::start(world, &[&arguments[..], &[&wait]].concat())?;
        self.load.ask_at(world, new);
        self.positions.add(world.http(new));
        let copy = watch(world, replacing, old, new, total, fault).await?;
        let took = began.elapsed();
        self.load.leave(old);
        ensure!(
            world.wait_for_end(old, Duration::from_secs(30)).await?,
            "{name} did not end well"
        );
        fs::remove_dir_all(world.folder().join(&name).join("data"))?;
        whole(world).await?;
        settle(world).await?;
        world.all_alive()?;
        ensure!(!self.events.has_ended()?, "the producer has ended too early");
        // A copy that was begun anew would be larger by what had been done.
        let copied = copy.bytes();
        ensure!(
            fault != Fault::KillNew || (copied as f64) < total as f64 * (1.0 + MIDDLE / 2.0),
            "{copied} bytes were copied, where {total} were missing: the copy did not go on where it was"
        );
        Ok(Stretch {
            what: match fault {
                Fault::None => format!("{new_name} takes the place of {name}"),
                Fault::KillNew => format!("{new_name} of {name}, and is killed"),
                Fault::KillSource => format!("{new_name} of {name}, and a source is killed"),
            },
            took,
            copied: Some((copied, copy.took())),
            noticed: self.load.between(began, Instant::now()),
            unread: self.positions.longest_pause(began, Instant::now()),
            fault,
        })
    }

    /// One more node, by the command by which nodes join.
    fn join(&self, world: &mut World) -> anyhow::Result<usize> {
        let node = match &self.copy_rate {
            None => world.name_another()?,
            Some(rate) => {
                let node = world.another_node()?;
                let file = world.folder().join(world.name(node)).join("node.toml");
                let text = fs::read_to_string(&file)?;
                fs::write(file, format!("{text}\n[parts]\ncopy_rate = \"{rate}\"\n"))?;
                node
            }
        };
        world.join_node(node)?;
        Ok(node)
    }

    /// Every row is there, once, and no answer was wrong.
    async fn finish(self, world: &mut World, ballast: &Acknowledged) -> anyhow::Result<()> {
        let produced = self.events.stop().await?;
        let all = Acknowledged {
            count: produced.count + ballast.count,
            ..produced.clone()
        };
        wait_until_read(world, &all).await?;
        self.load.finish().await?;
        for (table, produced) in [(TABLE, &produced), (BALLAST, ballast)] {
            let counted = count(&world.client()?, table).await?;
            let expected = Counted::expected(produced);
            ensure!(
                counted == expected,
                "{table} holds {counted:?}, produced were {expected:?}"
            );
            println!("{table}: {} rows, each there once", counted.rows);
        }
        world.all_alive()?;
        Asked::start(world, &["check"])?.done().await
    }
}

/// Watches a replacement until it is done, and does to it what shall be done.
async fn watch(
    world: &mut World,
    mut replacing: Asked,
    old: usize,
    new: usize,
    total: u64,
    fault: Fault,
) -> anyhow::Result<Copy> {
    let (mut copy, mut down) = (Copy::default(), None);
    let mut due = fault != Fault::None;
    while !replacing.is_done()? {
        copy.look(world, new);
        if due && copy.bytes() as f64 >= total as f64 * MIDDLE {
            let victim = match fault {
                Fault::KillSource => source(world, old, new)?,
                _ => new,
            };
            let done = mib(copy.bytes());
            println!(
                "kill -9 of {} when {done} of {} are copied",
                world.name(victim),
                mib(total)
            );
            world.kill_node(victim)?;
            if victim == new {
                copy.restarted();
            }
            (due, down) = (false, Some((victim, Instant::now())));
        }
        if let Some((victim, _)) = down.take_if(|(_, at)| at.elapsed() >= ABSENCE) {
            world.start_node(victim)?;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(
        !due,
        "the copy was over before anybody was killed: make --bytes more, or --copy-rate less"
    );
    if let Some((victim, _)) = down {
        world.start_node(victim)?;
    }
    Ok(copy)
}

/// One of the nodes that the new one copies from, and that stays: each is asked for about as many files.
fn source(world: &World, old: usize, new: usize) -> anyhow::Result<usize> {
    let stays = |node: &usize| ![old, new].contains(node) && world.pid(*node).is_some();
    let staying: Vec<usize> = (0..world.node_count()).filter(stays).collect();
    staying
        .choose(&mut rand::rng())
        .copied()
        .context("no other node is there")
}

/// Waits until three replicas of every shard hold every file.
async fn whole(world: &World) -> anyhow::Result<()> {
    let whole = world.wait_for("every replica to be whole", Duration::from_secs(120), async |world| {
        let missing = world.ask("SELECT sum(missing_files) FROM system.replicas").await?;
        let ready = "SELECT count(*) FROM system.replicas WHERE state = 'Ready'";
        let (ready, shards) = (
            world.ask(ready).await?,
            world.ask("SELECT count(*) FROM system.shards").await?,
        );
        ensure!(
            missing == 0 && ready == 3 * shards,
            "{missing} files are missing, {ready} replicas of {shards} shards are ready"
        );
        Ok(true)
    });
    whole.await
}

impl Stretch {
    /// Nobody was refused an answer, and no partition stood still for longer than may be, nor did its rows as they are seen, where
    /// a move of shards has it stand still for `moved`.
    fn check(&self, moved: (Duration, Duration)) -> Result<(), String> {
        let (noticed, killed) = (&self.noticed, self.fault != Fault::None);
        let of = |limits: (Duration, Duration)| if killed { limits.1 } else { limits.0 };
        let (unread, unseen) = (moved.0 + of(PAUSES), moved.1 + of(UNSEEN));
        if !noticed.failed.is_empty() {
            return Err(format!("{}: queries failed: {:#?}", self.what, noticed.failed));
        }
        if !killed && !noticed.repeated.is_empty() {
            return Err(format!(
                "{}: queries had to be repeated: {:#?}",
                self.what, noticed.repeated
            ));
        }
        if self.unread > unread {
            return Err(format!("{}: nothing was read for {:?}", self.what, self.unread));
        }
        if noticed.pause > unseen {
            return Err(format!("{}: no new rows for {:?}", self.what, noticed.pause));
        }
        Ok(())
    }
}

/// What was measured, one line for each stretch.
pub fn table(stretches: &[Stretch]) -> String {
    let head = format!(
        "{:<48} {:>8} {:>9} {:>10} {:>7} {:>7} {:>15} {:>15} {:>21}",
        "",
        "took",
        "copied",
        "per second",
        "unread",
        "unseen",
        "light p50/p99",
        "aggr. p50/p99",
        "answered/again/failed"
    );
    let lines = stretches.iter().map(line);
    std::iter::once(head).chain(lines).collect::<Vec<_>>().join("\n")
}

fn line(stretch: &Stretch) -> String {
    let noticed = &stretch.noticed;
    let ms = |(half, most): (Duration, Duration)| format!("{}/{} ms", half.as_millis(), most.as_millis());
    let (copied, rate) = stretch.copied.map_or_else(Default::default, |(bytes, took)| {
        (mib(bytes), mib((bytes as f64 / took.as_secs_f64()) as u64))
    });
    format!(
        "{:<48} {:>6.1} s {copied:>9} {rate:>10} {:>5.2} s {:>5.2} s {:>15} {:>15} {:>21}",
        stretch.what,
        stretch.took.as_secs_f64(),
        stretch.unread.as_secs_f64(),
        noticed.pause.as_secs_f64(),
        ms(noticed.light),
        ms(noticed.aggregate),
        format!(
            "{}/{}/{}",
            noticed.answered,
            noticed.repeated.len(),
            noticed.failed.len()
        ),
    )
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_number_and_a_unit() {
        assert_eq!(bytes("2GiB"), Ok(2 << 30));
        assert_eq!(bytes("300 KiB"), Ok(300 << 10));
        for wrong in ["2", "GiB", "-1MiB", "0MiB", "99999999999GiB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
