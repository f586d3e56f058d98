//! What the brain keeps on disk. The store maps these to tables; `recover` reads them back.

use api_types::error::ErrorDetail;
use api_types::event::RunEnd;
use api_types::task::{Decision, Durability, OnDisconnect, Placement, Priority, RetryMode, TaskStatus};
use api_types::worker::WorkerFacts;
use api_types::{
    Attempt, CorrelationId, Incarnation, JobId, PoolId, PrefixChain, SessionId, TenantId, WorkerId,
};
use serde::{Deserialize, Serialize};

use crate::carry::Carried;
use crate::estimate::{Estimates, Forecast};
use crate::event::Idempotency;
use crate::policy::PolicyRows;
use crate::time::Time;

/// A job but for its request, its events and its result, which the brain never sees.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRow {
    /// The job.
    pub job_id: JobId,
    /// Its place in the order of arrival; unique and growing.
    pub number: u64,
    /// Where it stands.
    pub status: TaskStatus,
    /// The model, resolved to an id.
    pub model: String,
    /// Whether the model needs a chat template.
    pub chat: bool,
    /// Who it is done for.
    pub tenant: TenantId,
    /// The session it belongs to.
    pub session_id: Option<SessionId>,
    /// Bytes of prompt or messages.
    pub prompt_bytes: u64,
    /// Tokens that it surely brings along; a worker whose context does not hold more cannot take it. 0
    /// while nothing is known. See [`JobRow::fits_context`].
    pub tokens_at_least: u32,
    /// The start of the prompt, as hashes.
    pub prefix: PrefixChain,
    /// Tokens it may generate at most; `None` is what the context leaves.
    pub max_tokens: Option<u32>,
    /// Its class.
    pub priority: Priority,
    /// When it was handed in.
    pub submitted_at: Time,
    /// When its answer becomes worthless.
    pub deadline: Option<Time>,
    /// What happens when its last reader leaves.
    pub on_disconnect: OnDisconnect,
    /// What happens when its worker is lost.
    pub retry: RetryMode,
    /// Where it may run.
    pub placement: Placement,
    /// Whether it is written down at all.
    pub durability: Durability,
    /// When it was expected to end, as of its admission; absent when unknown.
    pub eta: Option<Forecast>,
    /// The client's key, if any.
    pub idempotency: Option<Idempotency>,
    /// Ties it to log lines.
    pub correlation_id: CorrelationId,
    /// The current or last try; `None` before the first.
    pub attempt: Option<AttemptRow>,
    /// While queued after a failed try: not before this time.
    pub not_before: Option<Time>,
    /// Tries that failed and count against the limit; a busy worker's refusal does not.
    pub tries_failed: u32,
    /// Workers that were lost while they ran it.
    pub workers_lost: Vec<WorkerId>,
    /// What earlier attempts have sent to its readers, for a job that goes on after that.
    #[serde(default)]
    pub carried: Option<Box<Carried>>,
    /// Whether it has ever had a reader.
    pub had_reader: bool,
    /// When somebody asked for its end.
    pub cancel_requested_at: Option<Time>,
    /// When it ended.
    pub ended_at: Option<Time>,
    /// The figures, once completed or cancelled.
    pub end: Option<RunEnd>,
    /// What went wrong, once failed.
    pub error: Option<ErrorDetail>,
}

impl JobRow {
    /// Whether a context of so many tokens may hold the job with one token of an answer, as far as is
    /// known.
    pub(crate) const fn fits_context(&self, context_length: u32) -> bool {
        fits_context(self.tokens_at_least, context_length)
    }
}

/// Whether a context may hold what brings so many tokens at least, and one of an answer; 0 tokens are
/// not known.
pub(crate) const fn fits_context(tokens_at_least: u32, context_length: u32) -> bool {
    tokens_at_least == 0 || context_length > tokens_at_least
}

/// One try of a job on one start of one worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRow {
    /// Its number.
    pub attempt: Attempt,
    /// The worker.
    pub worker_id: WorkerId,
    /// The worker's incarnation.
    pub incarnation: Incarnation,
    /// When it was handed out.
    pub dispatched_at: Time,
    /// The `id:` of the worker's first event.
    pub first_event_id: u64,
    /// The build and device of the worker, for a job that may go on on another; a later start of the
    /// worker need not be the same.
    pub build: Option<String>,
}

/// A worker in the registry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerRow {
    /// What it is.
    pub facts: WorkerFacts,
    /// Its current incarnation.
    pub incarnation: Incarnation,
    /// The number the next registration of any worker gets.
    pub next_incarnation: Incarnation,
    /// What to authenticate with when calling it. In no journal.
    #[serde(skip)]
    pub secret: Option<String>,
    /// Whether it is to finish and end.
    pub draining: bool,
}

/// A session: what its jobs took and where the last one ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    /// Whose it is.
    pub tenant: TenantId,
    /// Its id.
    pub session_id: SessionId,
    /// Number of the job that made it; jobs with smaller ones belong to an earlier session.
    pub first_job: u64,
    /// When that was.
    pub created_at: Time,
    /// When a job of it was last submitted or ended.
    pub last_used_at: Time,
    /// Tokens that its ended jobs took.
    pub tokens_used: u64,
    /// Its completed jobs.
    pub turns: u64,
    /// The worker that last generated for it.
    pub worker: Option<WorkerId>,
}

impl SessionRow {
    /// The session that a job makes by naming it.
    pub(crate) fn new(row: &JobRow, session_id: SessionId, now: Time) -> Self {
        Self {
            tenant: row.tenant.clone(),
            session_id,
            first_job: row.number,
            created_at: now,
            last_used_at: now,
            tokens_used: 0,
            turns: 0,
            worker: None,
        }
    }
}

/// A pool in the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRow {
    /// Its name.
    pub pool_id: PoolId,
    /// The SSH destination; `None` is this machine.
    pub address: Option<String>,
    /// A checkout there whose build is preferred.
    pub repo_dir: Option<String>,
    /// Whether it takes no new workers.
    pub draining: bool,
}

/// A worker that a pool was asked for and that has not registered yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnRow {
    /// The id it is to have.
    pub worker_id: WorkerId,
    /// The pool.
    pub pool_id: PoolId,
    /// The model.
    pub model: String,
    /// When the pool was first asked.
    pub asked_at: Time,
}

/// Everything `recover` needs: the state as of the last commit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// Jobs that have not ended, and those ended ones whose idempotency keys still count, in any order.
    pub jobs: Vec<JobRow>,
    /// The registry of workers.
    pub workers: Vec<WorkerRow>,
    /// The registry of pools.
    pub pools: Vec<PoolRow>,
    /// Workers that were asked for and have not come.
    pub spawns: Vec<SpawnRow>,
    /// Sessions that were not deleted, expired ones among them.
    pub sessions: Vec<SessionRow>,
    /// The largest job number ever given; 0 before the first.
    pub last_number: u64,
    /// The largest `next_incarnation` ever written.
    pub next_incarnation: Option<Incarnation>,
    /// The placements of jobs that have not ended.
    pub decisions: Vec<(JobId, Attempt, Decision)>,
    /// What was learnt of rates and waits; `None` before anything was written.
    pub estimates: Option<Estimates>,
    /// The policies in force.
    pub policies: PolicyRows,
}
