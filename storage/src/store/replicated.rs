//! A part store of several disks on several nodes: every file on some of them, readable from any.
//!
//! A put writes to all replicas at once and succeeds when enough of them, the first among these, have the file durable;
//! those that are slower than that by more than [`GRACE`] are left out and copy it later. The first replica, which is
//! the writer's own disk if it has one, decides which of two contents a path stands for. A read takes the first source
//! that has the file undamaged, and tells of those that should have had it.
//!
//! Which disks these are, and how many are enough, is asked of [`Replicas`] each time: nodes come and go.

use super::reader::RangeReader;
use super::{PartStore, Piece, StoreError, StoredFile, check_path};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use object_store::ObjectStore;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tidemill_core::NodeId;
use tidemill_core::catalog::Holder;
use tokio::time::Instant;

/// How long a put waits for further replicas when enough have the file.
const GRACE: Duration = Duration::from_millis(200);
/// How long a put waits for enough of them, and for each MiB of the file besides.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(200));

/// A disk of some node.
#[derive(Clone, Debug)]
pub struct Place {
    /// Whose it is.
    pub id: NodeId,
    /// The name of that node, for people.
    pub node: String,
    /// The disk, here or over the network.
    pub disk: Arc<dyn PartStore>,
}

/// Where a file shall be put.
#[derive(Clone, Debug)]
pub struct Targets {
    /// How many places are enough.
    pub min_replicas: usize,
    /// The places, the writer's own first.
    pub places: Vec<Place>,
    /// Replicas that cannot be reached at the moment, for people.
    pub silent: Vec<String>,
}

/// Knows where files are and shall be. Answers from memory.
pub trait Replicas: Send + Sync + Debug {
    /// Where the file at `path` shall be put.
    ///
    /// # Errors
    /// When `path` belongs to nothing that has replicas.
    fn targets(&self, path: &str) -> Result<Targets, StoreError>;

    /// Where the file at `path` may be read, the best place first.
    fn sources(&self, path: &str) -> Vec<Place>;

    /// Every place there is.
    fn all(&self) -> Vec<Place>;

    /// Is told that the file at `path` could not be read at a place that was named as a source.
    fn missed(&self, path: &str, place: &Place, error: &StoreError);
}

/// See the module's page.
#[derive(Clone, Debug)]
pub struct ReplicatedStore {
    replicas: Arc<dyn Replicas>,
    putting: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
}

impl ReplicatedStore {
    /// The store of the disks that `replicas` names.
    pub fn new(replicas: Arc<dyn Replicas>) -> Self {
        Self {
            replicas,
            putting: Arc::default(),
        }
    }

    /// One put of a path at a time.
    fn turn(&self, path: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut putting = self.putting.lock().unwrap_or_else(PoisonError::into_inner);
        putting.retain(|_, turn| Arc::strong_count(turn) > 1);
        putting.entry(path.to_owned()).or_default().clone()
    }

    /// The length of the file at `path`, of which there are `copies` at these places, at least one.
    fn length_of(&self, path: &str, copies: &[(NodeId, u64)]) -> u64 {
        let (_, first) = copies[0];
        if copies.iter().all(|&(_, bytes)| bytes == first) {
            return first;
        }
        // Some are left from puts that failed. What is read is what stands at that path.
        let sources = self.replicas.sources(path);
        let mut read = sources
            .iter()
            .filter_map(|source| copies.iter().find(|(place, _)| *place == source.id));
        read.next().map_or(first, |&(_, bytes)| bytes)
    }

    /// Asks the sources one after the other.
    async fn read<T, F>(&self, path: &str, ask: impl Fn(Arc<dyn PartStore>) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        check_path(path)?;
        let mut first_error = None;
        for place in self.replicas.sources(path) {
            match ask(place.disk.clone()).await {
                Ok(found) => return Ok(found),
                Err(error) => {
                    self.replicas.missed(path, &place, &error);
                    tracing::debug!(path, node = %place.node, %error, "a replica cannot be read");
                    // That it is nowhere is worth saying only if nothing else is.
                    if !matches!(first_error, Some(ref known) if !matches!(known, StoreError::NotFound { .. })) {
                        first_error = Some(error);
                    }
                }
            }
        }
        Err(first_error.unwrap_or_else(|| StoreError::NotFound { path: path.to_owned() }))
    }
}

