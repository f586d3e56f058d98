//! `POST /execute`: take a slot, make the prompt, start the run, stream its log.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use api_types::event::TaskEvent;
use api_types::sampling::FieldProblem;
use api_types::task::ChatMessage;
use api_types::worker::{ACKNOWLEDGE_HEADER, Continuation, ExecuteRequest};
use api_types::{Attempt, CorrelationId, ErrorBody, ErrorCode, ErrorDetail};
use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use engine::Token;

use super::body::JsonBody;
use super::error::ApiError;
use super::reader::stream;
use crate::decode::Command;
use crate::generation::{Job, failure};
use crate::prompt::Prompts;
use crate::replay::{self, Replay, check_vocabulary};
use crate::runs::{Admission, Claim, Run, Runs};
use crate::state::WorkerState;

/// Longest job id, in characters.
const MAX_JOB_ID: usize = 128;
/// Longest time a run may be given, in milliseconds: one day.
const MAX_TIME_LIMIT_MS: u64 = 86_400_000;

/// Highest id of a run's first event, so that the ids after it stay exact in every JSON reader.
const MAX_FIRST_EVENT_ID: u64 = 1 << 52;

static DIGEST_KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Runs one attempt of a job and streams its events. The same job, attempt and body again gives the
/// same stream from its start, never a second run.
#[utoipa::path(
    post,
    path = "/execute",
    request_body = ExecuteRequest,
    params((
        "x-rbees-acknowledge" = Option<String>, Header,
        description = "Ended runs whose logs are no longer needed, as JOB/ATTEMPT, parted by commas"
    )),
    responses(
        (status = 200, description = "Server-sent events; each `data:` is one TaskEvent", body = TaskEvent, content_type = "text/event-stream"),
        (status = 409, description = "JOB_CONFLICT, STALE_ATTEMPT or STALE_INCARNATION", body = ErrorBody),
        (status = 410, description = "ATTEMPT_GONE", body = ErrorBody),
        (status = 422, description = "INVALID_FIELD, CONTEXT_OVERFLOW, NO_CHAT_TEMPLATE or TEMPLATE_FAILED", body = ErrorBody),
        (status = 503, description = "ALL_SLOTS_BUSY, WORKER_LOADING or WORKER_DRAINING", body = ErrorBody),
    )
)]
pub async fn execute(
    State(state): State<Arc<WorkerState>>,
    correlation: Option<Extension<CorrelationId>>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<ExecuteRequest>,
) -> Result<Response, ApiError> {
    acknowledge(&state.runs, &headers);
    let caller = Caller { accepted: Instant::now(), correlation_id: correlation.map(|found| found.0) };
    check(&request).map_err(ErrorDetail::from)?;
    state.model()?;
    check_model(&state, request.model.as_deref())?;
    if let Some(meant) = request.incarnation {
        state.check_incarnation(meant).await?;
    }
    let first_event_id = request.first_event_id.unwrap_or(0);
    let claim =
        Claim { job_id: &request.job_id, attempt: request.attempt, digest: digest(&request), first_event_id };
    let run = match state.runs.admit(&claim)? {
        Admission::Joined(run) => run,
        Admission::Started(run) => {
            // In a task of its own: a client that leaves now must not leave a slot taken.
            let starting = tokio::spawn(start(state, request, Arc::clone(&run), caller));
            let started = starting.await.map_err(|_| internal("the run could not be started"))?;
            started?;
            run
        }
    };
    Ok(stream(run, first_event_id))
}

/// Forgets the logs of ended runs that the caller has no more use for. What is not understood, or
/// still runs, is let be: nobody waits for an answer, and a log goes by itself in time.
fn acknowledge(runs: &Runs, headers: &HeaderMap) {
    let lists = headers.get_all(ACKNOWLEDGE_HEADER).iter().filter_map(|list| list.to_str().ok());
    for (job_id, attempt) in
        lists.flat_map(|list| list.split(',')).filter_map(|run| run.trim().rsplit_once('/'))
    {
        if let Ok(attempt) = attempt.parse() {
            runs.acknowledge(job_id, Attempt(attempt));
        }
    }
}

/// Who asked, and when.
struct Caller {
    accepted: Instant,
    correlation_id: Option<CorrelationId>,
}

