//! A worker's own API. Runs are streamed over pooled connections without Nagle's delay.

pub mod address;
mod connection;
mod pool;

use std::fmt;
use std::future::Future;
use std::io;
use std::io::Write as _;
use std::time::Duration;

use api_types::worker::{
    ACKNOWLEDGE_HEADER, CancelRequest, ExecuteRequest, TokenizeRequest, Tokenized, WorkerHealth,
};
use api_types::{Attempt, CorrelationId};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::connection::Connection;
use self::pool::{Pool, connect};
use crate::error::ClientError;

/// How long a worker may take to answer a call that only looks at its state.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a worker may take to accept or refuse a run.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long counting the tokens of a long prompt may take.
const TOKENIZE_TIMEOUT: Duration = Duration::from_secs(15);
/// A body of up to so many bytes is copied behind its head.
const COPIED_BYTES: usize = 16 * 1024;
/// Largest answer that is read whole, in bytes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// The pooled connections to all workers. A clone is the same pool.
#[derive(Debug, Clone, Default)]
pub struct WorkerHttp {
    pool: Pool,
}

impl WorkerHttp {
    /// The worker at `uri` (`http://host:port`); `secret` goes along as a bearer token.
    pub fn at(&self, uri: &str, secret: Option<&str>) -> WorkerClient {
        let base = uri.trim_end_matches('/').to_owned();
        let mut headers = String::new();
        if let Some(secret) = secret.filter(|secret| is_header_value(secret)) {
            headers.push_str("authorization: Bearer ");
            headers.push_str(secret);
            headers.push_str("\r\n");
        }
        WorkerClient { http: self.clone(), base, headers }
    }
}

