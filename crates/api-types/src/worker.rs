//! The worker's own API, and what workers tell the orchestrator.

use serde::{Deserialize, Serialize};

use crate::error::ErrorDetail;
use crate::id::{Attempt, Incarnation, InstanceId, PoolId, WorkerId};
use crate::prefix::{PrefixChain, RetainedPrefix};
use crate::sampling::request_with_sampling;
use crate::task::ChatMessage;

/// Workers send a heartbeat this often.
pub const HEARTBEAT_MS: u64 = 3_000;
/// A worker silent for this long is suspect: it gets no new job.
pub const SUSPECT_MS: u64 = 6_000;
/// A worker silent for this long is lost: its jobs go on elsewhere or fail.
pub const LOST_MS: u64 = 10_000;
/// The capability of a worker that keeps the KV cache of prompts it ran, so that the same start need
/// not be prefilled again. Such a worker takes `prefix` in `/execute` and reports what it keeps.
pub const PREFIX_CACHE: &str = "prefix_cache";
/// The capability of a worker that keeps to a `response_format`. A worker without it would refuse one.
pub const JSON_SCHEMA: &str = "json_schema";

/// A header of `POST /execute` that lists ended runs whose logs are no longer needed, each as
/// `JOB/ATTEMPT`, parted by commas. A list of its own request would cost one for each short job.
pub const ACKNOWLEDGE_HEADER: &str = "x-rbees-acknowledge";

request_with_sampling! {
    /// `POST /execute`: run one attempt of a job and stream its events.
    ///
    /// The same job, attempt and body again gives the same stream, never a second run.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
    pub struct ExecuteRequest {
        /// Any text of 1 to 128 characters.
        pub job_id: String,
        /// The try; without it (a person with curl) an ended job id simply runs again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub attempt: Option<Attempt>,
        /// The incarnation this is meant for; another one answers `STALE_INCARNATION`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub incarnation: Option<Incarnation>,
        /// The `id:` of the run's first event; later ones count on from it. 0 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub first_event_id: Option<u64>,
        /// Refused before any work unless the worker runs this model.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub model: Option<String>,
        /// Text that goes to the model as it is. Give this or `messages`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub prompt: Option<String>,
        /// A conversation that goes through the model's chat template. Give this or `prompt`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub messages: Option<Vec<ChatMessage>>,
        /// Milliseconds the run may take from now; it ends with `DEADLINE_EXCEEDED` after that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub time_limit_ms: Option<u64>,
        /// The start of the prompt as the orchestrator's hashes, by which the worker reports what it
        /// keeps. Only for workers with the capability `prefix_cache`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub prefix: Option<PrefixChain>,
        /// Whether `token` events bear the token's id as `k`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub token_ids: Option<bool>,
        /// What another worker has done of this job already; the run goes on from there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub continuation: Option<Continuation>,
    }
}

/// Tokens of a continuation that are taken one decode step each, as they were made. More are taken
/// in chunks like a prompt, which is faster and rounds differently.
pub const EXACT_REPLAY: usize = 256;

/// The part of a completion that was generated and sent elsewhere.
///
/// The run takes these tokens as its own first ones without sending them again: its first `token`
/// event has the index `tokens.len()`, and its figures and limits count them. In place of
/// `started` it says `seam`. Needs `seed`, since the draw of a token depends on seed and index
/// alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Continuation {
    /// Ids of the tokens so far, from index 0; at least one.
    pub tokens: Vec<u32>,
    /// The `seam` events that the run puts into its log, in this order.
    pub seams: Vec<Seam>,
}

/// A `seam` event and its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Seam {
    /// It stands before the token with this index, or before the last event.
    pub at: u32,
    /// Who ran the job before.
    pub from_worker: WorkerId,
    /// Who ran it from then on.
    pub to_worker: WorkerId,
    /// The first token of `to_worker`.
    pub i: u32,
    /// Whether `to_worker` reached the state of `from_worker` exactly.
    pub exact: bool,
}

