//! The disk: it passes everything through, and each trouble is what it says it is.

use rand::SeedableRng;
use rand::rngs::StdRng;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tidemill_chaos_tests::fault::disk::{Disk, Kept, Troubles};

struct Mounted {
    disk: Disk,
    at: PathBuf,
    rng: StdRng,
    // Last, so that it is removed when the disk is not mounted any more.
    _folder: tempfile::TempDir,
}

fn mounted() -> Mounted {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("data");
    let disk = Disk::mount(&at, &folder.path().join("disk")).unwrap();
    Mounted {
        disk,
        at,
        rng: StdRng::seed_from_u64(1),
        _folder: folder,
    }
}

fn sync_folder(folder: &Path) {
    File::open(folder).unwrap().sync_all().unwrap();
}

fn durable(path: &Path, text: &[u8]) -> File {
    let mut file = File::options().create(true).append(true).read(true).open(path).unwrap();
    file.write_all(text).unwrap();
    file.sync_all().unwrap();
    sync_folder(path.parent().unwrap());
    file
}

#[test]
fn what_is_done_through_it_is_done() {
    let m = mounted();
    fs::create_dir_all(m.at.join("a/b")).unwrap();
    fs::write(m.at.join("a/b/one"), b"1").unwrap();
    fs::rename(m.at.join("a"), m.at.join("c")).unwrap();
    fs::hard_link(m.at.join("c/b/one"), m.at.join("two")).unwrap();
    fs::write(m.at.join("two"), b"22").unwrap();
    assert_eq!(fs::read(m.at.join("c/b/one")).unwrap(), b"22");
    fs::remove_file(m.at.join("c/b/one")).unwrap();
    fs::remove_dir(m.at.join("c/b")).unwrap();
    let mut names: Vec<_> = fs::read_dir(&m.at).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["c", "two"]);
    // A file that was removed goes on under its handle.
    let file = File::options().read(true).write(true).open(m.at.join("two")).unwrap();
    fs::remove_file(m.at.join("two")).unwrap();
    file.write_all_at(b"333", 2).unwrap();
    let mut read = [0; 5];
    file.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(&read, b"22333");
    assert_eq!(file.metadata().unwrap().len(), 5);
    file.set_len(1).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 1);
    // It lies where the harness can look at it.
    assert!(m.disk.folder().join("c").is_dir());
}

#[test]
fn a_power_cut_loses_what_was_not_synced_and_nothing_else() {
    let mut m = mounted();
    let mut kept = durable(&m.at.join("kept"), b"synced");
    for name in ["overwritten", "removed", "old name", "replaced"] {
        durable(&m.at.join(name), name.as_bytes());
    }
    kept.write_all(b", not synced").unwrap();
    fs::write(m.at.join("overwritten"), b"after").unwrap();
    fs::remove_file(m.at.join("removed")).unwrap();
    fs::rename(m.at.join("old name"), m.at.join("replaced")).unwrap();
    // Its bytes are synced; its name is not.
    File::create(m.at.join("nameless")).unwrap().sync_all().unwrap();
    drop(kept);
    let lost = m.disk.cut_power(Kept::Nothing, &mut m.rng).unwrap();
    assert_eq!(fs::read(m.at.join("kept")).unwrap(), b"synced");
    for name in ["overwritten", "removed", "old name", "replaced"] {
        assert_eq!(fs::read(m.at.join(name)).unwrap(), name.as_bytes());
    }
    assert!(!m.at.join("nameless").exists());
    assert_eq!((lost.bytes, lost.names), (12 + 5, 3), "{lost:?}");

    // Nothing is left to lose, and what is synced in time stays.
    File::create(m.at.join("nameless")).unwrap().sync_all().unwrap();
    sync_folder(&m.at);
    assert_eq!(m.disk.cut_power(Kept::Nothing, &mut m.rng).unwrap(), Default::default());
    assert!(m.at.join("nameless").exists());
}

#[test]
fn a_lying_sync_loses_exactly_what_it_said_was_synced() {
    let mut m = mounted();
    let mut file = durable(&m.at.join("log"), b"true");
    m.disk.trouble(Troubles {
        lying: &[""],
        ..Troubles::default()
    });
    file.write_all(b" and false").unwrap();
    file.sync_all().unwrap();
    durable(&m.at.join("new"), b"never there");
    assert_eq!(fs::read(m.at.join("log")).unwrap(), b"true and false");
    assert!(m.disk.done().bad_syncs.load(Ordering::Relaxed) >= 3);
    drop(file);
    m.disk.cut_power(Kept::Nothing, &mut m.rng).unwrap();
    assert_eq!(fs::read(m.at.join("log")).unwrap(), b"true");
    assert!(!m.at.join("new").exists());
}