#[async_trait]
impl PartStore for ReplicatedStore {
    async fn put(&self, path: &str, bytes: Bytes) -> Result<Vec<Holder>, StoreError> {
        check_path(path)?;
        let turn = self.turn(path);
        let _turn = turn.lock().await;
        let targets = self.replicas.targets(path)?;
        let mut putting: FuturesUnordered<_> = targets
            .places
            .iter()
            .enumerate()
            .map(|(i, place)| {
                let bytes = bytes.clone();
                async move { (i, place.disk.put(path, bytes).await) }
            })
            .collect();
        let size = bytes.len().div_ceil(1 << 20) as u32;
        let mut until = Instant::now() + PATIENCE.0 + PATIENCE.1 * size;
        let mut outcome = Outcome::new(&targets);
        let mut graceful = false;
        while let Ok(Some((i, put))) = tokio::time::timeout_at(until, putting.next()).await {
            match put {
                Err(error @ StoreError::Exists { .. }) if i == 0 => return Err(error),
                put => outcome.take(i, put),
            }
            if outcome.decided {
                // Their copies are of puts that the first replica never took: they stand for nothing.
                for i in std::mem::take(&mut outcome.other_content) {
                    outcome.take(i, put_anew(&targets.places[i], path, bytes.clone()).await);
                }
            }
            if outcome.is_enough() && !graceful {
                graceful = true;
                until = Instant::now() + GRACE;
            }
        }
        outcome.finish(path)
    }

    async fn get(&self, path: &str) -> Result<Bytes, StoreError> {
        self.read(path, |disk| async move { disk.get(path).await }).await
    }

    async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Piece, StoreError> {
        self.read(path, |disk| {
            let range = range.clone();
            async move { disk.get_range(path, range).await }
        })
        .await
    }

    async fn delete(&self, path: &str) -> Result<(), StoreError> {
        check_path(path)?;
        let places = self.replicas.all();
        let deleted = join_all(places.iter().map(|place| place.disk.delete(path))).await;
        deleted.into_iter().collect()
    }

    async fn list(&self, prefix: &str) -> Result<Vec<StoredFile>, StoreError> {
        let places = self.replicas.all();
        let listed = join_all(places.iter().map(|place| place.disk.list(prefix))).await;
        let mut files: BTreeMap<String, Vec<(NodeId, u64)>> = BTreeMap::new();
        for (place, listed) in places.iter().zip(listed) {
            for StoredFile { path, bytes } in listed? {
                files.entry(path).or_default().push((place.id, bytes));
            }
        }
        let files = files.into_iter().map(|(path, copies)| {
            let bytes = self.length_of(&path, &copies);
            StoredFile { path, bytes }
        });
        Ok(files.collect())
    }

    fn reader(&self) -> Arc<dyn ObjectStore> {
        Arc::new(RangeReader::new(Arc::new(self.clone())))
    }
}

async fn put_anew(place: &Place, path: &str, bytes: Bytes) -> Result<Vec<Holder>, StoreError> {
    place.disk.delete(path).await?;
    place.disk.put(path, bytes).await
}

/// How far a put is.
struct Outcome<'t> {
    targets: &'t Targets,
    holders: Vec<Holder>,
    /// Whether the first replica has the file.
    decided: bool,
    /// Replicas with something else at the path.
    other_content: Vec<usize>,
    failures: Vec<String>,
    full: Option<StoreError>,
}

impl<'t> Outcome<'t> {
    fn new(targets: &'t Targets) -> Self {
        Self {
            targets,
            holders: Vec::new(),
            decided: false,
            other_content: Vec::new(),
            failures: Vec::new(),
            full: None,
        }
    }

    fn take(&mut self, i: usize, put: Result<Vec<Holder>, StoreError>) {
        let node = &self.targets.places[i].node;
        match put {
            Ok(holders) => {
                self.decided |= i == 0;
                self.holders.extend(holders);
            }
            Err(StoreError::Exists { .. }) => self.other_content.push(i),
            Err(error) => {
                self.failures.push(format!("node '{node}': {error}"));
                if matches!(error, StoreError::NoSpace { .. }) {
                    self.full = Some(error);
                }
            }
        }
    }

    fn is_enough(&self) -> bool {
        self.decided && self.holders.len() >= self.targets.min_replicas
    }

    fn finish(mut self, path: &str) -> Result<Vec<Holder>, StoreError> {
        if self.is_enough() {
            return Ok(self.holders);
        }
        let answered = self.holders.len() + self.failures.len() + self.other_content.len();
        if !self.other_content.is_empty() {
            self.failures.push("others have something else at that path".to_owned());
        }
        if answered < self.targets.places.len() {
            self.failures.push("others do not answer in time".to_owned());
        }
        if !self.targets.silent.is_empty() {
            self.failures
                .push(format!("not reached: {}", self.targets.silent.join(", ")));
        }
        Err(match self.full {
            Some(full) if self.holders.is_empty() => full,
            _ => StoreError::TooFewReplicas {
                path: path.to_owned(),
                durable: self.holders.len(),
                needed: self.targets.min_replicas,
                why: self.failures.join("; "),
            },
        })
    }
}
