//! QRY-1 under attack: between any two steps of a reading the world commits, flushes, fails over,
//! pauses, goes back and lags behind, as a seeded random order decides. The catalog is core's `apply`, the
//! memtables are storage's; parts are kept as lists of rows.
//!
//! Every reading must show, per partition, every record below its cut exactly once, nothing that
//! the source did not have, and never less than what was committed when it began. Where nothing
//! was moved meanwhile, it must also show all that was in memory.
//!
//! `QRY1_SEEDS=5000 cargo test -p tidemill-query qry_1` tries more; a failure names its seed.

use super::world::{Snapshot, apply_to, found, read_anew, rows};
use crate::fresh::{Reader, Reading};
use crate::*;
use arrow::array::AsArray;
use arrow::datatypes::{Int32Type, Int64Type};
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tidemill_core::catalog::*;
use tidemill_core::command::*;
use tidemill_core::schema::{Column, ColumnType};
use tidemill_core::view::{CatalogRead, CatalogSnapshot, MemView};
use tidemill_core::*;
use tidemill_storage::memtable::{Chunk, Cut, Memtable, PinnedShard};

/// Pipe, partition, offset.
type Row = (u64, u32, u64);

struct Random(u64);

impl Random {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Whether the source has a record at the offset; others are holes.
fn exists(offset: u64) -> bool {
    !offset.wrapping_mul(0x9E37_79B9_7F4A_7C15).is_multiple_of(7)
}

/// What a node runs for a shard that it leads, or believes to lead.
struct Office {
    memtable: Memtable,
    epoch: Epoch,
    /// A commit that was proposed or will be, and whether it was applied.
    commit: Option<(CommitPart, bool)>,
}

struct Sim {
    random: Random,
    catalog: (MemView, Version),
    /// Every state so far; `seen` is how far the querying node has applied them.
    history: Vec<Arc<Snapshot>>,
    seen: usize,
    offices: BTreeMap<(NodeId, ShardId), Office>,
    parts: BTreeMap<PartId, Vec<Row>>,
    /// Faults that may still happen during this reading, so that it comes to an end.
    faults: usize,
    moves: u64,
    last_id: u128,
}

impl Sim {
    fn new(seed: u64) -> Self {
        let mut sim = Sim {
            random: Random(seed),
            catalog: Default::default(),
            history: Vec::new(),
            seen: 0,
            offices: BTreeMap::new(),
            parts: BTreeMap::new(),
            faults: 0,
            moves: 0,
            last_id: 0,
        };
        found(&mut |command| sim.apply(command));
        for (table, pipes) in [("a", 2), ("b", 1)] {
            let columns = vec![Column {
                name: "id".into(),
                data_type: ColumnType::Int64,
                nullable: true,
                default: None,
            }];
            sim.apply(Command::CreateTable(CreateTable {
                name: table.into(),
                id: None,
                if_not_exists: false,
                columns,
                order_by: vec![],
                partition_by: None,
                shards: 2,
                settings: TableSettings::default(),
            }))
            .unwrap();
            for pipe in 0..pipes {
                sim.apply(Command::CreatePipe(CreatePipe {
                    name: format!("{table}{pipe}"),
                    id: None,
                    if_not_exists: false,
                    table: table.into(),
                    table_id: None,
                    source: KafkaSource {
                        brokers: "h".into(),
                        topic: "t".into(),
                        client: BTreeMap::new(),
                    },
                    settings: PipeSettings::default(),
                    topic: None,
                    format: Default::default(),
                    partitions: (0..3).map(|p| (PartitionId(p), Offset(u64::from(p) * 10))).collect(),
                }))
                .unwrap();
            }
        }
        sim
    }

    fn apply(&mut self, command: Command) -> Outcome {
        let outcome = apply_to(&mut self.catalog, command).1;
        self.history
            .push(Arc::new(Snapshot(self.catalog.0.clone(), self.catalog.1)));
        outcome
    }

    fn now(&self) -> Arc<Snapshot> {
        self.history[self.history.len() - 1].clone()
    }

    fn id(&mut self) -> u128 {
        self.last_id += 1;
        self.last_id
    }

    fn steps(&mut self) {
        for _ in 0..self.random.below(6) {
            self.step();
        }
    }

