//! The models of a pool, through the pool itself.

use std::time::Duration;

use api_types::pool::{CatalogModel, Fit};
use api_types::sse::{KEEP_ALIVE, encode_json_into};
use api_types::{ErrorBody, ErrorCode};
use axum::Json;
use axum::extract::{Query, State};
use axum::response::Response;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc;

use super::body::Body;
use super::path::Path;
use super::pools::{argument, ask, find, push_flag};
use super::{ApiError, App, sse};

/// A silent stream gets a comment this often.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);

/// The models of a pool's catalog.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct CatalogList {
    /// By id.
    models: Vec<CatalogModel>,
}

/// Which model to fetch or check.
#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelRequest {
    /// A catalog id or a model reference.
    model: String,
}

/// With what a model would be loaded.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FitQuery {
    /// `cpu`, `cuda`, ...
    backend: Option<String>,
    /// Which GPU.
    gpu: Option<u32>,
    /// Jobs at once.
    slots: Option<u32>,
    /// Tokens of context per job.
    context: Option<u32>,
}

/// A model to add to a catalog, or to change.
#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterModel {
    /// The id it gets.
    id: String,
    /// Name for people.
    name: String,
    /// `org/name` on the Hub, or a reference: `hf:`, `file:`, `https:`, `pypi:`.
    repo: String,
    /// For example `llama`.
    architecture: String,
    /// File inside the repository; chosen at download when absent.
    #[serde(default)]
    file: Option<String>,
}

/// The catalog of a pool, asked for now.
#[utoipa::path(get, path = "/v2/pools/{id}/models", tag = "pools",
    params(("id" = String, Path, description = "The pool's name")),
    responses((status = 200, body = CatalogList), (status = 404, body = ErrorBody), (status = 502, body = ErrorBody)))]
pub async fn pool_models(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<CatalogList>, ApiError> {
    let row = find(&app, &id).await?;
    Ok(Json(CatalogList { models: app.pools.ask(&row).await?.models }))
}

/// Fetches a model to a pool; progress comes as events, then `done` or `error`.
#[utoipa::path(post, path = "/v2/pools/{id}/models/download", tag = "pools", request_body = ModelRequest,
    params(("id" = String, Path, description = "The pool's name")),
    responses((status = 200, description = "Server-sent events", content_type = "text/event-stream", body = String),
        (status = 404, body = ErrorBody)))]
pub async fn download_model(
    State(app): State<App>,
    Path(id): Path<String>,
    Body(request): Body<ModelRequest>,
) -> Result<Response, ApiError> {
    progress(&app, &id, &["models", "download", &argument("model", &request.model)?]).await
}

/// Hashes a model's files on a pool; progress comes as events, then `done` or `error`.
#[utoipa::path(post, path = "/v2/pools/{id}/models/verify", tag = "pools", request_body = ModelRequest,
    params(("id" = String, Path, description = "The pool's name")),
    responses((status = 200, description = "Server-sent events", content_type = "text/event-stream", body = String),
        (status = 404, body = ErrorBody)))]
pub async fn verify_model(
    State(app): State<App>,
    Path(id): Path<String>,
    Body(request): Body<ModelRequest>,
) -> Result<Response, ApiError> {
    progress(&app, &id, &["models", "verify", &argument("model", &request.model)?]).await
}

/// Whether a model fits a device of a pool.
#[utoipa::path(get, path = "/v2/pools/{id}/models/{model}/fit", tag = "pools",
    params(("id" = String, Path, description = "The pool's name"),
        ("model" = String, Path, description = "The model's catalog id"), FitQuery),
    responses((status = 200, body = Fit), (status = 404, body = ErrorBody), (status = 502, body = ErrorBody)))]
