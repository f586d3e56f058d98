//! The worker's API. [`router`] is its table of contents.

pub mod body;
mod cancel;
pub mod error;
mod events;
mod execute;
mod health;
pub mod openapi;
mod reader;
mod tokenize;

use std::sync::Arc;

use api_types::{ErrorCode, ErrorDetail};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, http::StatusCode};
use tower_http::catch_panic::CatchPanicLayer;

use crate::guard::{correlate, protect};
use crate::state::WorkerState;
use error::ApiError;

/// All routes behind their guards.
pub fn router(state: Arc<WorkerState>) -> Router {
    Router::new()
        .route("/execute", post(execute::execute))
        .route("/cancel", post(cancel::cancel))
        .route("/jobs/{job_id}/{attempt}/events", get(events::read).delete(events::acknowledge))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/health", get(health::health))
        .route("/metrics", get(health::metrics))
        .route("/openapi.json", get(openapi::document))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(Arc::clone(&state), protect))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn(correlate))
        .with_state(state)
}

async fn no_route() -> ApiError {
    ApiError(
        ErrorDetail::new(ErrorCode::NotFound, "the worker has no such route")
            .with_hint("GET /openapi.json lists the routes"),
    )
}

async fn no_method() -> ApiError {
    ApiError(
        ErrorDetail::new(ErrorCode::MethodNotAllowed, "the route exists, with another method")
            .with_hint("GET /openapi.json lists the routes"),
    )
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    let mut response =
        ApiError(ErrorDetail::new(ErrorCode::Internal, "a fault of the worker itself; its log has more"))
            .into_response();
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}
