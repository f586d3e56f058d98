//! The orchestrator's client API, one method a route.

use api_types::health::OrchestratorHealth;
use api_types::model::ModelList;
use api_types::pool::{AddPool, PoolList};
use api_types::task::{
    CancelAccepted, Erased, TaskAccepted, TaskList, TaskRequest, TaskStatus, TaskView, WhyView,
};
use api_types::worker::{WorkerList, WorkerView};
use api_types::{JobId, PoolId, WorkerId};
use reqwest::Method;

use crate::error::Error;
use crate::events::JobEvents;
use crate::inference::{InferenceStream, TextStream};
use crate::send::Carrier;

/// A client of one orchestrator. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Client {
    /// A wrong address is told by the first call, so that making a client cannot fail.
    carrier: Result<Carrier, Error>,
}

/// Which jobs to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListQuery {
    /// Only jobs in this state.
    pub status: Option<TaskStatus>,
    /// Only jobs for this model.
    pub model: Option<String>,
    /// At most this many.
    pub limit: Option<u32>,
    /// The page after the one that gave this.
    pub cursor: Option<String>,
}

impl Client {
    /// A client of the orchestrator at `url`, for example `http://127.0.0.1:8080`.
    pub fn new(url: impl AsRef<str>) -> Self {
        Self { carrier: Carrier::new(url.as_ref()) }
    }

    /// Sends this API key with every call.
    #[must_use]
    pub fn with_token(self, token: impl Into<String>) -> Self {
        Self { carrier: self.carrier.map(|carrier| carrier.with_token(token.into())) }
    }

    /// Hands in a job and returns once it is durable, without waiting for it to run.
    ///
    /// # Errors
    /// When it is refused, or the orchestrator cannot be reached.
    pub async fn enqueue(&self, request: impl Into<TaskRequest>) -> Result<TaskAccepted, Error> {
        let carrier = self.carrier()?;
        let request = with_key(request.into())?;
        carrier.json(|| carrier.request(Method::POST, "/v2/tasks").json(&request)).await
    }

    /// Hands in a job and streams the pieces of its answer.
    ///
    /// # Errors
    /// As [`Client::enqueue`].
    pub async fn enqueue_stream(&self, request: impl Into<TaskRequest>) -> Result<TextStream, Error> {
        self.stream(request).await.map(TextStream::new)
    }

    /// Hands in a job and streams its start, its tokens and its end.
    ///
    /// # Errors
    /// As [`Client::enqueue`].
    pub async fn stream(&self, request: impl Into<TaskRequest>) -> Result<InferenceStream, Error> {
        self.submit(request).await.map(InferenceStream::new)
    }

    /// Hands in a job and streams all its events.
    ///
    /// # Errors
    /// As [`Client::enqueue`].
    pub async fn submit(&self, request: impl Into<TaskRequest>) -> Result<JobEvents, Error> {
        let carrier = self.carrier()?;
        let request = with_key(request.into())?;
        let response =
            carrier.send(|| carrier.request(Method::POST, "/v2/tasks?stream=true").json(&request)).await?;
        let job_id = response.headers().get("x-rbees-job-id").and_then(|value| value.to_str().ok());
        let job_id = job_id.and_then(|id| id.parse().ok());
        let job_id = job_id.ok_or_else(|| carrier.protocol("its stream names no job".into()))?;
        Ok(JobEvents::of_response(carrier.clone(), job_id, response))
    }

    /// All events of a job: from the start, or behind the event with the id `after`.
    ///
    /// # Errors
    /// `JOB_NOT_FOUND`; `EVENTS_EVICTED` once its events are gone.
    pub async fn events(&self, job: JobId, after: Option<u64>) -> Result<JobEvents, Error> {
        JobEvents::open(self.carrier()?.clone(), job, after).await
    }

    /// Where a job stands; its result once it has ended.
    ///
    /// # Errors
    /// `JOB_NOT_FOUND`.
    pub async fn status(&self, job: JobId) -> Result<TaskView, Error> {
        self.get(&format!("/v2/tasks/{job}")).await
    }

    /// Jobs, newest first.
    ///
    /// # Errors
    /// When the orchestrator cannot be reached.
    pub async fn list(&self, query: &ListQuery) -> Result<TaskList, Error> {
        let carrier = self.carrier()?;
        let status = query.status.map(|status| status.as_str().to_owned());
        let limit = query.limit.map(|limit| limit.to_string());
        let pairs = [
            ("status", status.as_ref()),
            ("model", query.model.as_ref()),
            ("limit", limit.as_ref()),
            ("cursor", query.cursor.as_ref()),
        ];
        let pairs: Vec<_> = pairs.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        carrier.json(|| carrier.request(Method::GET, "/v2/tasks").query(&pairs)).await
    }

