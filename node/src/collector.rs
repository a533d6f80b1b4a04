//! The collector: deletes part files that nothing refers to and that can never be committed.
//!
//! Two kinds. *Buried* files were committed and then dropped; the catalog keeps a tombstone, and the file
//! goes when no running query reads a version from before. *Orphans* were written and never
//! committed; one goes when a linearizable state shows that it is neither live nor buried and that
//! its shard is at a later epoch than the one in its path, or is gone: a commit of that epoch is
//! refused for ever. Age alone deletes nothing.
//!
//! Where parts are replicated, the manager deletes the buried files everywhere, and each node's keeper the orphans on its
//! own disk.

use crate::adapters::propose;
use anyhow::Context;
use std::collections::BTreeSet;
use std::time::Duration;
use tidemill_core::catalog::{Part, RejectPart, Shard, Table, Tombstone};
use tidemill_core::view::{CatalogRead, CatalogSnapshot};
use tidemill_core::{Command, Epoch, ShardId, TableId, Version};
use tidemill_raft::Catalog;
use tidemill_storage::part::place_of;
use tidemill_storage::store::PartStore;
use tracing::info;

/// The most tombstones that one command forgets.
const BURIED_AT_ONCE: usize = 2000;

/// Collects once, in a store that all nodes share. No query in the cluster reads a version before `readers_from` any more.
pub async fn collect(catalog: &Catalog, store: &dyn PartStore, readers_from: Version) -> anyhow::Result<()> {
    // List first, look at the catalog then: a file that is listed and then committed is seen as live.
    let files = store.list("").await.context("the part store cannot be listed")?;
    catalog.read_index(Duration::from_secs(5)).await?;
    let state = catalog.snapshot()?;

    delete_buried(catalog, &*state, store, readers_from).await?;
    let orphans = orphans(&*state, files.into_iter().map(|f| f.path))?;
    for path in &orphans {
        store.delete(path).await?;
    }
    if !orphans.is_empty() {
        info!("deleted {} files that no commit can name any more", orphans.len());
    }
    Ok(())
}

/// Deletes the files of dropped parts, wherever they are. Where parts are replicated, a node that is not reached keeps its
/// copy until it finds out by itself that nobody needs it.
pub async fn delete_buried(
    catalog: &Catalog,
    state: &dyn CatalogSnapshot,
    store: &dyn PartStore,
    readers_from: Version,
) -> anyhow::Result<()> {
    let mut buried: Vec<Tombstone> = state.list(&[])?;
    buried.retain(|t| t.version <= readers_from);
    buried.truncate(BURIED_AT_ONCE);
    let mut failed = None;
    let mut deleted = Vec::with_capacity(buried.len());
    for tombstone in buried {
        match store.delete(&tombstone.path).await {
            Ok(()) => deleted.push(tombstone),
            // The others can go all the same.
            Err(error) => failed = Some(error),
        }
    }
    let buried = deleted;
    if !buried.is_empty() {
        let parts = buried.iter().map(|t| t.part).collect();
        propose(catalog, Command::ForgetTombstones(parts), Duration::from_secs(5))
            .await?
            .1?;
        info!("deleted {} files of dropped tables and pipes", buried.len());
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

/// Those of `paths` that are orphans in `state`.
fn orphans(state: &dyn CatalogSnapshot, paths: impl Iterator<Item = String>) -> anyhow::Result<Vec<String>> {
    let live = state.list::<Part>(&[])?.into_iter().map(|p| p.file.path);
    let rejects = state.list::<RejectPart>(&[])?.into_iter().map(|p| p.file.path);
    let buried = state.list::<Tombstone>(&[])?.into_iter().map(|t| t.path);
    let referenced: BTreeSet<String> = live.chain(rejects).chain(buried).collect();
    let mut found = Vec::new();
    for path in paths.filter(|path| !referenced.contains(path)) {
        // What does not look like a part's path is not ours to delete.
        let Some((shard, epoch, _)) = place_of(&path) else {
            continue;
        };
        if is_over(state, shard, epoch)? {
            found.push(path);
        }
    }
    Ok(found)
}

/// Whether nothing that was written for `shard` in `epoch` can be committed any more.
pub(crate) fn is_over(state: &dyn CatalogSnapshot, shard: ShardId, epoch: Epoch) -> anyhow::Result<bool> {
    Ok(match state.get::<Shard>(&shard)? {
        Some(shard) => shard.epoch > epoch,
        // A table that is gone for good: its id was given out and will not be again.
        None => state.get::<Table>(&shard.table)?.is_none() && was_given_out(state, shard.table)?,
    })
}

fn was_given_out(state: &dyn CatalogSnapshot, table: TableId) -> anyhow::Result<bool> {
    use tidemill_core::catalog::{Cluster, ClusterKey};
    Ok(state
        .get::<Cluster>(&ClusterKey)?
        .is_some_and(|cluster| table < cluster.next_table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_core::catalog::PartFile;
    use tidemill_core::view::{CatalogView, MemView, Overlay, ViewError, Visit};
    use tidemill_core::{PartId, SchemaVersion};

    struct At(MemView);

    impl CatalogView for At {
        fn get_bytes(&self, kind: tidemill_core::view::Kind, key: &[u8]) -> Result<Option<Vec<u8>>, ViewError> {
            self.0.get_bytes(kind, key)
        }

        fn scan_bytes(
            &self,
            kind: tidemill_core::view::Kind,
            prefix: &[u8],
            visit: &mut Visit<'_>,
        ) -> Result<(), ViewError> {
            self.0.scan_bytes(kind, prefix, visit)
        }
    }

    impl CatalogSnapshot for At {
        fn version(&self) -> Version {
            Version(1)
        }
    }

    #[test]
    fn only_what_can_never_be_committed_is_an_orphan() {
        let id = ShardId {
            table: TableId(1),
            index: 0,
        };
        let mut state = MemView::default();
        let mut draft = Overlay::new(&state);
        draft
            .put(
                &id,
                &Shard {
                    id,
                    epoch: Epoch(5),
                    leader: None,
                    last_leader: None,
                    assigned: None,
                    last_commit: None,
                    replicas: vec![],
                    standby: None,
                },
            )
            .unwrap();
        let file = PartFile {
            id: PartId(7),
            path: "1/0/3/7.parquet".into(),
            rows: 1,
            bytes: 1,
            checksum: 0,
            partition_value: None,
            ranges: vec![],
        };
        let part = Part {
            shard: id,
            file,
            schema_version: SchemaVersion(1),
            version: Version(1),
            committed_at_ms: 0,
        };
        draft.put(&(id, PartId(7)), &part).unwrap();
        let writes = draft.into_writes();
        state.write(writes);
        let paths = [
            "1/0/3/7.parquet",
            "1/0/4/8.parquet",
            "1/0/5/9.parquet",
            "1/0/6/a.parquet",
            "1/0/4/notes.txt",
        ];
        let found = orphans(&At(state), paths.iter().map(|p| (*p).to_owned())).unwrap();
        assert_eq!(found, ["1/0/4/8.parquet"]);
    }
}
