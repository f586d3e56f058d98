//! Answers that are streams of events.

use std::convert::Infallible;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, HeaderValue, header};

use super::ApiError;
use api_types::ErrorCode;

/// An event stream with this body.
pub fn answer(frames: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static) -> Response {
    let mut answer = Response::new(Body::from_stream(frames));
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    answer
}

/// Whether the client asks for an event stream.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.to_ascii_lowercase().contains("text/event-stream"))
}

/// The number of the last event that a returning reader has.
///
/// # Errors
/// `INVALID_HEADER` when it is not a number.
pub fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    match value.to_str() {
        Ok("") => Ok(None),
        Ok(text) => text.parse().map(Some).map_err(|_| not_a_number()),
        Err(_) => Err(not_a_number()),
    }
}

fn not_a_number() -> ApiError {
    ApiError::new(ErrorCode::InvalidHeader, "Last-Event-ID is not the number of an event")
        .with_hint("send the `id:` of the last event you have, or leave the header out")
}
