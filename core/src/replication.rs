//! Which nodes keep the files of which shard, as a pure function from a problem to changes.
//!
//! Sticky, like [`crate::placement`]: a replica stays where it is as long as its node stays. A shard that has too few
//! gets more, on the nodes with the fewest; one whose node leaves is given up as soon as the others suffice; and
//! nodes that have come take their share. A move is an addition and, when the new replica is complete, a removal, so
//! that a shard never has fewer replicas than before while one is on its way. What is not safe is refused in
//! apply, whatever is asked for here.

use crate::catalog::{CatalogQuestions, Node, NodeIntent, NodeState, Replica, ReplicaState, Replication, Shard, Table};
use crate::command::ReplicaOf;
use crate::ids::{NodeId, ShardId, TableId};
use crate::view::{CatalogRead, ViewError};
use std::collections::{BTreeMap, BTreeSet};

/// What has to be kept where.
#[derive(Clone, Debug)]
pub struct Problem {
    /// How many copies there shall be.
    pub rule: Replication,
    /// The nodes that were not removed.
    pub nodes: Vec<Keeper>,
    /// The shards.
    pub shards: Vec<Shard>,
    /// Who may lead the shards of a table, where that is not everybody: of its replicas, so many as can be lie there.
    pub warehouses: BTreeMap<TableId, BTreeSet<NodeId>>,
    /// Whether replicas may be moved for the sake of balance alone.
    pub may_balance: bool,
}

/// A node that may keep files.
#[derive(Clone, Copy, Debug)]
pub struct Keeper {
    /// The node.
    pub node: NodeId,
    /// Whether it stays in the cluster; it may be silent at the moment.
    pub stays: bool,
    /// Whether it can be given a replica now.
    pub takes: bool,
    /// Whether it is heard, with the disk that the catalog knows: only such a node can have what another gives up.
    pub heard: bool,
}

/// A change of the replicas of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// One more.
    Add(ReplicaOf),
    /// One less. If it leads, another replica takes the lead first.
    Drop(ReplicaOf),
}

/// The next changes; none if all is as it shall be or must wait for replicas that are copying.
pub fn changes(problem: &Problem) -> Vec<Change> {
    let mut load: BTreeMap<NodeId, usize> = problem.nodes.iter().map(|keeper| (keeper.node, 0)).collect();
    for replica in problem.shards.iter().flat_map(|shard| &shard.replicas) {
        load.entry(replica.node).and_modify(|count| *count += 1);
    }
    let mut found = Vec::new();
    for shard in &problem.shards {
        problem.tend(shard, &mut load, &mut found);
    }
    // What is missing first: it must not wait for what may have to be asked again and again.
    found.sort_by_key(|change| matches!(change, Change::Drop(_)));
    let mut replicas = problem.shards.iter().flat_map(|shard| &shard.replicas);
    if problem.may_balance && found.is_empty() && replicas.all(|replica| replica.state == ReplicaState::Ready) {
        problem.balance(load, &mut found);
    }
    found
}

impl Problem {
    /// What the catalog asks for, whose nodes are `nodes`; nothing where all nodes share one part store. `heard` says whether
    /// a node is, in the run of its process and with the disk that the catalog knows: while the group had no leader, others
    /// may have lost their disks, and the catalog learns that only from their next heartbeats.
    pub fn of<V: CatalogRead + ?Sized>(
        state: &V,
        nodes: &[Node],
        heard: impl Fn(&Node) -> bool,
        may_balance: bool,
    ) -> Result<Option<Self>, ViewError> {
        let Some(rule) = state.replication()? else {
            return Ok(None);
        };
        let living = nodes.iter().filter(|node| node.state != NodeState::Removed);
        let keeper = |node: &Node| Keeper {
            node: node.id,
            stays: node.intent != NodeIntent::Leave,
            takes: node.state == NodeState::Ready && node.disk.is_some(),
            heard: node.state.is_up() && heard(node),
        };
        let tables = state.list::<Table>(&[])?.into_iter();
        let homes = |table: Table| {
            let home = nodes.iter().filter(|node| table.is_home(node));
            (table.id, home.map(|node| node.id).collect())
        };
        Ok(Some(Self {
            rule,
            nodes: living.map(keeper).collect(),
            shards: state.list(&[])?,
            warehouses: tables.filter(|t| t.settings.warehouse.is_some()).map(homes).collect(),
            may_balance,
        }))
    }

    fn keeper(&self, node: NodeId) -> Option<&Keeper> {
        self.nodes.iter().find(|keeper| keeper.node == node)
    }

