//! One HTTP call: credential, honest retries, errors in one shape.

use std::sync::Once;
use std::time::Duration;

use api_types::{ErrorCode, ErrorDetail};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;

use crate::Error;
use crate::sleep::{backoff, sleep};

/// The orchestrator sends a comment every 10 s into every stream; longer silence is a dead line.
const SILENCE: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(5);
/// A call that was turned away or cut off is made at most this often in all.
const TRIES: u32 = 3;
/// Longest pause that is waited out when the other side asks for one.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

static CRYPTO: Once = Once::new();

/// The way to one orchestrator.
#[derive(Debug, Clone)]
pub(crate) struct Carrier {
    http: reqwest::Client,
    base: Url,
    token: Option<Token>,
}

/// An API key, which no debug output shows.
#[derive(Clone)]
struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Carrier {
    pub(crate) fn new(url: &str) -> Result<Self, Error> {
        let invalid = |reason: String| Error::InvalidUrl { url: url.to_owned(), reason };
        let base: Url = url.parse().map_err(|error| invalid(format!("{error}")))?;
        if !matches!(base.scheme(), "http" | "https") || base.host().is_none() {
            return Err(invalid("it must start with http:// or https:// and name a host".into()));
        }
        let http = http_client(&base).map_err(|error| invalid(chain(&error)))?;
        Ok(Self { http, base, token: None })
    }

    pub(crate) fn with_token(mut self, token: String) -> Self {
        self.token = Some(Token(token));
        self
    }

    /// Whom we call, without a path.
    pub(crate) fn address(&self) -> String {
        self.base.as_str().trim_end_matches('/').to_owned()
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.address()));
        match &self.token {
            Some(Token(token)) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends what `make` makes and reads the answer.
    pub(crate) async fn json<T: DeserializeOwned>(
        &self,
        make: impl Fn() -> RequestBuilder,
    ) -> Result<T, Error> {
        let response = self.send(make).await?;
        let bytes = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        serde_json::from_slice(&bytes)
            .map_err(|error| self.protocol(format!("its answer cannot be read: {error}")))
    }

    /// Sends what `make` makes; waits and tries again where the other side asks for it, or where
    /// the line broke before an answer. Only for requests that may safely be sent twice.
    pub(crate) async fn send(&self, make: impl Fn() -> RequestBuilder) -> Result<Response, Error> {
        let mut tries = 1;
        loop {
            let (error, pause) = match self.send_once(make()).await {
                Ok(response) => return Ok(response),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again(error, pause)) => (error, pause.unwrap_or_else(|| backoff(tries))),
            };
            if tries == TRIES || pause > LONGEST_PAUSE {
                return Err(error);
            }
            sleep(pause).await;
            tries += 1;
        }
    }

    /// Sends it once, and never again.
    pub(crate) async fn send_once(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|error| {
            let again = !error.is_connect() && !error.is_builder();
            let error = self.unreachable(&error);
            if again { Failure::Again(error, None) } else { Failure::Final(error) }
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (status, pause) = (response.status(), retry_after(&response));
        let detail = self.error_detail(response).await;
        let pause = pause.or(detail.retry_after_ms.map(Duration::from_millis));
        let told_to_wait = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        match pause {
            Some(pause) if told_to_wait => Err(Failure::Again(detail.into(), Some(pause))),
            _ => Err(Failure::Final(detail.into())),
        }
    }

    /// The error body, or one that says what came instead.
    async fn error_detail(&self, response: Response) -> ErrorDetail {
        let (status, pause) = (response.status(), retry_after(&response));
        let bytes = response.bytes().await.unwrap_or_default();
        let mut detail = read_error(&bytes).unwrap_or_else(|| {
            ErrorDetail::new(
                code_for(status),
                format!("{} answered {status} without an error body", self.address()),
            )
        });
        let pause_ms = pause.and_then(|pause| u64::try_from(pause.as_millis()).ok());
        detail.retry_after_ms = detail.retry_after_ms.or(pause_ms);
        detail
    }

    pub(crate) fn unreachable(&self, error: &reqwest::Error) -> Error {
        Error::Unreachable { url: self.address(), reason: chain(error) }
    }

    pub(crate) fn protocol(&self, reason: String) -> Error {
        Error::Protocol { url: self.address(), reason }
    }
}

/// Whether a failed call is worth another try, and after which pause.
#[derive(Debug)]
pub(crate) enum Failure {
    Final(Error),
    Again(Error, Option<Duration>),
}

impl Failure {
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Final(error) | Self::Again(error, _) => error,
        }
    }
}

fn http_client(base: &Url) -> reqwest::Result<reqwest::Client> {
    CRYPTO.call_once(|| {
        // A provider that the application installed itself stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    let builder = reqwest::Client::builder()
        .connect_timeout(CONNECT)
        .read_timeout(SILENCE)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("llama-orch-sdk/", env!("CARGO_PKG_VERSION")));
    // A proxy of the environment is meant for the internet and cannot reach this machine's ports.
    if is_loopback(base) { builder.no_proxy() } else { builder }.build()
}

fn is_loopback(base: &Url) -> bool {
    let host = base.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// `Retry-After` in seconds; the form with a date is not used by orchestrators.
fn retry_after(response: &Response) -> Option<Duration> {
    let value = response.headers().get(reqwest::header::RETRY_AFTER)?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}

/// Reads an error body; a code that this version does not know becomes `INTERNAL`, its word kept.
fn read_error(bytes: &[u8]) -> Option<ErrorDetail> {
    let mut body: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    if let Ok(detail) = serde_json::from_value(body.get("error")?.clone()) {
        return Some(detail);
    }
    let error = body.get_mut("error")?.as_object_mut()?;
    let word = error.get("code").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    error.insert("code".into(), ErrorCode::Internal.as_str().into());
    let mut detail: ErrorDetail = serde_json::from_value(body.get("error")?.clone()).ok()?;
    detail.message = format!("{word}: {}", detail.message);
    Some(detail)
}

fn code_for(status: StatusCode) -> ErrorCode {
    match status.as_u16() {
        401 => ErrorCode::Unauthenticated,
        403 => ErrorCode::Forbidden,
        404 => ErrorCode::NotFound,
        405 => ErrorCode::MethodNotAllowed,
        413 => ErrorCode::BodyTooLarge,
        429 => ErrorCode::TooManyRequests,
        503 => ErrorCode::NoCapacity,
        _ => ErrorCode::Internal,
    }
}

/// The whole chain of causes in one line; the outermost alone says only "error sending request".
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.last().map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_code_of_a_newer_orchestrator_is_still_read() {
        let detail = read_error(br#"{"error":{"code":"BEES_ASLEEP","message":"at night","retriable":true}}"#);
        let detail = detail.expect("an error");
        assert_eq!((detail.code, detail.message.as_str()), (ErrorCode::Internal, "BEES_ASLEEP: at night"));
        assert!(read_error(b"<html>").is_none());
    }

    #[test]
    fn an_address_is_checked_before_any_call() {
        for url in ["", "127.0.0.1:8080", "ftp://x", "http://", "unix:/x"] {
            assert!(matches!(Carrier::new(url), Err(Error::InvalidUrl { .. })), "{url}");
        }
        assert_eq!(Carrier::new("http://[::1]:8080/").expect("fine").address(), "http://[::1]:8080");
    }
}
