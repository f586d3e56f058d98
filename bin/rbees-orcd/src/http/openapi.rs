//! The description of this API, made from the handlers themselves.

use axum::Json;
use utoipa::OpenApi;

use super::openai::{chat, completions, models as openai_models};
use super::{events, health, models, policy, pool_models, pools, sessions, tasks, workers};

/// Collects the routes; see [`document`].
#[derive(OpenApi)]
#[openapi(
    info(
        title = "rbees orchestrator",
        description = "One address, one queue, one scheduler that explains itself, over the machines you own.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    paths(
        tasks::submit_task,
        tasks::list_tasks,
        tasks::get_task,
        tasks::task_events,
        tasks::cancel_task,
        tasks::erase_task,
        tasks::erase_ended_tasks,
        tasks::why_task,
        sessions::get_session,
        sessions::delete_session,
        models::list_models,
        workers::list_workers,
        workers::get_worker,
        workers::drain_worker,
        workers::worker_ready,
        workers::worker_heartbeat,
        workers::worker_failed,
        policy::get_policy,
        policy::put_policy,
        policy::check_policy,
        policy::put_shadow,
        policy::promote_policy,
        policy::rollback_policy,
        policy::replay::replay_policy,
        pools::list_pools,
        pools::add_pool,
        pools::get_pool,
        pools::remove_pool,
        pools::drain_pool,
        pool_models::pool_models,
        pool_models::download_model,
        pool_models::verify_model,
        pool_models::fit_model,
        pool_models::register_model,
        pool_models::delete_model,
        pools::spawn_worker,
        events::operator_events,
        chat::create_chat_completion,
        completions::create_completion,
        openai_models::list_models,
        openai_models::get_model,
        health::health,
        health::healthz,
        health::readyz,
        health::metrics,
    ),
    components(schemas(api_types::TaskEvent))
)]
struct Api;

/// The OpenAPI 3.1 document.
pub fn document() -> utoipa::openapi::OpenApi {
    let mut document = Api::openapi();
    document.info.version = env!("CARGO_PKG_VERSION").to_owned();
    document
}

/// The document as it is committed: indented JSON with a line feed at its end.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn text() -> Result<String, serde_json::Error> {
    Ok(serde_json::to_string_pretty(&document())? + "\n")
}

/// The description of this API.
pub(super) async fn openapi_json() -> Json<utoipa::openapi::OpenApi> {
    Json(document())
}
