//! Programs that write rows themselves, with every level of acknowledgement.
//!
//! A model of `client/src/writer/lane.rs`: rows keep their numbers while they may be somewhere; what is missing of what was
//! acknowledged is waited for, if it is in a log, and then passed over by command, so that it is counted.

use crate::dice::Dice;
use crate::event::{Body, Duty, Event};
use crate::mutant::Mutant;
use crate::node::{Purpose, index_of};
use crate::oracle::Promise;
use crate::seeds::Violation;
use crate::source::RecordId;
use crate::task::{Answer, Incoming, Piece, Taken};
use crate::time::{MS, SECOND, Time};
use crate::world::{World, tell};
use tidemill_core::catalog::*;
use tidemill_core::command::{Outcome, PassGap};
use tidemill_core::view::CatalogRead;
use tidemill_core::{Command, Epoch, Offset, PartitionId, PipeId, ShardId, TableId, WriterToken};

/// Ids of rows that programs write begin here.
const WRITTEN: RecordId = 1 << 40;
/// How long a program waits for an answer.
const PATIENCE: Time = 2 * SECOND;
/// How long rows that were acknowledged from a log are waited for when they are missing.
const GAP: Time = 10 * SECOND;

/// Rows that a leader passes over.
#[derive(Clone, Debug)]
pub(crate) struct Gap {
    shard: ShardId,
    /// What it holds until that is decided.
    place: (PipeId, PartitionId),
    /// The program that waits for it, and its request.
    from: (usize, u64),
    pass: PassGap,
}

/// A program that writes rows to one shard.
#[derive(Debug)]
pub(crate) struct Client {
    pub token: WriterToken,
    pub acks: Acks,
    shard: u32,
    /// All rows that it was told are there, by their numbers.
    acked: Vec<RecordId>,
    /// Those behind them.
    rows: Vec<RecordId>,
    asked: Option<(u64, Time)>,
    /// The first number of those that are missing of what was acknowledged, and since when.
    gap: Option<(u64, Time)>,
    /// Whether all that was acknowledged is committed, or counted as lost.
    settled: bool,
}

impl Client {
    pub fn new(dice: &mut Dice, shards: u32) -> Self {
        let levels = [Acks::All, Acks::Leader, Acks::None];
        Self {
            token: WriterToken(dice.id()),
            acks: *dice.pick(&levels).unwrap_or(&Acks::All),
            shard: dice.below(shards as usize) as u32,
            acked: vec![],
            rows: vec![],
            asked: None,
            gap: None,
            settled: true,
        }
    }

    /// The row that was acknowledged under this number.
    pub fn row(&self, number: u64) -> Option<RecordId> {
        self.acked.get(number as usize).copied()
    }

    /// Whether it has nothing left to do.
    pub fn is_done(&self) -> bool {
        self.rows.is_empty() && self.settled
    }
}

/// Rows on their way into a log.
#[derive(Clone, Debug)]
pub(crate) struct Logging {
    shard: ShardId,
    incoming: Incoming,
    piece: Piece,
}

impl World {
    /// A program sends what it has, to whom it takes for the leader.
    pub fn write(&mut self, client: usize) -> Result<(), Violation> {
        let time = self.dice.between(50, 400) * MS;
        self.after(time, Event::Write(client));
        let (now, healed) = (self.now, self.healed);
        let more = self.dice.between(1, 4);
        let Some(node) = self.some_node() else {
            return Ok(());
        };
        let fresh = (0..more).map(|_| WRITTEN + (self.dice.id() as u64 >> 20));
        let fresh: Vec<RecordId> = fresh.collect();
        let c = &mut self.clients[client];
        if c.asked.is_some_and(|(_, at)| now < at + PATIENCE) {
            return Ok(());
        }
        c.asked = None;
        if !healed && c.rows.len() < 12 {
            c.rows.extend(fresh);
        }
        // In the end, it asks whether what it was told is true.
        if c.rows.is_empty() && (c.settled || !healed) {
            return Ok(());
        }
        let table = TableId(1);
        let shard = ShardId { table, index: c.shard };
        let state = self.nodes[node].state.clone();
        let Some(leader) = state.find::<Shard>(&shard)?.and_then(|shard| shard.leader) else {
            return Ok(());
        };
        self.requests += 1;
        let request = self.requests;
        c.asked = Some((request, now));
        let first = c.acked.len() as u64;
        let waited = |since: Time| c.acks == Acks::None || now >= since + GAP;
        let body = match c.gap.filter(|(_, since)| waited(*since)) {
            Some((from, _)) => {
                // Whether it is taken or not, who leads is asked again for the next number.
                c.gap = None;
                let to = first;
                Body::PassGap {
                    client,
                    request,
                    shard,
                    from,
                    to,
                }
            }
            None => Body::Append {
                client,
                request,
                shard,
                first,
                rows: c.rows.clone(),
            },
        };
        self.send(node, index_of(leader), body);
        Ok(())
    }

