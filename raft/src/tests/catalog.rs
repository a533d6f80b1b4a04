//! The catalog: the same on every kind of store, exact about its version, and repeatable.

use super::{log::copy_folder, *};
use crate::{
    catalog_store::{CatalogStore, Snapshot},
    folder::OwnedFolder,
    snapshot::{SnapshotFiles, SnapshotFolder},
    types::Reply,
};
use openraft::{RaftSnapshotBuilder, storage::RaftStateMachine};
use std::{fs, path::Path};
use tempfile::TempDir;
use tidemill_core::{
    Version,
    view::{CatalogRead, MemView, Overlay},
};

fn open(folder: &Path) -> CatalogStore {
    CatalogStore::open(folder, crate::config::DEFAULT_MEMORY).unwrap()
}

async fn apply(store: &mut CatalogStore, entries: Vec<Entry>) {
    store
        .apply(futures::stream::iter(
            entries.into_iter().map(|entry| Ok((entry, None))),
        ))
        .await
        .unwrap();
}

fn digest(store: &CatalogStore) -> u128 {
    store.folder().pin().unwrap().digest().unwrap()
}

/// As if `snapshot` had arrived at the catalog in `root`: a copy of the files, in a folder of its own.
fn arrived(snapshot: &Snapshot, root: &Path) -> SnapshotFolder {
    let path = root.join("incoming/x");
    copy_folder(&snapshot.snapshot.folder.path(), &path);
    Arc::new(SnapshotFiles {
        folder: OwnedFolder::new(path, false),
    })
}

/// The same commands on the view in memory, one at a time.
fn in_memory(range: std::ops::Range<u64>) -> MemView {
    let mut memory = MemView::default();
    for index in range {
        let mut overlay = Overlay::new(&memory);
        drop(tidemill_core::apply(&mut overlay, Version(index), &proposal(index)).unwrap());
        let writes = overlay.into_writes();
        memory.write(writes);
    }
    memory
}

#[tokio::test]
async fn the_same_commands_give_the_same_digest_in_memory_and_on_disk() {
    let folder = TempDir::new().unwrap();
    let mut store = open(folder.path());
    // In runs of different lengths, and with a command that is refused (t7 exists).
    apply(&mut store, entries(0..1)).await;
    apply(&mut store, entries(1..50)).await;
    apply(&mut store, vec![entry(1, 50, proposal(7))]).await;
    apply(&mut store, entries(51..700)).await;
    let memory = in_memory(0..700);
    // The refused command took the place of t50, so the two differ before it is made up for.
    assert_ne!(memory.digest().unwrap(), digest(&store));
    let folder = TempDir::new().unwrap();
    let mut store = open(folder.path());
    apply(&mut store, entries(0..700)).await;
    assert_eq!(memory.digest().unwrap(), digest(&store));
    assert_eq!(memory.digest().unwrap(), memory.recomputed_digest());
    let pinned = store.folder().pin().unwrap();
    assert_eq!(pinned.list::<tidemill_core::catalog::Table>(&[]).unwrap().len(), 699);
    let of_table = pinned
        .list::<tidemill_core::catalog::Shard>(&3u64.to_be_bytes())
        .unwrap();
    assert_eq!(of_table.len(), 2);
}

#[tokio::test]
async fn a_pinned_state_does_not_move() {
    let folder = TempDir::new().unwrap();
    let mut store = open(folder.path());
    apply(&mut store, entries(0..10)).await;
    let before = store.folder().pin().unwrap();
    let digest_before = before.digest().unwrap();
    apply(&mut store, entries(10..20)).await;
    let after = store.folder().pin().unwrap();
    assert_eq!((before.version(), after.version()), (Version(9), Version(19)));
    assert_eq!(*store.folder().version().borrow(), Version(19));
    assert_eq!(before.digest().unwrap(), digest_before);
    assert_ne!(after.digest().unwrap(), digest_before);
}

#[tokio::test]
async fn lost_unsynced_bytes_make_it_older_and_the_log_makes_it_whole() {
    let folder = TempDir::new().unwrap();
    let root = folder.path().join("catalog");
    let mut store = open(&root);
    apply(&mut store, entries(0..40)).await;
    store.folder().sync_up_to(39).unwrap();
    let wal = |root: &Path| super::log::newest_wal(&root.join("000001"));
    let synced = fs::metadata(wal(&root)).unwrap().len();
    for index in 40..80 {
        apply(&mut store, entries(index..index + 1)).await;
    }
    let (want, written) = (digest(&store), fs::metadata(wal(&root)).unwrap().len());

    for i in 0..=10 {
        let copy = folder.path().join(format!("copy{i}"));
        copy_folder(&root, &copy);
        let cut = synced + (written - synced) * i / 10;
        fs::OpenOptions::new()
            .write(true)
            .open(wal(&copy))
            .unwrap()
            .set_len(cut)
            .unwrap();
        let mut store = open(&copy);
        let applied = index(store.applied_state().await.unwrap().0).unwrap();
        assert!((39..80).contains(&applied), "cut at {cut}: {applied}");
        assert_eq!(applied == 79, i == 10);
        assert_eq!(store.folder().pin().unwrap().version(), Version(applied));
        apply(&mut store, entries(applied + 1..80)).await;
        assert_eq!(digest(&store), want);
    }
}

