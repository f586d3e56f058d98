//! What can be served.

use api_types::model::ModelList;
use axum::Json;
use axum::extract::State;

use super::{ApiError, App};

/// Every model that a worker runs or a pool knows.
#[utoipa::path(get, path = "/v2/models", tag = "models", responses((status = 200, body = ModelList)))]
pub async fn list_models(State(app): State<App>) -> Result<Json<ModelList>, ApiError> {
    Ok(Json(app.driver.read(|brain, _| brain.models()).await?))
}
