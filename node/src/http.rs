//! Health and metrics over HTTP: `/healthz` (the process works), `/readyz` (the node takes part), `/metrics`, `/catalog`
//! (the version of the catalog that is applied here, and the digest of that state: two nodes at the same version must agree),
//! and `/leading` (the shards that are led here, and in which epochs: no two nodes may name the same epoch of a shard).

use crate::heartbeat::Contact;
use crate::manager::Reports;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::parts::KeeperState;
use crate::supervisor::{ALONE, Supervisor};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use std::future::Future;
use std::sync::Arc;
use tidemill_core::view::CatalogRead;
use tidemill_raft::Catalog;
use tokio::net::TcpListener;

/// What the pages show.
#[derive(Clone)]
pub struct Pages {
    /// The catalog.
    pub catalog: Catalog,
    /// The tasks.
    pub supervisor: Arc<Supervisor>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// What the manager knows, where it is here.
    pub reports: Arc<Reports>,
    /// Who uses how much memory.
    pub memory: Arc<Memory>,
    /// What the keeper of parts counts.
    pub parts: Arc<KeeperState>,
    /// Whether a manager answers.
    pub contact: Arc<Contact>,
}

/// Serves the pages until `until` ends.
pub async fn serve(
    listener: TcpListener,
    pages: Pages,
    until: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/catalog", get(catalog))
        .route("/leading", get(leading))
        .with_state(pages);
    axum::serve(listener, router).with_graceful_shutdown(until).await
}

async fn healthz(State(pages): State<Pages>) -> (StatusCode, String) {
    match pages.catalog.status().stopped {
        None => (StatusCode::OK, "ok\n".into()),
        Some(why) => (StatusCode::INTERNAL_SERVER_ERROR, format!("Raft has stopped: {why}\n")),
    }
}

async fn readyz(State(pages): State<Pages>) -> (StatusCode, String) {
    let status = pages.catalog.status();
    let not_ready = |why: String| (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
    match status.leader {
        _ if status.stopped.is_some() => not_ready("Raft has stopped".into()),
        None => not_ready(status.waiting_for.unwrap_or_else(|| "no leader is known".into())),
        Some(_) if pages.contact.silence() > ALONE => not_ready("no manager answers".into()),
        Some(_) => (StatusCode::OK, "ready\n".into()),
    }
}

async fn metrics(State(pages): State<Pages>) -> (StatusCode, String) {
    let text = pages.metrics.text(&pages);
    match text {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

async fn catalog(State(pages): State<Pages>) -> (StatusCode, String) {
    let state = pages.catalog.snapshot().map_err(|e| e.to_string());
    match state.and_then(|state| Ok((state.version(), state.digest().map_err(|e| e.to_string())?))) {
        Ok((version, digest)) => (
            StatusCode::OK,
            format!("{{\"version\": {version}, \"digest\": \"{digest:032x}\"}}\n"),
        ),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// What the tasks here say, whatever the catalog says by now: a leader that was deposed and does not know it yet is among them.
async fn leading(State(pages): State<Pages>) -> String {
    let tasks = pages.supervisor.reports().into_iter();
    let led = tasks.filter_map(|task| Some(format!("{{\"id\": \"{}\", \"epoch\": {}}}", task.shard, task.epoch?)));
    format!("[{}]\n", led.collect::<Vec<_>>().join(", "))
}