#[tokio::test]
async fn the_log_may_not_be_purged_past_the_catalog() {
    let folder = TempDir::new().unwrap();
    let mut store = open(folder.path());
    apply(&mut store, entries(0..10)).await;
    store.folder().sync_up_to(9).unwrap();
    assert!(store.folder().sync_up_to(10).is_err());
}

#[tokio::test]
async fn a_snapshot_is_the_state_and_survives_its_origin() {
    let folder = TempDir::new().unwrap();
    let mut origin = open(&folder.path().join("a"));
    apply(&mut origin, entries(0..300)).await;
    let snapshot = origin.build_snapshot().await.unwrap();
    assert_eq!(index(snapshot.meta.last_log_id), Some(299));
    let want = digest(&origin);
    apply(&mut origin, entries(300..310)).await;

    let mut other = open(&folder.path().join("b"));
    apply(&mut other, entries(0..5)).await;
    let held = other.folder().pin().unwrap();
    let files = arrived(&snapshot, &folder.path().join("b"));
    other.install_snapshot(&snapshot.meta, files).await.unwrap();
    assert_eq!(digest(&other), want);
    assert_eq!(*other.folder().version().borrow(), Version(299));
    // Whoever still reads the old catalog can; then its folder goes.
    assert_eq!(held.version(), Version(4));
    assert_eq!(held.list::<tidemill_core::catalog::Table>(&[]).unwrap().len(), 4);
    assert!(folder.path().join("b/000001").exists());
    drop(held);
    assert!(!folder.path().join("b/000001").exists());

    apply(&mut other, entries(300..310)).await;
    drop(other);
    let mut other = open(&folder.path().join("b"));
    assert_eq!(digest(&other), digest(&origin));
    let kept = other.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(kept.meta, snapshot.meta);
}

#[tokio::test]
async fn one_that_was_being_built_does_not_take_the_place_of_a_newer_one() {
    let folder = TempDir::new().unwrap();
    let mut leader = open(&folder.path().join("leader"));
    apply(&mut leader, entries(0..20)).await;
    let newer = leader.build_snapshot().await.unwrap();
    let root = folder.path().join("follower");
    let mut follower = open(&root);
    apply(&mut follower, entries(0..10)).await;
    let older = follower.folder().copy().unwrap();
    let files = arrived(&newer, &root);
    follower.install_snapshot(&newer.meta, files).await.unwrap();
    follower.folder().adopt(&older.meta, &older.snapshot).unwrap();
    let current = follower.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(current.meta, newer.meta);
    drop((older, current, follower));
    // It has left nothing.
    assert_eq!(fs::read_dir(root.join("snapshots")).unwrap().count(), 1);
    let kept = open(&root).get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(kept.meta, newer.meta);
}

#[tokio::test]
async fn only_the_last_snapshot_is_kept() {
    let folder = TempDir::new().unwrap();
    let mut store = open(folder.path());
    apply(&mut store, entries(0..10)).await;
    let first = store.build_snapshot().await.unwrap();
    apply(&mut store, entries(10..20)).await;
    let second = store.build_snapshot().await.unwrap();
    let (first_path, second_path) = (first.snapshot.folder.path(), second.snapshot.folder.path());
    // Somebody is still sending the first.
    assert!(first_path.exists() && second_path.exists());
    drop(first);
    assert!(!first_path.exists());
    drop(second);
    assert!(second_path.exists());
}

