//! What every request passes: a correlation id, the checks of who may speak to us, the shape of
//! errors, a count.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;

use api_types::{CorrelationId, ErrorCode, ErrorDetail};
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use clients::pool::OrchestratorToken;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Method, header};
use tracing::{Instrument, Span};

use super::{ApiError, App, openai};
use crate::config::Token;
use crate::ids::next_correlation_id;
use crate::metrics::{Answered, Metrics};

/// The header that carries the correlation id.
const CORRELATION: &str = "x-correlation-id";
/// Routes that never need a credential.
const OPEN_ROUTES: &[&str] = &["/health", "/healthz", "/readyz"];

/// Who may speak to this daemon.
#[derive(Debug)]
pub struct Guard {
    names: BTreeSet<String>,
    addresses: BTreeSet<IpAddr>,
    token: Option<Token>,
}

impl Guard {
    /// Loopback names, the bound address and `names`; a bearer `token` where one is set.
    pub fn new(bound: SocketAddr, names: &[String], token: Option<Token>) -> Self {
        let mut all: BTreeSet<String> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
        all.insert("localhost".to_owned());
        let mut addresses = BTreeSet::new();
        if !bound.ip().is_unspecified() {
            addresses.insert(bound.ip());
        }
        Self { names: all, addresses, token }
    }

    /// What a worker that is started for us presents, where a token is asked for.
    pub fn worker_token(&self) -> Option<OrchestratorToken> {
        self.token.as_ref().map(Token::for_workers)
    }

    fn check<B>(&self, request: &http::Request<B>) -> Result<(), ErrorDetail> {
        self.check_host(request)?;
        self.check_origin(request)?;
        self.check_token(request)
    }

    /// Exactly one `Host`, and one of ours: a name of a stranger that resolves to us is how web
    /// pages reach into a home network.
    fn check_host<B>(&self, request: &http::Request<B>) -> Result<(), ErrorDetail> {
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return Err(host_refused("the request needs exactly one Host header"));
        };
        let absolute = request.uri().authority().map(http::uri::Authority::as_str);
        let ours = |text: &str| self.is_ours(text);
        match host.to_str() {
            Ok(host) if ours(host) && absolute.is_none_or(ours) => Ok(()),
            Ok(host) => {
                Err(host_refused(&format!("the Host header {host:?} names no address of this server")))
            }
            Err(_) => Err(host_refused("the Host header is not ASCII")),
        }
    }

    /// Pages of other sites may not call us, whatever they send as content type.
    fn check_origin<B>(&self, request: &http::Request<B>) -> Result<(), ErrorDetail> {
        let refused = |what: String| {
            ErrorDetail::new(ErrorCode::OriginNotAllowed, format!("{what} may not call this server"))
                .with_hint("add the site's host name to allowed_hosts in orchestrator.toml if it is yours")
        };
        for origin in request.headers().get_all(header::ORIGIN) {
            let host = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
            if !host.is_some_and(|host| self.is_ours(host)) {
                return Err(refused(format!("a page of {:?}", origin.to_str().unwrap_or("?"))));
            }
        }
        let site = request.headers().get("sec-fetch-site").and_then(|value| value.to_str().ok());
        let has_origin = request.headers().contains_key(header::ORIGIN);
        if site == Some("cross-site") && !has_origin && request.method() != Method::GET {
            return Err(refused("a page of another site".to_owned()));
        }
        Ok(())
    }

    fn check_token<B>(&self, request: &http::Request<B>) -> Result<(), ErrorDetail> {
        let Some(token) = &self.token else { return Ok(()) };
        if OPEN_ROUTES.contains(&request.uri().path()) {
            return Ok(());
        }
        let given = request
            .headers()
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        match given {
            Some(given) if token.matches(given) => Ok(()),
            Some(_) => Err(unauthenticated("the bearer token is not the one this server knows")),
            None => Err(unauthenticated("this server needs a bearer token")),
        }
    }

    /// Whether `host`, with or without a port, is one of our names or addresses.
    fn is_ours(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
        if host.contains('@') {
            return false;
        }
        let name = authority.host().trim_end_matches('.').to_ascii_lowercase();
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>() {
            return address.is_loopback() || self.addresses.contains(&address) || self.names.contains(bare);
        }
        self.names.contains(&name)
    }
}

