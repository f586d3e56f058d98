//! Jobs: hand in, look at, follow, cancel, explain.

mod check;
mod view;

use std::collections::HashMap;

use api_types::event::Eta;
use api_types::task::{
    CancelAccepted, Erased, TaskAccepted, TaskList, TaskRequest, TaskStatus, TaskView, WhyView,
};
use api_types::{CorrelationId, ErrorBody, ErrorCode, ErrorDetail, JobId, WorkerId};
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::{HeaderMap, HeaderValue, StatusCode};
use orchestrator_core::JobRow;
use serde::Deserialize;
use tracing::Instrument;

pub use self::check::{check_task, checked, idempotency_header, refuse_overflow};
use self::view::{events_url, task_view, why_ended};
use super::body::Body;
use super::error::job_not_found;
use super::path::Path;
use super::{ApiError, App, sse};
use crate::driver::{Accepted, CheckedTask, is_for_want_of_model};
use crate::store::history::Filter;
use crate::subscribers::{JobLog, Reader};

/// Names the job of an answer that is not about the job itself.
pub const JOB_HEADER: &str = "x-rbees-job-id";
/// Jobs on a page when the client names no number.
const PAGE: u32 = 50;
/// Most jobs on a page.
const MAX_PAGE: u32 = 1_000;

/// How a submission is answered.
#[derive(Debug, Default, Deserialize)]
pub struct SubmitQuery {
    /// Whether the answer is the stream itself.
    stream: Option<bool>,
}

/// Which jobs a list shows.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only jobs that stand here.
    status: Option<TaskStatus>,
    /// Only jobs for this model.
    model: Option<String>,
    /// At most this many; 50 when absent, 1,000 at most.
    limit: Option<u32>,
    /// The `cursor` of the page before.
    cursor: Option<u64>,
}

/// Hands in a task. Once this is answered, the job is on disk and ends exactly once.
#[utoipa::path(post, path = "/v2/tasks", tag = "tasks", request_body = TaskRequest,
    params(
        ("stream" = Option<bool>, Query, description = "Answer with the event stream itself, after the commit"),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key with the same request gives the same job, unless that job ended only because its readers were gone"),
    ),
    responses(
        (status = 202, description = "The job is in", body = TaskAccepted),
        (status = 200, description = "The event stream", content_type = "text/event-stream", body = String),
        (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 429, body = ErrorBody), (status = 503, body = ErrorBody),
    ))]
pub async fn submit_task(
    State(app): State<App>,
    Extension(correlation_id): Extension<CorrelationId>,
    query: Result<Query<SubmitQuery>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
    Body(request): Body<TaskRequest>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|_| bad_query("stream", "true or false"))?;
    let mut task = check_task(request, &headers, &correlation_id)?;
    let durability = task.durability;
    refuse_overflow(&app, &mut task).await?;
    if query.stream.unwrap_or_else(|| sse::is_wanted(&headers)) {
        let (accepted, reader) = submit_and_read(&app, task, &correlation_id).await?;
        return Ok(with_job(sse::answer(reader.into_stream()), accepted.job_id));
    }
    let named = task.placement.worker.clone();
    let (accepted, _) = hand_in(&app, task, false).await?;
    let warnings = match named {
        Some(worker) => Box::pin(warn_of_absence(&app, worker)).await?,
        None => Vec::new(),
    };
    let body = TaskAccepted {
        job_id: accepted.job_id,
        status: accepted.status,
        queue_position: accepted.queue_position,
        eta_ms: accepted.eta,
        events_url: events_url(accepted.job_id),
        correlation_id,
        durability,
        warnings,
    };
    Ok(with_job((StatusCode::ACCEPTED, Json(body)).into_response(), accepted.job_id))
}

/// A page of jobs, newest first.
#[utoipa::path(get, path = "/v2/tasks", tag = "tasks", params(ListQuery),
    responses((status = 200, body = TaskList), (status = 422, body = ErrorBody)))]
pub async fn list_tasks(
    State(app): State<App>,
    query: Result<Query<ListQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<TaskList>, ApiError> {
    let Query(query) =
        query.map_err(|_| bad_query("query", "status, model, limit (1 to 1000) and cursor, each once"))?;
    let limit = query.limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(bad_query("limit", "1 to 1000"));
    }
    let filter = Filter { status: query.status, model: query.model, before: query.cursor, limit };
    let jobs = app.history.list(filter).await?;
    let full = jobs.len() == usize::try_from(limit).unwrap_or(usize::MAX);
    let cursor = jobs.last().filter(|_| full).map(|job| job.number.to_string());
    let etas = living_etas(&app, &jobs).await?;
    let view = |job: &JobRow| task_view(job, None, etas.get(&job.job_id).copied(), None);
    Ok(Json(TaskList { tasks: jobs.iter().map(view).collect(), cursor }))
}

