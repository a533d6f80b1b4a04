//! The simulation itself: the same seed is the same history, another is another, and what is broken is noticed.

use crate::ReplicatedCatalog;
use crate::disk::{Change, Disk, LogDisk};
use crate::mutant::Mutant;
use crate::types::Vote;
use openraft::vote::RaftLeaderId;
use tidemill_sim::Simulation;
use tidemill_sim::dice::Dice;
use tidemill_sim::seeds::run_all;

fn vote(term: u64) -> Vote {
    Vote {
        leader_id: RaftLeaderId::new(term, 1),
        committed: false,
    }
}

#[test]
fn a_seed_gives_the_same_history_every_time() {
    for seed in 1..4 {
        let (first, told) = ReplicatedCatalog::tell(seed, None);
        let (second, told_again) = ReplicatedCatalog::tell(seed, None);
        assert_eq!(told, told_again, "seed {seed}");
        assert_eq!(first.unwrap(), second.unwrap(), "seed {seed}");
    }
}

#[test]
fn being_told_changes_nothing() {
    assert_eq!(
        ReplicatedCatalog::run(4, None).unwrap(),
        ReplicatedCatalog::tell(4, None).0.unwrap()
    );
}

#[test]
fn another_seed_gives_another_history() {
    assert_ne!(
        ReplicatedCatalog::run(1, None).unwrap().digest,
        ReplicatedCatalog::run(2, None).unwrap().digest
    );
}

#[test]
fn rules_that_are_broken_are_noticed() {
    for mutant in [
        Mutant::ReadsWithoutIndex,
        Mutant::VoteIsNotPersisted,
        Mutant::BatchIsTorn,
    ] {
        assert!(run_all::<ReplicatedCatalog>(1..20, Some(mutant)).is_err(), "{mutant:?}");
    }
}

#[test]
fn what_was_not_synced_survives_a_killed_process_and_may_not_survive_a_loss_of_power() {
    let written = |disk: &mut LogDisk, term| disk.write(vec![Change::Vote(vote(term))]);
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..100 {
        let mut disk = Disk::default();
        written(&mut disk.log, 1);
        disk.log.sync();
        written(&mut disk.log, 2);
        written(&mut disk.log, 3);
        assert_eq!(disk.log.found().vote, Some(vote(3)));
        disk.lose_unsynced(&mut Dice::new(seed));
        let found = disk.log.found().vote.unwrap();
        // What is lost is lost from the end on.
        assert!((1..=3).any(|term| found == vote(term)));
        seen.insert(found.leader_id.term);
    }
    assert_eq!(seen, [1, 2, 3].into());
}

#[test]
fn a_log_whose_last_entry_is_newer_than_its_vote_is_refused() {
    let (result, _) = ReplicatedCatalog::tell(1, Some(Mutant::VoteIsNotPersisted));
    let failure = result.unwrap_err();
    assert!(
        failure.violation.found.contains("newer than the vote"),
        "{}",
        failure.violation
    );
}