    fn step(&mut self) {
        match self.random.below(17) {
            0..=4 => self.append(),
            5 | 6 => self.cut(),
            7 | 8 => self.propose(),
            9 | 10 => self.learn_commit(),
            11 | 12 => self.catch_up(),
            13 => self.seen = (self.seen + 1 + self.random.below(3)).min(self.history.len() - 1),
            14 if self.faults > 0 => self.fail_over(),
            15 if self.faults > 0 => self.pause_or_resume(),
            16 if self.faults > 0 => self.go_back(),
            _ => {}
        }
    }

    fn office(&mut self) -> Option<(NodeId, ShardId)> {
        let keys: Vec<_> = self.offices.keys().copied().collect();
        (!keys.is_empty()).then(|| keys[self.random.below(keys.len())])
    }

    /// A task reads some records, whether its node still leads or not.
    fn append(&mut self) {
        let Some(at) = self.office() else { return };
        let (table, lane) = {
            let lanes = self.offices[&at].memtable.positions();
            if lanes.is_empty() {
                return;
            }
            let lane = lanes[self.random.below(lanes.len())];
            (self.now().get::<Table>(&at.1.table).unwrap().unwrap(), lane)
        };
        let (key, start) = lane;
        let end = start.0 + 1 + self.random.next() % 20;
        let offsets: Vec<u64> = (start.0..end).filter(|offset| exists(*offset)).collect();
        let batch = rows(&table, &key.pipe.to_string(), key.partition.0, &offsets);
        let stored = offsets.len() as u64;
        let span = Span {
            key,
            start,
            end: Offset(end),
            counts: Counts {
                absent: end - start.0 - stored,
                ..Counts::stored(stored)
            },
            topic: None,
            source_epoch: None,
        };
        self.offices[&at]
            .memtable
            .append(Chunk {
                span,
                rows: Some(batch),
                rejects: None,
            })
            .unwrap();
    }

    fn cut(&mut self) {
        let Some(at) = self.office() else { return };
        if self.offices[&at].commit.is_some() {
            return;
        }
        let Some(cut) = self.offices[&at].memtable.cut() else {
            return;
        };
        self.prepare(at, cut);
    }

    /// Writes the cut as a part, to be committed later.
    fn prepare(&mut self, at: (NodeId, ShardId), cut: Cut) {
        let (part, commit) = (PartId(self.id()), CommitId(self.id()));
        let written: Vec<Row> = cut.rows.iter().flat_map(row_ids).collect();
        let file = PartFile {
            id: part,
            path: part.to_string(),
            rows: written.len() as u64,
            bytes: 1,
            checksum: 0,
            partition_value: None,
            ranges: vec![],
        };
        self.parts.insert(part, written);
        let epoch = self.offices[&at].epoch;
        let commit = CommitPart {
            commit,
            shard: at.1,
            epoch,
            schema_version: SchemaVersion(1),
            parts: if file.rows > 0 { vec![file] } else { vec![] },
            reject_parts: vec![],
            spans: cut.spans,
            holders: vec![],
        };
        self.offices.get_mut(&at).unwrap().commit = Some((commit, false));
    }

    fn propose(&mut self) {
        let Some(at) = self.office() else { return };
        let Some((commit, false)) = self.offices[&at].commit.clone() else {
            return;
        };
        match self.apply(Command::CommitPart(commit)) {
            Ok(_) => self.offices.get_mut(&at).unwrap().commit.as_mut().unwrap().1 = true,
            Err(Refusal::Spans(refused)) => {
                let drop: Vec<SpanKey> = refused.iter().map(|(key, _)| *key).collect();
                self.offices.get_mut(&at).unwrap().commit = None;
                if let Some(cut) = self.offices[&at].memtable.recut(&drop) {
                    self.prepare(at, cut);
                }
            }
            // A deposed leader may go on as if it had not heard.
            Err(_) if self.random.below(2) == 0 => _ = self.offices.remove(&at),
            Err(_) => {}
        }
    }

    /// The answer to a commit arrives: only now rows leave the memtable.
    fn learn_commit(&mut self) {
        let Some(at) = self.office() else { return };
        let office = self.offices.get_mut(&at).unwrap();
        if matches!(office.commit, Some((_, true))) {
            office.commit = None;
            office.memtable.commit_cut();
        }
    }