#[tokio::test]
async fn a_crash_while_installing_leaves_the_old_or_the_new_state() {
    let folder = TempDir::new().unwrap();
    let root = folder.path().join("a");
    let mut store = open(&root);
    apply(&mut store, entries(0..30)).await;
    store.folder().sync_up_to(29).unwrap();
    let want = digest(&store);
    drop(store);

    // Before `CURRENT` was written: a second catalog, unfinished, and something half received.
    fs::create_dir_all(root.join("000002")).unwrap();
    fs::write(root.join("000002/CURRENT"), "MANIFEST-000099\n").unwrap();
    fs::create_dir_all(root.join("incoming/x")).unwrap();
    fs::create_dir_all(root.join("snapshots/y.building")).unwrap();
    fs::write(root.join("CURRENT.tmp"), "0000").unwrap();
    let store = open(&root);
    assert_eq!(digest(&store), want);
    drop(store);
    assert!(!root.join("000002").exists() && !root.join("incoming/x").exists());
    assert!(!root.join("snapshots/y.building").exists());

    // After it: the new one counts.
    let mut new = open(&folder.path().join("new"));
    apply(&mut new, entries(0..50)).await;
    new.folder().sync_up_to(49).unwrap();
    let newer = digest(&new);
    drop(new);
    copy_folder(&folder.path().join("new/000001"), &root.join("000002"));
    fs::write(root.join("CURRENT"), "000002").unwrap();
    assert_eq!(digest(&open(&root)), newer);
    assert!(!root.join("000001").exists());
}

#[tokio::test]
async fn a_snapshot_that_is_not_what_it_says_is_refused() {
    let folder = TempDir::new().unwrap();
    let mut origin = open(&folder.path().join("a"));
    apply(&mut origin, entries(0..30)).await;
    let snapshot = origin.build_snapshot().await.unwrap();
    let mut wrong = snapshot.meta.clone();
    wrong.last_log_id = Some(log_id(1, 30));
    let mut other = open(&folder.path().join("b"));
    apply(&mut other, entries(0..5)).await;
    assert!(other.install_snapshot(&wrong, snapshot.snapshot).await.is_err());
    assert_eq!(*other.folder().version().borrow(), Version(4));
    assert!(!folder.path().join("b/000002").exists());
}

#[test]
fn a_snapshot_that_arrives_damaged_is_refused_and_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("x");
    let begin = || crate::snapshot::SnapshotReceiver::new(path.clone()).unwrap();
    let meta = crate::types::SnapshotMeta::default();
    let checksum = xxhash_rust::xxh3::xxh3_64(b"abc");

    let mut receiver = begin();
    for name in ["", "../a", "a/b", ".hidden", "a b"] {
        assert!(receiver.file(name, 3).is_err(), "{name}");
    }
    receiver.file("a.sst", 3).unwrap();
    assert!(receiver.chunk(b"abcd").is_err());
    drop(receiver);
    assert!(!path.exists());

    let mut receiver = begin();
    receiver.file("a.sst", 3).unwrap();
    receiver.chunk(b"abd").unwrap();
    assert!(
        receiver
            .file_end(checksum)
            .unwrap_err()
            .to_string()
            .contains("checksum")
    );
    drop(receiver);

    let mut receiver = begin();
    receiver.file("a.sst", 3).unwrap();
    receiver.chunk(b"ab").unwrap();
    assert!(receiver.file_end(checksum).is_err());
    drop(receiver);

    let mut receiver = begin();
    receiver.file("a.sst", 3).unwrap();
    receiver.chunk(b"abc").unwrap();
    receiver.file_end(checksum).unwrap();
    assert!(receiver.finish(2, &meta).is_err());
    assert!(!path.exists());

    let mut receiver = begin();
    receiver.file("a.sst", 3).unwrap();
    receiver.chunk(b"abc").unwrap();
    receiver.file_end(checksum).unwrap();
    let files = receiver.finish(1, &meta).unwrap();
    assert_eq!(crate::snapshot::describe(&path).unwrap(), meta);
    drop(files);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_record_that_cannot_be_read_stops_the_node_and_refuses_nothing() {
    let folder = TempDir::new().unwrap();
    let mut store = open(folder.path());
    apply(&mut store, entries(0..10)).await;
    store.folder().spoil(tidemill_core::view::Kind::Meta, b"cluster");
    let entries = entries(10..12).into_iter().map(|entry| Ok((entry, None)));
    let error = store.apply(futures::stream::iter(entries)).await.unwrap_err();
    assert!(error.to_string().contains("cannot be applied"), "{error}");
    assert_eq!(index(store.applied_state().await.unwrap().0), Some(9));
}

#[test]
fn a_reply_can_be_decoded() {
    let reply = Reply(Some(Ok(tidemill_core::Response::Done)));
    let bytes = crate::types::encode(&reply).unwrap();
    assert_eq!(crate::types::decode::<Reply>(&bytes).unwrap(), reply);
    let entry = entry(3, 4, proposal(4));
    let bytes = crate::types::encode(&entry).unwrap();
    assert_eq!(crate::types::decode::<Entry>(&bytes).unwrap(), entry);
}
