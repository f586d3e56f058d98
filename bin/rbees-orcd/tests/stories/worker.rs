//! A worker that does what a test tells it: every run's log is written in full, and readers get
//! as much of it as the test allows.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api_types::event::{RunEnd, RunMetrics, StopReason};
use api_types::sse::encode_event;
use api_types::worker::{
    ACKNOWLEDGE_HEADER, CancelRequest, ExecuteRequest, HeartbeatCall, ReadyCall, RunRef, TokenizeRequest,
    Tokenized, WorkerFacts, WorkerHealth, WorkerStatus,
};
use api_types::{Attempt, ErrorCode, ErrorDetail, InstanceId, TaskEvent};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use clients::OrchestratorClient;
use http::StatusCode;
use serde::Deserialize;
use tokio::sync::watch;
use uuid::Uuid;

pub const MODEL: &str = "scripted";
/// Tokens of context; a token is a byte.
pub const CONTEXT: u32 = 200_000;

#[derive(Clone)]
pub struct Worker {
    shared: Arc<Shared>,
}

struct Shared {
    facts: Mutex<WorkerFacts>,
    tokens: Mutex<Vec<String>>,
    refusal: Mutex<Option<ErrorDetail>>,
    runs: Mutex<HashMap<(String, u32), Run>>,
    /// Frames of a run that readers may see.
    allowed: watch::Sender<usize>,
    executed: Mutex<Vec<ExecuteRequest>>,
    acknowledged: Mutex<Vec<String>>,
    /// Grows whenever all open streams are to break.
    breaks: watch::Sender<u64>,
    resumed: Mutex<u64>,
    /// How often it was told to stop a run.
    cancelled: Mutex<u64>,
    /// Whether it does not do what a cancellation asks of it.
    deaf: AtomicBool,
    /// Heartbeats that were answered.
    beats: watch::Sender<u64>,
}

#[derive(Clone)]
struct Run {
    first_id: u64,
    frames: watch::Sender<Vec<Bytes>>,
}

impl Worker {
    /// A worker that answers with these tokens and registers at `daemon`.
    pub async fn start(daemon: &str, tokens: &[&str]) -> Self {
        Self::start_with(daemon, tokens, |_| {}).await
    }

    /// As [`Worker::start`], with these capabilities.
    pub async fn able(daemon: &str, tokens: &[&str], capabilities: &[&str]) -> Self {
        let has = capabilities.iter().map(|has| (*has).to_owned()).collect();
        Self::start_with(daemon, tokens, |facts| facts.capabilities = has).await
    }

    /// As [`Self::start`], with other facts.
    pub async fn start_with(daemon: &str, tokens: &[&str], change: impl FnOnce(&mut WorkerFacts)) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let uri = format!("http://{}", listener.local_addr().expect("an address"));
        let mut facts = facts(uri);
        change(&mut facts);
        let shared = Shared {
            facts: Mutex::new(facts),
            tokens: Mutex::new(tokens.iter().map(|token| (*token).to_owned()).collect()),
            refusal: Mutex::default(),
            runs: Mutex::default(),
            allowed: watch::Sender::new(usize::MAX),
            executed: Mutex::default(),
            acknowledged: Mutex::default(),
            breaks: watch::Sender::new(0),
            resumed: Mutex::default(),
            cancelled: Mutex::default(),
            deaf: AtomicBool::new(false),
            beats: watch::Sender::new(0),
        };
        let worker = Self { shared: Arc::new(shared) };
        let router = Router::new()
            .route("/execute", post(execute))
            .route("/cancel", post(cancel))
            .route("/tokenize", post(tokenize))
            .route("/health", get(health))
            .route("/jobs/{job}/{attempt}/events", get(events).delete(acknowledge))
            .with_state(worker.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        worker.register(daemon).await;
        worker
    }

    /// From now on cancellations are taken in and nothing comes of them.
    pub fn turn_deaf(&self) {
        self.shared.deaf.store(true, Ordering::SeqCst);
    }