    /// Nodes learn which shards they lead, and which partitions these have.
    fn catch_up(&mut self) {
        let now = self.now();
        let shards: Vec<Shard> = now.list(&[]).unwrap();
        for shard in shards {
            let Some(leader) = shard.leader else { continue };
            let office = self.offices.get(&(leader, shard.id));
            if office.is_some_and(|office| office.epoch == shard.epoch) || self.random.below(4) == 0 {
                continue;
            }
            let memtable = Memtable::new(shard.id, shard.epoch);
            let office = Office {
                memtable,
                epoch: shard.epoch,
                commit: None,
            };
            self.offices.insert((leader, shard.id), office);
        }
        let Some(at) = self.office() else { return };
        self.open_lanes(at, &now);
    }

    fn open_lanes(&mut self, at: (NodeId, ShardId), now: &Snapshot) {
        let pipes: Vec<Pipe> = now.list(&[]).unwrap();
        let partitions: Vec<SourcePartition> = now.list(&[]).unwrap();
        for p in partitions.iter().filter(|p| p.shard == at.1) {
            let memtable = &self.offices[&at].memtable;
            let paused = pipes
                .iter()
                .any(|pipe| pipe.id == p.pipe && pipe.state == PipeState::Paused);
            let open = memtable
                .positions()
                .into_iter()
                .find(|(key, _)| (key.pipe, key.partition) == (p.pipe, p.partition));
            let key = SpanKey {
                pipe: p.pipe,
                partition: p.partition,
                incarnation: p.incarnation,
            };
            match open {
                Some(_) if paused => memtable.close_partition(p.pipe, p.partition),
                Some((open, _)) if open == key => {}
                _ if paused => {}
                _ => memtable.open_partition(key, p.offset),
            }
        }
    }

    fn fail_over(&mut self) {
        self.faults -= 1;
        self.moves += 1;
        let shards: Vec<Shard> = self.now().list(&[]).unwrap();
        let shard = &shards[self.random.below(shards.len())];
        let leader = Some(NodeId(1 + self.random.next() % 3)).filter(|_| self.random.below(4) > 0);
        self.apply(Command::AssignLeader(AssignLeader {
            shard: shard.id,
            replaces: shard.epoch,
            leader,
            because: String::new(),
        }))
        .unwrap();
    }

    fn pause_or_resume(&mut self) {
        self.faults -= 1;
        self.moves += 1;
        let pipes: Vec<Pipe> = self.now().list(&[]).unwrap();
        let pipe = &pipes[self.random.below(pipes.len())];
        // A pipe that is being paused still has its rows in memory, and they are still seen.
        let state = match pipe.state {
            PipeState::Running => PipeState::Pausing,
            PipeState::Pausing => PipeState::Paused,
            PipeState::Paused => PipeState::Running,
        };
        self.apply(Command::SetPipeState(SetPipeState {
            name: pipe.name.clone(),
            pipe: None,
            from: None,
            state,
        }))
        .unwrap();
    }

    /// The pipe of `b` reads some offsets once more, and the rows that are there are deleted.
    fn go_back(&mut self) {
        self.faults -= 1;
        self.moves += 1;
        let pipe = self.now().pipe_named("b0").unwrap().unwrap();
        let partitions = self.now().partitions_of(pipe.id).unwrap();
        let p = &partitions[self.random.below(partitions.len())];
        let begin = u64::from(p.partition.0) * 10;
        let to = begin + self.random.next() % (p.offset.0 - begin + 1);
        let command = read_anew(&pipe, p, Offset(to));
        self.apply(command).unwrap();
    }

    /// Ends the faults: every shard gets a leader that knows of it.
    fn heal(&mut self) {
        self.faults = 0;
        let shards: Vec<Shard> = self.now().list(&[]).unwrap();
        for shard in shards.iter().filter(|shard| shard.leader.is_none()) {
            let leader = Some(NodeId(1 + self.random.next() % 3));
            self.apply(Command::AssignLeader(AssignLeader {
                shard: shard.id,
                replaces: shard.epoch,
                leader,
                because: String::new(),
            }))
            .unwrap();
        }
    }

