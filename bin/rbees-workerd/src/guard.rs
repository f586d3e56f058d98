//! What every request passes before a handler sees it: correlation id, addressed host, credential.

use std::net::IpAddr;
use std::sync::Arc;

use api_types::{CorrelationId, ErrorCode, ErrorDetail};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use crate::http::error::{ApiError, attach_correlation};
use crate::state::WorkerState;

const CORRELATION: HeaderName = HeaderName::from_static("x-correlation-id");
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Takes the caller's correlation id or makes one, and puts it on the answer.
pub async fn correlate(mut request: Request, next: Next) -> Response {
    let id = request.headers().get(CORRELATION).and_then(|value| value.to_str().ok()?.parse().ok());
    let Some(id) = id.or_else(drawn) else {
        return next.run(request).await;
    };
    request.extensions_mut().insert(id.clone());
    let (method, path) = (request.method().clone(), route(&request));
    let mut response = attach_correlation(next.run(request).await, &id);
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(CORRELATION, value);
    }
    let status = response.status().as_u16();
    tracing::debug!(event = "request", %method, path, status, correlation_id = %id);
    response
}

fn drawn() -> Option<CorrelationId> {
    uuid::Uuid::new_v4().to_string().parse().ok()
}

/// The path without what a caller chose freely.
fn route(request: &Request) -> String {
    let path = request.uri().path();
    if path.starts_with("/jobs/") { "/jobs/…".to_owned() } else { path.chars().take(64).collect() }
}

/// Refuses requests that were not meant for this address, came from a web page of another site, or
/// bear no credential.
pub async fn protect(State(state): State<Arc<WorkerState>>, request: Request, next: Next) -> Response {
    match check(&state, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => ApiError(error).into_response(),
    }
}

fn check(state: &WorkerState, request: &Request) -> Result<(), ErrorDetail> {
    let headers = request.headers();
    if state.loopback {
        let host = request.uri().host().or_else(|| headers.get(header::HOST)?.to_str().ok());
        check_host(host)?;
    }
    check_origin(headers)?;
    match &state.secret {
        Some(secret) if request.uri().path() != "/health" => check_secret(headers, secret),
        _ => Ok(()),
    }
}

/// On loopback only names of this machine count, so that no web page can reach the worker through a
/// name that its owner points here.
fn check_host(host: Option<&str>) -> Result<(), ErrorDetail> {
    match host {
        Some(host) if is_this_machine(host) => Ok(()),
        _ => Err(ErrorDetail::new(
            ErrorCode::HostNotAllowed,
            "the Host header must be localhost, 127.0.0.1 or [::1], with any port",
        )
        .with_hint("call the worker by its uri as /health shows it")),
    }
}

fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

fn check_origin(headers: &HeaderMap) -> Result<(), ErrorDetail> {
    let foreign_page = headers.get(FETCH_SITE).is_some_and(|site| site == "cross-site");
    let foreign_origin = headers.get(header::ORIGIN).is_some_and(|origin| {
        let host = origin.to_str().ok().and_then(|origin| origin.split("://").nth(1));
        !host.is_some_and(is_this_machine)
    });
    if foreign_page || foreign_origin {
        return Err(ErrorDetail::new(
            ErrorCode::OriginNotAllowed,
            "web pages of other sites may not call this worker",
        ));
    }
    Ok(())
}

fn check_secret(headers: &HeaderMap, secret: &str) -> Result<(), ErrorDetail> {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
        .unwrap_or_default();
    if bool::from(given.as_bytes().ct_eq(secret.as_bytes())) {
        return Ok(());
    }
    Err(ErrorDetail::new(ErrorCode::Unauthenticated, "the worker's secret is missing or wrong")
        .with_hint("send the header Authorization: Bearer SECRET"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_pass() {
        for host in ["localhost", "LOCALHOST:8001", "127.0.0.1:1", "127.9.9.9", "[::1]:8001"] {
            assert!(check_host(Some(host)).is_ok(), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", "[::2]"] {
            assert!(check_host(Some(host)).is_err(), "{host}");
        }
        assert!(check_host(None).is_err());
    }

    #[test]
    fn only_the_secret_passes() {
        let mut headers = HeaderMap::new();
        assert!(check_secret(&headers, "secret").is_err());
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer secre"));
        assert!(check_secret(&headers, "secret").is_err());
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer secret"));
        assert!(check_secret(&headers, "secret").is_ok());
    }
}