    /// Cancels a job; cancelling it again, or one that has ended, changes nothing.
    ///
    /// # Errors
    /// `JOB_NOT_FOUND`.
    pub async fn cancel(&self, job: JobId) -> Result<CancelAccepted, Error> {
        let carrier = self.carrier()?;
        carrier.json(|| carrier.request(Method::POST, &format!("/v2/tasks/{job}/cancel"))).await
    }

    /// Erases a job that has ended: its record, its events and its result.
    ///
    /// # Errors
    /// `JOB_NOT_FOUND`, or `JOB_NOT_ENDED`.
    pub async fn erase(&self, job: JobId) -> Result<Erased, Error> {
        let carrier = self.carrier()?;
        carrier.json(|| carrier.request(Method::POST, &format!("/v2/tasks/{job}/erase"))).await
    }

    /// Erases every job that has ended.
    ///
    /// # Errors
    /// When the orchestrator cannot be reached, or its disk has no room for it.
    pub async fn erase_ended(&self) -> Result<Erased, Error> {
        let carrier = self.carrier()?;
        carrier.json(|| carrier.request(Method::POST, "/v2/tasks/erase")).await
    }

    /// Why a job went where it went, or why it waits.
    ///
    /// # Errors
    /// `JOB_NOT_FOUND`.
    pub async fn why(&self, job: JobId) -> Result<WhyView, Error> {
        self.get(&format!("/v2/tasks/{job}/why")).await
    }

    /// The models that can be served.
    ///
    /// # Errors
    /// When the orchestrator cannot be reached.
    pub async fn models(&self) -> Result<ModelList, Error> {
        self.get("/v2/models").await
    }

    /// The workers in the registry.
    ///
    /// # Errors
    /// When the orchestrator cannot be reached.
    pub async fn workers(&self) -> Result<WorkerList, Error> {
        self.get("/v2/workers").await
    }

    /// One worker.
    ///
    /// # Errors
    /// `WORKER_NOT_FOUND`.
    pub async fn worker(&self, worker: &WorkerId) -> Result<WorkerView, Error> {
        self.get(&format!("/v2/workers/{worker}")).await
    }

    /// Lets a worker finish its jobs and end.
    ///
    /// # Errors
    /// `WORKER_NOT_FOUND`.
    pub async fn drain_worker(&self, worker: &WorkerId) -> Result<(), Error> {
        let carrier = self.carrier()?;
        carrier.send(|| carrier.request(Method::DELETE, &format!("/v2/workers/{worker}"))).await.map(drop)
    }

    /// The registered pools.
    ///
    /// # Errors
    /// When the orchestrator cannot be reached.
    pub async fn pools(&self) -> Result<PoolList, Error> {
        self.get("/v2/pools").await
    }

    /// Adds a machine; adding it again with the same address changes nothing.
    ///
    /// # Errors
    /// When the orchestrator cannot reach it with its own keys.
    pub async fn add_pool(&self, pool: &AddPool) -> Result<(), Error> {
        let carrier = self.carrier()?;
        carrier.send(|| carrier.request(Method::POST, "/v2/pools").json(pool)).await.map(drop)
    }

    /// Forgets a machine.
    ///
    /// # Errors
    /// `POOL_NOT_FOUND`.
    pub async fn remove_pool(&self, pool: &PoolId) -> Result<(), Error> {
        let carrier = self.carrier()?;
        carrier.send(|| carrier.request(Method::DELETE, &format!("/v2/pools/{pool}"))).await.map(drop)
    }

    /// The orchestrator's condition; needs no credential.
    ///
    /// # Errors
    /// When the orchestrator cannot be reached.
    pub async fn health(&self) -> Result<OrchestratorHealth, Error> {
        self.get("/health").await
    }

    pub(crate) async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let carrier = self.carrier()?;
        carrier.json(|| carrier.request(Method::GET, path)).await
    }

    pub(crate) fn carrier(&self) -> Result<&Carrier, Error> {
        self.carrier.as_ref().map_err(Clone::clone)
    }
}

/// Gives the request an idempotency key unless it has one, so that it may be sent again after the
/// line broke without becoming two jobs.
fn with_key(mut request: TaskRequest) -> Result<TaskRequest, Error> {
    if request.idempotency_key.is_none() {
        let mut key = [0; 16];
        getrandom::fill(&mut key).map_err(|error| {
            let message = format!("no random bytes for an idempotency key: {error}");
            Error::from(api_types::ErrorDetail::new(api_types::ErrorCode::Internal, message))
        })?;
        request.idempotency_key = Some(key.iter().map(|byte| format!("{byte:02x}")).collect());
    }
    Ok(request)
}
