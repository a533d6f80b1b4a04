//! The stores against the conformance suite, plain and with faults; and what only folders can do.

use super::conformance::check;
use super::*;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

fn open_in(scheme: &str, folder: &Path) -> Arc<dyn PartStore> {
    open(&format!("{scheme}://{}", folder.display())).unwrap()
}

/// Loses calls before they happen, and answers after. Which ones is decided by a seed.
#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn PartStore>,
    state: AtomicU64,
}

impl Faulty {
    fn new(inner: Arc<dyn PartStore>, seed: u64) -> Self {
        Self {
            inner,
            state: AtomicU64::new(seed),
        }
    }

    fn maybe_fail(&self, path: &str) -> Result<(), StoreError> {
        let n = self.state.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        let mixed = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        match (mixed ^ (mixed >> 27)) % 4 {
            0 => Err(StoreError::Io {
                action: "reach",
                path: path.to_owned(),
                source: "injected fault".into(),
            }),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl PartStore for Faulty {
    async fn put(&self, path: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.maybe_fail(path)?;
        self.inner.put(path, bytes).await?;
        self.maybe_fail(path)
    }

    async fn get(&self, path: &str) -> Result<Bytes, StoreError> {
        self.maybe_fail(path)?;
        self.inner.get(path).await
    }

    async fn delete(&self, path: &str) -> Result<(), StoreError> {
        self.maybe_fail(path)?;
        self.inner.delete(path).await?;
        self.maybe_fail(path)
    }

    async fn list(&self, prefix: &str) -> Result<Vec<StoredFile>, StoreError> {
        self.maybe_fail(prefix)?;
        self.inner.list(prefix).await
    }

    fn reader(&self) -> Arc<dyn ObjectStore> {
        self.inner.reader()
    }
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
        check(Arc::new(Faulty::new(open_in(scheme, folder.path()), seed))).await;
    }
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
    for url in ["s3://bucket/x", "/srv/parts", "file://relative", "local:/x", ""] {
        let error = open(url).unwrap_err().to_string();
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
