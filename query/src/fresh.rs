//! Reading a table at one moment: committed parts and the rows in memory, each row once.
//!
//! It finds the shards that matter, pins their rows, takes one snapshot of the catalog, checks that
//! both fit together, and cuts the pinned rows where the snapshot ends. It reads no part itself.
//!
//! # Why every offset is seen exactly once (QRY-1)
//!
//! Let V be the snapshot and C the committed offset of a source partition in V, incarnation i.
//! The parts in V hold exactly the rows of the offsets below C (OFF-2: committed spans tile the
//! history). What is left to show is that the pinned rows that are used are exactly those of `[C, t)`
//! for some t >= C, which is then the cut of this partition.
//!
//! 1. *Order.* Every pin is taken before V, and V is linearizable, so V contains every commit that
//!    had been acknowledged when a pin was taken. A memtable forgets rows only once their commit is
//!    acknowledged or, while its node stands by, in the catalog. Hence `from <= C` for a pin of the same history,
//!    and nothing is missing between the parts and the pin. (The other order, V first, loses rows that are flushed in between.)
//! 2. *One history.* A pin covers `[from, to)` of one (pipe, partition, incarnation) without gaps.
//!    It is used only if the incarnation is i: rows of an earlier one can never be committed, since
//!    the fence refuses them, and are read again under a later one. An incarnation later than i
//!    cannot be, by 1; if it is seen, the snapshot is older than it claims, and we start again.
//!    Rows that must not be seen before they are committed are in no pin: it ends where its commits do.
//! 3. *No overlap.* Of a pinned row, only offsets `>= C` are used, those below are in parts of V.
//!    If `to < C`, none is used, and the cut is C. If the pin does not know the partition, its task
//!    has not begun: nothing is used, and the cut is C.
//! 4. *One leader.* A pin is used only if V has the shard at the epoch at which it was pinned, so at
//!    most one memtable speaks for a shard. A deposed leader's rows are never mixed with a newer
//!    leader's commits, whatever either of them believes.
//! 5. *Nothing left out.* A shard is skipped only if in V (not in the state that the pins were planned
//!    with) it owns no partition of a pipe that runs. A pause raises the incarnation in the same
//!    command, so by 2 no memtable row of such a shard would be used.
//!
//! Rows are seen up to the cut, and the cut is at least C, so nothing that was committed when the query
//! began is missing. All tables of a query share V; a join sees one state of the catalog.

use crate::error::QueryError;
use crate::held::{HeldVersion, HeldVersions};
use crate::nearest::did_you_mean;
use crate::ports::{Catalog, CatalogError, FreshRows, PinError};
use crate::settings::Consistency;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tidemill_core::catalog::{CatalogQuestions, Node, Pipe, PipeState, Shard, SourcePartition, Table};
use tidemill_core::schema::OFFSET;
use tidemill_core::view::{CatalogRead, CatalogSnapshot};
use tidemill_core::{Offset, PartitionId, PipeId, ShardId};
use tidemill_storage::memtable::PinnedShard;
use tidemill_storage::schema::arrow_schema;
use tokio::time::{Instant, sleep, timeout_at};

/// The first pause before another attempt; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Takes readings.
pub struct Reader {
    pub(crate) catalog: Arc<dyn Catalog>,
    pub(crate) fresh: Arc<dyn FreshRows>,
    pub(crate) held: Arc<HeldVersions>,
    /// What queries may use.
    pub(crate) memory: Arc<dyn MemoryPool>,
    /// Bytes that reading the files of a query takes.
    pub(crate) scan_bytes: usize,
    pub(crate) pin_timeout: Duration,
}

/// One moment of some tables.
pub struct Reading {
    /// The state of the catalog.
    pub snapshot: Arc<dyn CatalogSnapshot>,
    /// The tables by the names they were asked for.
    pub tables: BTreeMap<String, TableAtOnce>,
    /// To be kept while the query runs.
    pub(crate) held: Held,
}

/// What a running query keeps: the files of its snapshot, and its memory for reading.
pub(crate) struct Held {
    _version: HeldVersion,
    _memory: Vec<MemoryReservation>,
}

/// One moment of a table.
#[derive(Clone, Debug)]
pub struct TableAtOnce {
    /// The table.
    pub table: Table,
    /// The rows beyond its committed parts.
    pub rows: Vec<RecordBatch>,
}

