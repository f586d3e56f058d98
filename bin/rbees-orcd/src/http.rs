//! The HTTP API. Handlers unpack, ask the driver once, and wrap what it says.

mod body;
mod error;
mod events;
mod front_door;
mod health;
mod hot;
pub mod listener;
mod models;
pub mod openai;
pub mod openapi;
mod path;
mod patience;
pub mod policy;
pub mod pool_models;
pub mod pools;
mod sessions;
mod sse;
mod streams;
pub mod tasks;
mod workers;

use std::ops::Deref;
use std::sync::Arc;

use axum::Router;
use axum::routing::{delete, get, post, put};
use clients::WorkerHttp;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use self::error::ApiError;
pub use self::front_door::Guard;
pub use self::hot::Entrance;
use crate::config::Limits;
use crate::driver::Handle;
use crate::metrics::Metrics;
use crate::pool_directory::PoolDirectory;
use crate::store::history::History;
use crate::subscribers::Subscribers;

/// What handlers need. Every layer of every request clones it, so it is one pointer.
#[derive(Debug, Clone)]
pub struct App(Arc<Parts>);

impl App {
    /// These parts, to be shared.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// What an [`App`] holds.
#[derive(Debug)]
pub struct Parts {
    /// The way to the brain.
    pub driver: Handle,
    /// The logs of jobs that have not ended.
    pub subscribers: Subscribers,
    /// Jobs that have ended.
    pub history: History,
    /// Connections to workers, for counting tokens.
    pub workers: WorkerHttp,
    /// Pools and what they last said.
    pub pools: PoolDirectory,
    /// What is counted.
    pub metrics: Metrics,
    /// What a stranger may send.
    pub limits: Limits,
    /// Who may speak to us at all.
    pub guard: Guard,
    /// One replay of the journal at a time.
    pub replays: Arc<Semaphore>,
    /// Set when the daemon stops.
    pub closing: CancellationToken,
}

/// Every route. The contents page of the API; jobs come in by [`Entrance`].
fn router(app: App) -> Router {
    Router::new()
        .route("/v2/tasks", post(tasks::submit_task).get(tasks::list_tasks))
        .route("/v2/tasks/{id}", get(tasks::get_task).delete(tasks::delete_task))
        .route("/v2/tasks/erase", post(tasks::erase_ended_tasks))
        .route("/v2/tasks/{id}/erase", post(tasks::erase_task))
        .route("/v2/tasks/{id}/cancel", post(tasks::cancel_task))
        .route("/v2/tasks/{id}/events", get(tasks::task_events))
        .route("/v2/tasks/{id}/why", get(tasks::why_task))
        .route("/v2/sessions/{id}", get(sessions::get_session).delete(sessions::delete_session))
        .route("/v2/models", get(models::list_models))
        .route("/v2/workers", get(workers::list_workers))
        .route(workers::READY_PATH, post(workers::worker_ready))
        .route("/v2/workers/{id}", get(workers::get_worker).delete(workers::drain_worker))
        .route("/v2/workers/{id}/heartbeat", post(workers::worker_heartbeat))
        .route("/v2/workers/{id}/failed", post(workers::worker_failed))
        .route("/v2/policy", get(policy::get_policy).put(policy::put_policy))
        .route("/v2/policy/replay", post(policy::replay::replay_policy))
        .route("/v2/policy/check", post(policy::check_policy))
        .route("/v2/policy/shadow", put(policy::put_shadow))
        .route("/v2/policy/promote", post(policy::promote_policy))
        .route("/v2/policy/rollback", post(policy::rollback_policy))
        .route("/v2/pools", get(pools::list_pools).post(pools::add_pool))
        .route("/v2/pools/{id}", get(pools::get_pool).delete(pools::remove_pool))
        .route("/v2/pools/{id}/drain", post(pools::drain_pool))
        .route("/v2/pools/{id}/models", get(pool_models::pool_models))
        .route("/v2/pools/{id}/models/download", post(pool_models::download_model))
        .route("/v2/pools/{id}/models/verify", post(pool_models::verify_model))
        .route("/v2/pools/{id}/models/register", post(pool_models::register_model))
        .route("/v2/pools/{id}/models/{model}", delete(pool_models::delete_model))
        .route("/v2/pools/{id}/models/{model}/fit", get(pool_models::fit_model))
        .route("/v2/pools/{id}/workers/spawn", post(pools::spawn_worker))
        .route("/pools/{id}/workers/spawn", post(pools::spawn_worker_unversioned))
        .route("/v2/events", get(events::operator_events))
        .route("/v1/chat/completions", post(openai::chat::create_chat_completion))
        .route("/v1/completions", post(openai::completions::create_completion))
        .route("/v1/models", get(openai::models::list_models))
        .route("/v1/models/{id}", get(openai::models::get_model))
        .route("/health", get(health::health))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .route("/openapi.json", get(openapi::openapi_json))
        .route("/docs", get(openapi::docs))
        .fallback(error::no_such_route)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(axum::middleware::from_fn_with_state(app.clone(), front_door::front_door))
        .with_state(app)
}
