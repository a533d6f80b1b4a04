//! The store of several disks against the conformance suite, and what only it does.

use super::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

/// Three disks, all of which keep everything; and what was told of them.
#[derive(Debug)]
struct Three {
    places: Vec<Place>,
    /// The holders of files, as the catalog knows them.
    holders: Mutex<BTreeMap<String, BTreeSet<String>>>,
    silent: Mutex<BTreeSet<String>>,
    missed: Mutex<Vec<(String, String)>>,
}

impl Three {
    fn new(disks: impl IntoIterator<Item = Arc<dyn PartStore>>) -> Arc<Self> {
        let place = |(i, disk)| Place {
            id: NodeId(i as u64 + 1),
            node: format!("n{}", i + 1),
            disk,
        };
        Arc::new(Self {
            places: disks.into_iter().enumerate().map(place).collect(),
            holders: Mutex::default(),
            silent: Mutex::default(),
            missed: Mutex::default(),
        })
    }

    fn reached(&self) -> Vec<Place> {
        let silent = self.silent.lock().unwrap();
        self.places
            .iter()
            .filter(|place| !silent.contains(&place.node))
            .cloned()
            .collect()
    }

    fn silence(&self, node: &str) {
        self.silent.lock().unwrap().insert(node.into());
    }
}

impl Replicas for Three {
    fn targets(&self, _: &str) -> Result<Targets, StoreError> {
        Ok(Targets {
            min_replicas: 2,
            places: self.reached(),
            silent: self.silent.lock().unwrap().iter().cloned().collect(),
        })
    }

    fn sources(&self, path: &str) -> Vec<Place> {
        let holders = self.holders.lock().unwrap().get(path).cloned();
        let mut places = self.reached();
        places.retain(|place| holders.as_ref().is_none_or(|holders| holders.contains(&place.node)));
        places
    }

    fn all(&self) -> Vec<Place> {
        self.reached()
    }

    fn missed(&self, path: &str, place: &Place, error: &StoreError) {
        let what = format!("{}: {error}", place.node);
        self.missed.lock().unwrap().push((path.to_owned(), what));
    }
}

/// Replicated disks, with a catalog that knows where a file is when a put has succeeded.
#[derive(Debug)]
struct Catalogued {
    three: Arc<Three>,
    store: ReplicatedStore,
}

#[async_trait]
impl PartStore for Catalogued {
    async fn put(&self, path: &str, bytes: Bytes) -> Result<Vec<Holder>, StoreError> {
        let holders = self.store.put(path, bytes).await?;
        let names = holders.iter().map(|holder| format!("n{}", holder.node));
        self.three.holders.lock().unwrap().insert(path.into(), names.collect());
        Ok(holders)
    }

    async fn get(&self, path: &str) -> Result<Bytes, StoreError> {
        self.store.get(path).await
    }

    async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Piece, StoreError> {
        self.store.get_range(path, range).await
    }

