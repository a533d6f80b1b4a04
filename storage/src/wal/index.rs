//! Which entries the log has, in memory: where each lies and what it covers. So trimming and planning a replay read
//! nothing from disk.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use tidemill_core::{Epoch, Offset, PartitionId, PipeId, ShardId, Span, SpanKey, TableId};

/// Length of a key: table, shard, epoch, sequence; all big-endian, so that the order of keys is theirs.
const KEY_BYTES: usize = 28;

/// One entry: where it lies and what it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalEntry {
    /// The shard.
    pub shard: ShardId,
    /// The epoch in which it was appended.
    pub epoch: Epoch,
    /// Its number: greater than that of every entry that was there when it was written.
    pub sequence: u64,
    /// The history that it belongs to.
    pub history: SpanKey,
    /// First offset.
    pub start: Offset,
    /// One past the last offset.
    pub end: Offset,
    /// Whether every offset of it is a row or a reject, so that it can be divided exactly.
    pub dense: bool,
    /// Its size.
    pub bytes: u64,
}

impl WalEntry {
    /// Its key in the database.
    pub(super) fn key(&self) -> [u8; KEY_BYTES] {
        key(self.shard, self.epoch, self.sequence)
    }
}

impl fmt::Display for WalEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, end, .. } = self;
        let SpanKey { pipe, partition, .. } = self.history;
        write!(f, "the entry {} of shard {} ", self.sequence, self.shard)?;
        write!(f, "(offsets {start} to {end} of pipe {pipe}, partition {partition})")
    }
}

fn key(shard: ShardId, epoch: Epoch, sequence: u64) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[..8].copy_from_slice(&shard.table.0.to_be_bytes());
    key[8..12].copy_from_slice(&shard.index.to_be_bytes());
    key[12..20].copy_from_slice(&epoch.0.to_be_bytes());
    key[20..].copy_from_slice(&sequence.to_be_bytes());
    key
}

fn parse_key(bytes: &[u8]) -> Option<(ShardId, Epoch, u64)> {
    let (table, rest) = bytes.split_first_chunk()?;
    let (index, rest) = rest.split_first_chunk()?;
    let (epoch, rest) = rest.split_first_chunk()?;
    let shard = ShardId {
        table: TableId(u64::from_be_bytes(*table)),
        index: u32::from_be_bytes(*index),
    };
    let sequence = u64::from_be_bytes(rest.try_into().ok()?);
    Some((shard, Epoch(u64::from_be_bytes(*epoch)), sequence))
}

/// What is to be deleted from the database.
#[derive(Debug, Default)]
pub(super) struct Deletions {
    /// From each first key up to the second, without it.
    pub ranges: Vec<([u8; KEY_BYTES], [u8; KEY_BYTES])>,
    pub points: Vec<[u8; KEY_BYTES]>,
}

impl Deletions {
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty() && self.points.is_empty()
    }
}

type Lanes = BTreeMap<(PipeId, PartitionId), VecDeque<WalEntry>>;

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// By shard and partition, each in the order of (epoch, sequence).
    shards: BTreeMap<ShardId, Lanes>,
    next_sequence: u64,
    entries: u64,
    bytes: u64,
}

impl Index {
    /// Gives a place to a chunk that is about to be written.
    pub fn add(&mut self, shard: ShardId, epoch: Epoch, span: &Span, bytes: u64) -> WalEntry {
        self.insert(shard, epoch, self.next_sequence, span, bytes)
    }

    fn insert(&mut self, shard: ShardId, epoch: Epoch, sequence: u64, span: &Span, bytes: u64) -> WalEntry {
        let entry = WalEntry {
            shard,
            epoch,
            sequence,
            history: span.key,
            start: span.start,
            end: span.end,
            dense: span.counts.absent == 0 && span.counts.filtered == 0,
            bytes,
        };
        self.next_sequence = self.next_sequence.max(sequence.saturating_add(1));
        self.entries += 1;
        self.bytes += bytes;
        let lanes = self.shards.entry(shard).or_default();
        lanes
            .entry((span.key.pipe, span.key.partition))
            .or_default()
            .push_back(entry);
        entry
    }

    /// Takes an entry that was found on disk; entries are found in the order of their keys.
    pub fn load(&mut self, key: &[u8], span: &Span, bytes: u64) -> Result<(), String> {
        let (shard, epoch, sequence) =
            parse_key(key).ok_or_else(|| format!("the key {key:?} is not one of the log"))?;
        self.insert(shard, epoch, sequence, span, bytes);
        Ok(())
    }

    pub fn of_lane(&self, shard: ShardId, pipe: PipeId, partition: PartitionId) -> Vec<WalEntry> {
        let lane = self.shards.get(&shard).and_then(|lanes| lanes.get(&(pipe, partition)));
        lane.map(|lane| lane.iter().copied().collect()).unwrap_or_default()
    }