    /// Introduces itself and goes on with heartbeats.
    pub async fn register(&self, daemon: &str) {
        let orchestrator = OrchestratorClient::new(daemon, None).expect("a client");
        let facts = self.facts();
        let call =
            ReadyCall { facts: facts.clone(), status: WorkerStatus::Ready, runs: self.runs(), secret: None };
        let reply = orchestrator.ready(&call).await.expect("registered");
        let worker = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(500)).await;
                let call = HeartbeatCall {
                    instance: facts.instance,
                    incarnation: reply.incarnation,
                    status: WorkerStatus::Ready,
                    slots_busy: 0,
                    runs: worker.runs(),
                    free_memory_bytes: 1 << 30,
                    prefixes: None,
                };
                if orchestrator.heartbeat(&facts.worker_id, &call).await.is_err() {
                    return;
                }
                worker.shared.beats.send_modify(|beats| *beats += 1);
            }
        });
    }

    /// How many heartbeats were answered.
    pub fn beats(&self) -> u64 {
        *self.shared.beats.borrow()
    }

    /// Lets readers see only this many frames of a run.
    pub fn allow(&self, frames: usize) {
        self.shared.allowed.send_replace(frames);
    }

    /// Refuses every run with this error; `None` takes them again.
    pub fn refuse(&self, error: Option<ErrorDetail>) {
        *self.shared.refusal.lock().unwrap() = error;
    }

    /// Breaks every open stream, as a bad network does.
    pub fn break_streams(&self) {
        self.shared.breaks.send_modify(|breaks| *breaks += 1);
    }

    /// How often a log was asked for.
    pub fn resumed(&self) -> u64 {
        *self.shared.resumed.lock().unwrap()
    }

    /// How often it was told to stop a run.
    pub fn cancelled(&self) -> u64 {
        *self.shared.cancelled.lock().unwrap()
    }

    /// Loses every run, as a new start of the worker does.
    pub fn forget_runs(&self) {
        self.shared.runs.lock().unwrap().clear();
        self.shared.facts.lock().unwrap().instance = InstanceId(Uuid::now_v7());
    }

    pub fn executed(&self) -> Vec<ExecuteRequest> {
        self.shared.executed.lock().unwrap().clone()
    }

    pub fn acknowledged(&self) -> Vec<String> {
        self.shared.acknowledged.lock().unwrap().clone()
    }

    fn facts(&self) -> WorkerFacts {
        self.shared.facts.lock().unwrap().clone()
    }

    fn runs(&self) -> Vec<RunRef> {
        let runs = self.shared.runs.lock().unwrap();
        let run_ref = |(job, attempt): &(String, u32)| RunRef {
            job_id: job.clone(),
            attempt: Attempt(*attempt),
            ended: false,
        };
        runs.keys().map(run_ref).collect()
    }

    fn stream(&self, run: Run, from: usize) -> Response {
        let frames = run.frames.subscribe();
        let allowed = self.shared.allowed.subscribe();
        let breaks = self.shared.breaks.subscribe();
        let state = (frames, allowed, breaks, from);
        let stream =
            futures_util::stream::unfold(state, |(mut frames, mut allowed, mut breaks, at)| async move {
                loop {
                    let found = frames.borrow_and_update().get(at).cloned();
                    let may = *allowed.borrow_and_update() > at;
                    let total = frames.borrow().len();
                    if let (Some(frame), true) = (found, may) {
                        return Some((Ok(frame), (frames, allowed, breaks, at + 1)));
                    }
                    if at >= total && total > 0 {
                        return None;
                    }
                    tokio::select! {
                        changed = frames.changed() => changed.ok()?,
                        changed = allowed.changed() => changed.ok()?,
                        _ = breaks.changed() => {
                            let broken = std::io::Error::other("broken by the test");
                            return Some((Err(broken), (frames, allowed, breaks, at)));
                        }
                    }
                }
            });
        Response::new(axum::body::Body::from_stream(stream))
    }
}

fn facts(uri: String) -> WorkerFacts {
    WorkerFacts {
        worker_id: "worker-fake-0123456789ab".parse().expect("an id"),
        instance: InstanceId(Uuid::now_v7()),
        pool_id: None,
        uri,
        model: MODEL.to_owned(),
        model_ref: None,
        backend: "fake".to_owned(),
        devices: vec!["cpu".to_owned()],
        slots: 4,
        context_length: CONTEXT,
        vram_bytes: 0,
        ram_bytes: 0,
        quantization: None,
        tokenizer: None,
        capabilities: ["chat", "completion"].map(str::to_owned).into(),
        evictable: false,
        engine: "scripted".to_owned(),
        version: "0".to_owned(),
        protocol: api_types::PROTOCOL,
    }
}

/// The whole log of a run: started, a progress event without a number, tokens, end.
fn script(worker: &Worker, request: &ExecuteRequest) -> Vec<Bytes> {
    let first = request.first_event_id.unwrap_or(0);
    let tokens = worker.shared.tokens.lock().unwrap().clone();
    let tokens: Vec<_> = tokens.into_iter().take(request.max_tokens.unwrap_or(u32::MAX) as usize).collect();
    let all = worker.shared.tokens.lock().unwrap().len();
    let stop_reason = if tokens.len() < all { StopReason::MaxTokens } else { StopReason::Eos };
    let started = TaskEvent::Started {
        job_id: request.job_id.clone(),
        model: MODEL.to_owned(),
        worker_id: worker.facts().worker_id,
        attempt: request.attempt.unwrap_or(Attempt(1)),
        started_at: "2026-01-01T00:00:00Z".to_owned(),
    };
    let mut frames = vec![encode_event(Some(first), &started)];
    let progress = RunMetrics {
        prompt_tokens_done: Some(1),
        prompt_tokens: Some(2),
        tokens_out: 0,
        tokens_per_second: 0.0,
    };
    frames.push(encode_event(None, &TaskEvent::Metrics(progress)));
    let count = tokens.len() as u32;
    for (i, t) in (0..).zip(tokens) {
        frames.push(encode_event(Some(first + 1 + u64::from(i)), &TaskEvent::Token { t, i, k: None }));
    }
    frames.push(encode_event(Some(first + 1 + u64::from(count)), &end(count, stop_reason)));
    frames
}

