//! `GET /health` and `GET /metrics`: from cached state, never waiting for inference.

use std::sync::Arc;

use api_types::worker::WorkerHealth;
use api_types::{ErrorCode, ErrorDetail};
use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use crate::state::WorkerState;

/// What the worker is and does. Needs no credential.
#[utoipa::path(
    get,
    path = "/health",
    responses((status = 200, description = "Loading, ready, draining or failed", body = WorkerHealth))
)]
pub async fn health(State(state): State<Arc<WorkerState>>) -> Json<WorkerHealth> {
    Json(state.health())
}

/// The worker's metrics in the text format of OpenMetrics.
#[utoipa::path(
    get,
    path = "/metrics",
    responses((status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text"))
)]
pub async fn metrics(State(state): State<Arc<WorkerState>>) -> Result<Response, ApiError> {
    let text = state
        .metrics
        .encode(&state.snapshot())
        .map_err(|_| ErrorDetail::new(ErrorCode::Internal, "the metrics could not be written"))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