/// One worker at its address.
#[derive(Clone)]
pub struct WorkerClient {
    http: WorkerHttp,
    base: String,
    /// Header lines of every request.
    headers: String,
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
        // Letters, digits and hyphens only.
        self.headers.push_str("x-correlation-id: ");
        self.headers.push_str(id.as_str());
        self.headers.push_str("\r\n");
        self
    }

    /// Lets the worker forget the logs of ended runs, with the next run that it is asked for: a
    /// list of `JOB/ATTEMPT`, as [`api_types::worker::ACKNOWLEDGE_HEADER`] says.
    #[must_use]
    pub fn with_acknowledged(mut self, runs: &str) -> Self {
        if !runs.is_empty() && is_header_value(runs) {
            self.headers.push_str(ACKNOWLEDGE_HEADER);
            self.headers.push_str(": ");
            self.headers.push_str(runs);
            self.headers.push_str("\r\n");
        }
        self
    }

    /// Starts a run and returns its events as they come.
    ///
    /// # Errors
    /// See [`ClientError`]; a worker that refuses the run gives [`ClientError::Answered`].
    pub async fn execute(&self, run: &ExecuteRequest) -> Result<EventStream, ClientError> {
        self.execute_json(&[], encode(&self.base, run)?).await
    }

    /// As [`Self::execute`], with the JSON of the request in two parts.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn execute_json(&self, front: &[u8], tail: Bytes) -> Result<EventStream, ClientError> {
        self.stream("POST", "/execute", front, tail).await
    }

    /// The log of a run from the event with the id `from` and on as it grows; an id before the
    /// run's first means from the start.
    ///
    /// # Errors
    /// As [`Self::execute`]; a run the worker does not know is `JOB_NOT_FOUND` or `ATTEMPT_GONE`.
    pub async fn events(&self, job: &str, attempt: Attempt, from: u64) -> Result<EventStream, ClientError> {
        self.stream("GET", &format!("{}?from={from}", log_path(job, attempt)), &[], Bytes::new()).await
    }

    /// Tells the worker that the log of a run is no longer needed.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn acknowledge(&self, job: &str, attempt: Attempt) -> Result<(), ClientError> {
        self.call("DELETE", &log_path(job, attempt), Bytes::new(), CALL_TIMEOUT).await.map(drop)
    }

    /// Asks the worker to stop a run; its `end` event still comes through its stream.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn cancel(&self, request: &CancelRequest) -> Result<(), ClientError> {
        let body = encode(&self.base, request)?;
        self.call("POST", "/cancel", body, CALL_TIMEOUT).await.map(drop)
    }

    /// What the worker is and does.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn health(&self) -> Result<WorkerHealth, ClientError> {
        let body = self.call("GET", "/health", Bytes::new(), CALL_TIMEOUT).await?;
        decode(&self.base, &body)
    }

    /// Counts the tokens that a run with this input would have as its prompt.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn tokenize(&self, request: &TokenizeRequest) -> Result<Tokenized, ClientError> {
        let body = encode(&self.base, request)?;
        let body = self.call("POST", "/tokenize", body, TOKENIZE_TIMEOUT).await?;
        decode(&self.base, &body)
    }

    async fn stream(
        &self,
        method: &str,
        path: &str,
        front: &[u8],
        tail: Bytes,
    ) -> Result<EventStream, ClientError> {
        let (status, mut stream) = self.within(ACCEPT_TIMEOUT, self.send(method, path, front, tail)).await?;
        if (200..300).contains(&status) {
            return Ok(stream);
        }
        let body = self.within(CALL_TIMEOUT, stream.whole()).await?;
        Err(ClientError::from_answer(&self.base, status, &body))
    }

    async fn call(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Vec<u8>, ClientError> {
        self.within(limit, async {
            let (status, mut stream) = self.send(method, path, &[], body).await?;
            let body = stream.whole().await?;
            if (200..300).contains(&status) {
                Ok(body)
            } else {
                Err(ClientError::from_answer(&self.base, status, &body))
            }
        })
        .await
    }

    /// Sends a request over a waiting connection or a new one. Gives the status and the body.
    ///
    /// Every request of this API may be sent twice: a run is one run, an acknowledgement one
    /// acknowledgement. So a waiting connection that turns out to be dead costs nothing but a try.
    async fn send(
        &self,
        method: &str,
        path: &str,
        front: &[u8],
        tail: Bytes,
    ) -> Result<(u16, EventStream), ClientError> {
        let (authority, prefix) = self.split()?;
        let mut request = self.written(method, authority, &[prefix, path], front.len() + tail.len());
        request.extend_from_slice(front);
        // One write for what is short; what is long is not copied.
        let short = tail.len() <= COPIED_BYTES;
        request.extend_from_slice(if short { &tail } else { &[] });
        let request = [request.into(), if short { Bytes::new() } else { tail }];
        if let Some(mut connection) = self.http.pool.take(authority) {
            match connection.send(&request).await {
                Ok(status) => return Ok((status, self.body(connection))),
                Err(error) if connection.has_bytes() => return Err(self.failed(&error)),
                Err(_) => {}
            }
        }
        let connected = if has_port(authority) {
            connect(authority).await
        } else {
            connect(&format!("{authority}:80")).await
        };
        let mut connection = connected.map_err(|error| self.failed(&error))?;
        let status = connection.send(&request).await.map_err(|error| self.failed(&error))?;
        Ok((status, self.body(connection)))
    }

    /// The authority and the path of the base.
    fn split(&self) -> Result<(&str, &str), ClientError> {
        let rest = self
            .base
            .strip_prefix("http://")
            .ok_or_else(|| self.odd("its address is not http://HOST:PORT"))?;
        let at = rest.find('/').unwrap_or(rest.len());
        let (authority, prefix) = rest.split_at(at);
        if authority.is_empty() || !is_header_value(rest) || rest.contains(' ') {
            return Err(self.odd("its address is not http://HOST:PORT"));
        }
        Ok((authority, prefix))
    }

    /// The head of a request whose body has so many bytes.
    fn written(&self, method: &str, authority: &str, path: &[&str; 2], length: usize) -> Vec<u8> {
        let [prefix, path] = path;
        let mut request = Vec::with_capacity(256 + self.headers.len() + length.min(COPIED_BYTES));
        // Writing to a Vec cannot fail.
        let _ = write!(
            request,
            "{method} {prefix}{path} HTTP/1.1\r\nhost: {authority}\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n{}\r\n",
            self.headers
        );
        request
    }

    fn body(&self, connection: Connection) -> EventStream {
        EventStream { client: self.clone(), connection: Some(connection) }
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

    fn failed(&self, error: &io::Error) -> ClientError {
        match error.kind() {
            io::ErrorKind::InvalidData => self.odd(&error.to_string()),
            _ => ClientError::from_transport(&self.base, error),
        }
    }

    fn odd(&self, reason: &str) -> ClientError {
        ClientError::Protocol { address: self.base.clone(), reason: reason.to_owned() }
    }
}

/// The bytes of a run's event stream. Once its last bytes were read, its connection carries the next
/// request; dropped before that, the connection is closed.
#[derive(Debug)]
pub struct EventStream {
    client: WorkerClient,
    connection: Option<Connection>,
}

impl EventStream {
    /// The next bytes as they arrived; `None` when the worker closed the stream in order.
    pub async fn next(&mut self) -> Option<Result<Bytes, ClientError>> {
        let connection = self.connection.as_mut()?;
        let bytes = std::future::poll_fn(|cx| connection.poll_body(cx)).await?;
        Some(bytes.map_err(|error| self.client.failed(&error)))
    }

    async fn whole(&mut self) -> Result<Vec<u8>, ClientError> {
        let mut body = Vec::new();
        while let Some(bytes) = self.next().await {
            body.extend_from_slice(&bytes?);
            if body.len() > MAX_ANSWER {
                return Err(self.client.odd("its answer is too long"));
            }
        }
        Ok(body)
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        if let (Some(connection), Ok((authority, _))) = (self.connection.take(), self.client.split()) {
            self.client.http.pool.give(authority, connection);
        }
    }
}

/// Whether a text can stand in a header line.
fn is_header_value(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..0x7f).contains(&byte))
}

fn has_port(authority: &str) -> bool {
    authority.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
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
