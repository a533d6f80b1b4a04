//! The stores against the conformance suite, plain and with faults; and what only folders can do.

mod replicated;

use super::conformance::{check, check_objects};
use super::disk::flip;
use super::*;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tidemill_core::{DiskId, NodeId};

fn open_in(scheme: &str, folder: &Path) -> Arc<dyn PartStore> {
    open(&format!("{scheme}://{}", folder.display()), &S3Options::default()).unwrap()
}

/// What goes wrong with a store: calls that never happen, answers that are lost, a disk that is full for a moment, files
/// that are cut short, and slowness. Which and when is decided by a seed.
#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn PartStore>,
    state: AtomicU64,
    /// The folder of the store, where files can be cut short.
    folder: Option<PathBuf>,
}

impl Faulty {
    fn new(inner: Arc<dyn PartStore>, seed: u64, folder: Option<&Path>) -> Self {
        Self {
            inner,
            state: AtomicU64::new(seed),
            folder: folder.map(Path::to_owned),
        }
    }

    fn dice(&self, sides: u64) -> u64 {
        let n = self.state.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        let mixed = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed ^ (mixed >> 27)) % sides
    }

    async fn maybe_fail(&self, path: &str) -> Result<(), StoreError> {
        match self.dice(16) {
            0..=2 => Err(StoreError::Io {
                action: "reach",
                path: path.to_owned(),
                source: "injected fault".into(),
            }),
            3 => Err(StoreError::NoSpace {
                path: path.to_owned(),
                source: "injected fault".into(),
            }),
            4..=5 => {
                tokio::time::sleep(Duration::from_millis(self.dice(5))).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Leaves the beginning of a file behind, as a crash in the middle of writing may.
    fn maybe_cut_short(&self, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let Some(folder) = self.folder.as_ref().filter(|_| self.dice(8) == 0) else {
            return Ok(());
        };
        let target = folder.join(path);
        if check_path(path).is_err() {
            return Ok(());
        }
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        // Only where nothing is, decided in one step: no crash cuts short what another call has finished meanwhile.
        match File::create_new(&target) {
            Ok(mut file) => file.write_all(&bytes[..bytes.len() / 2]).unwrap(),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
            Err(error) => panic!("{}: {error}", target.display()),
        }
        Err(StoreError::Io {
            action: "write",
            path: path.to_owned(),
            source: "injected short write".into(),
        })
    }
}

#[async_trait]
impl PartStore for Faulty {
    async fn put(&self, path: &str, bytes: Bytes) -> Result<Vec<Holder>, StoreError> {
        self.maybe_fail(path).await?;
        self.maybe_cut_short(path, &bytes)?;
        let put = self.inner.put(path, bytes).await?;
        self.maybe_fail(path).await?;
        Ok(put)
    }

    async fn get(&self, path: &str) -> Result<Bytes, StoreError> {
        self.maybe_fail(path).await?;
        self.inner.get(path).await
    }

    async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Piece, StoreError> {
        self.maybe_fail(path).await?;
        self.inner.get_range(path, range).await
    }

    async fn delete(&self, path: &str) -> Result<(), StoreError> {
        self.maybe_fail(path).await?;
        self.inner.delete(path).await?;
        self.maybe_fail(path).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<StoredFile>, StoreError> {
        self.maybe_fail(prefix).await?;
        self.inner.list(prefix).await
    }

    fn reader(&self) -> Arc<dyn ObjectStore> {
        self.inner.reader()
    }
}

fn disk_in(folder: &Path, node: u64) -> Disk {
    let id = DiskId(u128::from(node) + 100);
    DiskFolder::open(folder, id).unwrap().of(NodeId(node))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_store_conforms() {
    let folder = tempfile::tempdir().unwrap();
    check(open_in("local", folder.path())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_object_store_conforms() {
    let folder = tempfile::tempdir().unwrap();
    check(open_in("file", folder.path())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_conform_when_answers_are_lost() {
    for (scheme, seed) in [("local", 1), ("file", 2)] {
        let folder = tempfile::tempdir().unwrap();
        check(Arc::new(Faulty::new(open_in(scheme, folder.path()), seed, None))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_conforms() {
    let folder = tempfile::tempdir().unwrap();
    check(Arc::new(disk_in(folder.path(), 1))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_conforms_when_calls_fail_and_files_are_cut_short() {
    for seed in 1..4 {
        let folder = tempfile::tempdir().unwrap();
        let disk = Arc::new(disk_in(folder.path(), 1));
        check(Arc::new(Faulty::new(disk, seed, Some(folder.path())))).await;
    }
}

#[tokio::test]
async fn damage_of_every_kind_is_noticed() {
    type Damage = fn(&Path);
    let cases: [(&str, Damage); 5] = [
        ("cut", |f| {
            let file = fs::File::options().write(true).open(f.join("a")).unwrap();
            file.set_len(99_999).unwrap();
        }),
        ("grown", |f| {
            let mut file = fs::File::options().append(true).open(f.join("a")).unwrap();
            file.write_all(b"x").unwrap();
        }),
        ("emptied", |f| fs::write(f.join("a"), "").unwrap()),
        ("checksums flipped", |f| flip(f, "a.sums", 20)),
        ("checksums cut", |f| fs::write(f.join("a.sums"), "TMSUMS1").unwrap()),
    ];
    for (what, damage) in cases {
        let folder = tempfile::tempdir().unwrap();
        let content = Bytes::from(vec![7; 100_000]);
        disk_in(folder.path(), 1).put("a", content.clone()).await.unwrap();
        damage(folder.path());
        let disk = disk_in(folder.path(), 1);
        let error = disk.get("a").await.unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{what}: {error}");
        disk.put("a", content.clone()).await.unwrap();
        assert!(disk.get("a").await.unwrap() == content, "{what}");
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = disk_in(folder.path(), 1);
    disk.put("a", "a".into()).await.unwrap();
    disk.get_range("a", 0..1).await.unwrap();
    fs::rename(folder.path().join("a.sums"), folder.path().join("b.sums")).unwrap();
    assert!(matches!(disk.get("a").await, Err(StoreError::NotFound { .. })));
    fs::rename(folder.path().join("b.sums"), folder.path().join("a.sums")).unwrap();
    assert_eq!(disk.get("a").await.unwrap(), "a");
    fs::remove_file(folder.path().join("a")).unwrap();
    assert!(matches!(disk.get("a").await, Err(StoreError::NotFound { .. })));
}

#[tokio::test]
async fn a_disk_keeps_its_id_belongs_to_one_process_and_is_no_other_folder() {
    let folder = tempfile::tempdir().unwrap();
    let open = |id| DiskFolder::open(folder.path(), DiskId(id));
    let first = open(1).unwrap();
    let error = open(2).unwrap_err().to_string();
    assert!(error.contains("another process uses it"), "{error}");
    drop(first);
    assert_eq!(open(2).unwrap().id(), DiskId(1));
    let disk = open(2).unwrap().of(NodeId(1));
    disk.put("1/0/1/a", "a".into()).await.unwrap();
    drop(disk);
    fs::remove_file(folder.path().join("disk.id")).unwrap();
    let error = open(3).unwrap_err().to_string();
    assert!(error.contains("it has files (1) and no disk.id"), "{error}");
    fs::remove_dir_all(folder.path().join("1")).unwrap();
    assert_eq!(open(3).unwrap().id(), DiskId(3));
}

/// A server with one bucket, from `scripts/s3`.
struct S3Server {
    folder: tempfile::TempDir,
    options: S3Options,
}

impl S3Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let said = Self::script(&folder, &["up", "bucket"]);
        let options = S3Options {
            endpoint: said.lines().last().map(str::to_owned),
            region: Some("us-east-1".into()),
            access_key_id: Some("tidemill".into()),
            secret_access_key: Some("tidemill".into()),
        };
        Self { folder, options }
    }

    fn script(folder: &tempfile::TempDir, words: &[&str]) -> String {
        // Asked when run: checkouts may share a target folder.
        let package = std::env::var("CARGO_MANIFEST_DIR").unwrap();
        let mut command = std::process::Command::new(Path::new(&package).join("../scripts/s3"));
        let done = command.args(words).arg("--dir").arg(folder.path()).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        Self::script(&self.folder, &["down"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_conforms_plain_and_when_answers_are_lost() {
    let server = S3Server::start();
    check_objects(open("s3://bucket/some/prefix", &server.options).unwrap()).await;
    let store = open("s3://bucket", &server.options).unwrap();
    check_objects(Arc::new(Faulty::new(store, 5, None))).await;
}

#[tokio::test]
async fn what_keeps_a_bucket_from_being_used_is_said() {
    let server = S3Server::start();
    let wrong = S3Options {
        secret_access_key: Some("no".into()),
        ..server.options.clone()
    };
    assert!(!format!("{wrong:?}").contains("no\""), "a secret is shown");
    let error = open("s3://bucket", &wrong)
        .unwrap()
        .put("a", "a".into())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("SignatureDoesNotMatch"), "{error}");
    let error = open("s3://bucket", &server.options)
        .unwrap()
        .get("a")
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn both_stores_lay_files_out_alike() {
    let folder = tempfile::tempdir().unwrap();
    let (local, file) = (open_in("local", folder.path()), open_in("file", folder.path()));
    local.put("1/0/1/a.parquet", "a".into()).await.unwrap();
    file.put("1/0/1/b.parquet", "b".into()).await.unwrap();
    assert_eq!(file.get("1/0/1/a.parquet").await.unwrap(), "a");
    assert_eq!(local.list("").await.unwrap(), file.list("").await.unwrap());
    assert!(matches!(
        file.put("1/0/1/a.parquet", "c".into()).await,
        Err(StoreError::Exists { .. })
    ));
    file.put("1/0/1/a.parquet", "a".into()).await.unwrap();
}

#[tokio::test]
async fn leftovers_are_not_listed_and_only_dead_writers_lose_them() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("1/0");
    fs::create_dir_all(&inside).unwrap();
    for name in [".tmp-1-2-3", ".tmp-4-5-6", "a.parquet#1"] {
        fs::write(inside.join(name), "half").unwrap();
    }
    let living = fs::File::open(inside.join(".tmp-4-5-6")).unwrap();
    living.try_lock().unwrap();
    for scheme in ["file", "local"] {
        assert!(open_in(scheme, folder.path()).list("").await.unwrap().is_empty());
    }
    let mut left: Vec<_> = fs::read_dir(&inside).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [".tmp-4-5-6", "a.parquet#1"]);
}

#[tokio::test]
async fn folders_removed_by_others_are_made_again() {
    for scheme in ["local", "file"] {
        let folder = tempfile::tempdir().unwrap();
        let store = open_in(scheme, folder.path());
        store.put("1/0/a", "a".into()).await.unwrap();
        fs::remove_dir_all(folder.path().join("1")).unwrap();
        store.put("1/0/b", "b".into()).await.unwrap();
        assert_eq!(store.get("1/0/b").await.unwrap(), "b");
    }
}

#[tokio::test]
async fn a_file_where_a_folder_should_be_is_an_error_of_the_put() {
    for scheme in ["local", "file"] {
        let folder = tempfile::tempdir().unwrap();
        let store = open_in(scheme, folder.path());
        store.put("1/a", "a".into()).await.unwrap();
        assert!(matches!(store.put("1/a/b", "b".into()).await, Err(StoreError::Io { path, .. }) if path == "1/a/b"));
    }
}

#[test]
fn other_urls_are_refused_with_what_is_possible() {
    for url in [
        "gs://bucket/x",
        "s3:///x",
        "/srv/parts",
        "file://relative",
        "local:/x",
        "",
    ] {
        let error = open(url, &S3Options::default()).unwrap_err().to_string();
        assert!(error.contains("file:///absolute/folder"), "{error}");
    }
}

#[test]
fn a_full_disk_is_told_apart() {
    let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
    assert!(matches!(io_error("write", "a", full()), StoreError::NoSpace { path, .. } if path == "a"));
}

#[test]
fn a_missing_folder_is_made() {
    let folder = tempfile::tempdir().unwrap();
    for scheme in ["local", "file"] {
        let deep = folder.path().join(scheme).join("a/b");
        open_in(scheme, &deep);
        assert!(deep.is_dir());
    }
}
