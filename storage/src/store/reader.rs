//! A part store as the query engine reads it: whatever can be read in ranges, as an object store.

use super::{PartStore, Piece, StoreError};
use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::fmt;
use std::sync::Arc;

/// Reads through [`PartStore::get_range`]; can do nothing else.
#[derive(Debug)]
pub(super) struct RangeReader {
    store: Arc<dyn PartStore>,
}

impl RangeReader {
    pub(super) fn new(store: Arc<dyn PartStore>) -> Self {
        Self { store }
    }

    async fn read(&self, path: &str, range: Option<GetRange>) -> Result<(u64, Piece), StoreError> {
        Ok(match range {
            None => (0, self.store.get_range(path, 0..u64::MAX).await?),
            Some(GetRange::Bounded(range)) => (range.start, self.store.get_range(path, range).await?),
            Some(GetRange::Offset(start)) => (start, self.store.get_range(path, start..u64::MAX).await?),
            Some(GetRange::Suffix(length)) => {
                let total = self.store.get_range(path, 0..0).await?.total;
                let start = total.saturating_sub(length);
                (start, self.store.get_range(path, start..total).await?)
            }
        })
    }
}

impl fmt::Display for RangeReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("parts")
    }
}

fn only_reads<T>(operation: &str) -> Result<T> {
    Err(Error::NotImplemented {
        operation: operation.to_owned(),
        implementer: "the reader of parts".to_owned(),
    })
}

fn error_of(error: StoreError) -> Error {
    match error {
        StoreError::NotFound { ref path } => Error::NotFound {
            path: path.clone(),
            source: error.into(),
        },
        other => Error::Generic {
            store: "parts",
            source: other.into(),
        },
    }
}

#[async_trait]
impl ObjectStore for RangeReader {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let range = if options.head {
            Some(GetRange::Bounded(0..0))
        } else {
            options.range
        };
        let (start, piece) = self.read(location.as_ref(), range).await.map_err(error_of)?;
        let end = start + piece.bytes.len() as u64;
        let bytes = piece.bytes;
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream::once(async move { Ok(bytes) }).boxed()),
            meta: ObjectMeta {
                location: location.clone(),
                // Files never change.
                last_modified: Default::default(),
                size: piece.total,
                e_tag: None,
                version: None,
            },
            range: start..end,
            attributes: Attributes::default(),
        })
    }

    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        only_reads("put")
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        only_reads("put")
    }

    fn delete_stream(&self, _: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        stream::once(async { only_reads("delete") }).boxed()
    }

    fn list(&self, _: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        stream::once(async { only_reads("list") }).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        only_reads("list")
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        only_reads("copy")
    }
}
