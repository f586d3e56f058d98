//! All that can happen to the brain. Everything that can arrive late carries its number.

use api_types::error::ErrorDetail;
use api_types::event::RunEnd;
use api_types::pool::Fit;
use api_types::prefix::RetainedPrefix;
use api_types::task::{Durability, OnDisconnect, Placement, Priority, RetryMode};
use api_types::worker::{WorkerFacts, WorkerStatus};
use api_types::{
    Attempt, CorrelationId, Incarnation, InstanceId, JobId, PoolId, PrefixChain, SessionId, TenantId,
    WorkerId,
};
use serde::{Deserialize, Serialize};

use crate::policy::PolicyChange;
use crate::row::PoolRow;

/// Names a waiting caller, so that its answer finds it. Drawn by the driver, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// Something that happened outside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// A client hands in a checked task. Answered with `Accepted` or `Refused`.
    Submit(Submission),
    /// Somebody wants a job ended. Answered with `Cancelled` or `Refused` where a caller waits.
    Cancel {
        /// Who waits for the answer, if anybody.
        request: Option<RequestId>,
        /// The job.
        job_id: JobId,
    },
    /// The connection that a job was made for has closed, and nobody else holds the job by one: it ends
    /// at once. Not answered.
    Abandon {
        /// The job.
        job_id: JobId,
    },
    /// The commit that was to write a new job down failed: the job was never in. Not answered.
    Withdraw {
        /// The job.
        job_id: JobId,
    },
    /// The number of open readers of a job's stream changed.
    ReadersChanged {
        /// The job.
        job_id: JobId,
        /// Readers now.
        readers: u32,
    },

    /// A worker introduces itself, for the first time or again. Answered with `Registered` or
    /// `Refused`.
    WorkerReady {
        /// Who waits for the answer.
        request: RequestId,
        /// What it is.
        facts: Box<WorkerFacts>,
        /// What it is doing.
        status: WorkerStatus,
        /// Our jobs among the runs whose logs it holds.
        runs: Vec<Run>,
        /// What to authenticate with when calling it. In no journal.
        #[serde(skip)]
        secret: Option<String>,
    },
    /// A worker shows that it lives. Answered with `Heartbeat` or `Refused`.
    WorkerHeartbeat {
        /// Who waits for the answer.
        request: RequestId,
        /// The worker.
        worker_id: WorkerId,
        /// The number it was given; an old one is refused.
        incarnation: Incarnation,
        /// Which start of it speaks.
        instance: InstanceId,
        /// What it is doing.
        status: WorkerStatus,
        /// Our jobs among the runs whose logs it holds.
        runs: Vec<Run>,
        /// Free memory of its device, in bytes; `None` when it was not told, which leaves what was told
        /// last.
        free_memory_bytes: Option<u64>,
        /// What it keeps of prompts in its KV cache, when it tells.
        prefixes: Option<Vec<RetainedPrefix>>,
    },
    /// A worker (or its pool) says that it cannot go on. Answered with `Done` where a caller waits.
    WorkerFailed {
        /// Who waits for the answer, if anybody.
        request: Option<RequestId>,
        /// The worker.
        worker_id: WorkerId,
        /// Which start of it; another one is ignored.
        instance: InstanceId,
        /// What happened.
        error: ErrorDetail,
    },
    /// The operator wants a worker drained and stopped. Answered with `Done` or `Refused`.
    DrainWorker {
        /// Who waits for the answer.
        request: RequestId,
        /// The worker.
        worker_id: WorkerId,
    },

    /// The first token of a run has arrived at the relay, which holds it back until `PassStream`.
    FirstToken(RunKey),
    /// The worker's `end` event arrived; the relay holds it back until `EndJob`.
    StreamEnded {
        /// Which run.
        run: RunKey,
        /// Its figures; `queue_time_ms` is not filled in yet.
        end: RunEnd,
    },
    /// The worker refused the run or sent its `error` event.
    StreamFailed {
        /// Which run.
        run: RunKey,
        /// What it said.
        error: ErrorDetail,
    },
    /// The connection to the worker ended without a last event.
    StreamBroken {
        /// Which run.
        run: RunKey,
        /// As far as the relay could tell.
        cause: BrokenCause,
    },
    /// What a lost run has put into its job's log. Follows `Action::Salvage` at once, within the
    /// same commit.
    Salvaged {
        /// Which run.
        run: RunKey,
        /// What is there.
        kept: Kept,
    },

    /// The operator adds a pool or changes it. Answered with `Done`.
    PutPool {
        /// Who waits for the answer.
        request: RequestId,
        /// What is to be kept.
        pool: PoolRow,
    },
    /// The operator removes a pool. Answered with `Done` or `Refused`.
    RemovePool {
        /// Who waits for the answer.
        request: RequestId,
        /// The pool.
        pool_id: PoolId,
    },
    /// The operator changes the policies in force. Answered with `Done` or `Refused`.
    SetPolicy {
        /// Who waits for the answer.
        request: RequestId,
        /// What is changed.
        change: PolicyChange,
    },
    /// A client wants a session forgotten. Answered with `Done` or `Refused`.
    DeleteSession {
        /// Who waits for the answer.
        request: RequestId,
        /// Whose it is.
        tenant: TenantId,
        /// Its id.
        session_id: SessionId,
    },
    /// A pool told what models it has.
    PoolModels {
        /// The pool.
        pool_id: PoolId,
        /// Its catalog.
        models: Vec<PoolModel>,
    },
    /// A pool told what fits into its memory and what it runs.
    PoolSeen {
        /// The pool.
        pool_id: PoolId,
        /// The number of the [`AskPool`](crate::Action::AskPool) that this answers; 0 when it was
        /// asked for another reason.
        ask: u64,
        /// What it told.
        room: PoolRoom,
    },
    /// A pool did not answer.
    PoolSilent {
        /// The pool.
        pool_id: PoolId,
        /// As in `PoolSeen`.
        ask: u64,
        /// Why not.
        error: ErrorDetail,
    },
    /// A pool was asked to start a worker, and has: it is ready, or it failed and is gone.
    SpawnEnded {
        /// The pool.
        pool_id: PoolId,
        /// The worker.
        worker_id: WorkerId,
        /// What went wrong; `None` when it is ready.
        error: Option<ErrorDetail>,
    },
    /// A pool was asked to stop a worker, and has: its process is gone, or could not be stopped.
    StopEnded {
        /// The pool.
        pool_id: PoolId,
        /// The worker.
        worker_id: WorkerId,
        /// What went wrong; `None` when its process is gone.
        error: Option<ErrorDetail>,
    },
}

