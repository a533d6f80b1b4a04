//! The steps one by one, and a group that is pushed around at random: it must never be in danger by a step, and come
//! to rest once it is left alone.

use super::*;
use proptest::prelude::*;

fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
    ids.iter().map(|id| NodeId(*id)).collect()
}

fn well(id: u64) -> Standing {
    Standing {
        name: format!("n{id}"),
        state: NodeState::Ready,
        boot: Some(BootId(1)),
        intent: NodeIntent::Serve,
        intent_since: Version(0),
        leads_shards: false,
        keeps_parts: false,
        keeps_rows: false,
        alive: true,
        caught_up: true,
        moved: false,
    }
}

fn group(voters: &[u64], learners: &[u64]) -> Group {
    Group {
        leader: NodeId(voters[0]),
        voters: ids(voters),
        joint: false,
        learners: ids(learners),
        nodes: voters
            .iter()
            .chain(learners)
            .map(|id| (NodeId(*id), well(*id)))
            .collect(),
    }
}

impl Group {
    fn with(mut self, node: u64, change: impl FnOnce(&mut Standing)) -> Self {
        change(self.nodes.get_mut(&NodeId(node)).unwrap());
        self
    }

    fn leaving(self, node: u64) -> Self {
        self.with(node, |node| {
            (node.intent, node.intent_since) = (NodeIntent::Leave, Version(7));
        })
    }

    fn down(self, node: u64) -> Self {
        self.with(node, |node| (node.state, node.alive) = (NodeState::Down, false))
    }
}

fn voters(ids_: &[u64]) -> Plan {
    Plan::Step(Step::SetVoters(ids(ids_)))
}

#[test]
fn learners_get_the_vote_in_odd_numbers_up_to_five() {
    assert_eq!(next_step(&group(&[1], &[])), Plan::Settled);
    assert_eq!(next_step(&group(&[1], &[2])), Plan::Settled);
    assert_eq!(next_step(&group(&[1], &[2, 3])), voters(&[1, 2, 3]));
    assert_eq!(next_step(&group(&[1, 2, 3], &[4])), Plan::Settled);
    assert_eq!(next_step(&group(&[1, 2, 3], &[4, 5, 6])), voters(&[1, 2, 3, 4, 5]));
    assert_eq!(next_step(&group(&[1, 2], &[3])), voters(&[1, 2, 3]));
    assert_eq!(next_step(&group(&[1, 2, 3, 4, 5], &[6, 7])), Plan::Settled);
    let slow = group(&[1], &[2, 3]).with(3, |node| node.caught_up = false);
    assert_eq!(next_step(&slow), Plan::Settled);
}

#[test]
fn a_node_of_the_catalog_becomes_a_learner() {
    let mut new = group(&[1], &[]);
    let joining = Standing {
        state: NodeState::Joining,
        alive: false,
        caught_up: false,
        ..well(2)
    };
    new.nodes.insert(NodeId(2), joining);
    assert_eq!(next_step(&new), Plan::Step(Step::AddLearner(NodeId(2))));
    // Under a new address it is taken in anew.
    let moved = group(&[1], &[2]).with(2, |node| node.moved = true);
    assert_eq!(next_step(&moved), Plan::Step(Step::DropLearner(NodeId(2))));
}

#[test]
fn what_somebody_left_half_done_is_finished_first() {
    let mut half = group(&[1, 2, 3], &[4]).leaving(3);
    half.joint = true;
    assert_eq!(next_step(&half), Plan::Step(Step::FinishJoint));
}

#[test]
fn a_leaving_node_loses_its_vote_when_its_shards_have_moved_then_its_life() {
    let drained = group(&[1, 2, 3], &[]).leaving(3);
    let keeping = drained.clone().with(3, |node| node.keeps_parts = true);
    assert_eq!(
        next_step(&keeping),
        Plan::Wait("the parts of node 'n3' to be copied to others".into())
    );
    let holding = drained.clone().with(3, |node| node.keeps_rows = true);
    assert_eq!(
        next_step(&holding),
        Plan::Wait("node 'n3' to hand over the rows of its write-ahead log".into())
    );
    let leading = drained.clone().with(3, |node| node.leads_shards = true);
    assert_eq!(next_step(&leading), Plan::Wait("node 'n3' still leads shards".into()));
    assert_eq!(next_step(&drained), voters(&[1, 2]));
    let out = group(&[1, 2], &[3]).leaving(3);
    let gone = |state| {
        Plan::Step(Step::Remove(RemoveNode {
            node: NodeId(3),
            boot: Some(BootId(1)),
            state,
            intent_since: Version(7),
        }))
    };
    assert_eq!(next_step(&out), gone(NodeState::Ready));
    // Silent, and not down yet: it may have come back by the time that this is decided.
    assert_eq!(
        next_step(&out.clone().with(3, |node| node.alive = false)),
        Plan::Settled
    );
    assert_eq!(next_step(&out.clone().down(3)), gone(NodeState::Down));
    let removed = out.with(3, |node| node.state = NodeState::Removed);
    assert_eq!(next_step(&removed), Plan::Settled);
    let silent = removed.with(3, |node| node.alive = false);
    assert_eq!(next_step(&silent), Plan::Step(Step::DropLearner(NodeId(3))));
    // A learner takes over the vote in the same step.
    assert_eq!(next_step(&group(&[1, 2, 3], &[4]).leaving(3)), voters(&[1, 2, 4]));
}

