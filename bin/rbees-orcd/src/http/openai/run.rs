//! One job behind a connection: when the connection goes, and no other has come for the same job with
//! its idempotency key, the job is cancelled.

use std::time::Duration;

use api_types::event::{RunEnd, StopReason};
use api_types::sse::{Frame, FrameDecoder};
use api_types::task::TaskRequest;
use api_types::{CorrelationId, ErrorCode, ErrorDetail, JobId, TaskEvent};
use axum::response::Response;
use bytes::Bytes;
use futures_util::Stream;
use serde::Serialize;
use serde_json::Value;

use super::IdempotencyKey;
use crate::driver::{Accepted, CheckedTask};
use crate::http::tasks::{checked, refuse_overflow, submit_and_read, with_job};
use crate::http::{ApiError, App, openai, sse};
use crate::subscribers::Reader;

/// How long the headers of a stream are held back for the first token, so that a failure before
/// it has a status of its own.
const HOLD_HEADERS: Duration = Duration::from_secs(10);

/// A submitted job and the reader of its events.
pub struct Run {
    /// The job.
    pub job_id: JobId,
    /// The model that answers.
    pub model: String,
    /// When it was submitted, in seconds since the Unix epoch.
    pub created: i64,
    reader: Reader,
    decoder: FrameDecoder,
}

/// Something to tell the client.
pub enum Told {
    /// Text of the completion, as a JSON string.
    Text(String),
    /// It is over.
    End(RunEnd),
    /// It failed.
    Failed(ErrorDetail),
    /// Nothing for a while.
    Silence,
}

/// Submits a task and holds its job, or the first job of its key.
///
/// A job whose last connection closes while this one comes is on its way to be cancelled: its key is
/// free then, and the task is submitted again.
async fn submit_and_hold(
    app: &App,
    mut task: Box<CheckedTask>,
    correlation_id: &CorrelationId,
) -> Result<(Accepted, Reader), ApiError> {
    loop {
        let again = task.idempotency.is_some().then(|| task.clone());
        let (accepted, mut reader) = submit_and_read(app, task, correlation_id).await?;
        reader.hold();
        match again {
            Some(again) if accepted.replayed && app.driver.is_abandoned(accepted.job_id).await? => {
                task = again;
            }
            _ => return Ok((accepted, reader)),
        }
    }
}

/// When a job was handed in, as its id says.
fn created(job_id: JobId) -> i64 {
    let seconds = job_id.uuid().get_timestamp().map_or(0, |drawn| drawn.to_unix().0);
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

impl Run {
    /// Checks and submits a request, or takes part in the run of its key.
    pub async fn start(
        app: &App,
        request: TaskRequest,
        key: IdempotencyKey,
        correlation_id: &CorrelationId,
    ) -> Result<Self, ApiError> {
        let mut task = checked(request, key.0, correlation_id)?;
        refuse_overflow(app, &mut task).await?;
        let (accepted, reader) = submit_and_hold(app, task, correlation_id).await?;
        Ok(Self {
            job_id: accepted.job_id,
            model: accepted.model,
            created: created(accepted.job_id),
            reader,
            decoder: FrameDecoder::default(),
        })
    }

    /// What comes next; `None` when the orchestrator stops.
    pub async fn next(&mut self) -> Option<Told> {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => {
                    if let Some(told) = self.tell(&frame) {
                        return Some(told);
                    }
                }
                Ok(None) => match self.reader.next().await {
                    Some(bytes) if bytes.starts_with(b":") => return Some(Told::Silence),
                    Some(bytes) => self.decoder.push(&bytes),
                    None => return None,
                },
                Err(error) => {
                    return Some(Told::Failed(ErrorDetail::new(ErrorCode::Internal, error.to_string())));
                }
            }
        }
    }

    /// What a frame says that a client of this dialect is told.
    fn tell(&mut self, frame: &Frame) -> Option<Told> {
        if let Some(json) = frame.token_json() {
            return Some(Told::Text(json.to_owned()));
        }
        if !matches!(&*frame.event, "token" | "end" | "error") {
            return None;
        }
        match frame.task_event().ok()? {
            TaskEvent::Token { t, .. } => serde_json::to_string(&t).ok().map(Told::Text),
            TaskEvent::End(end) => Some(Told::End(end)),
            TaskEvent::Error { code, message, retriable, details } => {
                let mut error = ErrorDetail::new(code, message);
                error.retriable = retriable;
                error.details = details;
                Some(Told::Failed(error))
            }
            TaskEvent::Queued { .. }
            | TaskEvent::Started { .. }
            | TaskEvent::Metrics(_)
            | TaskEvent::Seam { .. } => None,
        }
    }

    /// The whole text and the figures.
    pub async fn collect(mut self) -> Result<(Self, String, RunEnd), ApiError> {
        let mut text = String::new();
        loop {
            match self.next().await {
                Some(Told::Text(json)) => {
                    text.push_str(&serde_json::from_str::<String>(&json).unwrap_or_default())
                }
                Some(Told::End(end)) => return Ok((self, text, end)),
                Some(Told::Failed(error)) => return Err(error.into()),
                Some(Told::Silence) => {}
                None => return Err(stopping().into()),
            }
        }
    }

    /// A stream of chunks. Its headers wait for the first token; `chunk` shapes what is told.
    pub async fn stream(mut self, chunks: impl Chunks) -> Result<Response, ApiError> {
        let job_id = self.job_id;
        let first = self.first().await?;
        let opening = chunks.opening(&self);
        let state = State { run: self, chunks, ready: vec![opening], first, over: false };
        Ok(with_job(sse::answer(state.into_stream()), job_id))
    }

    /// The first thing worth telling, or nothing when it takes too long.
    async fn first(&mut self) -> Result<Option<Told>, ApiError> {
        let first = async {
            loop {
                match self.next().await {
                    Some(Told::Silence) => {}
                    other => return other,
                }
            }
        };
        match tokio::time::timeout(HOLD_HEADERS, first).await {
            Ok(Some(Told::Failed(error))) => Err(error.into()),
            Ok(Some(told)) => Ok(Some(told)),
            Ok(None) => Err(stopping().into()),
            Err(_) => Ok(None),
        }
    }
}