/// A task that has passed every check which needs no state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Submission {
    /// Who waits for the answer.
    pub request: RequestId,
    /// Drawn by the driver.
    pub job_id: JobId,
    /// The model asked for; `None` takes the only one there is.
    pub model: Option<String>,
    /// Whether the task is a conversation, so the model needs a chat template.
    pub chat: bool,
    /// Who it is done for.
    pub tenant: TenantId,
    /// The session it belongs to.
    pub session_id: Option<SessionId>,
    /// Bytes of prompt or messages.
    pub prompt_bytes: u64,
    /// Tokens of prompt or messages, where a worker was asked to count them.
    pub prompt_tokens: Option<u32>,
    /// The start of the prompt, as hashes.
    pub prefix: PrefixChain,
    /// Tokens it may generate at most; `None` is what the context leaves.
    pub max_tokens: Option<u32>,
    /// Its class.
    pub priority: Priority,
    /// Milliseconds from now after which the answer is worthless.
    pub deadline_ms: Option<u64>,
    /// What happens when its last reader leaves.
    pub on_disconnect: OnDisconnect,
    /// What happens when its worker is lost.
    pub retry: RetryMode,
    /// Where it may run.
    pub placement: Placement,
    /// Whether it is written down.
    pub durability: Durability,
    /// Whether its submitter reads its stream from the start, which needs no
    /// [`Event::ReadersChanged`] then.
    pub is_read: bool,
    /// The same key and digest again is answered with the first job.
    pub idempotency: Option<Idempotency>,
    /// Ties it to log lines.
    pub correlation_id: CorrelationId,
}

/// A client's promise that two submissions are one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// The client's key.
    pub key: String,
    /// SHA-256 of the canonical request, as 64 hex digits.
    pub digest: String,
}

/// A run as a worker lists it, when it is one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Run {
    /// The job.
    pub job_id: JobId,
    /// The try.
    pub attempt: Attempt,
    /// Whether only its log is left.
    pub ended: bool,
}

/// Which run of which job on which start of which worker a message is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunKey {
    /// The job.
    pub job_id: JobId,
    /// The try.
    pub attempt: Attempt,
    /// The worker.
    pub worker_id: WorkerId,
    /// Its incarnation when the run was handed out.
    pub incarnation: Incarnation,
}

/// Why a stream from a worker ended without a last event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum BrokenCause {
    /// Nobody listens at the worker's address: its process is gone.
    Refused,
    /// The connection broke or could not be made in time; the worker may still run.
    Unreachable,
    /// The worker answers but knows nothing of the run, or is another incarnation.
    RunUnknown,
    /// The worker is connected but sent no event for too long.
    Stalled,
    /// What it sent is not the protocol.
    Protocol,
}

/// What a job's log holds when a run of it is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Events in the log.
    pub events: u64,
    /// Tokens among them.
    pub tokens: u32,
    /// Seams among them.
    pub seams: u32,
    /// Tokens beyond these that a reader may have had: the orchestrator was lost as well, and its
    /// readers may have been ahead of the disk.
    pub unsure: u32,
    /// Whether each token came with its id.
    pub ids_known: bool,
}

/// A model in a pool's catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolModel {
    /// Its id.
    pub id: String,
    /// Other ids that mean it.
    pub aliases: Vec<String>,
    /// Tokens of context it was trained for.
    pub context_length: Option<u32>,
    /// Whether its files are there, whole and verified.
    pub downloaded: bool,
}

/// What fits into the memory of a pool, and what takes it now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRoom {
    /// For each model whose need can be predicted: where a worker would run, and the numbers.
    pub fits: Vec<Fit>,
    /// Its worker processes, registered here or not.
    pub processes: Vec<PoolProcess>,
}

/// A worker process as its pool knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolProcess {
    /// The worker.
    pub worker_id: WorkerId,
    /// The model it runs or loads.
    pub model: String,
    /// Where: `cpu`, `cuda:0`, ...
    pub device: String,
    /// Bytes of the device's memory that it holds or is going to.
    pub bytes: u64,
    /// Whether it is still loading.
    pub starting: bool,
}