/// `POST /cancel`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CancelRequest {
    /// The job.
    pub job_id: String,
    /// The try; all tries when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Attempt>,
}

/// `POST /tokenize`: give `text` or `messages`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenizeRequest {
    /// Text as a `prompt` would be taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Messages as `messages` would be taken, through the chat template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<ChatMessage>>,
}

/// Answer to `POST /tokenize`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Tokenized {
    /// How many tokens a run with this input would have as its prompt.
    pub count: u32,
    /// Their ids.
    pub tokens: Vec<u32>,
    /// Tokens the context holds.
    pub context_length: u32,
}

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum WorkerStatus {
    /// The model is being read; the port is open.
    Loading,
    /// Takes jobs.
    Ready,
    /// Finishes its jobs and takes no new ones.
    Draining,
    /// The model could not be loaded, or the engine broke.
    Failed,
}

/// What a worker is: everything that does not change while it lives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WorkerFacts {
    /// Its id.
    pub worker_id: WorkerId,
    /// This start of it.
    pub instance: InstanceId,
    /// The pool that started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_id: Option<PoolId>,
    /// Where it listens, `http://host:port`.
    pub uri: String,
    /// The name of its model, as requests use it.
    pub model: String,
    /// Where the model came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_ref: Option<String>,
    /// `cpu`, `cuda`, `metal`, `vulkan` or `fake`.
    pub backend: String,
    /// What the engine really registered and offloaded to.
    pub devices: Vec<String>,
    /// Jobs it can run at once.
    pub slots: u32,
    /// Tokens of context per job.
    pub context_length: u32,
    /// Memory of the device taken by the model and its caches, in bytes; 0 on a CPU.
    pub vram_bytes: u64,
    /// Memory of the process taken by the model and its caches, in bytes.
    pub ram_bytes: u64,
    /// As in the file, for example `Q4_1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
    /// As in the file, for example `gpt2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// What it can do: `chat`, `completion`, its backend, ...
    pub capabilities: Vec<String>,
    /// Whether the orchestrator may unload it: when it is idle for long, or when another model needs
    /// its memory. Workers that the orchestrator has started are, those of the operator only on request.
    #[serde(default)]
    pub evictable: bool,
    /// The engine and its version.
    pub engine: String,
    /// Version of rbees.
    pub version: String,
    /// See [`crate::PROTOCOL`].
    pub protocol: u32,
}

/// One run that a worker holds a log of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RunRef {
    /// The job.
    pub job_id: String,
    /// The try.
    pub attempt: Attempt,
    /// Whether the run has ended and only its log is left.
    pub ended: bool,
}

/// `POST /v2/workers/ready`: a worker (or a restart of it) introduces itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReadyCall {
    /// What it is.
    pub facts: WorkerFacts,
    /// What it is doing.
    pub status: WorkerStatus,
    /// The runs whose logs it holds.
    pub runs: Vec<RunRef>,
    /// Its per-spawn secret, for calls in the other direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

/// Answer to [`ReadyCall`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReadyReply {
    /// The number that every later message bears.
    pub incarnation: Incarnation,
    /// How often to send a heartbeat, in milliseconds.
    pub heartbeat_ms: u64,
    /// Runs that nobody waits for any more: stop them and drop their logs.
    pub drop_runs: Vec<RunRef>,
}

/// `POST /v2/workers/{id}/heartbeat`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HeartbeatCall {
    /// This start of the worker.
    pub instance: InstanceId,
    /// The number the orchestrator gave it.
    pub incarnation: Incarnation,
    /// What it is doing.
    pub status: WorkerStatus,
    /// Slots with a run.
    pub slots_busy: u32,
    /// The runs whose logs it holds.
    pub runs: Vec<RunRef>,
    /// Free memory of its device (of the machine, on a CPU), in bytes.
    pub free_memory_bytes: u64,
    /// What it keeps of prompts that came with their hashes; absent when it does not tell. What it
    /// does not list is taken as gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefixes: Option<Vec<RetainedPrefix>>,
}

