//! What the tests of several modules need.

use tidemill_core::catalog::{Table, TableSettings};
use tidemill_core::schema::Column;
use tidemill_core::{SchemaVersion, TableId};

/// A table with these columns, one shard, and everything else as it is by default.
pub(crate) fn table(columns: Vec<Column>) -> Table {
    Table {
        id: TableId(1),
        name: "t".into(),
        columns,
        schema_version: SchemaVersion(1),
        min_schema: SchemaVersion(1),
        order_by: vec![],
        partition_by: None,
        shards: 1,
        settings: TableSettings::default(),
        deleted: vec![],
        former: vec![],
        created_at_ms: 0,
    }
}