pub async fn fit_model(
    State(app): State<App>,
    Path((id, model)): Path<(String, String)>,
    query: Result<Query<FitQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Fit>, ApiError> {
    let Query(query) = query.map_err(|_| {
        ApiError::new(
            ErrorCode::InvalidField,
            "the query is not understood; allowed are backend, gpu, slots, context",
        )
    })?;
    let pool = app.pools.carrier(&find(&app, &id).await?)?;
    let mut args = vec!["models".to_owned(), "fit".to_owned(), argument("model", &model)?];
    push_flag(&mut args, "--backend", query.backend);
    push_flag(&mut args, "--gpu", query.gpu);
    push_flag(&mut args, "--slots", query.slots);
    push_flag(&mut args, "--context", query.context);
    Ok(Json(ask(&pool, &args).await?))
}

/// Adds a model to a pool's catalog, or changes one. Nothing is fetched.
#[utoipa::path(post, path = "/v2/pools/{id}/models/register", tag = "pools", request_body = RegisterModel,
    params(("id" = String, Path, description = "The pool's name")),
    responses((status = 200, body = Value), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)))]
pub async fn register_model(
    State(app): State<App>,
    Path(id): Path<String>,
    Body(model): Body<RegisterModel>,
) -> Result<Json<Value>, ApiError> {
    let pool = app.pools.carrier(&find(&app, &id).await?)?;
    let mut args = vec!["models".to_owned(), "register".to_owned()];
    push_flag(&mut args, "--id", Some(argument("id", &model.id)?));
    push_flag(&mut args, "--name", Some(argument("name", &model.name)?));
    push_flag(&mut args, "--repo", Some(argument("repo", &model.repo)?));
    push_flag(&mut args, "--architecture", Some(argument("architecture", &model.architecture)?));
    push_flag(&mut args, "--file", model.file.map(|file| argument("file", &file)).transpose()?);
    let registered = ask(&pool, &args).await?;
    app.pools.refresh();
    Ok(Json(registered))
}

/// Removes a model's files from a pool; the model stays in the catalog.
#[utoipa::path(delete, path = "/v2/pools/{id}/models/{model}", tag = "pools",
    params(("id" = String, Path, description = "The pool's name"),
        ("model" = String, Path, description = "The model's catalog id")),
    responses((status = 200, body = Value), (status = 404, body = ErrorBody)))]
pub async fn delete_model(
    State(app): State<App>,
    Path((id, model)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let pool = app.pools.carrier(&find(&app, &id).await?)?;
    let args = ["models".to_owned(), "delete".to_owned(), argument("model", &model)?];
    let deleted = ask(&pool, &args).await?;
    app.pools.refresh();
    Ok(Json(deleted))
}

/// Runs a command of a pool and streams its progress. A client that leaves ends the command.
async fn progress(app: &App, id: &str, args: &[&str]) -> Result<Response, ApiError> {
    let row = find(app, id).await?;
    let pool = app.pools.carrier(&row)?;
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let (frames, received) = mpsc::channel::<Bytes>(256);
    let directory = app.pools.clone();
    tokio::spawn(async move {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut on_progress = |progress| {
            // A client that reads slowly misses steps of the progress, never the end.
            let _ = frames.try_send(frame("progress", &progress));
        };
        let outcome = tokio::select! {
            outcome = pool.json_with::<Value>(&args, &mut on_progress) => outcome,
            () = frames.closed() => return,
        };
        let last = match &outcome {
            Ok(value) => frame("done", value),
            Err(error) => frame("error", &error.clone().into_body()),
        };
        directory.refresh();
        let _ = frames.send(last).await;
    });
    Ok(sse::answer(futures_util::stream::unfold(received, |mut received| async move {
        let frame = match tokio::time::timeout(KEEP_ALIVE_EVERY, received.recv()).await {
            Ok(frame) => frame?,
            Err(_) => Bytes::from_static(KEEP_ALIVE),
        };
        Some((Ok(frame), received))
    })))
}

fn frame(name: &str, data: &impl Serialize) -> Bytes {
    let mut bytes = Vec::with_capacity(128);
    encode_json_into(&mut bytes, None, name, data);
    bytes.into()
}
