//! `rbees jobs submit`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use api_types::{ErrorDetail, WorkerId};
use clap::{Args, ValueEnum};
use cli_kit::ExitStatus;
use llama_orch_sdk::{ChatMessage, Client, Error, OnDisconnect, Placement, Priority, RetryMode, TaskRequest};
use serde::Deserialize;

use super::SamplingArgs;
use crate::commands::Outcome;
use crate::commands::run::read_text;
use crate::context::Context;
use crate::detail;
use crate::watch::{self, OnInterrupt, Telling};

/// Hands in a job and shows its answer as it comes
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  rbees jobs submit --model smollm2-135m --prompt \"The capital of France is\" --temperature 0 --max-tokens 16\n  rbees jobs submit --model smollm2-135m --messages-file talk.json --no-stream --priority batch"
)]
pub struct SubmitArgs {
    /// The model; may be left out when exactly one can be served
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    #[command(flatten)]
    input: Input,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    handling: Handling,
    /// Prints the job's id and leaves, instead of showing the answer
    #[arg(long)]
    no_stream: bool,
}

/// Exactly one of these
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Input {
    /// Text that goes to the model as it is
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// The same from a file; `-` is standard input
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// A conversation, JSON: [{"role": "user", "content": "…"}, …]; `-` is standard input
    #[arg(long, value_name = "FILE")]
    messages_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Handling {
    /// Which class of the queue
    #[arg(long, value_enum)]
    priority: Option<PriorityArg>,
    /// Milliseconds after which the answer is worthless
    #[arg(long, value_name = "MS")]
    deadline_ms: Option<u64>,
    /// The same key with the same request gives the same job
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// What happens when the last reader leaves
    #[arg(long, value_enum)]
    on_disconnect: Option<OnDisconnectArg>,
    /// What happens when the worker is lost
    #[arg(long, value_enum)]
    retry: Option<RetryArg>,
    /// The session it belongs to; named for the first time it makes one
    #[arg(long, value_name = "ID")]
    session: Option<api_types::SessionId>,
    /// Only on this pool
    #[arg(long = "on-pool", value_name = "POOL")]
    pool: Option<api_types::PoolId>,
    /// Only on this worker
    #[arg(long = "on-worker", value_name = "WORKER")]
    worker: Option<WorkerId>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PriorityArg {
    /// Somebody waits for it
    Interactive,
    /// It may wait
    Batch,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OnDisconnectArg {
    /// The job is cancelled
    Cancel,
    /// The job goes on
    Continue,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RetryArg {
    /// The job fails
    Never,
    /// The job runs elsewhere while no token has been sent
    BeforeFirstToken,
    /// The job goes on elsewhere after the last token that was sent
    Continue,
}

/// Runs it.
pub async fn run(context: &Context, args: SubmitArgs) -> Outcome {
    let no_stream = args.no_stream;
    let request = request(args)?;
    let client = context.client()?;
    if !no_stream && let Some(worker) = request.placement.as_ref().and_then(|wanted| wanted.worker.as_ref()) {
        warn_of_absence(context, &client, worker).await?;
    }
    if no_stream { hand_in(context, &client, request).await } else { stream(context, &client, request).await }
}

/// A job that names a worker waits until it comes. A stream has no place for a warning.
async fn warn_of_absence(context: &Context, client: &Client, worker: &WorkerId) -> Result<(), ErrorDetail> {
    let workers = client.workers().await.map_err(Error::into_detail)?.workers;
    if !workers.iter().any(|known| known.facts.worker_id == *worker) {
        let warning =
            format!("no worker has the id {worker} now; the job waits until one registers under it");
        context.printer.warn(warning);
    }
    Ok(())
}

async fn stream(context: &Context, client: &Client, request: TaskRequest) -> Outcome {
    let began = Instant::now();
    let events = client.submit(request).await.map_err(Error::into_detail)?;
    let watched =
        watch::show(&context.printer, client, events, Some(began), Telling::All, OnInterrupt::Cancel).await?;
    Ok(watch::status(&watched))
}

async fn hand_in(context: &Context, client: &Client, mut request: TaskRequest) -> Outcome {
    // Nobody reads it from here on, so nobody's leaving may end it.
    request.on_disconnect.get_or_insert(OnDisconnect::Continue);
    let accepted = client.enqueue(request).await.map_err(Error::into_detail)?;
    if context.printer.is_json() {
        context.printer.json(&accepted);
    } else {
        context.printer.line(accepted.job_id.to_string());
        accepted.warnings.iter().for_each(|warning| context.printer.warn(warning));
        if let Some(eta) = accepted.eta_ms {
            context.printer.note(format!("it {}", watch::expected(eta)));
        }
        context.printer.note(format!("follow it with: rbees jobs watch {}", accepted.job_id));
    }
    Ok(ExitStatus::Ok)
}

fn request(args: SubmitArgs) -> Result<TaskRequest, ErrorDetail> {
    let handling = args.handling;
    let placement = (handling.pool.is_some() || handling.worker.is_some()).then_some(Placement {
        pool: handling.pool,
        worker: handling.worker,
        ..Placement::default()
    });
    let request = TaskRequest {
        model: args.model,
        prompt: prompt(&args.input)?,
        messages: args.input.messages_file.as_deref().map(messages).transpose()?,
        priority: handling.priority.map(Into::into),
        deadline_ms: handling.deadline_ms,
        session_id: handling.session,
        idempotency_key: handling.idempotency_key,
        on_disconnect: handling.on_disconnect.map(Into::into),
        retry: handling.retry.map(Into::into),
        placement,
        ..TaskRequest::default()
    };
    Ok(args.sampling.fill(request))
}

fn prompt(input: &Input) -> Result<Option<String>, ErrorDetail> {
    match &input.prompt_file {
        Some(path) => read_input(path).map(Some),
        None => Ok(input.prompt.clone()),
    }
}

/// The messages themselves, or a request that holds them.
#[derive(Deserialize)]
#[serde(untagged)]
enum MessagesFile {
    Bare(Vec<ChatMessage>),
    Wrapped { messages: Vec<ChatMessage> },
}

fn messages(path: &Path) -> Result<Vec<ChatMessage>, ErrorDetail> {
    let text = read_input(path)?;
    match serde_json::from_str(&text) {
        Ok(MessagesFile::Bare(messages) | MessagesFile::Wrapped { messages }) => Ok(messages),
        Err(_) => Err(detail::usage(
            format!("{} does not hold messages", path.display()),
            "write JSON of this form: [{\"role\": \"user\", \"content\": \"Hello\"}]",
        )),
    }
}

fn read_input(path: &Path) -> Result<String, ErrorDetail> {
    if path.as_os_str() == "-" {
        return read_text(&mut std::io::stdin());
    }
    std::fs::read_to_string(path).map_err(|error| detail::file("read", path, &error))
}

impl From<PriorityArg> for Priority {
    fn from(arg: PriorityArg) -> Self {
        match arg {
            PriorityArg::Interactive => Self::Interactive,
            PriorityArg::Batch => Self::Batch,
        }
    }
}

impl From<OnDisconnectArg> for OnDisconnect {
    fn from(arg: OnDisconnectArg) -> Self {
        match arg {
            OnDisconnectArg::Cancel => Self::Cancel,
            OnDisconnectArg::Continue => Self::Continue,
        }
    }
}

impl From<RetryArg> for RetryMode {
    fn from(arg: RetryArg) -> Self {
        match arg {
            RetryArg::Never => Self::Never,
            RetryArg::BeforeFirstToken => Self::BeforeFirstToken,
            RetryArg::Continue => Self::Continue,
        }
    }
}