/// When those of the jobs may end that have not.
async fn living_etas(app: &App, jobs: &[JobRow]) -> Result<HashMap<JobId, Eta>, ErrorDetail> {
    let living = jobs.iter().filter(|job| !job.status.is_terminal()).map(|job| job.job_id);
    let living: Vec<JobId> = living.collect();
    if living.is_empty() {
        return Ok(HashMap::new());
    }
    app.driver
        .read(move |brain, now| {
            living.into_iter().filter_map(|job_id| Some((job_id, brain.eta(job_id, now)?))).collect()
        })
        .await
}

/// Where a job stands; once it has ended, its result, and what it asked for where that is kept.
#[utoipa::path(get, path = "/v2/tasks/{id}", tag = "tasks",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, body = TaskView), (status = 404, body = ErrorBody)))]
pub async fn get_task(State(app): State<App>, Path(id): Path<String>) -> Result<Json<TaskView>, ApiError> {
    let job_id = job_id(&id)?;
    let (standing, eta) =
        app.driver.read(move |brain, now| (brain.job(job_id), brain.eta(job_id, now))).await?;
    if let Some(standing) = standing.filter(|standing| !standing.row.status.is_terminal()) {
        return Ok(Json(task_view(&standing.row, standing.queue_position, eta, None)));
    }
    if let Some(row) = app.history.job(job_id).await? {
        let result = app.history.stream(job_id).await?.and_then(|stream| stream.result);
        let view = task_view(&row, None, None, result);
        let Some(asked) = app.history.kept_request(job_id).await? else { return Ok(Json(view)) };
        return Ok(Json(TaskView { prompt: asked.prompt, messages: asked.messages, ..view }));
    }
    // A job that was never on disk is known for a while after its end.
    let standing = app.driver.read(move |brain, _| brain.job(job_id)).await?;
    let row = standing.ok_or_else(|| job_not_found(&id))?.row;
    let result = app.subscribers.log(job_id).and_then(|log| log.text());
    Ok(Json(task_view(&row, None, None, result)))
}

/// A job's events, from the start or after `Last-Event-ID`, and on as they come.
#[utoipa::path(get, path = "/v2/tasks/{id}/events", tag = "tasks",
    params(
        ("id" = String, Path, description = "The job's id"),
        ("Last-Event-ID" = Option<u64>, Header, description = "Go on after this event"),
    ),
    responses(
        (status = 200, description = "Server-sent events", content_type = "text/event-stream", body = String),
        (status = 404, body = ErrorBody), (status = 410, body = ErrorBody),
    ))]
pub async fn task_events(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let job_id = job_id(&id)?;
    let reader = attach(&app, job_id, sse::last_event_id(&headers)?).await?;
    Ok(with_job(sse::answer(reader.into_stream()), job_id))
}

/// Asks for a job's end. Asking twice is asking once.
#[utoipa::path(post, path = "/v2/tasks/{id}/cancel", tag = "tasks",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 202, description = "It will end", body = CancelAccepted),
        (status = 200, description = "It had ended", body = CancelAccepted),
        (status = 404, body = ErrorBody),
    ))]
pub async fn cancel_task(State(app): State<App>, Path(id): Path<String>) -> Result<Response, ApiError> {
    cancel(&app, &id).await
}

/// The same as `POST /v2/tasks/{id}/cancel`: asks for a job's end. Its record stays.
#[utoipa::path(delete, path = "/v2/tasks/{id}", tag = "tasks",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 202, description = "It will end", body = CancelAccepted),
        (status = 200, description = "It had ended", body = CancelAccepted),
        (status = 404, body = ErrorBody),
    ))]
pub async fn delete_task(State(app): State<App>, Path(id): Path<String>) -> Result<Response, ApiError> {
    cancel(&app, &id).await
}

async fn cancel(app: &App, id: &str) -> Result<Response, ApiError> {
    let job_id = job_id(id)?;
    let (status, already_ended) = match app.driver.cancel(job_id).await {
        Ok(answer) => answer,
        // The brain forgets jobs that ended long ago; the database does not.
        Err(error) if error.code == ErrorCode::JobNotFound => match app.history.job(job_id).await? {
            Some(row) => (row.status, true),
            None => return Err(job_not_found(id)),
        },
        Err(error) => return Err(error.into()),
    };
    let answer = if already_ended { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((answer, Json(CancelAccepted { job_id, status })).into_response())
}

/// Erases a job that has ended: its record, its events, its result, and its prompt where that was kept.
#[utoipa::path(post, path = "/v2/tasks/{id}/erase", tag = "tasks",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "It is gone", body = Erased),
        (status = 404, body = ErrorBody),
        (status = 409, description = "JOB_NOT_ENDED", body = ErrorBody),
    ))]
pub async fn erase_task(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Erased>, ApiError> {
    let job_id = job_id(&id)?;
    let erased = app.driver.erase(Some(job_id)).await?;
    if erased > 0 {
        return Ok(Json(Erased { erased }));
    }
    if app.driver.read(move |brain, _| brain.job(job_id).is_none()).await? {
        return Err(job_not_found(&id));
    }
    let error = ApiError::new(ErrorCode::JobNotEnded, format!("{job_id} has not ended, so it stays"));
    Err(error.with_hint(format!("rbees jobs cancel {job_id}, then erase it again")))
}

/// Erases every job that has ended: records, events and results. The others stay.
#[utoipa::path(post, path = "/v2/tasks/erase", tag = "tasks",
    responses((status = 200, description = "They are gone", body = Erased), (status = 507, body = ErrorBody)))]
