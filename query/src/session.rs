//! What queries share of DataFusion: memory, spilling, functions and optimizer rules.
//!
//! Building a session costs far more than a trivial query, so one is prepared at the start and each
//! query works on a copy of it (a copy of maps of shared pointers) with its own tables.

use crate::engine::EngineConfig;
use crate::error::QueryError;
use datafusion::catalog::{
    CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider,
    TableProvider,
};
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, MemoryPool, TrackConsumersPool};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionState;
use datafusion::prelude::SessionConfig;
use object_store::ObjectStore;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Footers of files are kept in one over so much of the memory for queries, and in no more than that.
const FOOTERS: usize = 16;
const MOST_FOOTERS: usize = 50 << 20;

/// Name of DataFusion's catalog that everything is in.
const CATALOG: &str = "tidemill";
/// Name of the schema of the users' tables.
pub(crate) const USER_SCHEMA: &str = "public";
/// Name of the schema of the system tables.
pub(crate) const SYSTEM_SCHEMA: &str = "system";

/// A table under its name in a schema.
pub(crate) struct NamedTable {
    /// [`USER_SCHEMA`] or [`SYSTEM_SCHEMA`].
    pub(crate) schema: &'static str,
    pub(crate) name: String,
    pub(crate) provider: Arc<dyn TableProvider>,
}

/// A prepared session.
pub(crate) struct Prepared {
    state: SessionState,
    memory: Arc<dyn MemoryPool>,
}

impl Prepared {
    /// Prepares sessions whose parts are read from `reader`.
    pub(crate) fn new(config: &EngineConfig, reader: Arc<dyn ObjectStore>) -> Result<Self, QueryError> {
        let disks = match &config.spill_dir {
            Some(dir) => DiskManagerMode::Directories(vec![dir.clone()]),
            None => DiskManagerMode::Disabled,
        };
        // Names the consumers in an out-of-memory error.
        let pool = TrackConsumersPool::new(FairSpillPool::new(config.memory_limit_bytes), NonZeroUsize::MIN);
        let memory: Arc<dyn MemoryPool> = Arc::new(pool);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(memory.clone())
            .with_metadata_cache_limit((config.memory_limit_bytes / FOOTERS).min(MOST_FOOTERS))
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(disks))
            .build_arc()
            .map_err(|e| QueryError::internal(format!("the query engine cannot start: {e}")))?;
        runtime.register_object_store(parts_url()?.as_ref(), reader);
        let mut session = SessionConfig::new()
            .with_target_partitions(config.target_partitions.max(1))
            .with_default_catalog_and_schema(CATALOG, USER_SCHEMA)
            .with_create_default_catalog_and_schema(false)
            .with_information_schema(false);
        let options = session.options_mut();
        // Columns are named as in the source's records, so letters count.
        options.sql_parser.enable_ident_normalization = false;
        options.sql_parser.collect_spans = true;
        // Text is Utf8 in memtables and parts; one type on both sides saves a cast.
        options.sql_parser.map_string_types_to_utf8view = false;
        options.execution.parquet.schema_force_view_types = false;
        options.explain.show_statistics = false;
        let state = SessionStateBuilder::new()
            .with_config(session)
            .with_runtime_env(runtime)
            .with_default_features()
            .build();
        Ok(Self { state, memory })
    }

    /// The memory that all queries share.
    pub(crate) fn memory(&self) -> &Arc<dyn MemoryPool> {
        &self.memory
    }

    /// A session without tables.
    pub(crate) fn bare(&self) -> SessionState {
        let mut state = self.state.clone();
        state.mark_start_execution();
        state
    }

    /// A session with `tables`.
    pub(crate) fn with_tables(&self, tables: Vec<NamedTable>) -> Result<SessionState, QueryError> {
        let catalog = MemoryCatalogProvider::new();
        for schema in [USER_SCHEMA, SYSTEM_SCHEMA] {
            catalog.register_schema(schema, Arc::new(MemorySchemaProvider::new()))?;
        }
        for table in tables {
            if let Some(schema) = catalog.schema(table.schema) {
                schema.register_table(table.name, table.provider)?;
            }
        }
        let catalogs = MemoryCatalogProviderList::new();
        catalogs.register_catalog(CATALOG.to_owned(), Arc::new(catalog));
        let mut state = self.bare();
        state.register_catalog_list(Arc::new(catalogs));
        Ok(state)
    }
}

/// Where DataFusion finds the part store.
pub(crate) fn parts_url() -> Result<ObjectStoreUrl, QueryError> {
    Ok(ObjectStoreUrl::parse("tidemill://parts")?)
}
