//! Whether this daemon lives, can take work, and what it counts.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde::Serialize;

use super::{ApiError, App};
use api_types::worker::WorkerState;

/// Answer of `/health`.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Health {
    /// `healthy`, `loading`, `draining` or `degraded`.
    pub status: &'static str,
    /// Registered pools.
    pub pools: u64,
    /// Workers that are not lost.
    pub workers: u64,
    /// Jobs that wait.
    pub queue_depth: u64,
    /// Version of rbees.
    pub version: &'static str,
}

/// How the fleet is, in counts.
#[utoipa::path(get, path = "/health", tag = "health", responses((status = 200, body = Health)))]
pub async fn health(State(app): State<App>) -> Result<Json<Health>, ApiError> {
    let (counts, workers) = app.driver.read(|brain, now| (brain.health(now), brain.workers(now))).await?;
    let loading = workers.iter().any(|worker| worker.state == WorkerState::Loading);
    let status = if app.closing.is_cancelled() {
        "draining"
    } else if counts.braking || (counts.queue_depth > 0 && counts.ready_workers == 0 && !loading) {
        "degraded"
    } else if counts.ready_workers == 0 && loading {
        "loading"
    } else {
        "healthy"
    };
    Ok(Json(Health {
        status,
        pools: counts.pools,
        workers: counts.workers,
        queue_depth: counts.queue_depth,
        version: env!("CARGO_PKG_VERSION"),
    }))
}

/// Whether the process lives: 200 as long as it answers at all.
#[utoipa::path(get, path = "/healthz", tag = "health", responses((status = 200, body = String)))]
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether new work is taken: 503 while the daemon stops, or its disk is full.
#[utoipa::path(get, path = "/readyz", tag = "health",
    responses((status = 200, body = String), (status = 503, body = String)))]
pub async fn readyz(State(app): State<App>) -> Response {
    let stopped = app.closing.is_cancelled() || app.driver.read(|_, _| ()).await.is_err();
    if stopped {
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "2")], "stopping\n").into_response();
    }
    if !app.driver.has_room() {
        let wait = [(header::RETRY_AFTER, "5")];
        return (StatusCode::SERVICE_UNAVAILABLE, wait, "the disk is full\n").into_response();
    }
    "ok\n".into_response()
}

/// Everything that is counted, in the text format of OpenMetrics.
#[utoipa::path(get, path = "/metrics", tag = "health", responses((status = 200, body = String)))]
pub async fn metrics(State(app): State<App>) -> Response {
    // Without an answer the gauges keep their last values; the counters are right in any case.
    if let Ok((counts, policies)) = app.driver.read(|brain, now| (brain.health(now), brain.policies())).await
    {
        app.metrics.standing(&counts, app.subscribers.len());
        app.metrics.decisions.shadow(&policies);
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.metrics.render()).into_response()
}