#[test]
fn a_leader_that_leaves_hands_on_its_office_first() {
    let three = group(&[1, 2, 3], &[]).leaving(1);
    assert_eq!(next_step(&three), Plan::Step(Step::TransferLeadership(NodeId(2))));
    // The only voter makes another one first.
    let one = group(&[1], &[2, 3]).leaving(1);
    assert_eq!(next_step(&one), voters(&[1, 2]));
    let two = group(&[1, 2], &[3]).leaving(1);
    assert_eq!(next_step(&two), Plan::Step(Step::TransferLeadership(NodeId(2))));
    let mut handed = two;
    handed.leader = NodeId(2);
    assert_eq!(next_step(&handed), voters(&[2]));
    let behind = group(&[1, 2, 3], &[])
        .leaving(1)
        .with(2, |node| node.caught_up = false)
        .with(3, |node| node.caught_up = false);
    assert!(matches!(next_step(&behind), Plan::Wait(_)));
}

#[test]
fn no_step_gives_the_quorum_away() {
    let one_down = group(&[1, 2, 3], &[]).down(3);
    let Plan::Wait(why) = next_step(&one_down.clone().leaving(2)) else {
        panic!()
    };
    assert!(
        why.contains("lose its quorum: 'n1', 'n3' would vote, and of these 'n3' cannot"),
        "{why}"
    );
    assert_eq!(may_leave(&one_down, NodeId(2)), Err(why));
    assert_eq!(may_leave(&one_down, NodeId(3)), Ok(()));
    assert_eq!(next_step(&one_down.leaving(3)), voters(&[1, 2]));
    // With a learner at hand it can be done.
    assert_eq!(may_leave(&group(&[1, 2, 3], &[4]).down(3), NodeId(2)), Ok(()));
    assert!(may_leave(&group(&[1], &[]), NodeId(1)).is_err());
    let behind = group(&[1], &[2]).with(2, |node| node.caught_up = false);
    assert!(may_leave(&behind, NodeId(1)).unwrap_err().contains("can vote"));
    assert!(may_drain(&group(&[1], &[2]).down(2), NodeId(1)).is_err());
    assert_eq!(may_drain(&group(&[1], &[2]), NodeId(1)), Ok(()));
}

/// What happens to the group from outside.
#[derive(Clone, Copy, Debug)]
enum Event {
    Join,
    Intent(u64, NodeIntent),
    Dies(u64),
    Returns(u64),
    Drained(u64),
    CaughtUp(u64),
    Leader(u64),
    Moves(u64),
    Step,
}

fn event() -> impl Strategy<Value = Event> {
    let intent = prop_oneof![
        Just(NodeIntent::Serve),
        Just(NodeIntent::Drain),
        Just(NodeIntent::Leave)
    ];
    prop_oneof![
        3 => Just(Event::Join),
        3 => (1u64..9, intent).prop_map(|(node, intent)| Event::Intent(node, intent)),
        1 => (1u64..9).prop_map(Event::Dies),
        2 => (1u64..9).prop_map(Event::Returns),
        2 => (1u64..9).prop_map(Event::Drained),
        3 => (1u64..9).prop_map(Event::CaughtUp),
        1 => (1u64..9).prop_map(Event::Leader),
        1 => (1u64..9).prop_map(Event::Moves),
        10 => Just(Event::Step),
    ]
}

fn has_quorum(group: &Group) -> bool {
    let alive = group.voters.iter().filter(|id| group.nodes[id].alive).count();
    2 * alive > group.voters.len()
}

/// Does the step as Raft and the catalog would, and checks that it was allowed.
fn take(group: &mut Group, step: Step) {
    match step {
        Step::FinishJoint => group.joint = false,
        Step::AddLearner(id) => {
            assert!(
                !group.voters.contains(&id) && group.learners.insert(id),
                "{id} is there"
            );
            let node = group.nodes.get_mut(&id).unwrap();
            (node.moved, node.caught_up) = (false, false);
        }
        Step::SetVoters(next) => {
            assert!(!next.is_empty() && next.len() <= MAX_VOTERS.max(group.voters.len()) + 1);
            for id in &next {
                assert!(
                    group.voters.contains(id) || group.learners.contains(id),
                    "{id} has no log"
                );
                assert!(
                    group.voters.contains(id) || group.nodes[id].may_vote(),
                    "{id} cannot vote"
                );
            }
            for id in group.voters.difference(&next) {
                assert!(group.nodes[id].may_go(), "{id} lost its vote");
                assert_ne!(*id, group.leader, "the leader took itself out");
            }
            let added = next.difference(&group.voters).count();
            assert!(added == 0 || !next.len().is_multiple_of(2) || group.nodes[&group.leader].leaves());
            let all: BTreeSet<NodeId> = group.voters.union(&group.learners).copied().collect();
            group.learners = all.difference(&next).copied().collect();
            group.voters = next;
            assert!(has_quorum(group), "a step gave the quorum away: {group:?}");
        }
        Step::TransferLeadership(id) => {
            assert!(group.voters.contains(&id) && group.nodes[&id].alive && group.nodes[&id].caught_up);
            group.leader = id;
        }
        Step::Remove(RemoveNode { node: id, .. }) => {
            assert!(!group.voters.contains(&id), "{id} votes and is removed");
            let node = group.nodes.get_mut(&id).unwrap();
            assert!(node.intent == NodeIntent::Leave && !node.leads_shards);
            // Its process ends, as it is told.
            (node.state, node.alive) = (NodeState::Removed, false);
        }
        Step::DropLearner(id) => assert!(group.learners.remove(&id), "{id} is no learner"),
    }
}