/// Makes the prompt and hands the job to the decode thread; otherwise undoes the admission.
async fn start(
    state: Arc<WorkerState>,
    request: ExecuteRequest,
    run: Arc<Run>,
    caller: Caller,
) -> Result<(), ErrorDetail> {
    let prepared = prepare(&state, request, Arc::clone(&run), caller).await;
    let handed = prepared.and_then(|job| {
        if job.replay.count() == 0 {
            run.log.append(&started(&state, &run));
        }
        let sent = state.model()?.commands.send(Command::Start(Box::new(job)));
        sent.map_err(|_| ErrorDetail::new(ErrorCode::ShuttingDown, "the worker is stopping"))
    });
    handed.inspect_err(|error| {
        state.runs.forget(&run);
        state.runs.finish(&run);
        run.log.append(&failure(error.clone()));
    })
}

async fn prepare(
    state: &WorkerState,
    request: ExecuteRequest,
    run: Arc<Run>,
    Caller { accepted, correlation_id }: Caller,
) -> Result<Job, ErrorDetail> {
    let model = state.model()?;
    let (prompts, forms) = (Arc::clone(&model.prompts), Arc::clone(&model.forms));
    let (context, vocab) = (prompts.info().context_length, prompts.info().vocab);
    let token_ids = request.token_ids == Some(true);
    let (continuation, prefix) = (request.continuation.clone(), request.prefix.clone());
    let sampling = request.sampling();
    let deadline =
        request.time_limit_ms.map(|ms| accepted + Duration::from_millis(ms.min(MAX_TIME_LIMIT_MS)));
    let asked = sampling.clone();
    let making = tokio::task::spawn_blocking(move || {
        let prompt = make_prompt(&prompts, request.prompt.as_deref(), request.messages.as_deref())?;
        let constraint = forms.prepare(&asked, request.continuation.as_ref())?;
        Ok::<_, ErrorDetail>((prompt, constraint))
    });
    let (prompt, constraint) = making.await.map_err(|_| internal("the prompt could not be made"))??;
    let left = room(prompt.len(), context)?;
    let replay = replay(continuation, left, vocab)?;
    Ok(Job {
        run,
        prompt,
        max_tokens: sampling.max_tokens.unwrap_or(left).min(left),
        seed: sampling.seed.unwrap_or_else(drawn_seed),
        sampling,
        deadline,
        accepted,
        correlation_id,
        token_ids,
        prefix,
        replay,
        constraint,
    })
}

/// What is to be taken of another worker's, where it fits this model and context.
fn replay(continuation: Option<Continuation>, left: u32, vocab: u32) -> Result<Replay, ErrorDetail> {
    let Some(continuation) = continuation else { return Ok(Replay::default()) };
    check_vocabulary(&continuation, vocab)?;
    let replay = Replay::new(continuation);
    if replay.count() <= left {
        return Ok(replay);
    }
    let message = format!(
        "the completion has {} tokens already; the context leaves {left} for it on this worker",
        replay.count()
    );
    Err(ErrorDetail::new(ErrorCode::ContextOverflow, message)
        .with_hint("use a worker with a larger --context"))
}

/// The tokens of a prompt or of messages.
///
/// # Errors
/// What [`Prompts`] says.
pub fn make_prompt(
    prompts: &Prompts,
    prompt: Option<&str>,
    messages: Option<&[ChatMessage]>,
) -> Result<Vec<Token>, ErrorDetail> {
    match (prompt, messages) {
        (_, Some(messages)) => prompts.from_messages(messages),
        (prompt, None) => prompts.from_text(prompt.unwrap_or_default()),
    }
}

/// Tokens that the context leaves for the answer.
fn room(prompt: usize, context: u32) -> Result<u32, ErrorDetail> {
    if prompt == 0 {
        return Err(
            FieldProblem::new("prompt", "empty", "the prompt has no tokens; at least one is needed").into()
        );
    }
    let prompt = u32::try_from(prompt).unwrap_or(u32::MAX);
    if prompt < context {
        return Ok(context - prompt);
    }
    let message = format!(
        "the prompt has {prompt} tokens; the context holds {context}, of which at least one is for the answer"
    );
    Err(ErrorDetail::new(ErrorCode::ContextOverflow, message)
        .with_details(serde_json::json!({ "prompt_tokens": prompt, "context_length": context }))
        .with_hint("shorten the prompt, or use a worker with a larger --context"))
}