    /// Which writer `client` is, as node `index` knows it, and the partition of its rows in `shard`.
    fn writer_of(&self, index: usize, client: usize, shard: ShardId) -> Option<(Writer, (PipeId, PartitionId))> {
        let state = &self.nodes[index].state;
        let table = state.find::<Table>(&shard.table).ok().flatten()?;
        let writers = state.all::<Writer>(&[]).unwrap_or_default();
        let writer = writers.iter().find(|w| w.token == self.clients[client].token)?;
        let place = (writer.pipe, writer.partition(&table, shard.index)?);
        Some(((**writer).clone(), place))
    }

    /// Whether node `index` takes itself for the leader of `shard`.
    pub fn leads(&self, index: usize, shard: ShardId) -> bool {
        let node = &self.nodes[index];
        let known = node.state.find::<Shard>(&shard).ok().flatten();
        known.is_some_and(|shard| shard.leader == Some(node.id))
    }

    /// The leader takes rows of a program.
    pub fn append(&mut self, index: usize, from: (usize, u64), shard: ShardId, first: u64, rows: Vec<RecordId>) {
        let Some((writer, place)) = self.writer_of(index, from.0, shard) else {
            return self.reply(index, from, Answer::Retry);
        };
        if !self.leads(index, shard) {
            return self.reply(index, from, Answer::Retry);
        }
        let incoming = Incoming {
            from: Some(from),
            acks: writer.acks,
            place,
            first,
            rows,
        };
        self.take_rows(index, shard, incoming);
    }

    pub fn take_rows(&mut self, index: usize, shard: ShardId, incoming: Incoming) {
        let taken = self.with_hands(index, |node, hands| match node.tasks.get_mut(&shard) {
            Some(task) => task.take(&incoming, hands),
            None => Taken::Now(Answer::Retry),
        });
        self.go_on_with(index, shard, incoming, taken);
    }

    fn go_on_with(&mut self, index: usize, shard: ShardId, incoming: Incoming, taken: Taken) {
        match taken {
            Taken::Later => {}
            Taken::Now(answer) => {
                if let Some(from) = incoming.from {
                    self.reply(index, from, answer);
                }
            }
            Taken::Logged(number, piece) => {
                if self.mutant == Some(Mutant::AcknowledgesBeforeLogSync)
                    && let Some(from) = incoming.from
                {
                    self.reply(index, from, Answer::Done);
                }
                let node = &mut self.nodes[index];
                let (boot, time) = (node.boot, node.sync_time(&mut self.dice));
                let logging = Logging { shard, incoming, piece };
                node.logging.insert(number, logging);
                self.after(time, Event::Duty(index, boot, Duty::Logged(number)));
            }
        }
    }

    /// What was written to the log up to `number` is there for good.
    pub fn logged(&mut self, index: usize, number: u64) {
        let node = &mut self.nodes[index];
        node.wal.sync();
        let Some(logging) = node.logging.remove(&number) else {
            return;
        };
        let Logging { shard, incoming, piece } = logging;
        let taken = self.with_hands(index, |node, hands| match node.tasks.get_mut(&shard) {
            Some(task) if task.epoch.is_some() => task.logged(&incoming, piece, hands),
            _ => Taken::Now(Answer::Retry),
        });
        self.go_on_with(index, shard, incoming, taken);
    }

    /// An answer goes to a program. It may be lost on the way.
    pub fn reply(&mut self, index: usize, from: (usize, u64), answer: Answer) {
        let lost = self.loss > 0 && self.dice.one_in(self.loss);
        if lost {
            return;
        }
        let (client, request) = from;
        let shard = ShardId {
            table: TableId(1),
            index: self.clients[client].shard,
        };
        let epoch = self.nodes[index].tasks.get(&shard).and_then(|task| task.epoch);
        let time = self.dice.between(100, 2_000);
        let reply = Event::Reply {
            client,
            request,
            node: index,
            epoch,
            answer,
        };
        self.after(time, reply);
    }

