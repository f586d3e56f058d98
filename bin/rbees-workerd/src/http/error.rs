//! Errors as answers.

use api_types::{CorrelationId, ErrorCode, ErrorDetail};
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// An error on its way to a client.
#[derive(Debug)]
pub struct ApiError(pub ErrorDetail);

impl From<ErrorDetail> for ApiError {
    fn from(error: ErrorDetail) -> Self {
        Self(error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = StatusCode::OK.into_response();
        write(&mut response, &self.0);
        // Kept beside the body, so that the correlation id can still be added.
        response.extensions_mut().insert(self.0);
        response
    }
}

/// Puts the correlation id into an error's body; other answers stay as they are.
pub fn attach_correlation(mut response: Response, id: &CorrelationId) -> Response {
    if let Some(mut error) = response.extensions_mut().remove::<ErrorDetail>() {
        error.correlation_id = Some(id.clone());
        write(&mut response, &error);
    }
    response
}

fn write(response: &mut Response, error: &ErrorDetail) {
    let status = StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut answer = (status, Json(error.clone().into_body())).into_response();
    if let Some(ms) = error.retry_after_ms
        && let Ok(seconds) = HeaderValue::from_str(&ms.div_ceil(1000).to_string())
    {
        answer.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    if matches!(error.code, ErrorCode::BodyTooLarge | ErrorCode::RequestTimeout) {
        // The rest of the body is not read, so the connection cannot serve another request.
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    *response = answer;
}
