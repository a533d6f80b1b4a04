//! The log: what is readable, what is durable, and what it refuses.

use super::*;
use crate::{
    log_store::{LogOpenError, LogOptions, LogStore},
    log_writer::FailureHook,
};
use futures::StreamExt;
use openraft::{
    RaftLogReader,
    storage::{RaftLogStorage, RaftLogStorageExt},
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};
use tempfile::TempDir;

pub(super) fn open(folder: &Path) -> LogStore {
    LogStore::open(folder, LogOptions::default()).unwrap()
}

async fn read_all(log: &mut LogStore) -> Vec<u64> {
    let entries = log.get_log_reader().await.try_get_log_entries(..).await.unwrap();
    entries.iter().map(|entry| entry.log_id.index).collect()
}

/// The one log file of RocksDB that grows.
pub(super) fn newest_wal(folder: &Path) -> PathBuf {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|e| e == "log"))
        .max()
        .unwrap()
}

pub(super) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to.join(entry.file_name()));
        } else if entry.file_name() != "LOCK" {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[tokio::test]
async fn everything_survives_a_restart() {
    let folder = TempDir::new().unwrap();
    let mut log = open(folder.path());
    log.save_vote(&vote(1)).await.unwrap();
    log.blocking_append(entries(0..20)).await.unwrap();
    log.save_vote(&vote(2)).await.unwrap();
    log.truncate_after(Some(log_id(1, 14))).await.unwrap();
    log.blocking_append([entry(2, 15, proposal(15)), entry(2, 16, proposal(16))])
        .await
        .unwrap();
    log.save_committed(Some(log_id(1, 9))).await.unwrap();
    log.purge(log_id(1, 4)).await.unwrap();
    // A synced write behind them, since committed and purge are not waited for.
    log.save_vote(&vote(3)).await.unwrap();
    drop(log);

    let mut log = open(folder.path());
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(log_id(1, 4)));
    assert_eq!(state.last_log_id, Some(log_id(2, 16)));
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 9)));
    let mut reader = log.get_log_reader().await;
    assert_eq!(reader.read_vote().await.unwrap(), Some(vote(3)));
    let found = reader.try_get_log_entries(..).await.unwrap();
    assert_eq!(
        found.iter().map(|e| e.log_id.index).collect::<Vec<_>>(),
        (5..17).collect::<Vec<_>>()
    );
    assert_eq!(found[0], entry(1, 5, proposal(5)));
    assert_eq!(found[11], entry(2, 16, proposal(16)));
}

#[tokio::test]
async fn a_dropped_log_is_written_and_closed() {
    let folder = TempDir::new().unwrap();
    let mut log = open(folder.path());
    log.save_vote(&vote(1)).await.unwrap();
    for round in 0..200 {
        log.append(entries(round..round + 1), openraft::storage::IOFlushed::noop())
            .await
            .unwrap();
    }
    let closing = log.closing();
    drop(log);
    assert!(closing.is_done());
    assert_eq!(read_all(&mut open(folder.path())).await, (0..200).collect::<Vec<_>>());
}

#[tokio::test]
async fn truncated_and_purged_entries_are_gone_at_once() {
    let folder = TempDir::new().unwrap();
    let mut log = open(folder.path());
    log.save_vote(&vote(1)).await.unwrap();
    for round in 0..50 {
        let next = index(log.get_log_state().await.unwrap().last_log_id).map_or(0, |last| last + 1);
        log.append(entries(next..next + 10), openraft::storage::IOFlushed::noop())
            .await
            .unwrap();
        let purged = index(log.get_log_state().await.unwrap().last_purged_log_id);
        assert_eq!(
            read_all(&mut log).await,
            (purged.map_or(0, |p| p + 1)..next + 10).collect::<Vec<_>>()
        );
        log.truncate_after(Some(log_id(1, next + 4))).await.unwrap();
        assert_eq!(read_all(&mut log).await.last(), Some(&(next + 4)));
        if round % 7 == 3 {
            log.purge(log_id(1, next)).await.unwrap();
            assert_eq!(read_all(&mut log).await, (next + 1..next + 5).collect::<Vec<_>>());
        }
    }
}

