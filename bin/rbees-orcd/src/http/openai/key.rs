//! The key under which clients of this dialect send a request again.

use axum::extract::FromRequestParts;
use http::HeaderMap;
use http::request::Parts;

use crate::http::{ApiError, App, tasks};

/// The `Idempotency-Key` of a request, when it has one.
#[derive(Debug, Default)]
pub struct IdempotencyKey(pub Option<String>);

impl IdempotencyKey {
    /// Reads it from the headers.
    ///
    /// # Errors
    /// `INVALID_HEADER` when it is no text.
    pub fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        tasks::idempotency_header(headers).map(Self)
    }
}

impl FromRequestParts<App> for IdempotencyKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        Self::of(&parts.headers)
    }
}
