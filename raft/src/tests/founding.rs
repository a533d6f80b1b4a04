//! What a blank node makes of the answers of the others.

use crate::{
    bootstrap::{Verdict, judge},
    config::{MemberConfig, RaftConfig},
    error::StartError,
};
use tidemill_core::InstanceId;
use tidemill_proto::raft::{Founded, IdentityReply};

fn config() -> RaftConfig {
    let member = |name: &str| MemberConfig {
        name: name.into(),
        raft_addr: format!("{name}:1"),
        api_addr: String::new(),
        http_addr: String::new(),
        warehouse: "default".into(),
    };
    RaftConfig::new("/data", "c", "n1", vec![member("n1"), member("n2"), member("n3")])
}

fn blank(name: &str, instance: u128) -> IdentityReply {
    IdentityReply {
        cluster: "c".into(),
        node: name.into(),
        instance: InstanceId(instance).to_string(),
        blank: true,
        configured: vec!["n1".into(), "n2".into(), "n3".into()],
        members: vec![],
        removed: false,
    }
}

fn founded(name: &str, instance: u128, first: u128) -> IdentityReply {
    let member = |node, name: &str, instance| Founded {
        node,
        name: name.into(),
        instance: InstanceId(instance).to_string(),
    };
    IdentityReply {
        blank: false,
        members: vec![member(1, "n1", first), member(2, "n2", 2), member(3, "n3", 3)],
        ..blank(name, instance)
    }
}

fn judged(second: Option<IdentityReply>, third: Option<IdentityReply>) -> Result<Verdict, StartError> {
    judge(&config(), InstanceId(1), &[None, Some(second), Some(third)])
}

#[test]
fn all_blank_found_the_cluster_with_their_folders() {
    let Ok(Verdict::Found(folders)) = judged(Some(blank("n2", 2)), Some(blank("n3", 3))) else {
        panic!()
    };
    assert_eq!(folders.into_values().collect::<Vec<_>>(), [1, 2, 3].map(InstanceId));
}

#[test]
fn a_silent_or_starting_member_is_waited_for() {
    let Ok(Verdict::Wait(reason)) = judged(Some(blank("n2", 2)), None) else {
        panic!()
    };
    assert!(reason.contains("'n3' at n3:1"), "{reason}");
    let starting = IdentityReply {
        blank: false,
        ..blank("n3", 3)
    };
    assert!(matches!(
        judged(Some(blank("n2", 2)), Some(starting)),
        Ok(Verdict::Wait(_))
    ));
}

#[test]
fn a_founded_cluster_is_joined_by_its_own_folder_only() {
    assert!(matches!(judged(Some(founded("n2", 2, 1)), None), Ok(Verdict::Belongs)));
    let Err(error @ StartError::Replaced { .. }) = judged(Some(founded("n2", 2, 99)), None) else {
        panic!()
    };
    assert!(error.to_string().contains("wiped node is a new node"), "{error}");
    let mut without = founded("n2", 2, 1);
    without.members.remove(0);
    assert!(matches!(
        judged(Some(without), None),
        Err(StartError::NotAMember { .. })
    ));
}

#[test]
fn strangers_at_the_addresses_are_errors() {
    let other_cluster = IdentityReply {
        cluster: "d".into(),
        ..blank("n2", 2)
    };
    assert!(matches!(
        judged(Some(other_cluster), None),
        Err(StartError::OtherCluster { .. })
    ));
    assert!(matches!(
        judged(Some(blank("n3", 3)), None),
        Err(StartError::OtherNode { .. })
    ));
    let other_list = IdentityReply {
        configured: vec!["n1".into(), "n2".into()],
        ..blank("n2", 2)
    };
    assert!(matches!(
        judged(Some(other_list), None),
        Err(StartError::OtherMembers { .. })
    ));
}
