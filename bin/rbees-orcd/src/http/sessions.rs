//! Sessions: looked at and forgotten. They are made by naming them in a task.

use api_types::session::SessionView;
use api_types::{ErrorBody, ErrorCode, ErrorDetail, SessionId, TenantId};
use axum::Json;
use axum::extract::State;
use http::StatusCode;

use super::path::Path;
use super::{ApiError, App};

/// What a session has used and what is left of its budget.
#[utoipa::path(get, path = "/v2/sessions/{id}", tag = "sessions",
    params(("id" = String, Path, description = "The session's id, as tasks name it")),
    responses((status = 200, body = SessionView), (status = 404, body = ErrorBody)))]
pub async fn get_session(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<SessionView>, ApiError> {
    let session_id = session_id(&id)?;
    let view =
        app.driver.read(move |brain, now| brain.session(&TenantId::default(), &session_id, now)).await?;
    view.map(Json).ok_or_else(|| not_found(&id))
}

/// Forgets a session: its budget begins anew and it is bound to no worker. Its open jobs go on.
#[utoipa::path(delete, path = "/v2/sessions/{id}", tag = "sessions",
    params(("id" = String, Path, description = "The session's id, as tasks name it")),
    responses((status = 204, description = "It is forgotten"), (status = 404, body = ErrorBody)))]
pub async fn delete_session(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    app.driver.delete_session(TenantId::default(), session_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn session_id(text: &str) -> Result<SessionId, ApiError> {
    text.parse().map_err(|_| not_found(text))
}

fn not_found(id: &str) -> ApiError {
    let message = format!("no session has the id {id:?}, or it was not used for too long");
    let error = ErrorDetail::new(ErrorCode::SessionNotFound, message)
        .with_hint("a session is made by naming it in a task: rbees jobs submit --session ID");
    ApiError(error)
}
