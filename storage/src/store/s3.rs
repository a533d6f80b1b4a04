//! A part store in a bucket: `s3://bucket/prefix`, through the `object_store` library.
//!
//! A put is one request that creates and never replaces (`If-None-Match: *`), and what S3 has acknowledged is durable.
//! Credentials, region and endpoint are those of the configuration, else of the environment
//! (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT`), else of the machine's role.

use super::object::{delete_object, get_object, list_objects, location, object_error};
use super::{BoxError, PartStore, StoreError, StoredFile};
use async_trait::async_trait;
use bytes::Bytes;
use object_store::aws::AmazonS3Builder;
use object_store::client::SpawnedReqwestConnector;
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, PutMode, RetryConfig};
use std::sync::Arc;
use std::time::Duration;
use tidemill_core::catalog::Holder;
use tokio::runtime::Handle;

/// How long the library tries again by itself: not for long, since whoever puts a file does so too, and says that it waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a bucket is reached; what is absent comes from the environment.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct S3Options {
    /// The URL of a server other than Amazon's. One with `http://` is spoken to without TLS.
    pub endpoint: Option<String>,
    /// The region.
    pub region: Option<String>,
    /// The id of the access key.
    pub access_key_id: Option<String>,
    /// The secret of the access key. Never shown.
    pub secret_access_key: Option<String>,
}

impl std::fmt::Debug for S3Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Options")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("access_key_id", &self.access_key_id)
            .field("secret_access_key", &self.secret_access_key.as_ref().map(|_| "…"))
            .finish()
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct S3Store {
    objects: Arc<dyn ObjectStore>,
}

impl S3Store {
    /// The store in `bucket`, below `prefix`. Asks nobody yet. Requests run on the runtime that it is opened on, whoever
    /// makes them, so that connections are not driven by threads that are held elsewhere.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the settings do not fit together.
    ///
    /// # Panics
    /// When it is not opened on a runtime.
    pub fn open(bucket: &str, prefix: &str, options: &S3Options) -> Result<Self, StoreError> {
        let failed = |source: BoxError| StoreError::Io {
            action: "open part store",
            path: format!("s3://{bucket}/{prefix}"),
            source,
        };
        let retries = RetryConfig {
            max_retries: 4,
            retry_timeout: PATIENCE,
            ..RetryConfig::default()
        };
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_retry(retries)
            .with_http_connector(SpawnedReqwestConnector::new(Handle::current()));
        if let Some(endpoint) = &options.endpoint {
            builder = builder
                .with_endpoint(endpoint)
                .with_allow_http(endpoint.starts_with("http://"));
        }
        if let Some(region) = &options.region {
            builder = builder.with_region(region);
        }
        if let Some(id) = &options.access_key_id {
            builder = builder.with_access_key_id(id);
        }
        if let Some(secret) = &options.secret_access_key {
            builder = builder.with_secret_access_key(secret);
        }
        let bucket = builder.build().map_err(|e| failed(e.into()))?;
        let prefix = ObjectPath::parse(prefix).map_err(|e| failed(e.into()))?;
        Ok(Self {
            objects: Arc::new(PrefixStore::new(bucket, prefix)),
        })
    }
}

#[async_trait]
impl PartStore for S3Store {
    async fn put(&self, path: &str, bytes: Bytes) -> Result<Vec<Holder>, StoreError> {
        let location = location(path)?;
        let create = PutMode::Create.into();
        match self.objects.put_opts(&location, bytes.clone().into(), create).await {
            Ok(_) => Ok(Vec::new()),
            Err(object_store::Error::AlreadyExists { .. }) if self.get(path).await? == bytes => Ok(Vec::new()),
            Err(object_store::Error::AlreadyExists { .. }) => Err(StoreError::Exists { path: path.to_owned() }),
            Err(error) => Err(object_error("write", path, error)),
        }
    }

    async fn get(&self, path: &str) -> Result<Bytes, StoreError> {
        get_object(&*self.objects, path).await
    }

    async fn delete(&self, path: &str) -> Result<(), StoreError> {
        delete_object(&*self.objects, path).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<StoredFile>, StoreError> {
        list_objects(&*self.objects, prefix).await
    }

    fn reader(&self) -> Arc<dyn ObjectStore> {
        self.objects.clone()
    }
}
