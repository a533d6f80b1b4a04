//! Power cuts and damage: what was acknowledged is there, or the log refuses.

use super::*;
use std::fs;

/// The one log file of RocksDB that grows.
pub(super) fn newest_log(folder: &Path) -> PathBuf {
    of_kind(folder, "log").into_iter().max().unwrap()
}

fn of_kind(folder: &Path, kind: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|e| e == kind))
        .collect()
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "LOCK" {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    assert!(bytes.len() > at, "{} has {} bytes", path.display(), bytes.len());
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

fn refusal(folder: &Path) -> String {
    match Wal::open(folder, WalOptions::default()) {
        Ok(_) => panic!("opened in spite of the damage"),
        Err(error @ WalError::Damaged { .. }) => error.to_string(),
        Err(other) => panic!("not told as damage: {other}"),
    }
}

#[test]
fn a_log_cut_anywhere_behind_the_last_acknowledgement_has_everything_acknowledged() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("wal");
    let wal = open(&path);
    for o in 0..20 {
        wal.append(shard(0), EPOCH, &[full(key(0, 1), o * 5, o * 5 + 5)])
            .unwrap();
    }
    let synced = fs::metadata(newest_log(&path)).unwrap().len();
    // Written, but as if the acknowledgement had never come back; the last of several chunks.
    wal.append(shard(0), EPOCH, &[full(key(0, 1), 100, 105), full(key(0, 1), 105, 110)])
        .unwrap();
    wal.append(shard(0), EPOCH, &[full(key(0, 1), 110, 111)]).unwrap();
    let written = fs::metadata(newest_log(&path)).unwrap().len();
    assert!(synced < written);
    let even = (0..=16).map(|i| synced + (written - synced) * i / 16);
    let mut ends = std::collections::BTreeSet::new();
    for cut in even.chain([synced + 1, synced + 6, synced + 8]) {
        let copy = folder.path().join(format!("copy{cut}"));
        copy_folder(&path, &copy);
        fs::OpenOptions::new()
            .write(true)
            .open(newest_log(&copy))
            .unwrap()
            .set_len(cut)
            .unwrap();
        let wal = open(&copy);
        let end = replayed_to(&wal, shard(0), key(0, 1), 0);
        ends.insert(end);
        // And it goes on from there.
        wal.append(shard(0), EPOCH, &[full(key(0, 1), end, end + 4)]).unwrap();
        drop(wal);
        assert_eq!(replayed_to(&open(&copy), shard(0), key(0, 1), 0), end + 4);
    }
    // All of an append or none of it, and nothing less than what was acknowledged.
    assert_eq!(Vec::from_iter(ends), [100, 110, 111]);
}

#[test]
fn damage_in_the_middle_refuses_to_open_and_says_what_to_do() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("wal");
    let wal = open(&path);
    for o in 0..60 {
        wal.append(shard(0), EPOCH, &[full(key(0, 1), o * 5, o * 5 + 5)])
            .unwrap();
    }
    for at in [200, 3000, 9000] {
        let copy = folder.path().join(format!("copy{at}"));
        copy_folder(&path, &copy);
        flip(&newest_log(&copy), at);
        let text = refusal(&copy);
        assert!(
            text.contains("nothing is skipped") && text.contains("Move this folder away"),
            "{text}"
        );
    }
}

#[test]
fn damage_in_what_was_moved_into_tables_and_blob_files_is_refused_too() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("wal");
    let wal = open(&path);
    for o in 0..20 {
        // Small ones for the tables, large ones for the blob files.
        wal.append(shard(0), EPOCH, &[full(key(0, 1), o * 5, o * 5 + 5)])
            .unwrap();
        wal.append(shard(0), EPOCH, &[full(key(1, 1), o * 5000, o * 5000 + 5000)])
            .unwrap();
    }
    drop(wal);
    // Opening moves what the log files hold into tables.
    let wal = open(&path);
    assert_eq!(replayed_to(&wal, shard(0), key(1, 1), 0), 100_000);
    drop(wal);
    for kind in ["sst", "blob"] {
        let files = of_kind(&path, kind);
        assert!(!files.is_empty(), "there is no {kind} file");
        let copy = folder.path().join(format!("copy-{kind}"));
        copy_folder(&path, &copy);
        flip(&of_kind(&copy, kind)[0], 300);
        refusal(&copy);
    }
}

#[test]
fn a_log_file_that_is_gone_is_missed() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("wal");
    let wal = open(&path);
    wal.append(shard(0), EPOCH, &[full(key(0, 1), 0, 5)]).unwrap();
    wal.append(shard(0), EPOCH, &[full(key(0, 1), 5, 9)]).unwrap();
    drop(wal);
    drop(open(&path));
    let copy = folder.path().join("copy");
    copy_folder(&path, &copy);
    of_kind(&copy, "sst")
        .iter()
        .for_each(|file| fs::remove_file(file).unwrap());
    assert!(Wal::open(&copy, WalOptions::default()).is_err());
}
