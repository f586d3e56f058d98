//! Pools: the registry, and workers to be started there.

use std::time::Duration;

use api_types::pool::{AddPool, PoolList, PoolStatus, PoolView, SpawnAccepted, SpawnRequest};
use api_types::{ErrorBody, ErrorCode, ErrorDetail, PoolId, WorkerId};
use axum::Json;
use axum::extract::State;
use clients::pool::Pool;
use http::StatusCode;
use orchestrator_core::PoolRow;
use serde_json::Value;

use super::body::Body;
use super::path::Path;
use super::{ApiError, App};
use crate::ids::next_worker_suffix;

/// A spawn that fails within this time is answered with its failure instead of 202.
const EARLY_FAILURE: Duration = Duration::from_secs(2);

/// Every pool, by name.
#[utoipa::path(get, path = "/v2/pools", tag = "pools", responses((status = 200, body = PoolList)))]
pub async fn list_pools(State(app): State<App>) -> Result<Json<PoolList>, ApiError> {
    let rows: Vec<PoolRow> = app.driver.read(|brain, _| brain.pools().into_iter().cloned().collect()).await?;
    Ok(Json(PoolList { pools: rows.iter().map(|row| app.pools.view(row)).collect() }))
}

/// Adds a machine, once it could be asked how it is.
#[utoipa::path(post, path = "/v2/pools", tag = "pools", request_body = AddPool,
    responses((status = 201, body = PoolView), (status = 422, body = ErrorBody), (status = 502, body = ErrorBody)))]
pub async fn add_pool(
    State(app): State<App>,
    Body(add): Body<AddPool>,
) -> Result<(StatusCode, Json<PoolView>), ApiError> {
    let row = PoolRow { pool_id: add.pool_id, address: add.address, repo_dir: add.repo_dir, draining: false };
    let status = app.pools.probe(&row).await?;
    app.driver.put_pool(row.clone()).await?;
    app.pools.remember(&row.pool_id, &Ok(status));
    app.pools.refresh();
    Ok((StatusCode::CREATED, Json(app.pools.view(&row))))
}

/// One pool, with what it last said.
#[utoipa::path(get, path = "/v2/pools/{id}", tag = "pools",
    params(("id" = String, Path, description = "The pool's name")),
    responses((status = 200, body = PoolView), (status = 404, body = ErrorBody)))]
pub async fn get_pool(State(app): State<App>, Path(id): Path<String>) -> Result<Json<PoolView>, ApiError> {
    Ok(Json(app.pools.view(&find(&app, &id).await?)))
}

/// Forgets a pool. Its workers go on.
#[utoipa::path(delete, path = "/v2/pools/{id}", tag = "pools",
    params(("id" = String, Path, description = "The pool's name")),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub async fn remove_pool(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    let row = find(&app, &id).await?;
    app.driver.remove_pool(row.pool_id.clone()).await?;
    app.pools.forget(&row.pool_id);
    Ok(StatusCode::NO_CONTENT)
}

/// Starts no new workers on a pool, and lets those it has finish and end.
#[utoipa::path(post, path = "/v2/pools/{id}/drain", tag = "pools",
    params(("id" = String, Path, description = "The pool's name")),
    responses((status = 202, body = PoolView), (status = 404, body = ErrorBody)))]
pub async fn drain_pool(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<PoolView>), ApiError> {
    let row = PoolRow { draining: true, ..find(&app, &id).await? };
    app.driver.put_pool(row.clone()).await?;
    let pool_id = row.pool_id.clone();
    let workers = app.driver.read(|brain, now| brain.workers(now)).await?;
    for worker in workers.into_iter().filter(|worker| worker.facts.pool_id.as_ref() == Some(&pool_id)) {
        app.driver.drain_worker(worker.facts.worker_id).await?;
    }
    Ok((StatusCode::ACCEPTED, Json(app.pools.view(&row))))
}

