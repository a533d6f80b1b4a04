//! Founding, and people who ask.

use crate::event::{Body, Event, Message};
use crate::mutant::Mutant;
use crate::node::index_of;
use crate::oracle::Answer;
use crate::seeds::Violation;
use crate::task::PinnedLane;
use crate::time::{MS, SECOND, Time};
use crate::world::World;
use std::collections::BTreeMap;
use std::rc::Rc;
use tidemill_core::catalog::*;
use tidemill_core::command::*;
use tidemill_core::schema::{Column, ColumnType};
use tidemill_core::view::{CatalogRead, MemView};
use tidemill_core::{ClusterId, Command, Epoch, Offset, PartitionId, PipeId, Proposal, ShardId};

/// The table, the pipe and the topic.
pub(crate) const TABLE: &str = "t";
pub(crate) const PIPE: &str = "p";
pub(crate) const TOPIC: &str = "s";
pub(crate) const SHARDS: u32 = 2;
/// What is written down of a reset that a repair makes.
pub(crate) const REPAIR: &str = "repair";

/// A query on its way.
#[derive(Debug)]
pub(crate) struct Query {
    node: usize,
    boot: u64,
    plan: Rc<MemView>,
    begun: Time,
    wanted: usize,
    pins: BTreeMap<ShardId, (Epoch, Vec<PinnedLane>)>,
}

impl World {
    /// Founds the cluster, and creates what is to be filled.
    pub fn found(&mut self) -> Result<(), Violation> {
        let members = self.nodes.iter().map(|node| FoundingMember {
            node: node.id,
            name: node.name.clone(),
            instance: node.instance,
            warehouse: "default".into(),
            addresses: Addresses::default(),
        });
        let column = Column {
            name: "id".into(),
            data_type: ColumnType::Int64,
            nullable: false,
            default: None,
        };
        let partitions = (0..self.topic.logs.len()).map(|n| (PartitionId(n as u32), Offset(0)));
        let mut commands = vec![
            Command::FoundCluster(FoundCluster {
                cluster: ClusterId(1),
                name: "c".into(),
                members: members.collect(),
                replication: Some(Replication::of_founders(3)),
            }),
            Command::CreateTable(CreateTable {
                name: TABLE.into(),
                id: None,
                if_not_exists: false,
                columns: vec![column],
                order_by: vec![],
                partition_by: None,
                shards: SHARDS,
                settings: self.table_settings(),
            }),
            self.create_pipe(None, partitions.collect()),
        ];
        commands.extend(self.clients.iter().map(|client| {
            Command::OpenWriter(OpenWriter {
                table: TABLE.into(),
                acks: client.acks,
                token: client.token,
            })
        }));
        for command in commands {
            if let Err(refusal) = self.commit(Proposal::new(0, command))? {
                return Err(Violation::new("a cluster is founded", refusal.to_string()));
            }
        }
        let (version, state) = (self.group.committed(), self.group.tip());
        for node in &mut self.nodes {
            (node.applied, node.synced, node.state) = (version, version, state.clone());
        }
        (0..self.nodes.len()).for_each(|index| self.begin_duties(index));
        self.after(MS, Event::Raft);
        self.after(SECOND, Event::Produce);
        self.after(3 * SECOND, Event::Nemesis);
        self.after(4 * SECOND, Event::Operate);
        self.after(2 * SECOND, Event::Ask);
        (0..self.clients.len()).for_each(|client| self.after(2 * SECOND, Event::Write(client)));
        let length = self.dice.between(12, 40) * SECOND;
        self.after(length, Event::Settle);
        Ok(())
    }

    /// The pipe, with where its partitions begin.
    pub fn create_pipe(&self, id: Option<PipeId>, partitions: Vec<(PartitionId, Offset)>) -> Command {
        Command::CreatePipe(CreatePipe {
            name: PIPE.into(),
            id,
            if_not_exists: false,
            table: TABLE.into(),
            table_id: None,
            source: source(),
            settings: self.pipe_settings(),
            topic: Some(self.topic.id),
            format: Default::default(),
            partitions,
        })
    }

    /// A table that needs a log has one; others may have one.
    pub fn table_settings(&self) -> TableSettings {
        let needed = self.clients.iter().any(|client| client.acks == Acks::Leader);
        TableSettings {
            wal: if needed || self.logs {
                WalMode::Local
            } else {
                WalMode::Off
            },
            ..TableSettings::default()
        }
    }