/// How a dialect's route writes a stream.
pub trait Chunks: Send + 'static {
    /// What comes before any text; may be empty.
    fn opening(&self, run: &Run) -> Bytes;
    /// Some text, as a JSON string.
    fn text(&self, run: &Run, json: &str) -> Bytes;
    /// The end, with the counts where they were asked for.
    fn end(&self, run: &Run, end: &RunEnd) -> Bytes;
}

struct State<C> {
    run: Run,
    chunks: C,
    ready: Vec<Bytes>,
    first: Option<Told>,
    over: bool,
}

impl<C: Chunks> State<C> {
    fn into_stream(self) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send {
        futures_util::stream::unfold(self, |mut state| async move {
            let bytes = state.next().await?;
            Some((Ok(bytes), state))
        })
    }

    async fn next(&mut self) -> Option<Bytes> {
        if let Some(bytes) = self.ready.pop().filter(|bytes| !bytes.is_empty()) {
            return Some(bytes);
        }
        if self.over {
            return None;
        }
        loop {
            let told = match self.first.take() {
                Some(told) => told,
                None => self.run.next().await?,
            };
            match told {
                // A token inside a character has no text of its own.
                Told::Text(json) if json == "\"\"" => {}
                Told::Text(json) => return Some(self.chunks.text(&self.run, &json)),
                Told::Silence => return Some(Bytes::from_static(api_types::sse::KEEP_ALIVE)),
                Told::End(end) => {
                    self.over = true;
                    return Some(self.chunks.end(&self.run, &end));
                }
                Told::Failed(error) => {
                    self.over = true;
                    return Some(data(&openai::error::body(&error)));
                }
            }
        }
    }
}

/// One `data:` line.
pub fn data(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

/// Why the text ends, in this dialect's words.
pub const fn finish_reason(reason: StopReason) -> &'static str {
    match reason {
        StopReason::Eos | StopReason::Stop | StopReason::Cancelled => "stop",
        StopReason::MaxTokens => "length",
        StopReason::ToolCall => "tool_calls",
    }
}

/// The counts as they stand on the wire.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens_details: Option<PromptTokensDetails>,
}

/// What was not processed again.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct PromptTokensDetails {
    cached_tokens: u32,
}

/// The counts.
pub fn usage(end: &RunEnd) -> Usage {
    Usage {
        prompt_tokens: end.tokens_in,
        completion_tokens: end.tokens_out,
        total_tokens: u64::from(end.tokens_in) + u64::from(end.tokens_out),
        prompt_tokens_details: end.tokens_cached.map(|cached_tokens| PromptTokensDetails { cached_tokens }),
    }
}

fn stopping() -> ErrorDetail {
    ErrorDetail::new(ErrorCode::ShuttingDown, "the orchestrator is stopping").with_retry_after_ms(2_000)
}
