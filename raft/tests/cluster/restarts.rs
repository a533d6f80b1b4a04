//! Nodes that are lost and come back.

use crate::group::{Group, PATIENCE, block_on, eventually, remove};
use std::{path::Path, time::Instant};
use tidemill_core::view::CatalogRead;

#[test]
fn the_loss_of_a_leader_loses_nothing() {
    let mut group = Group::founded(3);
    let mut created = Vec::new();
    for round in 0..3 {
        let leader = group.leader();
        let via = group.follower();
        for i in 0..10 {
            let name = format!("r{round}i{i}");
            group.create(via, &name);
            created.push(name);
        }
        group.kill(leader);
        let begun = Instant::now();
        let name = format!("r{round}without{leader}");
        group.create(via, &name);
        created.push(name);
        println!("a proposal was served {:?} after the leader was lost", begun.elapsed());
        block_on(group.catalog(via).read_index(PATIENCE)).unwrap();
        created.sort();
        assert_eq!(group.tables(via), created);
        group.start(leader);
    }
    group.same_everywhere();
    for number in 1..=3 {
        assert_eq!(group.tables(number), created);
    }
}

#[test]
fn a_restart_of_all_keeps_everything() {
    let mut group = Group::founded(3);
    for i in 0..20 {
        group.create(1 + i % 3, &format!("t{i}"));
    }
    group.same_everywhere();
    let digest = group.catalog(1).snapshot().unwrap().digest().unwrap();
    let instance = group.catalog(2).instance();
    for number in [1, 2, 3] {
        if number == 2 {
            group.stop(number)
        } else {
            group.kill(number)
        }
    }
    for number in [3, 2, 1] {
        group.start(number);
    }
    assert_eq!(group.catalog(2).instance(), instance);
    for number in 1..=3 {
        block_on(group.catalog(number).read_index(PATIENCE)).unwrap();
        let state = group.catalog(number).snapshot().unwrap();
        assert_eq!(state.digest().unwrap(), digest);
    }
    group.create(1, "after");
}

#[test]
fn a_follower_that_missed_too_much_gets_the_files() {
    let mut group = Group::new(3);
    (group.snapshot_entries, group.keep_entries) = (40, 5);
    let mut group = group.found();
    let behind = group.follower();
    group.create(behind, "first");
    group.same_everywhere();
    let was_at = group.catalog(behind).status().last_log.unwrap();
    let held = group.catalog(behind).snapshot().unwrap();
    drop(held);
    group.kill(behind);
    let via = group.leader();
    for i in 0..200 {
        group.create(via, &format!("t{i}"));
    }
    eventually("the log is purged", || {
        let status = group.catalog(via).status();
        (status.purged > Some(was_at + 50)).then_some(())
    });
    group.start(behind);
    block_on(
        group
            .catalog(behind)
            .wait_applied(group.catalog(via).status().applied, PATIENCE),
    )
    .unwrap();
    group.same_everywhere();
    assert_eq!(group.tables(behind).len(), 201);
    assert!(group.catalog(behind).status().snapshot > Some(was_at + 50));
    // What it got is what it starts with again.
    group.kill(behind);
    group.start(behind);
    group.create(behind, "last");
    block_on(group.catalog(behind).read_index(PATIENCE)).unwrap();
    group.same_everywhere();
    let catalogs = std::fs::read_dir(group.folder.path().join(format!("n{behind}/catalog"))).unwrap();
    let names: Vec<_> = catalogs
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(
        names.iter().filter(|name| name.starts_with('0')).count(),
        1,
        "{names:?}"
    );
    let incoming = group.folder.path().join(format!("n{behind}/catalog/incoming"));
    assert_eq!(std::fs::read_dir(incoming).unwrap().count(), 0);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false => drop(std::fs::copy(&path, &target).unwrap()),
        }
    }
}

#[test]
fn followers_that_lost_acknowledged_entries_get_them_again() {
    let mut group = Group::founded(3);
    group.create(1, "kept");
    group.same_everywhere();
    let leader = group.leader();
    let followers: Vec<u64> = (1..=3).filter(|number| *number != leader).collect();
    // One after the other, and so both: with two that are never fed again, the group would decide nothing.
    for (nth, follower) in followers.into_iter().enumerate() {
        let data = group.folder.path().join(format!("n{follower}"));
        let older = group.folder.path().join(format!("older{follower}"));
        group.stop(follower);
        copy(&data, &older);
        group.start(follower);
        for i in 0..20 {
            group.create(leader, &format!("lost{follower}i{i}"));
        }
        group.same_everywhere();
        group.stop(follower);
        remove(&data);
        std::fs::rename(&older, &data).unwrap();
        group.start(follower);
        let newest = group.catalog(leader).status().applied;
        block_on(group.catalog(follower).wait_applied(newest, PATIENCE)).unwrap();
        let status = group.catalog(leader).status();
        assert_eq!((group.leader(), status.log_losses), (leader, nth as u64 + 1));
    }
    group.create(leader, "after");
    group.same_everywhere();
    assert_eq!(group.tables(1).len(), 42);
}