/// The middleware around every route that the router finds.
pub(super) async fn front_door(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let correlation_id = correlation_id(request.headers());
    request.extensions_mut().insert(correlation_id.clone());
    let route = route_of(&request);
    let is_openai = request.uri().path().starts_with("/v1/");
    let span = tracing::info_span!("request", %correlation_id, method = %request.method(), route);
    let answer = match app.guard.check(&request) {
        Ok(()) => caught(next.run(request), &correlation_id, &app.metrics).instrument(span.clone()).await,
        Err(error) => ApiError(error).into_response(),
    };
    let answer = finish(answer, &correlation_id, is_openai);
    span.in_scope(|| note(&app, &answer, route.into()));
    answer
}

/// The same around a route by which jobs come in, met without the router (see [`super::hot`]).
pub(super) async fn hot<B, F>(
    app: App,
    route: &'static str,
    request: http::Request<B>,
    handler: impl FnOnce(App, CorrelationId, http::Request<B>) -> F,
) -> Response
where
    F: Future<Output = Response>,
{
    let correlation_id = correlation_id(request.headers());
    let is_openai = request.uri().path().starts_with("/v1/");
    let span = hot_span(&correlation_id, route);
    let answer = match app.guard.check(&request) {
        Ok(()) => {
            let handled = handler(app.clone(), correlation_id.clone(), request);
            caught(handled, &correlation_id, &app.metrics).instrument(span.clone()).await
        }
        Err(error) => ApiError(error).into_response(),
    };
    let answer = finish(answer, &correlation_id, is_openai);
    span.in_scope(|| note(&app, &answer, route.into()));
    answer
}

/// What puts the correlation id on log lines. A submission has none unless somebody asks for details:
/// its span would cost more than its checks, and its few lines name the id themselves.
fn hot_span(correlation_id: &CorrelationId, route: &str) -> Span {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return Span::none();
    }
    tracing::info_span!("request", %correlation_id, method = "POST", route)
}

/// Counts an answer.
fn note(app: &App, answer: &Response, route: Cow<'static, str>) {
    let status = answer.status().as_u16();
    tracing::debug!(code = "HTTP", status, "answered");
    app.metrics.requests.get_or_create(&Answered { route, status }).inc();
}

/// Runs the handler; a panic becomes an answer instead of a lost connection.
///
/// No `async fn`: it would hold the handler twice.
fn caught(
    handled: impl Future<Output = Response>,
    correlation_id: &CorrelationId,
    metrics: &Metrics,
) -> impl Future<Output = Response> {
    AssertUnwindSafe(handled)
        .catch_unwind()
        .map(move |answer| answer.unwrap_or_else(|_| panicked(correlation_id, metrics)))
}

fn panicked(correlation_id: &CorrelationId, metrics: &Metrics) -> Response {
    metrics.panics.inc();
    tracing::error!(code = "PANIC", %correlation_id, "a handler panicked");
    ApiError::new(ErrorCode::Internal, "this request met a fault of rbees itself")
        .with_hint("please report it with the correlation id and the orchestrator's log")
        .into_response()
}

/// The answer to a request for which there is no place among `connections`.
pub(super) fn turned_away<B>(request: &http::Request<B>, connections: usize) -> Response {
    let message = format!("{connections} connections are open, as many as this server may hold");
    let error = ApiError::new(ErrorCode::TooManyStreams, message).with_hint(
        "wait for Retry-After, then try again; the operator may raise max_connections and `ulimit -n`",
    );
    let is_openai = request.uri().path().starts_with("/v1/");
    finish(error.into_response(), &correlation_id(request.headers()), is_openai)
}