/// Asks a pool to start a worker. It registers itself once its model is read.
#[utoipa::path(post, path = "/v2/pools/{id}/workers/spawn", tag = "pools", request_body = SpawnRequest,
    params(("id" = String, Path, description = "The pool's name")),
    responses((status = 202, body = SpawnAccepted), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody),
        (status = 502, body = ErrorBody)))]
pub async fn spawn_worker(
    State(app): State<App>,
    Path(id): Path<String>,
    Body(request): Body<SpawnRequest>,
) -> Result<(StatusCode, Json<SpawnAccepted>), ApiError> {
    let row = find(&app, &id).await?;
    if row.draining {
        let message = format!("the pool {} is draining and starts no workers", row.pool_id);
        return Err(ApiError::new(ErrorCode::NoCapacity, message));
    }
    let pool = app.pools.carrier(&row)?;
    // Our own token is for us alone: a worker that registers elsewhere must not present it there.
    let registers_here = request.orchestrator.as_ref().is_none_or(|url| url == app.pools.url());
    let token = app.guard.worker_token().filter(|_| registers_here);
    let pool = pool.with_orchestrator_token(token);
    let worker_id = worker_id(&app, &row, &request)?;
    let args = spawn_args(&app, &row.pool_id, &worker_id, request)?;
    let (directory, spawned) = (app.pools.clone(), worker_id.clone());
    let mut task = tokio::spawn(async move {
        let outcome = ask::<Value>(&pool, &args).await;
        if let Err(error) = &outcome {
            tracing::warn!(code = "SPAWN_FAILED", worker_id = %spawned, %error, "a worker was not started");
        }
        directory.refresh();
        outcome
    });
    match tokio::time::timeout(EARLY_FAILURE, &mut task).await {
        Ok(Ok(Err(error))) => Err(error.into()),
        _ => Ok((StatusCode::ACCEPTED, Json(SpawnAccepted { worker_id }))),
    }
}

/// The same as `POST /v2/pools/{id}/workers/spawn`.
#[utoipa::path(post, path = "/pools/{id}/workers/spawn", tag = "pools", request_body = SpawnRequest,
    params(("id" = String, Path, description = "The pool's name")),
    responses((status = 202, body = SpawnAccepted), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody),
        (status = 502, body = ErrorBody)))]
pub async fn spawn_worker_unversioned(
    state: State<App>,
    path: Path<String>,
    body: Body<SpawnRequest>,
) -> Result<(StatusCode, Json<SpawnAccepted>), ApiError> {
    spawn_worker(state, path, body).await
}

pub(super) async fn find(app: &App, id: &str) -> Result<PoolRow, ApiError> {
    let name = id.to_owned();
    let row = app
        .driver
        .read(move |brain, _| brain.pools().into_iter().find(|row| row.pool_id.as_str() == name).cloned())
        .await?;
    row.ok_or_else(|| {
        ApiError::new(ErrorCode::PoolNotFound, format!("no pool has the name {id:?}"))
            .with_hint("`rbees pool add NAME` adds one; GET /v2/pools lists them")
    })
}

pub(super) async fn ask<T: serde::de::DeserializeOwned>(
    pool: &Pool,
    args: &[String],
) -> Result<T, ErrorDetail> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    pool.json(&args).await
}

/// The worker's id: the one asked for, else a fresh one that names its backend.
fn worker_id(app: &App, row: &PoolRow, request: &SpawnRequest) -> Result<WorkerId, ApiError> {
    if let Some(id) = &request.worker_id {
        return Ok(id.clone());
    }
    let status: Option<PoolStatus> = app.pools.view(row).status;
    let of_device = request.device.as_ref().and_then(|device| device.split(':').next().map(str::to_owned));
    let of_gpu = || status.and_then(|status| status.hardware.gpus.first().map(|gpu| gpu.backend.clone()));
    let of_fake =
        request.model.as_ref().filter(|model| model.starts_with("fake:")).map(|_| "fake".to_owned());
    let backend =
        request.backend.clone().or(of_device).or(of_fake).or_else(of_gpu).unwrap_or_else(|| "cpu".to_owned());
    format!("worker-{backend}-{}", next_worker_suffix()).parse().map_err(|_| {
        ApiError(
            ErrorDetail::new(ErrorCode::InvalidField, format!("{backend:?} is not a backend"))
                .with_field("backend")
                .with_hint("allowed are cpu, cuda, metal, vulkan, fake"),
        )
    })
}

