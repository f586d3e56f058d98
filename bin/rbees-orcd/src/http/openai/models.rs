//! `/v1/models`.

use api_types::ErrorCode;
use api_types::model::ModelView;
use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::http::path::Path;
use crate::http::{ApiError, App};

/// The models that can be served.
#[utoipa::path(get, path = "/v1/models", tag = "openai", responses((status = 200, body = Value)))]
pub async fn list_models(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let models = servable(&app).await?;
    let data: Vec<Value> = models.iter().map(model).collect();
    Ok(Json(json!({ "object": "list", "data": data })))
}

/// One model.
#[utoipa::path(get, path = "/v1/models/{id}", tag = "openai",
    params(("id" = String, Path, description = "The model's id")),
    responses((status = 200, body = Value), (status = 404, body = Value)))]
pub async fn get_model(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let models = servable(&app).await?;
    models.iter().find(|found| found.id == id).map(|found| Json(model(found))).ok_or_else(|| {
        ApiError::new(ErrorCode::ModelNotFound, format!("the model {id:?} does not exist"))
            .with_hint("GET /v1/models lists the models")
    })
}

async fn servable(app: &App) -> Result<Vec<ModelView>, ApiError> {
    let mut models = app.driver.read(|brain, _| brain.models()).await?.models;
    models.retain(|model| model.ready || !model.pools.is_empty());
    Ok(models)
}

fn model(view: &ModelView) -> Value {
    json!({
        "id": view.id, "object": "model", "created": 0, "owned_by": "rbees",
        "context_length": view.context_length,
    })
}
