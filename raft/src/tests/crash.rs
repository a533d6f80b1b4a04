//! A process that is killed while it writes: what it said is there must be there.

use super::{log::open, *};
use openraft::{
    RaftLogReader,
    storage::{RaftLogStorage, RaftLogStorageExt},
};
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command as Process, Stdio},
    time::Duration,
};
use tempfile::TempDir;

const FOLDER: &str = "TIDEMILL_RAFT_CRASH_FOLDER";

/// Not a test of its own: the process that is killed by the test below.
#[tokio::test]
async fn child_appends_until_it_is_killed() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let mut log = open(Path::new(&folder));
    let state = log.get_log_state().await.unwrap();
    let mut next = index(state.last_log_id).map_or(0, |last| last + 1);
    let mut term = log
        .get_log_reader()
        .await
        .read_vote()
        .await
        .unwrap()
        .map_or(0, |vote| vote.leader_id.term);
    loop {
        term += 1;
        log.save_vote(&vote(term)).await.unwrap();
        println!("vote {term}");
        for _ in 0..5 {
            let batch: Vec<_> = (next..next + 3)
                .map(|index| entry(term, index, proposal(index)))
                .collect();
            log.blocking_append(batch).await.unwrap();
            next += 3;
            println!("entry {}", next - 1);
        }
        // What is purged counts as kept: an older entry must not come back without the newer ones.
        if term.is_multiple_of(20) {
            log.purge(log_id(term, next - 4)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_a_killed_process_acknowledged_is_there() {
    let folder = TempDir::new().unwrap();
    let program = std::env::current_exe().unwrap();
    let (mut acknowledged, mut voted) = (0, 0);
    for round in 0..8 {
        let mut child = Process::new(&program)
            .args([
                "--exact",
                "tests::crash::child_appends_until_it_is_killed",
                "--nocapture",
            ])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || {
            let (mut entry, mut vote) = (None, None);
            for line in output.lines().map_while(Result::ok) {
                match line.split_once(' ') {
                    Some(("entry", index)) => entry = index.parse::<u64>().ok().or(entry),
                    Some(("vote", term)) => vote = term.parse::<u64>().ok().or(vote),
                    _ => {}
                }
            }
            (entry, vote)
        });
        std::thread::sleep(Duration::from_millis(300 + 137 * round % 400));
        child.kill().unwrap();
        child.wait().unwrap();
        let (entry, vote) = reader.join().unwrap();
        acknowledged = entry.unwrap_or(acknowledged).max(acknowledged);
        voted = vote.unwrap_or(voted).max(voted);

        let mut log = open(folder.path());
        let last = index(log.get_log_state().await.unwrap().last_log_id).unwrap_or(0);
        let found = log
            .get_log_reader()
            .await
            .read_vote()
            .await
            .unwrap()
            .map_or(0, |vote| vote.leader_id.term);
        assert!(
            last >= acknowledged,
            "round {round}: acknowledged {acknowledged}, found {last}"
        );
        assert!(found >= voted, "round {round}: voted in {voted}, found {found}");
    }
    assert!(
        acknowledged > 100 && voted > 5,
        "the child hardly ran: {acknowledged} entries, {voted} votes"
    );
}
