//! Rows in the log of a node that does not lead their shard any more: they are offered to whoever does.
//!
//! A model of `node/src/stranded.rs`.

use crate::event::{Body, Duty};
use crate::mutant::Mutant;
use crate::node::index_of;
use crate::seeds::Violation;
use crate::task::{Incoming, Piece};
use crate::time::{SECOND, Time};
use crate::world::World;
use tidemill_core::ShardId;
use tidemill_core::catalog::*;
use tidemill_core::view::CatalogRead;

/// How often a node looks for what it has logged and another leads.
const OFFER: Time = SECOND;

impl World {
    /// Offers what is in the log of a node to those that lead its shards now.
    pub fn offer(&mut self, index: usize) -> Result<(), Violation> {
        self.again(index, Duty::Offer, OFFER);
        let node = &self.nodes[index];
        let (state, me, follows) = (node.state.clone(), node.id, node.follows);
        let mut done = node.tasks.values().all(|task| task.epoch.is_none());
        for (id, pipe, partition) in self.nodes[index].wal.places() {
            let (Some(shard), Some(table)) = (state.find::<Shard>(&id)?, state.find::<Table>(&id.table)?) else {
                continue;
            };
            let Some(p) = state.find::<SourcePartition>(&(pipe, partition))? else {
                continue;
            };
            let number = Writer::number_of(partition, table.shards);
            let writers = state.all::<Writer>(&[])?;
            let writer = writers.iter().find(|w| (w.pipe, w.number) == (pipe, number));
            if writer.is_none() && !p.has_expired() {
                continue;
            }
            let Some(leader) = shard.leader.filter(|leader| *leader != me) else {
                done = false;
                continue;
            };
            let (pieces, _) = self.nodes[index].wal.recover(id, p.key(), p.offset);
            if pieces.is_empty() || self.mutant == Some(Mutant::LogsAreNotHandedOver) {
                continue;
            }
            done = false;
            let acks = writer.map(|writer| writer.acks);
            let to = index_of(leader);
            self.send(
                index,
                to,
                Body::Offer {
                    shard: id,
                    acks,
                    pieces,
                },
            );
        }
        self.nodes[index].handed_over = follows.filter(|_| done);
        Ok(())
    }

    /// A leader is offered what another node has in its log.
    pub fn take_offer(&mut self, index: usize, shard: ShardId, acks: Option<Acks>, pieces: Vec<Piece>) {
        if !self.leads(index, shard) {
            return;
        }
        if let (Some(acks), Some(first)) = (acks, pieces.first()) {
            // One request after the other, each of which waits for the log: together they are one.
            *self.tally.acts.entry("rows of a program out of a log").or_default() += 1;
            let (key, start) = (first.span.key, first.span.start.0);
            let rows = pieces.iter().flat_map(|piece| &piece.rows);
            let incoming = Incoming {
                from: None,
                acks,
                place: (key.pipe, key.partition),
                first: start,
                rows: rows.map(|row| row.id).collect(),
            };
            return self.take_rows(index, shard, incoming);
        }
        for piece in pieces {
            let taken = self.with_hands(index, |node, hands| {
                let task = node.tasks.get_mut(&shard);
                task.is_some_and(|task| task.adopt(piece, hands))
            });
            if !taken {
                return;
            }
            *self.tally.acts.entry("rows of a source out of a log").or_default() += 1;
        }
    }
}
