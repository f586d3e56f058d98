//! The description of this API, made from the handlers themselves.

use axum::Json;
use axum::response::{Html, IntoResponse, Response};
use http::{HeaderValue, header};
use utoipa::OpenApi;

use super::openai::{chat, completions, models as openai_models};
use super::{events, health, models, policy, pool_models, pools, sessions, tasks, workers};

/// The page of [`docs`], without the document.
const PAGE: &str = include_str!("docs.html");

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
        tasks::delete_task,
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
        pools::spawn_worker_unversioned,
        events::operator_events,
        chat::create_chat_completion,
        completions::create_completion,
        openai_models::list_models,
        openai_models::get_model,
        health::health,
        health::healthz,
        health::readyz,
        health::metrics,
        openapi_json,
        docs,
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
#[utoipa::path(get, path = "/openapi.json", tag = "operator",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value)))]
pub(super) async fn openapi_json() -> Json<utoipa::openapi::OpenApi> {
    Json(document())
}

/// A page for people that shows the description of this API. It asks nobody for anything.
#[utoipa::path(get, path = "/docs", tag = "operator",
    responses((status = 200, content_type = "text/html", body = String)))]
pub(super) async fn docs() -> Response {
    // Nothing in the document may end the element that it stands in.
    let document = serde_json::to_string(&document()).unwrap_or_default().replace('<', "\\u003c");
    let mut page = Html(PAGE.replace("@OPENAPI@", &document)).into_response();
    let policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'";
    page.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    page
}
