//! What every part store must do, whatever is behind it.
//!
//! Written against the trait alone. Each check works in a folder of its own. Calls that failed for a reason that may
//! pass are repeated, as the trait says one may, so that the same suite holds for a store that loses
//! answers, is full for a moment, or cannot reach all of its disks.

use super::*;
use std::future::Future;

/// How often a call with unknown outcome is repeated.
const REPEATS: usize = 200;

/// All of it.
pub(super) async fn check(store: Arc<dyn PartStore>) {
    a_folder_is_no_file(&store).await;
    concurrent_puts_of_different(&store).await;
    check_objects(store).await;
}

/// What the S3 server of the tests does as well. It keeps objects as files and answers with an internal error when one is
/// asked for that is a folder there; and it looks whether an object exists before it writes, not in one step as S3 does.
pub(super) async fn check_objects(store: Arc<dyn PartStore>) {
    let store = &store;
    round_trip(store).await;
    overwriting(store).await;
    nested_prefixes(store).await;
    sizes(store).await;
    missing_files(store).await;
    escapes(store).await;
    deleting_and_putting_again(store).await;
    concurrent_puts_of_the_same(store).await;
    whole_files_only(store).await;
    reading_in_ranges(store).await;
}

async fn settled<T, F: Future<Output = Result<T, StoreError>>>(call: impl Fn() -> F) -> Result<T, StoreError> {
    for _ in 0..REPEATS {
        match call().await {
            Err(StoreError::Io { .. } | StoreError::NoSpace { .. } | StoreError::TooFewReplicas { .. }) => {}
            known => return known,
        }
    }
    call().await
}

async fn put(store: &Arc<dyn PartStore>, path: &str, bytes: impl Into<Bytes>) -> Result<(), StoreError> {
    let bytes = bytes.into();
    settled(|| store.put(path, bytes.clone())).await.map(drop)
}

async fn get(store: &Arc<dyn PartStore>, path: &str) -> Result<Bytes, StoreError> {
    settled(|| store.get(path)).await
}

async fn list(store: &Arc<dyn PartStore>, prefix: &str) -> Vec<(String, u64)> {
    let files = settled(|| store.list(prefix)).await.unwrap();
    files.into_iter().map(|file| (file.path, file.bytes)).collect()
}

async fn round_trip(store: &Arc<dyn PartStore>) {
    put(store, "trip/1/0/a.parquet", "rows").await.unwrap();
    assert_eq!(get(store, "trip/1/0/a.parquet").await.unwrap(), "rows");
    assert_eq!(list(store, "trip").await, [("trip/1/0/a.parquet".to_owned(), 4)]);
    settled(|| store.delete("trip/1/0/a.parquet")).await.unwrap();
    settled(|| store.delete("trip/1/0/a.parquet")).await.unwrap();
    assert!(list(store, "trip").await.is_empty());
}

async fn overwriting(store: &Arc<dyn PartStore>) {
    put(store, "over/a", "one").await.unwrap();
    put(store, "over/a", "one").await.unwrap();
    for other in ["two", "on", "one!", ""] {
        assert!(matches!(put(store, "over/a", other).await, Err(StoreError::Exists { path }) if path == "over/a"));
    }
    assert_eq!(get(store, "over/a").await.unwrap(), "one");
    assert_eq!(list(store, "over").await.len(), 1, "nothing else is left behind");
}

async fn nested_prefixes(store: &Arc<dyn PartStore>) {
    for path in ["nest/1/0/b", "nest/1/0/a", "nest/1/01/c", "nest/10/d", "nest/1.x"] {
        put(store, path, "x").await.unwrap();
    }
    let names = |files: Vec<(String, u64)>| files.into_iter().map(|(path, _)| path).collect::<Vec<_>>();
    assert_eq!(
        names(list(store, "nest/1/0").await),
        ["nest/1/0/a", "nest/1/0/b"],
        "folders, not beginnings of names"
    );
    assert_eq!(
        names(list(store, "nest/1/").await),
        ["nest/1/0/a", "nest/1/0/b", "nest/1/01/c"]
    );
    assert_eq!(list(store, "nest").await.len(), 5);
    assert!(list(store, "").await.len() >= 5);
    assert!(list(store, "nest/2").await.is_empty());
}

async fn sizes(store: &Arc<dyn PartStore>) {
    put(store, "size/empty", "").await.unwrap();
    assert_eq!(get(store, "size/empty").await.unwrap().len(), 0);
    let large: Bytes = (0..8_u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    put(store, "size/large", large.clone()).await.unwrap();
    assert!(get(store, "size/large").await.unwrap() == large);
    assert_eq!(
        list(store, "size").await,
        [("size/empty".to_owned(), 0), ("size/large".to_owned(), 8 << 20)]
    );
}

async fn missing_files(store: &Arc<dyn PartStore>) {
    put(store, "miss/a/b", "x").await.unwrap();
    for path in ["miss/x", "none/x"] {
        let error = get(store, path).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::NotFound { path: p } if p == path),
            "{error}"
        );
    }
    settled(|| store.delete("none/x")).await.unwrap();
}

async fn a_folder_is_no_file(store: &Arc<dyn PartStore>) {
    put(store, "folder/a/b", "x").await.unwrap();
    let error = get(store, "folder/a").await.unwrap_err();
    assert!(
        matches!(&error, StoreError::NotFound { path } if path == "folder/a"),
        "{error}"
    );
}