/// The rows of a shard that are not committed, and the memory that they count for.
struct Pin {
    rows: PinnedShard,
    memory: MemoryReservation,
}

type Pins = BTreeMap<ShardId, Pin>;

/// Why a shard cannot be read yet.
#[derive(Clone, Debug)]
enum Wait {
    NoLeader,
    Pin(PinError),
    TimedOut,
    Changed,
}

impl std::fmt::Display for Wait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Wait::NoLeader => f.write_str("it has no leader at the moment"),
            Wait::Pin(error) => error.fmt(f),
            Wait::TimedOut => f.write_str("its leader does not answer"),
            Wait::Changed => f.write_str("it keeps changing"),
        }
    }
}

impl Reader {
    /// One moment of the tables called `names`, of whose rows only `columns` are needed, if they are named. Waits up to the
    /// pin timeout for leaders; an unknown table is an error without a place.
    pub async fn read(
        &self,
        names: &BTreeSet<String>,
        columns: Option<&BTreeSet<String>>,
        consistency: Consistency,
    ) -> Result<Reading, QueryError> {
        let scanning = self.reserve("reading files", self.scan_bytes * names.len())?;
        let deadline = Instant::now() + self.pin_timeout;
        let before = self.catalog.local()?;
        let mut held = self.held.hold(before.version());
        if names.is_empty() || consistency == Consistency::Committed {
            let snapshot = self.snapshot(deadline).await?;
            held.raise(snapshot.version());
            let tables = find(&*snapshot, names)?;
            let tables = tables.into_iter().map(|(name, table)| {
                (
                    name,
                    TableAtOnce {
                        table,
                        rows: Vec::new(),
                    },
                )
            });
            return Ok(Reading {
                tables: tables.collect(),
                snapshot,
                held: Held {
                    _version: held,
                    _memory: vec![scanning],
                },
            });
        }
        let mut plan = before;
        let mut pins = Pins::new();
        let mut pause = FIRST_PAUSE;
        loop {
            // The waits of this attempt, by shard; the pins of shards that wait are taken anew.
            let mut waits = self.pin_missing(&*plan, names, columns, &mut pins, deadline).await?;
            let snapshot = self.snapshot(deadline).await?;
            held.raise(snapshot.version());
            let tables = find(&*snapshot, names)?;
            let mut read = BTreeMap::new();
            let mut unfit = BTreeSet::new();
            for (name, table) in tables {
                match cut(&*snapshot, &table, &pins)? {
                    Ok(rows) => _ = read.insert(name, TableAtOnce { table, rows }),
                    Err(shards) => unfit.extend(shards),
                }
            }
            let Some(first) = unfit.first() else {
                return Ok(Reading {
                    snapshot,
                    tables: read,
                    held: Held {
                        _version: held,
                        _memory: pins.into_values().map(|pin| pin.memory).chain([scanning]).collect(),
                    },
                });
            };
            for shard in &unfit {
                pins.remove(shard);
            }
            if Instant::now() + pause >= deadline {
                let wait = waits.remove(first).unwrap_or(Wait::Changed);
                return Err(self.gave_up(&*snapshot, *first, &wait));
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            plan = self.catalog.local()?;
            if plan.version() < snapshot.version() {
                plan = snapshot;
            }
        }
    }

    /// Memory of the queries' share, until it is dropped.
    fn reserve(&self, what: &str, bytes: usize) -> Result<MemoryReservation, QueryError> {
        let reserved = MemoryConsumer::new(what).register(&self.memory);
        reserved.try_grow(bytes)?;
        Ok(reserved)
    }

    /// Pins every shard that `plan` says matters and that is not pinned in its present epoch.
    async fn pin_missing(
        &self,
        plan: &dyn CatalogSnapshot,
        names: &BTreeSet<String>,
        columns: Option<&BTreeSet<String>>,
        pins: &mut Pins,
        deadline: Instant,
    ) -> Result<BTreeMap<ShardId, Wait>, QueryError> {
        let mut waits = BTreeMap::new();
        let mut asked = Vec::new();
        for name in names {
            // A table that is not there yet may be there in the snapshot; that is found out then.
            let Some(table) = plan.table_named(name)? else { continue };
            let wanted = columns.map(|columns| Arc::new(columns_of(&table, columns)));
            for shard in fed_shards(plan, &table)?.into_values() {
                if pins.get(&shard.id).is_some_and(|pin| pin.rows.epoch == shard.epoch) {
                    continue;
                }
                match shard.leader {
                    Some(leader) => asked.push((shard, leader, wanted.clone())),
                    None => _ = waits.insert(shard.id, Wait::NoLeader),
                }
            }
        }
        let pinning = asked.iter().map(|(shard, leader, wanted)| {
            let pin = self.fresh.pin(*leader, shard.id, shard.epoch, wanted.as_deref());
            async move { (shard, timeout_at(deadline, pin).await) }
        });
        for (shard, pinned) in join_all(pinning).await {
            match pinned {
                Ok(Ok(rows)) if rows.shard == shard.id => {
                    // What an earlier epoch had is given back first.
                    pins.remove(&shard.id);
                    let memory = self.reserve("rows that are not committed", rows.memory())?;
                    pins.insert(shard.id, Pin { rows, memory });
                }
                Ok(Ok(_)) => _ = waits.insert(shard.id, Wait::Changed),
                Ok(Err(error)) => _ = waits.insert(shard.id, Wait::Pin(error)),
                Err(_) => _ = waits.insert(shard.id, Wait::TimedOut),
            }
        }
        Ok(waits)
    }

    /// A linearizable snapshot, asked for again while there is time.
    pub(crate) async fn snapshot(&self, deadline: Instant) -> Result<Arc<dyn CatalogSnapshot>, QueryError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match timeout_at(deadline, self.catalog.linearizable()).await {
                Ok(Ok(snapshot)) => return Ok(snapshot),
                Ok(Err(error @ CatalogError::Unavailable(_))) => error,
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => CatalogError::Unavailable("no answer in time".to_owned()),
            };
            if Instant::now() + pause >= deadline {
                return Err(error.into());
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn gave_up(&self, snapshot: &dyn CatalogSnapshot, shard: ShardId, wait: &Wait) -> QueryError {
        let table = snapshot.get::<Table>(&shard.table).ok().flatten();
        let table = table.map_or_else(|| shard.table.to_string(), |table| table.name);
        let leader = snapshot
            .get::<Shard>(&shard)
            .ok()
            .flatten()
            .and_then(|record| record.leader);
        let leader = leader.and_then(|id| snapshot.get::<Node>(&id).ok().flatten());
        let leader = leader
            .map(|node| format!(" (leader: node '{}')", node.name))
            .unwrap_or_default();
        QueryError::unavailable(format!(
            "shard {} of table '{table}'{leader} cannot be read within {:?}: {wait}; try again, \
             or SET tidemill.consistency = 'committed' to read without the rows in memory",
            shard.index, self.pin_timeout
        ))
    }
}

/// The tables called `names`, or an error that names the nearest.
pub(crate) fn find(
    snapshot: &dyn CatalogSnapshot,
    names: &BTreeSet<String>,
) -> Result<BTreeMap<String, Table>, QueryError> {
    let mut found = BTreeMap::new();
    for name in names {
        match snapshot.table_named(name)? {
            Some(table) => _ = found.insert(name.clone(), table),
            None => return Err(no_table(snapshot, name)?),
        }
    }
    Ok(found)
}

/// The error for a table that is not there, with the nearest one that is.
pub(crate) fn no_table(snapshot: &dyn CatalogSnapshot, name: &str) -> Result<QueryError, QueryError> {
    let tables: Vec<Table> = snapshot.list(&[])?;
    let hint = did_you_mean(name, tables.iter().map(|table| table.name.as_str()));
    let hint = match crate::system::NAMES.contains(&name) {
        true => format!("; did you mean {}.{name}?", crate::session::SYSTEM_SCHEMA),
        false if hint.is_empty() => "; SHOW TABLES lists them".to_owned(),
        false => hint,
    };
    Ok(QueryError::invalid(format!("there is no table '{name}'{hint}")))
}

/// Those of the columns of `table` that are in `named`, and the offset.
fn columns_of(table: &Table, named: &BTreeSet<String>) -> BTreeSet<String> {
    let schema = arrow_schema(table);
    let names = schema.fields().iter().map(|field| field.name());
    names
        .filter(|name| *name == OFFSET || named.contains(*name))
        .cloned()
        .collect()
}

/// The shards of `table` that own a partition of a pipe that is not paused.
fn fed_shards(snapshot: &dyn CatalogSnapshot, table: &Table) -> Result<BTreeMap<ShardId, Shard>, QueryError> {
    let mut fed = BTreeSet::new();
    for pipe in snapshot
        .pipes_into(table.id)?
        .iter()
        .filter(|pipe| pipe.state != PipeState::Paused)
    {
        fed.extend(snapshot.partitions_of(pipe.id)?.iter().map(|partition| partition.shard));
    }
    if fed.is_empty() {
        return Ok(BTreeMap::new());
    }
    let shards = snapshot.shards_of(table.id)?;
    Ok(shards
        .into_iter()
        .filter(|shard| fed.contains(&shard.id))
        .map(|shard| (shard.id, shard))
        .collect())
}

/// The pinned rows of `table` beyond what `snapshot` has in parts; or the shards whose pins do not
/// fit the snapshot and must be taken anew.
fn cut(
    snapshot: &dyn CatalogSnapshot,
    table: &Table,
    pins: &Pins,
) -> Result<Result<Vec<RecordBatch>, BTreeSet<ShardId>>, QueryError> {
    let fed = fed_shards(snapshot, table)?;
    let mut unfit = BTreeSet::new();
    let mut rows = Vec::new();
    let mut partitions: BTreeMap<(PipeId, PartitionId), SourcePartition> = BTreeMap::new();
    for pipe in snapshot
        .pipes_into(table.id)?
        .iter()
        .filter(|pipe: &&Pipe| pipe.state != PipeState::Paused)
    {
        let of_pipe = snapshot.partitions_of(pipe.id)?;
        partitions.extend(
            of_pipe
                .into_iter()
                .map(|partition| ((pipe.id, partition.partition), partition)),
        );
    }
    for shard in fed.values() {
        let pin = pins
            .get(&shard.id)
            .map(|pin| &pin.rows)
            .filter(|pin| pin.epoch == shard.epoch && shard.leader.is_some());
        let Some(pin) = pin else {
            unfit.insert(shard.id);
            continue;
        };
        match used_from(shard.id, pin, &partitions) {
            Some(used) => rows.extend(beyond(pin, &used)?),
            None => _ = unfit.insert(shard.id),
        }
    }
    Ok(if unfit.is_empty() { Ok(rows) } else { Err(unfit) })
}

/// From which offset on, and up to which, the pinned histories are used; `None` if the pin cannot
/// belong to this snapshot. Histories that can never be committed any more are left out.
fn used_from(
    shard: ShardId,
    pin: &PinnedShard,
    partitions: &BTreeMap<(PipeId, PartitionId), SourcePartition>,
) -> Option<BTreeMap<tidemill_core::SpanKey, (Offset, Offset)>> {
    let mut used = BTreeMap::new();
    for pinned in &pin.partitions {
        let Some(partition) = partitions.get(&(pinned.key.pipe, pinned.key.partition)) else {
            continue;
        };
        if partition.shard != shard || pinned.key.incarnation < partition.incarnation {
            continue;
        }
        if pinned.key.incarnation > partition.incarnation || pinned.from > partition.offset {
            return None;
        }
        used.insert(pinned.key, (partition.offset, pinned.to));
    }
    Some(used)
}

/// The rows of a pin within the ranges of `used`. Rows of a batch are in the order of their offsets,
/// so that a range is a slice: no row is copied.
fn beyond(
    pin: &PinnedShard,
    used: &BTreeMap<tidemill_core::SpanKey, (Offset, Offset)>,
) -> Result<Vec<RecordBatch>, QueryError> {
    let mut rows = Vec::new();
    for batch in &pin.batches {
        let Some((from, to)) = used.get(&batch.key) else {
            continue;
        };
        let column = batch
            .rows
            .column_by_name(OFFSET)
            .and_then(|column| column.as_primitive_opt::<Int64Type>());
        let Some(column) = column.filter(|column| column.null_count() == 0) else {
            return Err(QueryError::internal(format!(
                "pinned rows of shard {} have no column {OFFSET}",
                pin.shard
            )));
        };
        let offsets = column.values();
        debug_assert!(offsets.is_sorted(), "pinned rows are not in the order of their offsets");
        let first = offsets.partition_point(|offset| (*offset as u64) < from.0);
        let end = offsets.partition_point(|offset| (*offset as u64) < to.0);
        if first < end {
            rows.push(batch.rows.slice(first, end - first));
        }
    }
    Ok(rows)
}
