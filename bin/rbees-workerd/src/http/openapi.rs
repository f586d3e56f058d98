//! The worker's OpenAPI document.

use axum::Json;
use utoipa::OpenApi;

/// The worker's own API. Callers are orchestrators and people with curl.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "rbees worker",
        description = "One model behind HTTP: execute, cancel, read logs, count tokens."
    ),
    paths(
        super::execute::execute,
        super::cancel::cancel,
        super::events::read,
        super::events::acknowledge,
        super::tokenize::tokenize,
        super::health::health,
        super::health::metrics,
        document,
    )
)]
struct WorkerApi;

/// This document.
#[utoipa::path(
    get,
    path = "/openapi.json",
    responses((status = 200, description = "OpenAPI 3.1", body = Object, content_type = "application/json"))
)]
pub async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(WorkerApi::openapi())
}

/// The document as it is kept in `openapi/worker.json`.
///
/// # Errors
/// Never in practice; the document is plain data.
pub fn as_json() -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(&WorkerApi::openapi()).map(|text| text + "\n")
}
