//! openraft's own conformance suite for stores.

use crate::{
    catalog_store::CatalogStore,
    log_store::{LogOptions, LogStore},
    types::TypeConfig,
};
use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};
use tempfile::TempDir;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, CatalogStore, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, CatalogStore), StorageError<TypeConfig>> {
        let folder = TempDir::new().unwrap();
        let log = LogStore::open(&folder.path().join("raft-log"), LogOptions::default()).unwrap();
        let catalog = CatalogStore::open(&folder.path().join("catalog"), crate::config::DEFAULT_MEMORY).unwrap();
        Ok((folder, log, catalog))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stores_pass_openrafts_suite() {
    Suite::test_all(Builder).await.unwrap();
}