fn end(tokens_out: u32, stop_reason: StopReason) -> TaskEvent {
    TaskEvent::End(RunEnd {
        tokens_in: 7,
        tokens_out,
        queue_time_ms: 0,
        prefill_time_ms: 1,
        decode_time_ms: 2,
        stop_reason,
        seed: None,
        tokens_cached: None,
    })
}

async fn execute(
    State(worker): State<Worker>,
    headers: axum::http::HeaderMap,
    Json(request): Json<ExecuteRequest>,
) -> Response {
    let list = headers.get(ACKNOWLEDGE_HEADER).map(|list| list.to_str().unwrap()).unwrap_or_default();
    let gone = list.split(',').filter_map(|run| run.split_once('/')).map(|(job, _)| job.to_owned());
    worker.shared.acknowledged.lock().unwrap().extend(gone);
    worker.shared.executed.lock().unwrap().push(request.clone());
    if let Some(error) = worker.shared.refusal.lock().unwrap().clone() {
        return refused(error);
    }
    let frames = script(&worker, &request);
    let run = Run { first_id: request.first_event_id.unwrap_or(0), frames: watch::Sender::new(frames) };
    let key = (request.job_id.clone(), request.attempt.map_or(1, |attempt| attempt.0));
    worker.shared.runs.lock().unwrap().insert(key, run.clone());
    worker.stream(run, 0)
}

#[derive(Deserialize)]
struct From {
    from: u64,
}

/// The log counts only events with a number; the progress event is live.
async fn events(
    State(worker): State<Worker>,
    Path((job, attempt)): Path<(String, u32)>,
    Query(query): Query<From>,
) -> Response {
    *worker.shared.resumed.lock().unwrap() += 1;
    let run = worker.shared.runs.lock().unwrap().get(&(job, attempt)).cloned();
    let Some(run) = run else { return refused(ErrorDetail::new(ErrorCode::JobNotFound, "no such run")) };
    let wanted = format!("id: {}\n", query.from.max(run.first_id));
    let at = run.frames.borrow().iter().position(|frame| frame.starts_with(wanted.as_bytes()));
    let at = at.unwrap_or_else(|| run.frames.borrow().len());
    worker.stream(run, at)
}

async fn acknowledge(State(worker): State<Worker>, Path((job, attempt)): Path<(String, u32)>) -> StatusCode {
    worker.shared.runs.lock().unwrap().remove(&(job.clone(), attempt));
    worker.shared.acknowledged.lock().unwrap().push(job);
    StatusCode::NO_CONTENT
}

/// Cuts the log to what readers were allowed to see, and ends it.
async fn cancel(State(worker): State<Worker>, Json(request): Json<CancelRequest>) -> StatusCode {
    *worker.shared.cancelled.lock().unwrap() += 1;
    if worker.shared.deaf.load(Ordering::SeqCst) {
        return StatusCode::ACCEPTED;
    }
    let key = (request.job_id, request.attempt.map_or(1, |attempt| attempt.0));
    let allowed = *worker.shared.allowed.borrow();
    if let Some(run) = worker.shared.runs.lock().unwrap().get(&key) {
        run.frames.send_modify(|frames| {
            if allowed < frames.len() {
                frames.truncate(allowed);
                let numbered = frames.iter().filter(|frame| frame.starts_with(b"id:")).count() as u64;
                frames.push(encode_event(Some(run.first_id + numbered), &end(0, StopReason::Cancelled)));
            }
        });
    }
    worker.allow(usize::MAX);
    StatusCode::ACCEPTED
}

async fn tokenize(State(worker): State<Worker>, Json(request): Json<TokenizeRequest>) -> Json<Tokenized> {
    let messages = request.messages.unwrap_or_default();
    let text = request.text.unwrap_or_default()
        + messages.into_iter().map(|m| m.content).collect::<String>().as_str();
    let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
    Json(Tokenized { count: tokens.len() as u32, tokens, context_length: worker.facts().context_length })
}

async fn health(State(worker): State<Worker>) -> Json<WorkerHealth> {
    Json(WorkerHealth {
        status: WorkerStatus::Ready,
        load_progress: None,
        error: None,
        slots_busy: 0,
        incarnation: None,
        free_memory_bytes: None,
        facts: worker.facts(),
    })
}

fn refused(error: ErrorDetail) -> Response {
    let status = StatusCode::from_u16(error.code.http_status()).expect("a status");
    (status, Json(error.into_body())).into_response()
}