    /// Per partition, where the leaders in office have read to.
    fn positions(&self) -> BTreeMap<(PipeId, PartitionId), u64> {
        let now = self.now();
        let mut positions = BTreeMap::new();
        for p in now.list::<SourcePartition>(&[]).unwrap() {
            let shard = now.get::<Shard>(&p.shard).unwrap().unwrap();
            let office = shard.leader.and_then(|leader| self.offices.get(&(leader, shard.id)));
            let lanes = office
                .filter(|o| o.epoch == shard.epoch)
                .map(|o| o.memtable.positions());
            let key = SpanKey {
                pipe: p.pipe,
                partition: p.partition,
                incarnation: p.incarnation,
            };
            let paused = now.get::<Pipe>(&p.pipe).unwrap().unwrap().state == PipeState::Paused;
            let read = lanes
                .into_iter()
                .flatten()
                .find(|(open, _)| *open == key && !paused)
                .map(|(_, to)| to.0);
            positions.insert((p.pipe, p.partition), read.unwrap_or(p.offset.0));
        }
        positions
    }
}

fn row_ids(batch: &arrow::array::RecordBatch) -> Vec<Row> {
    let topics = batch.column_by_name("_topic").unwrap().as_string::<i32>();
    let partitions = batch.column_by_name("_partition").unwrap().as_primitive::<Int32Type>();
    let offsets = batch.column_by_name("_offset").unwrap().as_primitive::<Int64Type>();
    let row = |i| {
        (
            topics.value(i).parse().unwrap(),
            partitions.value(i) as u32,
            offsets.value(i) as u64,
        )
    };
    (0..batch.num_rows()).map(row).collect()
}

/// The simulation as the query sees it: every call is preceded and followed by steps of the world.
struct Outside(Mutex<Sim>);

#[async_trait]
impl Catalog for Outside {
    async fn linearizable(&self) -> Result<Arc<dyn CatalogSnapshot>, CatalogError> {
        let mut sim = self.0.lock().unwrap();
        sim.steps();
        // It contains all that was acknowledged before the call, and perhaps more.
        let snapshot = sim.now();
        let version = snapshot.1;
        sim.seen = sim.seen.max(sim.history.iter().position(|s| s.1 == version).unwrap());
        sim.steps();
        Ok(snapshot)
    }
    fn local(&self) -> Result<Arc<dyn CatalogSnapshot>, CatalogError> {
        let mut sim = self.0.lock().unwrap();
        sim.steps();
        let at = sim.seen;
        Ok(sim.history[at].clone())
    }
    async fn propose(&self, _: Command) -> Result<(Version, Outcome), CatalogError> {
        Err(CatalogError::Fatal("not here".into()))
    }
}

#[async_trait]
impl FreshRows for Outside {
    async fn pin(
        &self,
        leader: NodeId,
        shard: ShardId,
        epoch: Epoch,
        _: Option<&BTreeSet<String>>,
    ) -> Result<PinnedShard, PinError> {
        let mut sim = self.0.lock().unwrap();
        sim.steps();
        let office = sim.offices.get(&(leader, shard)).filter(|office| office.epoch == epoch);
        let pin = office.and_then(|office| office.memtable.pin());
        sim.steps();
        match sim.random.below(12) {
            0 => Err(PinError::Unreachable("lost".into())),
            _ => pin.ok_or(PinError::NotLeading),
        }
    }
}

fn check(sim: &Sim, reading: &Reading, before: &Snapshot, positions: Option<&BTreeMap<(PipeId, PartitionId), u64>>) {
    for at_once in reading.tables.values() {
        let parts = reading.snapshot.parts_of(at_once.table.id).unwrap();
        let deleted = |part: &Part, row: &Row| {
            let from = |d: &DeletedRows| d.from.get(&PartitionId(row.1)).copied();
            let holds = |d: &DeletedRows| part.version < d.version && from(d).is_some_and(|from| from.0 <= row.2);
            at_once.table.deleted.iter().any(holds)
        };
        let rows_of = |part: &Part| sim.parts[&part.file.id].clone();
        let committed = parts
            .iter()
            .flat_map(|part| rows_of(part).into_iter().filter(|row| !deleted(part, row)));
        let fresh = at_once.rows.iter().flat_map(row_ids);
        let all: Vec<Row> = committed.chain(fresh).collect();
        let distinct: BTreeSet<Row> = all.iter().copied().collect();
        assert_eq!(all.len(), distinct.len(), "a row is seen twice");
        for pipe in reading.snapshot.pipes_into(at_once.table.id).unwrap() {
            for p in reading.snapshot.partitions_of(pipe.id).unwrap() {
                let seen = distinct.range((p.pipe.0, p.partition.0, 0)..=(p.pipe.0, p.partition.0, u64::MAX));
                let seen: Vec<u64> = seen.map(|row| row.2).collect();
                let cut = p.offset.0.max(seen.last().map_or(0, |last| last + 1));
                let expected: Vec<u64> = (u64::from(p.partition.0) * 10..cut)
                    .filter(|offset| exists(*offset))
                    .collect();
                assert_eq!(
                    seen, expected,
                    "pipe {} partition {} below its cut {cut}",
                    p.pipe, p.partition
                );
                let old = before.get::<SourcePartition>(&(p.pipe, p.partition)).unwrap().unwrap();
                let went_back = |d: &DeletedRows| d.version > before.version() && d.from.contains_key(&p.partition);
                assert!(
                    cut >= old.offset.0 || at_once.table.deleted.iter().any(went_back),
                    "less than what was committed before"
                );
                if let Some(position) = positions.and_then(|all| all.get(&(p.pipe, p.partition))) {
                    let last = (u64::from(p.partition.0) * 10..*position)
                        .rev()
                        .find(|offset| exists(*offset));
                    assert!(
                        last.is_none_or(|last| seen.last() >= Some(&last)),
                        "not all rows in memory are seen"
                    );
                }
            }
        }
    }
}

/// Runs one world with several readings; gives how many were answered, and with how many fresh rows.
async fn run(seed: u64) -> (usize, usize) {
    let outside = Arc::new(Outside(Mutex::new(Sim::new(seed))));
    let reader = Reader {
        catalog: outside.clone(),
        fresh: outside.clone(),
        held: Arc::default(),
        memory: Arc::new(datafusion::execution::memory_pool::UnboundedMemoryPool::default()),
        scan_bytes: 0,
        pin_timeout: Duration::from_secs(5),
    };
    let names = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
    let (mut answered, mut fresh) = (0, 0);
    for reading in 0..6 {
        let (before, positions, moves) = {
            let mut sim = outside.0.lock().unwrap();
            sim.faults = 3;
            for _ in 0..60 {
                sim.step();
            }
            // Half of the readings see faults on their way, half do not.
            sim.faults = 2 * (reading % 2);
            if sim.faults == 0 {
                sim.heal();
            }
            (sim.now(), sim.positions(), sim.moves)
        };
        let result = {
            // A shard that lost its leader gets another one after a while, as the manager would see to.
            let healing = async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                outside.0.lock().unwrap().heal();
                std::future::pending::<()>().await
            };
            tokio::select! {
                result = reader.read(&names, None, Consistency::Fresh) => result,
                () = healing => unreachable!(),
            }
        };
        let sim = outside.0.lock().unwrap();
        let reading = result.unwrap_or_else(|error| panic!("no answer: {error}"));
        let undisturbed = sim.moves == moves;
        check(&sim, &reading, &before, undisturbed.then_some(&positions));
        answered += 1;
        fresh += reading
            .tables
            .values()
            .flat_map(|t| &t.rows)
            .map(|rows| rows.num_rows())
            .sum::<usize>();
    }
    (answered, fresh)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn qry_1_holds_whatever_happens_between_the_steps() {
    let seeds: u64 = std::env::var("QRY1_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(300);
    let (mut answered, mut fresh) = (0, 0);
    // Some at a time: a reading gives up after a while, and must not for want of a processor.
    for first in (0..seeds).step_by(64) {
        let runs: Vec<_> = (first..seeds.min(first + 64))
            .map(|seed| (seed, tokio::spawn(run(seed))))
            .collect();
        for (seed, run) in runs {
            let (a, f) = run.await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            answered += a;
            fresh += f;
        }
    }
    assert_eq!(answered, seeds as usize * 6);
    assert!(
        fresh > answered,
        "the test looks at hardly any fresh rows: {fresh} in {answered} readings"
    );
}
