//! How a cluster comes into being, and that any of its nodes serves.

use crate::group::{Group, PATIENCE, block_on, create, tokio_timeout};
use tidemill_core::{
    Command, NodeId, Version,
    catalog::{Cluster, ClusterKey, Node},
    view::CatalogRead,
};
use tidemill_raft::{ProposeError, StartError};

#[test]
fn three_nodes_found_a_cluster_and_any_of_them_serves() {
    let group = Group::founded(3);
    let leader = group.leader();
    for number in 1..=3 {
        let name = format!("via{number}");
        let version = group.create(number, &name);
        for reader in 1..=3 {
            let at = block_on(group.catalog(reader).read_index(PATIENCE)).unwrap();
            assert!(at >= version);
            let state = group.catalog(reader).snapshot().unwrap();
            assert!(state.version() >= at);
            assert!(
                group.tables(reader).contains(&name),
                "node {reader} does not see {name}"
            );
        }
    }
    group.same_everywhere();
    let state = group.catalog(1).snapshot().unwrap();
    assert_eq!(state.get::<Cluster>(&ClusterKey).unwrap().unwrap().name, "test");
    let nodes = state.list::<Node>(&[]).unwrap();
    assert_eq!(
        nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(),
        ["n1", "n2", "n3"]
    );
    for (node, number) in nodes.iter().zip(1..) {
        assert_eq!(node.instance, group.catalog(number).instance());
        assert_eq!(node.id, group.catalog(number).node_id());
        assert_eq!(node.addresses.raft, group.members[number as usize - 1].raft_addr);
        assert_eq!(group.catalog(1).peer(node.id).unwrap().name, node.name);
    }

    // A refusal is an answer.
    let (_, outcome) = group.propose(group.follower(), create("via1")).unwrap();
    assert!(outcome.unwrap_err().to_string().contains("via1"));

    let mut large = create("large");
    if let Command::CreateTable(create) = &mut large.command {
        create.columns[0].name = "x".repeat(300 << 10);
    }
    let error = group.propose(1, large).unwrap_err();
    assert!(
        matches!(error, ProposeError::TooLarge { bytes, limit: 262_144 } if bytes > 300 << 10),
        "{error}"
    );

    let status = group.catalog(leader).status();
    assert_eq!((status.role.as_str(), status.leader), ("Leader", Some(NodeId(leader))));
    assert_eq!(status.followers.len(), 2);
    assert!(status.waiting_for.is_none() && status.stopped.is_none());
    assert!(status.applied > Version(3));

    let to = group.follower();
    let moved = block_on(group.catalog(leader).transfer_leadership(Some(NodeId(to)), PATIENCE));
    assert!(moved);
    assert_eq!(group.leader(), to);
    group.create(leader, "after");
}

#[test]
fn one_node_is_a_cluster_too() {
    let mut group = Group::founded(1);
    group.create(1, "a");
    assert!(block_on(group.catalog(1).read_index(PATIENCE)).is_ok());
    group.stop(1);
    group.start(1);
    group.create(1, "b");
    assert_eq!(group.tables(1), ["a", "b"]);
}

#[test]
fn a_node_of_another_cluster_at_a_members_address_is_an_error() {
    let mut one = Group::new(1);
    one.cluster = "other".into();
    let one = one.found();
    let mut two = Group::new(2);
    two.members[1].raft_addr = one.members[0].raft_addr.clone();
    let catalog = two.start(1);
    let error = block_on(tokio_timeout(catalog.wait_founded())).unwrap_err();
    let StartError::OtherCluster { cluster, found, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!((cluster.as_str(), found.as_str()), ("test", "other"));
}
