//! How handlers fail. The front door writes the body, in the shape of the route's dialect.

use api_types::{ErrorCode, ErrorDetail};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use crate::store::StoreError;

/// An error on its way to a client.
#[derive(Debug, Clone)]
pub struct ApiError(pub ErrorDetail);

impl ApiError {
    /// An error of this code.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(ErrorDetail::new(code, message))
    }

    /// Says what to do next.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self(self.0.with_hint(hint))
    }
}

impl From<ErrorDetail> for ApiError {
    fn from(error: ErrorDetail) -> Self {
        Self(error)
    }
}

impl From<api_types::sampling::FieldProblem> for ApiError {
    fn from(problem: api_types::sampling::FieldProblem) -> Self {
        Self(problem.into())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        tracing::error!(code = "STORAGE_FAILED", %error, "a read of the database failed");
        Self::new(ErrorCode::StorageFailed, "the database could not be read")
            .with_hint("look at the orchestrator's log; check the disk with `rbees doctor`")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut answer = status(self.0.code).into_response();
        answer.extensions_mut().insert(self.0);
        answer
    }
}

/// The HTTP status of a code.
pub(super) fn status(code: ErrorCode) -> StatusCode {
    StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// No route has this path.
pub(super) async fn no_such_route(request: Request) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no route {}", request.uri().path()))
        .with_hint("GET /openapi.json lists every route")
}

/// The route has other methods. The `Allow` header is the router's.
pub(super) async fn method_not_allowed(request: Request) -> ApiError {
    let message = format!("{} is not a method of {}", request.method(), request.uri().path());
    ApiError::new(ErrorCode::MethodNotAllowed, message).with_hint("GET /openapi.json lists every route")
}

/// No job has this id.
pub(super) fn job_not_found(id: &str) -> ApiError {
    ApiError::new(ErrorCode::JobNotFound, format!("no job has the id {id:?}"))
        .with_hint("`rbees jobs list` shows the jobs that are kept")
}