    /// A pipe as it is at the moment.
    pub fn pipe_settings(&self) -> PipeSettings {
        PipeSettings {
            standby: if self.hot { Standby::Hot } else { Standby::Cold },
            ..PipeSettings::default()
        }
    }

    pub fn some_node(&mut self) -> Option<usize> {
        let works = |index: &usize| self.nodes[*index].up && !self.nodes[*index].paused;
        let up: Vec<usize> = (0..self.nodes.len()).filter(works).collect();
        self.dice.pick(&up).copied()
    }

    /// Somebody asks for everything, and will again.
    pub fn ask(&mut self) -> Result<(), Violation> {
        let time = self.dice.between(150, 900) * MS;
        self.after(time, Event::Ask);
        match self.some_node() {
            Some(node) => self.ask_at(node),
            None => Ok(()),
        }
    }

    /// Somebody asks this node for everything.
    pub fn ask_at(&mut self, node: usize) -> Result<(), Violation> {
        // One at a time: of two, the one that began later may end first.
        self.queries.clear();
        if !self.nodes[node].up || self.nodes[node].paused {
            return Ok(());
        }
        self.requests += 1;
        let query = self.requests;
        let plan = self.nodes[node].state.clone();
        let shards = plan.all::<Shard>(&[])?;
        let leaders: Vec<(ShardId, usize)> = shards
            .iter()
            .filter_map(|shard| Some((shard.id, index_of(shard.leader?))))
            .collect();
        if leaders.len() < shards.len() {
            return Ok(());
        }
        let asked = Query {
            node,
            boot: self.nodes[node].boot,
            plan,
            begun: self.now,
            wanted: leaders.len(),
            pins: BTreeMap::new(),
        };
        self.queries.insert(query, asked);
        for (shard, leader) in leaders {
            self.send(node, leader, Body::Pin { query, shard });
        }
        Ok(())
    }

    /// A leader tells what it has in memory.
    pub fn pinned(
        &mut self,
        query: u64,
        shard: ShardId,
        pin: Option<(Epoch, Vec<PinnedLane>)>,
    ) -> Result<(), Violation> {
        let Some(asked) = self.queries.get_mut(&query) else {
            return Ok(());
        };
        let Some(pin) = pin else {
            self.queries.remove(&query);
            return Ok(());
        };
        asked.pins.insert(shard, pin);
        if asked.pins.len() < asked.wanted {
            return Ok(());
        }
        let node = asked.node;
        if self.mutant == Some(Mutant::SnapshotComesFirst) {
            let plan = asked.plan.clone();
            return self.answer_query(query, &plan);
        }
        if let Some((_, leader)) = self.nodes[node].leader {
            self.send(node, leader, Body::AskIndex { query });
        }
        Ok(())
    }

    /// The leader of the group says how far the log was committed when it was asked.
    pub fn indexed(&mut self, query: u64, index: usize) -> Result<(), Violation> {
        let Some(asked) = self.queries.get(&query) else {
            return Ok(());
        };
        let node = &self.nodes[asked.node];
        if node.boot != asked.boot {
            return Ok(());
        }
        if node.applied < index {
            let (from, to, body) = (asked.node, asked.node, Body::Index { query, index });
            self.after(5 * MS, Event::Deliver(Message { from, to, body }));
            return Ok(());
        }
        let state = node.state.clone();
        self.answer_query(query, &state)
    }

    fn answer_query(&mut self, query: u64, state: &MemView) -> Result<(), Violation> {
        let Some(asked) = self.queries.remove(&query) else {
            return Ok(());
        };
        let answer = Answer {
            state,
            pins: &asked.pins,
            uncut: self.mutant == Some(Mutant::PinsAreNotCut),
            serves: self.mutant == Some(Mutant::OldLeaderServes),
            begun: asked.begun,
        };
        let rows = self.oracle.query(&answer, &self.files, &self.topic.aborted)?;
        if let Some(rows) = rows {
            self.tally.queries += 1;
            self.note(5, rows as u64);
        }
        Ok(())
    }
}

/// What the pipe reads.
pub(crate) fn source() -> KafkaSource {
    KafkaSource {
        brokers: "b".into(),
        topic: TOPIC.into(),
        client: BTreeMap::new(),
    }
}