#[tokio::test]
async fn a_hole_is_refused() {
    let folder = TempDir::new().unwrap();
    let mut log = open(folder.path());
    log.save_vote(&vote(1)).await.unwrap();
    log.blocking_append(entries(0..3)).await.unwrap();
    assert!(log.blocking_append(entries(5..6)).await.is_err());
    assert_eq!(read_all(&mut log).await, [0, 1, 2]);
}

#[tokio::test]
async fn a_replication_message_is_bounded() {
    let folder = TempDir::new().unwrap();
    let mut log = open(folder.path());
    log.save_vote(&vote(1)).await.unwrap();
    let large = |index| {
        let mut proposal = proposal(index);
        if let Command::CreateTable(create) = &mut proposal.command {
            create.columns[0].name = "x".repeat(200 << 10);
        }
        entry(1, index, proposal)
    };
    log.blocking_append((1..40).map(large).collect::<Vec<_>>())
        .await
        .unwrap();
    let mut reader = log.get_log_reader().await;
    let some = reader.limited_get_log_entries(1, 40).await.unwrap();
    assert_eq!(some[0].log_id.index, 1);
    assert!((2..20).contains(&some.len()), "{} entries", some.len());
}

#[tokio::test]
async fn a_stream_of_entries_is_read_in_pieces_and_whole() {
    let folder = TempDir::new().unwrap();
    let mut log = open(folder.path());
    log.save_vote(&vote(1)).await.unwrap();
    log.blocking_append(entries(0..300)).await.unwrap();
    // Some of them not in the database yet, for all we know.
    log.append(entries(300..310), openraft::storage::IOFlushed::noop())
        .await
        .unwrap();
    let mut reader = log.get_log_reader().await;
    for (range, want) in [(0..310, 0..310), (17..303, 17..303), (305..400, 305..310), (5..5, 5..5)] {
        let found: Vec<_> = reader
            .entries_stream(range)
            .await
            .map(|e| e.unwrap().log_id.index)
            .collect()
            .await;
        assert_eq!(found, want.collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_failed_write_calls_the_hook_and_acknowledges_nothing() {
    let folder = TempDir::new().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let broken = Arc::new(AtomicBool::new(false));
    let on_failure: FailureHook = {
        let told = told.clone();
        Arc::new(move |message| told.lock().unwrap().push(message.to_owned()))
    };
    let fault = {
        let broken = broken.clone();
        Arc::new(move || broken.load(Ordering::SeqCst).then(|| std::io::Error::other("no space")))
    };
    let mut log = LogStore::open(
        folder.path(),
        LogOptions {
            on_failure,
            fault: Some(fault),
            ..LogOptions::default()
        },
    )
    .unwrap();
    log.save_vote(&vote(1)).await.unwrap();
    broken.store(true, Ordering::SeqCst);
    assert!(log.blocking_append(entries(0..1)).await.is_err());
    // Even if the disk comes back: nothing may be written behind what is lost.
    broken.store(false, Ordering::SeqCst);
    assert!(log.save_vote(&vote(2)).await.is_err());
    let told = told.lock().unwrap();
    assert_eq!(told.len(), 1);
    assert!(
        told[0].contains("no space") && told[0].contains("check the disk"),
        "{}",
        told[0]
    );
}

#[tokio::test]
async fn the_log_is_purged_only_after_the_gate_agrees() {
    let folder = TempDir::new().unwrap();
    let gate = |index: u64| {
        if index <= 5 {
            Ok(())
        } else {
            Err(std::io::Error::other("not on disk yet"))
        }
    };
    let mut log = open(folder.path()).with_purge_gate(Arc::new(gate));
    log.save_vote(&vote(1)).await.unwrap();
    log.blocking_append(entries(0..10)).await.unwrap();
    log.purge(log_id(1, 5)).await.unwrap();
    assert!(log.purge(log_id(1, 6)).await.is_err());
    assert_eq!(read_all(&mut log).await, [6, 7, 8, 9]);
}

#[tokio::test]
async fn a_log_cut_anywhere_behind_the_last_acknowledgement_has_everything_acknowledged() {
    let folder = TempDir::new().unwrap();
    let mut log = open(&folder.path().join("log"));
    log.save_vote(&vote(1)).await.unwrap();
    log.blocking_append(entries(0..30)).await.unwrap();
    log.save_vote(&vote(2)).await.unwrap();
    let synced = fs::metadata(newest_wal(&folder.path().join("log"))).unwrap().len();
    // Written, but as if the acknowledgement had never come back.
    log.blocking_append([entry(2, 30, proposal(30))]).await.unwrap();
    log.save_vote(&vote(3)).await.unwrap();
    log.blocking_append([entry(3, 31, proposal(31)), entry(3, 32, proposal(32))])
        .await
        .unwrap();
    let written = fs::metadata(newest_wal(&folder.path().join("log"))).unwrap().len();
    assert!(synced < written);

    let cuts = (0..=12)
        .map(|i| synced + (written - synced) * i / 12)
        .chain([synced + 1, synced + 6, synced + 8]);
    for (i, cut) in cuts.enumerate() {
        let copy = folder.path().join(format!("copy{i}"));
        copy_folder(&folder.path().join("log"), &copy);
        let wal = fs::OpenOptions::new().write(true).open(newest_wal(&copy)).unwrap();
        wal.set_len(cut).unwrap();
        drop(wal);
        let mut log = open(&copy);
        let found = read_all(&mut log).await;
        assert_eq!(
            found[..30],
            (0..30).collect::<Vec<_>>(),
            "cut at {cut} of {synced}..{written}"
        );
        let vote_found = log.get_log_reader().await.read_vote().await.unwrap().unwrap();
        assert!(vote_found >= vote(2), "cut at {cut}: {vote_found}");
        // And it goes on from there.
        let next = found.last().unwrap() + 1;
        log.save_vote(&vote(4)).await.unwrap();
        log.blocking_append([entry(4, next, proposal(next))]).await.unwrap();
    }
}

#[tokio::test]
async fn damage_in_the_middle_refuses_to_open_and_says_what_to_do() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("log");
    let mut log = open(&path);
    log.save_vote(&vote(1)).await.unwrap();
    for index in 0..60 {
        log.blocking_append(entries(index..index + 1)).await.unwrap();
    }
    for at in [200, 3000, 9000] {
        let copy = folder.path().join(format!("copy{at}"));
        copy_folder(&path, &copy);
        let wal = newest_wal(&copy);
        let mut bytes = fs::read(&wal).unwrap();
        assert!(bytes.len() > at + 2000, "{}", bytes.len());
        bytes[at] ^= 0x10;
        fs::write(&wal, bytes).unwrap();
        let Err(error) = LogStore::open(&copy, LogOptions::default()) else {
            panic!("opened in spite of damage at {at}")
        };
        assert!(matches!(error, LogOpenError::Damaged { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("move the whole data folder away") && text.contains("new node"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_missing_entry_refuses_to_open() {
    let folder = TempDir::new().unwrap();
    let mut log = open(folder.path());
    log.save_vote(&vote(1)).await.unwrap();
    log.blocking_append(entries(0..10)).await.unwrap();
    let db = &log.shared.db;
    db.delete_cf(db.cf_handle("entries").unwrap(), 5u64.to_be_bytes())
        .unwrap();
    drop(log);
    let Err(error) = LogStore::open(folder.path(), LogOptions::default()) else {
        panic!("opened with a hole")
    };
    assert!(error.to_string().contains("entry 6 follows entry 4"), "{error}");
}
