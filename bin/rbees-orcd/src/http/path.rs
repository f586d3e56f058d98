//! Parts of a path: taken as text, refused in our own words.

use api_types::{ErrorCode, ErrorDetail};
use axum::extract::FromRequestParts;
use axum::extract::path::ErrorKind;
use axum::extract::rejection::PathRejection;
use http::request::Parts;
use serde::de::DeserializeOwned;

use super::ApiError;

/// The named parts of a route's path.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let axum::extract::Path(value) =
            axum::extract::Path::from_request_parts(parts, state).await.map_err(|error| refused(&error))?;
        Ok(Self(value))
    }
}

fn refused(rejection: &PathRejection) -> ApiError {
    let kind = match rejection {
        PathRejection::FailedToDeserializePathParams(error) => Some(error.kind()),
        _ => None,
    };
    let Some(ErrorKind::InvalidUtf8InPathParam { key }) = kind else {
        // The parts are texts, as many as the handler asks for: only a fault of ours comes here.
        return ApiError::new(ErrorCode::Internal, "the path was not understood");
    };
    let message = format!("{key} in the path is not UTF-8");
    ErrorDetail::new(ErrorCode::InvalidField, message)
        .with_field(key)
        .with_details(serde_json::json!({ "reason": "not_utf8" }))
        .with_hint("write each byte outside of ASCII letters and digits as %XX, the text as UTF-8")
        .into()
}