    fn stays(&self, replica: &Replica) -> bool {
        self.keeper(replica.node).is_some_and(|keeper| keeper.stays)
    }

    fn takes(&self, node: NodeId) -> bool {
        self.keeper(node).is_some_and(|keeper| keeper.takes)
    }

    /// Whether `node` may lead `shard`, once it has its files.
    fn is_home(&self, shard: ShardId, node: NodeId) -> bool {
        let home = self.warehouses.get(&shard.table);
        home.is_none_or(|home| home.contains(&node))
    }

    /// How many replicas each shard shall have.
    fn wanted(&self) -> usize {
        let staying = self.nodes.iter().filter(|keeper| keeper.stays).count();
        staying.min(self.rule.replicas as usize)
    }

    /// Gives `shard` the number of replicas that it shall have.
    fn tend(&self, shard: &Shard, load: &mut BTreeMap<NodeId, usize>, found: &mut Vec<Change>) {
        let (wanted, of) = (self.wanted(), |node| ReplicaOf { shard: shard.id, node });
        let (staying, leaving): (Vec<&Replica>, Vec<&Replica>) = shard.replicas.iter().partition(|r| self.stays(r));
        let is_home = |node: NodeId| self.is_home(shard.id, node);
        let homes = self.nodes.iter().filter(|k| k.stays && is_home(k.node)).count();
        let at_home = staying.iter().filter(|r| is_home(r.node)).count();
        let mut added: Vec<NodeId> = Vec::new();
        loop {
            let enough = staying.len() + added.len() >= wanted;
            // One too many for a while, if it is where the leader shall be.
            let enough_at_home = at_home + added.iter().filter(|node| is_home(**node)).count() >= homes.min(wanted);
            if enough && enough_at_home {
                break;
            }
            let new = |node: &NodeId| {
                self.takes(*node)
                    && shard.replica(*node).is_none()
                    && !added.contains(node)
                    && (!enough || is_home(*node))
            };
            let free = load.iter().filter(|(node, _)| new(node));
            let Some(node) = free
                .min_by_key(|(node, count)| (!is_home(**node), **count, **node))
                .map(|(node, _)| *node)
            else {
                break;
            };
            load.entry(node).and_modify(|count| *count += 1);
            added.push(node);
            found.push(Change::Add(of(node)));
        }
        let heard = |r: &Replica| self.keeper(r.node).is_some_and(|keeper| keeper.heard);
        let ready = staying
            .iter()
            .filter(|r| r.state == ReplicaState::Ready && heard(r))
            .count();
        if ready < wanted {
            return;
        }
        found.extend(leaving.iter().map(|replica| Change::Drop(of(replica.node))));
        // One that copies is on its way to take the place of another, unless nobody hears of it.
        let copying: Vec<_> = staying.iter().filter(|r| r.state == ReplicaState::Copying).collect();
        found.extend(
            copying
                .iter()
                .filter(|r| !self.takes(r.node))
                .map(|r| Change::Drop(of(r.node))),
        );
        if copying.is_empty() && ready > wanted {
            let key = |r: &&&Replica| {
                let count = load.get(&r.node).copied();
                (!is_home(r.node), count, shard.leader != Some(r.node), r.node)
            };
            let fullest = staying.iter().max_by_key(key);
            found.extend(fullest.map(|replica| Change::Drop(of(replica.node))));
        }
    }

