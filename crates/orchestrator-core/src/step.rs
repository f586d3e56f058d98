//! All that the brain may ask for. The driver commits the writes first and only then acts.

use api_types::error::ErrorDetail;
use api_types::event::{Eta, TaskEvent};
use api_types::task::{Decision, TaskStatus};
use api_types::worker::Seam;
use api_types::{Attempt, Incarnation, JobId, PoolId, PrefixChain, SessionId, TenantId, WorkerId};

use crate::estimate::Estimates;
use crate::event::{RequestId, Run, RunKey};
use crate::policy::{Demotion, PolicyFailure, PolicyRows};
use crate::row::{JobRow, PoolRow, SessionRow, SpawnRow, WorkerRow};

/// What one event led to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Step {
    /// Rows to change, in order, in one transaction.
    pub writes: Vec<Write>,
    /// What to do once they are on disk, in order. With no writes: at once.
    pub actions: Vec<Action>,
    /// Questions to policies that the shell's watchdog cut short, by number within the step: the one
    /// input of a step that is not in its event. A journal keeps it; a replay hands it to
    /// [`crate::Orchestrator::cut_next`] before the event.
    pub interrupted: Vec<u32>,
}

/// One row to change.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// A new job. The driver adds the request, which the brain never sees.
    InsertJob(JobRow),
    /// A job that moved on.
    UpdateJob(JobRow),
    /// A job that ended. The driver adds its kept events (with `last_event` as the last) and its
    /// result text, and erases the prompt.
    EndJob {
        /// The final row.
        row: JobRow,
        /// The event that ends its stream.
        last_event: TaskEvent,
    },
    /// Why an attempt went where it went.
    PutDecision {
        /// The job.
        job_id: JobId,
        /// The try that began with it.
        attempt: Attempt,
        /// Everybody who was looked at.
        decision: Decision,
    },
    /// A worker that is new or changed. Also stores `next_incarnation`, which only grows.
    PutWorker(WorkerRow),
    /// A worker that is no longer of interest.
    DeleteWorker(WorkerId),
    /// A pool that is new or changed.
    PutPool(PoolRow),
    /// A pool that is no longer of interest.
    DeletePool(PoolId),
    /// A session that is new or was used.
    PutSession(SessionRow),
    /// A session that is forgotten.
    DeleteSession {
        /// Whose it was.
        tenant: TenantId,
        /// Its id.
        session_id: SessionId,
    },
    /// What was learnt of rates and waits, in place of what was written before.
    PutEstimates(Box<Estimates>),
    /// The policies in force; takes the place of what was kept of them.
    PutPolicies(PolicyRows),
    /// A worker that a pool is about to be asked for.
    PutSpawn(SpawnRow),
    /// A worker that was asked for and has come, or will not come.
    DeleteSpawn(WorkerId),
}

/// One thing to do outside.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Answer a waiting caller.
    Answer {
        /// Who waits.
        request: RequestId,
        /// What to tell.
        answer: Answer,
    },
    /// Put an event at the end of a job's log (numbered), for readers now and later.
    Publish {
        /// The job.
        job_id: JobId,
        /// The event.
        event: TaskEvent,
    },
    /// Show an event to those who read the job now: without a number, not kept.
    PublishLive {
        /// The job.
        job_id: JobId,
        /// The event.
        event: TaskEvent,
    },
    /// Call `/execute` on a worker and relay what comes, held back until `PassStream`.
    OpenStream(OpenStream),
    /// Take a run up again from the worker's own log, from its first event; after `delay_ms`.
    /// `passed` says whether its tokens may be passed on at once. Without effect while a stream of
    /// the run is open or has delivered its last event; one that broke is replaced.
    ResumeStream {
        /// Which run.
        run: RunKey,
        /// Where the worker listens.
        uri: String,
        /// What to authenticate with.
        secret: Option<String>,
        /// How long to wait first, in milliseconds.
        delay_ms: u64,
        /// Whether `running` is committed.
        passed: bool,
    },
    /// `running` is on disk: what the relay holds back may be passed on, and what follows.
    PassStream(RunKey),
    /// Stop relaying a run and drop what is held back. The job's readers stay.
    DropStream(RunKey),
    /// The job of a run that was dropped is to go on from what its log holds, or to end with it: put
    /// that on disk with this step if it goes on elsewhere, and tell `Event::Salvaged` before anything
    /// else is decided.
    Salvage(RunKey),
    /// Tell a worker to stop a run (`/cancel`). Its `end` still comes through the relay.
    StopRun {
        /// Which run.
        run: RunKey,
        /// Where the worker listens.
        uri: String,
        /// What to authenticate with.
        secret: Option<String>,
    },
    /// The job's end is on disk: pass on what is held back if `release_held`, then `last_event`,
    /// then close its readers.
    EndJob {
        /// The job.
        job_id: JobId,
        /// Whether what the relay holds back belongs to the job's log.
        release_held: bool,
        /// The event that ends its stream.
        last_event: TaskEvent,
    },
    /// The worker may forget the log of a run (DELETE `/jobs/{job}/{attempt}/events`).
    AckRun {
        /// Which run.
        run: RunKey,
        /// Where the worker listens.
        uri: String,
        /// What to authenticate with.
        secret: Option<String>,
    },
    /// Ask a worker's `/health` whether it still lives, after a restart or a silence; report the
    /// answer as `WorkerHeartbeat`-like news or not at all.
    ProbeWorker {
        /// The worker.
        worker_id: WorkerId,
        /// Its incarnation.
        incarnation: Incarnation,
        /// Where it listens.
        uri: String,
        /// What to authenticate with.
        secret: Option<String>,
    },
    /// Ask a pool what fits into its memory; answered with `PoolSeen` or `PoolSilent`.
    AskPool {
        /// The pool.
        pool: PoolRow,
        /// The number that the answer bears.
        ask: u64,
    },
    /// Ask a pool for a worker that it may be asked to stop again; answered with `SpawnEnded`.
    SpawnWorker {
        /// The pool.
        pool: PoolRow,
        /// The id it is to have. The pool starts no second worker of the same id.
        worker_id: WorkerId,
        /// The model, as the pool's catalog names it.
        model: String,
    },
    /// Ask a pool to end a worker that holds no run; answered with `StopEnded`.
    StopWorker {
        /// The pool.
        pool: PoolRow,
        /// The worker.
        worker_id: WorkerId,
    },
    /// Something an operator watches changed; goes to `/v2/events`, live only.
    Notify(Notice),
}