/// Answer to [`HeartbeatCall`]. An unknown or old incarnation is answered with
/// `STALE_INCARNATION` instead, and the worker introduces itself again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HeartbeatReply {
    /// Runs that nobody waits for any more: stop them and drop their logs.
    pub drop_runs: Vec<RunRef>,
    /// Whether the worker is to finish its jobs and end.
    pub drain: bool,
}

/// `POST /v2/workers/{id}/failed`: the worker cannot go on, or its pool saw it end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FailedCall {
    /// This start of the worker.
    pub instance: InstanceId,
    /// What happened.
    pub error: ErrorDetail,
}

/// `GET /health` of a worker; from cached state, never waiting for inference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WorkerHealth {
    /// What it is doing.
    pub status: WorkerStatus,
    /// Share of the model read, 0 to 1, while loading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_progress: Option<f32>,
    /// Why it failed, when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorDetail>,
    /// Slots with a run.
    pub slots_busy: u32,
    /// The number the orchestrator gave it, once registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Incarnation>,
    /// Free memory of its device, in bytes; absent when unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_memory_bytes: Option<u64>,
    /// What it is; sizes and devices are final once it is ready.
    #[serde(flatten)]
    pub facts: WorkerFacts,
}

/// What a worker writes to its `--report` file, atomically, whenever its status changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerReport {
    /// Its process.
    pub pid: u32,
    /// Its health at that moment.
    pub health: WorkerHealth,
}

/// `--capabilities --json`: what this binary can do, without loading anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerCapabilities {
    /// Version of rbees.
    pub version: String,
    /// See [`crate::PROTOCOL`].
    pub protocol: u32,
    /// Engines in the binary: `fake`, `llama.cpp`.
    pub engines: Vec<String>,
    /// Backends compiled in: `cpu`, `cuda`, `metal`, `vulkan`, `fake`.
    pub backends: Vec<String>,
    /// Model formats it loads.
    pub formats: Vec<String>,
    /// Instructions the build needs and this processor lacks; empty means it runs here.
    pub missing_cpu_features: Vec<String>,
}

/// A worker as the orchestrator's registry shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WorkerView {
    /// What it is.
    #[serde(flatten)]
    pub facts: WorkerFacts,
    /// `loading`, `ready`, `suspect`, `draining`, `failed` or `lost`.
    pub state: WorkerState,
    /// Its current incarnation.
    pub incarnation: Incarnation,
    /// Slots that jobs hold.
    pub slots_busy: u32,
    /// Milliseconds since it was last heard of.
    pub last_seen_ms: u64,
    /// Whether it stays whatever else needs its memory: it is not `evictable`, or its model is pinned.
    #[serde(default)]
    pub pinned: bool,
    /// Milliseconds since it last had a job; absent while it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<u64>,
    /// Milliseconds until it is unloaded if no job comes; absent when it is not going to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unload_in_ms: Option<u64>,
    /// How often it sent what is not the protocol since it registered.
    #[serde(default)]
    pub protocol_errors: u32,
    /// Milliseconds for which it gets no new job, because it broke the protocol too often; absent when
    /// it is not quarantined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantined_ms: Option<u64>,
}

/// What the orchestrator thinks of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum WorkerState {
    /// Reads its model.
    Loading,
    /// Takes jobs.
    Ready,
    /// Silent for a while; gets no new job.
    Suspect,
    /// Finishes its jobs.
    Draining,
    /// Said that it cannot go on.
    Failed,
    /// Silent for too long, or gone.
    Lost,
}

/// `GET /v2/workers`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WorkerList {
    /// By id.
    pub workers: Vec<WorkerView>,
}