    /// Gives nodes that have much fewer replicas than others some of theirs.
    fn balance(&self, mut load: BTreeMap<NodeId, usize>, found: &mut Vec<Change>) {
        let mut moved: Vec<_> = Vec::new();
        loop {
            let takes = load.iter().filter(|(node, _)| self.takes(**node));
            let Some((to, low)) = takes
                .min_by_key(|(node, count)| (**count, **node))
                .map(|(n, c)| (*n, *c))
            else {
                return;
            };
            let gives = |shard: &&Shard| {
                let fuller = |r: &&Replica| load.get(&r.node) > Some(&(low + 1));
                let key = |r: &&Replica| (load.get(&r.node).copied(), shard.leader != Some(r.node));
                // From where it is at home it goes to where it is, too.
                let fits = |r: &&Replica| self.is_home(shard.id, to) || !self.is_home(shard.id, r.node);
                let from = shard.replicas.iter().filter(fuller).filter(fits).max_by_key(key);
                let from = from.filter(|_| shard.replica(to).is_none() && !moved.contains(&shard.id));
                from.map(|replica| replica.node)
            };
            let givers = self.shards.iter().filter_map(|shard| Some((shard.id, gives(&shard)?)));
            let Some((shard, from)) = givers.max_by_key(|(shard, from)| (load.get(from), std::cmp::Reverse(*shard)))
            else {
                return;
            };
            moved.push(shard);
            load.entry(from).and_modify(|count| *count -= 1);
            load.entry(to).and_modify(|count| *count += 1);
            found.push(Change::Add(ReplicaOf { shard, node: to }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, ShardId, TableId, Version};
    use proptest::prelude::*;

    fn shard(index: u32) -> Shard {
        Shard {
            id: ShardId {
                table: TableId(1),
                index,
            },
            epoch: Epoch(1),
            leader: None,
            last_leader: None,
            assigned: None,
            last_commit: None,
            replicas: vec![],
            standby: None,
        }
    }

    fn keeper(node: u64) -> Keeper {
        Keeper {
            node: NodeId(node),
            stays: true,
            takes: true,
            heard: true,
        }
    }

    fn ready(node: NodeId) -> Replica {
        Replica {
            since: Version(0),
            node,
            state: ReplicaState::Ready,
        }
    }

    fn problem(nodes: impl IntoIterator<Item = u64>, shards: u32, replicas: u32) -> Problem {
        Problem {
            rule: Replication {
                replicas,
                min_replicas: 1,
            },
            nodes: nodes.into_iter().map(keeper).collect(),
            shards: (0..shards).map(shard).collect(),
            warehouses: BTreeMap::new(),
            may_balance: true,
        }
    }

    /// Does what is asked for, with copies that take no time and leaders among the ready, until nothing is asked.
    /// Gives how many replicas had to be copied.
    fn settle(problem: &mut Problem) -> usize {
        let mut copied = 0;
        for _ in 0..100 {
            // Who leaves gives up its shards.
            let stays: Vec<NodeId> = problem.nodes.iter().filter(|k| k.stays).map(|k| k.node).collect();
            for shard in &mut problem.shards {
                let able: Vec<NodeId> = shard.ready_replicas().filter(|node| stays.contains(node)).collect();
                if shard.leader.is_none_or(|leader| !able.contains(&leader)) {
                    shard.leader = able.get(shard.id.index as usize % able.len().max(1)).copied();
                }
            }
            let found = changes(problem);
            if found.is_empty() {
                return copied;
            }
            for change in found {
                match change {
                    Change::Add(of) => {
                        copied += 1;
                        let shard = problem.shards.iter_mut().find(|s| s.id == of.shard).unwrap();
                        assert!(shard.replica(of.node).is_none());
                        shard.replicas.push(ready(of.node));
                    }
                    Change::Drop(of) => {
                        let shard = problem.shards.iter_mut().find(|s| s.id == of.shard).unwrap();
                        if shard.leader == Some(of.node) {
                            let other = shard.ready_replicas().find(|node| *node != of.node);
                            shard.leader = other;
                            assert!(shard.leader.is_some());
                        }
                        let before = shard.replicas.len();
                        shard.replicas.retain(|r| r.node != of.node);
                        assert_eq!(before, shard.replicas.len() + 1);
                    }
                }
            }
        }
        panic!("it never settles: {problem:?}");
    }

    fn counts(problem: &Problem) -> Vec<usize> {
        let of = |node| problem.shards.iter().filter(|s| s.replica(node).is_some()).count();
        problem.nodes.iter().map(|keeper| of(keeper.node)).collect()
    }

    #[test]
    fn three_nodes_keep_everything() {
        let mut p = problem(1..=3, 4, 3);
        assert_eq!(settle(&mut p), 12);
        assert_eq!(counts(&p), [4, 4, 4]);
    }

    #[test]
    fn a_node_that_takes_the_place_of_another_gets_all_its_replicas_first() {
        let mut p = problem(1..=3, 4, 3);
        settle(&mut p);
        p.nodes.push(keeper(4));
        p.nodes[0].stays = false;
        p.nodes[0].takes = false;
        let first = changes(&p);
        assert!(
            first
                .iter()
                .all(|change| matches!(change, Change::Add(of) if of.node == NodeId(4)))
        );
        assert_eq!(first.len(), 4);
        // While it copies, the one that leaves is kept.
        for shard in &mut p.shards {
            shard.replicas.push(Replica {
                since: Version(0),
                node: NodeId(4),
                state: ReplicaState::Copying,
            });
        }
        assert_eq!(changes(&p), []);
        for replica in p.shards.iter_mut().flat_map(|shard| &mut shard.replicas) {
            replica.state = ReplicaState::Ready;
        }
        assert_eq!(settle(&mut p), 0);
        assert_eq!(counts(&p), [0, 4, 4, 4]);
    }

    #[test]
    fn a_silent_node_keeps_its_replicas_and_gets_none() {
        let mut p = problem(1..=4, 4, 3);
        settle(&mut p);
        (p.nodes[1].takes, p.nodes[1].heard) = (false, false);
        assert_eq!(changes(&p), []);
        p.shards.push(shard(9));
        let new = |change: &Change| matches!(change, Change::Add(of) if of.node != NodeId(2) && of.shard.index == 9);
        let found = changes(&p);
        assert_eq!((found.len(), found.iter().all(new)), (3, true));
    }

    #[test]
    fn a_node_that_leaves_keeps_what_those_that_stay_are_not_heard_to_have() {
        let mut p = problem(1..=3, 4, 2);
        for shard in &mut p.shards {
            shard.replicas = [1, 2, 3].map(|node| ready(NodeId(node))).into();
        }
        (p.nodes[2].stays, p.nodes[2].takes) = (false, false);
        let gives_up = |p: &Problem| {
            let found = changes(p);
            found
                .iter()
                .filter(|change| matches!(change, Change::Drop(of) if of.node == NodeId(3)))
                .count()
        };
        assert_eq!(gives_up(&p), 4);
        // Both have started again with empty disks, and the catalog does not know it yet.
        (p.nodes[0].heard, p.nodes[1].heard) = (false, false);
        assert_eq!(gives_up(&p), 0);
    }

    #[test]
    fn replicas_go_home_first_and_leave_last() {
        let mut p = problem(1..=5, 4, 3);
        settle(&mut p);
        let home = BTreeSet::from([NodeId(4), NodeId(5)]);
        p.warehouses = BTreeMap::from([(TableId(1), home.clone())]);
        settle(&mut p);
        let complete = |p: &Problem| {
            p.shards
                .iter()
                .all(|s| s.replicas.len() == 3 && home.iter().all(|node| s.replica(*node).is_some()))
        };
        assert!(complete(&p), "{:?}", p.shards);
        // The third one lies where it lay: nobody copies for the sake of evenness what must stay where it is.
        let first = changes(&p);
        assert_eq!(first, []);
        p.shards.push(shard(9));
        settle(&mut p);
        assert!(complete(&p), "{:?}", p.shards);
    }

    proptest! {
        #[test]
        fn it_settles_with_every_shard_at_home_where_it_can_be(
            nodes in 1u64..7, home in 1u64..7, shards in 0u32..12, replicas in 1u32..5,
        ) {
            let mut p = problem(1..=nodes, shards, replicas);
            settle(&mut p);
            let home: BTreeSet<NodeId> = (1..=home.min(nodes)).map(NodeId).collect();
            p.warehouses = BTreeMap::from([(TableId(1), home.clone())]);
            settle(&mut p);
            let wanted = nodes.min(u64::from(replicas)) as usize;
            for shard in &p.shards {
                let at_home = shard.replicas.iter().filter(|r| home.contains(&r.node)).count();
                prop_assert_eq!((shard.replicas.len(), at_home), (wanted, wanted.min(home.len())));
            }
        }

        #[test]
        fn it_settles_with_every_shard_complete_and_nodes_about_even(
            first in 1u64..7, second in 1u64..7, shards in 0u32..20, replicas in 1u32..5,
        ) {
            let mut p = problem(1..=first, shards, replicas);
            settle(&mut p);
            // Grow or shrink.
            for node in first + 1..=second {
                p.nodes.push(keeper(node));
            }
            for keeper in p.nodes.iter_mut().skip(second as usize) {
                (keeper.stays, keeper.takes) = (false, false);
            }
            let copied = settle(&mut p);
            let wanted = second.min(u64::from(replicas)) as usize;
            for shard in &p.shards {
                prop_assert_eq!(shard.replicas.len(), wanted);
            }
            // Nobody copies more than the nodes that came, or those that went, have to do with (MOV-1).
            let had = first.abs_diff(second);
            let share = shards as usize * (replicas as usize).min(first.max(second) as usize);
            prop_assert!(copied <= share, "{} of {} were copied for {} nodes", copied, share, had);
            let staying: Vec<usize> = counts(&p).into_iter().take(second as usize).collect();
            let spread = staying.iter().max().unwrap() - staying.iter().min().unwrap();
            prop_assert!(spread <= 2, "{:?}", staying);
        }
    }
}