fn happen(group: &mut Group, event: Event) {
    let next = NodeId(group.nodes.len() as u64 + 1);
    match event {
        Event::Join if next.0 < 9 => {
            let new = Standing {
                state: NodeState::Joining,
                alive: false,
                caught_up: false,
                ..well(next.0)
            };
            group.nodes.insert(next, new);
        }
        Event::Intent(node, intent) => {
            if intent == NodeIntent::Leave && may_leave(group, NodeId(node)).is_err() {
                return;
            }
            if let Some(node) = group
                .nodes
                .get_mut(&NodeId(node))
                .filter(|n| n.state != NodeState::Removed)
            {
                node.intent = intent;
                if intent != NodeIntent::Serve && node.state == NodeState::Ready {
                    (node.state, node.leads_shards) = (NodeState::Draining, true);
                }
            }
        }
        Event::Dies(node) => {
            // No more than Raft can bear; beyond that nobody leads and nothing happens.
            let id = NodeId(node);
            let mut after = group.clone();
            if let Some(node) = after.nodes.get_mut(&id).filter(|_| id != group.leader) {
                (node.alive, node.leads_shards) = (false, false);
                if node.state != NodeState::Removed {
                    node.state = NodeState::Down;
                }
                if has_quorum(&after) {
                    *group = after;
                }
            }
        }
        Event::Returns(node) => {
            if let Some(node) = group
                .nodes
                .get_mut(&NodeId(node))
                .filter(|n| n.state != NodeState::Removed)
            {
                node.alive = true;
                node.state = if node.intent == NodeIntent::Serve {
                    NodeState::Ready
                } else {
                    NodeState::Draining
                };
            }
        }
        Event::Drained(node) => _ = group.nodes.get_mut(&NodeId(node)).map(|node| node.leads_shards = false),
        Event::CaughtUp(node) => {
            _ = group
                .nodes
                .get_mut(&NodeId(node))
                .map(|node| node.caught_up = node.alive)
        }
        Event::Leader(node) => {
            if group.voters.contains(&NodeId(node)) && group.nodes[&NodeId(node)].alive {
                group.leader = NodeId(node);
            }
        }
        Event::Moves(node) => {
            if group.learners.contains(&NodeId(node)) {
                _ = group.nodes.get_mut(&NodeId(node)).map(|node| node.moved = true);
            }
        }
        Event::Step => {
            if let Plan::Step(step) = next_step(group) {
                take(group, step);
            }
        }
        Event::Join => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_group_is_never_in_danger_and_comes_to_rest(events in proptest::collection::vec(event(), 1..120)) {
        let mut group = group(&[1], &[]);
        for event in events {
            happen(&mut group, event);
            prop_assert!(group.voters.contains(&group.leader));
        }
        // Left alone, with every node in good health, it settles.
        let mut steps = 0;
        loop {
            for node in 1..9 {
                if group.nodes.get(&NodeId(node)).is_some_and(|node| node.intent == NodeIntent::Drain) {
                    happen(&mut group, Event::Intent(node, NodeIntent::Serve));
                }
                for event in [Event::Returns(node), Event::Drained(node), Event::CaughtUp(node)] {
                    happen(&mut group, event);
                }
            }
            match next_step(&group) {
                Plan::Step(step) => take(&mut group, step),
                Plan::Wait(why) => prop_assert!(false, "waits for ever: {} in {:?}", why, group),
                Plan::Settled => break,
            }
            steps += 1;
            prop_assert!(steps < 60, "does not settle: {:?}", group);
        }
        for (id, node) in &group.nodes {
            let member = group.voters.contains(id) || group.learners.contains(id);
            prop_assert_eq!(member, node.state != NodeState::Removed);
            prop_assert!(node.intent != NodeIntent::Leave || node.state == NodeState::Removed);
        }
        let able = group.learners.iter().filter(|id| group.nodes[id].may_vote()).count();
        let room = MAX_VOTERS.saturating_sub(group.voters.len());
        // An even number remains only where nobody could make it odd.
        prop_assert!(able.min(room) < if group.voters.len().is_multiple_of(2) { 1 } else { 2 }, "{:?}", group);
    }
}