async fn escapes(store: &Arc<dyn PartStore>) {
    let paths = [
        "", "/", "/etc/x", "../x", "a/../x", "a/..", "a//b", "a/", "./a", "a/.tmp-1", "a#1", "a b", "a\\b", "ä",
    ];
    for path in paths {
        let refused = |error: &StoreError| matches!(error, StoreError::Path { .. });
        assert!(put(store, path, "x").await.is_err_and(|e| refused(&e)), "put {path:?}");
        assert!(get(store, path).await.is_err_and(|e| refused(&e)), "get {path:?}");
        assert!(
            settled(|| store.delete(path)).await.is_err_and(|e| refused(&e)),
            "delete {path:?}"
        );
    }
    for prefix in ["..", "/", "a/../..", "/etc"] {
        assert!(
            matches!(settled(|| store.list(prefix)).await, Err(StoreError::Path { .. })),
            "list {prefix:?}"
        );
    }
}

async fn deleting_and_putting_again(store: &Arc<dyn PartStore>) {
    put(store, "again/f/a", "one").await.unwrap();
    settled(|| store.delete("again/f/a")).await.unwrap();
    put(store, "again/f/a", "two").await.unwrap();
    assert_eq!(get(store, "again/f/a").await.unwrap(), "two");
}

async fn concurrent_puts_of_the_same(store: &Arc<dyn PartStore>) {
    let content = Bytes::from(vec![7; 300_000]);
    let puts: Vec<_> = (0..8)
        .map(|_| {
            let (store, content) = (store.clone(), content.clone());
            tokio::spawn(async move { put(&store, "same/new/folder/a", content).await })
        })
        .collect();
    for put in puts {
        put.await.unwrap().unwrap();
    }
    assert!(get(store, "same/new/folder/a").await.unwrap() == content);
    assert_eq!(list(store, "same").await.len(), 1);
}

async fn concurrent_puts_of_different(store: &Arc<dyn PartStore>) {
    for round in 0..5 {
        let path = format!("race/{round}/a");
        let puts: Vec<_> = (0..6_u8)
            .map(|i| {
                let (store, path) = (store.clone(), path.clone());
                tokio::spawn(async move { (i, put(&store, &path, vec![i; 100_000]).await) })
            })
            .collect();
        let mut winners = Vec::new();
        for put in puts {
            match put.await.unwrap() {
                (i, Ok(())) => winners.push(i),
                (_, Err(StoreError::Exists { .. })) => {}
                (_, Err(error)) => panic!("{error}"),
            }
        }
        assert_eq!(winners.len(), 1, "exactly one content is kept");
        assert!(get(store, &path).await.unwrap() == vec![winners[0]; 100_000]);
    }
}

async fn whole_files_only(store: &Arc<dyn PartStore>) {
    let size = 3 << 20;
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for i in 0..8 {
                put(&store, &format!("whole/{i}"), vec![1; size]).await.unwrap();
            }
        })
    };
    let mut done = false;
    while !done {
        done = writer.is_finished();
        for (path, bytes) in list(store, "whole").await {
            assert_eq!(bytes, size as u64, "{path} is listed before it is whole");
            assert_eq!(get(store, &path).await.unwrap().len(), size);
        }
        tokio::task::yield_now().await;
    }
    writer.await.unwrap();
    assert_eq!(list(store, "whole").await.len(), 8);
}

async fn reading_in_ranges(store: &Arc<dyn PartStore>) {
    use object_store::{GetOptions, GetRange, ObjectStoreExt};
    put(store, "range/1/a.parquet", "0123456789").await.unwrap();
    let piece = settled(|| store.get_range("range/1/a.parquet", 7..12)).await.unwrap();
    assert_eq!((piece.bytes, piece.total), (Bytes::from("789"), 10));
    assert!(settled(|| store.get_range("range/2", 0..1)).await.is_err());
    let path = object_store::path::Path::parse("range/1/a.parquet").unwrap();
    let reader = store.reader();
    // The library's errors do not tell what may pass from what may not.
    let read = async |range: Option<GetRange>| {
        let mut last = None;
        for _ in 0..REPEATS {
            let options = GetOptions {
                range: range.clone(),
                ..GetOptions::default()
            };
            match reader.get_opts(&path, options).await {
                Ok(found) => return (found.range.clone(), found.meta.size, found.bytes().await.unwrap()),
                Err(error) => last = Some(error),
            }
        }
        panic!("{range:?}: {last:?}");
    };
    assert_eq!(
        read(Some(GetRange::Bounded(2..5))).await,
        (2..5, 10, Bytes::from("234"))
    );
    assert_eq!(read(Some(GetRange::Suffix(4))).await, (6..10, 10, Bytes::from("6789")));
    assert_eq!(read(Some(GetRange::Offset(8))).await, (8..10, 10, Bytes::from("89")));
    assert_eq!(read(None).await, (0..10, 10, Bytes::from("0123456789")));
    let missing = object_store::path::Path::parse("range/1/b.parquet").unwrap();
    assert!(reader.head(&missing).await.is_err());
    // Across the borders of whatever blocks a store may have.
    let large: Bytes = (0..300_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    put(store, "range/large", large.clone()).await.unwrap();
    for range in [
        0..1,
        65_535..65_537,
        65_536..131_072,
        1..299_999,
        299_999..300_000,
        131_072..131_072,
    ] {
        let piece = settled(|| store.get_range("range/large", range.clone())).await.unwrap();
        assert!(
            piece.bytes == large[range.start as usize..range.end as usize],
            "{range:?}"
        );
    }
}