    /// A program hears what came of its request.
    pub fn replied(
        &mut self,
        (client, request): (usize, u64),
        node: usize,
        epoch: Option<Epoch>,
        answer: Answer,
    ) -> Result<(), Violation> {
        let now = self.now;
        let wipes = self.nodes[node].wipes;
        let c = &mut self.clients[client];
        if c.asked.is_none_or(|(asked, _)| asked != request) {
            return Ok(());
        }
        c.asked = None;
        match answer {
            Answer::Retry | Answer::Passed => {}
            Answer::Gap(expected) if expected < c.acked.len() as u64 => {
                let since = c.gap.map_or(now, |(_, since)| since);
                c.gap = Some((expected, since));
                *self
                    .tally
                    .acts
                    .entry("rows missing after an acknowledgement")
                    .or_default() += 1;
            }
            Answer::Gap(_) => {}
            Answer::Done => {
                c.gap = None;
                let rows = std::mem::take(&mut c.rows);
                c.settled = rows.is_empty() || c.acks == Acks::All;
                let first = c.acked.len() as u64;
                c.acked.extend(&rows);
                let (acks, index) = (c.acks, c.shard);
                let shard = ShardId {
                    table: TableId(1),
                    index,
                };
                *self.tally.acked.entry(acks.name()).or_default() += rows.len() as u64;
                return self.acknowledged(Promise {
                    acks,
                    node,
                    epoch,
                    shard,
                    wipes,
                    first,
                    rows,
                });
            }
        }
        Ok(())
    }

    /// A leader is asked to go on behind rows that are missing.
    pub fn pass_gap(&mut self, index: usize, from: (usize, u64), shard: ShardId, expected: u64, to: u64) {
        let Some((writer, place)) = self.writer_of(index, from.0, shard) else {
            return self.reply(index, from, Answer::Retry);
        };
        let task = self.nodes[index].tasks.get_mut(&shard);
        let fences = self.mutant != Some(Mutant::GapsAreNotFenced);
        let epoch = task.as_ref().and_then(|task| task.epoch);
        if !task.is_some_and(|task| task.hold(place, expected)) {
            return self.reply(index, from, Answer::Retry);
        }
        tell!(self, "n{} holds {place:?} to pass over {expected}..{to}", index + 1);
        let gap = Gap {
            shard,
            place,
            from,
            pass: PassGap {
                writer: writer.id,
                shard: shard.index,
                epoch: epoch.filter(|_| fences),
                from: Offset(expected),
                to: Offset(to),
            },
        };
        self.propose_gap(index, gap);
    }

    fn propose_gap(&mut self, index: usize, gap: Gap) {
        let command = Command::PassGap(gap.pass.clone());
        self.propose(index, Purpose::Gap(gap), command);
    }

    /// What came of passing over a gap; nothing if nobody knows.
    pub fn gap_decided(&mut self, index: usize, request: u64, gap: Gap, outcome: Option<Outcome>) {
        let task = self.nodes[index].tasks.get(&gap.shard);
        let goes_on = task.is_some_and(|task| task.holds(gap.place)) && self.mutant != Some(Mutant::GapsAreGivenUp);
        if outcome.is_none() && goes_on {
            // Again until that is known: it may still be under way, and be decided when the partition is open again.
            return self.propose_gap(index, gap);
        }
        // Not before it is known here what was decided: what is taken then is taken for the life behind the gap.
        self.nodes[index].held.insert(request, (gap.shard, gap.place));
        self.release(index, request);
        if let Some(outcome) = outcome {
            let answer = if outcome.is_ok() { Answer::Passed } else { Answer::Retry };
            self.reply(index, gap.from, answer);
        }
    }

    /// Opens a partition that was held, once what was decided about it is known here.
    pub fn release(&mut self, index: usize, number: u64) {
        let Some((shard, place)) = self.nodes[index].held.get(&number).copied() else {
            return;
        };
        let boot = self.nodes[index].boot;
        if self
            .read_index(index)
            .is_none_or(|known| self.nodes[index].applied < known)
        {
            return self.after(20 * MS, Event::Duty(index, boot, Duty::Release(number)));
        }
        let node = &mut self.nodes[index];
        node.held.remove(&number);
        if let Some(task) = node.tasks.get_mut(&shard) {
            task.release(place);
        }
    }
}
