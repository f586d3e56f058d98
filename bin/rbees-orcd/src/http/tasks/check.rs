//! From what a client sent to a task that nobody has to check again.

use api_types::sampling::{DEFAULT_MAX_TOKENS, FieldProblem, Sampling};
use api_types::task::{ChatMessage, OnDisconnect, Placement, Priority, TaskRequest};
use api_types::worker::{ExecuteRequest, TokenizeRequest};
use api_types::{CorrelationId, ErrorCode, ErrorDetail, TenantId};
use http::HeaderMap;
use orchestrator_core::Idempotency;
use sha2::{Digest, Sha256};

use crate::driver::CheckedTask;
use crate::http::{ApiError, App};
use crate::ids::next_seed;

/// Longest idempotency key, in bytes.
const MAX_KEY: usize = 255;
/// Who may speak in a conversation. A template writes other names down as they are, and no model knows them.
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];
/// Longest name of a model, in bytes.
const MAX_MODEL: usize = 512;
/// Most names in each list of a placement.
const MAX_NAMES: usize = 32;
/// Longest name in a list of a placement, in bytes; ids of workers and pools are shorter.
const MAX_NAME: usize = 128;

/// Turns a request into a checked task, or into a refusal that names the field.
///
/// # Errors
/// `INVALID_FIELD` with the field and a reason.
pub fn check_task(
    request: TaskRequest,
    headers: &HeaderMap,
    correlation_id: &CorrelationId,
) -> Result<Box<CheckedTask>, ApiError> {
    let request = TaskRequest { max_tokens: request.max_tokens.or(Some(DEFAULT_MAX_TOKENS)), ..request };
    checked(request, idempotency_header(headers)?, correlation_id)
}

/// As [`check_task`], with `max_tokens` as given: absent means what the context leaves.
///
/// # Errors
/// As [`check_task`].
pub fn checked(
    mut request: TaskRequest,
    header_key: Option<String>,
    correlation_id: &CorrelationId,
) -> Result<Box<CheckedTask>, ApiError> {
    check_input(&request)?;
    check_model(request.model.as_deref())?;
    request.placement.as_ref().map_or(Ok(()), check_placement)?;
    if request.deadline_ms == Some(0) {
        return Err(problem("deadline_ms", "out_of_range", "deadline_ms is 0; allowed is 1 or more").into());
    }
    let idempotency = idempotency(&mut request, header_key)?;
    let mut sampling = request.sampling();
    sampling.check()?;
    sampling.seed.get_or_insert_with(next_seed);
    let priority = request.priority.unwrap_or_default();
    let on_disconnect = request.on_disconnect.unwrap_or(match priority {
        Priority::Interactive => OnDisconnect::Cancel,
        Priority::Batch => OnDisconnect::Continue,
    });
    Ok(Box::new(CheckedTask {
        tenant: TenantId::default(),
        session_id: request.session_id.clone(),
        prompt_bytes: input_bytes(&request),
        prompt_tokens: None,
        model: request.model,
        request: ExecuteRequest { prompt: request.prompt, messages: request.messages, ..Default::default() }
            .with_sampling(&sampling),
        priority,
        deadline_ms: request.deadline_ms,
        on_disconnect,
        retry: request.retry.unwrap_or_default(),
        placement: with_needed(request.placement.unwrap_or_default(), &sampling),
        durability: request.durability.unwrap_or_default(),
        idempotency,
        correlation_id: correlation_id.clone(),
    }))
}

/// Refuses a prompt that the context of no ready worker holds which may run it, where its bytes make
/// that possible, and notes how long it is. Counting is the worker's business; without a ready worker
/// it is found out at dispatch.
///
/// # Errors
/// `CONTEXT_OVERFLOW` with both counts, or what the worker says about the chat template.
pub async fn refuse_overflow(app: &App, task: &mut CheckedTask) -> Result<(), ApiError> {
    // A token is at least one byte, so fewer bytes than tokens of context always fit.
    if task.prompt_bytes < app.driver.smallest_context() {
        return Ok(());
    }
    // On the heap: other requests do not carry along what it takes to count.
    Box::pin(count_or_refuse(app, task)).await
}

