//! What workers and pools tell the orchestrator.

use std::time::Duration;

use api_types::WorkerId;
use api_types::worker::{FailedCall, HeartbeatCall, HeartbeatReply, ReadyCall, ReadyReply};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::ClientError;
use crate::http::http_client;

/// How long one call may take in all.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// An orchestrator at its base URL.
#[derive(Debug, Clone)]
pub struct OrchestratorClient {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
}

impl OrchestratorClient {
    /// A client of the orchestrator at `base`, for example `http://127.0.0.1:8080`.
    ///
    /// # Errors
    /// When the platform's TLS roots cannot be read.
    pub fn new(base: &str, token: Option<String>) -> reqwest::Result<Self> {
        Ok(Self { http: http_client()?, base: base.trim_end_matches('/').to_owned(), token })
    }

    /// The URL that was given, without a slash at its end.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// A worker introduces itself, for the first time or again.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn ready(&self, call: &ReadyCall) -> Result<ReadyReply, ClientError> {
        read(&self.base, self.post("/v2/workers/ready", call).await?).await
    }

    /// A worker shows that it lives. `STALE_INCARNATION` or `WORKER_NOT_FOUND` means: introduce
    /// yourself again.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn heartbeat(
        &self,
        worker_id: &WorkerId,
        call: &HeartbeatCall,
    ) -> Result<HeartbeatReply, ClientError> {
        let path = format!("/v2/workers/{worker_id}/heartbeat");
        read(&self.base, self.post(&path, call).await?).await
    }

    /// A worker cannot go on, or its pool saw it end.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn failed(&self, worker_id: &WorkerId, call: &FailedCall) -> Result<(), ClientError> {
        self.post(&format!("/v2/workers/{worker_id}/failed"), call).await.map(drop)
    }

    async fn post(&self, path: &str, body: &impl Serialize) -> Result<reqwest::Response, ClientError> {
        let mut request = self.http.post(format!("{}{path}", self.base)).json(body).timeout(CALL_TIMEOUT);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.map_err(|error| sorted(&self.base, &error))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status().as_u16();
        let body = answer.bytes().await.map_err(|error| sorted(&self.base, &error))?;
        Err(ClientError::from_answer(&self.base, status, &body))
    }
}

async fn read<T: DeserializeOwned>(base: &str, answer: reqwest::Response) -> Result<T, ClientError> {
    let body = answer.bytes().await.map_err(|error| sorted(base, &error))?;
    serde_json::from_slice(&body).map_err(|error| ClientError::from_json(base, &error))
}

fn sorted(base: &str, error: &reqwest::Error) -> ClientError {
    if error.is_timeout() && !error.is_connect() {
        return ClientError::TimedOut { address: base.to_owned(), limit: CALL_TIMEOUT };
    }
    ClientError::from_transport(base, error)
}
