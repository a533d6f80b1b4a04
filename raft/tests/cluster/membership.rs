//! Nodes come and go: learner, voter, removed; with crashes in between, and with what must be refused.

use crate::group::{Group, PATIENCE, block_on, create, eventually, heard, remove, tokio_timeout};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tidemill_core::{
    NodeId, Refusal, Response,
    catalog::{Node, NodeIntent, NodeState},
    membership::{Heard, Plan, Step},
    view::CatalogRead,
};
use tidemill_raft::{Catalog, Claim, Origin, RaftConfig, StartError};

impl Group {
    /// One node that founded a group, and others that joined it.
    fn grown(to: u64) -> Self {
        let mut group = Group::founded(1);
        group.grow(to);
        group
    }

    fn grow(&mut self, to: u64) {
        while (self.members.len() as u64) < to {
            let number = self.another();
            let via = *self.running.keys().next().unwrap();
            self.join(via, number);
        }
        self.settle();
    }

    /// Removes a node that runs, and waits until its process knows.
    fn take_out(&mut self, via: u64, number: u64) {
        let id = self.catalog(number).node_id();
        assert_eq!(self.intend(via, id, NodeIntent::Leave), Ok(Response::Done));
        let removed = self.catalog(number).removed();
        eventually("the node knows that it was removed", || {
            self.manage();
            removed.borrow().then_some(())
        });
        self.kill(number);
        self.settle();
    }

    fn state_of(&self, via: u64, id: NodeId) -> NodeState {
        let state = self.catalog(via).snapshot().unwrap();
        state.get::<Node>(&id).unwrap().unwrap().state
    }
}

#[test]
fn one_becomes_three_becomes_five_becomes_three_becomes_one() {
    let mut group = Group::founded(1);
    group.create(1, "alone");
    for (to, voters) in [
        (2, vec![1]),
        (3, vec![1, 2, 3]),
        (4, vec![1, 2, 3]),
        (5, vec![1, 2, 3, 4, 5]),
    ] {
        group.grow(to);
        assert_eq!(group.roles(1).0, voters, "with {to} nodes");
        group.create(to, &format!("with{to}"));
    }
    // A sixth learns and does not vote.
    group.grow(6);
    assert_eq!(group.roles(1), (vec![1, 2, 3, 4, 5], vec![6]));
    group.same_everywhere();
    let digest = |group: &Group, number| group.catalog(number).snapshot().unwrap().digest().unwrap();
    assert_eq!(digest(&group, 6), digest(&group, 1));
    // The one that founded everything goes first, then whoever leads. The learner takes over a vote.
    group.take_out(6, 1);
    assert_eq!(group.roles(6), (vec![2, 3, 4, 5, 6], vec![]));
    for _ in 0..2 {
        let leader = group.leader();
        let other = group.follower();
        group.take_out(other, leader);
    }
    assert_eq!(group.roles(group.follower()).0.len(), 3);
    let left: Vec<u64> = group.running.keys().copied().collect();
    group.create(left[0], "three_left");
    for number in [left[0], left[1]] {
        group.take_out(left[2], number);
    }
    assert_eq!(group.roles(left[2]), (vec![left[2]], vec![]));
    group.create(left[2], "alone_again");
    assert_eq!(group.tables(left[2]).len(), 7);
    let last = NodeId(left[2]);
    let Err(Refusal::Node(why)) = group.intend(left[2], last, NodeIntent::Leave) else {
        panic!()
    };
    assert!(why.contains("the last one"), "{why}");
    // And it can grow again, with ids that were never used.
    let again = group.another();
    group.join(left[2], again);
    group.settle();
    assert_eq!(group.catalog(again).node_id(), NodeId(7));
}

#[test]
fn a_group_that_has_grown_survives_the_loss_of_the_one_that_founded_it() {
    let mut group = Group::grown(3);
    group.create(2, "before");
    group.kill(1);
    group.create(2, "after");
    group.same_everywhere();
    assert_eq!(group.tables(3), ["after", "before"]);
    group.start(1);
    group.same_everywhere();
    assert_eq!(group.tables(1), ["after", "before"]);
}