pub async fn erase_ended_tasks(State(app): State<App>) -> Result<Json<Erased>, ApiError> {
    Ok(Json(Erased { erased: app.driver.erase(None).await? }))
}

/// Why a job went where it went, or why it waits.
#[utoipa::path(get, path = "/v2/tasks/{id}/why", tag = "tasks",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, body = WhyView), (status = 404, body = ErrorBody)))]
pub async fn why_task(State(app): State<App>, Path(id): Path<String>) -> Result<Json<WhyView>, ApiError> {
    let job_id = job_id(&id)?;
    if let Some(why) = app.driver.read(move |brain, now| brain.why(job_id, now)).await? {
        return Ok(Json(why));
    }
    let row = app.history.job(job_id).await?.ok_or_else(|| job_not_found(&id))?;
    Ok(Json(why_ended(&row, app.history.decisions(job_id).await?)))
}

/// Counts what became of a submission.
/// A job that names a worker waits until it comes; a slip of the hand never does.
async fn warn_of_absence(app: &App, worker: WorkerId) -> Result<Vec<String>, ErrorDetail> {
    let id = worker.clone();
    let is_here = app.driver.read(move |brain, _| brain.worker_row(&id).is_some()).await?;
    let warning = || format!("no worker has the id {worker} now; the job waits until one registers under it");
    Ok(if is_here { Vec::new() } else { vec![warning()] })
}

/// Hands in a checked task. Before a model is said not to be there the pools are asked again: it may
/// have come since they were last heard of.
async fn hand_in(
    app: &App,
    mut task: Box<CheckedTask>,
    is_read: bool,
) -> Result<(Accepted, Option<Reader>), ErrorDetail> {
    let mut answer = app.driver.submit(&mut task, is_read).await;
    // On the heap: other requests do not carry along what it takes to look.
    if answer.as_ref().is_err_and(is_for_want_of_model) && Box::pin(app.pools.look_again(&app.driver)).await {
        answer = Box::pin(app.driver.submit(&mut task, is_read)).await;
    }
    app.metrics.submitted(match &answer {
        Ok((accepted, _)) if accepted.replayed => "replayed",
        Ok(_) => "accepted",
        Err(_) => "refused",
    });
    answer
}

/// Hands in a checked task and reads its job from the start.
///
/// # Errors
/// What the brain refuses it for, or as [`attach`].
pub async fn submit_and_read(
    app: &App,
    task: Box<CheckedTask>,
    correlation_id: &CorrelationId,
) -> Result<(Accepted, Reader), ApiError> {
    let (accepted, reader) = hand_in(app, task, true).await?;
    let reader = match reader {
        Some(reader) => reader,
        // It is the first job of its idempotency key.
        None => {
            let span = tracing::info_span!("attach", %correlation_id);
            Box::pin(attach(app, accepted.job_id, None)).instrument(span).await?
        }
    };
    Ok((accepted, reader))
}

/// A reader of a job's events: from memory while it goes on, else from the database.
///
/// # Errors
/// `JOB_NOT_FOUND`, or `EVENTS_EVICTED` for a job whose events are nowhere any more.
pub async fn attach(app: &App, job_id: JobId, last_event_id: Option<u64>) -> Result<Reader, ApiError> {
    if let Some(log) = app.subscribers.log(job_id) {
        return Ok(app.subscribers.attach(log, last_event_id));
    }
    if let Some(stream) = app.history.stream(job_id).await? {
        let log = std::sync::Arc::new(JobLog::kept(job_id, &stream));
        return Ok(app.subscribers.attach(log, last_event_id));
    }
    let known = app.driver.read(move |brain, _| brain.job(job_id).is_some()).await?;
    if !known {
        return Err(job_not_found(&job_id.to_string()));
    }
    let url = format!("/v2/tasks/{job_id}");
    let message = "the events of this job are no longer kept";
    let error = ErrorDetail::new(ErrorCode::EventsEvicted, message)
        .with_details(serde_json::json!({ "url": url }))
        .with_hint(format!("GET {url} still shows how it ended"));
    Err(error.into())
}

/// Adds the job's id to an answer's headers.
pub fn with_job(mut answer: Response, job_id: JobId) -> Response {
    if let Ok(value) = HeaderValue::from_str(&job_id.to_string()) {
        answer.headers_mut().insert(JOB_HEADER, value);
    }
    answer
}

fn job_id(text: &str) -> Result<JobId, ApiError> {
    text.parse().map_err(|_| job_not_found(text))
}

fn bad_query(field: &'static str, allowed: &str) -> ApiError {
    let message = format!("the query is not understood; allowed is {allowed}");
    ApiError(ErrorDetail::new(ErrorCode::InvalidField, message).with_field(field))
}
