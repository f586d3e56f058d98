//! `POST /cancel`.

use std::sync::Arc;

use api_types::ErrorBody;
use api_types::worker::CancelRequest;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::body::JsonBody;
use super::error::ApiError;
use crate::state::WorkerState;

/// Answer to `POST /cancel`.
#[derive(Debug, Serialize, ToSchema)]
pub struct CancelAnswer {
    /// Runs that were asked to stop; 0 when all had ended or none was known.
    pub stopping: usize,
}

/// Asks a job's runs to stop. They end within one decode step or one prefill chunk; their `end`
/// event comes through their streams. Asking again does nothing.
#[utoipa::path(
    post,
    path = "/cancel",
    request_body = CancelRequest,
    responses(
        (status = 202, description = "Asked", body = CancelAnswer),
        (status = 422, description = "INVALID_FIELD", body = ErrorBody),
    )
)]
pub async fn cancel(
    State(state): State<Arc<WorkerState>>,
    JsonBody(request): JsonBody<CancelRequest>,
) -> Result<(StatusCode, Json<CancelAnswer>), ApiError> {
    let stopping = state.runs.cancel(&request.job_id, request.attempt);
    Ok((StatusCode::ACCEPTED, Json(CancelAnswer { stopping })))
}
