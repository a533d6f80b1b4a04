//! What the answers to proposals are worth, and how many there can be.

use crate::group::{Group, PATIENCE, block_on, create};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tidemill_raft::{ProposeError, ReadError};

#[test]
fn without_a_quorum_nothing_is_confirmed_and_later_everything_is_consistent() {
    let mut group = Group::founded(3);
    group.create(1, "before");
    let leader = group.leader();
    let others: Vec<u64> = (1..=3).filter(|number| *number != leader).collect();
    for number in &others {
        group.kill(*number);
    }
    let short = Duration::from_millis(700);
    let error = block_on(group.catalog(leader).propose(create("lost"), short)).unwrap_err();
    assert!(matches!(error, ProposeError::Unknown(_)), "{error}");
    let error = block_on(group.catalog(leader).read_index(short)).unwrap_err();
    assert!(matches!(error, ReadError::NoLeader { .. }), "{error}");
    // Reads of what is here still work.
    assert!(group.tables(leader).contains(&"before".to_owned()));
    for number in &others {
        group.start(*number);
    }
    group.create(others[0], "after");
    group.same_everywhere();
    // It may have come through or not; the same everywhere, and at most once.
    let lost = group.tables(1).iter().filter(|name| *name == "lost").count();
    assert!(lost <= 1);
}

#[test]
fn a_proposal_that_finds_no_leader_is_certainly_not_sent() {
    let mut group = Group::new(2);
    group.start(1);
    let error = block_on(group.catalog(1).propose(create("a"), Duration::from_millis(300))).unwrap_err();
    assert!(matches!(error, ProposeError::NotSent(_)), "{error}");
    let waiting = group.catalog(1).status().waiting_for.unwrap_or_default();
    assert!(waiting.contains("'n2'"), "{waiting}");
}

#[test]
fn proposals_share_fsyncs() {
    let group = Group::founded(3);
    let via = group.follower();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    for (label, number, at_once, total) in [
        ("leader", group.leader(), 1, 50),
        ("leader", group.leader(), 64, 2000),
        ("follower", via, 64, 2000),
    ] {
        let catalog = group.catalog(number).clone();
        let begun = Instant::now();
        runtime.block_on(async {
            let limit = Arc::new(tokio::sync::Semaphore::new(at_once));
            let tasks = (0..total).map(|i| {
                let (catalog, limit) = (catalog.clone(), limit.clone());
                tokio::spawn(async move {
                    let _permit = limit.acquire().await.unwrap();
                    let proposal = create(&format!("{label}{at_once}x{i}"));
                    catalog.propose(proposal, PATIENCE).await.unwrap().1.unwrap();
                })
            });
            for task in tasks.collect::<Vec<_>>() {
                task.await.unwrap();
            }
        });
        let seconds = begun.elapsed().as_secs_f64();
        println!(
            "{total} proposals via the {label}, {at_once} at once: {:.0}/s",
            total as f64 / seconds
        );
    }
    group.same_everywhere();
}

#[test]
fn every_answer_holds_through_changes_of_the_leader() {
    let mut group = Group::founded(3);
    let mut answers: Vec<(String, Result<(), ProposeError>)> = Vec::new();
    for round in 0..4 {
        let leader = group.leader();
        let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let proposers: Vec<_> = group
            .running
            .iter()
            .filter(|(number, _)| **number != leader)
            .flat_map(|(number, running)| (0..4).map(move |task| (*number, task, running.catalog.clone())))
            .map(|(number, task, catalog)| {
                let done = done.clone();
                group.running[&number].runtime.spawn(async move {
                    let mut answers = Vec::new();
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        let name = format!("r{round}n{number}t{task}i{}", answers.len());
                        // Short, so that all three kinds of answer come up.
                        let answer = catalog.propose(create(&name), Duration::from_millis(300)).await;
                        answers.push((name, answer.map(|(_, outcome)| assert!(outcome.is_ok(), "{outcome:?}"))));
                    }
                    answers
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        group.kill(leader);
        std::thread::sleep(Duration::from_millis(1500));
        group.start(leader);
        std::thread::sleep(Duration::from_millis(500));
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        for proposer in proposers {
            answers.extend(block_on(proposer).unwrap());
        }
    }
    group.create(1, "last");
    group.same_everywhere();
    let tables: std::collections::BTreeSet<String> = group.tables(1).into_iter().collect();
    let (mut done, mut not_sent, mut unknown) = (0, 0, 0);
    for (name, answer) in answers {
        match answer {
            Ok(()) => {
                assert!(tables.contains(&name), "{name} was acknowledged and is gone");
                done += 1;
            }
            Err(ProposeError::NotSent(reason)) => {
                assert!(
                    !tables.contains(&name),
                    "{name} was certainly not sent ({reason}) and is there"
                );
                not_sent += 1;
            }
            Err(ProposeError::Unknown(_)) => unknown += 1,
            Err(error) => panic!("{error}"),
        }
    }
    println!("{done} done, {not_sent} not sent, {unknown} unknown");
    assert!(
        done > 100 && not_sent > 0,
        "{done} done, {not_sent} not sent, {unknown} unknown"
    );
}