async fn count_or_refuse(app: &App, task: &mut CheckedTask) -> Result<(), ApiError> {
    let Some((uri, secret)) = counting_worker(app, task).await? else { return Ok(()) };
    let worker = app.workers.at(&uri, secret.as_deref()).with_correlation(&task.correlation_id);
    let request =
        TokenizeRequest { text: task.request.prompt.clone(), messages: task.request.messages.clone() };
    let counted = match worker.tokenize(&request).await {
        Ok(counted) => counted,
        Err(error) => {
            return match error.answered() {
                Some(refusal) if is_about_input(refusal.code) => Err(refusal.clone().into()),
                // Whatever else is wrong with the worker shows, and is handled, at dispatch.
                _ => Ok(()),
            };
        }
    };
    if counted.count < counted.context_length {
        task.prompt_tokens = Some(counted.count);
        return Ok(());
    }
    Err(overflow(counted.count, counted.context_length).into())
}

/// The ready worker with the largest context of those that may run the task, when the prompt may be too
/// long for some worker.
async fn counting_worker(
    app: &App,
    task: &CheckedTask,
) -> Result<Option<(String, Option<String>)>, ErrorDetail> {
    let (model, placement, bytes) = (task.model.clone(), task.placement.clone(), task.prompt_bytes);
    app.driver
        .read(move |brain, _| {
            let model = brain.resolve_model(model.as_deref()).ok()?;
            if brain.least_context_of(&model).is_none_or(|least| bytes < u64::from(least)) {
                return None;
            }
            let row = brain.roomiest(&model, &placement)?;
            Some((row.facts.uri.clone(), row.secret.clone()))
        })
        .await
}

fn overflow(count: u32, context: u32) -> ErrorDetail {
    let message = format!("the prompt has {count} tokens and the context holds {context}");
    ErrorDetail::new(ErrorCode::ContextOverflow, message)
        .with_details(serde_json::json!({ "prompt_tokens": count, "context_length": context }))
        .with_hint("shorten the prompt, or start a worker with a larger --context")
}

const fn is_about_input(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::ContextOverflow
            | ErrorCode::NoChatTemplate
            | ErrorCode::TemplateFailed
            | ErrorCode::InvalidField
    )
}

/// One of `prompt` and `messages`, not empty, and without NUL bytes.
fn check_input(request: &TaskRequest) -> Result<(), FieldProblem> {
    match (&request.prompt, &request.messages) {
        (None, None) => Err(problem("prompt", "missing", "give `prompt` or `messages`")),
        (Some(_), Some(_)) => Err(problem("messages", "conflict", "give `prompt` or `messages`, not both")),
        (Some(prompt), None) if prompt.is_empty() => {
            Err(problem("prompt", "empty", "prompt is empty; allowed is a text of 1 character or more"))
        }
        (Some(prompt), None) => no_nul("prompt", prompt),
        (None, Some(messages)) if messages.is_empty() => {
            Err(problem("messages", "empty", "messages is empty; allowed is 1 message or more"))
        }
        (None, Some(messages)) => {
            messages.iter().enumerate().try_for_each(|(at, message)| check_message(at, message))
        }
    }?;
    request.stop.iter().enumerate().try_for_each(|(at, stop)| no_nul(&format!("stop.{at}"), stop))
}

fn check_message(at: usize, message: &ChatMessage) -> Result<(), FieldProblem> {
    if !ROLES.contains(&message.role.as_str()) {
        let field = format!("messages.{at}.role");
        let text = format!("{field} is no role; allowed are {}", ROLES.join(", "));
        return Err(FieldProblem::new(field, "unknown_value", text));
    }
    no_nul(&format!("messages.{at}.content"), &message.content)
}