/// Everything a worker needs for one attempt, but for the request itself, which the driver holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenStream {
    /// Which run.
    pub run: RunKey,
    /// Where the worker listens.
    pub uri: String,
    /// What to authenticate with.
    pub secret: Option<String>,
    /// The `id:` of the worker's first event.
    pub first_event_id: u64,
    /// Milliseconds the run may take.
    pub time_limit_ms: u64,
    /// The start of the prompt, for a worker that keeps prompts and reports them by their hashes.
    pub prefix: Option<PrefixChain>,
    /// Set when the run goes on with the tokens in the job's log.
    pub goes_on: Option<GoOn>,
}

/// How a run goes on where another stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoOn {
    /// Tokens in the job's log.
    pub tokens: u32,
    /// Seams that the run is to put into it.
    pub seams: Vec<Seam>,
}

/// What a waiting caller is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The job is in.
    Accepted {
        /// Its id: the new one, or that of the first submission with this idempotency key.
        job_id: JobId,
        /// Where it stands.
        status: TaskStatus,
        /// Jobs that go before it.
        queue_position: u64,
        /// When it may end, in milliseconds from now; absent when unknown.
        eta: Option<Eta>,
        /// Whether an earlier submission with the same key is meant.
        replayed: bool,
        /// The model it was resolved to.
        model: String,
    },
    /// The job will end, or has.
    Cancelled {
        /// Where it stands now.
        status: TaskStatus,
        /// Whether it had ended before.
        already_ended: bool,
    },
    /// The worker is in the registry.
    Registered {
        /// The number that its later messages bear.
        incarnation: Incarnation,
        /// Runs that nobody waits for any more.
        drop_runs: Vec<Run>,
    },
    /// The heartbeat counted.
    Heartbeat {
        /// Runs that nobody waits for any more.
        drop_runs: Vec<Run>,
        /// Whether to finish and end.
        drain: bool,
    },
    /// It is done.
    Done,
    /// It is not done, and why.
    Refused(ErrorDetail),
}

/// News for operators, live only.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// A job changed its status.
    Job {
        /// The job.
        job_id: JobId,
        /// Where it stands now.
        status: TaskStatus,
        /// Its try; 0 before the first.
        attempt: u32,
        /// Its model.
        model: String,
        /// The worker of that try.
        worker_id: Option<WorkerId>,
    },
    /// A worker changed.
    Worker {
        /// The worker.
        worker_id: WorkerId,
        /// What the orchestrator thinks of it now.
        state: api_types::worker::WorkerState,
        /// Slots that jobs hold.
        slots_busy: u32,
        /// All its slots.
        slots: u32,
    },
    /// The queue grew or shrank.
    Queue {
        /// Jobs waiting.
        depth: u64,
    },
    /// A policy gave no answer; the next one in line did.
    PolicyFailed {
        /// The policy that failed.
        name: String,
        /// Where and why.
        failure: PolicyFailure,
    },
    /// The live policy failed too often, and another decides from now on.
    PolicyDemoted(Demotion),
    /// A worker sent what is not the protocol.
    ProtocolBroken {
        /// The worker.
        worker_id: WorkerId,
        /// How often it has done so, this time included.
        errors: u32,
        /// Milliseconds for which it gets no new job, when it was once too often.
        quarantine_ms: Option<u64>,
    },
    /// A worker is being made, has come or will not come.
    Spawn {
        /// The pool.
        pool_id: PoolId,
        /// The worker.
        worker_id: WorkerId,
        /// Its model.
        model: String,
        /// How far it is.
        phase: SpawnPhase,
        /// What went wrong, when it failed.
        error: Option<ErrorDetail>,
    },
    /// A worker is taken away.
    Unload {
        /// The worker.
        worker_id: WorkerId,
        /// Its model.
        model: String,
        /// Why.
        cause: UnloadCause,
        /// The model that gets its memory, if one does.
        for_model: Option<String>,
    },
    /// A message with an old attempt or incarnation was dropped.
    StaleDropped {
        /// Which kind of message.
        kind: &'static str,
    },
}

/// How far a worker is that a pool was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpawnPhase {
    /// The pool was asked.
    Started,
    /// It is registered and ready.
    Ready,
    /// It will not come.
    Failed,
}

/// Why a worker is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnloadCause {
    /// It had no job for its `keep_alive`.
    Idle,
    /// It was idle, and another model needs its memory.
    Evicted,
    /// It was busy for as long as it may be while another model waits for its memory.
    Swapped,
}