fn spawn_args(
    app: &App,
    pool_id: &PoolId,
    worker_id: &WorkerId,
    request: SpawnRequest,
) -> Result<Vec<String>, ApiError> {
    if request.model.is_some() && request.model_ref.is_some() {
        let problem = ErrorDetail::new(ErrorCode::InvalidField, "give `model` or `model_ref`, not both");
        return Err(problem.with_field("model_ref").into());
    }
    let (backend, gpu) = device(&request)?;
    let mut args = vec!["worker".to_owned(), "spawn".to_owned()];
    push_flag(&mut args, "--backend", backend);
    let model = request.model.map(|model| argument("model", &model)).transpose()?;
    push_flag(&mut args, "--model", model);
    let model_ref = request.model_ref.map(|model| argument("model_ref", &model)).transpose()?;
    push_flag(&mut args, "--model-ref", model_ref);
    push_flag(&mut args, "--gpu", gpu);
    push_flag(&mut args, "--slots", request.slots);
    push_flag(&mut args, "--context", request.context);
    push_flag(&mut args, "--threads", request.threads);
    push_flag(&mut args, "--port", request.port);
    push_flag(&mut args, "--worker-id", Some(worker_id));
    push_flag(&mut args, "--pool-id", Some(pool_id));
    let url = request.orchestrator.unwrap_or_else(|| app.pools.url().to_owned());
    push_flag(&mut args, "--orchestrator", Some(argument("orchestrator", &url)?));
    args.extend(request.evictable.then(|| "--evictable".to_owned()));
    Ok(args)
}

/// Backend and GPU, whether they were given apart or as `cuda:1`.
fn device(request: &SpawnRequest) -> Result<(Option<String>, Option<u32>), ApiError> {
    let Some(device) = &request.device else { return Ok((request.backend.clone(), request.gpu_id)) };
    let (backend, gpu) = match device.split_once(':') {
        None => (device.clone(), request.gpu_id),
        Some((backend, gpu)) => {
            let gpu =
                gpu.parse().map_err(|_| device_refused("device is not of the form `cuda:1` or `cpu`"))?;
            (backend.to_owned(), Some(gpu))
        }
    };
    let other_backend = request.backend.as_ref().is_some_and(|other| *other != backend);
    if other_backend || (request.gpu_id.is_some() && request.gpu_id != gpu) {
        return Err(device_refused("device says another thing than backend and gpu_id; give one of them"));
    }
    Ok((Some(backend), gpu))
}

fn device_refused(message: &str) -> ApiError {
    ApiError(ErrorDetail::new(ErrorCode::InvalidField, message).with_field("device"))
}

/// A value for a command line: it can neither be taken for an option nor end the text early.
pub(super) fn argument(field: &'static str, text: &str) -> Result<String, ApiError> {
    let fine = !text.is_empty() && !text.starts_with('-') && !text.chars().any(char::is_control);
    if fine {
        return Ok(text.to_owned());
    }
    let message = format!("{field} is {text:?}; allowed is a text that does not begin with `-`");
    Err(ApiError(ErrorDetail::new(ErrorCode::InvalidField, message).with_field(field)))
}

pub(super) fn push_flag(args: &mut Vec<String>, flag: &str, value: Option<impl ToString>) {
    if let Some(value) = value {
        args.push(format!("{flag}={}", value.to_string()));
    }
}
