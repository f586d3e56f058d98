//! `POST /tokenize`.

use std::sync::Arc;

use api_types::worker::{TokenizeRequest, Tokenized};
use api_types::{ErrorBody, ErrorCode, ErrorDetail};
use axum::Json;
use axum::extract::State;

use super::body::JsonBody;
use super::error::ApiError;
use super::execute::{check_input, make_prompt};
use crate::state::WorkerState;

/// Counts the tokens that a run with this input would have as its prompt.
#[utoipa::path(
    post,
    path = "/tokenize",
    request_body = TokenizeRequest,
    responses(
        (status = 200, description = "The tokens", body = Tokenized),
        (status = 422, description = "INVALID_FIELD, NO_CHAT_TEMPLATE or TEMPLATE_FAILED", body = ErrorBody),
        (status = 503, description = "WORKER_LOADING", body = ErrorBody),
    )
)]
pub async fn tokenize(
    State(state): State<Arc<WorkerState>>,
    JsonBody(request): JsonBody<TokenizeRequest>,
) -> Result<Json<Tokenized>, ApiError> {
    check_input("text", request.text.as_deref(), request.messages.as_deref()).map_err(ErrorDetail::from)?;
    let prompts = Arc::clone(&state.model()?.prompts);
    let context_length = prompts.info().context_length;
    let counting = tokio::task::spawn_blocking(move || {
        make_prompt(&prompts, request.text.as_deref(), request.messages.as_deref())
    });
    let tokens = counting
        .await
        .map_err(|_| ErrorDetail::new(ErrorCode::Internal, "the text could not be counted"))??;
    let count = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
    Ok(Json(Tokenized { count, tokens, context_length }))
}
