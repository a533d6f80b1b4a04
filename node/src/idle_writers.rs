//! Closing writers that nobody uses any more: programs end without a word.

use crate::adapters::propose;
use crate::time::now_ms;
use std::time::Duration;
use tidemill_core::Command;
use tidemill_core::catalog::Writer;
use tidemill_core::command::CloseWriter;
use tidemill_core::view::{CatalogRead, CatalogSnapshot};
use tidemill_raft::Catalog;
use tracing::{info, warn};

/// For how long a writer must have written nothing. By then nobody sends anything again under its numbers.
const IDLE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Looks at every writer once.
pub async fn close(catalog: &Catalog, state: &dyn CatalogSnapshot) -> anyhow::Result<()> {
    let since = now_ms().saturating_sub(IDLE.as_millis() as i64);
    for writer in state.list::<Writer>(&[])? {
        if writer.opened_at_ms > since {
            continue;
        }
        // Whether it has written is decided where its commits are.
        let close = Command::CloseWriter(CloseWriter {
            writer: writer.id,
            acknowledged: Vec::new(),
            if_idle_since_ms: Some(since),
        });
        match propose(catalog, close, Duration::from_secs(5)).await {
            Ok((_, Ok(tidemill_core::Response::Done))) => {
                info!(writer = %writer.id, "the writer was idle and is closed")
            }
            Ok(_) => {}
            Err(error) => warn!(writer = %writer.id, %error, "an idle writer is not closed yet"),
        }
    }
    Ok(())
}
