//! Where part files are and shall be, as the local catalog says.

use super::remote::RemoteDisk;
use crate::adapters::Connections;
use std::sync::Arc;
use tidemill_core::catalog::{CatalogQuestions, Copies, Holder, Node, NodeState, Shard};
use tidemill_core::view::{CatalogRead, CatalogSnapshot, ViewError};
use tidemill_core::{NodeId, PartId, ShardId};
use tidemill_raft::Catalog;
use tidemill_storage::part::place_of;
use tidemill_storage::store::{Disk, PartStore, Place, Replicas, StoreError, Targets};
use tokio::sync::mpsc;

/// The path of a file that could not be read where it should be.
pub type Damaged = String;

/// The disks of this cluster.
pub struct ClusterDisks {
    /// This node's.
    pub own: Disk,
    /// Says who the others are.
    pub catalog: Catalog,
    /// Ways to them. Of their own: whole files travel here, which would hold up what is small.
    pub connections: Connections,
    /// Tells the keeper of files on the own disk that could not be read.
    pub damaged: mpsc::UnboundedSender<Damaged>,
}

impl std::fmt::Debug for ClusterDisks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterDisks")
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

impl ClusterDisks {
    /// This node.
    pub fn own_id(&self) -> NodeId {
        self.own.holder().node
    }

    fn state(&self, path: &str) -> Result<Arc<dyn CatalogSnapshot>, StoreError> {
        self.catalog.snapshot().map_err(|e| unreadable(path, e))
    }

    /// The disk of `node`, as far as there is a way to it.
    fn place(&self, node: &Node) -> Option<Place> {
        let disk: Arc<dyn PartStore> = if node.id == self.own_id() {
            Arc::new(self.own.clone())
        } else {
            let channel = self.connections.to(&node.addresses.api).ok()?;
            Arc::new(RemoteDisk { channel })
        };
        Some(Place {
            id: node.id,
            node: node.name.clone(),
            disk,
        })
    }

    fn targets_of(&self, state: &dyn CatalogSnapshot, shard: ShardId) -> Result<Option<Targets>, ViewError> {
        let (Some(rule), Some(shard)) = (state.replication()?, state.get::<Shard>(&shard)?) else {
            return Ok(None);
        };
        let mut targets = Targets {
            min_replicas: rule.min_replicas as usize,
            places: Vec::new(),
            silent: Vec::new(),
        };
        for replica in &shard.replicas {
            let Some(node) = state.get::<Node>(&replica.node)? else {
                continue;
            };
            match self.place(&node).filter(|_| node.state.is_up()) {
                Some(place) if node.id == self.own_id() => targets.places.insert(0, place),
                Some(place) => targets.places.push(place),
                None => targets.silent.push(format!("'{}'", node.name)),
            }
        }
        Ok(Some(targets))
    }

    /// The nodes that may have a file: those that hold it, this one first and silent ones last; then the others, for a
    /// file that the catalog names no more and that a query still reads.
    fn sources_of(&self, state: &dyn CatalogSnapshot, path: &str) -> Result<Vec<Place>, ViewError> {
        let key: Option<(ShardId, PartId)> = place_of(path).map(|(shard, _, part)| (shard, part));
        let copies = key.map(|key| state.get::<Copies>(&key)).transpose()?.flatten();
        let holders: Vec<Holder> = copies.map(|copies| copies.holders).unwrap_or_default();
        let mut ranked = Vec::new();
        for node in state.list::<Node>(&[])? {
            let Some(disk) = node.holder().filter(|_| node.state != NodeState::Removed) else {
                continue;
            };
            let rank = (!holders.contains(&disk), !node.state.is_up(), node.id != self.own_id());
            // Among equals, not always the same one first.
            ranked.push((rank, rand::random::<u32>(), node));
        }
        ranked.sort_by_key(|(rank, shuffle, _)| (*rank, *shuffle));
        Ok(ranked.iter().filter_map(|(_, _, node)| self.place(node)).collect())
    }
}

fn unreadable(path: &str, error: impl std::fmt::Display) -> StoreError {
    StoreError::Io {
        action: "find out who keeps",
        path: path.to_owned(),
        source: error.to_string().into(),
    }
}

impl Replicas for ClusterDisks {
    fn targets(&self, path: &str) -> Result<Targets, StoreError> {
        let Some((shard, _, _)) = place_of(path) else {
            return Err(StoreError::Path {
                path: path.to_owned(),
                why: "it is not the path of a part",
            });
        };
        let targets = self.targets_of(&*self.state(path)?, shard);
        targets
            .map_err(|e| unreadable(path, e))?
            .ok_or_else(|| unreadable(path, format!("there is no shard {shard} with replicas")))
    }

    fn sources(&self, path: &str) -> Vec<Place> {
        let found = self.state(path).map_err(|e| e.to_string());
        let found = found.and_then(|state| self.sources_of(&*state, path).map_err(|e| e.to_string()));
        found.unwrap_or_else(|error| {
            tracing::error!("the catalog cannot be read: {error}");
            Vec::new()
        })
    }

    fn all(&self) -> Vec<Place> {
        let nodes = self
            .catalog
            .snapshot()
            .ok()
            .and_then(|state| state.list::<Node>(&[]).ok());
        let heard = nodes
            .unwrap_or_default()
            .into_iter()
            .filter(|node: &Node| node.state.is_up());
        heard.filter_map(|node| self.place(&node)).collect()
    }

    fn missed(&self, path: &str, place: &Place, _: &StoreError) {
        // The others notice theirs when they are asked.
        if place.id == self.own_id() {
            // Nobody listens only when the node ends.
            let _ = self.damaged.send(path.to_owned());
        }
    }
}
