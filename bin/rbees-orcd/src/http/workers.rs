//! The registry of workers, and what workers tell us.

mod facts;

use std::net::{IpAddr, SocketAddr};

use api_types::worker::{
    FailedCall, HEARTBEAT_MS, HeartbeatCall, HeartbeatReply, ReadyCall, ReadyReply, WorkerList, WorkerView,
};
use api_types::{ErrorBody, ErrorCode, ErrorDetail, PROTOCOL, WorkerId};
use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use tokio::net::TcpStream;

use self::facts::check_facts;
use super::body::Body;
use super::path::Path;
use super::{ApiError, App};

/// The path of [`worker_ready`], which wants to know its caller.
pub const READY_PATH: &str = "/v2/workers/ready";

/// From where a request comes.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// The address.
    pub address: IpAddr,
    /// Whether it is of this machine.
    pub is_here: bool,
}

impl Caller {
    /// The other end of a connection.
    pub fn of(stream: &TcpStream, from: SocketAddr) -> Self {
        let address = from.ip().to_canonical();
        // Who calls an address of his own machine has it too.
        let own = stream.local_addr().is_ok_and(|own| own.ip().to_canonical() == address);
        Self { address, is_here: own || address.is_loopback() }
    }
}

/// Every worker, by id.
#[utoipa::path(get, path = "/v2/workers", tag = "workers", responses((status = 200, body = WorkerList)))]
pub async fn list_workers(State(app): State<App>) -> Result<Json<WorkerList>, ApiError> {
    let workers = app.driver.read(|brain, now| brain.workers(now)).await?;
    Ok(Json(WorkerList { workers }))
}

/// One worker.
#[utoipa::path(get, path = "/v2/workers/{id}", tag = "workers",
    params(("id" = String, Path, description = "The worker's id, or a beginning that only one has")),
    responses((status = 200, body = WorkerView), (status = 404, body = ErrorBody)))]
pub async fn get_worker(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<WorkerView>, ApiError> {
    Ok(Json(find(&app, &id).await?))
}

/// Lets a worker finish its jobs, then ends it.
#[utoipa::path(delete, path = "/v2/workers/{id}", tag = "workers",
    params(("id" = String, Path, description = "The worker's id, or a beginning that only one has")),
    responses((status = 202, body = WorkerView), (status = 404, body = ErrorBody)))]
pub async fn drain_worker(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<WorkerView>), ApiError> {
    let worker_id = find(&app, &id).await?.facts.worker_id;
    app.driver.drain_worker(worker_id.clone()).await?;
    Ok((StatusCode::ACCEPTED, Json(find(&app, worker_id.as_str()).await?)))
}

/// A worker introduces itself.
#[utoipa::path(post, path = "/v2/workers/ready", tag = "workers", request_body = ReadyCall,
    responses((status = 200, body = ReadyReply), (status = 422, body = ErrorBody), (status = 502, body = ErrorBody)))]
pub async fn worker_ready(
    State(app): State<App>,
    caller: Option<Extension<Caller>>,
    Body(call): Body<ReadyCall>,
) -> Result<Json<ReadyReply>, ApiError> {
    if call.facts.protocol != PROTOCOL {
        return Err(version_skew(call.facts.protocol));
    }
    check_facts(&call.facts, caller.map(|Extension(caller)| caller))?;
    let (incarnation, drop_runs) = app.driver.worker_ready(call).await?;
    Ok(Json(ReadyReply { incarnation, heartbeat_ms: HEARTBEAT_MS, drop_runs }))
}

/// A worker shows that it lives.
#[utoipa::path(post, path = "/v2/workers/{id}/heartbeat", tag = "workers", request_body = HeartbeatCall,
    params(("id" = String, Path, description = "The worker's id")),
    responses((status = 200, body = HeartbeatReply), (status = 409, body = ErrorBody)))]
pub async fn worker_heartbeat(
    State(app): State<App>,
    Path(id): Path<String>,
    Body(call): Body<HeartbeatCall>,
) -> Result<Json<HeartbeatReply>, ApiError> {
    let (drop_runs, drain) = app.driver.worker_heartbeat(worker_id(&id)?, call).await?;
    Ok(Json(HeartbeatReply { drop_runs, drain }))
}

/// A worker cannot go on.
#[utoipa::path(post, path = "/v2/workers/{id}/failed", tag = "workers", request_body = FailedCall,
    params(("id" = String, Path, description = "The worker's id")),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub async fn worker_failed(
    State(app): State<App>,
    Path(id): Path<String>,
    Body(call): Body<FailedCall>,
) -> Result<StatusCode, ApiError> {
    app.driver.worker_failed(worker_id(&id)?, call).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The worker with this id, or the only one whose id begins so.
async fn find(app: &App, id: &str) -> Result<WorkerView, ApiError> {
    let mut workers = app.driver.read(|brain, now| brain.workers(now)).await?;
    if let Some(exact) = workers.iter().position(|worker| worker.facts.worker_id.as_str() == id) {
        return Ok(workers.swap_remove(exact));
    }
    workers.retain(|worker| worker.facts.worker_id.as_str().starts_with(id));
    match (workers.pop(), workers.len()) {
        (Some(worker), 0) if !id.is_empty() => Ok(worker),
        (Some(_), _) => Err(ErrorDetail::new(
            ErrorCode::AmbiguousId,
            format!("more than one worker id begins with {id:?}"),
        )
        .with_hint("`rbees workers list` shows all ids; give more of it")
        .into()),
        (None, _) => Err(worker_not_found(id)),
    }
}

fn worker_id(text: &str) -> Result<WorkerId, ApiError> {
    text.parse().map_err(|_| worker_not_found(text))
}

fn worker_not_found(id: &str) -> ApiError {
    ApiError::new(ErrorCode::WorkerNotFound, format!("no worker has the id {id:?}"))
        .with_hint("`rbees workers list` shows all workers")
}

fn version_skew(theirs: u32) -> ApiError {
    let message = format!("the worker speaks protocol {theirs} and this orchestrator {PROTOCOL}");
    ApiError::new(ErrorCode::VersionSkew, message)
        .with_hint("install the same version of rbees on both machines")
}