#[test]
fn a_joiner_that_crashes_anywhere_goes_on_where_it_was() {
    let mut group = Group::founded(1);
    let number = group.another();
    let Claim::New(instance) = Catalog::claim(&group.config(number)).unwrap() else {
        panic!()
    };
    // It dies before it asks, and after it asked but before it wrote the answer down: the same folder, the same number.
    assert_eq!(Catalog::claim(&group.config(number)).unwrap(), Claim::New(instance));
    assert_eq!(group.ask(1, number, instance), Ok(Response::Node(NodeId(2))));
    let Err(StartError::NotAdmitted { .. }) = group.try_start(number) else {
        panic!("started without a number")
    };
    assert_eq!(group.ask(1, number, instance), Ok(Response::Node(NodeId(2))));
    Catalog::admit(&group.config(number), NodeId(2)).unwrap();
    // The manager has taken it in before it runs.
    eventually("it is a learner", || {
        group.manage();
        (group.roles(1) == (vec![1], vec![2])).then_some(())
    });
    assert!(matches!(Catalog::claim(&group.config(number)), Ok(Claim::Admitted(who)) if who.node == 2));
    // It dies as a learner, at once and again when it has the log.
    for _ in 0..3 {
        group.join(1, number);
        group.kill(number);
    }
    group.join(1, number);
    group.settle();
    assert!(matches!(Catalog::claim(&group.config(number)), Ok(Claim::Joined(_))));
    let third = group.another();
    group.join(2, third);
    group.settle();
    // It dies as a voter.
    assert_eq!(group.roles(1), (vec![1, 2, 3], vec![]));
    group.kill(number);
    group.create(1, "without");
    group.start(number);
    group.same_everywhere();
    let nodes = group.catalog(3).snapshot().unwrap().list::<Node>(&[]).unwrap();
    assert_eq!(nodes.len(), 3, "{nodes:?}");
}

#[test]
fn a_folder_of_a_founder_that_was_wiped_is_not_offered_to_the_cluster() {
    let mut group = Group::founded(3);
    group.kill(3);
    let founder = group.config(3);
    std::fs::remove_dir_all(&founder.data_dir).unwrap();
    // Somebody starts it as it is configured: a founder, with a number, that nobody takes in.
    assert!(matches!(Catalog::claim(&founder), Ok(Claim::Admitted(who)) if who.node == 3));
    let Origin::Founding(members) = &founder.origin else {
        panic!("n3 founded the group")
    };
    let joiner = RaftConfig::joining(&founder.data_dir, &founder.cluster_name, members[2].clone());
    let Err(error @ StartError::NeverFounded { .. }) = Catalog::claim(&joiner) else {
        panic!("would have asked the cluster for a number")
    };
    assert!(error.to_string().contains("delete it"), "{error}");
    std::fs::remove_dir_all(&joiner.data_dir).unwrap();
    assert!(matches!(Catalog::claim(&joiner), Ok(Claim::New(_))));
}

#[test]
fn a_change_that_a_lost_leader_left_half_done_is_finished_by_the_next() {
    let mut group = Group::grown(3);
    for round in 0..4 {
        let wanted = group.another();
        let via = group.leading();
        group.join(via, wanted);
        let twin = group.another();
        group.join(via, twin);
        // The manager is lost after as many steps as there are rounds, wherever that is.
        for _ in 0..=round {
            group.manage();
        }
        let leader = group.leading();
        let manager = group.catalog(leader).clone();
        let alive = group.running.values().map(|r| r.catalog.node_id()).collect();
        // Cut short, perhaps between the two halves of a change.
        drop(block_on(
            manager.tend_membership(heard(alive), Duration::from_millis(1 + 3 * round)),
        ));
        drop(manager);
        group.kill(leader);
        let via = group.leading();
        group.create(via, &format!("round{round}"));
        group.settle();
        group.start(leader);
        group.settle();
        let (voters, learners) = group.roles(via);
        assert_eq!((voters.len(), voters.len() + learners.len()), (5, group.running.len()));
        for number in [wanted, twin] {
            let via = *group.running.keys().find(|other| **other != number).unwrap();
            group.take_out(via, number);
        }
        group.same_everywhere();
    }
}

#[test]
fn a_joint_configuration_that_was_left_behind_is_finished() {
    let mut group = Group::founded(1);
    for _ in 0..2 {
        let number = group.another();
        group.join(1, number);
    }
    let all: BTreeSet<NodeId> = [1, 2, 3].map(NodeId).into();
    eventually("both learners have caught up", || {
        // The step that gives them the vote is not taken here.
        match group.roles(1).1.len() {
            2 => drop(group.judge()),
            _ => drop(group.manage()),
        }
        let seen = group.catalog(1).group(&heard(all.clone())).unwrap()?;
        let able = |id: &NodeId| seen.nodes[id].state == NodeState::Ready && seen.nodes[id].caught_up;
        (seen.learners.len() == 2 && all.iter().all(able)).then_some(())
    });
    // They are lost at the very moment at which they get the vote, and the leader after them.
    group.kill(2);
    group.kill(3);
    let step = block_on(
        group
            .catalog(1)
            .tend_membership(heard(all.clone()), Duration::from_millis(500)),
    );
    assert!(step.is_err(), "{step:?}");
    assert!(group.catalog(1).group(&heard(all.clone())).unwrap().unwrap().joint);
    group.kill(1);
    for number in 1..=3 {
        group.start(number);
    }
    let number = group.leader();
    assert!(group.catalog(number).group(&heard(all.clone())).unwrap().unwrap().joint);
    group.create(number, "joint");
    group.settle();
    let seen = group
        .catalog(group.leader())
        .group(&heard(all.clone()))
        .unwrap()
        .unwrap();
    assert!(!seen.joint && seen.voters == all, "{seen:?}");
    group.create(2, "done");
    group.same_everywhere();
}