    async fn delete(&self, path: &str) -> Result<(), StoreError> {
        self.store.delete(path).await?;
        self.three.holders.lock().unwrap().remove(path);
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<StoredFile>, StoreError> {
        self.store.list(prefix).await
    }

    fn reader(&self) -> Arc<dyn ObjectStore> {
        self.store.reader()
    }
}

/// Three disks in folders, and the store of them.
fn replicated() -> (Vec<tempfile::TempDir>, Arc<Three>, ReplicatedStore) {
    let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let disks = folders
        .iter()
        .zip(1..)
        .map(|(folder, node)| disk_in(folder.path(), node));
    let three = Three::new(disks.map(|disk| Arc::new(disk) as Arc<dyn PartStore>));
    (folders, three.clone(), ReplicatedStore::new(three))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicated_disks_conform() {
    let (_folders, _, store) = replicated();
    check(Arc::new(store)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicated_disks_conform_when_each_of_them_fails_by_itself() {
    for seed in 1..8 {
        let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let disks = folders.iter().zip(1..).map(|(folder, node)| {
            let disk = Arc::new(disk_in(folder.path(), node));
            Arc::new(Faulty::new(disk, seed * 10 + node, Some(folder.path()))) as Arc<dyn PartStore>
        });
        let three = Three::new(disks);
        let store = ReplicatedStore::new(three.clone());
        check(Arc::new(Catalogued { three, store })).await;
    }
}

#[tokio::test]
async fn a_put_names_those_that_hold_the_file_and_needs_enough_of_them() {
    let (_folders, three, store) = replicated();
    let nodes = |holders: Vec<Holder>| holders.iter().map(|h| h.node.0).collect::<BTreeSet<_>>();
    assert_eq!(nodes(store.put("1/0/1/a", "a".into()).await.unwrap()), [1, 2, 3].into());
    three.silence("n3");
    assert_eq!(nodes(store.put("1/0/1/b", "b".into()).await.unwrap()), [1, 2].into());
    three.silence("n2");
    let error = store.put("1/0/1/c", "c".into()).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "1/0/1/c is durable on 1 replicas, 2 are needed: not reached: n2, n3"
    );
}

#[tokio::test]
async fn a_path_is_listed_once_with_the_length_of_what_is_read_there() {
    for left in ["n1", "n2", "n3"] {
        let (_folders, three, store) = replicated();
        for other in ["n1", "n2", "n3"].iter().filter(|node| **node != left) {
            three.silence(other);
        }
        // On too few of them: it stands for nothing.
        assert!(store.put("1/0/1/a", "other".into()).await.is_err());
        three.silent.lock().unwrap().clear();
        three.silence(left);
        let store = Catalogued {
            three: three.clone(),
            store,
        };
        store.put("1/0/1/a", "one".into()).await.unwrap();
        three.silent.lock().unwrap().clear();
        assert_eq!(store.get("1/0/1/a").await.unwrap(), "one");
        for prefix in ["", "1/0", "1/0/1"] {
            let files = store.list(prefix).await.unwrap();
            let files: Vec<_> = files.iter().map(|file| (file.path.as_str(), file.bytes)).collect();
            assert_eq!(files, [("1/0/1/a", 3)], "left on {left}");
        }
        store.delete("1/0/1/a").await.unwrap();
        assert_eq!(store.list("").await.unwrap(), []);
    }
}

/// Never answers.
#[derive(Debug)]
struct Hanging;

#[async_trait]
impl PartStore for Hanging {
    async fn put(&self, _: &str, _: Bytes) -> Result<Vec<Holder>, StoreError> {
        std::future::pending().await
    }

    async fn get(&self, _: &str) -> Result<Bytes, StoreError> {
        std::future::pending().await
    }

    async fn delete(&self, _: &str) -> Result<(), StoreError> {
        std::future::pending().await
    }

    async fn list(&self, _: &str) -> Result<Vec<StoredFile>, StoreError> {
        std::future::pending().await
    }

    fn reader(&self) -> Arc<dyn ObjectStore> {
        unreachable!("nobody reads it")
    }
}

#[tokio::test]
async fn a_replica_that_hangs_is_not_waited_for_when_others_suffice() {
    let folders: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut disks: Vec<Arc<dyn PartStore>> = vec![Arc::new(Hanging)];
    disks.extend(
        folders
            .iter()
            .zip(1..)
            .map(|(f, n)| Arc::new(disk_in(f.path(), n)) as Arc<dyn PartStore>),
    );
    disks.rotate_left(1);
    let began = tokio::time::Instant::now();
    let holders = ReplicatedStore::new(Three::new(disks.clone()))
        .put("a", "a".into())
        .await
        .unwrap();
    assert_eq!(holders.len(), 2);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    // The first replica decides: without it nothing is said to be durable.
    disks.rotate_right(1);
    let store = ReplicatedStore::new(Three::new(disks));
    let put = tokio::time::timeout(Duration::from_secs(1), store.put("b", "b".into()));
    assert!(put.await.is_err(), "it was durable without the first replica");
}

#[tokio::test]
async fn a_flipped_bit_is_an_error_on_the_disk_and_no_matter_to_the_store() {
    let (folders, three, store) = replicated();
    let content: Bytes = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
    store.put("1/0/1/a", content.clone()).await.unwrap();
    let (disk, first) = (three.places[0].disk.clone(), folders[0].path());
    assert!(disk.get("1/0/1/a").await.unwrap() == content);
    flip(first, "1/0/1/a", 70_000);
    // Other blocks can be read; what is read is right.
    assert_eq!(disk.get_range("1/0/1/a", 0..100).await.unwrap().bytes, content[..100]);
    for error in [
        disk.get("1/0/1/a").await.unwrap_err(),
        disk.get_range("1/0/1/a", 69_000..69_001).await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    }
    assert!(store.get("1/0/1/a").await.unwrap() == content);
    let path = object_store::path::Path::parse("1/0/1/a").unwrap();
    let read = object_store::ObjectStoreExt::get_range(&*store.reader(), &path, 60_000..80_000).await;
    assert!(read.unwrap() == content[60_000..80_000]);
    let missed = three.missed.lock().unwrap().clone();
    assert_eq!(missed.len(), 2, "{missed:?}");
    assert!(missed[0].1.starts_with("n1: 1/0/1/a is damaged"), "{missed:?}");
    // Putting it again heals it.
    store.put("1/0/1/a", content.clone()).await.unwrap();
    assert!(disk.get("1/0/1/a").await.unwrap() == content);
}