    pub fn lanes(&self) -> Vec<(ShardId, PipeId, PartitionId)> {
        let of_shard = |(shard, lanes): (&ShardId, &Lanes)| {
            let places = lanes.keys().map(|(pipe, partition)| (*shard, *pipe, *partition));
            places.collect::<Vec<_>>()
        };
        self.shards.iter().flat_map(of_shard).collect()
    }

    /// Entries and their bytes.
    pub fn totals(&self) -> (u64, u64) {
        (self.entries, self.bytes)
    }

    /// Takes out what is committed. Looks at each lane only as far as it goes, so one that is never behind costs nothing; an
    /// entry of an earlier term that reaches further than those behind it keeps them until its own end is committed.
    pub fn trim(&mut self, shard: ShardId, committed: &[(SpanKey, Offset)]) -> Deletions {
        let mut gone = Vec::new();
        let Some(lanes) = self.shards.get_mut(&shard) else {
            return Deletions::default();
        };
        for (key, offset) in committed {
            let Some(lane) = lanes.get_mut(&(key.pipe, key.partition)) else {
                continue;
            };
            let is_over = |entry: &WalEntry| {
                let (life, present) = (entry.history.incarnation, key.incarnation);
                life < present || (life == present && entry.end <= *offset)
            };
            while let Some(entry) = lane.front().filter(|entry| is_over(entry)) {
                gone.push(*entry);
                lane.pop_front();
            }
        }
        self.taken_out(shard, &gone)
    }

    /// Takes out these, wherever they are.
    pub fn remove(&mut self, entries: &[WalEntry]) -> Deletions {
        let mut deletions = Deletions::default();
        let mut by_shard: BTreeMap<ShardId, Vec<WalEntry>> = BTreeMap::new();
        for entry in entries {
            by_shard.entry(entry.shard).or_default().push(*entry);
        }
        for (shard, mut entries) in by_shard {
            let Some(lanes) = self.shards.get_mut(&shard) else {
                continue;
            };
            entries.sort_by_key(|entry| entry.sequence);
            let is_named = |entry: &WalEntry| entries.binary_search_by_key(&entry.sequence, |e| e.sequence).is_ok();
            let mut gone = Vec::with_capacity(entries.len());
            for lane in lanes.values_mut() {
                lane.retain(|entry| {
                    let named = is_named(entry);
                    gone.extend(named.then_some(*entry));
                    !named
                });
            }
            let more = self.taken_out(shard, &gone);
            deletions.ranges.extend(more.ranges);
            deletions.points.extend(more.points);
        }
        deletions
    }

    /// Takes out a partition.
    pub fn remove_lane(&mut self, shard: ShardId, pipe: PipeId, partition: PartitionId) -> Deletions {
        let lanes = self.shards.get_mut(&shard);
        let lane = lanes.and_then(|lanes| lanes.remove(&(pipe, partition)));
        let gone = Vec::from(lane.unwrap_or_default());
        self.taken_out(shard, &gone)
    }

    /// How to delete `gone`, which were just taken out of `shard`. What lies below the oldest entry that is left goes by
    /// one range, however much it is; nothing else can lie there, since entries are known here before they are written.
    /// (One that is dropped while it is being written may come back, unknown, until the log is opened again.)
    fn taken_out(&mut self, shard: ShardId, gone: &[WalEntry]) -> Deletions {
        let mut deletions = Deletions::default();
        if gone.is_empty() {
            return deletions;
        }
        self.entries -= gone.len() as u64;
        self.bytes -= gone.iter().map(|entry| entry.bytes).sum::<u64>();
        let mut oldest = None;
        if let Some(lanes) = self.shards.get_mut(&shard) {
            lanes.retain(|_, lane| !lane.is_empty());
            oldest = lanes.values().filter_map(|lane| lane.front()).map(WalEntry::key).min();
            if lanes.is_empty() {
                self.shards.remove(&shard);
            }
        }
        let newest_gone = gone.iter().map(WalEntry::key).max().unwrap_or_default();
        let first = gone.iter().map(WalEntry::key).min().unwrap_or_default();
        // Behind the newest that goes, not at the end of the shard: others may be on their way there.
        let end = oldest
            .filter(|oldest| *oldest < newest_gone)
            .unwrap_or_else(|| after(newest_gone));
        let (below, above): (Vec<_>, Vec<_>) = gone.iter().map(WalEntry::key).partition(|key| *key < end);
        // Within one epoch only, where a new entry always comes behind all others.
        let epoch_of = |key: &[u8; KEY_BYTES]| parse_key(key).map(|(_, epoch, _)| epoch);
        if below.len() > 1 && epoch_of(&first) == epoch_of(&newest_gone) {
            deletions.ranges.push((first, end));
        } else {
            deletions.points.extend(below);
        }
        deletions.points.extend(above);
        deletions
    }
}

/// The next key.
fn after(mut key: [u8; KEY_BYTES]) -> [u8; KEY_BYTES] {
    for byte in key.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            break;
        }
    }
    key
}