#[test]
fn a_dead_node_can_be_removed_and_replaced() {
    let mut group = Group::grown(3);
    let dead = group.follower();
    let via = *group.running.keys().find(|number| **number != dead).unwrap();
    group.kill(dead);
    assert_eq!(group.intend(via, NodeId(dead), NodeIntent::Leave), Ok(Response::Done));
    group.settle();
    assert_eq!(group.state_of(via, NodeId(dead)), NodeState::Removed);
    assert_eq!(group.roles(via).0.len(), 2);
    // A new machine takes its name and its place in the configuration, not its id.
    let number = group.another();
    group.members[number as usize - 1].name = format!("n{dead}");
    group.join(via, number);
    group.settle();
    assert_eq!(
        group.roles(via).0,
        [1, 2, 3, 4]
            .iter()
            .copied()
            .filter(|id| *id != dead)
            .collect::<Vec<_>>()
    );
    group.same_everywhere();
}

#[test]
fn a_removed_node_that_was_down_is_told_when_it_returns_and_disturbs_nobody() {
    let mut group = Group::grown(3);
    let dead = group.leader();
    group.kill(dead);
    let via = group.follower();
    group.intend(via, NodeId(dead), NodeIntent::Leave).unwrap();
    group.settle();
    let term = group.catalog(via).status().term;
    // Its own log knows nothing of that: by it, it is a voter.
    let catalog = group.start(dead);
    eventually("it is told", || catalog.removed().borrow().then_some(()));
    let error = block_on(tokio_timeout(catalog.wait_founded())).unwrap_err();
    assert!(error.to_string().contains("was removed from cluster 'test'"), "{error}");
    assert_eq!(group.catalog(via).status().term, term, "it forced an election");
    drop(catalog);
    group.kill(dead);
    // From now on the folder itself says so, whoever else is there.
    let Err(StartError::Removed { .. }) = group.try_start(dead) else {
        panic!("a removed folder started again")
    };
    // Not even by asking anew.
    let state = group.catalog(via).snapshot().unwrap();
    let instance = state.get::<Node>(&NodeId(dead)).unwrap().unwrap().instance;
    let Err(Refusal::Node(why)) = group.ask(via, dead, instance) else {
        panic!("admitted")
    };
    assert!(why.contains("can never come back"), "{why}");
}

#[test]
fn a_wiped_member_has_to_join_anew() {
    let mut group = Group::grown(3);
    let number = *group.running.keys().find(|number| **number != 1).unwrap();
    group.kill(number);
    remove(&group.folder.path().join(format!("n{number}")));
    let Claim::New(instance) = Catalog::claim(&group.config(number)).unwrap() else {
        panic!()
    };
    let Err(Refusal::Node(why)) = group.ask(1, number, instance) else {
        panic!("admitted")
    };
    assert!(
        why.contains("already a node called") && why.contains("tidemill node remove"),
        "{why}"
    );
    group.intend(1, NodeId(number), NodeIntent::Leave).unwrap();
    group.settle();
    group.join(1, number);
    group.settle();
    assert_eq!(group.catalog(number).node_id(), NodeId(4));
    group.same_everywhere();
}

#[test]
fn what_would_lose_the_quorum_is_not_done_and_goes_on_when_it_can() {
    let mut group = Group::grown(3);
    let leader = group.leader();
    let others: Vec<u64> = (1..=3).filter(|number| *number != leader).collect();
    let (dead, asked) = (others[0], others[1]);
    group.kill(dead);
    group.intend(leader, NodeId(asked), NodeIntent::Leave).unwrap();
    eventually("the reason is said", || match group.manage()? {
        Plan::Wait(why) => why.contains("would lose its quorum").then_some(()),
        Plan::Step(step) => panic!("{step:?}"),
        Plan::Settled => None,
    });
    assert_eq!(group.roles(leader).0, [1, 2, 3]);
    // Called off, it is a member as before; asked again with all in place, it goes.
    group.intend(leader, NodeId(asked), NodeIntent::Serve).unwrap();
    group.start(dead);
    group.settle();
    assert_eq!(group.state_of(leader, NodeId(asked)), NodeState::Ready);
    group.take_out(leader, asked);
    group.create(dead, "after");
}

