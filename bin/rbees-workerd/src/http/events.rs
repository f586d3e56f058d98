//! `/jobs/{job_id}/{attempt}/events`: read a run's log again, or say that it is no longer needed.

use std::sync::Arc;

use api_types::event::TaskEvent;
use api_types::sampling::FieldProblem;
use api_types::{Attempt, ErrorBody, ErrorCode, ErrorDetail};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;

use super::error::ApiError;
use super::reader::stream;
use crate::run_log::Page;
use crate::state::WorkerState;

/// Where to read from.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct From {
    /// Id of the first event wanted; the run's first event when absent.
    from: Option<u64>,
}

/// Streams a run's events from an id on, and follows the run while it goes on.
#[utoipa::path(
    get,
    path = "/jobs/{job_id}/{attempt}/events",
    params(("job_id" = String, Path, description = "The job"), ("attempt" = u32, Path, description = "The try"), From),
    responses(
        (status = 200, description = "Server-sent events; each `data:` is one TaskEvent", body = TaskEvent, content_type = "text/event-stream"),
        (status = 404, description = "JOB_NOT_FOUND", body = ErrorBody),
        (status = 410, description = "ATTEMPT_GONE or EVENTS_EVICTED", body = ErrorBody),
    )
)]
pub async fn read(
    State(state): State<Arc<WorkerState>>,
    path: Result<Path<(String, u32)>, PathRejection>,
    from: Result<Query<From>, QueryRejection>,
) -> Result<Response, ApiError> {
    let (job_id, attempt) = job_and_attempt(path)?;
    let from = from_id(from)?.unwrap_or(0);
    let run = state.runs.get(&job_id, attempt)?;
    if run.log.read(from, 0) == Page::Gone {
        return Err(ApiError(ErrorDetail::new(
            ErrorCode::EventsEvicted,
            format!("the events from {from} on were acknowledged and are gone"),
        )));
    }
    Ok(stream(run, from))
}

/// Says that a run's log is no longer needed: all of an ended run's, or with `from` the events
/// before that id of any run, which makes room in its log.
#[utoipa::path(
    delete,
    path = "/jobs/{job_id}/{attempt}/events",
    params(("job_id" = String, Path, description = "The job"), ("attempt" = u32, Path, description = "The try"), From),
    responses(
        (status = 204, description = "Forgotten, now or before"),
        (status = 404, description = "JOB_NOT_FOUND (only with `from`)", body = ErrorBody),
        (status = 409, description = "JOB_CONFLICT: the run still goes on", body = ErrorBody),
    )
)]
pub async fn acknowledge(
    State(state): State<Arc<WorkerState>>,
    path: Result<Path<(String, u32)>, PathRejection>,
    from: Result<Query<From>, QueryRejection>,
) -> Result<StatusCode, ApiError> {
    let (job_id, attempt) = job_and_attempt(path)?;
    if let Some(from) = from_id(from)? {
        state.runs.get(&job_id, attempt)?.log.acknowledge(from);
        return Ok(StatusCode::NO_CONTENT);
    }
    if state.runs.acknowledge(&job_id, attempt) {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(ApiError(
        ErrorDetail::new(ErrorCode::JobConflict, "the run still goes on, so its log is still needed")
            .with_hint("POST /cancel first, or give ?from=ID to forget the events before that id"),
    ))
}

fn job_and_attempt(
    path: Result<Path<(String, u32)>, PathRejection>,
) -> Result<(String, Attempt), ErrorDetail> {
    let Path((job_id, attempt)) = path.map_err(|_| {
        FieldProblem::new("attempt", "wrong_type", "the attempt in the path must be a whole number")
    })?;
    Ok((job_id, Attempt(attempt)))
}

fn from_id(from: Result<Query<From>, QueryRejection>) -> Result<Option<u64>, ErrorDetail> {
    let Query(from) = from.map_err(|_| {
        FieldProblem::new("from", "wrong_type", "the query may hold only from=ID, a whole number")
    })?;
    Ok(from.from)
}