/// Writes the body of an error, and the headers that every answer bears.
fn finish(mut answer: Response, correlation_id: &CorrelationId, is_openai: bool) -> Response {
    if let Some(mut error) = answer.extensions_mut().remove::<ErrorDetail>() {
        error.correlation_id = Some(correlation_id.clone());
        error.hint.get_or_insert_with(|| next_step(error.code).to_owned());
        let allow = answer.headers().get(header::ALLOW).cloned();
        answer = error_answer(&error, is_openai);
        if let Some(allow) = allow {
            answer.headers_mut().insert(header::ALLOW, allow);
        }
    }
    if let Ok(value) = HeaderValue::from_str(correlation_id.as_str()) {
        answer.headers_mut().insert(CORRELATION, value);
    }
    answer.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    answer
}

fn error_answer(error: &ErrorDetail, is_openai: bool) -> Response {
    let status = if is_openai { openai::error::status(error.code) } else { super::error::status(error.code) };
    let mut answer = if is_openai {
        (status, axum::Json(openai::error::body(error))).into_response()
    } else {
        (status, axum::Json(error.clone().into_body())).into_response()
    };
    if matches!(status.as_u16(), 429 | 503) || error.retry_after_ms.is_some() {
        let seconds = error.retry_after_ms.unwrap_or(1_000).div_ceil(1_000).max(1);
        answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status == http::StatusCode::UNAUTHORIZED {
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    answer
}

/// What to do about an error that does not say so itself.
fn next_step(code: ErrorCode) -> &'static str {
    match code.http_status() {
        429 | 503 => "wait for Retry-After, then send the same request again",
        400..=499 => "GET /openapi.json describes every request",
        _ if code.retriable() => "send the same request again; `rbees status` shows the fleet",
        _ => "`rbees doctor` looks for the cause",
    }
}

/// The client's own id, else the trace id of its `traceparent`, else a fresh one.
fn correlation_id(headers: &HeaderMap) -> CorrelationId {
    let own =
        headers.get(CORRELATION).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    let traced = || {
        let parent = headers.get("traceparent")?.to_str().ok()?;
        let trace = parent.split('-').nth(1)?;
        let well_formed = trace.len() == 32 && trace.bytes().all(|byte| byte.is_ascii_hexdigit());
        if well_formed { trace.parse().ok() } else { None }
    };
    own.or_else(traced).unwrap_or_else(next_correlation_id)
}

/// The route's pattern; paths themselves hold ids and would make a metric per job, and a stranger
/// may make up methods without end.
fn route_of(request: &Request) -> String {
    let matched = request.extensions().get::<MatchedPath>();
    let method = request.method();
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE].contains(method);
    let method = if known { method.as_str() } else { "other" };
    matched.map_or_else(|| "none".to_owned(), |path| format!("{method} {}", path.as_str()))
}

fn host_refused(message: &str) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::HostNotAllowed, message)
        .with_hint("add the name to allowed_hosts in orchestrator.toml if it is yours")
}

fn unauthenticated(message: &str) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::Unauthenticated, message)
        .with_hint("send `Authorization: Bearer TOKEN` with the token of the server's token_file")
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn nobody_knows() -> Response {
        panic!("a test")
    }

    #[tokio::test]
    async fn b18_a_panic_is_answered_with_its_id_and_counted() {
        let (metrics, id) = (Metrics::default(), "honey-42".parse().expect("an id"));
        let answer = finish(caught(nobody_knows(), &id, &metrics).await, &id, false);
        assert_eq!(answer.status(), 500);
        assert_eq!(answer.headers()[CORRELATION], "honey-42");
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["error"]["code"], "INTERNAL");
        assert_eq!(body["error"]["correlation_id"], "honey-42");
        assert_eq!(metrics.panics.get(), 1);
    }
}