#[test]
fn what_a_node_said_of_its_log_before_it_was_to_leave_does_not_let_it_go() {
    let group = Group::grown(3);
    let (manager, asked) = (group.catalog(group.leader()), group.follower());
    let version = || *manager.version().borrow();
    let said = |by| {
        let alive = group.judge().unwrap();
        let handed_over = BTreeMap::from([(NodeId(asked), by)]);
        let heard = Heard { alive, handed_over };
        block_on(manager.tend_membership(heard, Duration::from_secs(3)))
    };
    // As in a heartbeat that is late: it led nothing then, and may have led since.
    let before = version();
    group.intend(group.leader(), NodeId(asked), NodeIntent::Leave).unwrap();
    for _ in 0..20 {
        let plan = said(before).unwrap();
        let Plan::Wait(why) = &plan else { panic!("{plan:?}") };
        assert!(why.contains("hand over the rows of its write-ahead log"), "{why}");
    }
    // Told to stay, and to leave once more: what it said while it was to leave is as old.
    let between = version();
    for intent in [NodeIntent::Serve, NodeIntent::Leave] {
        group.intend(group.leader(), NodeId(asked), intent).unwrap();
    }
    assert!(matches!(said(between), Ok(Plan::Wait(_))));
    let since = version();
    eventually("it is removed", || {
        said(since).ok()?;
        group.catalog(asked).removed().borrow().then_some(())
    });
}

#[test]
fn a_removal_that_is_called_off_half_way_leaves_a_member() {
    let group = Group::grown(3);
    let leader = group.leader();
    let asked = group.follower();
    group.intend(leader, NodeId(asked), NodeIntent::Leave).unwrap();
    eventually("it has lost its vote", || match group.manage()? {
        Plan::Step(Step::SetVoters(voters)) => (!voters.contains(&NodeId(asked))).then_some(()),
        _ => None,
    });
    group.intend(leader, NodeId(asked), NodeIntent::Serve).unwrap();
    group.settle();
    assert_eq!(group.roles(leader), (vec![1, 2, 3], vec![]));
    assert!(!*group.catalog(asked).removed().borrow());
    group.create(asked, "still_here");
}

#[test]
fn a_joiner_gets_the_files_when_the_log_is_gone_and_no_learner_is_made_leader() {
    let mut group = Group::new(1);
    (group.snapshot_entries, group.keep_entries) = (40, 5);
    let mut group = group.found();
    for i in 0..150 {
        group.create(1, &format!("t{i}"));
    }
    eventually("the log is purged", || {
        (group.catalog(1).status().purged > Some(50)).then_some(())
    });
    group.grow(2);
    group.same_everywhere();
    assert!(group.catalog(2).status().snapshot > Some(50));
    assert_eq!(group.tables(2).len(), 150);
    assert_eq!(group.roles(1), (vec![1], vec![2]));
    // There is nobody to hand over to.
    assert!(!block_on(
        group.catalog(1).transfer_leadership(None, Duration::from_millis(500))
    ));
    group.create(2, "after");
    // The loss of a learner is no loss.
    group.kill(2);
    let (_, outcome) = block_on(group.catalog(1).propose(create("without"), PATIENCE)).unwrap();
    assert!(outcome.is_ok());
    block_on(group.catalog(1).read_index(PATIENCE)).unwrap();
}

#[test]
fn two_folders_do_not_get_one_name_however_they_ask() {
    let mut group = Group::founded(1);
    let number = group.another();
    let one = tidemill_core::InstanceId(1);
    let other = tidemill_core::InstanceId(2);
    let outcomes = [one, other, one, other].map(|instance| group.ask(1, number, instance));
    assert_eq!(outcomes[0], Ok(Response::Node(NodeId(2))));
    assert_eq!(outcomes[2], outcomes[0]);
    assert!(outcomes[1].is_err() && outcomes[3].is_err());
    // A number that a folder has is its own for good.
    let Claim::New(_) = Catalog::claim(&group.config(number)).unwrap() else {
        panic!()
    };
    Catalog::admit(&group.config(number), NodeId(2)).unwrap();
    assert!(matches!(
        Catalog::admit(&group.config(number), NodeId(3)),
        Err(StartError::Renumbered { known: 2, given: 3, .. })
    ));
}
