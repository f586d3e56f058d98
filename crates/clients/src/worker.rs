//! A worker's own API. Runs are streamed over pooled connections without Nagle's delay.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use api_types::worker::{CancelRequest, ExecuteRequest, TokenizeRequest, Tokenized, WorkerHealth};
use api_types::{Attempt, CorrelationId};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::ClientError;
use crate::http::CONNECT_TIMEOUT;

/// How long a worker may take to answer a call that only looks at its state.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a worker may take to accept or refuse a run.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long counting the tokens of a long prompt may take.
const TOKENIZE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long an idle connection is kept for the next call.
const IDLE: Duration = Duration::from_secs(30);
/// Largest answer that is read whole, in bytes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// The pooled connections to all workers.
#[derive(Debug, Clone)]
pub struct WorkerHttp {
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Default for WorkerHttp {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector);
        Self { client }
    }
}

impl WorkerHttp {
    /// The worker at `uri` (`http://host:port`); `secret` goes along as a bearer token.
    pub fn at(&self, uri: &str, secret: Option<&str>) -> WorkerClient {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(mut value) =
            secret.and_then(|secret| HeaderValue::from_str(&format!("Bearer {secret}")).ok())
        {
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        WorkerClient { http: self.clone(), base: uri.trim_end_matches('/').to_owned(), headers }
    }
}

/// One worker at its address.
#[derive(Clone)]
pub struct WorkerClient {
    http: WorkerHttp,
    base: String,
    headers: HeaderMap,
}

impl fmt::Debug for WorkerClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerClient").field("base", &self.base).finish_non_exhaustive()
    }
}

impl WorkerClient {
    /// Sends this id along, so that the worker's log lines can be found.
    #[must_use]
    pub fn with_correlation(mut self, id: &CorrelationId) -> Self {
        if let Ok(value) = HeaderValue::from_str(id.as_str()) {
            self.headers.insert("x-correlation-id", value);
        }
        self
    }

    /// Starts a run and returns its events as they come.
    ///
    /// # Errors
    /// See [`ClientError`]; a worker that refuses the run gives [`ClientError::Answered`].
    pub async fn execute(&self, run: &ExecuteRequest) -> Result<EventStream, ClientError> {
        self.execute_json(encode(&self.base, run)?).await
    }

    /// As [`Self::execute`], with the JSON of the request.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn execute_json(&self, body: Bytes) -> Result<EventStream, ClientError> {
        self.stream(Method::POST, "/execute", body).await
    }

    /// The log of a run from the event with the id `from` and on as it grows; an id before the
    /// run's first means from the start.
    ///
    /// # Errors
    /// As [`Self::execute`]; a run the worker does not know is `JOB_NOT_FOUND` or `ATTEMPT_GONE`.
    pub async fn events(&self, job: &str, attempt: Attempt, from: u64) -> Result<EventStream, ClientError> {
        self.stream(Method::GET, &format!("{}?from={from}", log_path(job, attempt)), Bytes::new()).await
    }

    /// Tells the worker that the log of a run is no longer needed.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn acknowledge(&self, job: &str, attempt: Attempt) -> Result<(), ClientError> {
        self.call(Method::DELETE, &log_path(job, attempt), Bytes::new(), CALL_TIMEOUT).await.map(drop)
    }

    /// Asks the worker to stop a run; its `end` event still comes through its stream.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn cancel(&self, request: &CancelRequest) -> Result<(), ClientError> {
        let body = encode(&self.base, request)?;
        self.call(Method::POST, "/cancel", body, CALL_TIMEOUT).await.map(drop)
    }

    /// What the worker is and does.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn health(&self) -> Result<WorkerHealth, ClientError> {
        let body = self.call(Method::GET, "/health", Bytes::new(), CALL_TIMEOUT).await?;
        decode(&self.base, &body)
    }

    /// Counts the tokens that a run with this input would have as its prompt.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn tokenize(&self, request: &TokenizeRequest) -> Result<Tokenized, ClientError> {
        let body = encode(&self.base, request)?;
        let body = self.call(Method::POST, "/tokenize", body, TOKENIZE_TIMEOUT).await?;
        decode(&self.base, &body)
    }

    async fn stream(&self, method: Method, path: &str, body: Bytes) -> Result<EventStream, ClientError> {
        let answer = self.within(ACCEPT_TIMEOUT, self.send(method, path, body)).await?;
        if !answer.status().is_success() {
            let status = answer.status().as_u16();
            let body = self.within(CALL_TIMEOUT, self.whole(answer)).await?;
            return Err(ClientError::from_answer(&self.base, status, &body));
        }
        Ok(EventStream { address: self.base.clone(), body: answer.into_body() })
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Bytes, ClientError> {
        self.within(limit, async {
            let answer = self.send(method, path, body).await?;
            let status = answer.status();
            let body = self.whole(answer).await?;
            if status.is_success() {
                Ok(body)
            } else {
                Err(ClientError::from_answer(&self.base, status.as_u16(), &body))
            }
        })
        .await
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .body(Full::new(body))
            .map_err(|error| self.odd(format!("its address is not a URL: {error}")))?;
        request.headers_mut().extend(self.headers.clone());
        self.http
            .client
            .request(request)
            .await
            .map_err(|error| ClientError::from_transport(&self.base, &error))
    }

    async fn whole(&self, answer: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        body.map(http_body_util::Collected::to_bytes)
            .map_err(|error| ClientError::from_transport(&self.base, &*error))
    }

    async fn within<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        match tokio::time::timeout(limit, call).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::TimedOut { address: self.base.clone(), limit }),
        }
    }

    fn odd(&self, reason: String) -> ClientError {
        ClientError::Protocol { address: self.base.clone(), reason }
    }
}

/// The bytes of a run's event stream.
#[derive(Debug)]
pub struct EventStream {
    address: String,
    body: Incoming,
}

impl EventStream {
    /// The next bytes as they arrived; `None` when the worker closed the stream in order.
    pub async fn next(&mut self) -> Option<Result<Bytes, ClientError>> {
        loop {
            match self.body.frame().await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Some(Ok(data));
                    }
                }
                Err(error) => return Some(Err(ClientError::from_transport(&self.address, &error))),
            }
        }
    }
}

fn log_path(job: &str, attempt: Attempt) -> String {
    format!("/jobs/{job}/{attempt}/events")
}

fn encode(address: &str, body: &impl Serialize) -> Result<Bytes, ClientError> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|error| ClientError::from_json(address, &error))
}

fn decode<T: DeserializeOwned>(address: &str, body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| ClientError::from_json(address, &error))
}
