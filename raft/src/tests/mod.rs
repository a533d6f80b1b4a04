//! Tests of this crate from the inside: the stores under openraft's suite, under crashes and under
//! damage, and the decisions of the founding.

mod catalog;
mod crash;
mod founding;
mod log;
mod suite;

use crate::types::{Entry, LogId, Logged, Vote};
use openraft::{EntryPayload, LogIdOptionExt, entry::RaftEntry, vote::RaftLeaderIdExt};
use std::sync::Arc;
use tidemill_core::{
    ClusterId, Command, InstanceId, NodeId, Proposal,
    catalog::{Addresses, TableSettings},
    command::{CreateTable, FoundCluster, FoundingMember},
    schema::{Column, ColumnType},
};

type LeaderId = openraft::type_config::alias::LeaderIdOf<crate::types::TypeConfig>;

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId::new_committed(term, 1), index)
}

fn vote(term: u64) -> Vote {
    Vote::new_committed(term, 1)
}

fn entry(term: u64, index: u64, proposal: Proposal) -> Entry {
    Entry::new(log_id(term, index), EntryPayload::Normal(Logged(Arc::new(proposal))))
}

/// A command that changes the catalog: the founding at 0, then one table for each index.
fn proposal(index: u64) -> Proposal {
    let at_ms = 1_700_000_000_000 + i64::try_from(index).unwrap();
    if index == 0 {
        let member = FoundingMember {
            node: NodeId(1),
            name: "n1".into(),
            instance: InstanceId(7),
            warehouse: "default".into(),
            addresses: Addresses::default(),
        };
        let found = FoundCluster {
            cluster: ClusterId(9),
            name: "test".into(),
            members: vec![member],
            replication: None,
        };
        return Proposal::new(at_ms, Command::FoundCluster(found));
    }
    let create = CreateTable {
        name: format!("t{index}"),
        id: None,
        if_not_exists: false,
        columns: vec![Column {
            name: "a".into(),
            data_type: ColumnType::Int64,
            nullable: true,
            default: None,
        }],
        order_by: vec![],
        partition_by: None,
        shards: 2,
        settings: TableSettings::default(),
    };
    Proposal::new(at_ms, Command::CreateTable(create))
}

fn entries(range: std::ops::Range<u64>) -> Vec<Entry> {
    range.map(|index| entry(1, index, proposal(index))).collect()
}

/// Index of a position, for comparing.
fn index(id: Option<LogId>) -> Option<u64> {
    id.index()
}