/// A seed that every JSON reader can hold exactly: 53 bits.
fn drawn_seed() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    // The version and variant bits of the halves are fixed; folded together they are not.
    (high.rotate_left(32) ^ low) >> 11
}

fn started(state: &WorkerState, run: &Run) -> TaskEvent {
    let facts = state.facts();
    TaskEvent::Started {
        job_id: run.job_id.clone(),
        model: facts.model,
        worker_id: facts.worker_id,
        attempt: run.attempt,
        started_at: format!("{:.3}", jiff::Timestamp::now()),
    }
}

/// Tells one body from another; keyed, so that nobody can build two that collide.
fn digest(request: &ExecuteRequest) -> u64 {
    let mut hasher = DIGEST_KEY.build_hasher();
    hasher.write(&serde_json::to_vec(request).unwrap_or_default());
    hasher.finish()
}

fn internal(message: &str) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::Internal, message)
}

fn check_model(state: &WorkerState, asked: Option<&str>) -> Result<(), ErrorDetail> {
    let facts = state.facts();
    match asked {
        Some(asked) if asked != facts.model && Some(asked) != facts.model_ref.as_deref() => {
            let message = format!("this worker runs {}, not the model that was asked for", facts.model);
            Err(ErrorDetail::new(ErrorCode::ModelNotFound, message).with_field("model"))
        }
        _ => Ok(()),
    }
}

fn check(request: &ExecuteRequest) -> Result<(), FieldProblem> {
    let length = request.job_id.chars().count();
    if !(1..=MAX_JOB_ID).contains(&length) {
        let message = format!("job_id has {length} characters; allowed are 1 to {MAX_JOB_ID}");
        return Err(FieldProblem::new("job_id", "out_of_range", message));
    }
    if request.attempt == Some(Attempt(0)) {
        return Err(FieldProblem::new("attempt", "out_of_range", "attempt is 0; allowed is 1 or more"));
    }
    if request.time_limit_ms == Some(0) {
        let message = "time_limit_ms is 0; allowed is 1 or more";
        return Err(FieldProblem::new("time_limit_ms", "out_of_range", message));
    }
    if request.first_event_id.is_some_and(|id| id > MAX_FIRST_EVENT_ID) {
        let message = format!("first_event_id is too large; allowed is 0 to {MAX_FIRST_EVENT_ID}");
        return Err(FieldProblem::new("first_event_id", "out_of_range", message));
    }
    check_input("prompt", request.prompt.as_deref(), request.messages.as_deref())?;
    if request.prompt.as_deref() == Some("") {
        return Err(FieldProblem::new("prompt", "empty", "prompt is empty; give at least one character"));
    }
    if let Some(continuation) = &request.continuation {
        replay::check(continuation, request.seed)?;
    }
    request.sampling().check()
}

/// Exactly one of text and messages, with something in it and no NUL byte.
///
/// # Errors
/// The field that is wrong.
pub fn check_input(
    text_field: &str,
    text: Option<&str>,
    messages: Option<&[ChatMessage]>,
) -> Result<(), FieldProblem> {
    if text.is_some() == messages.is_some() {
        let message = format!("give either {text_field} or messages, not both and not neither");
        return Err(FieldProblem::new(text_field, "conflict", message));
    }
    let nul = |field: String, text: &str| {
        let message = format!("{field} holds a NUL byte; every other character is allowed");
        if text.contains('\0') { Err(FieldProblem::new(field, "nul_byte", message)) } else { Ok(()) }
    };
    nul(text_field.to_owned(), text.unwrap_or_default())?;
    let messages = messages.unwrap_or_default();
    if text.is_none() && messages.is_empty() {
        return Err(FieldProblem::new("messages", "empty", "messages is empty; give at least one message"));
    }
    messages.iter().enumerate().try_for_each(|(at, message)| {
        nul(format!("messages.{at}.role"), &message.role)?;
        nul(format!("messages.{at}.content"), &message.content)
    })
}
