//! Errors in OpenAI's shape.

use api_types::{ErrorCode, ErrorDetail};
use http::StatusCode;
use serde_json::{Value, json};

/// The body of a failed answer.
pub fn body(error: &ErrorDetail) -> Value {
    let message = match &error.hint {
        Some(hint) => format!("{}. {hint}", error.message.trim_end_matches('.')),
        None => error.message.clone(),
    };
    json!({ "error": { "message": message, "type": kind(error.code), "param": error.field, "code": code(error.code) } })
}

/// The status in this dialect, where wrong input is always 400.
pub fn status(code: ErrorCode) -> StatusCode {
    match code.http_status() {
        422 => StatusCode::BAD_REQUEST,
        status => StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

fn kind(code: ErrorCode) -> &'static str {
    match code.http_status() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        503 => "service_unavailable",
        _ => "server_error",
    }
}

fn code(code: ErrorCode) -> String {
    match code {
        ErrorCode::ContextOverflow => "context_length_exceeded".to_owned(),
        ErrorCode::QueueFull | ErrorCode::QuotaExceeded | ErrorCode::TooManyRequests => {
            "rate_limit_exceeded".to_owned()
        }
        ErrorCode::Unauthenticated => "invalid_api_key".to_owned(),
        other => other.as_str().to_ascii_lowercase(),
    }
}