#[test]
fn a_failed_sync_is_told_and_its_bytes_are_never_durable() {
    let mut m = mounted();
    let mut file = durable(&m.at.join("log"), b"one ");
    m.disk.trouble(Troubles {
        failing_syncs: 1,
        ..Troubles::default()
    });
    file.write_all(b"two ").unwrap();
    assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(5));
    // The next one says that all is well, and the bytes before are not there for it.
    file.write_all(b"three").unwrap();
    file.sync_all().unwrap();
    assert_eq!(fs::read(m.at.join("log")).unwrap(), b"one two three");
    drop(file);
    m.disk.cut_power(Kept::Nothing, &mut m.rng).unwrap();
    assert_eq!(fs::read(m.at.join("log")).unwrap(), b"one \0\0\0\0three");
}

#[test]
fn a_slow_sync_takes_that_long_and_holds_up_nobody_else() {
    let m = mounted();
    let slow = Duration::from_millis(400);
    m.disk.trouble(Troubles {
        sync_delay: slow,
        ..Troubles::default()
    });
    let began = Instant::now();
    std::thread::scope(|scope| {
        for i in 0..20 {
            let path = m.at.join(i.to_string());
            scope.spawn(move || File::create(path).unwrap().sync_all().unwrap());
        }
        std::thread::sleep(slow / 4);
        fs::write(m.at.join("other"), b"quick").unwrap();
        assert!(began.elapsed() < slow, "{:?}", began.elapsed());
    });
    assert!(
        began.elapsed() >= slow && began.elapsed() < slow * 4,
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn a_full_disk_takes_so_many_bytes_and_more_when_something_is_deleted() {
    let m = mounted();
    fs::write(m.at.join("ballast"), vec![7; 1000]).unwrap();
    m.disk.trouble(Troubles {
        space: Some(100),
        ..Troubles::default()
    });
    let error = fs::write(m.at.join("big"), vec![1; 300]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(28));
    assert_eq!(
        fs::metadata(m.at.join("big")).unwrap().len(),
        100,
        "a disk is filled to the last byte"
    );
    assert_eq!(File::create(m.at.join("none")).unwrap_err().raw_os_error(), Some(28));
    fs::write(m.at.join("ballast"), b"overwriting needs no space").unwrap();
    fs::remove_file(m.at.join("ballast")).unwrap();
    fs::write(m.at.join("fits"), vec![1; 1000]).unwrap();
    m.disk.trouble(Troubles::default());
    fs::write(m.at.join("big"), vec![1; 300]).unwrap();
    assert!(m.disk.done().refused.load(Ordering::Relaxed) >= 2);
}

#[test]
fn reads_fail_as_often_as_they_are_told_to() {
    let m = mounted();
    fs::write(m.at.join("file"), vec![1; 10]).unwrap();
    m.disk.trouble(Troubles {
        failing_reads: Some(4),
        ..Troubles::default()
    });
    let failed = (0..400).filter(|_| fs::read(m.at.join("file")).is_err()).count();
    assert!((40..250).contains(&failed), "{failed} of 400 reads failed");
    m.disk.trouble(Troubles::default());
    assert_eq!(fs::read(m.at.join("file")).unwrap(), vec![1; 10]);
}

#[test]
fn a_torn_write_leaves_a_beginning() {
    let mut m = mounted();
    let mut torn = 0;
    for round in 0..30 {
        let path = m.at.join(round.to_string());
        let mut file = durable(&path, b"head");
        for letter in [b'a', b'b', b'c'] {
            file.write_all(&[letter; 100]).unwrap();
        }
        drop(file);
        let lost = m.disk.cut_power(Kept::Some, &mut m.rng).unwrap();
        let left = fs::read(&path).unwrap();
        let whole = [b"head".as_slice(), &[b'a'; 100], &[b'b'; 100], &[b'c'; 100]].concat();
        assert!(whole.starts_with(&left) && left.len() >= 4, "{left:?}");
        assert_eq!(lost.bytes as usize, whole.len() - left.len());
        torn += u64::from(!(left.len() - 4).is_multiple_of(100));
    }
    assert!(torn > 5, "{torn} of 30 writes were torn");
}