fn no_nul(field: &str, text: &str) -> Result<(), FieldProblem> {
    match memchr::memchr(0, text.as_bytes()) {
        Some(at) => Err(FieldProblem::new(
            field,
            "nul_byte",
            format!("{field} holds a NUL byte at offset {at}; none is allowed"),
        )),
        None => Ok(()),
    }
}

fn check_model(model: Option<&str>) -> Result<(), FieldProblem> {
    match model {
        Some(model) if model.is_empty() || model.len() > MAX_MODEL || model.chars().any(char::is_control) => {
            let text =
                format!("model is not a name; allowed are 1 to {MAX_MODEL} bytes without control characters");
            Err(FieldProblem::new("model", "out_of_range", text))
        }
        _ => Ok(()),
    }
}

/// Each list of a bounded length, and names in it that could be names.
fn check_placement(placement: &Placement) -> Result<(), FieldProblem> {
    let lists = [("require", &placement.require), ("prefer", &placement.prefer), ("avoid", &placement.avoid)];
    for (list, names) in lists {
        let field = format!("placement.{list}");
        if names.len() > MAX_NAMES {
            let text = format!("{field} has {} names; allowed are 0 to {MAX_NAMES}", names.len());
            return Err(FieldProblem::new(field, "out_of_range", text));
        }
        let is_name =
            |name: &String| !name.is_empty() && name.len() <= MAX_NAME && !name.chars().any(char::is_control);
        if let Some(at) = names.iter().position(|name| !is_name(name)) {
            let field = format!("{field}.{at}");
            let text = format!(
                "{field} is not a name; allowed are 1 to {MAX_NAME} bytes without control characters"
            );
            return Err(FieldProblem::new(field, "out_of_range", text));
        }
    }
    Ok(())
}

/// The key that the client gives in a header.
///
/// # Errors
/// `INVALID_HEADER` when it is no text.
pub fn idempotency_header(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let text = value.to_str().map_err(|_| {
        ApiError::new(ErrorCode::InvalidHeader, "Idempotency-Key is not ASCII; allowed is printable ASCII")
    })?;
    Ok(Some(text.to_owned()))
}

/// The client's key with a digest of everything else in the request.
fn idempotency(request: &mut TaskRequest, header: Option<String>) -> Result<Option<Idempotency>, ApiError> {
    let body = request.idempotency_key.take();
    let key = match (header, body) {
        (Some(header), Some(body)) if header != body => {
            let text = "idempotency_key and the Idempotency-Key header differ; give one, or the same";
            return Err(problem("idempotency_key", "conflict", text).into());
        }
        (header, body) => header.or(body),
    };
    let Some(key) = key else { return Ok(None) };
    if key.is_empty() || key.len() > MAX_KEY || key.chars().any(char::is_control) {
        let text =
            format!("idempotency_key has {} bytes; allowed are 1 to {MAX_KEY} printable ones", key.len());
        return Err(FieldProblem::new("idempotency_key", "out_of_range", text).into());
    }
    Ok(Some(Idempotency { key, digest: digest(request) }))
}

/// SHA-256 of the request as this build writes it, so that spaces and order do not matter.
fn digest(request: &TaskRequest) -> String {
    let canonical = serde_json::to_vec(request).unwrap_or_default();
    Sha256::digest(canonical).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The placement with what the worker must be able to do: one that lacks it would refuse the job.
fn with_needed(mut placement: Placement, sampling: &Sampling) -> Placement {
    let needed =
        sampling.needed_capability().filter(|needed| !placement.require.iter().any(|has| has == needed));
    placement.require.extend(needed.map(str::to_owned));
    placement
}

fn input_bytes(request: &TaskRequest) -> u64 {
    let prompt = request.prompt.as_ref().map_or(0, String::len);
    let messages = request.messages.iter().flatten();
    (prompt + messages.map(|message| message.role.len() + message.content.len()).sum::<usize>()) as u64
}

fn problem(field: &str, reason: &'static str, message: &str) -> FieldProblem {
    FieldProblem::new(field, reason, message)
}
